"""Figures of a model on attacked images, beside those on clean ones (section 4.4 and Table 5 of the paper)."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from timm_hnc.attacks.attacks import Attack, AttackedLoss, Normalized, attack, cross_entropy
from timm_hnc.cam.heads.model_copies import evaluating
from timm_hnc.evaluation.evaluate import evaluate
from timm_hnc.losses.base import raised

_logger = logging.getLogger(__name__)
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Threat:
    """What an attacker does and knows.

    Args:
        attacks: to be tried, each by itself.
        loss: that is attacked.
        normalized_units: eps counts in units of the normalised input instead of pixels in [0, 1].
        seed: of random starts.
    """

    attacks: list[Attack]
    loss: AttackedLoss = cross_entropy
    normalized_units: bool = False
    seed: int = 0


def robust_figures(
    classifier: Normalized,
    inputs: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    evaluator: Callable[[], Any],
    threat: Threat,
    autocast: Callable[[], AbstractContextManager],
    clean: dict[str, float],
    distributed: bool = False,
) -> dict[str, float]:
    """Figures of a model under attack.

    Args:
        classifier: the model with its normalisation.
        inputs: a fresh pass over (normalised images, target) batches.
        evaluator: a fresh one of timm's evaluators.
        threat: what is done to the images.
        autocast: makes the mixed-precision context.
        clean: the evaluator's figures on clean images.
        distributed: sum over processes.

    Returns:
        Figures by name, such as 'fgsm_0.05_top1'.

    Raises:
        ValueError: the loss has no gradient with respect to the images.
    """
    _warn_of_chance(classifier, inputs(), autocast)
    figures: dict[str, float] = {}
    for each in threat.attacks:
        attacked = _Attacked(classifier, each, threat, autocast)
        metrics = evaluate(classifier.model, attacked.batches(inputs()), evaluator(), autocast, distributed)
        name = f'{each.name}_{each.eps:g}'
        if attacked.without_gradient:
            _logger.warning(
                f'{name}: no gradient at {attacked.without_gradient} of {attacked.seen} images, the attack left them '
                'as they are; a stronger attack may find more.'
            )
        if each.eps == 0 and any(abs(metrics[key] - clean[key]) > _ROUNDING for key in clean if key != 'loss'):
            _logger.warning(f'{name}: the figures differ from those of clean images, to which nothing was done.')
        figures |= {f'{name}_{key}': value for key, value in metrics.items()}
    return figures


class _Attacked:
    """Batches of attacked images, and what was seen of them."""

    def __init__(
        self,
        classifier: Normalized,
        attack: Attack,
        threat: Threat,
        autocast: Callable[[], AbstractContextManager],
    ) -> None:
        self.classifier, self.attack, self.threat, self.autocast = classifier, attack, threat, autocast
        self.seen = self.without_gradient = 0

    def batches(self, inputs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """(normalised attacked images, target)."""
        scale: Tensor | float = self.classifier.std if self.threat.normalized_units else 1.0
        generator = None
        for input, target in inputs:
            if generator is None:
                generator = torch.Generator(input.device).manual_seed(self.threat.seed)
            with torch.inference_mode(False):
                # tensors that were made in inference mode cannot have gradients, their copies can
                target, images = target.clone(), self.classifier.restore(raised(input.clone()))
                found = attack(self.classifier, images, target, self.attack, self._loss, scale, generator)
                self._look(images, found, scale)
                yield self.classifier.normalize(found).to(input.dtype), target

    def _loss(self, model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        with self.autocast():
            return self.threat.loss(model, images, target)

    def _look(self, images: Tensor, found: Tensor, scale: Tensor | float) -> None:
        change = (found - images).abs()
        if (change > self.attack.eps * scale + _ROUNDING).any():
            raise RuntimeError(f'an attacked image differs by {change.max():g}, more than eps = {self.attack.eps:g}.')
        self.seen += len(images)
        if self.attack.eps:
            self.without_gradient += int((change.flatten(1).amax(1) == 0).sum())


@torch.inference_mode()
def _warn_of_chance(
    classifier: Normalized, inputs: Iterable[tuple[Tensor, Tensor]], autocast: Callable[[], AbstractContextManager]
) -> None:
    input, _ = next(iter(inputs))
    with evaluating(classifier), autocast():
        first = classifier.model(input).clone()  # a CUDA graph writes the next output into the same memory
        second = classifier.model(input)
    if not torch.equal(first, second):
        _logger.warning('The model answers the same images differently: one gradient says little about it.')
