"""White-box attacks on images in [0, 1]: FGSM (section 4.4 of the paper) and PGD, which starts it anew in small steps.

FGSM: Goodfellow et al., ICLR 2015. PGD: Madry et al., ICLR 2018.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.data import resolve_input_data_config
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.nn import functional

from timm_hnc.cam import CamModel
from timm_hnc.cam.heads.model_copies import evaluating
from timm_hnc.cam.number_types import at_least_float32
from timm_hnc.losses import HNCLoss
from timm_hnc.losses.base import wide_indices

AttackedLoss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(B,) losses of a model's images and targets; `mixes_images` of it says that an image's depends on the others."""
ATTACKS = ('fgsm', 'pgd')


class Normalized(nn.Module):
    """A classifier of images in [0, 1]: normalisation, then the model's logits.

    Args:
        model: of normalised images; kept as `model`, and its mode with it.
        mean: a value a channel.
        std: a value a channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Any, std: Any) -> None:
        super().__init__()
        self.model = model
        self.training = model.training
        for name, values in (('mean', mean), ('std', std)):
            self.register_buffer(name, torch.as_tensor(values, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, n) logits of (B, C, H, W) images in [0, 1]."""
        return self.model(self.normalize(images))

    def normalize(self, images: Tensor) -> Tensor:
        """Images in [0, 1] as the model takes them."""
        dtype = next((parameter.dtype for parameter in self.model.parameters()), images.dtype)
        return ((images - self.mean) / self.std).to(dtype)

    def restore(self, inputs: Tensor) -> Tensor:
        """The model's inputs as images in [0, 1]."""
        return (inputs * self.std + self.mean).clamp(0, 1)


def normalized(model: Any, mean: Any = None, std: Any = None) -> Normalized:
    """A timm model as attack libraries want it: plain logits of images in [0, 1], in the model's own mode.

    Args:
        model: a timm model or CamModel, or any classifier that returns logits.
        mean: a value a channel, the model's own if None, ImageNet's of three channels where it does not say.
        std: the same.

    Example:
        >>> classifier = normalized(timm.create_model('resnet18').eval())
        >>> autoattack.AutoAttack(classifier, norm='Linf', eps=8 / 255).run_standard_evaluation(images, labels)
    """
    inner = unwrap_model(model)
    own = inner.data_config if isinstance(inner, CamModel) else resolve_input_data_config(inner)
    mean, std = own['mean'] if mean is None else mean, own['std'] if std is None else std
    return Normalized(model, mean, std).to(next(model.parameters()).device)


@dataclass(frozen=True)
class Attack:
    """What is done to an image.

    Args:
        name: 'fgsm', one step of size eps, or 'pgd'.
        eps: largest change of a value in [0, 1], or in the units that `attack` is told by `scale`.
        steps: of PGD.
        step_size: of PGD; 2.5 * eps / steps if None, as its authors' code takes it.
        random_start: PGD starts anywhere within eps.
        restarts: of PGD; of every image one that is answered wrongly counts, and of equals that of the highest loss.

    Raises:
        ValueError: a number is out of range.
    """

    name: str
    eps: float
    steps: int = 10
    step_size: float | None = None
    random_start: bool = True
    restarts: int = 1

    def __post_init__(self) -> None:
        if self.name not in ATTACKS:
            raise ValueError(f"attack '{self.name}' is unknown: expected {' or '.join(ATTACKS)}.")
        if not 0 <= self.eps < math.inf:
            raise ValueError(f'eps = {self.eps:g}: expected a finite number, 0 or more.')
        if self.steps < 1 or self.restarts < 1:
            raise ValueError(f'{self.steps} steps, {self.restarts} restarts: expected 1 or more.')
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f'step size {self.step_size:g}: expected more than 0.')


def cross_entropy(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """The loss of a classifier's logits, see `sample_losses`."""
    return sample_losses(model(images), target)


def sample_losses(logits: Tensor, target: Tensor) -> Tensor:
    """(B,) cross-entropy of class indices, or its sum over classes on sigmoids for (B, n) label sets.

    Half types are raised to float32, float64 stays.
    """
    logits = at_least_float32(logits)
    if target.ndim == 2:
        target = target.to(logits.dtype)
        return functional.binary_cross_entropy_with_logits(logits, target, reduction='none').sum(1)
    return functional.cross_entropy(logits, wide_indices(target), reduction='none')


def with_hnc(hnc: HNCLoss, weight: float, bce_sum: bool = False) -> AttackedLoss:
    """The paper's training loss (Eq. 7): cross-entropy + weight * HNC, for a `normalized` CamModel.

    Of label sets cross-entropy is the mean over classes, or with `bce_sum` their sum: as the criterion of the training.
    """

    def loss(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        class_maps = model.model.class_maps(model.normalize(images))  # type: ignore[operator,union-attr]
        criterion = sample_losses(class_maps.logits, target)
        if target.ndim == 2 and not bce_sum:
            criterion = criterion / target.shape[1]
        # HNC is a mean over the batch, so that every image has its own gradient times weight
        return criterion + weight * hnc(class_maps, target)

    loss.mixes_images = True  # type: ignore[attr-defined]
    return loss


def attack(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    attack: Attack,
    loss: AttackedLoss = cross_entropy,
    scale: Tensor | float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Images changed by at most eps so that the loss rises.

    Args:
        model: classifier of images in [0, 1], see `normalized`; attacked in evaluation mode.
        images: (B, C, H, W) in [0, 1].
        target: (B,) class indices or (B, n) label sets.
        attack: what to do.
        loss: (model, images, target) to (B,) losses of the images.
        scale: of eps and step size, such as the standard deviation of each channel for units of the normalised input.
        generator: draws the random starts.

    Returns:
        (B, C, H, W) images in [0, 1] without a gradient; parameters get none either.

    Raises:
        ValueError: images are not in [0, 1], eps is larger than that, or the loss has no gradient with respect to them.

    Example:
        >>> adversarial = attack(classifier, images, labels, Attack('fgsm', eps=8 / 255))
    """
    if images.numel() and not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(f'images with values from {images.min():g} to {images.max():g}: expected [0, 1].')
    if not isinstance(scale, Tensor) and attack.eps * scale > 1:
        raise ValueError(f'eps = {attack.eps:g}: expected 0 to 1, images have values in [0, 1].')
    reach = attack.eps * torch.as_tensor(scale, device=images.device, dtype=images.dtype)
    with _attacked(model):
        # tensors that were made in inference mode cannot have gradients, their copies can
        images, target = (each.clone() if each.is_inference() else each for each in (images, target))
        if attack.name == 'fgsm':
            return _step(model, images, images, target, loss, reach, reach)
        return _pgd(model, images, target, attack, loss, reach, generator)


def _pgd(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    attack: Attack,
    loss: AttackedLoss,
    reach: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    share = 2.5 / attack.steps if attack.step_size is None else attack.step_size / attack.eps if attack.eps else 0.0
    best, highest = images, torch.full((len(images),), -torch.inf, device=images.device)
    fooled = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    for _ in range(attack.restarts):
        found = images
        if attack.random_start:
            noise = torch.rand(images.shape, generator=generator, device=images.device, dtype=images.dtype)
            found = (images + (2 * noise - 1) * reach).clamp(0, 1)
        for _ in range(attack.steps):
            found = _step(model, found, images, target, loss, reach * share, reach)
        if attack.restarts == 1:
            return found
        with torch.no_grad():
            value, wrong = _one_by_one(model, found, target, loss), _misclassified(model, found, target)
        better = torch.where(wrong == fooled, value > highest, wrong)
        best = torch.where(better[:, None, None, None], found, best)
        highest, fooled = torch.where(better, value, highest), wrong | fooled
    return best


def _misclassified(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """(B,) whether the highest logit is another class's; False of label sets, of which some may be right."""
    if target.ndim == 2:
        return torch.zeros(len(target), dtype=torch.bool, device=images.device)
    return model(images).argmax(1) != target


def _one_by_one(model: nn.Module, images: Tensor, target: Tensor, loss: AttackedLoss) -> Tensor:
    """(B,) losses of images, none of them with a share of the others' HNC."""
    if not getattr(loss, 'mixes_images', False):
        return loss(model, images, target)
    return torch.cat([loss(model, *each) for each in zip(images.split(1), target.split(1), strict=True)])


def _step(
    model: nn.Module,
    found: Tensor,
    images: Tensor,
    target: Tensor,
    loss: AttackedLoss,
    size: Tensor,
    reach: Tensor,
) -> Tensor:
    """One step up the sign of the gradient, back to within reach of the images and to [0, 1]."""
    found = found.detach().requires_grad_()
    value = loss(model, found, target).sum()
    if not value.requires_grad:
        raise ValueError('the loss has no gradient with respect to the images: there is nothing to attack along.')
    (gradient,) = torch.autograd.grad(value, found)
    moved = found.detach() + size * gradient.sign()
    return torch.minimum(torch.maximum(moved, images - reach), images + reach).clamp(0, 1)


@contextmanager
def _attacked(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and gradients for images alone; afterwards all is as it was."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with evaluating(model), torch.inference_mode(False), torch.enable_grad():
            for parameter, _ in flags:
                parameter.requires_grad_(False)
            yield
    finally:
        for parameter, wanted in flags:
            parameter.requires_grad_(wanted)
