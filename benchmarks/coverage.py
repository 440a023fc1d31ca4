#!/usr/bin/env python3
"""Which of timm's models have class maps, of what kind and how exact: every name, built and measured.

Every name is built on the meta device and probed. Then its head gets random weights, norms, biases and statistics (as
much of the model as the head needs) and random features: how far is the mean of a map from the logit, relative to the
largest logit, in float32 and float64? Names below --whole million parameters are measured as whole models on random
images too, and make one training step with HNC: forward, backward, everything finite, a gradient for every parameter
that has one without HNC. Class-token models have no head of their own to measure: only the whole model is.

Rows are added to --output as they are made and made only once, so that an interrupted run goes on; one process a core.

    python benchmarks/coverage.py                      # hours; all of timm
    python benchmarks/coverage.py --names 'resnet*'    # some of it
    python benchmarks/coverage.py --table              # docs/architectures.md's table of what was measured
"""

import argparse
import multiprocessing
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from arguments import at_least
from rows import add_row, read_rows
from timm.models import get_model_input_config

import timm_hnc
from timm_hnc.cam.following.operations import tensors_in
from timm_hnc.cam.following.tracking import Tracker
from timm_hnc.cam.heads.base import DESCRIPTIONS
from timm_hnc.cam.heads.position_search import BATCH
from timm_hnc.cam.heads.probe import MapHead, UnsupportedHead, probe_head
from timm_hnc.commands.command_line import run_command
from timm_hnc.errors import UsageError

NUM_CLASSES = 10
OUR_OWN = 'cifar_*'
COLUMNS = (
    *('name', 'module', 'params', 'flags', 'kind', 'trainable', 'head_float32', 'head_float64'),
    *('whole_float32', 'whole_float64', 'step', 'avg_kind', 'avg_head_float32', 'avg_head_float64'),
    *('avg_whole_float32', 'avg_step', 'seconds', 'note'),
)
EXACT = {'float32': 1e-4, 'float64': 1e-9}


def build(name: str, device: str, **kwargs: Any) -> Any:
    """A timm model in evaluation mode, on the meta device without weights."""
    with torch.device(device), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return timm.create_model(name, **kwargs).eval()


@torch.no_grad()
def shake(tensor: torch.Tensor, name: str, generator: torch.Generator, scale: float = 0.2) -> None:
    """Move a norm, a bias or a statistic away from its initial value."""
    noise = torch.randn(tensor.shape, generator=generator).to(tensor)
    if name.endswith('running_var'):
        tensor.mul_(1 + 0.5 * noise.tanh())
    elif tensor.is_floating_point() and (tensor.ndim <= 1 or not name.endswith('weight')):
        tensor.add_(scale * noise)


class UsedTensors(Tracker):
    """Notes the tensors that functions are called with."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        """Run a function as it is."""
        self.ids.update(id(tensor) for tensor in tensors_in(args, kwargs))
        return func(*args, **(kwargs or {}))


def give_head_weights(model: Any, features: Any) -> None:
    """Random weights for what a head on the meta device uses; the rest stays without."""
    with UsedTensors() as used, torch.no_grad():
        model.forward_head(features)
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None or id(tensor) not in used.ids:
                    continue
                if not tensor.is_floating_point():
                    tensors[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
                    continue
                fan_in = tensor.shape[1:].numel() if tensor.ndim > 1 else 1
                value = torch.randn(tensor.shape, generator=generator) / fan_in**0.5
                if tensor.ndim == 1 and name in ('weight', 'running_var'):
                    value = 1 + 0.5 * value.tanh()
                tensors[name] = torch.nn.Parameter(value) if isinstance(tensor, torch.nn.Parameter) else value


def relative_error(maps: timm_hnc.ClassMaps) -> float:
    """Largest distance of a map's mean from its logit, relative to the largest logit."""
    means = maps.maps(None).flatten(2).mean(-1)
    return ((means - maps.logits).abs().max() / maps.logits.abs().max()).item()


@torch.no_grad()
def head_errors(model: Any, head: MapHead) -> dict[str, float]:
    """Errors of a head with random weights on random features, in float32 and float64; the model is on meta."""
    channels, height, width = get_model_input_config(model)['input_size']
    features = model.forward_features(torch.empty(BATCH, channels, height, width, device='meta'))
    give_head_weights(model, features)
    generator = torch.Generator().manual_seed(1)
    each = features if isinstance(features, (list, tuple)) else [features]
    values = [torch.randn(tensor.shape, generator=generator) for tensor in each]
    errors = {}
    for dtype in ('float32', 'float64'):
        kind = getattr(torch, dtype)
        model.to(kind)
        model.forward_features = lambda _, kind=kind: (
            [v.to(kind) for v in values] if len(values) > 1 else values[0].to(kind)
        )
        errors[dtype] = relative_error(head.class_maps(model, torch.empty(BATCH, channels, height, width)))
    return errors


def whole_errors(model: Any, images: torch.Tensor) -> dict[str, float]:
    """Errors of a whole model on random images."""
    cam_model = timm_hnc.CamModel(model)
    errors = {'float32': relative_error(cam_model.class_maps(images))}
    if not cam_model.kind.trainable:
        errors['float64'] = relative_error(cam_model.double().class_maps(images.double()))
    return errors


def step(model: Any, images: torch.Tensor) -> str:
    """One training step with HNC: 'ok', or what is wrong with it."""
    model.train()
    target = torch.arange(len(images)) % NUM_CLASSES
    task = timm_hnc.HNCTask(timm_hnc.CamModel(model), hnc=timm_hnc.HNCLoss('kd', topk=5), verbose=False)
    torch.manual_seed(0)
    task.criterion(model(images), target).backward()
    reached = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    model.zero_grad(set_to_none=True)
    loss = task(images, target)['loss']
    if not loss.isfinite():
        return f'loss {loss.item()}'
    loss.backward()
    parameters = dict(model.named_parameters())
    missing = [name for name in reached if parameters[name].grad is None]
    broken = [name for name in reached if name not in missing and not parameters[name].grad.isfinite().all()]
    return f'no gradient: {missing[0]}' if missing else f'not finite: {broken[0]}' if broken else 'ok'


def measure(name: str, whole: float) -> dict[str, Any]:
    """The row of a name."""
    start = time.perf_counter()
    row: dict[str, Any] = dict.fromkeys(COLUMNS, '')
    listed = build(name, 'meta')
    kwargs = {} if getattr(listed, 'num_classes', 0) else {'num_classes': NUM_CLASSES}
    row.update(name=name, module=type(listed).__module__.rsplit('.', 1)[-1])
    row.update(params=sum(parameter.numel() for parameter in listed.parameters()))
    try:
        found = measure_one(name, kwargs, row, '', whole)
        row['flags'] = '--num-classes' if kwargs else ''
        if not found.trainable:
            try:
                if measure_one(name, {**kwargs, 'global_pool': 'avg'}, row, 'avg_', whole).trainable:
                    row['flags'] = f'{row["flags"]} --gp avg'.strip()
            except (UnsupportedHead, AssertionError, TypeError, ValueError, RuntimeError) as error:
                row['note'] = f'--gp avg: {str(error).splitlines()[:1]}'
    except UnsupportedHead as error:
        row.update(kind='none', note=str(error))
    except Exception as error:
        row.update(kind='failed', note=f'{type(error).__name__}: {str(error)[:200]}')
    row['seconds'] = f'{time.perf_counter() - start:.1f}'
    return row


def measure_one(name: str, kwargs: dict[str, Any], row: dict[str, Any], prefix: str, whole: float) -> MapHead:
    """Fill in the columns of one way to create a model."""
    if 'num_classes' not in kwargs:
        try:  # few classes are quicker to measure
            build(name, 'meta', **kwargs, num_classes=NUM_CLASSES)
            kwargs = {**kwargs, 'num_classes': NUM_CLASSES}
        except Exception as error:
            raise UnsupportedHead(f'{name} takes no classifier: {error}') from error
    model = build(name, 'meta', **kwargs)
    head = probe_head(model)
    row[f'{prefix}kind'] = head.kind
    if not prefix:
        row['trainable'] = head.trainable
    if head.trainable:
        for dtype, error in head_errors(model, head).items():
            row[f'{prefix}head_{dtype}'] = f'{error:.1e}'
    if row['params'] <= whole * 1e6:
        torch.manual_seed(0)
        model = build(name, 'cpu', **kwargs)
        generator = torch.Generator().manual_seed(0)
        for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
            shake(tensor, key, generator, scale=0.02)
        images = torch.randn(BATCH, *get_model_input_config(model)['input_size'], generator=generator)
        if head.trainable:
            row[f'{prefix}step'] = step(model, images)
            model.zero_grad(set_to_none=True)
            model.eval()
        with torch.set_grad_enabled(False):
            for dtype, error in whole_errors(model, images).items():
                if f'{prefix}whole_{dtype}' in row:
                    row[f'{prefix}whole_{dtype}'] = f'{error:.1e}'
    return head


def work(arguments: tuple[str, float]) -> dict[str, Any]:
    """A row, in a process of its own."""
    torch.set_num_threads(1)
    return measure(*arguments)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is not measured yet, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--output', type=Path, default=Path(__file__).parent / 'results' / 'coverage.csv')
    parser.add_argument('--names', default='*', help='only names that match this pattern')
    parser.add_argument('--whole', type=float, default=30, help='whole models up to so many million parameters')
    parser.add_argument('--processes', type=at_least(1), default=os.cpu_count())
    parser.add_argument('--table', action='store_true', help='print the table of --output')
    args = parser.parse_args(argv)
    rows = read_rows(args.output)
    if args.table:
        print(table(rows))
        return
    done = {row['name'] for row in rows}
    asked = timm.list_models(args.names, exclude_filters=OUR_OWN)
    if not asked:
        raise UsageError(f"--names '{args.names}': timm has no such model.")
    names = [name for name in asked if name not in done]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context('spawn').Pool(args.processes, maxtasksperchild=50) as pool:
        for count, row in enumerate(pool.imap_unordered(work, [(name, args.whole) for name in names]), 1):
            add_row(args.output, COLUMNS, row)
            print(f'{count}/{len(names)} {row["name"]}: {row["kind"]} {row["flags"]} {row["note"][:100]}', flush=True)


def table(rows: list[dict[str, str]]) -> str:
    """The table of docs/architectures.md: a line a kind."""
    lines = [
        '| kind | from positions to logits | names | trainable | `--gp avg` | float32 | float64 | families |',
        '|---|---|--:|--:|--:|--:|--:|---|',
    ]
    for kind in (*DESCRIPTIONS, 'none'):
        group = [row for row in rows if row['kind'] == kind]
        if group:
            lines.append(_line(kind, group))
    return '\n'.join([*lines, '', _summary(rows)])


def _line(kind: str, group: list[dict[str, str]]) -> str:
    trainable = sum(row['trainable'] == 'True' for row in group)
    avg = sum(bool(row['avg_head_float32']) for row in group)
    families = Counter(row['module'] for row in group)
    names = ', '.join(name for name, _ in families.most_common(6)) + (' ...' if len(families) > 6 else '')
    worst = [_worst(group, dtype) for dtype in EXACT]
    what = DESCRIPTIONS.get(kind, 'encoders without a classifier, refused')
    return f'| {kind} | {what} | {len(group)} | {trainable} | {avg or ""} | {worst[0]} | {worst[1]} | {names} |'


def _errors(row: dict[str, str], dtype: str) -> list[float]:
    columns = [name for name in COLUMNS if name.endswith(dtype) and row[name]]
    return [float(row[name]) for name in columns]


def _worst(group: list[dict[str, str]], dtype: str) -> str:
    errors = [error for row in group for error in _errors(row, dtype)]
    return f'{max(errors):.0e}' if errors else ''


def _summary(rows: list[dict[str, str]]) -> str:
    """How many names are exact as listed or with a classifier, with --gp avg, and for pictures."""
    exact = [row for row in rows if row['kind'] not in ('none', 'failed') and _errors(row, 'float32')]
    exact = [row for row in exact if max(_errors(row, 'float32')) <= EXACT['float32']]
    listed = sum(row['trainable'] == 'True' for row in exact)
    avg = sum(bool(row['avg_head_float32']) for row in exact)
    pictures = sum(row['kind'] not in ('none', 'failed') for row in rows)
    steps = [row[column] for row in rows for column in ('step', 'avg_step') if row[column]]
    whole = sum(bool(row['whole_float32']) for row in rows)
    return (
        f'{len(rows):,} names: trainable and exact as listed (or with `--num-classes`) {listed:,}, with `--gp avg` '
        f'{listed + avg:,}, with maps for pictures {pictures:,}. Whole models measured: {whole}; training steps: '
        f'{steps.count("ok")} of {len(steps)} ran with every gradient finite and in place.'
    )


if __name__ == '__main__':
    sys.exit(run_command(main))
