"""A CUDA device computes and trains as a CPU does; `benchmarks/gpu.sh tests` runs this where there is one."""

import json
from pathlib import Path

import pytest
import torch
from running import best_weights, failure, result, run_script, summary, train, training_state
from small_models import DETACHED_MODELS, MODELS
from test_processes import distance

from timm_hnc.losses import hnc_loss

HERE = Path(__file__).parent
DEVICE = 'cuda'
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='this machine has no CUDA device')
DIGITS = [
    *('--dataset', 'hnc/digits', '--model', 'test_resnet', '--num-classes', 10, '--img-size', 32, '--workers', 0),
    *('--train-crop-mode', 'rkrc', '--crop-pct', 1.0, '--hflip', 0, '-b', 64, '--epochs', 5, '--warmup-epochs', 0),
    *('--opt', 'adamw', '--lr', 0.003, '--device', DEVICE, '--no-report', '--cam-images', 0),
    *('--hnc', 'mse', '--hnc-weight', 0.003, '--hnc-topk', 3),
]


def digits(folder, name, *flags):
    return train(*DIGITS, *flags, '--output', folder, '--experiment', name)


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    """The figures of float32, uncompiled."""
    return summary(digits(tmp_path_factory.mktemp('plain'), 'run'))


@pytest.mark.parametrize('name', [*MODELS, *DETACHED_MODELS])
def test_maps_losses_and_gradients(name):
    """Of every kind of head, in float64, whose sums both devices round in their own order."""
    small, target = (MODELS | DETACHED_MODELS)[name], torch.tensor([1, 2, 3])
    model, images = small.cam_model().double(), small.images().double()
    found = []
    for device in ('cpu', DEVICE):
        model.to(device).zero_grad()
        class_maps = model.class_maps(images.to(device))
        maps = class_maps.maps(None)
        torch.testing.assert_close(maps.mean((2, 3)), class_maps.logits, rtol=1e-7, atol=1e-7)
        losses = [hnc_loss(class_maps, target.to(device), form, topk=3) for form in ('mse', 'kd', 'var', 'logit')]
        sum(losses).backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        found.append([value.detach().cpu().clone() for value in (maps, *losses, *gradients)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6 * theirs.abs().max().item() + 1e-12)


@pytest.mark.parametrize(
    'flags',
    [
        '--channels-last',
        '--amp --amp-dtype bfloat16 --channels-last',
        '--amp --amp-dtype float16',
        '--model-dtype bfloat16',
        '--torchcompile inductor',
        '--torchcompile inductor --torchcompile-mode reduce-overhead --amp --amp-dtype bfloat16 --channels-last',
        '--model-ema --model-ema-decay 0.5 --clip-grad 10.0',
    ],
)
def test_trains_like_float32(flags, plain, tmp_path):
    """Losses of the epochs differ by rounding, which grows, and the digits are learned."""
    found = summary(digits(tmp_path, 'run', *flags.split()))
    for ours, theirs in zip(found, plain, strict=True):
        assert ours['train_loss'] == pytest.approx(theirs['train_loss'], rel=0.15)
    assert found[-1]['eval_top1'] > 90


def test_float16_leaves_out_updates_that_overflow(tmp_path, monkeypatch):
    """A scale that is far too large is halved at every overflow, and the weights stay finite."""
    monkeypatch.setattr('accelerate.accelerator.get_grad_scaler', lambda *args: torch.amp.GradScaler(DEVICE, 2.0**30))
    run = digits(tmp_path, 'run', '--amp', '--amp-dtype', 'float16')
    assert result(run)['skipped_updates'] > 3
    assert all(torch.isfinite(value).all() for value in best_weights(run).values() if value.is_floating_point())
    assert summary(run)[-1]['eval_top1'] > 90


@pytest.mark.parametrize('flags', ['', '--amp --amp-dtype float16', '--torchcompile inductor'])
def test_goes_on_where_it_stopped(flags, tmp_path):
    """To the rounding of kernels that add in any order: the state of random numbers, data and optimizer is the same."""
    whole = digits(tmp_path, 'whole', *flags.split())
    digits(tmp_path, 'parts', *flags.split(), '--stop-epoch', 1)
    parts = train(*DIGITS, *flags.split(), '--output', tmp_path, '--experiment', 'parts', '--resume', 'auto')
    for ours, theirs in zip(summary(parts), summary(whole), strict=True):
        assert ours['train_loss'] == pytest.approx(theirs['train_loss'], rel=0.05)
    ours, theirs = training_state(parts), training_state(whole)
    assert ours.keys() == theirs.keys()


def test_one_process_of_a_group(images, tmp_path):
    """Under torchrun, which Accelerate does not wrap: the gradients of a process alone."""
    argv = [*('--model', 'test_resnet', '--num-classes', '3', '--img-size', '32', '--workers', '0', '-b', '6')]
    argv += [
        *('--hnc', 'mse', '--hnc-weight', 'auto', '--hnc-topk', '1', '--device', DEVICE, '--data-dir', str(images))
    ]
    found = []
    for processes in (0, 1):
        out = tmp_path / f'{processes}.pt'
        done = run_script(HERE / 'one_epoch.py', json.dumps([argv]), out, processes=processes, fresh=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        found += torch.load(out, weights_only=True, map_location='cpu')
    alone, grouped = found
    assert grouped['wrappers'] == alone['wrappers']
    for ours, theirs in zip(grouped['gradients'], alone['gradients'], strict=True):
        assert distance(ours, theirs) < 1e-9


def test_devices(plain, tmp_path, capsys):
    """The first one by its number; one more than there are is refused."""
    found = summary(digits(tmp_path, 'run', '--device', 'cuda:0'))
    assert found[0]['train_loss'] == pytest.approx(plain[0]['train_loss'], rel=0.15)
    missing = f'cuda:{torch.cuda.device_count()}'
    code, message = failure(capsys, 'train', *DIGITS, '--device', missing, '--output', tmp_path, '--experiment', 'no')
    assert code == 2
    assert message.startswith(f'--device {missing}: this machine has cpu, cuda:0')
