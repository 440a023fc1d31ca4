"""--map-teacher: a run that learns where another one looks."""

import json

import pytest
import timm
from running import NARROW, SMALL, arguments, equal_tensors, failure, run_differences, summary, train, training_state

from timm_hnc import save_pretrained
from timm_hnc.hub.bundle import bundle_run
from timm_hnc.report.page import write_report

TEACHER = ['--map-loss', 'teacher=0.5', '--map-teacher']


@pytest.fixture(scope='module')
def teacher(images, tmp_path_factory):
    """A run folder."""
    output = tmp_path_factory.mktemp('teacher')
    return train('--data-dir', images, *SMALL, '--lr', 0.05, '--output', output, '--experiment', 'teacher')


@pytest.fixture
def argv(images, tmp_path):
    def build(name, *more):
        return ['--data-dir', images, *SMALL, '--lr', 0.05, '--output', tmp_path, '--experiment', name, *more]

    return build


def test_a_run_learns_from_another(teacher, argv):
    whole = train(*argv('whole', *TEACHER, teacher, '--epochs', 2, '--hnc', 'mse', '--mixup', 0.3))
    for row in summary(whole):
        assert 0 < row['train_teacher'] < 1
        expected = row['train_criterion'] + 0.0007 * row['train_hnc'] + 0.5 * row['train_teacher']
        assert row['train_loss'] == pytest.approx(expected, rel=1e-6)
    assert arguments(whole)['map_teacher'] == str(teacher)
    options = argv('parts', *TEACHER, teacher, '--epochs', 2, '--hnc', 'mse')
    train(*options, '--mixup', 0.3, '--stop-epoch', 1)
    parts = train(*options, '--mixup', 0.3, '--resume', 'auto')
    assert run_differences(parts, whole) == []
    bundle_run(whole, whole.parent / 'published', 'user/name')
    card = (whole.parent / 'published' / 'README.md').read_text()
    assert '- On class maps, beside it: teacher=0.5 (teacher: teacher)\n' in card
    write_report([whole], whole / 'page.html')
    page = (whole / 'page.html').read_text()
    assert '<dt>losses on class maps</dt><dd>teacher=0.5</dd>' in page
    assert f'<dt>teacher</dt><dd>{teacher}</dd>' in page
    plain = train(*argv('plain', '--epochs', 2, '--hnc', 'mse', '--mixup', 0.3))
    assert training_state(whole)['model'].keys() == training_state(plain)['model'].keys()
    assert not equal_tensors(training_state(whole)['model'], training_state(plain)['model'])


def test_a_teacher_of_other_normalisation_under_bfloat16(teacher, argv, tmp_path):
    model = timm.create_model(f'local-dir:{teacher / "model_best"}', pretrained=True)
    save_pretrained(model, tmp_path / 'other', data_config={'mean': (0.1, 0.2, 0.3), 'std': (0.5, 0.6, 0.7)})
    assert json.loads((tmp_path / 'other' / 'config.json').read_text())['pretrained_cfg']['mean'] == [0.1, 0.2, 0.3]
    losses: list[float] = []
    for name in (teacher, f'local-dir:{tmp_path / "other"}'):
        options = ['--amp', '--amp-dtype', 'bfloat16', '--channels-last']
        folder = train(*argv(f'run{len(losses)}', *TEACHER, name, *options))
        losses.append(summary(folder)[0]['train_teacher'])
    assert losses[0] != losses[1]


def test_teachers_that_do_not_go_with_the_run(argv, tmp_path, capsys):
    def line_of(*more):
        code, line = failure(capsys, 'train', *argv('run', '--map-loss', 'teacher', *more))
        assert not (tmp_path / 'run' / 'checkpoints').exists()
        return code, line

    assert line_of() == (2, '--map-loss teacher: needs --map-teacher.')
    code, line = line_of('--map-teacher', 'resnet_18')
    assert (code, line.startswith("--map-teacher 'resnet_18' is no model of timm's. Near: ")) == (2, True)
    code, line = line_of('--map-teacher', f'local-dir:{tmp_path}')
    assert code == 1
    assert 'config.json' in line

    def saved(name, **kwargs):
        save_pretrained(timm.create_model(name, **kwargs), tmp_path / name)
        return f'local-dir:{tmp_path / name}'

    name = saved('test_resnet', num_classes=4, **NARROW)
    assert line_of('--map-teacher', name) == (
        2,
        f"--map-teacher '{name}': it has 4 classes, the model 3: choose one of the same classes.",
    )
    name = saved('test_vit', num_classes=3)
    code, line = line_of('--map-teacher', name)
    assert (code, line.startswith(f"--map-teacher '{name}': its patch tokens do not enter the logits")) == (2, True)
    name = saved('test_vit3', num_classes=3)
    code, line = line_of('--map-teacher', name)
    assert (code, line.startswith(f"--map-teacher '{name}': images of 3 x 32 x 32 do not pass: ")) == (
        2,
        True,
    )
    code, line = failure(capsys, 'train', *argv('run', '--map-teacher', name))
    assert (code, line) == (2, f'--map-teacher {name}: does nothing without --map-loss teacher.')
