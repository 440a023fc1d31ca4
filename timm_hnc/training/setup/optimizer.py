"""What moves the weights: optimizer, learning rate and epochs, and the moving average."""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, optimizer_kwargs, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.utils import ModelEmaV3
from torch import nn

from timm_hnc.errors import UsageError, first_lines
from timm_hnc.losses.base import Loss
from timm_hnc.options import check_choice, check_range
from timm_hnc.training.sharding import shard_average

LOSS_GROUP = 'of_the_loss'  # key of the optimizer's group that holds what the loss learns
SCHEDULERS = ('cosine', 'tanh', 'step', 'multistep', 'poly', 'wsd', 'rsqrt', 'constant', 'plateau', 'none')
_HUGE = 1e30  # beyond this, float32 ends
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OptimizerOptions:
    """The optimizer.

    Args:
        opt: optimizer.
        opt_eps: epsilon, the optimizer's own if left out.
        opt_betas: betas, the optimizer's own if left out.
        opt_kwargs: further optimizer arguments.
        momentum: momentum.
        weight_decay: weight decay.
        clip_grad: clip gradients at this value.
        clip_mode: norm, value or agc.
        layer_decay: learning rate factor from layer to layer.
        layer_decay_min_scale: smallest such factor.
        layer_decay_no_opt_scale: layers below this factor are not trained.
    """

    opt: str = 'sgd'
    opt_eps: float | None = None
    opt_betas: Sequence[float] | None = None
    opt_kwargs: dict[str, Any] = field(default_factory=dict)
    momentum: float = 0.9
    weight_decay: float = 2e-05
    clip_grad: float | None = None
    clip_mode: str = 'norm'
    layer_decay: float | None = None
    layer_decay_min_scale: float = 0
    layer_decay_no_opt_scale: float | None = None

    def __post_init__(self) -> None:
        check_range(self, 'weight_decay', 'clip_grad', low=0, below=_HUGE)
        check_choice(self, 'clip_mode', ('norm', 'value', 'agc'))
        if self.opt_betas is not None and len(self.opt_betas) < 2:
            raise UsageError(f'--opt-betas {" ".join(map(str, self.opt_betas))}: expected 2 or more.')
        # timm reads 'lookahead_adamw' as a wrapper around the optimizer that the last part names
        name = self.opt.lower().split('_')[-1]
        try:
            get_optimizer_info(name)
        except ValueError as error:
            raise UsageError(
                f"--opt {self.opt}: timm knows no optimizer '{name}' (timm.optim.list_optimizers())."
            ) from error


@dataclass(frozen=True)
class ScheduleOptions:
    """Learning rate and epochs.

    Args:
        lr: learning rate; from --lr-base and the batch if left out.
        lr_base: learning rate of a batch of --lr-base-size.
        lr_base_size: batch that --lr-base is for.
        lr_base_scale: linear or sqrt; by the optimizer if empty.
        lr_noise: shares of the schedule between which noise is added.
        lr_noise_pct: limit of the noise.
        lr_noise_std: standard deviation of the noise.
        lr_cycle_mul: growth of a cycle.
        lr_cycle_decay: factor from cycle to cycle.
        lr_cycle_limit: number of cycles.
        lr_k_decay: k-decay of cosine and poly.
        lr_decay_fn: wsd, rsqrt: shape of the decay.
        lr_stable_timescale: rsqrt: time scale in epochs.
        warmup_lr: learning rate at the start of the warm-up.
        min_lr: lowest learning rate.
        sched: learning rate schedule.
        sched_on_updates: schedule by update instead of by epoch.
        epochs: epochs of the schedule.
        start_epoch: epoch to start at.
        stop_epoch: stop after this many epochs, the schedule unchanged.
        decay_milestones: multistep: epochs.
        decay_epochs: epochs from step to step; wsd, rsqrt: length of the decay, below 1 a share of the schedule.
        decay_rate: factor of a step.
        warmup_epochs: epochs of warm-up.
        warmup_prefix: warm up before the schedule instead of within.
        cooldown_epochs: epochs at the lowest learning rate at the end.
        patience_epochs: plateau: epochs without improvement.
    """

    lr: float | None = None
    lr_base: float = 0.1
    lr_base_size: int = 256
    lr_base_scale: str = ''
    lr_noise: Sequence[float] | None = None
    lr_noise_pct: float = 0.67
    lr_noise_std: float = 1.0
    lr_cycle_mul: float = 1.0
    lr_cycle_decay: float = 0.5
    lr_cycle_limit: int = 1
    lr_k_decay: float = 1.0
    lr_decay_fn: str | None = None
    lr_stable_timescale: float | None = None
    warmup_lr: float = 1e-05
    min_lr: float = 0
    sched: str = 'cosine'
    sched_on_updates: bool = False
    epochs: int = 300
    start_epoch: int | None = None
    stop_epoch: int | None = None
    decay_milestones: Sequence[int] = (90, 180, 270)
    decay_epochs: float = 90
    decay_rate: float = 0.1
    warmup_epochs: int = 5
    warmup_prefix: bool = False
    cooldown_epochs: int = 0
    patience_epochs: int = 10

    def __post_init__(self) -> None:
        check_range(self, 'epochs', 'stop_epoch', 'lr_base_size', 'lr_cycle_limit', low=1)
        check_range(self, 'start_epoch', 'warmup_epochs', 'cooldown_epochs', low=0)
        check_range(self, 'lr', 'lr_base', 'warmup_lr', 'min_lr', low=0, below=_HUGE)
        check_range(self, 'lr_cycle_mul', 'lr_noise_pct', 'lr_k_decay', 'decay_epochs', above=0)
        check_choice(self, 'lr_base_scale', ('', 'linear', 'sqrt'))
        if self.sched == 'plateau' and self.sched_on_updates:
            raise UsageError('--sched-on-updates: not together with --sched plateau, which goes by epochs.')
        if self.sched == 'multistep' and list(self.decay_milestones) != sorted(self.decay_milestones):
            raise UsageError(f'--decay-milestones {self.decay_milestones}: expected increasing epochs.')
        if self.lr_noise is not None and len(self.lr_noise) > 2:
            raise UsageError(f'--lr-noise: {len(self.lr_noise)} values, expected 1 or 2.')
        num_epochs = self._scheduled_epochs()
        if self.stop_epoch is not None and self.stop_epoch > num_epochs:
            raise UsageError(f'--stop-epoch {self.stop_epoch}: the schedule has {num_epochs} epochs (see --epochs).')

    def _scheduled_epochs(self) -> int:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=self.lr or self.lr_base)
        try:
            with warnings.catch_warnings():
                # the scheduler that trains says it again
                warnings.simplefilter('ignore')
                scheduler, epochs = create_scheduler_v2(optimizer, **self.arguments(0), updates_per_epoch=1000)
                if scheduler is not None and self.sched != 'plateau':  # timm's arithmetic may fail at the end
                    last = min(epochs, self.stop_epoch or epochs)
                    scheduler.step(last)
                    scheduler.step_update(1000 * last)
                return epochs
        except (ValueError, TypeError, AssertionError, ArithmeticError) as error:
            known = '' if self.sched in SCHEDULERS else f' Expected one of {", ".join(SCHEDULERS)}.'
            raise UsageError(f'--sched {self.sched}: {error or "timm refuses its settings."}{known}') from error

    def arguments(self, seed: int, **options: Any) -> dict[str, Any]:
        """For timm's create_scheduler_v2; `seed` is that of the noise."""
        return scheduler_kwargs(SimpleNamespace(**asdict(self), seed=seed), **options)


@dataclass(frozen=True)
class EmaOptions:
    """Averaged weights.

    Args:
        model_ema: average the weights over training.
        model_ema_force_cpu: keep the average on the CPU, not evaluated.
        model_ema_decay: decay of the average.
        model_ema_warmup: start with a smaller decay.
    """

    model_ema: bool = False
    model_ema_force_cpu: bool = False
    model_ema_decay: float = 0.9998
    model_ema_warmup: bool = False

    def __post_init__(self) -> None:
        check_range(self, 'model_ema_decay', low=0, high=1)


def create_optimizer(
    options: OptimizerOptions,
    schedule: ScheduleOptions,
    model: Any,
    loss: Loss | None,
    loss_lr: float,
    projection: nn.Module | None = None,
) -> torch.optim.Optimizer:
    """Timm's optimizer of a model, with groups of their own for what a loss and a teacher's projection learn."""
    cfg = SimpleNamespace(**asdict(options), lr=schedule.lr)
    try:
        optimizer = create_optimizer_v2(model, **optimizer_kwargs(cfg=cfg), **options.opt_kwargs)
    except (TypeError, ValueError, IndexError, AssertionError) as error:
        raise UsageError(f'--opt {options.opt} cannot be made with these options: {first_lines(error)}') from error
    for group in param_groups_weight_decay(projection, options.weight_decay) if projection is not None else ():
        optimizer.add_param_group(group)
    learned = list(loss.parameters()) if loss is not None else []
    if loss is not None and learned:
        used = type(inner_optimizer(optimizer)).__name__
        if loss.steps_of_sgd and 'SGD' not in used:
            _logger.warning(
                f'Loss: {loss}: what it learns follows its own rule with SGD alone (--opt sgd), not {used}.'
            )
        settings = {name: value for name, value in loss.parameter_options.items() if name in optimizer.defaults}
        optimizer.add_param_group({'params': learned, 'lr': loss_lr, **settings, LOSS_GROUP: True})
    return optimizer


def inner_optimizer(optimizer: torch.optim.Optimizer) -> Any:
    """The optimizer inside timm's Lookahead, or the optimizer itself."""
    return getattr(optimizer, '_base_optimizer', optimizer)


def create_ema(options: EmaOptions, model: Any, whole: Any = None) -> ModelEmaV3 | None:
    """The moving average of a model, where it is asked for; of its `whole` copy where the model lies in parts."""
    if not options.model_ema:
        return None
    if whole is not None and options.model_ema_force_cpu:
        raise UsageError('--model-ema-force-cpu: not with FSDP, where the average lies in parts as the model does.')
    if whole is not None and next(whole.parameters()).dtype is torch.bfloat16:
        # timm rounds its steps, too small for bfloat16, at random: not those of parts
        raise UsageError('--model-ema: not with FSDP and weights in bfloat16; see --amp --amp-dtype bfloat16.')
    # after prepare, of the plain model: as a child of the task it would break DDP
    ema = ModelEmaV3(
        model if whole is None else whole,
        decay=options.model_ema_decay,
        use_warmup=options.model_ema_warmup,
        device=torch.device('cpu') if options.model_ema_force_cpu else None,
    )
    if whole is not None:
        shard_average(ema, model)
    return ema


def with_learning_rate(schedule: ScheduleOptions, optimizer: str, images_per_update: float) -> ScheduleOptions:
    """The schedule with its learning rate: from the base rate and the global batch, as timm's train.py scales it."""
    if schedule.lr:
        return schedule
    ratio = images_per_update / schedule.lr_base_size
    scale = schedule.lr_base_scale
    if not scale:
        scale = 'sqrt' if any(name in optimizer.lower() for name in ('ada', 'lamb')) else 'linear'
    lr = schedule.lr_base * (ratio**0.5 if scale == 'sqrt' else ratio)
    _logger.info(f'Learning rate {lr:.4g}: base {schedule.lr_base}, {scale} scaling by {ratio:.4g}.')
    return replace(schedule, lr=lr)
