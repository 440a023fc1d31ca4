"""The parser of train.py: every flag of timm's script with its spelling, default and meaning, and HNC's own."""

import argparse
from typing import Any

from timm.loss import LOSS_TYPES

from timm_hnc.commands.options.flags import Arguments, add_flags
from timm_hnc.commands.options.parsing import CommandParser
from timm_hnc.commands.options.shared import add_data_flags, add_device_flags, add_input_flags, add_loader_flags
from timm_hnc.data.naflex import TrainNaFlexOptions
from timm_hnc.launcher import command_words
from timm_hnc.losses.factory import LOSSES, MAP_LOSSES
from timm_hnc.training.setup.data_options import (
    AugmentationOptions,
    BatchOptions,
    MixupOptions,
    SplitOptions,
    TrainSizeOptions,
)
from timm_hnc.training.setup.environment import ProcessOptions
from timm_hnc.training.setup.models import ModelOptions
from timm_hnc.training.setup.objective.distillation import DistillationOptions
from timm_hnc.training.setup.objective.loss_options import HNCOptions, LossOptions, MapLossOptions, weight_or_share
from timm_hnc.training.setup.optimizer import EmaOptions, OptimizerOptions, ScheduleOptions
from timm_hnc.training.setup.options import FilledIn, RunOptions
from timm_hnc.training.setup.output_options import HubOptions, TrackingOptions


def build_parser() -> argparse.ArgumentParser:
    """The parser of train.py, a group of flags an option dataclass."""
    parser = CommandParser(
        prog=' '.join(command_words('train.py')),
        description='Train a timm image classifier, with or without the Homogeneous Negative CAM loss.',
    )
    parser.add_argument('-c', '--config', type=str, default='', metavar='FILE', help='YAML file of options')
    add_data_flags(parser)
    add_flags(parser, 'splits', SplitOptions, {'label_noise': {'metavar': 'TYPE:RATE'}})
    hnc: Arguments = {'hnc_topk': {'metavar': 'K'}, 'hnc_weight': {'type': weight_or_share, 'metavar': 'X'}}
    add_flags(parser, 'Homogeneous Negative CAM', HNCOptions, hnc)
    names = ', '.join(f'{name} ({kind.default_weight:g})' for name, kind in MAP_LOSSES.items())
    help = f'losses on class maps, added to the criterion; NAME=WEIGHT for another weight than its own: {names}'
    maps: Arguments = {
        'map_loss': {'nargs': '*', 'metavar': 'NAME', 'help': help},
        'boxes_dir': {'metavar': 'DIR'},
        'masks_dir': {'metavar': 'DIR'},
        'masks_key': {'metavar': 'KEY'},
    }
    add_flags(parser, 'losses on class maps', MapLossOptions, maps)
    add_flags(parser, 'Hugging Face Hub', HubOptions, {'push_to_hub': {'metavar': 'USER/NAME'}})
    _add_loss_flags(parser)
    paths = {name: {'metavar': 'PATH'} for name in ('pretrained_path', 'initial_checkpoint')}
    add = add_flags(parser, 'model', ModelOptions, paths).add_argument
    add('--drop-connect', type=float, metavar='X', help='the older way to say --drop-path')
    add_input_flags(parser)
    shorts = {'batch_size': {'short': '-b'}, 'validation_batch_size': {'short': '-vb'}}
    add_flags(parser, 'batches', BatchOptions, shorts)
    add_loader_flags(parser)
    add_device_flags(parser)
    dims = {f'kd_{name}_feature_dim': {'metavar': 'N'} for name in ('student', 'teacher')}
    add_flags(parser, 'a teacher', DistillationOptions, dims)
    several = add_flags(parser, 'several devices', ProcessOptions)
    several.add_argument('--local_rank', type=int, default=0, help=argparse.SUPPRESS)
    add_flags(parser, 'optimizer', OptimizerOptions)
    add_flags(parser, 'learning rate and schedule', ScheduleOptions, {'decay_rate': {'also': '--dr'}})
    add_flags(parser, 'augmentation', AugmentationOptions, {'aa': {'metavar': 'POLICY'}})
    add_flags(parser, 'mixup and cutmix', MixupOptions)
    add_flags(parser, 'averaged weights', EmaOptions)
    folders = {'output': {'metavar': 'DIR'}, 'resume': {'metavar': 'PATH'}, 'checkpoint_interval': {'metavar': 'N'}}
    add_flags(parser, 'run', RunOptions, folders)
    add_flags(parser, 'tracking', TrackingOptions)
    longer = {'train_batches_per_epoch': {'also': '--train-steps-per-epoch'}}
    add_flags(parser, 'several training sizes', TrainSizeOptions, longer)
    add_flags(parser, 'images of any shape', TrainNaFlexOptions)
    # of a run's args.yaml alone
    hidden = {'filled_in': {'nargs': '*', 'help': argparse.SUPPRESS}, 'scaled_lr': {'help': argparse.SUPPRESS}}
    add_flags(parser, 'defaults', FilledIn, hidden)
    return parser


def _add_loss_flags(parser: argparse.ArgumentParser) -> None:
    help = (
        f'ce, or bce for several labels, if left out; timm: {", ".join(LOSS_TYPES)}; '
        f'with options in --loss-kwargs: {", ".join(LOSSES)}'
    )
    arguments: dict[str, dict[str, Any]] = {
        'loss': {'choices': (*LOSS_TYPES, *LOSSES), 'help': help},
        'class_stats': {'metavar': 'FILE'},
        'loss_pos_weight': {'metavar': 'W'},
        'loss_class_weight': {'metavar': 'W'},
    }
    add = add_flags(parser, 'loss', LossOptions, arguments).add_argument
    add('--bce-loss', action='store_true', help='the older way to say --loss bce')
    add('--jsd-loss', action='store_true', help='the older way to say --loss jsd')
    add('--bce-pos-weight', type=float, metavar='X', help='the older way to say --loss-pos-weight')
