"""train.py and validate.py with timm's NaFlex loader, on images of many shapes."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import torchvision
from image_data import CLASSES, png, square
from interruptions import interrupted
from PIL import Image
from running import (
    ROOT,
    best_weights,
    failure,
    main_of,
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

import timm_hnc
from timm_hnc.commands.command_line import run_command
from timm_hnc.commands.options.train_options import parse_train_options
from timm_hnc.data.loading.naflex_batches import seed_naflex_batches
from timm_hnc.data.loading.seeded_batches import mixed
from timm_hnc.data.naflex import Patches
from timm_hnc.errors import UsageError
from timm_hnc.training.epoch import _batch_scale
from timm_hnc.training.setup.loaders import create_naflex_train_loader

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
    assert validate(capsys, '-j', 0, '--checkpoint', trained, '--cam-metrics')['top1'] == pytest.approx(
        expected['top1'], abs=1e-4
    )
    flags = ['--data-dir', shapes, *MODEL, '--naflex-loader', '--naflex-max-seq-len', '30']
    found = validate(capsys, *flags, '--checkpoint', trained / 'model_best' / 'model.safetensors', '-b', '4')
    expected = timms_figures(model, shapes, 30)
    assert found['loss'] == pytest.approx(expected['loss'], rel=1e-4)
    assert (found['top1'], found['naflex_max_seq_len']) == (pytest.approx(expected['top1'], abs=1e-4), 30)
    assert not {'img_size', 'crop_pct'} & found.keys()
    assert validate(capsys, '-j', 0, '--checkpoint', trained)['loss'] == pytest.approx(final['loss'], rel=1e-6)
    # as images of one size
    assert 'naflex_max_seq_len' not in validate(capsys, '-j', 0, '--checkpoint', trained, '--img-size', '32')


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
        is_training=True, no_aug=True, num_workers=0, device=torch.device('cpu'), seed=mixed(42) >> 32,
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


def test_killed_twice_inside_epochs_is_not_killed(options, at_update):
    extra = '--hnc mse --hnc-weight auto:0.2 --workers 1 --grad-accum-steps 2 --naflex-patch-sizes 4 8'
    kwargs = [f'{name}={value}' for name, value in {**TINY, 'enable_patch_interpolator': True}.items()]
    argv = [*AUGMENTED, *extra.split(), '-b', '8', '--checkpoint-interval', '1', '--mixup-off-epoch', '1']
    argv += ['--model-kwargs', *kwargs]
    whole = train(*options('whole', *argv))
    parts = options('parts', *argv)
    interrupted(at_update, parts, 0, 2)
    interrupted(at_update, [*parts, '--resume', 'auto'], 1, 2)
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
    assert validate(capsys, '-j', 0, '--checkpoint', run)['loss'] == pytest.approx(expected['loss'], rel=1e-4)


def test_an_image_that_cannot_be_augmented_ends_the_run(options, capsys, monkeypatch):
    class Odd:
        def __call__(self, image):
            raise ValueError('odd image')

    monkeypatch.setattr('timm.data.transforms_factory.RandomResizedCropToSequence', lambda **kwargs: Odd())
    code, message = failure(capsys, 'train', *options('run', '--hflip', '0'))
    assert code == 1
    assert 'the data cannot be read: Error processing sample index' in message
    assert 'odd image' in message


def loader_of(options, process, processes, patches, num_classes=3):
    """The training loader of a process, of those that torch.distributed would start."""
    parsed, *_ = parse_train_options([str(word) for word in options])
    accelerator = SimpleNamespace(device=torch.device('cpu'), num_processes=processes, process_index=process)
    dataset = create_dataset('', parsed.data.data_dir, split='train')
    config = {'input_size': (3, 384, 384), 'mean': (0.5,) * 3, 'std': (0.5,) * 3, 'interpolation': 'bicubic'}
    return create_naflex_train_loader(dataset, parsed, config, patches, num_classes, accelerator)


def test_processes_share_the_images_and_options_reach_timms_loader(options, caplog):
    caplog.set_level('INFO')
    patches = Patches((8, 8), 16, channels_last=True)
    mixing = ['--mixup', '0.3', '--cutmix', '0.4', '--mixup-prob', '0.6', '--mixup-switch-prob', '0.7']
    argv = options('run', *mixing, '--mixup-off-epoch', '3', '--smoothing', '0.2', '-b', '15', '--seed', '7')
    shares = []
    for process in range(2):
        made = loader_of(argv, process, 2, patches)
        seeded = seed_naflex_batches(made, process)
        mixup = made.dataset.dataset.mixup_fn
        assert (mixup.mixup_alpha, mixup.cutmix_alpha, mixup.prob, mixup.switch_prob) == (0.3, 0.4, 0.6, 0.7)
        assert (mixup.smoothing, mixup.mixup_off_epoch, mixup.num_classes, mixup.multi_label) == (0.2, 3, 3, False)
        shares.append([index for batch in range(len(made)) for index in seeded.samples(batch)])
    assert len(shares[0]) == len(shares[1]) == 29  # of 57, one twice
    assert set(shares[0]) | set(shares[1]) == set(range(57))
    assert 'images, and patches of an image at most: 24 of 9, 8 of 16.' in caplog.text
    plans = [seed_naflex_batches(loader_of(options('run', '--seed', seed), 0, 1, patches), 0) for seed in '78']
    assert plans[0]._planned(1) != plans[1]._planned(0), 'of seeds beside each other'
    several = loader_of([*argv, '--task', 'multilabel', '--smoothing', '0'], 0, 1, patches).dataset
    assert several.mixup_fn.multi_label


@pytest.mark.parametrize(('mode', 'expected'), [('none', 1), ('linear', 24 / 16), ('sqrt', (24 / 16) ** 0.5)])
def test_a_batch_weighs_as_its_size_says(options, mode, expected):
    parsed, *_ = parse_train_options([str(word) for word in options('run', '--naflex-loss-scale', mode)])
    run = SimpleNamespace(options=parsed, data=SimpleNamespace(patches=Patches((8, 8), 16, True)))
    assert _batch_scale(run, 24) == pytest.approx(expected)


def test_several_labels_are_mixed(shapes, tmp_path, multi_label):
    argv = [*multi_label, *PLAIN, '--hnc', 'kd', '--hnc-topk', '1', '--mixup', '0.5', '--bce-sum', '--output', tmp_path]
    folder = train(*argv, '--experiment', 'run')
    rows = summary(folder)
    assert json.loads((folder / 'model_best' / 'config.json').read_text())['hnc']['bce_sum'] is True
    assert len(rows) == 2
    assert all(np.isfinite(row['train_hnc']) for row in rows)


def test_inside_an_epoch_other_lengths_are_refused(options, at_update, capsys):
    argv = options('run', '--checkpoint-interval', '1')
    interrupted(at_update, argv, 0, 2)
    code, message = failure(capsys, 'train', *argv, '--resume', 'auto', '--naflex-train-seq-lens', '8', '16')
    assert code == 1
    assert 'would go on with other images than were meant (patches an image 9 16 -> 8 16)' in message


def test_photographs_are_seen_in_their_own_shape(trained, tmp_path, capsys):
    photo, values = tmp_path / 'wide.png', tmp_path / 'values.json'
    square(np.random.default_rng(1), {0}, 90).crop((0, 0, 90, 22)).save(photo)
    run_command(
        main_of('cams'),
        [str(photo), '--checkpoint', str(trained), '--values', str(values), '--out', str(tmp_path / 'a.png')],
    )
    first = json.loads(values.read_text())[0]
    assert np.array(first['map']).shape == (2, 8)
    assert first['mean'] == pytest.approx(np.mean(first['map']), rel=1e-5)


def test_another_family_of_timms_trains_without_maps(options, capsys):
    gemma = ['--model', 'gemma4_vit_167m', '--model-kwargs', 'depth=1', 'embed_dim=64', 'num_heads=2']
    argv = options('run', *gemma, '--naflex-patchify-channels-first', '--lr', '0.001', '--epochs', '1')
    assert summary(train(*argv))[-1]['train_loss'] < 3
    code, message = failure(capsys, 'train', *argv, '--hnc', 'mse', '--experiment', 'hnc')
    assert code == 2
    assert "'gemma4_vit_167m' has no class maps of NaFlex batches" in message


def test_from_python(shapes, tmp_path):
    model = timm.create_model('naflexvit_base_patch16_gap', num_classes=3, **TINY)
    train_set, eval_set = (create_dataset('', shapes, split=split) for split in ('train', 'validation'))
    common = {'naflex_loader': True, 'naflex_train_seq_lens': [9, 16], 'naflex_max_seq_len': 16, 'device': 'cpu'}
    common |= {'workers': 0, 'batch_size': 16, 'epochs': 1, 'output': str(tmp_path), 'no_report': True, 'cam_images': 2}
    found = timm_hnc.train(model, train_set, eval_set, hnc='mse', experiment='run', **common)
    again = timm_hnc.evaluate(model, eval_set, naflex_loader=True, naflex_max_seq_len=16, device='cpu', workers=0)
    assert again['loss'] == pytest.approx(found['final']['loss'], rel=1e-5)
    loader = create_naflex_loader(
        eval_set, patch_size=8, max_seq_len=16, num_workers=0, use_prefetcher=False, device=torch.device('cpu')
    )
    with pytest.raises(UsageError, match='DataLoader of NaFlex batches was provided: give its data set, and naflex_'):
        timm_hnc.train(model, loader, None, device='cpu', output=str(tmp_path), experiment='loader', cam_images=0)
    with pytest.raises(UsageError, match='--naflex-loader: a DataLoader was provided, give its data set instead'):
        timm_hnc.train(model, loader, None, experiment='loader', **{**common, 'batch_size': 32})
    with pytest.raises(UsageError, match='--naflex-max-seq-len 9: does nothing, the DataLoader'):
        timm_hnc.evaluate(model, loader, naflex_max_seq_len=9, device='cpu')
    with pytest.raises(UsageError, match="--naflex-loader: 'ResNet' takes images of one size only"):
        timm_hnc.train(torchvision.models.resnet18(num_classes=3), train_set, None, naflex_loader=True, device='cpu')
