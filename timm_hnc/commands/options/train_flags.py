"""The parser of train.py: every flag of timm's script with its spelling, default and meaning, and HNC's own."""

import argparse
from collections.abc import Callable

from timm.loss import LOSS_TYPES

from timm_hnc.commands.command_line import HelpFormatter, KeyValues, command_words
from timm_hnc.commands.options.validate_options import (
    add_data_options,
    add_device_options,
    add_input_options,
    add_loader_options,
    add_task_options,
)
from timm_hnc.losses.factory import LOSSES
from timm_hnc.training.setup.losses import LOSS_LR

HNC_VARIANTS = ('none', 'mse', 'kd')


def build_parser() -> argparse.ArgumentParser:
    """The parser of train.py, one function a group of options.

    Example:
        >>> build_parser().parse_args(['--model', 'resnet18']).batch_size
        128
    """
    parser = argparse.ArgumentParser(
        prog=' '.join(command_words('train.py')),
        description='Train a timm image classifier, with or without the Homogeneous Negative CAM loss.',
        formatter_class=HelpFormatter,
    )
    parser.add_argument('-c', '--config', type=str, default='', metavar='FILE', help='YAML file of options')
    add_data_options(parser)
    _add_split_options(parser)
    add_task_options(parser)
    _add_hnc_options(parser)
    _add_hub_options(parser)
    _add_loss_options(parser)
    _add_model_options(parser)
    add_input_options(parser)
    _add_batch_options(parser)
    add_loader_options(parser)
    _add_device_options(parser)
    _add_optimizer_options(parser)
    _add_learning_rate_options(parser)
    _add_schedule_options(parser)
    _add_augmentation_options(parser)
    _add_mixing_options(parser)
    _add_regularization_options(parser)
    _add_ema_options(parser)
    _add_run_options(parser)
    _add_tracking_options(parser)
    _add_train_size_options(parser)
    _add_naflex_options(parser)
    _add_distillation_options(parser)
    return parser


def _group(parser: argparse.ArgumentParser, title: str) -> Callable[..., argparse.Action]:
    return parser.add_argument_group(title).add_argument


def _add_split_options(parser: argparse.ArgumentParser) -> None:
    add = _group(parser, 'splits')
    add('--train-split', metavar='NAME', default='train', help='split to train on')
    add('--val-split', metavar='NAME', default='validation', help='split to evaluate on; none if empty')
    add('--train-num-samples', type=int, metavar='N', help='training samples, for data sets that do not know it')
    add('--val-num-samples', type=int, metavar='N', help='validation samples, for data sets that do not know it')


def _add_hnc_options(parser: argparse.ArgumentParser) -> None:
    add = _group(parser, 'Homogeneous Negative CAM')
    add('--hnc', choices=HNC_VARIANTS, default='none', help='HNC loss: none, mse (Eq. 2) or kd (Eq. 5)')
    add('--hnc-weight', type=float, metavar='X', help='its weight (lambda); 0.0007 for mse, 0.0065 for kd')
    add('--hnc-topk', type=int, default=100, metavar='K', help='negative classes of each image that it takes')
    add('--hnc-alpha', type=float, default=0.0, metavar='X', help='value that mse draws the maps to')
    add('--hnc-reduction', choices=('sum', 'mean'), default='sum', help='over the K maps of an image')
    add('--cam-images', type=int, default=8, metavar='N', help='validation images whose CAMs are drawn')
    add('--no-report', action='store_true', help='no report.html at the end')
    add(
        '--data-in-memory',
        action='store_true',
        help='decode small images once, and augment them on the device (--train-crop-mode pad and flips)',
    )
    add(
        '--label-noise',
        type=str,
        metavar='TYPE:RATE',
        help='wrong training labels: symmetric:0.4 (any class) or asymmetric:0.3 (the next class)',
    )


def _add_hub_options(parser: argparse.ArgumentParser) -> None:
    add = _group(parser, 'Hugging Face Hub')
    add('--push-to-hub', type=str, metavar='USER/NAME', help='publish the best weights at the end')
    add('--hub-every', type=int, metavar='N', help='and every so many epochs')
    add('--hub-private', action='store_true', help='make the repository private')
    add('--hub-revision', type=str, metavar='BRANCH', help='commit to this branch, made if it is missing')
    add('--hub-licence', type=str, metavar='ID', help='of the weights, as the Hub names it, such as apache-2.0')
    add('--baseline', type=str, metavar='RUN', help='run folder whose figures stand beside on the model card')


def _add_loss_options(parser: argparse.ArgumentParser) -> None:
    add = _group(parser, 'loss')
    add(
        '--loss',
        choices=(*LOSS_TYPES, *LOSSES),
        metavar='NAME',
        help=f'ce, or bce for several labels, if left out; timm: {", ".join(LOSS_TYPES)}; '
        f'with options in --loss-kwargs: {", ".join(LOSSES)}',
    )
    add('--loss-kwargs', nargs='*', default={}, action=KeyValues, metavar='K=V', help='options of such a loss')
    add('--loss-lr', type=float, default=LOSS_LR, metavar='X', help='learning rate of what the loss itself learns')
    add('--smoothing', type=float, default=0.1, metavar='X', help='label smoothing; 0 for several labels')
    add('--bce-loss', action='store_true', help='the older way to say --loss bce')
    add('--bce-sum', action='store_true', help='bce: sum over classes')
    add('--bce-target-thresh', type=float, metavar='X', help='bce: softened targets above this are 1, others 0')
    add('--bce-pos-weight', type=float, metavar='X', help='the older way to say --loss-pos-weight')
    add('--jsd-loss', action='store_true', help='the older way to say --loss jsd')
    add(
        '--class-stats', type=str, metavar='FILE', help="JSON of pos_counts and num_samples, by timm's class_weights.py"
    )
    add('--loss-pos-weight', type=str, metavar='W', help='bce, asl: a number, a list, a file or neg_pos')
    add(
        '--loss-class-weight',
        type=str,
        metavar='W',
        help='bce, asl: a number, a list, a file, inv_freq or effective_num',
    )
    add('--loss-weight-power', type=float, default=1.0, metavar='X', help='power of neg_pos and inv_freq')
    add('--asl-gamma-pos', type=float, default=1.0, metavar='X', help='asl: focus on positive targets')
    add('--asl-gamma-neg', type=float, default=4.0, metavar='X', help='asl: focus on negative targets')
    add('--asl-clip', type=float, default=0.05, metavar='P', help='asl: margin of negative probabilities')
    add('--asl-reduction', choices=('batchmean', 'sum', 'mean'), default='batchmean', help='asl: how it is averaged')
    add('--poly-epsilon', type=float, default=2.0, metavar='X', help='poly: weight of the first polynomial term')
    add('--poly-gamma', type=float, default=0.0, metavar='X', help='poly, several labels: focusing exponent')
    add('--poly-alpha', type=float, metavar='X', help='poly, several labels: balance of positives and negatives')
    add('--twoway-tp', type=float, default=4.0, metavar='T', help='twoway: temperature of positive logits')
    add('--twoway-tn', type=float, default=1.0, metavar='T', help='twoway: temperature of negative logits')


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    add = _group(parser, 'model')
    add('--model', type=str, default='resnet50', metavar='NAME', help='model name')
    add('--pretrained', action='store_true', help='start from the published weights')
    add('--pretrained-path', type=str, metavar='PATH', help='start from this file as if it were the published weights')
    add(
        '--pretrained-cfg-overlay',
        nargs='*',
        action=KeyValues,
        metavar='K=V',
        help="fields of the published weights' configuration to replace, such as custom_load=True",
    )
    add('--initial-checkpoint', type=str, default='', metavar='PATH', help='start from this checkpoint, head included')
    add('--resume', type=str, default='', metavar='PATH', help="go on from a checkpoint; auto: from the run's last one")
    add('--no-resume-opt', action='store_true', help='resume the weights without the optimizer')
    add('--head-init-scale', type=float, metavar='X', help="factor on the classifier's initial weights")
    add('--head-init-bias', type=float, metavar='X', help="the classifier's initial bias")
    add('--grad-checkpointing', action='store_true', help='recompute activations to save memory')


def _add_batch_options(parser: argparse.ArgumentParser) -> None:
    add = _group(parser, 'batches')
    add('-b', '--batch-size', type=int, default=128, metavar='N', help='training images in a batch, on each device')
    add('-vb', '--validation-batch-size', type=int, metavar='N', help='validation images in a batch')
    add('--grad-accum-steps', type=int, default=1, metavar='N', help='batches to an optimizer step')
    add('--worker-seeding', type=str, default='all', metavar='MODE', help='seeds of loading processes: all or part')
    add('--use-multi-epochs-loader', action='store_true', help='keep the loading processes between epochs')


def _add_device_options(parser: argparse.ArgumentParser) -> None:
    add_device_options(parser)
    add = _group(parser, 'several devices')
    add('--no-ddp-bb', action='store_true', help='DDP does not broadcast buffers')
    add('--synchronize-step', action='store_true', help='wait for the device after each step')
    add('--device-modules', type=str, nargs='+', metavar='MODULE', help='modules to import for the device')
    add('--sync-bn', action='store_true', help='batch norm over all devices')
    add('--dist-bn', type=str, default='reduce', metavar='MODE', help="batch statistics: broadcast, reduce or ''")
    add('--local_rank', type=int, default=0, help=argparse.SUPPRESS)


def _add_optimizer_options(parser: argparse.ArgumentParser) -> None:
    add = _group(parser, 'optimizer')
    add('--opt', type=str, default='sgd', metavar='NAME', help='optimizer')
    add('--opt-eps', type=float, metavar='X', help="epsilon, the optimizer's own if left out")
    add('--opt-betas', type=float, nargs='+', metavar='X', help="betas, the optimizer's own if left out")
    add('--opt-kwargs', nargs='*', default={}, action=KeyValues, metavar='K=V', help='further optimizer arguments')
    add('--momentum', type=float, default=0.9, metavar='X', help='momentum')
    add('--weight-decay', type=float, default=2e-5, metavar='X', help='weight decay')
    add('--clip-grad', type=float, metavar='X', help='clip gradients at this value')
    add('--clip-mode', type=str, default='norm', metavar='MODE', help='norm, value or agc')
    add('--layer-decay', type=float, metavar='X', help='learning rate factor from layer to layer')
    add('--layer-decay-min-scale', type=float, default=0, metavar='X', help='smallest such factor')
    add('--layer-decay-no-opt-scale', type=float, metavar='X', help='layers below this factor are not trained')


def _add_learning_rate_options(parser: argparse.ArgumentParser) -> None:
    add = _group(parser, 'learning rate')
    add('--lr', type=float, metavar='X', help='learning rate; from --lr-base and the batch if left out')
    add('--lr-base', type=float, default=0.1, metavar='X', help='learning rate of a batch of --lr-base-size')
    add('--lr-base-size', type=int, default=256, metavar='N', help='batch that --lr-base is for')
    add('--lr-base-scale', type=str, default='', metavar='MODE', help='linear or sqrt; by the optimizer if empty')
    add('--lr-noise', type=float, nargs='+', metavar='X', help='shares of the schedule between which noise is added')
    add('--lr-noise-pct', type=float, default=0.67, metavar='X', help='limit of the noise')
    add('--lr-noise-std', type=float, default=1.0, metavar='X', help='standard deviation of the noise')
    add('--lr-cycle-mul', type=float, default=1.0, metavar='X', help='growth of a cycle')
    add('--lr-cycle-decay', type=float, default=0.5, metavar='X', help='factor from cycle to cycle')
    add('--lr-cycle-limit', type=int, default=1, metavar='N', help='number of cycles')
    add('--lr-k-decay', type=float, default=1.0, metavar='K', help='k-decay of cosine and poly')
    add('--lr-decay-fn', type=str, metavar='NAME', help='wsd, rsqrt: shape of the decay')
    add('--lr-stable-timescale', type=float, metavar='N', help='rsqrt: time scale in epochs')
    add('--warmup-lr', type=float, default=1e-5, metavar='X', help='learning rate at the start of the warm-up')
    add('--min-lr', type=float, default=0, metavar='X', help='lowest learning rate')


def _add_schedule_options(parser: argparse.ArgumentParser) -> None:
    add = _group(parser, 'schedule')
    add('--sched', type=str, default='cosine', metavar='NAME', help='learning rate schedule')
    add('--sched-on-updates', action='store_true', help='schedule by update instead of by epoch')
    add('--epochs', type=int, default=300, metavar='N', help='epochs of the schedule')
    add('--epoch-repeats', type=float, default=0.0, metavar='X', help='times that an epoch repeats the data set')
    add('--start-epoch', type=int, metavar='N', help='epoch to start at')
    add('--stop-epoch', type=int, metavar='N', help='stop after this many epochs, the schedule unchanged')
    add('--decay-milestones', type=int, nargs='+', default=[90, 180, 270], metavar='N', help='multistep: epochs')
    add('--decay-epochs', type=float, default=90, metavar='N', help='epochs from step to step')
    add('--decay-rate', '--dr', type=float, default=0.1, metavar='X', help='factor of a step')
    add('--warmup-epochs', type=int, default=5, metavar='N', help='epochs of warm-up')
    add('--warmup-prefix', action='store_true', help='warm up before the schedule instead of within')
    add('--cooldown-epochs', type=int, default=0, metavar='N', help='epochs at the lowest learning rate at the end')
    add('--patience-epochs', type=int, default=10, metavar='N', help='plateau: epochs without improvement')


def _add_augmentation_options(parser: argparse.ArgumentParser) -> None:
    add = _group(parser, 'augmentation')
    add('--no-aug', action='store_true', help='no augmentation at all')
    add(
        '--train-crop-mode',
        type=str,
        metavar='MODE',
        help='rrc, rkrc, rkrr; pad: pad and crop, as for CIFAR; squash: the whole image, resized to the shape',
    )
    add('--scale', type=float, nargs='+', default=[0.08, 1.0], metavar='X', help='area of random crops')
    add('--ratio', type=float, nargs='+', default=[3 / 4, 4 / 3], metavar='X', help='aspect ratio of random crops')
    add('--hflip', type=float, default=0.5, metavar='P', help='probability of a horizontal flip')
    add('--vflip', type=float, default=0.0, metavar='P', help='probability of a vertical flip')
    add('--color-jitter', type=float, default=0.4, metavar='X', help='strength of color jitter')
    add('--color-jitter-prob', type=float, metavar='P', help='probability of color jitter')
    add('--grayscale-prob', type=float, metavar='P', help='probability of grey images')
    add('--gaussian-blur-prob', type=float, metavar='P', help='probability of blur')
    add('--aa', type=str, metavar='POLICY', help='AutoAugment, RandAugment or AugMix policy')
    add('--aug-repeats', type=float, default=0, metavar='N', help='augmented copies of an image, over several devices')
    add('--aug-splits', type=int, default=0, metavar='N', help='augmented versions of a batch: 0, or 2 and more')
    add('--reprob', type=float, default=0.0, metavar='P', help='probability of random erasing')
    add('--remode', type=str, default='pixel', metavar='MODE', help='what erased areas hold: const, rand or pixel')
    add('--recount', type=int, default=1, metavar='N', help='erased areas of an image')
    add('--resplit', action='store_true', help='leave the first split of a batch unerased')
    add('--train-interpolation', type=str, default='random', metavar='NAME', help='how training images are resized')
    add('--tta', type=int, default=0, metavar='N', help='augmented copies of an image at evaluation')


def _add_mixing_options(parser: argparse.ArgumentParser) -> None:
    add = _group(parser, 'mixup and cutmix')
    add('--mixup', type=float, default=0.0, metavar='ALPHA', help='mixup, on above 0')
    add('--cutmix', type=float, default=0.0, metavar='ALPHA', help='cutmix, on above 0')
    add('--cutmix-minmax', type=float, nargs='+', metavar='X', help='cutmix with this range of sizes')
    add('--mixup-prob', type=float, default=1.0, metavar='P', help='probability of mixing a batch')
    add('--mixup-switch-prob', type=float, default=0.5, metavar='P', help='of cutmix, where both are on')
    add('--mixup-mode', type=str, default='batch', metavar='MODE', help='mix each batch, pair or elem alike')
    add('--mixup-off-epoch', type=int, default=0, metavar='N', help='mix no more from this epoch on')


def _add_regularization_options(parser: argparse.ArgumentParser) -> None:
    add = _group(parser, 'regularization and batch norm')
    add('--drop', type=float, default=0.0, metavar='P', help='dropout')
    add('--drop-connect', type=float, metavar='P', help='the older way to say --drop-path')
    add('--drop-path', type=float, metavar='P', help='stochastic depth')
    add('--drop-block', type=float, metavar='P', help='dropout of areas')
    add('--bn-momentum', type=float, metavar='X', help='momentum of batch norm')
    add('--bn-eps', type=float, metavar='X', help='epsilon of batch norm')
    add('--split-bn', action='store_true', help='batch norm of its own for each split')


def _add_ema_options(parser: argparse.ArgumentParser) -> None:
    add = _group(parser, 'averaged weights')
    add('--model-ema', action='store_true', help='average the weights over training')
    add('--model-ema-force-cpu', action='store_true', help='keep the average on the CPU, not evaluated')
    add('--model-ema-decay', type=float, default=0.9998, metavar='X', help='decay of the average')
    add('--model-ema-warmup', action='store_true', help='start with a smaller decay')


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    add = _group(parser, 'run')
    add('--output', type=str, default='', metavar='DIR', help='folder of runs')
    add('--experiment', type=str, default='', metavar='NAME', help='folder of this run')
    add('--eval-metric', type=str, default='top1', metavar='NAME', help='metric of the best; map for several labels')
    add('--val-interval', type=int, default=1, metavar='N', help='epochs between evaluations')
    add('--log-interval', type=int, default=50, metavar='N', help='updates between log lines')
    add('--checkpoint-interval', type=str, metavar='N', help='updates (500), or minutes (10m), between checkpoints')
    add(
        '--allow-world-size-change',
        action='store_true',
        help='go on with another number of processes than the run had; no longer exact',
    )
    add(
        '--on-nonfinite',
        choices=('stop', 'skip'),
        default='stop',
        help='a loss or gradient that is not finite: stop before the update, or leave it out',
    )
    add('--recovery-interval', type=int, default=0, metavar='N', help='updates between recovery checkpoints')
    add('--checkpoint-hist', type=int, default=10, metavar='N', help='checkpoints kept')
    add('--save-epochs', type=int, nargs='+', metavar='N', help='epochs after which a checkpoint is kept for good')
    add('--save-images', action='store_true', help='save a training batch at each log line')


def _add_tracking_options(parser: argparse.ArgumentParser) -> None:
    add = _group(parser, 'tracking')
    add('--log-tensorboard', action='store_true', help='write TensorBoard events')
    add('--log-wandb', action='store_true', help='log to Weights & Biases')
    add('--wandb-project', type=str, metavar='NAME', help='project there')
    add('--wandb-tags', type=str, nargs='+', default=[], metavar='TAG', help='tags there')
    add('--wandb-resume-id', type=str, default='', metavar='ID', help='run there to go on with')


def _add_train_size_options(parser: argparse.ArgumentParser) -> None:
    add = _group(parser, 'several training sizes')
    add('--train-img-sizes', type=int, nargs='+', metavar='N', help='image sizes, one drawn a batch')
    add('--train-batch-sizes', type=int, nargs='+', metavar='N', help='batch of each size')
    add('--train-size-probs', type=float, nargs='+', metavar='P', help='weight of each size')
    add('--train-size-schedule', choices=('constant', 'progressive'), default='constant', help='order of sizes')
    add(
        '--train-size-schedule-spread', type=float, default=0.65, metavar='X', help='spread around the size of the time'
    )
    add('--train-size-random-mix', type=float, default=0.1, metavar='P', help='share of sizes drawn uniformly')
    add('--train-batches-per-epoch', '--train-steps-per-epoch', type=int, metavar='N', help='batches of an epoch')
    add('--variable-batch-loss-scale', choices=('none', 'sqrt', 'linear'), default='none', help='by batch size')


def _add_naflex_options(parser: argparse.ArgumentParser) -> None:
    add = _group(parser, 'NaFlex, not supported')
    hidden = argparse.SUPPRESS
    add('--naflex-loader', action='store_true', help=hidden)
    add('--naflex-train-seq-lens', type=int, nargs='+', default=[128, 256, 576, 784, 1024], help=hidden)
    add('--naflex-max-seq-len', type=int, default=576, help=hidden)
    add('--naflex-patch-sizes', type=int, nargs='+', help=hidden)
    add('--naflex-patch-size-probs', type=float, nargs='+', help=hidden)
    add('--naflex-loss-scale', choices=('none', 'sqrt', 'linear'), default='linear', help=hidden)
    add('--naflex-patchify-channels-first', action='store_true', help=hidden)


def _add_distillation_options(parser: argparse.ArgumentParser) -> None:
    add = _group(parser, 'distillation, not supported')
    hidden = argparse.SUPPRESS
    add('--kd-model-name', type=str, help=hidden)
    add('--kd-distill-type', choices=('logit', 'feature', 'token'), default='logit', help=hidden)
    add('--kd-loss-type', type=str, default='kl', help=hidden)
    add('--distill-loss-weight', type=float, help=hidden)
    add('--task-loss-weight', type=float, help=hidden)
    add('--kd-temperature', type=float, default=4.0, help=hidden)
    add('--kd-student-feature-dim', type=int, help=hidden)
    add('--kd-teacher-feature-dim', type=int, help=hidden)
    add('--kd-token-distill-type', choices=('soft', 'hard'), default='soft', help=hidden)
