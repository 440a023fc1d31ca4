"""Figures of class maps against loops in NumPy, and through validate.py in one process and in two."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from running import ROOT, SMALL, failure, result_of, run_script, train, validate
from scipy.stats import entropy

from timm_hnc import ClassMaps
from timm_hnc.metrics.map_quality import MapQuality

CLASSES, HERE = 6, ['--workers', '0', '--device', 'cpu', '-b', '7']


def figures_of(map_):
    softmax = np.exp(map_ - map_.max())
    uniform = np.full(map_.size, 1 / map_.size)
    return map_.max() - map_.mean(), (map_ > 0).mean(), entropy(uniform, softmax.flatten() / softmax.sum())


def batch(images, seed):
    generator = torch.Generator().manual_seed(seed)
    return ClassMaps(
        *(torch.randn(*shape, generator=generator) for shape in ((images, 12, 5), (CLASSES, 5), (CLASSES,))), (3, 4)
    )


def expected(batches, topk):
    found = {'negative': [], 'positive': []}
    for maps, sets in batches:
        for image, present in enumerate(sets):
            order = maps.logits[image].argsort(descending=True).tolist()
            for group, classes in (
                ('negative', [o for o in order if not present[o]][:topk]),
                ('positive', [o for o in range(CLASSES) if present[o]]),
            ):
                found[group] += [(o, figures_of(maps.maps()[image, o].double().numpy())) for o in classes]
    return found


@pytest.mark.parametrize('several', [False, True], ids=['one label', 'several'])
@pytest.mark.parametrize('topk', [2, 9])
def test_figures_are_those_of_loops(several, topk):
    generator = torch.Generator().manual_seed(9)
    quality, batches = MapQuality(CLASSES, topk), []
    for number, images in enumerate((4, 1, 7)):
        maps = batch(images, number)
        if several:
            target = (torch.rand(images, CLASSES, generator=generator) < 0.4).float()
            target[0] = 0
        else:
            target = torch.randint(CLASSES, (images,), generator=generator)
        quality.update(maps, target, padding=3 if images == 7 else 0)
        sets = target if several else torch.eye(CLASSES)[target]
        batches.append((maps, sets[:4] if images == 7 else sets))
    found, wanted = quality.compute(), expected(batches, topk)
    rows = quality.per_class([f'class {index}' for index in range(CLASSES)])
    for group, entries in wanted.items():
        for place, name in enumerate(('peak', 'positive_share', 'kl')):
            mean = np.mean([figures[place] for _, figures in entries])
            assert found[f'{group}_{name}'] == pytest.approx(mean, rel=1e-5)
            for index, row in enumerate(rows):
                own = [figures[place] for o, figures in entries if o == index]
                assert row[f'{group}_maps'] == len(own)
                assert row[f'{group}_{name}'] == (pytest.approx(np.mean(own), rel=1e-5) if own else None)


def test_flat_maps_and_no_maps():
    quality = MapQuality(2, 1)
    assert all(math.isnan(value) for value in quality.compute().values())
    quality.update(ClassMaps(torch.ones(1, 4, 3), torch.ones(2, 3), None, (2, 2)), torch.tensor([0]))
    assert quality.compute() == pytest.approx(
        {
            f'{group}_{name}': float(name == 'positive_share')
            for group in ('negative', 'positive')
            for name in ('peak', 'positive_share', 'kl')
        },
        abs=1e-12,
    )


@pytest.fixture(scope='module')
def run(images, tmp_path_factory):
    root = tmp_path_factory.mktemp('maps')
    return train('--data-dir', images, *SMALL, '--lr', 0.02, '--output', root, '--experiment', 'run')


def test_two_processes_give_the_figures_of_one(run, tmp_path, capsys):
    options = ['--checkpoint', run, *HERE, '--cam-metrics', '--cam-topk', 2, '--cam-classes-file']
    one = validate(capsys, *options, tmp_path / 'one.csv')
    assert validate(capsys, *options, tmp_path / 'one.json') == one
    plain = validate(capsys, '--checkpoint', run, *HERE)
    assert {name: one[name] for name in plain} == plain
    two = result_of(run_script(ROOT / 'validate.py', *options, tmp_path / 'two.csv', processes=2))
    cam = [name for name in one if name.startswith('cam_')]
    assert len(cam) == 7
    assert one['cam_topk'] == 2
    assert {name: two[name] for name in cam} == pytest.approx({name: one[name] for name in cam}, rel=1e-4)
    rows = [list(csv.DictReader((tmp_path / f'{name}.csv').open())) for name in ('one', 'two')]
    assert [row['class'] for row in rows[0]] == ['blue', 'green', 'red']
    as_json = json.loads((tmp_path / 'one.json').read_text())
    assert [{name: str(value) for name, value in row.items()} for row in as_json] == rows[0]
    # 25 validation images, two absent classes each
    assert [sum(int(row['negative_maps']) for row in table) for table in rows] == [50, 50]


def test_wrong_use(run, images, capsys, tmp_path):
    for argv, message in (
        (['--cam-metrics', '--cam-topk', '0'], '--cam-topk 0: expected 1 or more'),
        (['--cam-classes-file', 'x.csv'], '--cam-classes-file x.csv: does nothing without --cam-metrics'),
        (['--cam-metrics', '--torchcompile'], '--cam-metrics: not together with --torchcompile'),
        (['--cam-metrics', '--cam-classes-file', tmp_path / 'no' / 'x.csv'], 'its folder does not exist.'),
    ):
        code, line = failure(capsys, 'validate', '--checkpoint', run, *HERE, *argv)
        assert (code, message in line) == (2, True), line
