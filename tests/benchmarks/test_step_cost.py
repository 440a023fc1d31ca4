"""benchmarks/step_cost.py: the rival computes the same loss, and the table has every case."""

import csv
import sys
from itertools import product

import head_cost
import pytest
import torch
from scripts import load_script
from steps.cases import PRESETS, Case
from steps.measure import build_model, build_task, median_interval
from steps.trace import trace

TINY = Case('test_resnet', classes=12, topk=3, img_size=64, batch_size=4)


def test_the_published_way_has_the_loss_and_gradients_of_ours():
    model = build_model(TINY, 'cpu')
    images, target = torch.randn(4, 3, 64, 64), torch.tensor([0, 3, 11, 5])
    found = []
    for variant in ('mse', 'full'):
        model.zero_grad()
        loss = build_task(model, variant, TINY.topk, 'cpu')(images, target)['loss']
        loss.backward()
        found.append([loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_the_heads_of_both_ways_have_the_same_loss_and_gradients():
    steps = head_cost.build_steps(classes=130, topk=5, batch_size=3)
    ours, published, ce = (steps[variant]() for variant in ('mse', 'full', 'ce'))
    assert len(ours) == 4
    torch.testing.assert_close(ours, published, rtol=1e-4, atol=1e-7)
    assert ce[0] < ours[0]


def test_the_table_of_heads_has_a_row_for_every_number_of_classes(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['head_cost.py', '--classes', '10', '30', '--topk', '3', '--rounds', '2'])
    head_cost.main()
    assert [line.split('|')[1].strip() for line in capsys.readouterr().out.splitlines()[4:]] == ['10', '30']


def test_the_table_has_a_row_for_every_variant_of_every_case(tmp_path, monkeypatch, capsys):
    script = load_script('step_cost')
    line = '--model test_resnet --classes 12 --topk 1 3 --img-size 32 64 --batch-size 2 --pairs 2 --memory-runs 0'
    chosen = [*line.split(), '--device', 'cpu', '--variants', 'mse', 'kd', 'full', '--out', str(tmp_path / 'table')]
    monkeypatch.setattr(sys, 'argv', ['step_cost.py', *chosen])
    script.main()
    rows = list(csv.DictReader((tmp_path / 'table.csv').read_text().splitlines()))
    assert {(row['topk'], row['img_size'], row['variant']) for row in rows} == {
        (k, size, variant) for k in ('1', '3') for size in ('32', '64') for variant in ('mse', 'kd', 'full')
    }
    assert all(float(row['low']) <= float(row['ratio']) <= float(row['high']) for row in rows)
    assert (tmp_path / 'table.md').read_text().count('| test_resnet |') == len(rows)
    assert capsys.readouterr().out.count('| test_resnet |') == len(rows)


def test_a_trace_of_both_is_written_and_the_added_operations_are_named(tmp_path):
    table = trace(TINY, 'mse', 'cpu', tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {'test_resnet-12-ce.json', 'test_resnet-12-mse.json'}
    assert table.splitlines()[-1].startswith('| all |')
    chose = {path.stem: 'aten::topk' in path.read_text() for path in tmp_path.iterdir()}
    assert chose == {'test_resnet-12-ce': False, 'test_resnet-12-mse': True}


@pytest.mark.parametrize('name', PRESETS)
def test_presets_name_models_that_are_there_and_no_case_twice(name):
    cases = PRESETS[name]
    assert len({case.describe() for case in cases}) == len(cases)


def test_the_interval_of_a_median():
    assert median_interval([*range(101)]) == (50, 40, 60)
    assert median_interval([3.0, 1.0, 2.0, 5.0, 4.0]) == (3, 1, 5), 'of so few the ends'
    _, low, high = median_interval([*range(12)])
    below = [sum(sides) for sides in product((0, 1), repeat=12)]  # how many values lie below the median

    def held(low, high):
        return sum(low < count <= high for count in below) / len(below)

    assert held(low, high) >= 0.95 > held(low + 1, high - 1)
