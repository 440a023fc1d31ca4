"""Heads of timm models: how logits are made of features, and class maps of both.

A head is accepted by what it does, not by its name: its operations are recorded and its values compared with the mean
over positions. So a new architecture works unseen, or is refused, and never yields maps that explain nothing.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from timm_hnc.cam.class_maps import ClassMaps
from timm_hnc.cam.grids import Cell, Grid, token_grid
from timm_hnc.cam.heads.detached_functions import DetachedDropout
from timm_hnc.cam.heads.refusal import changed_since_probe
from timm_hnc.cam.own_hooks import same_values, watched
from timm_hnc.cam.transforms import in_transform, order_gradient

Layout = Literal['NCHW', 'NHWC', 'NLC']
MAX_PREFIX_TOKENS = 16
TimmModel = Any  # an nn.Module with forward_features, forward_head, get_classifier; timm has no common type for it

DESCRIPTIONS = {
    'A1': 'average pool -> linear layer (NCHW)',
    'A2': 'average pool -> 1x1 convolution',
    'A3': 'average pool -> linear layer (NHWC)',
    'A4': 'mean of tokens -> linear layer',
    'A5': 'mean of patch tokens behind prefix tokens -> linear layer',
    'A6': 'average pool -> several linear layers, averaged',
    'A': 'mean over positions -> linear layer',
    'B': 'average pool -> batch norm -> linear layer',
    'C': 'average pool -> layer norm or the like -> linear layer',
    'D': 'average pool -> hidden layer and activation -> linear layer',
    'E': 'convolution in front of the pool',
    'F': 'attention pool',
    'G': 'class tokens, which see positions only through attention',
    'H': 'several branches',
}


def classifier_names(model: TimmModel) -> tuple[str, ...]:
    """Names of the linear layers that make the logits, as timm's config has them; none where it does not say."""
    names = (getattr(model, 'pretrained_cfg', None) or {}).get('classifier') or ()
    return (names,) if isinstance(names, str) else tuple(names)


@dataclass(frozen=True)
class Kind:
    """What kind of class maps a model has.

    Args:
        name: 'A1' to 'A6', or 'B' to 'H'.
        exact: the mean of a map is the logit.
        trainable: gradients flow through the maps; if not, they are for pictures and evaluation.
    """

    name: str
    exact: bool
    trainable: bool

    def __str__(self) -> str:
        words = 'exact' if self.exact else 'not exact', 'trainable' if self.trainable else 'for pictures only'
        return f'{self.name} ({DESCRIPTIONS[self.name]}; {", ".join(words)})'


@dataclass(frozen=True)
class Head:
    """An average pool in front of one linear layer, or of several whose outputs are averaged (kinds A1 to A6).

    Args:
        layout: of the features that enter the pool.
        num_prefix_tokens: tokens in front of the patch tokens, left out of the mean ('NLC' only).
        classifiers: names of the linear layers in the model.
        convolutional: the linear layers are 1x1 convolutions.
        cell: (height, width) of a cell in pixels ('NLC' only).
        pools: what `pools_of` said of the model.
        forward: what the linear layers do, as `forward_of` has it.
        forward_head: likewise of the model.
        modules: names of the other modules that its forward_head() calls, and what they do.
    """

    layout: Layout
    num_prefix_tokens: int
    classifiers: tuple[str, ...]
    convolutional: bool
    cell: Cell | None = None
    pools: tuple[str, str] = ('', '')
    forward: Any = None
    forward_head: Any = None
    modules: tuple[tuple[str, Any], ...] = ()
    trainable = True

    @property
    def kind(self) -> str:
        """A1 NCHW, A2 NCHW with a convolution, A3 NHWC, A4 tokens, A5 tokens behind a prefix, A6 averaged layers."""
        if len(self.classifiers) > 1:
            return 'A6'
        if self.layout == 'NCHW':
            return 'A2' if self.convolutional else 'A1'
        if self.layout == 'NHWC':
            return 'A3'
        return 'A5' if self.num_prefix_tokens else 'A4'

    def class_maps(self, model: TimmModel, x: Tensor) -> ClassMaps:
        """Logits and maps of images, in one forward pass."""
        features = model.forward_features(x)
        order_gradient(features)
        factors: list[Tensor] = []
        hooked: list[tuple[Tensor, Tensor]] = []
        with DetachedDropout(factors), watched(self._layers(model), hooked):
            logits = model.forward_head(features)
        self._check_as_probed(model, logits)
        if not all(same_values(given, found) for given, found in hooked):
            raise changed_since_probe(model, 'a hook changes what enters or leaves a module of its head')
        positions, grid = self.positions(features, (x.shape[-2], x.shape[-1]))
        for factor in factors:
            positions = positions * factor.flatten(1)[:, None]
        weight, bias = self.linear(model)
        if not torch.compiler.is_compiling():
            self._check_exchanged(model, logits, (positions, weight, bias, grid))
        return ClassMaps(positions, weight, bias, grid, logits)

    def _layers(self, model: TimmModel) -> list[nn.Module]:
        """The modules that its forward_head() calls; none while compiling, where no hooks are looked at."""
        if torch.compiler.is_compiling():
            return []
        names = (*self.classifiers, *(name for name, _ in self.modules))
        return [layer for layer in (_module_at(model, name) for name in names) if layer is not None]

    def _check_as_probed(self, model: TimmModel, logits: Any) -> None:
        for before, now in zip(self.pools, pools_of(model), strict=True):
            if before and now and before != now:
                raise changed_since_probe(model, f'its pool is {now} now')
        if not isinstance(logits, Tensor):
            raise changed_since_probe(model, f'its forward_head() returns a {type(logits).__name__}')
        if logits.ndim != 2:
            raise changed_since_probe(model, f'its logits have the shape {tuple(logits.shape)}')

    @torch.no_grad()
    def _check_exchanged(self, model: TimmModel, logits: Tensor, factors: tuple[Any, ...]) -> None:
        """Refuse a head in which something was exchanged, unless it does the same."""
        layers = ((name, _module_at(model, name), before) for name, before in self.modules)
        exchanged = [name for name, layer, before in layers if layer is None or forward_of(layer) is not before]
        inner: Any = getattr(model, 'noted_model', model)  # to note what it makes exchanges nothing
        if forward_of(inner, 'forward_head') is not self.forward_head:
            exchanged.append('forward_head()')
        if not exchanged or logits.is_meta or in_transform():
            return
        if logits.isfinite().all() and not agree(logits, ClassMaps(*factors).logits):
            raise changed_since_probe(model, f'its {exchanged[0]} was exchanged: wrap the model anew')

    def positions(self, features: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, Grid]:
        """Features as (B, L, D) positions in raster order, and their (h, w) grid, without copying."""
        if self.layout == 'NCHW':
            return features.flatten(2).transpose(1, 2), (features.shape[2], features.shape[3])
        if self.layout == 'NHWC':
            return features.flatten(1, 2), (features.shape[1], features.shape[2])
        tokens = features[:, self.num_prefix_tokens :]
        return tokens, token_grid(tokens.shape[1], image_size, self.cell)

    def linear(self, model: TimmModel) -> tuple[Tensor, Tensor | None]:
        """The last linear layer as (n, D) weight and (n,) bias or None; averaged where there are several.

        Raises:
            ValueError: it is no such layer any more.
        """
        layers = [model.get_submodule(name) for name in self.classifiers]
        if not all(isinstance(layer, nn.Conv2d if self.convolutional else nn.Linear) for layer in layers):
            raise changed_since_probe(
                model, f'its classifier is of the type {_full_name(layers[0])} now: wrap the model anew'
            )
        if any(map(is_parametrized, layers)):  # whose weight is another one whenever it is read, as of spectral_norm()
            raise changed_since_probe(model, 'its classifier has a parametrization now: wrap the model anew')
        if not torch.compiler.is_compiling() and any(forward_of(layer) is not self.forward for layer in layers):
            raise changed_since_probe(
                model, f'its classifier, a {type(layers[0]).__name__}, has another forward() now: wrap the model anew'
            )
        if len(layers) == 1:
            return layers[0].weight.flatten(1), layers[0].bias
        weight = sum(layer.weight for layer in layers) / len(layers)
        bias = sum(layer.bias for layer in layers) / len(layers) if layers[0].bias is not None else None
        return weight.flatten(1), bias


def pools_of(model: TimmModel) -> tuple[str, str]:
    """What timm says of the pools of a model and of its head: 'avg', 'max', 'token' ..., '' where it says nothing."""
    return _pool_of(model), _pool_of(getattr(model, 'head', None))


def _pool_of(owner: Any) -> str:
    pool = getattr(owner, 'global_pool', None)
    told = pool if isinstance(pool, str) else getattr(pool, 'pool_type', None)
    return told.removeprefix('fast') if isinstance(told, str) else ''


def _full_name(module: nn.Module) -> str:
    """The type's name, with its module's path unless it is torch's own: other libraries have a Linear of theirs."""
    kind = type(module)
    return kind.__name__ if kind.__module__.startswith('torch.nn.modules.') else f'{kind.__module__}.{kind.__name__}'


def _module_at(model: TimmModel, name: str) -> nn.Module | None:
    """A module of the model; None where there is none of this name."""
    try:
        found: nn.Module = model.get_submodule(name)
    except AttributeError:
        return None
    return found


def forward_of(module: nn.Module, name: str = 'forward') -> Any:
    """What a module does: the forward() of its class, or the one that was put in its place; or another method."""
    forward: Any = vars(module).get(name, getattr(type(module), name, None))
    return forward.__func__ if getattr(forward, '__self__', None) is module else forward


def agree(logits: Tensor, expected: Tensor) -> bool:
    """Whether two ways to the logits lead to the same, within the type's rounding."""
    tolerance = 1e-4 if logits.dtype in (torch.float32, torch.float64) else 5e-2
    if logits.shape != expected.shape:
        return False
    return bool((logits - expected).abs().max() <= tolerance * expected.abs().max() + 1e-6)
