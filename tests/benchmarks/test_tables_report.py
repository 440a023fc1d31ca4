"""benchmarks/tables.py: what the tables say."""

import csv
import sys

import pytest
from table_runs import cell_of, finish, report, row_of, small_plan
from tables.plan import LOSSES, plan
from tables.report import draw_weights, find_runs, format_values, markdown, write_csv
from tables.runs import Plan

from timm_hnc.errors import UsageError


def test_mean_spread_and_number_of_runs(tmp_path):
    assert format_values([]) == '-'
    assert format_values([73.0]) == '73.00, n = 1'
    assert format_values([72.0, 73.0, 74.5]) == '73.17 ± 1.26, n = 3'
    table = plan('table1', 'paper')
    shared = Plan(tmp_path)
    for run, top1 in zip(shared.runs([cell_of(table, 'ce', 'cifar_resnet56')], 3), (72, 73, 74.5), strict=True):
        finish(run, 80, top1)
    text, _ = report(table, shared)
    assert row_of(text, 'Loss')[:4] == ['ResNet-56 top-1', 'paper', 'ResNet-56 top-5', 'paper']
    assert row_of(text, 'Cross entropy') == [
        *('73.17 ± 1.26, n = 3', '72.40', '90.00 ± 0.00, n = 3', '92.68', '-', '73.79', '-', '93.11')
    ]
    assert row_of(text, 'Anchor loss') == ['-', '-', '-', '-', '-', '74.38', '-', '92.45']
    assert 'the paper does not say which' in text
    assert 'Trained on: cpu, torch 2.x, timm 1.x.' in text
    assert str(tmp_path) not in text


def test_csv_has_every_run_and_its_best_epoch(tmp_path):
    table, shared = plan('table2', 'paper'), Plan(tmp_path)
    finish(*shared.runs([cell_of(table, 'ce', 'resnet101')], 1), 70, 77.5, 76.5)
    found, _ = find_runs(table, shared)
    write_csv(table, found, tmp_path / 'table2.csv')
    with (tmp_path / 'table2.csv').open() as file:
        first, *others = csv.DictReader(file)
    wanted = {'row': 'ce', 'column': 'resnet101', 'seed': '0', 'top1': '23.5', 'best_top1': '22.5', 'best_epoch': '1'}
    assert wanted.items() <= first.items()
    assert (first['epochs'], first['paper_top1']) == ('3', '23.2')
    assert len(others) == len(table.cells) - 1
    assert {row['top1'] for row in others} == {''}
    assert '23.50, n = 1 | 23.2' in markdown(table, found, ''), 'error rates'


def test_several_labels_have_their_own_figures(tmp_path):
    table, shared = plan('table4', 'small'), Plan(tmp_path)
    [run] = shared.runs([cell_of(table, 'hnc-mse', 'resnet10t')], 1)
    finish(run, 1)
    names = ('map', 'macro_f1', 'c_p', 'c_r', 'o_f1', 'o_p', 'o_r', 'c_f1')
    header = ','.join(['epoch', *(f'eval_{name}' for name in names)])
    (run.folder / 'summary.csv').write_text(f'{header}\n0,31,32,33,34,35,36,37,99\n1,21,22,23,24,25,26,27,99\n')
    text, left_out = report(table, shared)
    assert not left_out
    assert row_of(text, 'Loss')[:7] == [f'ResNet-10-T {x}' for x in ['mAP', 'F1-C', 'P-C', 'R-C', 'F1-O', 'P-O', 'R-O']]
    assert row_of(text, 'HNC_mse')[:7] == [f'{value}.00, n = 1' for value in range(31, 38)], (
        'of the epoch with the best mAP'
    )
    assert 'the epoch with the highest mAP' in text
    assert row_of(text, 'AC + HNC_kd')[7:] == ['78.2', '72.9', '76.8', '70.0', '76.6', '78.6', '74.7']
    found, _ = find_runs(table, shared)
    write_csv(table, found, tmp_path / 'table4.csv')
    with (tmp_path / 'table4.csv').open() as file:
        row = next(row for row in csv.DictReader(file) if row['seed'])
    assert (row['map'], row['best_map'], row['best_epoch'], row['o_r']) == ('21.0', '31.0', '0', '27.0')


def test_other_networks_stand_apart_from_the_papers(tmp_path):
    text, _ = report(plan('table1', 'small'), Plan(tmp_path))
    assert row_of(text, 'Loss') == [
        *('ResNet-20 top-1', 'ResNet-20 top-5', 'paper: ResNet-56 top-1', 'paper: ResNet-56 top-5'),
        *('paper: ResNet-110 top-1', 'paper: ResNet-110 top-5'),
    ]
    assert row_of(text, LOSSES['ce']) == ['-', '-', '72.40', '92.68', '73.79', '93.11']
    text, _ = report(plan('table7', 'small'), Plan(tmp_path))
    assert row_of(text, 'ResNet-20') == ['-', '-', '-', '-']
    assert row_of(text, 'ResNet-110') == ['-', '73.79', '-', '75.00']


def test_the_sweep_is_sorted(tmp_path):
    table, shared = plan('sweep', 'small'), Plan(tmp_path)
    for run, top1 in zip(shared.runs(table.cells, 1)[:3], (40, 42, 41), strict=True):
        finish(run, top1)
    text, _ = report(table, shared)
    rows = [line.split(' | ')[0].removeprefix('| ') for line in text.splitlines() if line.startswith('| ')][1:]
    assert rows[:3] == [table.rows[table.cells[place].row] for place in (1, 2, 0)]
    assert len(rows) == len(table.cells)
    assert '--epochs 4 --decay-milestones 2 3' in text


def test_unreadable_figures_are_left_out_by_name(tmp_path):
    table, shared, (run,) = small_plan(tmp_path, rows=['ce'])
    finish(run)
    text, left_out = report(table, shared)
    assert 'no figures' in left_out[run.name]
    assert row_of(text, 'Cross entropy')[0] == '-'


def test_figure_4_is_drawn_from_what_is_there(tmp_path, monkeypatch):
    table, shared = plan('figure4', 'smoke'), Plan(tmp_path)
    for run in shared.runs(table.cells, 2):
        finish(run, 40 + run.seed)
    found, _ = find_runs(table, shared)
    text = markdown(table, found, '')
    assert row_of(text, '0 (CE)') == ['40.50 ± 0.71, n = 2'] * 2
    assert 'paper' not in row_of(text, 'lambda')
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'matplotlib', None)
        with pytest.raises(UsageError, match='needs matplotlib: pip install'):
            draw_weights(table, found, tmp_path / 'figure4.png')
    pytest.importorskip('matplotlib')
    draw_weights(table, found, tmp_path / 'figure4.png')
    assert (tmp_path / 'figure4.png').read_bytes().startswith(b'\x89PNG')
