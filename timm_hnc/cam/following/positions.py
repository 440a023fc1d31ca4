"""Following a head's features from their positions to the logits, so that every logit is a mean over positions."""

from typing import Any

import torch
from torch import Tensor

from timm_hnc.cam.class_maps import ClassMaps
from timm_hnc.cam.following.before_pool import BeforePool
from timm_hnc.cam.following.behind_pool import BehindPool
from timm_hnc.cam.following.layout import Live
from timm_hnc.cam.following.mean_of_parts import Parts, Scores, Term, side_by_side
from timm_hnc.cam.following.operations import Call, tensors_in
from timm_hnc.cam.following.tracking import Lost, Tracker, of_its_own
from timm_hnc.cam.transforms import order_gradient

# what a detached function behind the pool is a part of
_DETACHED_PARTS = {
    **dict.fromkeys(('var', 'std', 'norm', 'vector_norm', 'rsqrt', 'sqrt'), ('norm',)),
    **dict.fromkeys(('sigmoid', 'hardsigmoid', 'softmax'), ('gate',)),
}


class PositionTracker(Tracker):
    """Follows features through a head: with their positions up to the pool, as parts behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()  # what lies between features and logits, see detached_head.KINDS
        self._before = BeforePool(self, self.found)
        self._behind = BehindPool(self, self.found)

    def __enter__(self) -> 'PositionTracker':
        self._grad_enabled = torch.is_grad_enabled()
        return super().__enter__()

    def start(self, features: Tensor, live: Live | None) -> None:
        """Follow features whose positions lie there; None for features without a place in the image."""
        order_gradient(features)
        if live is None or (live.num_positions == 1 and not live.prefix):
            self.track(features, Parts(features[None], (1, 1)))
        else:
            self.track(features, live)

    def follow(self, call: Call) -> Any:
        """See `Tracker.follow`."""
        if torch.is_grad_enabled() != self._grad_enabled:
            return Lost('a torch.autograd.Function, a full backward hook or no_grad() in the head')
        companions = [self.companion(tensor) for tensor in tensors_in(call.args, call.kwargs)]
        lost = next((companion for companion in companions if isinstance(companion, Lost)), None)
        with of_its_own():
            if any(isinstance(companion, Live) for companion in companions):
                return self._before.follow(call)
            return lost or self._behind.follow(call)

    def needs_value(self, tensor: Tensor) -> bool:
        """See `Tracker.needs_value`: with positions alone, only the shape matters."""
        companion = self.companion(tensor)
        return not isinstance(companion, Live) or companion.prefix > 0

    def detach(self, call: Call) -> None:
        """See `Tracker.detach`."""
        if isinstance(self.companion(call.args[0]), (Parts, Scores)):
            self.found.update(_DETACHED_PARTS.get(call.name, ()))

    def class_maps(self, logits: Any) -> ClassMaps | Lost:
        """What the logits are made of, or why they are not means over positions; nothing is followed any more."""
        scores = self.companion(logits)
        self.forget()
        if not isinstance(logits, Tensor):
            return Lost('it returns no (batch, classes) logits')
        if isinstance(scores, Parts) and logits.ndim == 2:  # the mean of scores, behind no linear layer
            same = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
            scores = Scores((Term(scores, same, None),))
        if isinstance(scores, Scores):
            return side_by_side(scores, logits)
        return scores if isinstance(scores, Lost) else Lost('its logits are no linear layer of a mean over positions')
