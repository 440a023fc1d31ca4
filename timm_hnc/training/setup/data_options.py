"""Options of the training data: splits, batches, augmentation, mixing, and sizes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from timm_hnc.data.noise import LabelNoise
from timm_hnc.data.transforms import CROPS, INTERPOLATIONS
from timm_hnc.errors import UsageError
from timm_hnc.options import check_choice, check_range, flag_of


@dataclass(frozen=True)
class SplitOptions:
    """Which part of the data trains, and which is evaluated.

    Args:
        train_split: split to train on.
        val_split: split to evaluate on; none if empty.
        train_num_samples: training samples, for data sets that do not know it.
        val_num_samples: validation samples, for data sets that do not know it.
        epoch_repeats: times that an epoch repeats the data set.
        label_noise: wrong training labels: symmetric:0.4 (any class) or asymmetric:0.3 (the next class).
    """

    train_split: str = 'train'
    val_split: str = 'validation'
    train_num_samples: int | None = None
    val_num_samples: int | None = None
    epoch_repeats: float = 0.0
    label_noise: str | None = None

    def __post_init__(self) -> None:
        check_range(self, 'train_num_samples', 'val_num_samples', low=1)
        check_range(self, 'epoch_repeats', low=0, below=1e30)
        try:
            self.noise()
        except ValueError as error:
            raise UsageError(f'--label-noise {self.label_noise}: {error}') from error

    def noise(self) -> LabelNoise | None:
        """The label noise, if there is to be any."""
        return None if self.label_noise is None else LabelNoise.parse(self.label_noise)


@dataclass(frozen=True)
class BatchOptions:
    """How many images an update takes.

    Args:
        batch_size: training images in a batch, on each device.
        validation_batch_size: validation images in a batch.
        grad_accum_steps: batches to an optimizer step.
        worker_seeding: seeds of loading processes: all or part.
        use_multi_epochs_loader: keep the loading processes between epochs.
        data_in_memory: decode small images once, and augment them on the device (--train-crop-mode pad and flips).
    """

    batch_size: int = 128
    validation_batch_size: int | None = None
    grad_accum_steps: int = 1
    worker_seeding: str = 'all'
    use_multi_epochs_loader: bool = False
    data_in_memory: bool = False

    def __post_init__(self) -> None:
        check_range(self, 'batch_size', 'validation_batch_size', low=1)
        check_choice(self, 'worker_seeding', ('all', 'part'))
        object.__setattr__(self, 'grad_accum_steps', max(1, self.grad_accum_steps))

    @property
    def eval_batch_size(self) -> int:
        """Validation images in a batch, as many as training images unless it says so."""
        return self.validation_batch_size or self.batch_size


@dataclass(frozen=True)
class AugmentationOptions:
    """How training images are changed.

    Args:
        no_aug: no augmentation at all.
        train_crop_mode: rrc, rkrc, rkrr; pad: pad and crop, as for CIFAR; squash: the whole image, resized to
            the shape.
        scale: area of random crops.
        ratio: aspect ratio of random crops.
        hflip: probability of a horizontal flip.
        vflip: probability of a vertical flip.
        color_jitter: strength of color jitter.
        color_jitter_prob: probability of color jitter.
        grayscale_prob: probability of grey images.
        gaussian_blur_prob: probability of blur.
        aa: AutoAugment, RandAugment or AugMix policy.
        aug_repeats: augmented copies of an image, over several devices.
        aug_splits: augmented versions of a batch: 0, or 2 and more.
        reprob: probability of random erasing.
        remode: what erased areas hold: const, rand or pixel.
        recount: erased areas of an image.
        resplit: leave the first split of a batch unerased.
        train_interpolation: how training images are resized.
    """

    no_aug: bool = False
    train_crop_mode: str | None = None
    scale: Sequence[float] = (0.08, 1.0)
    ratio: Sequence[float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float = 0.4
    color_jitter_prob: float | None = None
    grayscale_prob: float | None = None
    gaussian_blur_prob: float | None = None
    aa: str | None = None
    aug_repeats: float = 0
    aug_splits: int = 0
    reprob: float = 0.0
    remode: str = 'pixel'
    recount: int = 1
    resplit: bool = False
    train_interpolation: str = 'random'

    def __post_init__(self) -> None:
        check_range(self, 'aug_repeats', 'aug_splits', low=0)
        check_range(self, 'recount', low=1)
        check_choice(self, 'train_crop_mode', (None, '', 'rrc', 'rkrc', 'rkrr', *CROPS))
        check_choice(self, 'train_interpolation', ('', 'random', *INTERPOLATIONS))
        check_choice(self, 'remode', ('', 'const', 'rand', 'pixel'))
        probabilities = ('color_jitter_prob', 'grayscale_prob', 'gaussian_blur_prob')
        check_range(self, 'hflip', 'vflip', 'reprob', *probabilities, low=0, high=1)
        for name in ('scale', 'ratio'):
            values = getattr(self, name)
            check_range(self, name, low=0)
            if len(values) != 2 or values[0] > values[1]:
                raise UsageError(
                    f'{flag_of(name)} {" ".join(map(str, values))}: expected the smallest and the largest.'
                )
        if self.aug_splits == 1:
            raise UsageError('--aug-splits 1: expected 0, or 2 and more.')


@dataclass(frozen=True)
class MixupOptions:
    """Mixup and cutmix.

    Args:
        mixup: mixup, on above 0.
        cutmix: cutmix, on above 0.
        cutmix_minmax: cutmix with this range of sizes.
        mixup_prob: probability of mixing a batch.
        mixup_switch_prob: of cutmix, where both are on.
        mixup_mode: mix each batch, pair or elem alike.
        mixup_off_epoch: mix no more from this epoch on.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    cutmix_minmax: Sequence[float] | None = None
    mixup_prob: float = 1.0
    mixup_switch_prob: float = 0.5
    mixup_mode: str = 'batch'
    mixup_off_epoch: int = 0

    def __post_init__(self) -> None:
        check_choice(self, 'mixup_mode', ('batch', 'pair', 'elem', 'half'))
        check_range(self, 'mixup_prob', 'mixup_switch_prob', low=0, high=1)
        check_range(self, 'mixup', 'cutmix', low=0)
        if self.cutmix_minmax is not None and len(self.cutmix_minmax) != 2:
            raise UsageError(
                f'--cutmix-minmax: {len(self.cutmix_minmax)} values, expected 2, the smallest and the largest.'
            )
        if self.cutmix_minmax is not None and not 0 <= self.cutmix_minmax[0] < self.cutmix_minmax[1] <= 1:
            raise UsageError(
                f'--cutmix-minmax {" ".join(map(str, self.cutmix_minmax))}: expected the smallest and the largest '
                'share of a side, from 0 to 1.'
            )

    @property
    def active(self) -> bool:
        """Whether mixup or cutmix makes the targets dense."""
        return self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None


@dataclass(frozen=True)
class TrainSizeOptions:
    """Several training sizes.

    Args:
        train_img_sizes: image sizes, one drawn a batch.
        train_batch_sizes: batch of each size.
        train_size_probs: weight of each size.
        train_size_schedule: order of sizes.
        train_size_schedule_spread: spread around the size of the time.
        train_size_random_mix: share of sizes drawn uniformly.
        train_batches_per_epoch: batches of an epoch.
        variable_batch_loss_scale: by batch size.
    """

    train_img_sizes: Sequence[int] | None = None
    train_batch_sizes: Sequence[int] | None = None
    train_size_probs: Sequence[float] | None = None
    train_size_schedule: Literal['constant', 'progressive'] = 'constant'
    train_size_schedule_spread: float = 0.65
    train_size_random_mix: float = 0.1
    train_batches_per_epoch: int | None = None
    variable_batch_loss_scale: Literal['none', 'sqrt', 'linear'] = 'none'

    def __post_init__(self) -> None:
        check_range(self, 'train_img_sizes', 'train_batch_sizes', 'train_batches_per_epoch', low=1)
        check_range(self, 'train_size_probs', 'train_size_schedule_spread', low=0)
        check_range(self, 'train_size_random_mix', low=0, high=1)
        count = len(self.train_img_sizes or ())
        for name in ('train_batch_sizes', 'train_size_probs'):
            values = getattr(self, name)
            if values is not None and len(values) != count:
                raise UsageError(f'{flag_of(name)}: {len(values)} values for {count} --train-img-sizes.')
        if self.train_size_probs is not None and not sum(self.train_size_probs) > 0:
            raise UsageError('--train-size-probs: expected one above 0.')
        if self.train_size_schedule == 'progressive' and count < 2:
            raise UsageError('--train-size-schedule progressive: needs 2 or more --train-img-sizes.')
