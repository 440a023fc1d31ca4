"""An epoch of train.py's own loop on given batches in float64, this process's share of each; rank 0 saves the result.

In float32 the order of a sum, which follows from the number of processes, shows after a few updates.
Run by tests, in one process and in several: python one_epoch.py <JSON list of command lines> <file>
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from running import forget_run, kept_process_group, probed_once
from torch import nn

from timm_hnc.checkpoints.checkpoints import CheckpointFolder, Progress
from timm_hnc.commands.options.train_options import parse_train_options
from timm_hnc.data.objects.slots import Slots
from timm_hnc.training.epoch import train_one_epoch
from timm_hnc.training.setup.build import build_run
from timm_hnc.training.setup.environment import create_accelerator
from timm_hnc.training.setup.options import agreed_options


class Batches(list):
    """A loader of the same batches every epoch, of which every process takes its part."""

    dataset = batch_sampler = sampler = SimpleNamespace()


def batches(accelerator, multi_label: bool, image: list[int], slots: Slots | None = None) -> Batches:
    generator, size = torch.Generator().manual_seed(7), 6
    whole = []
    for _ in range(3):
        input = torch.randn(size, *image, generator=generator)
        target = torch.randint(0, 3, (size,), generator=generator)
        if multi_label:
            target = torch.randint(0, 2, (size, 3), generator=generator).double()
        if slots is not None:
            cover = torch.rand(size, *slots.grid, generator=generator)
            target, *_ = slots.join(target, [{int(label): mask} for label, mask in zip(target, cover, strict=True)])
        whole.append((input, target))
    share = size // accelerator.num_processes
    part = slice(accelerator.process_index * share, (accelerator.process_index + 1) * share)
    return Batches((input[part].to(accelerator.device), target[part].to(accelerator.device)) for input, target in whole)


def wrappers(task: nn.Module) -> list[str]:
    """The wrapped task's classes, from outside in."""
    inner = [each for name, each in task._modules.items() if name in ('module', '_orig_mod')]
    return [type(task).__name__, *(name for each in inner for name in wrappers(each))]


def one_epoch(argv: list[str]) -> dict:
    forget_run()
    options = agreed_options(*parse_train_options([*argv, '--model-dtype', 'float64'])[:2])
    accelerator = create_accelerator(options.device, options.processes, options.tracking)
    run = build_run(options, accelerator, CheckpointFolder(Path('nowhere'), 1, False, Progress(options.model.model)))
    with torch.no_grad():
        for module in run.model.modules():
            if isinstance(module, nn.GroupNorm):
                # fresh norms hide errors
                module.weight.add_(torch.linspace(-0.3, 0.3, module.weight.numel()))
    slots = run.data.guided.slots if run.data.guided is not None else None
    run.data.train_loader = batches(accelerator, options.task.multi_label, run.data.config['input_size'], slots)
    gradients = []
    step = run.optimizer.step

    def observed():
        gradients.append({name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None})
        step()

    run.optimizer.step = observed
    metrics = train_one_epoch(run, 0)
    result = {'gradients': gradients, 'weights': run.model.state_dict(), 'metrics': metrics}
    result['wrappers'] = wrappers(run.task)
    if run.ema is not None:
        result['ema'] = run.ema.module.state_dict()
    processes = accelerator.num_processes
    accelerator.end_training()
    return {**result, 'processes': processes}


if __name__ == '__main__':
    with kept_process_group(), probed_once():
        results = [one_epoch(argv) for argv in json.loads(sys.argv[1])]
    if os.environ.get('RANK', '0') == '0':
        torch.save(results, sys.argv[2])
