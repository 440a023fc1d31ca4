"""Options of the losses: the criterion, HNC, and others on class maps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from timm_hnc.errors import UsageError
from timm_hnc.losses import HNCLoss
from timm_hnc.losses.auto_weight import DEFAULT_SHARE, AutoWeight
from timm_hnc.losses.base import Loss, Needs
from timm_hnc.losses.factory import LOSSES, MAP_LOSSES
from timm_hnc.losses.hnc import DEFAULT_WEIGHTS
from timm_hnc.options import check_range, refuse_alone

LOSS_LR = 0.5  # of the centers of center loss, their paper's alpha
# how names of options begin that are of timm's losses alone
OF_TIMMS_LOSSES = ('bce_', 'asl_', 'poly_', 'twoway_', 'loss_pos_', 'loss_class_', 'loss_weight_')


@dataclass(frozen=True)
class HNCOptions:
    """Homogeneous Negative CAM.

    Args:
        hnc: HNC loss: none, mse (Eq. 2), kd (Eq. 5), or half of Eq. 2: var (flat maps) or logit (small logits).
        hnc_weight: its weight (lambda), 0.0065 for kd and 0.0007 for the others; or auto:SHARE: HNC pulls at the maps
            with that share of the criterion's pull (auto: 0.03), measured to the end of the first whole epoch after the
            warm-up; or follow:SHARE, measured to the end.
        hnc_topk: negative classes of each image that it takes.
        hnc_alpha: value that mse pulls the maps to, and logit the logits.
        hnc_reduction: over the K maps of an image.
        hnc_start_epoch: epoch, counted from 0, that HNC joins in, such as that in which the learning rate first drops.
    """

    hnc: Literal['none', 'mse', 'kd', 'var', 'logit'] = 'none'
    hnc_weight: float | str | None = None
    hnc_topk: int = 100
    hnc_alpha: float = 0.0
    hnc_reduction: Literal['sum', 'mean'] = 'sum'
    hnc_start_epoch: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.hnc_weight, str):
            word, share = word_and_share(self.hnc_weight)
            object.__setattr__(self, 'hnc_weight', f'{word}:{share:g}')
        else:
            check_range(self, 'hnc_weight', low=0)
        check_range(self, 'hnc_topk', low=1)
        check_range(self, 'hnc_alpha')
        check_range(self, 'hnc_start_epoch', low=0)
        if self.hnc in ('kd', 'var') and self.hnc_alpha:
            raise UsageError(f'--hnc-alpha {self.hnc_alpha:g}: does nothing with --hnc {self.hnc}.')
        if self.hnc != 'none':
            object.__setattr__(
                self, 'hnc_weight', DEFAULT_WEIGHTS[self.hnc] if self.hnc_weight is None else self.hnc_weight
            )
            return
        refuse_alone(self, '--hnc', (each.name for each in fields(self)))

    @property
    def on(self) -> bool:
        """Whether HNC is part of the loss."""
        return self.hnc != 'none'

    def weight(self) -> float | AutoWeight | None:
        """The weight, or what makes it."""
        return AutoWeight(word_and_share(self.hnc_weight)[1]) if isinstance(self.hnc_weight, str) else self.hnc_weight

    @property
    def weight_settles(self) -> bool:
        """Whether the weight follows from the gradients, and stays as it is after some epochs."""
        return isinstance(self.hnc_weight, str) and word_and_share(self.hnc_weight)[0] == 'auto'

    def loss(self) -> HNCLoss:
        """The HNC loss, where it is on."""
        return HNCLoss(self.hnc, self.hnc_topk, self.hnc_alpha, self.hnc_reduction)

    def __str__(self) -> str:
        if not self.on:
            return 'without HNC'
        weight = self.hnc_weight if isinstance(self.hnc_weight, str) else f'{self.hnc_weight:g}'
        return f'HNC {self.hnc}, weight {weight}'


@dataclass(frozen=True)
class MapLossOptions:
    """Losses on class maps beside the criterion.

    Args:
        map_loss: losses on class maps that are added to the criterion, NAME, or NAME=WEIGHT for another weight than its
            own.
        map_teacher: teacher of --map-loss teacher: a run folder, or a name of pretrained weights as timm takes it.
        boxes_share: share of the training images whose boxes or masks are used, chosen by the seed; the others add 0
            to their losses.
        boxes_dir: folder of ImageNet's XML files, for a folder of images.
        boxes_key: column of objects, with bbox and category.
        boxes_format: corners, or a corner, width and height.
        masks_dir: instead of boxes, folder of PNG masks with the images' own folders and names.
        masks_key: instead of boxes, column of mask images.
        masks_grey: greys of masks are shares, 255 is all; otherwise what is not 0 is the object.
    """

    map_loss: Sequence[str] = ()
    map_teacher: str = ''
    boxes_share: float = 1.0
    boxes_dir: str | None = None
    boxes_key: str = 'objects'
    boxes_format: Literal['xyxy', 'xywh'] = 'xyxy'
    masks_dir: str | None = None
    masks_key: str | None = None
    masks_grey: bool = False

    def __post_init__(self) -> None:
        check_range(self, 'boxes_share', above=0, high=1)
        found: dict[str, float] = {}
        for word in self.map_loss:
            name, _, weight = word.partition('=')
            if name not in MAP_LOSSES:
                raise UsageError(f'--map-loss {word}: expected one of {", ".join(MAP_LOSSES)}.')
            if name in found:
                raise UsageError(f'--map-loss {word}: {name} is given twice.')
            value = weight_or_share(weight) if '=' in word else MAP_LOSSES[name].default_weight
            if not isinstance(value, float) or not (math.isfinite(value) and value >= 0):
                raise UsageError(f'--map-loss {word}: expected a weight of 0 or more behind the =.')
            found[name] = value
        if 'teacher' in found and not self.map_teacher:
            raise UsageError('--map-loss teacher: needs --map-teacher.')
        if 'teacher' not in found:
            refuse_alone(self, '--map-loss teacher', ['map_teacher'])
        object.__setattr__(self, 'map_loss', tuple(f'{name}={weight:.12g}' for name, weight in found.items()))
        if not self.needs_objects:
            of_objects = (each.name for each in fields(self) if each.name.startswith(('boxes_', 'masks_')))
            refuse_alone(self, 'a --map-loss that needs boxes', of_objects)
        if not self.masks_flag:
            refuse_alone(self, '--masks-dir or --masks-key', ['masks_grey'])
        others = {'--masks-key': self.masks_dir and self.masks_key, '--boxes-dir': self.masks_flag and self.boxes_dir}
        for other, given in others.items():
            if given:
                raise UsageError(f'{self.masks_flag}: not together with {other}.')

    @property
    def weights(self) -> dict[str, float]:
        """Weights by the names of the losses."""
        pairs = (word.split('=') for word in self.map_loss)
        return {name: float(weight) for name, weight in pairs}

    @property
    def needs_objects(self) -> str:
        """The first loss that needs to know where objects are, as a flag; empty without."""
        names = [name for name in self.weights if MAP_LOSSES[name].needs_masks]
        return f'--map-loss {names[0]}' if names else ''

    @property
    def masks_flag(self) -> str:
        """The flag that names masks, which stand in for boxes; empty without."""
        return '--masks-dir' if self.masks_dir else '--masks-key' if self.masks_key else ''


def weight_or_share(text: str) -> float | str:
    """A weight, or what stands for one, of a word of the command line."""
    try:
        return float(text)
    except ValueError:
        return text


def word_and_share(text: str) -> tuple[str, float]:
    """What `auto`, `auto:SHARE` or `follow:SHARE` says."""
    word, colon, share = text.partition(':')
    value = weight_or_share(share) if colon else DEFAULT_SHARE
    if word not in ('auto', 'follow') or not isinstance(value, float) or not (math.isfinite(value) and value > 0):
        raise UsageError(
            f'--hnc-weight {text}: expected a number, auto, auto:SHARE or follow:SHARE with a share above 0.'
        )
    return word, value


@dataclass(frozen=True)
class LossOptions:
    """The criterion and its settings.

    Args:
        loss: name of the criterion; ce, or bce for several labels, if left out.
        loss_kwargs: options of such a loss.
        loss_lr: learning rate of what the loss itself learns.
        smoothing: label smoothing; 0 for several labels and for losses of timm_hnc unless given.
        bce_sum: bce: sum over classes.
        bce_target_thresh: bce: softened targets above this are 1, others 0.
        class_stats: JSON of pos_counts and num_samples, by timm's class_weights.py.
        loss_pos_weight: bce, asl: a number, a list, a file or neg_pos.
        loss_class_weight: bce, asl: a number, a list, a file, inv_freq or effective_num.
        loss_weight_power: power of neg_pos and inv_freq.
        asl_gamma_pos: asl: focus on positive targets.
        asl_gamma_neg: asl: focus on negative targets.
        asl_clip: asl: margin of negative probabilities.
        asl_reduction: asl: how it is averaged.
        poly_epsilon: poly: weight of the first polynomial term.
        poly_gamma: poly, several labels: focusing exponent.
        poly_alpha: poly, several labels: balance of positives and negatives.
        twoway_tp: twoway: temperature of positive logits.
        twoway_tn: twoway: temperature of negative logits.
    """

    loss: str | None = None
    loss_kwargs: dict[str, Any] = field(default_factory=dict)
    loss_lr: float = LOSS_LR
    smoothing: float = 0.1
    bce_sum: bool = False
    bce_target_thresh: float | None = None
    class_stats: str | None = None
    loss_pos_weight: str | None = None
    loss_class_weight: str | None = None
    loss_weight_power: float = 1.0
    asl_gamma_pos: float = 1.0
    asl_gamma_neg: float = 4.0
    asl_clip: float = 0.05
    asl_reduction: Literal['batchmean', 'sum', 'mean'] = 'batchmean'
    poly_epsilon: float = 2.0
    poly_gamma: float = 0.0
    poly_alpha: float | None = None
    twoway_tp: float = 4.0
    twoway_tn: float = 1.0

    def __post_init__(self) -> None:
        check_range(self, 'loss_lr', low=0, below=1e30)
        check_range(self, 'smoothing', low=0, below=1)
        check_range(self, 'poly_alpha', low=0, high=1)
        numbers = ('bce_target_thresh', 'asl_gamma_pos', 'asl_gamma_neg', 'asl_clip', 'poly_epsilon', 'poly_gamma')
        check_range(self, *numbers, 'loss_weight_power')
        check_range(self, 'twoway_tp', 'twoway_tn', above=0)
        if self.kind is None and self.loss_kwargs:
            raise UsageError(
                f'--loss-kwargs: for --loss {", ".join(LOSSES)} only; empty, it leaves out those of a YAML file.'
            )

    @property
    def takes_values(self) -> bool:
        """Whether the criterion of one label an image takes (B, n) values, one a class, where nothing is mixed."""
        if self.kind is not None:
            return self.kind.soft_targets
        return self.loss in ('bce', 'poly') or (self.loss in (None, 'ce') and not self.smoothing)

    @property
    def kind(self) -> type[Loss] | None:
        """The criterion where it is one of timm_hnc.losses; None: it is timm's."""
        return LOSSES.get(self.loss or '')

    @property
    def sums_over_classes(self) -> bool:
        """Whether the criterion of several labels is a sum over the classes of an image, not their mean."""
        if self.kind is not None:
            return {**self.kind.options(), **self.loss_kwargs}.get('reduction') == 'sum'
        return self.asl_reduction != 'mean' if self.loss == 'asl' else self.bce_sum

    @property
    def needs(self) -> Needs:
        """What the criterion looks at; timm's look at logits."""
        return 'logits' if self.kind is None else self.kind.needs
