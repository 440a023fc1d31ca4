"""All options of a training run: groups that check themselves, and what they ask of each other."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from timm_hnc.data.inputs import InputOptions
from timm_hnc.data.naflex import TrainNaFlexOptions
from timm_hnc.data.options import DataOptions, LoaderOptions, TaskOptions
from timm_hnc.errors import UsageError
from timm_hnc.losses.factory import LOSSES
from timm_hnc.losses.hnc import DEFAULT_WEIGHTS
from timm_hnc.options import check_range, flattened, grouped
from timm_hnc.runtime.device import DeviceOptions, agreed_device
from timm_hnc.training.checkpoint_interval import CheckpointInterval
from timm_hnc.training.setup.data_options import (
    AugmentationOptions,
    BatchOptions,
    MixupOptions,
    SplitOptions,
    TrainSizeOptions,
)
from timm_hnc.training.setup.environment import ProcessOptions, import_device_modules
from timm_hnc.training.setup.models import ModelOptions
from timm_hnc.training.setup.objective.distillation import DistillationOptions
from timm_hnc.training.setup.objective.loss_options import HNCOptions, LossOptions, MapLossOptions
from timm_hnc.training.setup.optimizer import EmaOptions, OptimizerOptions, ScheduleOptions
from timm_hnc.training.setup.option_checks import check_options
from timm_hnc.training.setup.output_options import HubOptions, TrackingOptions


@dataclass(frozen=True)
class RunOptions:
    """The run folder, what is written into it and how often.

    Args:
        output: folder of runs.
        experiment: folder of this run.
        resume: go on from a checkpoint; auto: from the run's last one.
        no_resume_opt: resume the weights without the optimizer.
        allow_world_size_change: go on with another number of processes than the run had; no longer exact.
        eval_metric: metric of the best; map for several labels.
        val_interval: epochs between evaluations.
        tta: copies of an image at evaluation; refused above 1, no loader makes them.
        log_interval: updates between log lines, and batches of the evaluation.
        checkpoint_interval: updates (500), or minutes (10m), between checkpoints.
        recovery_interval: updates between recovery checkpoints.
        checkpoint_hist: checkpoints kept.
        save_epochs: epochs after which a checkpoint is kept for good.
        save_images: save a training batch at each log line.
        on_nonfinite: a loss or gradient that is not finite: stop before the update, or leave it out.
        cam_images: validation images whose CAMs are drawn.
        no_report: no report.html at the end.
    """

    output: str = ''
    experiment: str = ''
    resume: str = ''
    no_resume_opt: bool = False
    allow_world_size_change: bool = False
    eval_metric: str = 'top1'
    val_interval: int = 1
    tta: int = 0
    log_interval: int = 50
    checkpoint_interval: str | None = None
    recovery_interval: int = 0
    checkpoint_hist: int = 10
    save_epochs: Sequence[int] | None = None
    save_images: bool = False
    on_nonfinite: Literal['stop', 'skip'] = 'stop'
    cam_images: int = 8
    no_report: bool = False

    def __post_init__(self) -> None:
        check_range(self, 'val_interval', 'log_interval', 'checkpoint_hist', 'save_epochs', low=1)
        check_range(self, 'recovery_interval', 'cam_images', 'tta', low=0)
        if self.tta > 1:
            raise UsageError(f'--tta {self.tta}: no loader makes copies of an image, not in timm either: leave it out.')
        try:
            self.interval()
        except ValueError as error:
            raise UsageError(
                f'--checkpoint-interval {self.checkpoint_interval}: expected updates, such as 500, or minutes, such as '
                '10m.'
            ) from error
        if self.checkpoint_interval and self.recovery_interval:
            raise UsageError('--checkpoint-interval: not together with --recovery-interval, which is the same.')
        if self.resume == 'auto' and not self.experiment:
            raise UsageError('--resume auto: needs --experiment, the run to go on with.')

    def interval(self) -> CheckpointInterval:
        """When a checkpoint is due inside an epoch."""
        return CheckpointInterval(
            self.checkpoint_interval or (str(self.recovery_interval) if self.recovery_interval else None)
        )


@dataclass(frozen=True)
class FilledIn:
    """Which of the options that follow from others nobody gave.

    Args:
        filled_in: their names; None of options that were made group by group, which do not tell.
        scaled_lr: the learning rate, where it follows from --lr-base and the batch.
    """

    filled_in: Sequence[str] | None = None
    scaled_lr: float | None = None


@dataclass(frozen=True)
class TrainOptions:
    """What a run trains, on what and how: a group a subject, all with the defaults of timm's train.py.

    Args:
        data: where images and labels come from.
        splits: which part of them trains.
        task: one label an image, or several.
        hnc: Homogeneous Negative CAM.
        map_losses: other losses on class maps.
        distillation: a teacher.
        hub: publishing.
        loss: the criterion.
        model: which, and where its weights start.
        input: its images and its head.
        batches: how many images an update takes.
        loader: how images are loaded, and the seed.
        device: device, number formats and compilation.
        processes: what several processes share.
        optimizer: of the weights.
        schedule: learning rate and epochs.
        augmentation: of the training images.
        mixup: mixup and cutmix.
        sizes: several training sizes.
        naflex: images of any shape and size.
        ema: averaged weights.
        run: the folder, and what is written into it.
        tracking: TensorBoard and Weights & Biases.
        defaults: what follows from other options.

    Raises:
        UsageError: options contradict each other.
    """

    data: DataOptions = field(default_factory=DataOptions)
    splits: SplitOptions = field(default_factory=SplitOptions)
    task: TaskOptions = field(default_factory=TaskOptions)
    hnc: HNCOptions = field(default_factory=HNCOptions)
    map_losses: MapLossOptions = field(default_factory=MapLossOptions)
    distillation: DistillationOptions = field(default_factory=DistillationOptions)
    hub: HubOptions = field(default_factory=HubOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    input: InputOptions = field(default_factory=InputOptions)
    batches: BatchOptions = field(default_factory=BatchOptions)
    loader: LoaderOptions = field(default_factory=LoaderOptions)
    device: DeviceOptions = field(default_factory=DeviceOptions)
    processes: ProcessOptions = field(default_factory=ProcessOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    augmentation: AugmentationOptions = field(default_factory=AugmentationOptions)
    mixup: MixupOptions = field(default_factory=MixupOptions)
    sizes: TrainSizeOptions = field(default_factory=TrainSizeOptions)
    naflex: TrainNaFlexOptions = field(default_factory=TrainNaFlexOptions)
    ema: EmaOptions = field(default_factory=EmaOptions)
    run: RunOptions = field(default_factory=RunOptions)
    tracking: TrackingOptions = field(default_factory=TrackingOptions)
    defaults: FilledIn = field(default_factory=FilledIn)

    def __post_init__(self) -> None:
        check_options(self)

    def changed(self, **values: Any) -> 'TrainOptions':
        """The same options but for these; what was filled in follows from them.

        Raises:
            UsageError: a value cannot be used.
            TypeError: there is no such option.

        Example:
            >>> train_options({'hnc': 'mse'}).changed(hnc='kd').hnc.hnc_weight
            0.0065
        """
        kept = flattened(self)
        if kept['filled_in'] is None:
            kept['filled_in'] = list(_following(kept))
        return train_options(given_values(kept) | values)

    @property
    def needs_class_maps(self) -> bool:
        """Whether the losses look at class maps."""
        return self.hnc.on or self.loss.needs != 'logits' or bool(self.map_losses.map_loss)

    @property
    def loss_flag(self) -> str:
        """The flag whose loss needs class maps."""
        if self.hnc.on:
            return f'--hnc {self.hnc.hnc}'
        names = ' '.join(self.map_losses.weights)
        return f'--map-loss {names}' if names else f'--loss {self.loss.loss}'


def train_options(values: Mapping[str, Any], given: Collection[str] | None = None) -> TrainOptions:
    """Options of a run, with those filled in that depend on others.

    Args:
        values: by name, as the flags of train.py.
        given: names of those that somebody chose, all of them if None: what depends on others gives way to them.

    Raises:
        UsageError: options are wrong, alone or together.
        TypeError: there is no such option.

    Example:
        >>> train_options({'model': 'resnet18', 'hnc': 'mse'}).hnc.hnc_weight
        0.0007
    """
    given = set(values if given is None else given)
    defaults = _following(values)
    overruled = {'val_split'} if values.get('holdout') else set()
    filled_in = [name for name in defaults if name not in given or name in overruled or values.get(name) is None]
    return grouped(TrainOptions, {**values, **{name: defaults[name] for name in filled_in}, 'filled_in': filled_in})


def given_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a run but for those that were filled in; who writes another value into args.yaml gives it."""
    defaults, filled_in = _following(values), values.get('filled_in') or ()
    followed = {name for name in filled_in if name in defaults and values.get(name) == defaults[name]}
    if values.get('scaled_lr') is not None and values.get('lr') == values['scaled_lr']:
        followed.add('lr')
    return {name: value for name, value in values.items() if name not in followed | {'scaled_lr'}}


def _following(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options that follow from others, where nobody gives them."""
    multi_label = values.get('task') == 'multilabel'
    split = values.get('train_split', SplitOptions.train_split) if values.get('holdout') else SplitOptions.val_split
    return {
        'eval_metric': 'map' if multi_label else RunOptions.eval_metric,
        'hnc_weight': DEFAULT_WEIGHTS.get(values.get('hnc', 'none')),
        'smoothing': 0.0 if multi_label or values.get('loss') in LOSSES else LossOptions.smoothing,
        'val_split': split,
    }


def agreed_options(options: TrainOptions, explicit: frozenset[str]) -> TrainOptions:
    """The options with what the launcher asks for, on a device that is there."""
    import_device_modules(options.processes)
    batches, asked = options.batches, os.environ.get('ACCELERATE_GRADIENT_ACCUMULATION_STEPS') or '1'
    launcher = int(asked) if asked.isdecimal() else 0
    if launcher < 1:
        raise UsageError(f'ACCELERATE_GRADIENT_ACCUMULATION_STEPS={asked}: expected a whole number, 1 or more.')
    if launcher not in (1, batches.grad_accum_steps):
        if 'grad_accum_steps' in explicit:
            raise UsageError(
                f'--grad-accum-steps {batches.grad_accum_steps} contradicts the launcher, which says {launcher}.'
            )
        batches = replace(batches, grad_accum_steps=launcher)
    return replace(options, device=agreed_device(options.device, explicit), batches=batches)
