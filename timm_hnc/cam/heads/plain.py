"""Recognising a head that is an average pool in front of linear layers, by trying it out on random features."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from timm_hnc.cam.grids import Cell, cell_of, token_grid
from timm_hnc.cam.heads.base import (
    MAX_PREFIX_TOKENS,
    Head,
    Layout,
    TimmModel,
    agree,
    classifier_names,
    forward_of,
    pools_of,
)
from timm_hnc.cam.heads.model_copies import evaluating
from timm_hnc.cam.heads.refusal import ERRORS

_SHAPING = ('view', 'reshape', 'permute', 'transpose', 't', 'slice', 'squeeze', 'unsqueeze', 'alias', 'detach', 'clone')
_POOLING = (*_SHAPING, '_unsafe_view', '_reshape_alias', 'mean', 'adaptive_avg_pool2d', '_adaptive_avg_pool2d')
_LINEAR = ('addmm', 'mm', 'linear', 'convolution')
_AVERAGING = ('add', 'div', 'mul')


class _Recorder(TorchDispatchMode):
    """Names of the operations that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.operations.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def plain_head(model: TimmModel, shape: tuple[int, ...], image_size: tuple[int, int]) -> Head:
    """The head as a pool and linear layers, by the shape of the features of two images of a size.

    Raises:
        ValueError: the head does more, or its mean takes in tokens that are no patches.
    """
    names, layers = _classifiers(model)
    layout, num_prefix_tokens = _pooling(model, shape)
    cell = _token_cell(model, shape[1], num_prefix_tokens, image_size) if layout == 'NLC' else None
    convolutional, forward = isinstance(layers[0], nn.Conv2d), forward_of(layers[0])
    forward_head = forward_of(model, 'forward_head')
    head = Head(layout, num_prefix_tokens, names, convolutional, cell, pools_of(model), forward, forward_head)
    called: list[nn.Module] = []
    with register_module_forward_pre_hook(lambda module, _: called.append(module)):
        _check_classifier(model, head, shape, image_size)
    others = [(name, module) for name, module in model.named_modules() if module in called and name not in names]
    return replace(head, modules=tuple((name, forward_of(module)) for name, module in others))


def _classifiers(model: TimmModel) -> tuple[tuple[str, ...], list[nn.Module]]:
    """Names and modules of the linear layers that make the logits."""
    names = classifier_names(model)
    modules = dict(model.named_modules())
    if not names or any(name not in modules for name in names):
        classifier = model.get_classifier()
        wanted = classifier if isinstance(classifier, (tuple, list, nn.ModuleList)) else [classifier]
        names = tuple(name for name, module in modules.items() if any(module is layer for layer in wanted))
    layers = [modules[name] for name in names]
    for layer in layers:
        if not isinstance(layer, nn.Linear) and not (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)):
            raise ValueError(f'its classifier is a {type(layer).__name__}, not a linear layer')
    if not layers:
        raise ValueError('its classifier was not found among its modules')
    return names, layers


def _pooling(model: TimmModel, shape: tuple[int, ...]) -> tuple[Layout, int]:
    """Layout and prefix tokens of the features whose plain mean enters the classifier."""
    # on the CPU even for a meta model: an average pool has no weights, and whatever has some is refused
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0), device='cpu')
    pooled = _recorded(model, lambda: model.forward_head(features, pre_logits=True), {*_POOLING})
    if not isinstance(pooled, Tensor):
        raise ValueError('its pooled features are no tensor')
    # without it, the values alone say which mean it is
    width = getattr(model, 'num_features', None)
    means: list[tuple[Layout, int, Tensor]] = []
    if len(shape) == 4 and width in (shape[1], None):
        means.append(('NCHW', 0, features.mean((2, 3))))
    if len(shape) == 4 and width in (shape[3], None):
        means.append(('NHWC', 0, features.mean((1, 2))))
    if len(shape) == 3 and width in (shape[2], None):
        prefixes = range(min(MAX_PREFIX_TOKENS, shape[1] - 1) + 1)
        means.extend(('NLC', prefix, features[:, prefix:].mean(1)) for prefix in prefixes)
    for layout, prefix, mean in means:
        if mean.numel() == pooled.numel() and torch.allclose(pooled.flatten(1), mean, atol=1e-5):
            return layout, prefix
    raise ValueError('its classifier does not see the mean over all positions')


def _token_cell(model: TimmModel, num_tokens: int, num_prefix_tokens: int, image_size: tuple[int, int]) -> Cell:
    """Size of a patch; a mean over tokens that are not all patches, and those alone, is refused."""
    if num_prefix_tokens < (getattr(model, 'num_prefix_tokens', 0) or 0):
        raise ValueError('its mean takes in class or register tokens, which have no place in the image')
    return cell_of(token_grid(num_tokens - num_prefix_tokens, image_size), image_size)


def _check_classifier(model: TimmModel, head: Head, shape: tuple[int, ...], image_size: tuple[int, int]) -> None:
    """Refuse a head that does more to the pooled vector than its linear layers do."""
    parameter = next(model.parameters())
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0), device='cpu').to(parameter)
    allowed = {*_POOLING, *_LINEAR, *(_AVERAGING if len(head.classifiers) > 1 else ())}
    logits = _recorded(model, lambda: model.forward_head(features), allowed)
    if parameter.device.type == 'meta':
        return
    with torch.no_grad():
        positions, _ = head.positions(features, image_size)
        weight, bias = head.linear(model)
        expected = nn.functional.linear(positions.mean(1), weight, bias)
    if not isinstance(logits, Tensor) or not agree(logits, expected):
        raise ValueError('its logits are not its linear layer applied to the mean over positions')


def _recorded(model: TimmModel, function: Callable[[], Any], allowed: set[str]) -> Any:
    """The function's outcome, None where it fails; other operations than the allowed ones are refused."""
    recorder = _Recorder()
    outcome = None
    with suppress(*ERRORS), evaluating(model), torch.no_grad(), recorder:
        outcome = function()
    found = recorder.operations - allowed
    if found:
        raise ValueError(f'its head has more than a mean in front of its linear layer ({", ".join(sorted(found))})')
    return outcome
