"""What every criterion in this folder declares, so that tasks and train.py can use it without knowing it."""

import inspect
import math
from dataclasses import replace
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional

from timm_hnc.cam import ClassMaps
from timm_hnc.cam.negatives import holds_indices
from timm_hnc.cam.number_types import at_least_float32, without_autocast

Needs = Literal['logits', 'class_maps', 'two_views']
SINGLE_LABEL, MULTI_LABEL = 'classification', 'multilabel'
# what a constructor gets from the model and the data; its other arguments are the user's
GIVEN = ('num_classes', 'num_features', 'class_counts', 'num_samples', 'multi_label')


class Loss(nn.Module):
    """A criterion: the mean over a batch of what a model's output is worth.

    A subclass declares its needs and writes `forward`:

    - `needs = 'logits'`: forward(logits (B, n), target);
    - `needs = 'class_maps'`: forward(class_maps, target), for losses on features or maps;
    - `needs = 'two_views'`: forward(class_maps, target) with the maps of 2 * B images, the batch and behind it its
      mirror images, and the targets of B.

    The target is (B,) class indices, or (B, n) floats for several labels and where `soft_targets` says so. The result
    is a scalar in float32 or float64, whatever the type of the input.

    Learned parts are parameters of the loss. They train with a rate of their own (`--loss-lr`) and the optimizer's
    settings in `parameter_options`.
    """

    needs: ClassVar[Needs] = 'logits'
    tasks: ClassVar[tuple[str, ...]] = (SINGLE_LABEL,)
    counts_for: ClassVar[tuple[str, ...]] = ()
    """Tasks in which it wants `class_counts` and `num_samples` of the training data."""
    soft_targets: ClassVar[bool] = False
    """It takes the targets of mixup and cutmix, and label smoothing."""
    min_classes: ClassVar[int] = 1
    """Classes that it needs."""
    needs_features: ClassVar[bool] = False
    """It uses `features(class_maps)`: for heads that are a mean over positions and one linear layer."""
    parameter_options: ClassVar[dict[str, float]] = {'weight_decay': 0.0, 'momentum': 0.0}
    steps_of_sgd: ClassVar[bool] = False  # the gradient of its parameters is a rule that plain SGD carries out

    export_note: ClassVar[str] = ''
    """What the exported classifier is, for people who use it, where scores are changed."""

    smoothing: float = 0.0

    def __call__(self, *given: Any, **named: Any) -> Tensor:
        """The loss of a batch, as `forward`; class indices may be integers of any type.

        Raises:
            ValueError: the targets are values, one a class, and the criterion takes indices alone.
        """
        if len(given) > 1:
            given = (given[0], self._taken(given[1]), *given[2:])
        if 'target' in named:
            named['target'] = self._taken(named['target'])
        loss: Tensor = super().__call__(*given, **named)
        return loss

    def _taken(self, target: Tensor) -> Tensor:
        if target.ndim == 2 and not self.soft_targets and MULTI_LABEL not in self.tasks:
            name = type(self).__name__
            raise ValueError(f'targets of shape {tuple(target.shape)}: {name} takes (B,) class indices, no mixup.')
        return wide_indices(target)

    @classmethod
    def options(cls) -> dict[str, Any]:
        """The options that a user sets, with their defaults."""
        parameters = inspect.signature(cls).parameters
        return {name: parameter.default for name, parameter in parameters.items() if name not in GIVEN}

    def extra_repr(self) -> str:
        """The options, for print(task)."""
        return ', '.join(f'{name}={getattr(self, name)}' for name in self.options() if hasattr(self, name))

    def plain_classifier(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The linear layer by which the trained model classifies, where the loss makes scores in another way.

        Args:
            weight: (n, D) of the model's classifier.
            bias: (n,) or None.

        Returns:
            Weight and bias of the same shapes, with their gradient.
        """
        return weight, bias

    @property
    def changes_scores(self) -> bool:
        """Whether `plain_classifier` is another one than the model's."""
        return type(self).plain_classifier is not Loss.plain_classifier

    def as_plain(self, class_maps: ClassMaps) -> ClassMaps:
        """Class maps and logits of the classifier that will be exported; the same where scores are not changed."""
        if not self.changes_scores:
            return class_maps
        weight, bias = self.plain_classifier(class_maps.weight, class_maps.bias)
        return replace(class_maps, weight=weight, bias=bias, logits=None)  # type: ignore[arg-type]  # made anew


def wide_indices(target: Tensor) -> Tensor:
    """Class indices in int64, as torch's losses want them; other targets as they are."""
    return target.long() if holds_indices(target) else target


def features(class_maps: ClassMaps) -> Tensor:
    """(B, D) vectors that enter the classifier, in float32 or float64."""
    return at_least_float32(class_maps.mean(class_maps.positions.transpose(1, 2)))


def soft(target: Tensor, like: Tensor, smoothing: float = 0.0) -> Tensor:
    """Targets as (B, n) probabilities.

    Args:
        target: (B,) class indices, smoothed here; or (B, n) probabilities, smoothed already.
        like: (B, n) logits, whose type the targets get.
        smoothing: probability that is spread over all classes.
    """
    if target.ndim == 2:
        return target.to(like.dtype)
    one_hot = functional.one_hot(target, like.shape[1]).to(like.dtype)
    return one_hot * (1 - smoothing) + smoothing / like.shape[1]


def linear_in_full(vectors: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`functional.linear` that autocast leaves in the type of its inputs."""
    with without_autocast(vectors):
        return functional.linear(vectors, weight, bias)


def unused_bias(class_maps: ClassMaps) -> Tensor | float:
    """Zero, with the classifier's bias in its graph: processes wait for the gradient of every parameter."""
    return 0.0 if class_maps.bias is None else 0.0 * at_least_float32(class_maps.bias).sum()


def at_least(low: float, /, **option: float) -> float:
    """The number itself.

    Raises:
        ValueError: it is below that, or not finite.
    """
    [(name, value)] = option.items()
    if not (math.isfinite(value) and value >= low):
        raise ValueError(f'{name} = {value}: expected a finite number of {low:g} or more.')
    return value


def mean_over_images(values: Tensor, valid: Tensor, reduction: str = 'mean') -> Tensor:
    """The mean over a batch of the mean, or the sum, of an image's valid values; an image without any adds 0.

    Args:
        values: (B, k).
        valid: (B, k) bool.
        reduction: of an image's values, 'mean' or 'sum'.
    """
    of_images = values.masked_fill(~valid, 0.0).sum(1)
    return (of_images / valid.sum(1).clamp(min=1) if reduction == 'mean' else of_images).mean()
