"""train.py on the published data sets' own layouts."""

import json

import pytest
from image_data import CLASSES, write_coco, write_cub
from running import SMALL, WITHOUT_PICTURES, result, train, validate


def names_of(run):
    return json.loads((run / 'model_best' / 'config.json').read_text())['label_names']


def test_cub(tmp_path, capsys):
    data = ['--dataset', 'hnc/cub200', '--data-dir', write_cub(tmp_path / 'data'), '--val-split', 'test']
    run = train(*data, *SMALL, *WITHOUT_PICTURES, '--hnc', 'kd', '--output', tmp_path, '--experiment', 'run')
    assert names_of(run) == [f'{number + 1:03d}.{name}' for number, name in enumerate(CLASSES)]
    figures = validate(capsys, '--checkpoint', run, '--workers', '0', '--device', 'cpu', '-b', '8')
    assert figures['loss'] == pytest.approx(result(run)['final']['loss'], rel=1e-5)


@pytest.mark.parametrize('loss', ['weighted-sigmoid', 'attention-consistency'])
def test_coco(tmp_path, loss):
    data = ['--dataset', 'hnc/coco', '--data-dir', write_coco(tmp_path / 'data'), '--task', 'multilabel']
    options = [*SMALL, *WITHOUT_PICTURES, '--loss', loss, '--hnc', 'mse', '--output', tmp_path, '--experiment', 'run']
    run = train(*data, *options)
    assert names_of(run) == list(CLASSES)
    assert 0 < result(run)['final']['map'] <= 100
