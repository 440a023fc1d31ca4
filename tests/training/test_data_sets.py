"""train.py on the published data sets' own layouts."""

import json
from collections import Counter
from unittest import mock

import pytest
from image_data import CLASSES, write_coco, write_cub
from running import ROOT, SMALL, failure, result, train, training_state, validate

from timm_hnc.data.labels import class_counts


def names_of(run):
    return json.loads((run / 'model_best' / 'config.json').read_text())['label_names']


def test_cub(tmp_path, capsys):
    data = ['--dataset', 'hnc/cub200', '--data-dir', write_cub(tmp_path / 'data'), '--val-split', 'test']
    run = train(*data, *SMALL, '--hnc', 'kd', '--output', tmp_path, '--experiment', 'run')
    assert names_of(run) == [f'{number + 1:03d}.{name}' for number, name in enumerate(CLASSES)]
    figures = validate(capsys, '--checkpoint', run, '--workers', '0', '--device', 'cpu', '-b', '8')
    assert figures['loss'] == pytest.approx(result(run)['final']['loss'], rel=1e-5)


@pytest.mark.parametrize('loss', ['weighted-sigmoid', 'attention-consistency'])
def test_coco(tmp_path, loss):
    data = ['--dataset', 'hnc/coco', '--data-dir', write_coco(tmp_path / 'data'), '--task', 'multilabel']
    options = [*SMALL, '--loss', loss, '--hnc', 'mse', '--output', tmp_path, '--experiment', 'run']
    run = train(*data, *options)
    assert names_of(run) == list(CLASSES)
    assert 0 < result(run)['final']['map'] <= 100


def test_the_coco_recipe_decays_everything_and_squashes_images(tmp_path, capsys):
    recipe = tmp_path / 'coco.yaml'
    recipe.write_text((ROOT / 'hparams' / 'coco.yaml').read_text().replace('pretrained: true', 'pretrained: false'))
    data = ['--data-dir', write_coco(tmp_path / 'data'), *SMALL, '--output', tmp_path]
    run = train('-c', recipe, *data, '--experiment', 'run')
    assert {group['weight_decay'] for group in training_state(run)['optimizer']['param_groups']} == {5e-4}
    config = json.loads((run / 'model_best' / 'config.json').read_text())['pretrained_cfg']
    assert (config['crop_mode'], config['crop_pct']) == ('squash', 1.0)
    figures = validate(capsys, '--checkpoint', run, '--workers', '0', '--device', 'cpu', '-b', '8')
    assert figures['loss'] == pytest.approx(result(run)['final']['loss'], rel=1e-5)
    timms = train('-c', recipe, *data, '--opt-kwargs', '--experiment', 'timms')
    assert {group['weight_decay'] for group in training_state(timms)['optimizer']['param_groups']} == {5e-4, 0.0}


@pytest.mark.parametrize(
    'options',
    ['', '--label-noise asymmetric:1', '--holdout 0.3', '--data-in-memory --train-crop-mode pad'],
    ids=lambda options: options.split(' ')[0],
)
def test_classes_are_counted_as_they_are_trained_and_named(images, tmp_path, options):
    """However the loader wraps the data set: with noise all labels are those of the next class."""
    whole = Counter(path.parent.name for path in (images / 'train').rglob('*.png'))
    per_class = [whole[name] for name in sorted(whole)]
    counted = []

    def count(*args):
        counted.append(class_counts(*args))
        return counted[-1]

    argv = ['--data-dir', images, *SMALL, '--color-jitter', 0, '--loss', 'cb-focal', *options.split()]
    with mock.patch('timm_hnc.training.setup.objective.losses.class_counts', count):
        run = train(*argv, '--output', tmp_path, '--experiment', 'run')
    [(counts, number)] = counted
    assert names_of(run) == sorted(whole)
    assert number == sum(counts)
    if 'holdout' in options:
        assert sum(per_class) - number == round(0.3 * sum(per_class))
    else:
        assert counts.tolist() == (per_class[-1:] + per_class[:-1] if 'noise' in options else per_class)


def fails(capsys, tmp_path, *argv):
    code, message = failure(capsys, 'train', *argv, *SMALL, '--output', tmp_path, '--experiment', 'run')
    assert not (tmp_path / 'run' / 'checkpoints').exists()
    return code, message


def test_cub_without_an_index_file(tmp_path, capsys):
    file = write_cub(tmp_path / 'data') / 'CUB_200_2011' / 'images.txt'
    file.unlink()
    code, message = fails(capsys, tmp_path, '--dataset', 'hnc/cub200', '--data-dir', tmp_path / 'data')
    assert code == 1
    assert message.startswith(f"'{file}' is missing: CUB-200-2011 comes with it")


def test_coco_without_categories(tmp_path, capsys):
    file = write_coco(tmp_path / 'data') / 'annotations' / 'instances_train2014.json'
    file.write_text(json.dumps({**json.loads(file.read_text()), 'categories': []}))
    options = ['--dataset', 'hnc/coco', '--data-dir', tmp_path / 'data']
    code, message = fails(capsys, tmp_path, *options, '--task', 'multilabel')
    assert code == 1
    assert message.startswith(f"'{file}' has no 'categories'")
    assert fails(capsys, tmp_path, *options) == (
        2,
        '--dataset hnc/coco has several labels an image: pass --task multilabel.',
    )
