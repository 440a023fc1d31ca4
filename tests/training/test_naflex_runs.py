"""train.py and validate.py with timm's NaFlex loader, on images of many shapes."""

import json

import numpy as np
import pytest
import timm
import torch
from image_data import CLASSES, png, square
from interruptions import interrupted
from PIL import Image
from running import (
    ROOT,
    best_weights,
    failure,
    result,
    run_differences,
    run_script,
    summary,
    train,
    validate,
)
from timm.data import create_dataset, create_naflex_loader
from timm.optim import create_optimizer_v2
from timm.task import ClassificationEvaluator, ClassificationTask

TINY = {'embed_dim': 32, 'num_heads': 2, 'depth': 2, 'patch_size': 8}
MODEL = [
    *('--model', 'naflexvit_base_patch16_gap', '--model-kwargs', *(f'{name}={value}' for name, value in TINY.items())),
    *('--num-classes', '3', '--workers', '0', '--device', 'cpu'),
]
NAFLEX = ['--naflex-loader', '--naflex-train-seq-lens', '9', '16', '--naflex-max-seq-len', '16']
SMALL = [*MODEL, *NAFLEX, '-b', '16', '--epochs', '2', '--lr', '0.05', '--warmup-epochs', '0']
PLAIN = [*SMALL, '--no-report', '--cam-images', '0']
AUGMENTED = ['--aa', 'rand-m5-mstd0.5', '--reprob', '0.3', '--mixup', '0.3', '--cutmix', '0.5', '--drop', '0.1']


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    """A folder of images of many shapes."""
    root, rng = tmp_path_factory.mktemp('shapes'), np.random.default_rng(0)
    for split, count in (('train', 57), ('validation', 21)):
        for number in range(count):
            label = number % 3
            width, height = (int(side) for side in rng.integers(20, 90, 2))
            image = square(rng, {2 - label}, 90).crop((0, 0, width, height))
            path = root / split / CLASSES[label] / f'{number:02d}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(image))
    return root


@pytest.fixture
def options(shapes, tmp_path):
    def build(name, *argv):
        return ['--data-dir', shapes, *PLAIN, '--output', tmp_path, '--experiment', name, *argv]

    return build


@pytest.fixture(scope='module')
def trained(shapes, tmp_path_factory):
    output = tmp_path_factory.mktemp('trained')
    hnc = ['--hnc', 'kd', '--hnc-weight', '0.01', '--hnc-topk', '2', '--cam-images', '3']
    return train('--data-dir', shapes, *SMALL, *hnc, '--output', output, '--experiment', 'run')


def timms_figures(model, shapes, max_seq_len=16, **loading):
    """What timm's own loader and evaluator say of a model."""
    dataset = create_dataset('', shapes, split='validation')
    loader = create_naflex_loader(
        dataset, patch_size=8, max_seq_len=max_seq_len, batch_size=5, num_workers=0, device=torch.device('cpu'),
        interpolation='bicubic', mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), **loading,
    )  # fmt: skip
    evaluator = ClassificationEvaluator(torch.device('cpu'))
    with torch.no_grad():
        for batch, target in loader:
            evaluator.update(model.eval()(batch), target)
    return evaluator.compute()


def test_a_run_with_hnc_is_evaluated_as_timm_does_and_shown(trained, shapes, capsys):
    model = timm.create_model('naflexvit_base_patch16_gap', num_classes=3, **TINY)
    model.load_state_dict(best_weights(trained))
    expected = timms_figures(model, shapes)
    final = result(trained)['final']
    for name in ('loss', 'top1'):
        assert final[name] == pytest.approx(expected[name], rel=1e-4)
    assert {'train_hnc', 'train_criterion'} <= summary(trained)[-1].keys()
    # of the run folder, and of its weights alone with other lengths
    assert validate(capsys, '--checkpoint', trained, '--cam-metrics')['top1'] == pytest.approx(
        expected['top1'], abs=1e-4
    )
    flags = ['--data-dir', shapes, *MODEL, '--naflex-loader', '--naflex-max-seq-len', '30']
    found = validate(capsys, *flags, '--checkpoint', trained / 'model_best' / 'model.safetensors', '-b', '4')
    expected = timms_figures(model, shapes, 30)
    assert found['loss'] == pytest.approx(expected['loss'], rel=1e-4)
    assert (found['top1'], found['naflex_max_seq_len']) == (pytest.approx(expected['top1'], abs=1e-4), 30)
    # as images of one size
    assert 'naflex_max_seq_len' not in validate(capsys, '--checkpoint', trained, '--img-size', '32')


def test_the_report_shows_images_in_their_shapes(trained):
    examples = json.loads((trained / 'report' / 'examples.json').read_text())
    shapes = set()
    for example in examples:
        with Image.open(trained / 'report' / example['image']) as image:
            shapes.add(image.size)
            grid = np.array(example['classes'][0]['map']).shape
            assert image.size == (8 * grid[1], 8 * grid[0])
            assert grid[0] * grid[1] <= 16
    assert len(shapes) > 1
    assert (trained / 'cams' / 'best.png').is_file()
    assert not (trained / 'report' / 'robustness.csv').exists()


def test_without_hnc_a_run_is_a_loop_over_timms_loader_and_task(options, shapes):
    run = train(
        *options('run', '--no-aug', '--sched', 'none', '--opt', 'sgd', '--smoothing', '0', '--weight-decay', '0')
    )
    torch.manual_seed(42)
    model = timm.create_model('naflexvit_base_patch16_gap', num_classes=3, **TINY)
    loader = create_naflex_loader(
        create_dataset('', shapes, split='train'), patch_size=8, train_seq_lens=(9, 16), batch_size=16,
        is_training=True, no_aug=True, num_workers=0, device=torch.device('cpu'),
        interpolation='bicubic', mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
    )  # fmt: skip
    task = ClassificationTask(model, device=torch.device('cpu'), verbose=False).train()
    optimizer = create_optimizer_v2(model, 'sgd', lr=0.05, momentum=0.9)
    sizes = set()
    for epoch, row in enumerate(summary(run)):
        loader.dataset.set_epoch(epoch)
        total, count = 0.0, 0
        for batch, target in loader:
            optimizer.zero_grad()
            loss = task(batch, target)['loss']
            (loss * len(target) / 16).backward()  # --naflex-loss-scale linear
            optimizer.step()
            total, count = total + loss.item() * len(target), count + len(target)
            sizes.add(len(target))
        assert row['train_loss'] == pytest.approx(total / count, rel=1e-5)
    assert len(sizes) > 1


@pytest.mark.parametrize(
    'extra',
    [
        '--hnc mse --hnc-weight auto:0.2 --workers 1',
        '--hnc kd --grad-accum-steps 2 --naflex-patch-sizes 4 8 --naflex-loss-scale sqrt --no-prefetcher',
    ],
    ids=['workers', 'patch-sizes'],
)
def test_killed_twice_inside_epochs_is_not_killed(options, monkeypatch, at_update, extra):
    argv = [*AUGMENTED, *extra.split(), '-b', '8', '--checkpoint-interval', '2', '--mixup-off-epoch', '1']
    if 'patch-sizes' in extra:
        kwargs = [f'{name}={value}' for name, value in {**TINY, 'enable_patch_interpolator': True}.items()]
        argv += ['--model-kwargs', *kwargs]
    whole = train(*options('whole', *argv))
    parts = options('parts', *argv)
    interrupted(at_update, monkeypatch, parts, 0, 3)
    interrupted(at_update, monkeypatch, [*parts, '--resume', 'auto'], 1, 3)
    folder = train(*parts, '--resume', 'auto')
    assert run_differences(folder, whole) == []


def test_two_processes_train_as_often_as_one_and_resume(shapes, tmp_path):
    argv = ['train', '--data-dir', str(shapes), *PLAIN, '--hnc', 'mse', '--output', str(tmp_path)]
    commands = [
        [*argv, '--experiment', 'whole'],
        [*argv, '--experiment', 'parts', '--stop-epoch', '1'],
        [*argv, '--experiment', 'parts', '--resume', 'auto'],
    ]
    done = run_script(ROOT / 'tests' / 'several_commands.py', json.dumps(commands), processes=2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert run_differences(tmp_path / 'parts', tmp_path / 'whole') == []
    model = timm.create_model('naflexvit_base_patch16_gap', num_classes=3, **TINY)
    model.load_state_dict(best_weights(tmp_path / 'whole'))
    # 21 images in two processes, each counted once
    assert result(tmp_path / 'whole')['final']['loss'] == pytest.approx(timms_figures(model, shapes)['loss'], rel=1e-4)


KWARGS = ' '.join(f'{name}={value}' for name, value in TINY.items())


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        ('--model test_resnet', "--naflex-loader: 'test_resnet' takes images of one size only: choose"),
        ('--model vit_tiny_patch16_224', "--naflex-loader: 'vit_tiny_patch16_224' takes images of one size only"),
        (
            f'--model naflexvit_base_patch16_gap --model-kwargs {KWARGS} --naflex-patchify-channels-first',
            "--naflex-patchify-channels-first: 'naflexvit_base_patch16_gap' reads patches with channels last: leave",
        ),
        (
            f'--model naflexvit_base_patch16_gap --model-kwargs {KWARGS} patchify_channels_last=False',
            "--naflex-patchify-channels-first: 'naflexvit_base_patch16_gap' reads patches channel by channel: give it",
        ),
        (
            f'--model naflexvit_base_patch16_gap --model-kwargs {KWARGS} --naflex-patch-sizes 8 12',
            "--naflex-patch-sizes 12: 'naflexvit_base_patch16_gap' takes patches of one size: see --model",
        ),
        (
            f'--model vit_tiny_patch16_224 --model-kwargs use_naflex=True {KWARGS} --hnc mse',
            '--hnc mse: ',
        ),
    ],
    ids=['resnet', 'vit', 'channels first', 'channels last', 'patch size', 'class token'],
)  # fmt: skip
def test_what_cannot_train_is_refused_before_data_is_read(argv, message, capsys, tmp_path):
    words = [*argv.split(), '--naflex-loader', '--num-classes', '3', '--data-dir', tmp_path / 'none', '--device', 'cpu']
    code, found = failure(capsys, 'train', *words, '--output', tmp_path)
    assert code == 2
    assert found.startswith(message)
    assert 'class token' not in argv or '--gp avg' in found


def test_channels_may_come_first(options, shapes, capsys):
    kwargs = [f'{name}={value}' for name, value in {**TINY, 'patchify_channels_last': False}.items()]
    run = train(*options('run', '--model-kwargs', *kwargs, '--naflex-patchify-channels-first', '--hnc', 'mse'))
    model = timm.create_model('naflexvit_base_patch16_gap', num_classes=3, patchify_channels_last=False, **TINY)
    model.load_state_dict(best_weights(run))
    expected = timms_figures(model, shapes, patchify_channels_last=False)
    assert result(run)['final']['loss'] == pytest.approx(expected['loss'], rel=1e-4)
    assert validate(capsys, '--checkpoint', run)['loss'] == pytest.approx(expected['loss'], rel=1e-4)


def test_an_image_that_cannot_be_augmented_ends_the_run(options, capsys, monkeypatch):
    class Odd:
        def __call__(self, image):
            raise ValueError('odd image')

    monkeypatch.setattr('timm.data.transforms_factory.RandomResizedCropToSequence', lambda **kwargs: Odd())
    code, message = failure(capsys, 'train', *options('run', '--hflip', '0'))
    assert code == 1
    assert 'the data cannot be read: Error processing sample index' in message
    assert 'odd image' in message
