"""benchmarks/evidence.py: what is chosen on which images, and its figures against those of validate.py."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import yaml
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from evidence.boxes import Objects, covered
from evidence.figures import _as_trained, run_figures
from evidence.kept import take_up
from evidence.plot import draw
from evidence.regimes import BASELINE, REGIMES, Row
from evidence.results import paired, results
from evidence.runs import FIRST_SEED, Choice, Setting, Stage, add_choices, choose, due_runs, needed_trials, read_choices
from evidence.table import _spread, choices, markdown, write
from image_data import png, square
from running import ROOT, SMALL, train, validate
from scripts import load_script
from table_runs import finish
from timm.data import create_transform

from timm_hnc import save_pretrained
from timm_hnc.commands.options.train_options import parse_train_options
from timm_hnc.data.datasets import create_dataset
from timm_hnc.errors import DataError, UsageError
from timm_hnc.options import flattened

ROW = Row('mse', 'HNC mse', ('--hnc', 'mse'), ('0.1', '0.2'), (5, 10))
REGIME = replace(REGIMES['cifar-5000'], rows=(REGIMES['cifar-5000'].rows[0], ROW))
CLASSES = 3
HERE = ['--workers', '0', '--device', 'cpu', '-b', '5']


@pytest.mark.parametrize('key', REGIMES)
def test_train_py_takes_the_options_of_every_row(key):
    regime = REGIMES[key]
    stage = Stage(regime, ROOT, '', ['--dataset', 'hfds/x', '--pretrained-path', 'y'])
    assert regime.rows[0].key == BASELINE
    for row in regime.rows:
        settings = [Setting(weight, topk) for topk in row.topks for weight in row.weights] or [None]
        trials = [run for setting in settings for run in stage.trials(row, setting)]
        for run in [*trials[:: regime.choice_seeds or 1], *stage.measured(row, settings[0], 1)]:
            argv = run.command('train')[1:]
            options = flattened(parse_train_options(argv)[0])
            assert options['holdout'] == (regime.holdout if 'trials' in run.folder.parts else 0)
            assert options['val_interval'] == options['epochs'], 'evaluated once, at the end'
            assert options['num_classes'] == regime.num_classes
            assert (options['hnc'] == 'none') == ('--hnc' not in row.flags)
            teacher = str(ROOT / 'runs' / 'energy-seed10')
            assert options['map_teacher'] == (teacher if row.key == 'teacher' else '')
        assert len({run.name for run in trials}) == len(trials) == regime.choice_seeds * len(settings)


def test_the_recipe_that_is_recommended_is_what_was_measured():
    """But for where data and weights lie, and for when it is evaluated."""
    regime = REGIMES['voc-long']
    [row] = [row for row in regime.rows if row.key == 'kd']
    chosen = json.loads((ROOT / 'benchmarks/results/evidence/voc-long/chosen.json').read_text())['kd']
    run, *_ = Stage(regime, ROOT, '').measured(row, Setting(chosen['weight'], chosen['topk']), 1)
    measured = flattened(parse_train_options(run.command('train')[1:])[0])
    recipe = flattened(parse_train_options(['-c', str(ROOT / 'hparams' / 'finetune_multilabel.yaml')])[0])
    elsewhere = {'config', 'pretrained', 'input_key', 'target_key', 'val_split', 'train_split', 'val_interval', 'seed'}
    elsewhere |= {'experiment', 'checkpoint_interval', 'checkpoint_hist', 'cam_images', 'no_report', 'resume'}
    elsewhere |= {'filled_in', 'output'}
    assert {name for name in recipe if recipe[name] != measured[name]} <= elsewhere


def test_weights_are_tried_first_while_larger_is_better_then_k_and_what_is_chosen_stays(tmp_path):
    stage = Stage(REGIME, tmp_path, '')
    tops = {'mse-0.1-k5': (50, 60), 'mse-0.2-k5': (50, 61), 'mse-0.6-k5': (45, 60), 'mse-0.1-k10': (40, 80)}
    tops[BASELINE] = (10, 20)

    def run_all(row):
        missing = [run for run in needed_trials(stage, row) if run.next_step]
        for run in missing:
            finish(run, 0, tops[run.name.rpartition('-seed')[0]][run.seed])
        return [run.name for run in missing]

    assert run_all(ROW) == [f'mse-{name}-seed{seed}' for name in ('0.1-k5', '0.2-k5') for seed in (0, 1)]
    choose(stage, ROW)
    assert read_choices(tmp_path) == {}, 'the other k is still to be tried'
    assert run_all(ROW) == ['mse-0.6-k5-seed0', 'mse-0.6-k5-seed1'], 'the largest was the best'
    # half the weight of the best on twice as many maps
    assert run_all(ROW) == ['mse-0.1-k10-seed0', 'mse-0.1-k10-seed1']
    choose(stage, ROW)
    choice = read_choices(tmp_path)['mse']
    assert choice.setting == Setting('0.1', 10)
    assert choice.held_out == {'0.1, k 5': 55, '0.2, k 5': 55.5, '0.6, k 5': 52.5, '0.1, k 10': 60}
    finish(stage.trials(ROW, Setting('0.1', 5))[0], 99)
    choose(stage, ROW)
    run_all(REGIME.rows[0])
    choose(stage, REGIME.rows[0])
    assert read_choices(tmp_path)['mse'] == choice
    assert read_choices(tmp_path)[BASELINE].held_out == {'': 15}
    measured = stage.measured(ROW, choice.setting, 2)
    assert [run.seed for run in measured] == [FIRST_SEED, FIRST_SEED + 1]
    assert not measured[0].folder.exists()
    assert Setting('auto:0.1', 5).at(10) == Setting('auto:0.1', 10)
    assert Setting('auto:0.1', 5).stronger() == Setting('auto:0.3', 5)
    (tmp_path / 'chosen.json').write_text('{"mse":')
    with pytest.raises(DataError, match='cannot be read'):
        read_choices(tmp_path)


def test_no_more_than_two_larger_weights_are_tried(tmp_path):
    stage, tried = Stage(REGIME, tmp_path, ''), []
    names = [f'mse-{setting}' for setting in ('0.1-k5', '0.2-k5', '0.6-k5', '1.8-k5', '0.9-k10')]
    while missing := [run for run in needed_trials(stage, ROW) if run.next_step]:
        for run in missing:
            name = run.name.rpartition('-seed')[0]
            finish(run, 0, 50 + names.index(name))
            tried.append(name)
    assert tried[::2] == names


def test_a_weight_at_the_end_of_what_was_tried_is_marked(tmp_path):
    (tmp_path / 'runs' / 'baseline-seed10').mkdir(parents=True)
    (tmp_path / 'runs' / 'baseline-seed10' / 'figures.json').write_text('{"accuracy": 50}')
    first = {'0.1, k 5': 59.0, '0.2, k 5': 60.0}
    for weight, topk, more, cell in (
        ('0.2', 5, {}, '0.2, k 5 (end)'),
        ('0.1', 10, {'0.1, k 10': 61.0}, '0.1, k 10 (end)'),  # as strong as 0.2 with half as many maps
        ('0.2', 5, {'0.6, k 5': 57.0}, '0.2, k 5'),
        ('0.1', 5, {}, '0.1, k 5'),
    ):
        chosen = {'mse': {'weight': weight, 'topk': topk, 'held_out': first | more}}
        (tmp_path / 'chosen.json').write_text(json.dumps(chosen))
        base, mse = results(REGIME, tmp_path)
        assert (base.chosen, mse.chosen) == ('', cell)
    assert '\n\nNot run: HNC mse.\n' in markdown(REGIME, [base, mse])


def test_a_larger_weight_that_is_too_large_to_train_with_is_not_chosen(tmp_path):
    stage = Stage(REGIME, tmp_path, '')
    for weight, top in (('0.1', 50), ('0.2', 60)):
        for run in stage.trials(ROW, Setting(weight, 5)):
            finish(run, 0, top)
    larger = needed_trials(stage, ROW)[-2:]
    assert [run.name for run in larger] == ['mse-0.6-k5-seed0', 'mse-0.6-k5-seed1']
    stage.failed[larger[1].name] = 'is under way in another process.'
    choose(stage, ROW)
    assert not read_choices(tmp_path), 'it is tried another time'
    stage.failed[larger[1].name] = 'train: train.py: error: the loss is not finite in epoch 0'
    for run in needed_trials(stage, ROW):
        assert run.name.startswith('mse-0.1-k10')
        finish(run, 0, 40)
    choose(stage, ROW)
    chosen = read_choices(tmp_path)['mse']
    assert chosen.setting == Setting('0.2', 5)
    assert chosen.held_out['0.6, k 5'] is None
    assert results(REGIME, tmp_path)[1].chosen == '0.2, k 5', 'it is not the end of what was tried'
    assert '0.2, k 5 60.00, 0.1, k 10 40.00, 0.6, k 5 not finite' in choices(REGIME, tmp_path)


def test_a_row_goes_on_when_its_own_trials_are_complete(tmp_path):
    stage = Stage(REGIME, tmp_path, '', ['--dataset', 'hfds/x', '--pretrained-path', 'y'])
    rows = [REGIME.rows[0], ROW]

    def due():
        return [run.name for run in due_runs(stage, rows, 2) if run.next_step]

    def complete(run, top1, **others):
        finish(run, top1, options=run.options | others)

    trials = [f'mse-{name}-seed{seed}' for name in ('0.1-k5', '0.2-k5') for seed in (0, 1)]
    ends = ['baseline-seed0', 'baseline-seed1']
    assert due() == ['baseline-seed10', 'baseline-seed11', *ends, *trials], 'without a choice first'
    for row, setting in ((ROW, Setting('0.1', 5)), (ROW, Setting('0.2', 5)), (ROW, Setting('0.2', 10))):
        for run in stage.trials(row, setting):
            complete(run, 50)
    first = stage.trials(ROW, Setting('0.1', 5))[0]
    complete(first, 90, epochs=1)  # of a first try
    with pytest.raises(DataError, match=f'{first.name}: was begun with epochs = 1'):
        due()
    complete(first, 50)
    for run in stage.trials(ROW, Setting('0.05', 10)):
        complete(run, 60)
    assert due() == ['baseline-seed10', 'mse-0.05-k10-seed10', 'baseline-seed11', 'mse-0.05-k10-seed11', *ends]
    for other, found in (('lr', 3.0), ('seed', 3), ('train_split', 'train[:9]')):
        complete(stage.measured(REGIME.rows[0], None, 2)[0], 50, **{other: found})
        with pytest.raises(DataError, match=f'baseline-seed10: was begun with {other} = '):
            due()


def test_a_row_waits_for_its_teacher(tmp_path):
    regime = REGIMES['voc-boxes']
    rows = [row for row in regime.rows if row.key in ('energy', 'teacher')]
    stage = Stage(regime, tmp_path / regime.key, '', ['--dataset', 'hfds/x', '--pretrained-path', 'y'])
    assert [run.name for run in due_runs(stage, rows, 1)] == ['energy-seed10']
    teacher, *_ = stage.measured(rows[0], None, 1)
    finish(teacher, 50, options=teacher.options)
    assert [run.name for run in due_runs(stage, rows, 1)] == ['energy-seed10'], 'kept without its weights'
    save_pretrained(timm.create_model('test_resnet'), teacher.folder / 'model_best')
    assert [run.name for run in due_runs(stage, rows, 1)] == ['energy-seed10', 'teacher-seed10']
    [learner] = stage.measured(rows[1], None, 1)
    finish(learner, 50, options=learner.options)
    shutil.rmtree(teacher.folder)
    assert [run.name for run in due_runs(stage, rows, 1)] == ['energy-seed10', 'teacher-seed10'], 'complete already'


def test_a_teacher_that_was_kept_without_weights_is_refused(tmp_path):
    kept, out = ROOT / 'benchmarks' / 'results' / 'evidence', tmp_path / 'out'
    argv = [
        'run',
        'voc-boxes',
        '--data-dir',
        'x',
        '--out',
        str(out),
        '--kept',
        str(kept),
        '--rows',
        'energy',
        'teacher',
    ]
    with pytest.raises(UsageError, match='its teacher, energy-seed10, was kept without weights: leave out --kept'):
        load_script('evidence').main([*argv, '--seeds', '4'])


def test_a_folder_of_kept_runs_that_is_not_there_is_refused(tmp_path):
    argv = ['run', 'voc-short', '--data-dir', 'x', '--out', str(tmp_path / 'out'), '--kept', str(tmp_path / 'typo')]
    with pytest.raises(UsageError, match="typo': no such folder"):
        load_script('evidence').main(argv)
    assert not (tmp_path / 'out').exists()


def test_differences_of_pairs():
    """Student's t with one degree of freedom has its 97.5 % point at 12.706 (printed tables)."""
    mean, low, high, better, seeds = paired({0: 2.0, 1: 4.0, 2: 9.0}, {0: 1.0, 1: 2.0, 7: 0.0})
    half = 12.7062 * np.std([1, 2], ddof=1) / 2**0.5
    assert (mean, better, seeds) == (1.5, 2, 2)
    assert [low, high] == pytest.approx([1.5 - half, 1.5 + half], rel=1e-5)
    assert paired({0: 1.0}, {0: 1.0}) is None
    assert paired({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0}) == (1, 1, 1, 2, 2), 'no spread'


def test_the_table_and_what_is_kept(tmp_path, monkeypatch):
    monkeypatch.setitem(REGIMES, REGIME.key, REGIME)
    stage = Stage(REGIME, tmp_path / REGIME.key, '')
    measured = {'base': stage.measured(REGIME.rows[0], None, 2), 'mse': stage.measured(ROW, Setting('0.2', 10), 2)}
    for row, values in (('base', (50, 52)), ('mse', (51, 54))):
        for run, value in zip(measured[row], values, strict=True):
            finish(run, value, options={'seed': run.seed})
            assert run.next_step == 'figures'
            run.figures_file.write_text(json.dumps({'accuracy': value, 'negative_peak': value / 10}))
            assert run.next_step is None
    chosen = {'mse': {'weight': '0.2', 'topk': 10, 'held_out': {'0.2, k 10': 60.0}}}
    (stage.folder / 'chosen.json').write_text(json.dumps(chosen))
    for run, seed in ((measured['mse'][0], '12'), (measured['base'][0], '10-old')):  # not measured, and not ours
        shutil.copytree(run.folder, run.folder.with_name(f'{run.cell.name}-seed{seed}'))
    (stage.folder / 'runs' / 'mse-0.2-k10-seed12' / 'figures.json').unlink()
    text = write(tmp_path, tmp_path / 'kept')
    assert write(tmp_path / 'kept', tmp_path / 'kept') == text
    (tmp_path / 'none').mkdir()
    assert write(tmp_path / 'none', tmp_path / 'kept') == text, 'what is kept stays'
    lines = [[cell.strip() for cell in line.strip('|').split('|')] for line in text.splitlines() if line[:1] == '|']
    assert lines[0][2:] == ['n', 'top-1', 'peak of negative maps']
    assert lines[2] == ['cross-entropy', '', '2', '51.00 ± 1.41', '5.1 ± 0.1']
    assert lines[3] == ['HNC mse', '0.2, k 10', '2', '52.50 ± 2.12', '5.2 ± 0.2']
    assert 'Not run:' not in text
    assert 'Trained on: cpu (torch 2.x).\n' in text
    assert lines[4] == ['', 'top-1', 'more', 'peak of negative maps']
    assert lines[6] == ['cross-entropy', '51.0', '', '5.1']
    assert lines[7:] == [['HNC mse<br>0.2, k 10', '+1.5<br>-4.9 to 7.9', '2 of 2', '+0.1<br>-0.5 to 0.8']]
    assert '- HNC mse: 0.2, k 10 60.00' in text
    together = text.rpartition('## All differences together')[2]
    assert 'boxes aside: 1. 0 have' in together
    assert 'The least p is 0.2048 (HNC mse in' in together, "Student's t is 3 with one degree of freedom"
    kept = tmp_path / 'kept' / REGIME.key
    assert not (kept / 'runs' / 'mse-0.2-k10-seed12').exists()
    assert (kept / 'runs' / 'mse-0.2-k10-seed11' / 'args.yaml').read_text() == 'seed: 11\n'
    assert markdown(REGIME, results(REGIME, kept)) in text, 'what was kept gives the same table'
    [axes] = draw(tmp_path / 'kept').axes
    drawn = [list(line.get_xdata()) for line in axes.lines]
    assert drawn[1:] == [[1.0, 2.0]], 'rings'
    monkeypatch.setattr('evidence.plot._RINGS', 1)
    [axes] = draw(tmp_path / 'kept').axes
    drawn = [list(line.get_xdata()) for line in axes.lines]
    half = 12.7062 * np.std([1, 2], ddof=1) / 2**0.5
    assert drawn[1:] == [pytest.approx([1.5 - half, 1.5 + half], rel=1e-5), [1.5]]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        f'{REGIME.title}: 51.0 % without',
        'HNC mse: 0.2, k 10',
    ]
    elsewhere = Stage(REGIME, tmp_path / 'elsewhere' / REGIME.key, '')
    (elsewhere.folder / 'runs' / 'baseline-seed10').mkdir(parents=True)  # begun here
    add_choices(elsewhere.folder, {BASELINE: Choice(None, {'': 50.0})})
    take_up(REGIME, elsewhere.folder, tmp_path / 'kept')
    begun, *others = [*elsewhere.measured(REGIME.rows[0], None, 2), *elsewhere.measured(ROW, Setting('0.2', 10), 2)]
    assert begun.next_step == 'train'
    assert [run.next_step for run in others] == [None] * 3
    assert read_choices(elsewhere.folder)['mse'].setting == Setting('0.2', 10)
    assert read_choices(elsewhere.folder)[BASELINE].held_out == {'': 50.0}
    assert write(tmp_path / 'none', None) == ''


def tables_of(page):
    """The cells of a page's tables of differences by regime and row, each with its heading."""
    found, regime, headings = {}, None, []
    for line in page.read_text().splitlines():
        if anchor := re.match(r'## ([a-z]+-\w+)$|.*evidence\.md#([a-z]+-\w+)\)', line):
            regime = anchor[1] or anchor[2]
        cells = [cell.strip() for cell in line.strip('|').split('|')]
        if line[:1] != '|' or line.startswith('|---'):
            headings = headings if line[:1] == '|' else []
        elif not headings:
            headings = cells
        elif 'more' in headings:
            found[regime, cells[0]] = dict(zip(headings[1:], cells[1:], strict=True))
    return found


def test_what_the_page_says_is_what_was_measured():
    """The tables follow from the runs that are kept, and those of the page from them."""
    kept = ROOT / 'benchmarks' / 'results' / 'evidence'
    assert write(kept, None) == (kept / 'evidence.md').read_text()
    measured, told = tables_of(kept / 'evidence.md'), tables_of(ROOT / 'docs' / 'evidence.md')
    regimes = {regime for regime, _ in told}
    assert regimes == {'voc-short', 'voc-long', 'cifar-5000', 'cifar-10000', 'cifar-noisy'}
    assert set(told) == {(regime, row) for regime, row in measured if regime in regimes}
    for row, cells in told.items():
        assert cells.items() <= measured[row].items(), row


def write_objects(root):
    """Images of one or two classes, with a box for each."""
    rng, columns = np.random.default_rng(0), {'image': [], 'labels': [], 'objects': []}
    for index in range(12):
        labels = [index % CLASSES, (index + 1) % CLASSES][: 1 + index % 2]
        columns['image'].append({'bytes': png(square(rng, set(labels))), 'path': None})
        columns['labels'].append(labels)
        boxes = [[1.0 + 3 * label, 2.0, 20.0, 9.0 + 5 * label] for label in labels]
        columns['objects'].append({'bbox': boxes, 'category': labels})
    objects = {'bbox': List(List(Value('float32'))), 'category': List(Value('int64'))}
    features = Features({'image': ImageFeature(), 'labels': List(Value('int64')), 'objects': objects})
    (root / 'data').mkdir(parents=True)
    for split in ('train', 'validation'):
        table = Dataset.from_dict(columns, features=features)
        table.to_parquet(str(root / 'data' / f'{split}-00000-of-00001.parquet'))


def test_figures_are_those_of_validate_py(tmp_path, capsys):
    write_objects(tmp_path / 'set')
    data = ['--dataset', f'hfds/{tmp_path / "set"}', '--input-key', 'image', '--target-key', 'labels']
    task = ['--task', 'multilabel', '--num-classes', str(CLASSES)]
    begin = ['--lr', '0.1', '--warmup-epochs', '0', '--output', tmp_path, '--experiment', 'run']
    run = train(*SMALL, *data, *task, *begin)
    regime = replace(REGIMES['voc-short'], flags=tuple(task))
    found = run_figures(run, regime, str(tmp_path / 'set'), train=12, attacked=12, grids=1)
    beside_boxes = run_figures(run, replace(regime, boxes=True), str(tmp_path / 'set'), train=12, attacked=12, grids=1)
    assert {name: beside_boxes[name] for name in found if name != 'grid_pointing'} == pytest.approx(
        {name: value for name, value in found.items() if name != 'grid_pointing'}
    )
    figures = ['--attack', 'fgsm', '--attack-eps', '1/255', '2/255', '--cam-metrics', '--cam-topk', '5', '--cam-boxes']
    argv = ['--checkpoint', run / 'last', *data, *task, *HERE, *figures]
    expected = validate(capsys, *argv)
    assert found['accuracy'] == found['train_accuracy'] == pytest.approx(expected['map'], abs=1e-3)
    assert found['negative_peak'] == pytest.approx(expected['cam_negative_peak'], rel=1e-3)
    for name in ('energy', 'pointing', 'max_box_acc_v2'):
        assert beside_boxes[name] == pytest.approx(expected[f'cam_{name}'], rel=1e-3)
    for eps in (1, 2):
        assert found[f'fgsm_{eps}'] == pytest.approx(expected[f'fgsm_{eps / 255:.6g}_map'], abs=1e-3)
    assert 0 <= found['calibration_error'] <= 100


def test_what_is_covered_is_lost(tmp_path):
    """Of a network whose logits are the shares of an image that are white, and white images."""
    write_objects(tmp_path / 'set')
    dataset = create_dataset(f'hfds/{tmp_path / "set"}', None, 'train', CLASSES, True, target_key='labels')
    dataset.transform = create_transform((3, 64, 64), crop_pct=1.0)
    images, targets = torch.ones(2, 3, 64, 64), torch.stack([torch.as_tensor(dataset[place][1]) for place in (3, 5)])
    found = covered(
        lambda images: images.mean((1, 2, 3))[:, None].expand(-1, CLASSES), Objects(dataset), [3, 5], images, targets
    )
    # labels 0 and 1, 2 and 0; boxes of 32 x 32 pixels, from 1 + 3 label to 20 and from 2 to 9 + 5 label
    areas = [(19 - 3 * label) * (7 + 5 * label) / 32**2 for label in (0, 1, 2, 0)]
    assert found['object_covered'] == pytest.approx(sum(areas) / 4, abs=1e-6)
    assert found['rest_covered'] == pytest.approx(1 - sum(areas) / 4, abs=1e-6)


def test_training_accuracy_is_of_the_labels_that_a_run_saw(tmp_path):
    samples = [(torch.zeros(1), label) for label in range(CLASSES)]
    regime = replace(REGIMES['cifar-noisy'], flags=('--num-classes', str(CLASSES)))
    for noise, labels in ((None, [0, 1, 2]), ('asymmetric:1.0', [1, 2, 0])):
        (tmp_path / 'args.yaml').write_text(yaml.safe_dump({'label_noise': noise, 'seed': 4}))
        noisy = _as_trained(samples, tmp_path, regime)
        assert [noisy[index][1] for index in range(CLASSES)] == labels


def test_wrong_options_are_named(tmp_path):
    script = load_script('evidence')
    run = ['run', 'voc-short', '--data-dir', 'x', '--out', str(tmp_path)]
    for argv, words in (
        ([*run, '--rows', 'other'], '--rows other: voc-short has baseline'),
        (
            ['run', 'voc-boxes', *run[2:], '--rows', 'kd', 'teacher'],
            '--rows teacher: its teacher, energy-seed10, is not trained: add energy',
        ),
        (['table', '--out', str(tmp_path)], 'no row of a regime is complete in it'),
        (['figures', *run[1:4], '--run', str(tmp_path)], 'has no weights of its last epoch'),
    ):
        with pytest.raises((UsageError, DataError), match=words):
            script.main(argv)


def test_a_figure_that_is_not_finite_has_no_mean():
    assert _spread({10: 1.0, 11: float('nan')}, 1) == 'not finite'
    assert _spread({10: 1.0, 11: 2.0}, 1) == '1.5 ± 0.7'
