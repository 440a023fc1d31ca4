"""Figures of a model on attacked images, beside those on clean ones (section 4.4 and Table 5 of the paper)."""

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from timm.models import parse_model_name
from torch import Tensor, nn

from timm_hnc.attacks.attacks import Attack, AttackedLoss, Normalized, attack, cross_entropy, with_hnc
from timm_hnc.cam.heads.model_copies import evaluating, full_copy
from timm_hnc.cam.number_types import at_least_float32
from timm_hnc.errors import DataError, UsageError
from timm_hnc.evaluation.evaluate import Autocast, evaluate
from timm_hnc.evaluation.sources import Source
from timm_hnc.losses import HNCLoss
from timm_hnc.options import check_range, refuse_alone

_logger = logging.getLogger(__name__)
_ROUNDING = 1e-6
_OUTSIDE = 0.01  # of [0, 1]: more than bfloat16 rounds images by

DEFAULT_EPS = 8 / 255
_OF_ALL = ('attack_eps', 'attack_space', 'attack_loss')
_OF_PGD = ('attack_steps', 'attack_step_size', 'attack_restarts', 'attack_no_random_start')
_USED_BY = {'fgsm': _OF_ALL, 'pgd': _OF_ALL + _OF_PGD}


@dataclass(frozen=True)
class AttackOptions:
    """Attacks: which, how strong, along which loss.

    Args:
        attack: attack the images: accuracy beside that of clean ones.
        attack_eps: largest changes of a value in [0, 1], such as 0.05 8/255 (default: 8/255).
        attack_space: units of eps: of images in [0, 1], or of the normalised input.
        attack_loss: loss attacked: ce, or with the HNC of the run.
        attack_steps: pgd: steps.
        attack_step_size: pgd: size of a step; 2.5 * eps / steps if left out.
        attack_restarts: pgd: random starts; a wrong answer counts, or else the highest loss.
        attack_no_random_start: pgd: start at the image.
    """

    attack: Sequence[str] = ()
    attack_eps: Sequence[float] = (DEFAULT_EPS,)
    attack_space: Literal['pixel', 'normalized'] = 'pixel'
    attack_loss: Literal['ce', 'train'] = 'ce'
    attack_steps: int = 10
    attack_step_size: float | None = None
    attack_restarts: int = 1
    attack_no_random_start: bool = False

    def __post_init__(self) -> None:
        check_range(self, 'attack_steps', 'attack_restarts', low=1)
        check_range(self, 'attack_step_size', above=0)
        check_range(self, 'attack_eps', low=0, high=1 if self.attack_space == 'pixel' else math.inf)
        self.attacks()
        used = {'attack', *(name for each in self.attack for name in _USED_BY[each])}
        unused = [each.name for each in fields(self) if each.name not in used]
        refuse_alone(self, '--attack pgd' if self.attack else '--attack fgsm or --attack pgd', unused)

    def described(self) -> dict[str, Any]:
        """What the figures of the attacks depend on, beside their eps."""
        names = ['attack_space', 'attack_loss', *(_OF_PGD if 'pgd' in self.attack else ())]
        return {name: getattr(self, name) for name in names}

    def attacks(self) -> list[Attack]:
        """Each attack at each eps."""
        settings = (self.attack_steps, self.attack_step_size, not self.attack_no_random_start, self.attack_restarts)
        try:
            return [
                Attack(name, eps, *settings)
                for name in dict.fromkeys(self.attack)
                for eps in dict.fromkeys(self.attack_eps)
            ]
        except ValueError as error:
            raise UsageError(f'--attack: {error}') from error


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


def threat_of(options: AttackOptions, source: Source, seed: int) -> Threat:
    """What the options do to the images.

    Raises:
        DataError: --attack-loss train, and the model does not say how it was trained.
    """
    loss: AttackedLoss = cross_entropy
    if options.attack_loss == 'train':
        hnc = _hnc_of(source)
        if hnc:
            form = HNCLoss(hnc['variant'], hnc['topk'], hnc.get('alpha') or 0.0, hnc.get('reduction') or 'sum')
            loss = with_hnc(form, hnc['weight'], hnc.get('bce_sum', False))
        _logger.info(f'The loss attacked is cross-entropy, with the HNC of training: {hnc or "none"}.')
    return Threat(options.attacks(), loss, options.attack_space == 'normalized', seed)


def _hnc_of(source: Source) -> dict[str, Any]:
    """The `hnc` block of a model's config.json; empty where it was trained without."""
    scheme, folder = parse_model_name(source.model)
    path = Path(folder) / 'config.json'
    problem = f"--attack-loss train: '{source.model}' does not say how it was trained"
    if scheme != 'local-dir' or not path.is_file():
        raise DataError(f'{problem}; pass a run folder.')
    hnc = json.loads(path.read_text(encoding='utf-8')).get('hnc') or {'variant': 'none'}
    if hnc['variant'] == 'none':
        return {}
    if hnc.get('weight') is None or hnc.get('topk') is None:
        raise DataError(f'{problem}: weight and top-k of HNC are missing in its config.json.')
    return hnc


def robust_figures(
    classifier: Normalized,
    inputs: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    evaluator: Callable[[], Any],
    threat: Threat,
    autocast: Autocast,
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
    first, _ = next(iter(inputs()))
    _warn_of_chance(classifier, first, autocast)
    _warn_of_other_normalisation(classifier, first)
    figures: dict[str, float] = {}
    for each in threat.attacks:
        attacked = _Attacked(classifier, each, threat, autocast)
        metrics = evaluate(classifier.model, attacked.batches(inputs()), evaluator(), autocast, distributed)
        name = f'{each.name}_{each.eps:g}'
        counts = [attacked.without_gradient, attacked.seen]
        without_gradient, seen = map(sum, zip(*gather_object([counts]), strict=True)) if distributed else counts
        if without_gradient and PartialState().is_main_process:
            _logger.warning(
                f'{name}: no gradient at {without_gradient} of {seen} images, the attack had nowhere to go there; '
                'a stronger one may find more.'
            )
        if each.eps == 0 and any(abs(metrics[key] - clean[key]) > _ROUNDING for key in clean if key != 'loss'):
            _logger.warning(f'{name}: the figures differ from those of clean images, to which nothing was done.')
        figures |= {f'{name}_{key}': value for key, value in metrics.items()}
    return figures


class _Attacked:
    """Batches of attacked images, and what was seen of them."""

    def __init__(self, classifier: Normalized, attack: Attack, threat: Threat, autocast: Autocast) -> None:
        self.classifier, self.attack, self.threat = classifier, attack, threat
        self.followed, self.autocast = _of_gradients(classifier, autocast)
        self.seen = self.without_gradient = 0
        self._with_gradient = torch.zeros(0, dtype=torch.bool)

    def batches(self, inputs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """(normalised attacked images, target)."""
        scale: Tensor | float = self.classifier.std if self.threat.normalized_units else 1.0
        generator = None
        for input, target in inputs:
            if generator is None:
                generator = torch.Generator(input.device).manual_seed(self.threat.seed)
            with torch.inference_mode(False):
                images = self.classifier.restore(at_least_float32(input))
                self._with_gradient = torch.zeros(len(images), dtype=torch.bool, device=images.device)
                found = attack(self.followed, images, target, self.attack, self._loss(), scale, generator)
                self.seen += len(images)
                if self.attack.eps:
                    self.without_gradient += int((~self._with_gradient).sum())
                yield self.classifier.normalize(found).to(input.dtype), target

    def _loss(self) -> AttackedLoss:
        @wraps(self.threat.loss)
        def loss(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
            if images.requires_grad:
                images.register_hook(self._look_at)
            with self.autocast():
                return self.threat.loss(model, images, target)

        return loss

    def _look_at(self, gradient: Tensor) -> None:
        self._with_gradient |= gradient.flatten(1).any(1)


def _of_gradients(classifier: Normalized, autocast: Autocast) -> tuple[Normalized, Autocast]:
    """What gradients are taken of: float32 in place of float16, in which small ones are 0, and their images stay."""
    device = classifier.mean.device.type
    with autocast():
        if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
            autocast = nullcontext
    if any(parameter.dtype == torch.float16 for parameter in classifier.parameters()):
        model = full_copy(getattr(classifier.model, '_orig_mod', classifier.model)).float()
        return Normalized(model, classifier.mean.flatten(), classifier.std.flatten()).to(device), autocast
    return classifier, autocast


def _warn_of_other_normalisation(classifier: Normalized, input: Tensor) -> None:
    images = at_least_float32(input) * classifier.std + classifier.mean
    low, high = images.min().item(), images.max().item()
    if low < -_OUTSIDE or high > 1 + _OUTSIDE:
        mean, std = (values.flatten().tolist() for values in (classifier.mean, classifier.std))
        _logger.warning(
            f'Images go from {low:.3g} to {high:.3g} where mean {mean} and std {std} are undone, and are cut to [0, 1] '
            'before they are attacked: give the mean and std that they were normalised with.'
        )


@torch.inference_mode()
def _warn_of_chance(classifier: Normalized, input: Tensor, autocast: Autocast) -> None:
    with evaluating(classifier), autocast():
        first = classifier.model(input).clone()  # a CUDA graph writes the next output into the same memory
        second = classifier.model(input)
    if not torch.equal(first, second):
        _logger.warning('The model answers the same images differently: one gradient says little about it.')
