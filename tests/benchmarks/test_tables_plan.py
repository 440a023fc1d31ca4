"""benchmarks/tables.py: what is planned, with the paper's figures beside it."""

import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from flat_options import parse_validate_options
from running import ROOT
from table_runs import cell_of, finish, report, script
from tables.paper import ATTACK_EPS, NOISES, PAPER
from tables.plan import TABLES, choose, plan
from tables.presets import PRESETS
from tables.runs import Plan, Run, data_flags

from timm_hnc.errors import UsageError


def test_figures_of_the_paper_agree_with_its_text():
    def gain(table, column, index=0, row='hnc-mse', other='ce'):
        return PAPER[table][row, column][index] - PAPER[table][other, column][index]

    # sections 4.1, 4.3 and 4.5, and the captions of Tables 2 and 3
    assert gain('table1', 'cifar_resnet56', row='hnc-kd') == pytest.approx(1.07)
    assert gain('table1', 'cifar_resnet110') == pytest.approx(1.21)
    assert gain('table2', 'resnet101', row='hnc-kd') == pytest.approx(-1.1)
    assert gain('table2', 'resnet152', row='hnc-kd') == pytest.approx(-1.1)
    assert gain('table3', 'resnet50') == pytest.approx(1.1)
    assert gain('table3', 'resnet50', row='hnc-kd') == pytest.approx(0.9)
    assert gain('table4', 'resnet101', other='weighted-sigmoid') == pytest.approx(2.9)
    assert gain('table4', 'resnet101', row='ac+hnc-mse', other='attention-consistency') == pytest.approx(1.0)
    assert gain('table6', 'symmetric:0.6') == pytest.approx(10.38)
    # Table 7 repeats a row of Table 1, in two columns
    for loss in ('ce', 'hnc-mse'):
        assert PAPER['table7']['cifar_resnet110', loss] == PAPER['table1'][loss, 'cifar_resnet110'][:1]


def test_f1_by_class_of_the_paper_is_the_mean_of_the_classes():
    """A mean of harmonic means is below the harmonic mean of the means; of all labels together they are one figure."""

    def harmonic(precision, recall):
        return 2 * precision * recall / (precision + recall)

    for figures in PAPER['table4'].values():
        named = dict(zip(plan('table4', 'paper').metrics, figures, strict=True))
        assert named['macro_f1'] < harmonic(named['c_p'], named['c_r']) - 0.1, 'more than rounding'
        assert named['o_f1'] == pytest.approx(harmonic(named['o_p'], named['o_r']), abs=0.1)


@pytest.mark.parametrize('name', PAPER)
def test_every_figure_of_the_paper_has_a_cell_beside_it(name, tmp_path):
    table = plan(name, 'paper')
    assert set(table.paper) == {(cell.row, cell.column) for cell in table.cells}
    assert all(len(figures) == len(table.metrics) for figures in table.paper.values())
    text, _ = report(table, Plan(tmp_path))
    digits = 1 if name in ('table2', 'table3', 'table4') else 2
    for figures in table.paper.values():
        for figure in figures:
            assert figure is None or f'| {figure:.{digits}f} |' in text


@pytest.mark.parametrize(('name', 'preset'), [(name, preset) for preset in PRESETS for name in PRESETS[preset].tables])
def test_train_py_takes_the_flags_of_the_cells(name, preset, tmp_path):
    table, shared = plan(name, preset), Plan(tmp_path)
    names = {}
    for cell in table.cells:
        assert cell.row in table.rows
        assert cell.column in table.columns
        names.setdefault(cell.name, set()).add(cell.flags)
        if len(names) > 12:
            continue  # parsing is slow
        args = SimpleNamespace(**shared.options(cell))
        hnc, loss = args.hnc, args.loss or 'ce'
        assert cell.name.startswith(f'{args.model.split(".")[0]}-{loss if hnc == "none" else f"hnc-{hnc}"}')
        if hnc != 'none':
            assert f'-{args.hnc_weight:g}-k{args.hnc_topk}' in cell.name
    assert all(len(flags) == 1 for flags in names.values()), 'runs of one name are trained alike'


def test_cells_of_table_1(tmp_path):
    table, shared = plan('table1', 'paper'), Plan(tmp_path)
    assert len(table.cells) == 22
    args = SimpleNamespace(**shared.options(cell_of(table, 'lmc', 'cifar_resnet110')))
    assert (args.model, args.loss, args.hnc, args.epochs, args.batch_size) == (
        'cifar_resnet110',
        'lmc',
        'none',
        164,
        128,
    )
    args = SimpleNamespace(**shared.options(cell_of(table, 'hnc-kd', 'cifar_resnet56')))
    weight, topk = PRESETS['paper'].hnc['kd']
    assert (args.loss, args.hnc, args.hnc_weight, args.hnc_topk) == (None, 'kd', weight, topk)


def test_small_runs_are_of_one_network(tmp_path):
    table, shared = plan('table1', 'small'), Plan(tmp_path)
    assert list(table.columns) == ['cifar_resnet20']
    args = SimpleNamespace(**shared.options(cell_of(table, 'ce', 'cifar_resnet20')))
    assert (args.epochs, args.decay_milestones) == (30, [15, 23])
    assert (args.amp, args.amp_dtype, args.channels_last) == (True, 'bfloat16', True)


@pytest.mark.parametrize('table', ['table2', 'table3', 'table4'])
def test_a_run_begins_with_the_weights_of_its_recipe(table, tmp_path):
    shared = Plan(tmp_path)
    for cell in plan(table, 'paper').cells:
        recipe = yaml.safe_load(Path(cell.flags[cell.flags.index('-c') + 1]).read_text())
        args = SimpleNamespace(**shared.options(cell))
        assert args.pretrained == recipe.get('pretrained', False)
        assert args.model == recipe['model'] or not args.pretrained
        if table == 'table4' and args.hnc != 'none':
            assert (args.hnc_weight, args.hnc_topk) == PRESETS['paper'].hnc[args.hnc], 'not those of ImageNet'


@pytest.mark.parametrize(('network', 'kd'), [('resnet101', 0.0065), ('resnet152', 0.0048)])
def test_imagenet_has_the_weights_of_the_authors_code(network, kd, tmp_path):
    table, shared = plan('table2', 'paper'), Plan(tmp_path)
    for row, weight in (('hnc-mse', 0.0007), ('hnc-kd', kd)):
        args = SimpleNamespace(**shared.options(cell_of(table, row, network)))
        assert (args.model, args.hnc_weight, args.hnc_topk, args.epochs) == (network, weight, 100, 120)


def test_noisy_labels_hold_out_a_tenth_and_are_tested_afterwards(tmp_path):
    table, shared = plan('table6', 'small'), Plan(tmp_path, ['--dataset', 'hfds/D', '--input-key', 'img'])
    assert list(table.columns) == list(NOISES)
    cell = cell_of(table, 'hnc-mse', 'asymmetric:0.3')
    args = SimpleNamespace(**shared.options(cell))
    assert (args.label_noise, args.holdout, cell.evaluation.name) == ('asymmetric:0.3', 0.1, 'test')
    command = Run(shared, cell, 0).command('test')
    assert command[0].endswith('validate.py')
    text = ' '.join(command)
    assert '/last --dataset hfds/D --input-key img' in text
    assert '--amp-dtype bfloat16 --amp --channels-last --split test' in text


def test_tables_share_runs():
    names = {name: {cell.name for cell in plan(name, 'paper').cells} for name in TABLES}
    assert names['table7'] & names['table1'] == {'cifar_resnet110-ce', 'cifar_resnet110-hnc-mse-0.001-k10'}
    assert 'cifar_resnet56-ce' in names['figure4'] & names['table1']
    assert not names['sweep'] & names['table1']
    figure = plan('figure4', 'paper')
    assert cell_of(figure, '0', 'hnc-mse').name == cell_of(figure, '0', 'hnc-kd').name == 'cifar_resnet56-ce'


def test_rows_and_columns_are_chosen_by_name():
    table = plan('table6', 'paper')
    assert [cell.row for cell in choose(table, ['ce', 'hnc-kd'], ['symmetric:0.4'])] == ['ce', 'hnc-kd']
    with pytest.raises(UsageError, match=r'--rows focal: table6 has ce, hnc-mse, hnc-kd\.'):
        choose(table, ['focal'], None)
    with pytest.raises(UsageError, match=r'--preset small: has table1, .*, not table2\.'):
        plan('table2', 'small')


def test_data_is_torchvisions_or_parquet(tmp_path):
    assert data_flags('cifar100', str(tmp_path)) == ['--data-dir', str(tmp_path)]
    assert data_flags('', None) == []
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'train-0.parquet').touch()
    flags = data_flags('cifar100', str(tmp_path))
    keys = ['--input-key', 'img', '--target-key', 'fine_label', '--val-split', 'test']
    assert flags == ['--dataset', f'hfds/{tmp_path}', *keys]
    with pytest.raises(UsageError, match='--data-dir'):
        data_flags('cifar100', None)


def test_commands_of_a_dry_run(tmp_path, capsys):
    argv = ['table1', '--preset', 'smoke', '--rows', 'ce', '--seeds', '2', '--out', str(tmp_path), '--dry-run']
    assert script.main([*argv, '--', '--epochs', '3']) == 0
    first, second = capsys.readouterr().out.splitlines()
    words = shlex.split(first)
    assert words[words.index('-c') - 1] == str(ROOT / 'train.py')
    assert '--epochs 3 --seed 0 --output' in first, 'flags behind -- come last, but for what tells runs apart'
    assert first.replace('--seed 0', '--seed 1').replace('-seed0', '-seed1') == second
    assert first.endswith('--experiment test_resnet-ce-seed0 --resume auto')
    assert not (tmp_path / 'smoke').exists()


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['table1'], '--data-dir'),
        (['table2', '--preset', 'small'], '--preset small'),
        (['table1', '--preset', 'smoke', '--', '--hnc-topk', '0'], '--hnc-topk'),
        (['table6', '--noise', 'symmetric:0.5', '--data-dir', 'x'], '--columns symmetric:0.5'),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(argv, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        script.main([argv[0], '--out', str(tmp_path), *argv[1:]])
    assert not list(tmp_path.iterdir())


def test_attacks_are_evaluations_of_the_runs_of_table_1(tmp_path):
    first, attacked = plan('table1', 'small'), plan('table5', 'small')
    names = {cell.row: cell.name for cell in first.cells}
    assert all(cell.name == names[cell.row] for cell in attacked.cells)
    shared = Plan(tmp_path)
    [run] = shared.runs([cell for cell in attacked.cells if cell.row == 'ce'], 1)
    args, _ = parse_validate_options(run.command('test')[1:])
    assert (args.attack, args.attack_eps, args.attack_space) == (['fgsm'], [0.05, 0.1, 0.2, 0.3], 'normalized')
    finish(run, 61)
    assert run.next_step == 'test'
    figures = {
        f'fgsm_{eps}_{name}': value
        for name in ('top1', 'top5')
        for eps, value in zip(ATTACK_EPS, range(9, 5, -1), strict=True)
    }
    run.unfinished_test.write_text(json.dumps(figures))
    run.keep_evaluation()
    assert run.next_step is None
    found = [shared.finished(cell)[0].figures['top1'] for cell in attacked.cells if cell.row == 'ce']
    assert found == [9, 8, 7, 6]
