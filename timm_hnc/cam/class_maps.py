"""The factors of "a logit is the mean over positions of a class's scores"."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from timm_hnc.cam.classes import Classes, class_indices
from timm_hnc.cam.negatives import topk_negatives, topk_positives
from timm_hnc.cam.selected import selected_scores
from timm_hnc.cam.transforms import in_transform


@dataclass(eq=False)
class ClassMaps:
    """Class activation maps of a batch (Eq. 1 of the paper), kept as factors: only maps that are asked for are made.

    For every class o, ``logits[:, o] == maps[:, o].mean((-2, -1))``: the map explains the logit exactly, bias included.

    Args:
        positions: (B, L, D) vectors in front of the last linear layer, one a position, L = h * w.
        weight: (n, D) of the last linear layer, n classes.
        bias: (n,) or None.
        grid: (h, w).
        logits: (B, n), the model's own output with its own gradient; computed from the factors if None. Where neither
            they nor the positions have a gradient, the maps have none.

    Raises:
        ValueError: the shapes do not fit together.

    Example:
        >>> maps = ClassMaps(torch.randn(2, 12, 8), torch.randn(5, 8), None, (3, 4))
        >>> maps.maps(None).shape, maps.logits.shape
        (torch.Size([2, 5, 3, 4]), torch.Size([2, 5]))
    """

    positions: Tensor
    weight: Tensor
    bias: Tensor | None
    grid: tuple[int, int]
    logits: Tensor = None  # type: ignore[assignment]  # always a tensor once constructed

    trainable = True  # gradients flow through the maps
    _made_with: tuple[int, ...] = field(default=(), init=False, repr=False)  # versions of the weights

    def __post_init__(self) -> None:
        positions, weight, (height, width) = self.positions.shape, self.weight.shape, self.grid
        if len(positions) != 3 or positions[1] != height * width:
            raise ValueError(
                f'positions of shape {tuple(positions)}: expected (batch, {height * width}, features) '
                f'for a grid of {height} x {width}.'
            )
        if len(weight) != 2 or weight[1] != positions[2]:
            raise ValueError(f'weight of shape {tuple(weight)}: expected (classes, {positions[2]}), as positions have.')
        if self.bias is not None and tuple(self.bias.shape) != (weight[0],):
            raise ValueError(f'bias of shape {tuple(self.bias.shape)}: expected ({weight[0]},), a value a class.')
        if self.logits is not None and self.logits.shape[1:] != (weight[0],):
            raise ValueError(f'logits of shape {tuple(self.logits.shape)}: expected (batch, {weight[0]}).')
        self._made_with = self._versions()
        if self.logits is None:
            self.logits = torch.nn.functional.linear(self.mean(self.positions.transpose(1, 2)), self.weight, self.bias)

    @property
    def num_classes(self) -> int:
        """Number of classes n."""
        return self.weight.shape[0]

    @property
    def num_positions(self) -> int | Tensor:
        """Positions of an image, h * w; (B, 1) numbers where images differ."""
        return self.grid[0] * self.grid[1]

    def maps(self, classes: Classes | None = None) -> Tensor:
        """Class activation maps of the classes asked for.

        Args:
            classes: (B, k) class indices; a list of k of them, or a number, for the same classes of every image; or
                None for all n classes.

        Returns:
            (B, k, h, w) maps, (B, n, h, w) for None, in the type of the positions (under autocast, in autocast's).

        Raises:
            IndexError: a class is not among the n (of a tensor checked where that costs no synchronisation with a GPU).
            TypeError: the classes are no tensor, no list of numbers and no number.
            ValueError: a tensor is no (B, k) integers, or the classifier was trained since these maps were made.
        """
        return self.scores(classes).unflatten(-1, self.grid)

    def check_gradient(self) -> None:
        """Refuse a loss on maps that are for pictures and evaluation.

        Raises:
            ValueError: a gradient is wanted of maps that have none.
        """
        if not self.trainable and torch.is_grad_enabled() and self.logits.requires_grad:
            raise ValueError(
                'these class maps are for pictures and evaluation, no gradient flows through them (CamModel.kind).'
            )

    def scores(self, classes: Classes | None = None) -> Tensor:
        """The maps of `maps` with their positions in a row, (B, k, L)."""
        if torch.compiler.is_compiling():
            return self._scores(classes)
        self._check_unchanged()
        with torch.no_grad() if self._has_no_gradient() else nullcontext():
            return self._scores(classes)

    def _check_unchanged(self) -> None:
        """Refuse maps of weights that an optimizer has changed since."""
        if self._made_with and self._made_with != self._versions():
            raise ValueError(
                "the classifier's weights have changed since these class maps were made: ask for maps before "
                'optimizer.step(), or make them anew.'
            )

    def _versions(self) -> tuple[int, ...]:
        """How often the classifier's weights were written into; nothing where that cannot be told."""
        weights = [each for each in self._weights() if each is not None]
        if torch.compiler.is_compiling() or in_transform() or any(each.is_inference() for each in weights):
            return ()
        return tuple(each._version for each in weights)

    def __getstate__(self) -> dict[str, Any]:
        """A copy has weights of its own."""
        return {name: value for name, value in vars(self).items() if name != '_made_with'}

    def _weights(self) -> list[Tensor | None]:
        return [self.weight, self.bias]

    def _features(self) -> Tensor:
        """What the model made of the images, (B, L, ...)."""
        return self.positions

    def _has_no_gradient(self) -> bool:
        """Whether these are the maps of a pass without gradients, though the classifier could have one."""
        return not (self.logits.requires_grad or self._features().requires_grad or in_transform())

    def _scores(self, classes: Classes | None) -> Tensor:
        if classes is not None:
            classes = class_indices(classes, self.positions.shape[0], self.num_classes, self.positions.device)
        if classes is None:
            maps = torch.matmul(self.weight.to(self.positions.dtype), self.positions.transpose(1, 2))
        else:
            maps = selected_scores(self.positions, self.weight, classes, self.logits)
        if self.bias is not None:
            bias = self.bias if classes is None else self.bias[classes]
            maps = maps + bias.to(maps.dtype)[..., None]
        return maps

    def mean(self, values: Tensor) -> Tensor:
        """The mean over positions of (B, ..., L) values."""
        return values.mean(-1)

    def log_softmax(self, scores: Tensor) -> Tensor:
        """Logarithm of the softmax over positions of (B, k, L) scores."""
        return scores.log_softmax(-1)

    def of_each(self, classes: Tensor) -> list[Tensor]:
        """(k, h, w) maps of every image of (B, k) classes, on the image's own grid."""
        return list(self.maps(classes))

    def contrast(self, classes: Classes, others: Classes) -> Tensor:
        """Why these classes and not the others: maps whose means are the differences of the logits.

        Args:
            classes: (B, k), or as `maps` takes them.
            others: the same; k or 1 of either.

        Returns:
            (B, k, h, w) differences of the maps.

        Raises:
            IndexError, TypeError, ValueError: as `maps`; or there are neither as many of both nor one of either.
        """
        ours, theirs = self.maps(classes), self.maps(others)
        k, other = ours.shape[1], theirs.shape[1]
        if k != other and 1 not in (k, other):
            raise ValueError(f'{k} classes and {other} others: expected as many, or one of either.')
        return ours - theirs

    def topk_negatives(self, target: Tensor, k: int, target_floor: float = 0.0) -> tuple[Tensor, Tensor]:
        """The k negative classes with the highest logits: indices and valid, see `timm_hnc.cam.topk_negatives`."""
        return topk_negatives(self.logits, target, k, target_floor)

    def topk_positives(self, target: Tensor, k: int, target_floor: float = 0.0) -> tuple[Tensor, Tensor]:
        """The k present classes with the highest logits: indices and valid, see `timm_hnc.cam.topk_positives`."""
        return topk_positives(self.logits, target, k, target_floor)


def register_as_output(kind: type[ClassMaps], *tensors: str) -> None:
    """Show torch the tensors of class maps that a forward pass returns: DistributedDataParallel looks for them.

    Args:
        kind: the class.
        tensors: names of its attributes that hold them; the others stay as they are.
    """

    def parts(maps: ClassMaps) -> tuple[list[Any], dict[str, Any]]:
        values = maps.__getstate__()  # the tensors may come back as others
        return [values[name] for name in tensors], {name: values[name] for name in values if name not in tensors}

    def together(found: Any, others: Any) -> ClassMaps:
        maps = kind.__new__(kind)
        vars(maps).update(others, **dict(zip(tensors, found, strict=True)))
        return maps

    pytree.register_pytree_node(kind, parts, together)


register_as_output(ClassMaps, 'positions', 'weight', 'bias', 'logits')
