"""Parameters that processes hold in parts: FSDP version 2, from `accelerate launch --use_fsdp --fsdp_version 2`."""

import copy
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast, recursively_apply
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from timm_hnc.errors import UsageError, first_lines

_logger = logging.getLogger(__name__)


def shards(accelerator: Accelerator) -> bool:
    """Whether the launcher asks for parameters in parts."""
    return accelerator.distributed_type == DistributedType.FSDP


def check_sharding(accelerator: Accelerator) -> None:
    """Refuse what the launcher asks for beside parts, and leave the precision to autocast, as without them.

    Raises:
        UsageError: with what to ask for instead.
    """
    if not shards(accelerator):
        if os.environ.get('ACCELERATE_USE_FSDP', '').lower() == 'true' and accelerator.is_main_process:
            _logger.warning('accelerate launch asks for FSDP, which needs several accelerators: parameters stay whole.')
        return
    plugin = accelerator.state.fsdp_plugin
    for given, flag, instead in (
        (getattr(plugin, 'fsdp_version', 1) != 2, '--fsdp_version 1', '--fsdp_version 2'),
        (plugin.activation_checkpointing, '--fsdp_activation_checkpointing', "timm's --grad-checkpointing"),
        (isinstance(plugin.cpu_offload, CPUOffloadPolicy), '--fsdp_offload_params', '--fsdp_offload_params false'),
    ):
        if given:
            raise UsageError(f'accelerate launch asks for FSDP with {flag}: use {instead}.')
    plugin.mixed_precision_policy, plugin.cpu_ram_efficient_loading = None, False


def prepare(accelerator: Accelerator, task: Any, optimizer: Any, model: Any) -> tuple[Any, Any, Any]:
    """Accelerate's `prepare`; where it brings parameters into parts, they are first made those of the first process.

    Of random ones, each process would keep its own parts.

    Returns:
        Task and optimizer, and a whole copy of the model to evaluate and save; None where parameters stay whole.

    Raises:
        UsageError: these parameters cannot be in such parts.
    """
    if not shards(accelerator):
        return *accelerator.prepare(task, optimizer), None
    kinds = {each.dtype for each in task.parameters() if each.requires_grad}
    if len(kinds) > 1:
        names = ' and '.join(sorted(str(kind).removeprefix('torch.') for kind in kinds))
        raise UsageError(f'FSDP: model and losses learn {names}: leave out --model-dtype, and see --amp.')
    for parameter in task.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP takes no other layout; images keep theirs
    with torch.no_grad():
        for tensor in (*task.parameters(), *task.buffers()):
            tensor.copy_(broadcast(tensor))
    copied = copy.deepcopy(model)
    try:
        task, optimizer = accelerator.prepare(task, optimizer)
    except (ValueError, NotImplementedError) as error:
        raise UsageError(f'accelerate launch asks for FSDP: {first_lines(error)}') from error
    check_units(model)
    return task, optimizer, copied


def check_units(model: Any) -> None:
    """Refuse a unit with the classifier in it: it would lie in parts whenever class maps are made of it.

    Raises:
        UsageError: with its name.
    """
    found = model.get_classifier() if hasattr(model, 'get_classifier') else ()
    classifiers = found if isinstance(found, (tuple, list)) else [found]
    inside = {module for each in classifiers if isinstance(each, nn.Module) for module in each.modules()}
    for name, module in model.named_modules():
        if inside.intersection(module.modules()) and isinstance(module, FSDPModule):
            raise UsageError(
                f"accelerate launch shards '{name or type(model).__name__}' by itself, with the classifier, of which "
                'class maps are made: name the class of the blocks (--fsdp_transformer_layer_cls_to_wrap).'
            )


@torch.no_grad()
def put_together(parts: nn.Module, copied: nn.Module) -> None:
    """Give the copy the weights that processes hold in parts; all of them call it."""
    for own, part in zip(copied.state_dict().values(), parts.state_dict().values(), strict=True):
        own.copy_(whole(part))


def whole(tensor: Tensor) -> Tensor:
    """A tensor, put together where it is in parts; all processes call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(state: Any, keep: bool) -> Any:
    """A state with its tensors whole; one at a time, on the CPU, and for processes that `keep` it alone.

    All processes call it.
    """

    def take(part: Any) -> Tensor | None:
        tensor = part.full_tensor()
        return tensor.cpu() if keep else None

    return recursively_apply(take, state, test_type=lambda value: isinstance(value, DTensor))


def _part_of(value: Any, like: Any) -> Any:
    """This process's part of a whole tensor, where the parameter that it belongs to is in parts."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or not value.ndim:
        return value
    placements = like.placements if value.shape == like.shape else [Replicate()] * like.device_mesh.ndim
    # every process has the whole
    return distribute_tensor(value.to(like.device), like.device_mesh, placements, src_data_rank=None)


@contextmanager
def operations_of_parts(flag: str, in_parts: bool) -> Iterator[None]:
    """Say which flag asks for an operation that torch does not have of parameters in parts."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        text = str(error)
        if not in_parts or (text and not any(word in text for word in ('DTensor', 'placement', 'shard'))):
            raise
        raise UsageError(f'{flag}: cannot be used with FSDP ({first_lines(error)}).') from error


def load_state(module: nn.Module, state: dict[str, Any]) -> None:
    """As the module's `load_state_dict`, of whole tensors."""
    own = {name: tensor for name, tensor in module.state_dict().items() if isinstance(tensor, DTensor)}
    module.load_state_dict({name: _part_of(value, own.get(name)) for name, value in state.items()} if own else state)


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """As the optimizer's `load_state_dict`, of whole tensors."""
    own = [parameter for group in optimizer.param_groups for parameter in group['params']]
    indices = [index for group in state['param_groups'] for index in group['params']]
    parameters = dict(zip(indices, own, strict=False))
    values = {
        index: {name: _part_of(value, parameters.get(index)) for name, value in kept.items()}
        for index, kept in state['state'].items()
    }
    optimizer.load_state_dict({**state, 'state': values})


def shard_average(ema: ModelEmaV3, model: nn.Module) -> None:
    """Keep a moving average in parts, as the model that it follows."""
    mesh = next(each.device_mesh for each in model.parameters() if isinstance(each, DTensor))
    fully_shard(ema.module, mesh=mesh)
    ema.foreach = ema.stochastic_rounding = False  # those take tensors of one kind: buffers stay whole
