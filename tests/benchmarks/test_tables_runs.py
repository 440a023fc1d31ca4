"""benchmarks/tables.py: what runs, what goes on, what is left alone, and what is said of failures."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from running import ROOT, subprocess_environment, summary
from table_runs import finish, report, row_of, script, small_plan
from tables.execute import execute
from tables.runs import Plan

from timm_hnc.files.run_options import dump_yaml


def test_steps_of_a_run(tmp_path):
    _, _, (run,) = small_plan(tmp_path, 'table6', ['ce'], ['symmetric:0.2'])
    assert run.next_step == 'train'
    run.folder.mkdir(parents=True)
    (run.folder / 'summary.csv').write_text('epoch,eval_top1\n0,50\n')
    assert run.next_step == 'train', 'begun, not ended'
    finish(run, 50)
    assert run.next_step == 'test'
    finish(run, 50, test=40)
    assert run.next_step is None


def test_only_what_is_missing_runs(tmp_path, launcher, capsys):
    _, _, (done, missing) = small_plan(tmp_path)
    finish(done, 77)
    before = (done.folder / 'result.json').stat().st_mtime_ns
    assert execute([done, missing], jobs=2, launcher=launcher) == {}
    assert '2 runs, 1 of them complete' in capsys.readouterr().out
    assert (done.folder / 'result.json').stat().st_mtime_ns == before
    assert not (done.folder / 'log.txt').exists()
    assert missing.next_step is None
    assert 'some warning' in (missing.folder / 'log.txt').read_text()
    assert execute([done, missing], jobs=1, launcher='false') == {}, 'nothing is left to do'


def test_a_run_is_tested_after_training(tmp_path, launcher):
    table, shared, (run,) = small_plan(tmp_path, 'table6', ['ce'], ['symmetric:0.2'])
    assert execute([run], jobs=1, launcher=launcher) == {}
    assert run.figures['top1'] == 30
    assert run.figures['best_top1'] == 50
    text, _ = report(table, shared)
    assert row_of(text, 'Cross entropy')[:2] == ['30.00, n = 1', '51.98']


def test_failures_have_names_and_the_others_go_on(tmp_path, launcher, capsys):
    out = tmp_path / 'out'
    argv = ['table1', '--preset', 'smoke', '--rows', 'focal,ce', '--out', str(out), '--launcher', launcher]
    assert script.main(argv) == 1
    captured = capsys.readouterr()
    assert 'tables.py: test_resnet-focal-seed0: train: train.py: error: no such luck' in captured.err
    assert row_of(captured.out, 'Cross entropy')[:2] == ['40.00, n = 1', '70.00, n = 1']
    assert row_of(captured.out, 'Focal loss')[:2] == ['-', '-']
    assert script.main([*argv, '--only-report']) == 0


def test_a_run_that_ends_without_a_result_has_failed(tmp_path):
    _, _, (run,) = small_plan(tmp_path, rows=['ce'])
    failures = execute([run], jobs=1, launcher='true')
    assert 'ended without its result' in failures[run.name]
    failures = execute([run], jobs=1, launcher=f'{sys.executable} -c import/nothing')
    assert 'SyntaxError' in failures[run.name]


def test_a_run_under_way_elsewhere_is_left_alone(tmp_path, launcher):
    _, _, (run,) = small_plan(tmp_path, rows=['ce'])
    run.folder.mkdir(parents=True)
    with (run.folder / '.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert 'under way' in execute([run], jobs=1, launcher=launcher)[run.name]
    assert execute([run], jobs=1, launcher=launcher) == {}


def test_options_with_tuples_are_those_that_a_run_wrote(tmp_path, monkeypatch):
    *_, (run,) = small_plan(tmp_path, rows=['ce'])
    options = run.options | {'model_kwargs': {'img_scale': (1.0, 1.0)}}
    monkeypatch.setattr(Plan, 'options', lambda self, cell: options)
    run.folder.mkdir(parents=True)
    (run.folder / 'args.yaml').write_text(dump_yaml(options))
    run.check_options()


def test_runs_of_other_options_are_neither_gone_on_with_nor_reported(tmp_path, launcher):
    table, shared, (run,) = small_plan(tmp_path, rows=['ce'])
    other = {**run.options, 'data_dir': '/elsewhere', 'workers': 7}
    finish(run, 60, options=other)
    text, left_out = report(table, shared)
    assert left_out == {}
    assert row_of(text, 'Cross entropy')[0] == '60.00, n = 1'
    finish(run, 60, options={**other, 'epochs': 99})
    text, left_out = report(table, shared)
    assert left_out[run.name].startswith('was begun with epochs = 99, now 2')
    assert row_of(text, 'Cross entropy')[0] == '-'
    assert execute([run], jobs=1, launcher='false')[run.name].startswith('was begun with epochs = 99'), 'complete'
    (run.folder / 'result.json').unlink()
    assert execute([run], jobs=1, launcher=launcher)[run.name].startswith('was begun with epochs = 99')


@pytest.mark.slow
def test_smoke_runs_are_killed_go_on_and_are_reported(tmp_path):
    command = [
        *(sys.executable, ROOT / 'benchmarks' / 'tables.py', 'table6', '--preset', 'smoke', '--out', tmp_path),
        *('--rows', 'ce,hnc-mse', '--noise', 'symmetric:0.4', '--jobs', '2', '--', '--epochs', '8'),
    ]
    runs = tmp_path / 'smoke' / 'runs'
    names = ['test_resnet-ce-symmetric-0.4-seed0', 'test_resnet-hnc-mse-0.001-k5-symmetric-0.4-seed0']
    process = subprocess.Popen(list(map(str, command)), env=subprocess_environment(), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not all((runs / name / 'last').exists() for name in names) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) == 130
    assert not all((runs / name / 'result.json').exists() for name in names)

    ended = subprocess.run(
        list(map(str, command)), env=subprocess_environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert any('Going on from' in (runs / name / 'log.txt').read_text() for name in names)
    for name, label in zip(names, ('Cross entropy', 'HNC_mse'), strict=True):
        assert [row['epoch'] for row in summary(runs / name)] == list(range(8))
        top1 = json.loads((runs / name / 'test.json').read_text())['top1']
        # the digits have no test split: their validation images are those that the run, with its holdout, never saw
        assert row_of(ended.stdout, label)[2] == f'{top1:.2f}, n = 1'
