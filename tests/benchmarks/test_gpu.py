"""benchmarks/gpu.sh: every step runs on a machine without a GPU, on something small."""

import subprocess

import pytest
import torch
from image_data import write_parquet
from running import ROOT, result, subprocess_environment


def step(*words, code=0):
    command = ['bash', str(ROOT / 'benchmarks' / 'gpu.sh'), *map(str, words)]
    done = subprocess.run(command, env=subprocess_environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == code, done.stderr[-3000:]
    return done


@pytest.mark.slow  # 7 s for a word
@pytest.mark.skipif(torch.cuda.is_available(), reason='they run here')
def test_tests_are_left_out_where_no_device_is():
    assert 'skipped' in step('tests', '-p', 'no:randomly').stdout.splitlines()[-1]


@pytest.mark.slow  # 5 s for a command line of step_cost.py, which test_step_cost.py runs
def test_cost_of_a_step(tmp_path):
    few = (
        '--model test_resnet --classes 12 --topk 3 --img-size 32 --batch-size 2 --pairs 2 --memory-runs 0 --mode eager'
    )
    step('cifar', tmp_path, *few.split(), '--device', 'cpu')
    assert (tmp_path / 'cifar.md').read_text().count('| test_resnet |') == 2


@pytest.mark.slow  # 12 s for a command line of train.py
def test_a_run(tmp_path):
    """That `--resume auto` goes on is what tests of training show."""
    data = write_parquet(tmp_path / 'set')
    columns = ['--data-dir', tmp_path / 'cache', '--input-key', 'image', '--target-key', 'label']
    few = '--val-split validation --model test_resnet --num-classes 3 --device cpu --epochs 1 --hnc-topk 1'
    step('run', tmp_path, data, *columns, *few.split(), '--torchcompile', 'eager', '-b', 8)
    assert result(tmp_path / 'cifar_resnet56')['epochs'] == 1


def test_what_is_wrong():
    assert 'expected a step' in step(code=1).stderr
    assert 'nonsense: expected tests, eager, compiled, cifar or run.' in step('nonsense', 'out', code=2).stderr
