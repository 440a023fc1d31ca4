"""Trying a model's head out on random features, to learn what it does and to refuse what would not be exact."""

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.models import get_model_input_config
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from timm_hnc.cam.heads import Head, Layout, TimmModel, token_grid

MAX_PREFIX_TOKENS = 16
_SHAPING = ('view', 'reshape', 'permute', 'transpose', 't', 'slice', 'squeeze', 'unsqueeze', 'alias', 'detach', 'clone')
_POOLING = (*_SHAPING, '_unsafe_view', '_reshape_alias', 'mean', 'adaptive_avg_pool2d', '_adaptive_avg_pool2d')
_LINEAR = ('addmm', 'mm', 'linear', 'convolution')
_AVERAGING = ('add', 'div', 'mul')


class UnsupportedHead(ValueError):
    """The maps of this model would not explain its logits; the message says why and what to do."""


class _Recorder(TorchDispatchMode):
    """Names of the operations that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        self.operations.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module has its own training flag again."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def probe_head(model: TimmModel) -> Head:
    """Find out how a timm model's head makes logits of features.

    Nothing of the model is changed, no image is needed, and a model on the meta device will do.

    Args:
        model: a timm model with forward_features, forward_head and a classifier.

    Raises:
        UnsupportedHead: the head is more than an average pool in front of a linear layer.
    """
    for method in ('forward_features', 'forward_head', 'get_classifier'):
        if not hasattr(model, method):
            raise UnsupportedHead(_refusal(model, f'it has no {method}()', 'use an image classifier of timm'))
    names, layers = _classifiers(model)
    shape, image_size = _features_shape(model)
    layout, num_prefix_tokens = _probe_pooling(model, shape)
    if layout == 'NLC':
        _check_tokens(model, shape[1], num_prefix_tokens, image_size)
    head = Head(layout, num_prefix_tokens, names, isinstance(layers[0], nn.Conv2d))
    _probe_classifier(model, head, shape, image_size)
    return head


def _classifiers(model: TimmModel) -> tuple[tuple[str, ...], list[nn.Module]]:
    """Names and modules of the linear layers that make the logits."""
    if not getattr(model, 'num_classes', 0):
        raise UnsupportedHead(_refusal(model, 'it has no classifier', 'create it with num_classes=N (--num-classes N)'))
    names = (getattr(model, 'pretrained_cfg', None) or {}).get('classifier') or ()
    names = (names,) if isinstance(names, str) else tuple(names)
    modules = dict(model.named_modules())
    if not names or any(name not in modules for name in names):
        classifier = model.get_classifier()
        wanted = classifier if isinstance(classifier, (tuple, list, nn.ModuleList)) else [classifier]
        names = tuple(name for name, module in modules.items() if any(module is layer for layer in wanted))
    layers = [modules[name] for name in names]
    for layer in layers:
        if not isinstance(layer, nn.Linear) and not (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)):
            raise UnsupportedHead(_refusal(model, f'its classifier is a {type(layer).__name__}, not a linear layer'))
    if not layers:
        raise UnsupportedHead(_refusal(model, 'its classifier was not found among its modules'))
    return names, layers


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers and whatever else modules keep: some have caches, part of an autograd graph."""
    for module in model.modules():
        for value in vars(module).values():
            values = value.values() if isinstance(value, dict) else (value,)
            yield from (tensor for tensor in values if isinstance(tensor, Tensor))


def _meta_copy(model: TimmModel) -> TimmModel:
    """The model on the meta device, without copying its weights."""
    tensors: dict[int, Any] = {}
    for tensor in _tensors(model):
        empty = torch.empty_like(tensor, device='meta')
        tensors[id(tensor)] = nn.Parameter(empty, False) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(model, tensors)


def _full_copy(model: TimmModel) -> TimmModel:
    """A deep copy; of tensors in an autograd graph, which cannot be copied, only the values."""
    return copy.deepcopy(model, {id(tensor): tensor.detach() for tensor in _tensors(model) if not tensor.is_leaf})


def _features_shape(model: TimmModel) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Shape of the features of two images of the model's own size, and that size."""
    channels, height, width = get_model_input_config(model)['input_size']
    parameter = next(model.parameters())
    candidates: list[tuple[Callable[[], TimmModel], torch.device]] = [(lambda: _meta_copy(model), torch.device('meta'))]
    if parameter.device.type != 'meta':  # some models make tensors of their own, which meta tensors cannot meet
        candidates.append((lambda: _full_copy(model), parameter.device))
    for make, device in candidates:
        images = torch.zeros(2, channels, height, width, device=device, dtype=parameter.dtype)
        try:
            with torch.no_grad():
                features = make().eval().forward_features(images)
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
            reason = f'its forward_features() failed ({str(error).splitlines()[0]})'
            continue
        if isinstance(features, Tensor) and features.ndim in (3, 4):
            return tuple(features.shape), (height, width)
        reason = 'its features are no single map or row of tokens'
        break
    raise UnsupportedHead(_refusal(model, reason))


def _probe_pooling(model: TimmModel, shape: tuple[int, ...]) -> tuple[Layout, int]:
    """Layout and prefix tokens of the features whose plain mean enters the classifier."""
    # on the CPU even for a meta model: an average pool has no weights, and whatever has some is refused
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    recorder = _Recorder()
    try:
        with evaluating(model), torch.no_grad(), recorder:
            pooled = model.forward_head(features, pre_logits=True)
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        pooled = None
    _refuse_operations(model, recorder.operations - set(_POOLING))
    if isinstance(pooled, Tensor):
        width = model.num_features
        means: list[tuple[Layout, int, Tensor]] = []
        if len(shape) == 4 and shape[1] == width:
            means.append(('NCHW', 0, features.mean((2, 3))))
        if len(shape) == 4 and shape[3] == width:
            means.append(('NHWC', 0, features.mean((1, 2))))
        if len(shape) == 3 and shape[2] == width:
            prefixes = range(min(MAX_PREFIX_TOKENS, shape[1] - 1) + 1)
            means.extend(('NLC', prefix, features[:, prefix:].mean(1)) for prefix in prefixes)
        for layout, prefix, mean in means:
            if mean.numel() == pooled.numel() and torch.allclose(pooled.flatten(1), mean, atol=1e-5):
                return layout, prefix
    raise UnsupportedHead(_refusal(model, 'its classifier does not see the mean over all positions'))


def _check_tokens(model: TimmModel, num_tokens: int, num_prefix_tokens: int, image_size: tuple[int, int]) -> None:
    """Refuse a mean over tokens that are not all patches, and those alone."""
    if num_prefix_tokens < getattr(model, 'num_prefix_tokens', 0):
        reason = 'its mean takes in class or register tokens, which have no place in the image'
        way_out = 'create it with pool_include_prefix=False (--model-kwargs pool_include_prefix=False)'
        raise UnsupportedHead(_refusal(model, reason, way_out))
    try:
        token_grid(num_tokens - num_prefix_tokens, image_size)
    except ValueError as error:
        raise UnsupportedHead(_refusal(model, str(error).rstrip('.'))) from error


def _probe_classifier(model: TimmModel, head: Head, shape: tuple[int, ...], image_size: tuple[int, int]) -> None:
    """Refuse a head that does more to the pooled vector than its linear layers do."""
    parameter = next(model.parameters())
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(parameter.device, parameter.dtype)
    recorder = _Recorder()
    with evaluating(model), torch.no_grad(), recorder:
        logits = model.forward_head(features)
    allowed = {*_POOLING, *_LINEAR, *(_AVERAGING if len(head.classifiers) > 1 else ())}
    _refuse_operations(model, recorder.operations - allowed)
    if parameter.device.type == 'meta':
        return
    with torch.no_grad():
        positions, _ = head.positions(features, image_size)
        weight, bias = head.linear(model)
        expected = nn.functional.linear(positions.mean(1), weight, bias)
    tolerance = 1e-4 if features.dtype in (torch.float32, torch.float64) else 5e-2
    if logits.shape != expected.shape or (logits - expected).abs().max() > tolerance * expected.abs().max() + 1e-6:
        raise UnsupportedHead(_refusal(model, 'its logits are not its linear layer applied to the mean over positions'))


def _refuse_operations(model: TimmModel, operations: set[str]) -> None:
    if operations:
        found = ', '.join(sorted(operations))
        raise UnsupportedHead(_refusal(model, f'its head has more than a mean in front of its linear layer ({found})'))


def _refusal(model: TimmModel, reason: str, way_out: str | None = None) -> str:
    """One line: the model, what was found, what to do."""
    name = (getattr(model, 'pretrained_cfg', None) or {}).get('architecture') or type(model).__name__
    norm = next((n for n in ('fc_norm', 'use_fc_norm') if n in inspect.signature(type(model)).parameters), None)
    if way_out is None and norm:
        way_out = f"create it with global_pool='avg', {norm}=False (--gp avg --model-kwargs {norm}=False)"
    if way_out is None:
        way_out = 'choose a model with an average pool in front of a linear classifier, such as resnet50'
    return (
        f"no exact class maps for '{name}': {reason}. Way out: {way_out}; without HNC and pictures it trains as it is."
    )
