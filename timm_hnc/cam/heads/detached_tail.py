"""Class-token models as they are listed: maps for pictures, by detaching the tail of the network (kinds G and H).

Patch tokens do not enter the logits behind the last attention, so the tail from the last block on is run beside the
real one with all that is not linear detached at its real value. It is affine in the tokens that enter the block:
a class's map is those tokens times the gradient of its logit, plus a constant. One backward pass through the tail a
class.
"""

import threading
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from timm_hnc.cam.class_maps import ClassMaps, register_as_output
from timm_hnc.cam.classes import Classes, class_indices
from timm_hnc.cam.following.layout import Live
from timm_hnc.cam.following.operations import GATED, LINEAR, NORMS, Call, tensors_in
from timm_hnc.cam.following.tracking import Detached, Lost, Tracker, of_its_own
from timm_hnc.cam.grids import finest, resize_positions
from timm_hnc.cam.heads.base import TimmModel
from timm_hnc.cam.heads.detached_functions import attention_weights, detached_gate, detached_norm
from timm_hnc.cam.heads.detached_head import Branch, as_probed
from timm_hnc.cam.heads.hooked_head import whole_pass
from timm_hnc.cam.heads.sparse_products import SparseLinear, SparseMix


class ShadowTracker(Tracker):
    """Runs the detached network beside the real one: a companion is what it has in a tensor's place."""

    def __init__(self) -> None:
        super().__init__()
        self.attended = False  # tokens were mixed
        self.found_maximum = False  # a maximum over tokens was taken

    def start(self, tokens: Tensor) -> Tensor:
        """Follow tokens; returns what gradients are to be taken of."""
        shadow = tokens.detach().clone().requires_grad_()
        self.track(tokens, shadow)
        return shadow

    def follow(self, call: Call) -> Any:
        """See `Tracker.follow`."""
        with torch.enable_grad(), of_its_own():
            return self._shadow(call)

    def _shadow(self, call: Call) -> Any:
        if call.name in ('scaled_dot_product_attention', 'matmul'):
            return self._attention(call) if call.name != 'matmul' else self._matmul(call)
        companions = [self.companion(tensor) for tensor in tensors_in(call.args, call.kwargs)]
        lost = next((companion for companion in companions if isinstance(companion, Lost)), None)
        if lost is not None:
            return lost
        first = self.companion(call.args[0])
        alone = first is not None and all(companion is None for companion in companions[1:])
        if call.name == 'linear' and alone and not call.kwargs:
            return SparseLinear.apply(first, *call.options)
        if call.name in LINEAR:
            return self._repeated(call)
        if call.name in ('mul', 'div'):
            return self._product(call, first)
        if first is None:
            return Lost(f'{call.name}()')
        if call.name in GATED:
            return detached_gate(call, first)
        if call.name in NORMS:
            return detached_norm(call, first)
        if call.name == 'max' and isinstance(call.out, tuple):
            dim = call.argument(0, 'dim')
            self.found_maximum = True
            return first.gather(dim, call.out[1].unsqueeze(dim)).squeeze(dim), None
        return Lost(f'{call.name}()')

    def _repeated(self, call: Call) -> Any:
        tensors = tensors_in(call.args, call.kwargs)
        pairs = [(tensor, self.companion(tensor)) for tensor in tensors]
        return call.repeated({id(tensor): companion for tensor, companion in pairs if companion is not None})

    def _product(self, call: Call, first: Any) -> Any:
        second = self.companion(call.args[1])
        if call.kwargs.get('rounding_mode'):
            return Lost('division with rounding')
        if call.name == 'div' and first is None:
            return Detached()
        if first is None or second is None:
            return self._repeated(call)
        if call.name == 'div':
            return first / call.args[1].detach()
        return (first * call.args[1].detach() + call.value.detach() * second) / 2

    def _matmul(self, call: Call) -> Any:
        left, right = call.args
        companion = self.companion(right)
        if companion is None:
            return self._repeated(call) if isinstance(self.companion(left), Tensor) else self.companion(left)
        if isinstance(companion, Lost):
            return companion
        self.attended = True
        return left.detach() @ companion

    def _attention(self, call: Call) -> Any:
        companion = self.companion(call.args[2])
        if companion is None or isinstance(companion, Lost):
            return companion
        self.attended = True
        weights = attention_weights(*call.args, **call.kwargs)
        return weights if isinstance(weights, Lost) else SparseMix.apply(weights.to(companion.dtype), companion)


@dataclass
class Start:
    """Tokens that enter the tail, the detached network's copy of them, and where their positions lie."""

    shadow: Tensor
    live: Live


class TailMaps(ClassMaps):
    """Class maps that are made class by class, through the detached tail; they take part in no training.

    `positions` are the maps of all classes and `weight` the identity, both made when asked for.

    Args:
        logits: (B, n), the model's own output.
        detached: (B, n) logits of the detached tail, equal in value.
        starts: what gradients are taken of.
    """

    trainable = False

    def __init__(self, logits: Tensor, detached: Tensor, starts: list[Start]) -> None:
        self.logits = logits
        self.bias = None
        self.grid = finest([start.live.grid for start in starts])
        self._detached = detached
        self._starts = starts

    def __repr__(self) -> str:
        return f'TailMaps(classes={self.num_classes}, grid={self.grid})'

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError('these class maps are made by a backward pass, which no copy has: keep maps(classes) of them.')

    @property
    def positions(self) -> Tensor:  # type: ignore[override]
        """(B, L, n) maps of all classes."""
        return self.maps(None).flatten(2).transpose(1, 2)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(n, n) identity."""
        return torch.eye(self.num_classes, dtype=self._detached.dtype, device=self._detached.device)

    @property
    def num_classes(self) -> int:
        """Number of classes n."""
        return self.logits.shape[1]

    def maps(self, classes: Classes | None = None) -> Tensor:
        """(B, k, h, w) maps of the classes asked for, without a gradient; see `ClassMaps.maps`."""
        classes = range(self.num_classes) if classes is None else classes
        classes = class_indices(classes, len(self.logits), self.num_classes, self.logits.device)
        if not classes.shape[1]:
            return self.logits.new_zeros(len(classes), 0, *self.grid)
        return torch.stack([self._map(column) for column in classes.unbind(1)], 1).unflatten(-1, self.grid)

    def scores(self, classes: Classes | None = None) -> Tensor:
        """(B, k, L) maps with their positions in a row; see `ClassMaps.scores`."""
        return self.maps(classes).flatten(2)

    def reached(self) -> list[bool]:
        """Which of the starts the logits depend on."""
        return [gradient is not None for gradient in self._gradients(self._detached)]

    @torch.enable_grad()
    def _gradients(self, scores: Tensor) -> tuple[Tensor | None, ...]:
        shadows = [start.shadow for start in self._starts]
        return torch.autograd.grad(scores.sum(), shadows, retain_graph=True, allow_unused=True)

    @torch.inference_mode(False)
    @torch.enable_grad()
    def _map(self, classes: Tensor) -> Tensor:
        scores = self._detached.gather(1, classes[:, None].clone())  # they may come from inference mode
        gradients = self._gradients(scores)
        constant = scores.detach().to(self.logits.dtype)
        total = constant.new_zeros(len(scores), self.grid[0] * self.grid[1])
        for start, gradient in zip(self._starts, gradients, strict=True):
            if gradient is None:
                continue
            product = start.live.positions(start.shadow.detach().to(total.dtype) * gradient.to(total.dtype))
            shares = product[start.live.prefix :].sum(-1)  # (positions, B)
            constant = constant - shares.sum(0)[:, None]
            shares = shares * start.live.num_positions
            total = total + resize_positions(shares, start.live.grid, self.grid).T
        return total + constant


@dataclass(frozen=True)
class DetachedTail:
    """A network whose logits see positions only through its last attention.

    Args:
        kind: 'G' class tokens, 'H' several branches.
        module: name of the module at whose entry the positions are taken.
        inputs: places of the tensors (B, tokens, C) with positions among those that enter it, and where these lie.
        num_classes: of a model that is none of timm's.
        input_size: (channels, height, width) of the images that such a model was probed with.
    """

    kind: str
    module: str
    inputs: tuple[tuple[int, Branch], ...]
    num_classes: int | None = None
    input_size: tuple[int, int, int] | None = None
    trainable = False

    @torch.compiler.disable
    def class_maps(self, model: TimmModel, x: Tensor) -> TailMaps:
        """Logits and maps of images."""
        return as_probed(tail_maps(model, x, self)[0], model)


def tail_maps(model: TimmModel, x: Tensor, tail: DetachedTail) -> tuple[TailMaps | Lost, ShadowTracker]:
    """Run a model with the detached network beside its tail."""
    tracker = ShadowTracker()
    starts: list[Start] = []

    thread = threading.get_ident()

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        # the hook is the model's, this pass is not (and may see the hook while torch still notes that it takes kwargs)
        if threading.get_ident() != thread or kwargs is None:
            return
        tensors = tensors_in(args, kwargs)
        for index, branch in tail.inputs:
            live = branch.live(tensors[index], (x.shape[-2], x.shape[-1]))
            starts.append(Start(tracker.start(tensors[index]), live))

    module = model.get_submodule(tail.module)
    without_gradient = torch.no_grad() if x.is_inference() else nullcontext()  # such tensors take part in none
    at_entry = module.register_forward_pre_hook(enter, with_kwargs=True)
    with torch.inference_mode(False), without_gradient, at_entry, tracker:
        logits = whole_pass(model, x.clone() if x.is_inference() else x)
    detached = tracker.companion(logits)
    tracker.forget()
    if not isinstance(detached, Tensor):
        return detached if isinstance(detached, Lost) else Lost('its logits do not depend on the positions'), tracker
    return TailMaps(logits, detached, starts), tracker


register_as_output(TailMaps, 'logits')
