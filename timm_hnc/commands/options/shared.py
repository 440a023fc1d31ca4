"""The flags that train.py and validate.py share."""

import argparse

from timm_hnc.commands.options.flags import add_flags
from timm_hnc.data.inputs import InputOptions
from timm_hnc.data.options import DataOptions, LoaderOptions, TaskOptions
from timm_hnc.runtime.device import DeviceOptions

COMPILE_ADVICE = 'use --torchcompile.'


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Where the images and labels come from."""
    parser.add_argument('data', nargs='?', metavar='DIR', help='data folder, the older way to say --data-dir')
    files = {'data_dir': {'metavar': 'DIR'}, 'class_map': {'metavar': 'FILE'}, 'input_img_mode': {'metavar': 'MODE'}}
    fields = {'input_key': {'metavar': 'KEY'}, 'holdout': {'metavar': 'SHARE'}}
    add_flags(parser, 'data', DataOptions, files | fields)
    add_flags(parser, 'task', TaskOptions, {'target_key': {'metavar': 'KEY'}, 'multilabel_threshold': {'metavar': 'P'}})


def add_input_flags(parser: argparse.ArgumentParser) -> None:
    """What the model is fed, and its head."""
    names = {'gp': {'metavar': 'POOL'}, 'crop_mode': {'metavar': 'MODE'}}
    add_flags(parser, 'input and head', InputOptions, names | {'input_size': {'nargs': 3}})


def add_loader_flags(parser: argparse.ArgumentParser) -> None:
    """How images are loaded, and the seed."""
    add_flags(parser, 'loading', LoaderOptions, {'workers': {'short': '-j'}, 'worker_timeout': {'metavar': 'SECONDS'}})


def add_device_flags(parser: argparse.ArgumentParser) -> None:
    """Device, number formats and compilation."""
    types = {name: {'metavar': 'TYPE'} for name in ('amp_dtype', 'model_dtype')}
    others = {'device': {'metavar': 'DEVICE'}, 'torchcompile_mode': {'metavar': 'MODE'}}
    compiler = {'torchcompile': {'nargs': '?', 'const': 'inductor', 'metavar': 'BACKEND'}}
    group = add_flags(parser, 'device and precision', DeviceOptions, types | others | compiler)
    group.add_argument('--fuser', type=str, default='', help=argparse.SUPPRESS)
    group.add_argument('--torchscript', action='store_true', help=argparse.SUPPRESS)
