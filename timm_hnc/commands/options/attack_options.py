"""The options of validate.py that attack the model."""

import argparse
import json
import logging
from fractions import Fraction
from pathlib import Path
from typing import Any

from timm.models import parse_model_name

from timm_hnc.attacks.attacks import ATTACKS, Attack, AttackedLoss, cross_entropy, with_hnc
from timm_hnc.errors import DataError, UsageError
from timm_hnc.evaluation.robustness import Threat
from timm_hnc.evaluation.sources import Source
from timm_hnc.losses import HNCLoss

DEFAULT_EPS = 8 / 255
_logger = logging.getLogger(__name__)


def fraction(text: str) -> float:
    """A number, also one written as 8/255.

    Raises:
        ValueError: it is none.
    """
    try:
        return float(Fraction(text))
    except (ZeroDivisionError, OverflowError) as error:
        raise ValueError(text) from error


def add_attack_options(parser: argparse.ArgumentParser) -> None:
    """Which attacks, how strong, along which loss."""
    add = parser.add_argument_group('attacks').add_argument
    add(
        '--attack', nargs='+', choices=ATTACKS, default=[], help='attack the images: accuracy beside that of clean ones'
    )
    add(
        '--attack-eps',
        type=fraction,
        nargs='+',
        default=[DEFAULT_EPS],
        metavar='EPS',
        help='largest changes of a value in [0, 1], such as 0.05 8/255',
    )
    add(
        '--attack-space',
        choices=('pixel', 'normalized'),
        default='pixel',
        help='units of eps: of images in [0, 1], or of the normalised input',
    )
    add('--attack-loss', choices=('ce', 'train'), default='ce', help='loss attacked: ce, or with the HNC of the run')
    add('--attack-steps', type=int, default=10, metavar='N', help='pgd: steps')
    add('--attack-step-size', type=fraction, metavar='X', help='pgd: size of a step; 2.5 * eps / steps if left out')
    add('--attack-restarts', type=int, default=1, metavar='N', help='pgd: random starts; the worst counts')
    add('--attack-no-random-start', action='store_true', help='pgd: start at the image')


def attacks_of(args: argparse.Namespace) -> list[Attack]:
    """The attacks that the options ask for, each name at each eps.

    Raises:
        UsageError: with the option and what is allowed.
    """
    try:
        attacks = [
            Attack(
                name,
                eps,
                args.attack_steps,
                args.attack_step_size,
                not args.attack_no_random_start,
                args.attack_restarts,
            )
            for name in dict.fromkeys(args.attack)
            for eps in dict.fromkeys(args.attack_eps)
        ]
    except ValueError as error:
        raise UsageError(f'--attack: {error}') from error
    if not attacks and args.attack_eps != [DEFAULT_EPS]:
        raise UsageError('--attack-eps: does nothing without --attack fgsm or --attack pgd.')
    if attacks and (args.valid_labels or args.real_labels or args.metrics_avg):
        raise UsageError('--attack: not together with --valid-labels, --real-labels or --metrics-avg.')
    if attacks and args.attack_loss == 'train' and args.torchcompile:
        raise UsageError('--attack-loss train: not together with --torchcompile.')
    return attacks


def threat_of(args: argparse.Namespace, source: Source) -> Threat:
    """What the options do to the images.

    Args:
        args: options of validate.py, checked.
        source: of the model; its config.json knows the HNC loss that it was trained with.

    Raises:
        DataError: --attack-loss train, and the model does not say how it was trained.
    """
    loss: AttackedLoss = cross_entropy
    if args.attack_loss == 'train':
        hnc = _hnc_of(source)
        if hnc:
            loss = with_hnc(HNCLoss(hnc['variant'], hnc['topk'], hnc['alpha'], hnc['reduction']), hnc['weight'])
        _logger.info(f'The loss attacked is cross-entropy, with the HNC of training: {hnc or "none"}.')
    return Threat(attacks_of(args), loss, args.attack_space == 'normalized', args.seed)


def _hnc_of(source: Source) -> dict[str, Any] | None:
    scheme, folder = parse_model_name(source.model)
    path = Path(folder) / 'config.json'
    if scheme != 'local-dir' or not path.is_file():
        raise DataError(f"--attack-loss train: '{source.model}' does not say how it was trained; pass a run folder.")
    return json.loads(path.read_text()).get('hnc')
