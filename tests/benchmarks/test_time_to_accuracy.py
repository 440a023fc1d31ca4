"""benchmarks/time_to_accuracy.py: what its rows change, when its clock stops, and what its table says."""

import sys

import pytest
from scripts import load_script

from timm_hnc.commands.options.train_options import parse_train_options
from timm_hnc.options import flattened

script = load_script('time_to_accuracy')


def settings(row, folder):
    return flattened(parse_train_options(script.flags(row, folder))[0])


@pytest.mark.parametrize('row', [*script.WITHOUT, *script.WITH])
def test_a_row_differs_from_the_recipe_in_what_it_names_alone(row, tmp_path):
    whole, mine = settings('recipe', tmp_path), settings(row, tmp_path)
    assert {name for name in whole if whole[name] != mine[name]} == set(script.changes(row))


def test_the_rival_is_the_small_preset_of_the_tables(tmp_path):
    mine = settings('small', tmp_path)
    assert (mine['model'], mine['epochs'], mine['decay_milestones']) == ('cifar_resnet20', 30, [15, 23])


@pytest.mark.parametrize(('top1', 'epochs', 'best'), [(50, 2, 51.5), (90, 3, 51.5)])
def test_the_clock_stops_at_the_first_evaluation_that_is_good_enough(top1, epochs, best):
    lines = ''.join(f'Evaluation: top1 99\nEpoch 0: top1 {figure} (best 9)\n' for figure in (40, 51.5, 45))
    program = f'import sys; sys.stderr.write({lines!r})'
    seconds, *found = script.time_to(top1, [sys.executable, '-c', program])
    assert found == [epochs, best]
    assert 0 < seconds < 30


def test_a_run_that_fails_ends_the_program_with_its_last_lines():
    with pytest.raises(SystemExit, match='no such data'):
        script.time_to(50, [sys.executable, '-c', "import sys; sys.exit('no such data')"])


def test_the_table_says_what_was_not_reached():
    runs = [
        dict(row='recipe', seed='0', goal='55.0', seconds='100.0', epochs='8', top1='55.10'),
        dict(row='recipe', seed='1', goal='55.0', seconds='120.0', epochs='9', top1='56.00'),
        dict(row='recipe', seed='1', goal='50.0', seconds='90.0', epochs='7', top1='51.00'),
        dict(row='sgd', seed='0', goal='55.0', seconds='130.0', epochs='9', top1='53.20'),
    ]
    rows = script.markdown(runs, script.LABELS, 55).splitlines()[2:]
    assert rows[0].endswith('| 110 (100 to 120) | 8, 9 | 2 |')
    assert rows[1].endswith('| reached in 0 of 1: best 53.20 % | 9 | 1 |')
