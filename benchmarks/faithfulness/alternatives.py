"""Other exact maps: what if less were detached, if the tail began earlier, or another score were explained?

All have one form. A network is run from where its positions are taken, with some of its functions detached at their
values; a position's share of a score is its vector times the score's gradient there, and what the shares do not add
up to is spread evenly, so that the mean of a map is the score. Ours is the case in which everything is detached.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from faithfulness.layers import layers
from timm_hnc.cam import CamModel
from timm_hnc.cam.following.operations import GATED, NORMS, Call, plain_name
from timm_hnc.cam.heads.detached_functions import detached_gate, detached_norm

ALL = frozenset({'norm', 'gate', 'attention'})


class Detaching(TorchFunctionMode):
    """Cuts gradients off from norms' scales, activations' gates and attention weights; values stay as they are.

    Args:
        detached: of 'norm', 'gate' and 'attention'.
    """

    def __init__(self, detached: frozenset[str]) -> None:
        super().__init__()
        self.detached = detached

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function, detached or as it is."""
        kwargs = kwargs or {}
        name = plain_name(func)
        if name == 'scaled_dot_product_attention' and 'attention' in self.detached:
            query, key, value, *others = args
            return func(query.detach(), key.detach(), value, *others, **kwargs)
        out = func(*args, **kwargs)
        if name == 'softmax' and 'attention' in self.detached:
            return out.detach()
        call = Call(name, func, args, kwargs, args[0] if args else None, out)
        if name in NORMS and 'norm' in self.detached:
            return detached_norm(call, args[0])
        if name in GATED and name not in ('dropout', 'pow', 'square') and 'gate' in self.detached:
            return detached_gate(call, args[0])
        return out


@dataclass(frozen=True)
class Alternative:
    """Maps of one choice.

    Args:
        detached: of 'norm', 'gate' and 'attention'.
        start: where the positions are taken, as a share of the network's blocks; None where ours are taken.
        contrast: the score is the logit minus the mean logit that the probabilities weight, not the logit.
    """

    detached: frozenset[str] = ALL
    start: float | None = None
    contrast: bool = False

    def __call__(self, cam_model: CamModel, images: Tensor, classes: Tensor) -> Tensor:
        """Maps (B, k, h, w); of a network without transformer blocks from where ours are taken."""
        with Detaching(self.detached):
            found = layers(cam_model, images, self._module(cam_model))
        logits = found.logits
        if self.contrast:
            logits = logits - (logits.detach().softmax(1) * logits).sum(1, keepdim=True)
        values = found.positions([value.detach() for value in found.values])
        maps = []
        for column in classes.unbind(1):
            scores = logits.gather(1, column[:, None])
            total = torch.zeros(len(images), *found.grid, device=images.device, dtype=logits.dtype)
            for branch, (value, gradient) in enumerate(zip(values, found.gradients(scores), strict=True)):
                total = total + found.on_grid((value * gradient).sum(-1) * len(value), branch)
            maps.append(total + (scores.detach()[..., None] - total.mean((1, 2), keepdim=True)))
        return torch.stack(maps, 1)

    def _module(self, cam_model: CamModel) -> str:
        blocks = getattr(cam_model.model, 'blocks', None)
        if self.start is None or not isinstance(blocks, torch.nn.Sequential) or cam_model.kind.name == 'H':
            return ''
        return f'blocks.{int(self.start * len(blocks))}'


ALTERNATIVES: dict[str, Alternative] = {
    'linear': Alternative(frozenset()),
    'norm': Alternative(frozenset({'norm'})),
    'attention': Alternative(frozenset({'attention'})),
    'norm+attention': Alternative(frozenset({'norm', 'attention'})),
    'all': Alternative(),
    'contrast': Alternative(contrast=True),
    'linear-contrast': Alternative(frozenset(), contrast=True),
    'half': Alternative(start=0.5),
    'first': Alternative(start=0.0),
    'half-linear': Alternative(frozenset(), start=0.5),
    'first-linear': Alternative(frozenset(), start=0.0),
    'first-contrast': Alternative(start=0.0, contrast=True),
}
