"""Several processes count every sample once and give the figures of one."""

import json
from pathlib import Path

import pytest
from running import ROOT, SMALL, run_script, train, validate

COMMANDS = Path(__file__).parents[1] / 'several_commands.py'


@pytest.fixture(scope='module')
def runs(images, multi_label, tmp_path_factory):
    """Runs with one label an image and with several; 25 validation images each."""
    root = tmp_path_factory.mktemp('runs')
    for name, data in (('one', ['--data-dir', images]), ('several', multi_label)):
        train(*data, *SMALL, '--epochs', 2, '--lr', 0.02, '--output', root, '--experiment', name)
    return root


def test_weights_that_do_not_load_end_all_processes(runs, images, tmp_path):
    """None waits for the others, whichever of them failed."""
    folder = tmp_path / 'weights'
    folder.mkdir()
    (folder / 'a.pth').write_bytes(b'broken')
    argv = ['--model', 'test_resnet', '--num-classes', 3, '--checkpoint', folder, '--data-dir', images]
    done = run_script(ROOT / 'validate.py', *argv, '--device', 'cpu', '--workers', 0, processes=2, cwd=tmp_path)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if 'validate.py: error: ' in line]
    assert lines, 'of both, unless the launcher ended one of them first'
    assert all('a.pth' in line for line in lines)
    assert 'another process of the run ended' not in done.stderr


@pytest.mark.parametrize('processes', [2, 3])
def test_figures_are_those_of_one_process(runs, shards, tmp_path, capsys, processes):
    options = {
        'one': ['--checkpoint', str(runs / 'one'), '-b', '4', '--metrics-avg', 'macro'],
        'large batches': ['--checkpoint', str(runs / 'one'), '-b', '64'],
        'small batches': ['--checkpoint', str(runs / 'one'), '-b', '1'],
        'several': ['--checkpoint', str(runs / 'several'), '-b', '4'],
        'one image': ['--checkpoint', str(runs / 'several'), '-b', '3', '--no-prefetcher'],
    }
    # there are two shards, of 13 and of 12 images: of three processes one has none
    streamed = ['--checkpoint', str(runs / 'one'), '--dataset', 'wds/x', '--data-dir', str(shards)]
    options['shards'] = [*streamed, '-b', '4', '--metrics-avg', 'macro', '--cam-metrics']
    if processes == 2:
        options = {'shards': streamed, 'a batch that is not full': ['--checkpoint', str(runs / 'one'), '-b', '5']}
    common = ['--device', 'cpu', '--results-format', 'json']
    commands = []
    for name, argv in options.items():
        argv = [*argv, *common] if '--workers' in argv else [*argv, *common, '--workers', '0']
        commands.append(['validate', *argv, '--results-file', str(tmp_path / f'{name}.json')])
    done = run_script(COMMANDS, json.dumps(commands), processes=processes, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count('--result\n') == len(commands), 'only the main process prints'
    for name, argv in options.items():
        found = json.loads((tmp_path / f'{name}.json').read_text())
        expected = validate(capsys, *argv, '--device', 'cpu', '--workers', 0)
        assert found.pop('loss') == pytest.approx(expected.pop('loss'), abs=1e-6), name
        assert found == pytest.approx(expected, abs=2e-6), name
