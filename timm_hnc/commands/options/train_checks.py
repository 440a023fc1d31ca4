"""Checks of train.py's options that come before any data or weights: one line each, with flag, value and remedy."""

import argparse
import os
import warnings

import torch
from timm.optim import get_optimizer_info
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.task import ClassificationEvaluator

from timm_hnc.commands.command_line import require_one_of, require_range
from timm_hnc.commands.options.loss_checks import check_loss
from timm_hnc.commands.options.train_flags import build_parser
from timm_hnc.commands.options.validate_options import check_holdout, check_input_options, check_precision, check_task
from timm_hnc.data.datasets import is_streamed
from timm_hnc.data.noise import LabelNoise
from timm_hnc.data.transforms import CROPS, INTERPOLATIONS
from timm_hnc.errors import UsageError
from timm_hnc.files.options import flag_of
from timm_hnc.metrics.multilabel import MultiLabelEvaluator
from timm_hnc.training.checkpoint_interval import Interval
from timm_hnc.training.setup.criterion import mixup_active
from timm_hnc.training.setup.losses import check_loss_by_name

HNC_DESTS = ('hnc_weight', 'hnc_topk', 'hnc_alpha', 'hnc_reduction')
SCHEDULERS = ('cosine', 'tanh', 'step', 'multistep', 'poly', 'wsd', 'rsqrt', 'constant', 'plateau', 'none')

# a whole number of at least this
LOWER_BOUNDS = {
    'batch_size': 1,
    'validation_batch_size': 1,
    'train_num_samples': 1,
    'val_num_samples': 1,
    'epochs': 1,
    'start_epoch': 0,
    'stop_epoch': 1,
    'save_epochs': 1,
    'warmup_epochs': 0,
    'cooldown_epochs': 0,
    'workers': 0,
    'checkpoint_hist': 1,
    'val_interval': 1,
    'log_interval': 1,
    'recovery_interval': 0,
    'cam_images': 0,
    'lr_base_size': 1,
    'aug_repeats': 0,
    'aug_splits': 0,
    'recount': 1,
    'tta': 0,
}
# a number of 0 or more
RATES = ('lr', 'loss_lr', 'lr_base', 'warmup_lr', 'min_lr', 'weight_decay', 'clip_grad', 'epoch_repeats')

PROBABILITIES = (
    *('drop', 'drop_connect', 'drop_path', 'drop_block', 'hflip', 'vflip', 'reprob', 'smoothing'),
    *('color_jitter_prob', 'grayscale_prob', 'gaussian_blur_prob', 'model_ema_decay'),
)
_HUGE = 1e30  # beyond this, float32 ends

CHOICES = {
    'train_crop_mode': (None, '', 'rrc', 'rkrc', 'rkrr', *CROPS),
    'train_interpolation': ('', 'random', *INTERPOLATIONS),
    'worker_seeding': ('all', 'part'),
    'mixup_mode': ('batch', 'pair', 'elem', 'half'),
    'remode': ('', 'const', 'rand', 'pixel'),
    'dist_bn': ('', 'broadcast', 'reduce'),
    'clip_mode': ('norm', 'value', 'agc'),
    'lr_base_scale': ('', 'linear', 'sqrt'),
}


def check_train_options(args: argparse.Namespace, explicit: frozenset[str]) -> None:
    """Refuse options that cannot work, alone or together.

    Args:
        args: the options, those that depend on others filled in.
        explicit: the destinations that were given.

    Raises:
        UsageError: with the flag, its value and what is allowed.
    """
    for dest, low in LOWER_BOUNDS.items():
        require_range(args, dest, low=low)
    for dest in RATES:
        require_range(args, dest, low=0, below=_HUGE)
    for dest, allowed in CHOICES.items():
        require_one_of(args, dest, allowed)
    for dest in PROBABILITIES:
        require_range(args, dest, low=0, high=1)
    for dest in ('scale', 'ratio'):
        values = getattr(args, dest)
        require_range(args, dest, low=0)
        if len(values) != 2 or values[0] > values[1]:
            raise UsageError(f'{flag_of(dest)} {" ".join(map(str, values))}: expected the smallest and the largest.')
    check_input_options(args)
    check_holdout(args)
    check_precision(args)
    check_task(args)
    _check_hnc(args, explicit)
    _check_label_noise(args)
    _check_splits(args)
    _check_train_sizes(args)
    _check_mixing(args)
    _check_memory(args)
    _check_distributed(args)
    _check_run(args)
    check_loss(args)
    check_loss_by_name(args)
    _check_optimizer(args)
    _check_schedule(args)


def world_size() -> int:
    """Number of processes, as the launcher tells it."""
    return int(os.environ.get('WORLD_SIZE') or 1)


def _check_hnc(args: argparse.Namespace, explicit: frozenset[str]) -> None:
    require_range(args, 'hnc_weight', low=0)
    require_range(args, 'hnc_topk', low=1)
    require_range(args, 'hnc_alpha')
    if args.hnc != 'none':
        return
    parser = build_parser()
    for dest in HNC_DESTS:
        if dest in explicit and getattr(args, dest) != parser.get_default(dest):
            raise UsageError(f'{flag_of(dest)} {getattr(args, dest)}: does nothing without --hnc mse or --hnc kd.')


def _check_label_noise(args: argparse.Namespace) -> None:
    if args.label_noise is None:
        return
    try:
        LabelNoise.parse(args.label_noise)
    except ValueError as error:
        raise UsageError(f'--label-noise {args.label_noise}: {error}') from error
    if args.task == 'multilabel':
        raise UsageError(f'--label-noise {args.label_noise}: for --task classification only.')
    if is_streamed(args.dataset):
        raise UsageError(f'--label-noise {args.label_noise}: {args.dataset} is streamed, its images have no index.')


def _check_splits(args: argparse.Namespace) -> None:
    if args.aug_splits == 1:
        raise UsageError('--aug-splits 1: expected 0, or 2 and more.')
    if args.aug_splits and mixup_active(args):
        raise UsageError(f'--aug-splits {args.aug_splits}: not together with --mixup or --cutmix.')
    if args.aug_splits and args.task == 'multilabel':
        raise UsageError(f'--aug-splits {args.aug_splits}: for --task classification only.')
    if args.split_bn and not (args.aug_splits or args.resplit):
        raise UsageError('--split-bn: needs --aug-splits of 2 or more, or --resplit.')


def _check_train_sizes(args: argparse.Namespace) -> None:
    for dest in ('train_img_sizes', 'train_batch_sizes', 'train_batches_per_epoch'):
        require_range(args, dest, low=1)
    require_range(args, 'train_size_probs', low=0)
    require_range(args, 'train_size_schedule_spread', low=0)
    require_range(args, 'train_size_random_mix', low=0, high=1)
    sizes = args.train_img_sizes
    for dest in ('train_batch_sizes', 'train_size_probs'):
        values = getattr(args, dest)
        if values is not None and len(values) != len(sizes or ()):
            raise UsageError(f'{flag_of(dest)}: {len(values)} values for {len(sizes or ())} --train-img-sizes.')
    if args.train_size_probs is not None and not sum(args.train_size_probs) > 0:
        raise UsageError('--train-size-probs: expected one above 0.')
    if args.train_size_schedule == 'progressive' and len(sizes or ()) < 2:
        raise UsageError('--train-size-schedule progressive: needs 2 or more --train-img-sizes.')
    if sizes is not None and args.use_multi_epochs_loader:
        raise UsageError('--use-multi-epochs-loader: not together with --train-img-sizes.')
    if sizes is not None and args.aug_splits:
        raise UsageError(f'--aug-splits {args.aug_splits}: not together with --train-img-sizes.')


def _check_mixing(args: argparse.Namespace) -> None:
    for dest in ('mixup_prob', 'mixup_switch_prob'):
        require_range(args, dest, low=0, high=1)
    for dest in ('mixup', 'cutmix'):
        require_range(args, dest, low=0)
    if args.cutmix_minmax is not None and len(args.cutmix_minmax) != 2:
        raise UsageError(
            f'--cutmix-minmax: {len(args.cutmix_minmax)} values, expected 2, the smallest and the largest.'
        )
    if not mixup_active(args):
        return
    dest = 'train_batch_sizes' if args.train_batch_sizes else 'batch_size'
    for size in args.train_batch_sizes or [args.batch_size]:
        if size % 2:
            raise UsageError(f'{flag_of(dest)} {size}: --mixup and --cutmix mix pairs, expected an even number.')


def _check_memory(args: argparse.Namespace) -> None:
    """--data-in-memory makes the padded crop and flips, and leaves erasing and mixup to timm."""
    if not args.data_in_memory:
        return
    if args.train_crop_mode != 'pad' or args.no_aug:
        raise UsageError('--data-in-memory: needs --train-crop-mode pad.')
    others = ('aa', 'color_jitter', 'grayscale_prob', 'gaussian_blur_prob', 'aug_splits', 'train_img_sizes')
    for dest in (*others, 'no_prefetcher', 'use_multi_epochs_loader'):
        if getattr(args, dest):
            raise UsageError(
                f'{flag_of(dest)}: not together with --data-in-memory, which makes padded crops and flips only.'
            )
    if is_streamed(args.dataset):
        raise UsageError(f'--data-in-memory: {args.dataset} is streamed.')


def _check_distributed(args: argparse.Namespace) -> None:
    if args.aug_repeats and world_size() == 1:
        raise UsageError(
            f'--aug-repeats {args.aug_repeats:g}: for several processes only (accelerate launch, torchrun).'
        )
    if args.sync_bn and args.split_bn and world_size() > 1:
        raise UsageError('--split-bn: not together with --sync-bn.')


def _check_run(args: argparse.Namespace) -> None:
    evaluator = MultiLabelEvaluator if args.task == 'multilabel' else ClassificationEvaluator
    if args.eval_metric not in evaluator.metric_names:
        raise UsageError(
            f'--eval-metric {args.eval_metric}: expected one of {", ".join(evaluator.metric_names)} '
            f'for --task {args.task}.'
        )
    try:
        Interval(args.checkpoint_interval)
    except ValueError as error:
        raise UsageError(
            f'--checkpoint-interval {args.checkpoint_interval}: expected updates, such as 500, or minutes, such as 10m.'
        ) from error
    if args.checkpoint_interval and args.recovery_interval:
        raise UsageError('--checkpoint-interval: not together with --recovery-interval, which is the same.')
    if args.resume == 'auto' and not args.experiment:
        raise UsageError('--resume auto: needs --experiment, the run to go on with.')
    if args.wandb_resume_id and not args.resume:
        raise UsageError(f'--wandb-resume-id {args.wandb_resume_id}: needs --resume.')


def _check_optimizer(args: argparse.Namespace) -> None:
    # timm reads 'lookahead_adamw' as a wrapper around the optimizer that the last part names
    name = args.opt.lower().split('_')[-1]
    try:
        get_optimizer_info(name)
    except ValueError as error:
        raise UsageError(
            f"--opt {args.opt}: timm knows no optimizer '{name}' (timm.optim.list_optimizers())."
        ) from error


def _check_schedule(args: argparse.Namespace) -> None:
    if args.sched == 'plateau' and args.sched_on_updates:
        raise UsageError('--sched-on-updates: not together with --sched plateau, which goes by epochs.')
    if args.sched == 'multistep' and args.decay_milestones != sorted(args.decay_milestones):
        raise UsageError(f'--decay-milestones {args.decay_milestones}: expected increasing epochs.')
    if args.lr_noise is not None and len(args.lr_noise) > 2:
        raise UsageError(f'--lr-noise: {len(args.lr_noise)} values, expected 1 or 2.')
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.lr or args.lr_base)
    try:
        with warnings.catch_warnings():
            # the scheduler that trains says it again
            warnings.simplefilter('ignore')
            _, num_epochs = create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=1000)
    except (ValueError, TypeError, AssertionError, ZeroDivisionError) as error:
        known = '' if args.sched in SCHEDULERS else f' Expected one of {", ".join(SCHEDULERS)}.'
        raise UsageError(f'--sched {args.sched}: {error or "timm refuses its settings."}{known}') from error
    if args.stop_epoch is not None and args.stop_epoch > num_epochs:
        raise UsageError(f'--stop-epoch {args.stop_epoch}: the schedule has {num_epochs} epochs (see --epochs).')
