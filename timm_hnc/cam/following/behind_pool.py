"""What functions behind the pool do to the parts of a tensor."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from timm_hnc.cam.following.mean_of_parts import HiddenParts, Parts, Scores, Stacked, Term
from timm_hnc.cam.following.operations import GATED, LINEAR, NORMS, Call, names, tensors_in
from timm_hnc.cam.following.tracking import Detached, Lost, Tracker
from timm_hnc.cam.grids import Grid, finest
from timm_hnc.cam.heads.detached_functions import affine_norm, attention_weights, detached_gate, detached_norm, gate_of
from timm_hnc.cam.hidden_layers import Scale

_SAME_PARTS = names('flatten reshape view squeeze contiguous clone')
_SAME_SCORES = names('flatten reshape view squeeze contiguous clone to float')


class BehindPool:
    """The rules for parts and scores; `found` notes what non-linear parts the head has."""

    def __init__(self, tracker: Tracker, found: set[str]) -> None:
        self.companion = tracker.companion
        self.found = found

    def follow(self, call: Call) -> Any:
        """The companion of a call's result, none of whose arguments has positions."""
        first = self.companion(call.args[0])
        if isinstance(first, Stacked):
            return _merge(call, first)
        if isinstance(first, HiddenParts) and call.name in _SAME_PARTS and call.out.shape[:2] == call.value.shape[:2]:
            return first.shaped(call.out.shape)
        scores = self._scores(call, first)
        if scores is not None:
            return scores
        if (hidden := self._by_number(call)) is not None:
            return hidden
        if first is not None and call.name in GATED:
            return self._gate(call)
        if first is not None and call.name in NORMS:
            self.found.add('batch norm' if call.name == 'batch_norm' else 'norm')
            parts = self._parts(call.args[0])
            if isinstance(parts, HiddenParts) and (layers := affine_norm(call)):
                return parts.then(*layers)
            return Parts(detached_norm(call, parts.values), parts.grid)
        if first is not None and _is_dense(call):
            return self._dense(call)
        if call.name in LINEAR:
            return self._each_position(call)
        if call.name == 'scaled_dot_product_attention':
            return self._attention(call)
        return self._product(call)

    def _parts(self, tensor: Tensor) -> Parts:
        companion = self.companion(tensor)
        if isinstance(companion, Scores):
            self.found.add('hidden layer')
            return companion.carried_out(tensor.shape)
        return companion

    def _gate(self, call: Call) -> Any:
        if call.name == 'dropout' and call.out is call.value:
            return self.companion(call.args[0])
        if call.name not in ('dropout', 'pow', 'square'):  # powers are parts of norms and of other activations
            self.found.add('gate')
        parts = self._parts(call.args[0])
        if isinstance(parts, HiddenParts):
            return parts.then(Scale(gate_of(call).flatten(1)[:, None]))
        return Parts(detached_gate(call, parts.values), parts.grid)

    def _dense(self, call: Call) -> Any:
        weight, bias = call.layer
        parts = self._parts(call.args[0])
        if call.name == 'conv2d' or call.value.ndim == 2:
            return Scores((Term(parts, weight.flatten(1), bias),))
        return Parts(functional.linear(parts.values, weight, bias), parts.grid)

    def _scores(self, call: Call, first: Any) -> Scores | Stacked | None:
        """Where the result is again a sum of linear layers; None where they must be carried out."""
        if call.name == 'stack':
            each = [self.companion(tensor) for tensor in call.args[0]]
            if all(isinstance(scores, Scores) for scores in each) and call.argument(0, 'dim', 0) == 0:
                return Stacked(tuple(each))
        if call.name in _SAME_SCORES and isinstance(first, Scores):
            return first if call.out.shape[:2] == call.value.shape[:2] and call.out.ndim in (2, 4) else None
        if call.name not in ('add', 'mul', 'div') or len(call.args) != 2 or call.kwargs:
            return None
        left, right = call.args
        second = self.companion(right)
        if call.name == 'add' and isinstance(first, Scores) and isinstance(second, Scores):
            return Scores(first.terms + second.terms)
        if isinstance(first, Scores) and second is None and _is_single(right) and call.name != 'add':
            return first.scaled(right if call.name == 'mul' else 1 / right)
        if first is None and isinstance(second, Scores) and _is_single(left) and call.name == 'mul':
            return second.scaled(left)
        return None

    def _by_number(self, call: Call) -> HiddenParts | None:
        """Hidden parts times or plus a number, such as a learnable one: a layer too, through which rows come back."""
        if call.name not in ('add', 'mul') or len(call.args) != 2 or call.kwargs:
            return None
        parts, other = (self.companion(argument) for argument in call.args)
        number = call.args[1]
        if parts is None:
            parts, other, number = other, parts, call.args[0]
        if not isinstance(parts, HiddenParts) or other is not None or not _is_single(number):
            return None
        if call.out.shape != parts.shape:
            return None
        positions = parts.hidden.positions
        if not isinstance(number, Tensor):
            number = positions.new_tensor(number)
        if call.name == 'mul':
            return parts.then(Scale(number.reshape(1, 1, 1)))
        return parts.then(Scale(positions.new_ones(1, 1, 1), number.reshape(1).expand(parts.shape[1])))

    def _each_position(self, call: Call) -> Any:
        """The call itself at every position."""
        followed = [t for t in tensors_in(call.args, call.kwargs) if self.companion(t) is not None]
        if any(isinstance(self.companion(tensor), Stacked) for tensor in followed):
            return Lost(f'{call.name}() of several classifiers')
        if call.name in ('mean', 'sum') and 0 in (call.dims or {0}):
            return Lost(f'{call.name}() over images')
        parts = [self._parts(tensor) for tensor in followed]
        grid = finest([each.grid for each in parts])

        def at_one(*each: Tensor) -> Any:
            return call.repeated({id(tensor): value for tensor, value in zip(followed, each, strict=True)})

        result = torch.vmap(at_one)(*[each.on(grid) for each in parts])
        if isinstance(result, Tensor):
            return Parts(result, grid)
        return tuple(Parts(each, grid) for each in result)

    def _attention(self, call: Call) -> Any:
        """Over tokens none of which is a position, as where a map has a single one."""
        value = call.args[2]
        if self.companion(value) is None:
            return Detached()
        weights = attention_weights(*call.args, **call.kwargs)
        if isinstance(weights, Lost):
            return weights
        self.found.add('attention')
        parts = self._parts(value)
        return Parts(weights.to(parts.values.dtype) @ parts.values, parts.grid)

    def _product(self, call: Call) -> Any:
        if call.name not in ('mul', 'div', 'matmul'):
            return Lost(f'{call.name}()')
        if call.kwargs.get('rounding_mode'):
            return Lost('division with rounding')
        left, right = (self.companion(argument) for argument in call.args[:2])
        if left is None and call.name == 'div':
            return Detached()  # a divisor is a scale
        if left is None or right is None:
            return self._each_position(call)
        if call.name != 'mul':
            return Lost(f'{call.name}() of two tensors that both depend on the positions')
        self.found.add('gate')
        ours, theirs = (self._parts(argument) for argument in call.args)
        grid: Grid = finest([ours.grid, theirs.grid])
        half = ours.on(grid) * call.args[1].detach() + theirs.on(grid) * call.value.detach()
        return Parts(half / 2, grid)


def _merge(call: Call, stacked: Stacked) -> Scores | Lost:
    """The mean or the sum over several classifiers."""
    if call.name not in ('mean', 'sum') or call.dims != frozenset({0}) or call.kwargs.get('keepdim'):
        return Lost(f'{call.name}() of several classifiers')
    scores = Scores(tuple(term for scores in stacked.scores for term in scores.terms))
    return scores.scaled(1 / len(stacked.scores)) if call.name == 'mean' else scores


def _is_single(factor: Any) -> bool:
    return not isinstance(factor, Tensor) or factor.numel() == 1


def _is_dense(call: Call) -> bool:
    """A linear layer, or a 1x1 convolution of a single cell."""
    if call.name == 'linear':
        return True
    if call.name != 'conv2d' or call.value.shape[2:] != (1, 1):
        return False
    return tuple(call.layer[0].shape[1:]) == tuple(call.value.shape[1:]) and tuple(call.out.shape[2:]) == (1, 1)
