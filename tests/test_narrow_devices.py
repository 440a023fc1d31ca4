"""Devices without float64, which refuse it as Apple's GPUs do; here the CPU stands for one."""

import sys

import pytest
import torch
from accelerate import Accelerator
from small_models import MODELS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from timm_hnc import HNCLoss, HNCTask
from timm_hnc.cam.number_types import widest
from timm_hnc.checkpoints.run_lock import run_lock
from timm_hnc.errors import UsageError
from timm_hnc.evaluation.confusions import ConfusionPass
from timm_hnc.losses import AutoWeight
from timm_hnc.metrics import map_quality
from timm_hnc.training.averages import Averages

IMAGES = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
TARGET = torch.tensor([0, 3, 2, 1])


class NoFloat64(TorchDispatchMode):
    """No operation's result may be in float64."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if any(each.dtype == torch.float64 for each in tree_leaves(result) if isinstance(each, torch.Tensor)):
            raise TypeError(f'{function}: float64')
        return result


def step(weight):
    """A training step's results, their means over an epoch, and the figures of its maps."""
    torch.manual_seed(0)
    model = MODELS['resnet'].cam_model()
    task = HNCTask(model, hnc=HNCLoss('mse', topk=3), hnc_weight=weight).to('cpu')
    results = task(IMAGES, TARGET)
    results['loss'].backward()
    averages = Averages()
    averages.update(results, len(TARGET))
    accelerator = Accelerator(cpu=True)
    restored = Averages.restored(averages.state(accelerator), accelerator)
    class_maps, confusions = model.class_maps(IMAGES), ConfusionPass(list('abcde'))
    confusions.update(class_maps, TARGET, IMAGES, 0)
    peaks = map_quality.map_figures(class_maps.maps(TARGET[:, None]))
    return restored.compute(accelerator), peaks, confusions.rows(9), task


def test_a_step_and_its_figures_do_without_float64(monkeypatch):
    expected, peaks, rows, _ = step(AutoWeight(0.5))
    for module in ('losses.auto_weight', 'training.averages', 'metrics.map_quality'):
        monkeypatch.setattr(f'timm_hnc.{module}.widest', lambda device: torch.float32)
    weight = AutoWeight(0.5)
    with NoFloat64():
        found, narrow_peaks, narrow_rows, task = step(weight)
    assert found == pytest.approx(expected, rel=1e-5)
    assert torch.allclose(narrow_peaks.double(), peaks, rtol=1e-5, atol=1e-6)
    assert [row | {'peak': None} for row in narrow_rows] == [row | {'peak': None} for row in rows]
    assert [row['peak'] for row in narrow_rows] == pytest.approx([row['peak'] for row in rows], rel=1e-5)
    assert task.hnc_weight.norms.dtype == torch.float32


def test_what_cannot_be_moved_there_in_float64_is_moved_in_float32(monkeypatch):
    def move(tensor):
        assert tensor.dtype != torch.float64
        return tensor.clone()

    weight = AutoWeight(0.5)
    weight.update(torch.tensor(3.0), torch.tensor(2.0))
    monkeypatch.setattr('timm_hnc.losses.auto_weight.widest', lambda device: torch.float32)
    assert weight._apply(move).value.item() == pytest.approx(0.75)


def test_moved_in_any_way_it_stays_whole():
    weight = AutoWeight(0.5)
    weight.update(torch.tensor(3.0), torch.tensor(2.0))
    assert weight.share_memory().norms.is_shared()
    weight = weight.to('meta').to_empty(device='cpu')
    weight.begin_anew()
    weight.update(torch.tensor(3.0), torch.tensor(2.0))
    assert weight.value.item() == pytest.approx(0.75)


def test_apples_gpus_have_no_float64():
    assert [widest(torch.device(name)) for name in ('mps', 'cpu', 'cuda')] == [torch.float32, *[torch.float64] * 2]


def test_windows_is_refused_before_a_run_begins(tmp_path, monkeypatch):
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(sys, 'platform', 'win32')
    with pytest.raises(UsageError, match='train on Linux, on macOS or in WSL'), run_lock(tmp_path, accelerator):
        pass
