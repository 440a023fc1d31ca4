"""--map-loss energy and outside: runs that learn from boxes."""

import json
import shlex
from pathlib import Path

import pytest
import torch
from image_data import write_cub
from PIL import Image
from running import SMALL, arguments, failure, run_differences, run_script, summary, train

from timm_hnc.losses.factory import MAP_LOSSES
from timm_hnc.training import fit

HERE = Path(__file__).parent
NOT_TAUGHT = [name for name in MAP_LOSSES if name != 'teacher']


@pytest.fixture(scope='module')
def birds(tmp_path_factory):
    return ['--dataset', 'hnc/cub200', '--data-dir', str(write_cub(tmp_path_factory.mktemp('birds')))]


@pytest.fixture
def argv(birds, tmp_path):
    def build(name, *more):
        return [*birds, *SMALL, '-b', 8, '--lr', 0.05, '--output', tmp_path, '--experiment', name, *more]

    return build


def test_a_run_with_boxes_goes_on_exactly(argv):
    options = ['--map-loss', 'energy=0.5', 'outside', '--hnc', 'mse', '--epochs', 2]
    options += ['--hflip', 0.5, '--color-jitter', 0.4, '--reprob', 0.3]
    whole = train(*argv('whole', *options, '--workers', 2))
    train(*argv('parts', *options, '--stop-epoch', 1))
    parts = train(*argv('parts', *options, '--resume', 'auto', '--workers', 1))
    assert run_differences(parts, whole) == []
    for row in summary(whole):
        assert 0 < row['train_energy'] < 1
        expected = row['train_criterion'] + 0.0007 * row['train_hnc'] + 0.5 * row['train_energy'] + row['train_outside']
        assert row['train_loss'] == pytest.approx(expected, rel=1e-6)
    assert arguments(whole)['boxes_share'] == 1.0


def test_two_processes_have_the_gradients_of_one(birds, tmp_path):
    model = '--model test_efficientnet_gn --num-classes 3 --img-size 64 --workers 0 --device cpu --lr 0.01'
    command = [*shlex.split(f'{model} --warmup-epochs 0 --map-loss {" ".join(NOT_TAUGHT)}'), *birds]
    found = {}
    for processes, batch_size in ((0, 6), (2, 3)):
        commands = json.dumps([[*command, '-b', str(batch_size)]])
        done = run_script(HERE / 'one_epoch.py', commands, tmp_path / 'out.pt', processes=processes, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        [found[processes]] = torch.load(tmp_path / 'out.pt', weights_only=True)
    one, two = (torch.cat([g.flatten() for g in found[n]['gradients'][0].values()]) for n in (0, 2))
    assert (one - two).norm() < 1e-9 * one.norm()
    for name in NOT_TAUGHT:
        assert found[2]['metrics'][name] == pytest.approx(found[0]['metrics'][name], rel=1e-9), name


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ('--aa rand-m9', 'not together with --aa, through which objects do not follow their images'),
        ('--aug-splits 2', 'not together with --aug-splits'),
        ('--mixup 0.2', 'not together with --mixup and --cutmix'),
        ('--train-img-sizes 24 32', 'not together with --train-img-sizes'),
        ('--model test_vit --model-kwargs', "no trainable class maps for 'test_vit'"),
    ],
)
def test_what_boxes_do_not_go_with(argv, capsys, options, message):
    code, line = failure(capsys, 'train', *argv('run', '--map-loss', 'energy', *options.split()))
    assert (code, line.startswith(f'--map-loss energy: {message}')) == (2, True), line


def test_data_without_boxes_and_options_that_do_nothing(argv, images, capsys, tmp_path):
    folder = ['--dataset', '', '--data-dir', images]
    code, line = failure(capsys, 'train', *argv('run', '--map-loss', 'outside', *folder))
    assert (code, line.startswith("--map-loss outside: no boxes 'objects' in the data set")) == (2, True), line
    code, line = failure(capsys, 'train', *argv('run', '--boxes-share', 0.5))
    assert line == '--boxes-share 0.5: does nothing without a --map-loss that needs boxes.'
    for share, message in ((0, 'expected 1 or less and more than 0'), (1.5, 'expected 1 or less'), ('nan', 'expected')):
        code, line = failure(capsys, 'train', *argv('run', '--map-loss', 'energy', '--boxes-share', share))
        assert (code, message in line) == (2, True), line
    code, line = failure(capsys, 'train', *argv('run', '--map-loss', 'energy', '--boxes-share', 1e-9))
    assert (code, line) == (
        1,
        '--map-loss energy: no training image has boxes of its class: see --boxes-dir, --boxes-key and --boxes-share.',
    )
    assert not (tmp_path / 'run' / 'checkpoints').exists()


def test_boxes_that_cannot_be_used_are_told_of(argv, images, tmp_path, capsys):
    names = sorted(Path(images, 'train').rglob('*.png'))
    classes = sorted({path.parent.name for path in names})
    (tmp_path / 'boxes').mkdir()
    for number, path in enumerate(names[:6]):  # three of their own class, two of another, one without size
        name = classes[classes.index(path.parent.name) - (number in (3, 4))]
        edges = {'xmin': 0, 'ymin': 0, 'xmax': 0 if number == 5 else 9, 'ymax': 9}
        corners = ''.join(f'<{edge}>{value}</{edge}>' for edge, value in edges.items())
        text = f'<annotation><object><name>{name}</name><bndbox>{corners}</bndbox></object></annotation>'
        (tmp_path / 'boxes' / path.with_suffix('.xml').name).write_text(text)
    options = ['--map-loss', 'energy', '--boxes-dir', tmp_path / 'boxes', '--epochs', 1]
    train(*argv('run', '--dataset', '', '--data-dir', images, *options))
    printed = capsys.readouterr()
    told = [line for line in (printed.out + printed.err).splitlines() if 'the boxes of' in line]
    assert told == [
        'WARNING: --map-loss energy: the boxes of 1 images are odd (no size, or outside the image) and are left out.',
        'WARNING: --map-loss energy: the boxes of 2 images are of other classes alone and are left out.',
    ]


@pytest.fixture
def masked(images, tmp_path):
    """A folder of images, and masks for all of them but one."""
    source = Path(images)
    names = [path for path in sorted(source.rglob('*')) if path.suffix in ('.png', '.jpg')]
    for path in names[1:]:
        with Image.open(path) as image:
            mask = Image.new('1', image.size)
        mask.paste(1, (0, 0, mask.width // 2, mask.height))
        (tmp_path / 'masks' / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
        mask.save((tmp_path / 'masks' / path.relative_to(source)).with_suffix('.png'))
    return ['--dataset', '', '--data-dir', images, '--masks-dir', str(tmp_path / 'masks')]


@pytest.mark.parametrize('memory', ['', '--data-in-memory --train-crop-mode pad --color-jitter 0'])
def test_a_run_with_masks_goes_on_exactly(argv, masked, memory):
    options = ['--map-loss', 'target-maps', 'energy=0.5', '--epochs', 2, '--hflip', 0.5, *masked, *memory.split()]
    whole = train(*argv('whole', *options, '--workers', 1))
    train(*argv('parts', *options, '--stop-epoch', 1))
    parts = train(*argv('parts', *options, '--resume', 'auto'))
    assert run_differences(parts, whole) == []
    for row in summary(whole):
        assert (0 < row['train_energy'] < 1, 0 < row['train_target-maps'] < 1) == (True, True)


def test_masks_that_do_nothing_or_cannot_be_used(argv, masked, images, capsys, tmp_path, monkeypatch):
    folder = tmp_path / 'masks'
    for flags, message in (
        (['--masks-key', 'mask'], '--masks-key mask: does nothing without a --map-loss that needs boxes.'),
        (['--map-loss', 'energy', '--masks-grey'], '--masks-grey: does nothing without --masks-dir or --masks-key.'),
        (
            ['--map-loss', 'energy', '--masks-dir', folder, '--masks-key', 'mask'],
            '--masks-dir: not together with --masks-key.',
        ),
        (
            ['--map-loss', 'energy', '--masks-key', 'mask', '--boxes-dir', folder],
            '--masks-key: not together with --boxes-dir.',
        ),
        (
            ['--map-loss', 'energy', '--masks-key', 'mask', '--task', 'multilabel'],
            '--masks-key: for one class an image; of several, give boxes.',
        ),
    ):
        code, line = failure(capsys, 'train', *argv('run', '--dataset', '', '--data-dir', images, *flags))
        assert (code, line) == (2, message)
    for path in folder.rglob('*.png'):
        Image.new('RGB', (32, 32)).save(path)
    looks = []
    monkeypatch.setattr(fit, '_ENOUGH_IMAGES', 16)
    monkeypatch.setattr(fit, '_synchronise_batch_norm', lambda *_: looks.append('the epoch is over'))
    code, line = failure(capsys, 'train', *argv('run', '--map-loss', 'outside', *masked))
    assert looks == [], 'after 16 images'
    assert (code, line.startswith('--map-loss outside: no training image has masks of its class, ')) == (1, True), line
    assert line.endswith(
        'are odd (another size than the image, colours, or damaged): see --masks-dir, --masks-key and --boxes-share.'
    )
