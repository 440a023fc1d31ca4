"""Options of validate.py: timm's flags with timm's meaning, and the checks that come before data and weights.

The groups and checks that train.py has too are public here; training imports them.
"""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec

from timm.data.readers.targets import TARGET_FORMATS, check_target_format, parse_target_keys

from timm_hnc.commands.command_line import (
    HelpFormatter,
    KeyValues,
    command_words,
    parse_options,
    refuse,
    require_one_of,
    require_range,
)
from timm_hnc.commands.options.attack_options import add_attack_options, attacks_of
from timm_hnc.data.boxes import FORMATS
from timm_hnc.data.datasets import is_streamed
from timm_hnc.data.transforms import INTERPOLATIONS
from timm_hnc.errors import UsageError
from timm_hnc.evaluation.compilation import resolve_compilation
from timm_hnc.files.options import flag_of

TASKS = ('classification', 'multilabel')

NAFLEX_ADVICE = 'NaFlex models are not supported: use a model of fixed size with --img-size'
COMPILE_ADVICE = 'use --torchcompile.'

REFUSED = {
    'torchscript': COMPILE_ADVICE,
    'fuser': COMPILE_ADVICE,
    'aot_autograd': COMPILE_ADVICE,
    'num_gpu': 'use accelerate launch --num_processes N validate.py ... or torchrun.',
    'naflex_loader': f'{NAFLEX_ADVICE}.',
    'naflex_max_seq_len': f'{NAFLEX_ADVICE}.',
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of validate.py: every flag of timm's script, and those of the task."""
    parser = argparse.ArgumentParser(
        prog=' '.join(command_words('validate.py')),
        description='Evaluate a timm image classifier.',
        formatter_class=HelpFormatter,
    )
    add_data_options(parser)
    add_task_options(parser)
    _add_model_options(parser)
    add_input_options(parser)
    _add_evaluation_options(parser)
    add_attack_options(parser)
    _add_map_options(parser)
    add_loader_options(parser)
    compilers = add_device_options(parser)
    compilers.add_argument('--aot-autograd', action='store_true', help=argparse.SUPPRESS)
    _add_result_options(parser)
    _add_refused_options(parser)
    return parser


def parse_validate_options(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, frozenset[str]]:
    """Parse and check the command line of validate.py.

    Args:
        argv: the command line, that of the process if None.

    Returns:
        The options, and the destinations that were given explicitly.

    Raises:
        UsageError: options that cannot work, alone or together.

    Example:
        >>> args, explicit = parse_validate_options(['--model', 'resnet18', '--data-dir', 'imagenet'])
    """
    parser = build_parser()
    args, explicit = parse_options(parser, argv)
    refuse(parser, args, explicit, REFUSED)
    # in timm's validate.py the positional folder comes first; in its train.py --data-dir does
    args.data_dir = args.data or args.data_dir
    resolve_compilation(args)
    check_validate_options(args)
    return args, explicit


def check_validate_options(args: argparse.Namespace) -> None:
    """Refuse options that cannot work, before any data or weights are read.

    Raises:
        UsageError: with the flag, its value and what is allowed.
    """
    for dest in ('batch_size', 'log_freq', 'num_samples', 'cam_topk'):
        require_range(args, dest, low=1)
    for dest in ('workers', 'crop_border_pixels'):
        require_range(args, dest, low=0)
    require_one_of(args, 'results_format', ('csv', 'json'))
    check_input_options(args)
    check_holdout(args)
    check_precision(args)
    check_task(args)
    attacks_of(args)
    check_map_options(args)
    if args.task == 'multilabel':
        for dest in ('metrics_avg', 'real_labels', 'valid_labels'):
            if getattr(args, dest):
                raise UsageError(
                    f'{flag_of(dest)} {getattr(args, dest)}: for --task classification only; --task multilabel '
                    'reports mAP and the micro, macro and sample F1.'
                )


def check_map_options(args: argparse.Namespace) -> None:
    """Refuse what class activation maps cannot be measured with.

    Raises:
        UsageError: with the flag and what is in its way.
    """
    require_range(args, 'cam_curves', low=0)
    flag = next((flag_of(name) for name in ('cam_metrics', 'cam_boxes', 'cam_curves') if getattr(args, name)), None)
    if flag and (args.torchcompile or args.test_pool):
        raise UsageError(f'{flag}: not together with {"--torchcompile" if args.torchcompile else "--test-pool"}.')
    if args.boxes_dir and not args.cam_boxes:
        raise UsageError(f'--boxes-dir {args.boxes_dir}: needs --cam-boxes.')
    if args.cam_boxes and is_streamed(args.dataset):
        raise UsageError(f'--cam-boxes: {args.dataset} is streamed, its images have no index.')
    if args.cam_classes_file and not args.cam_metrics:
        raise UsageError(f'--cam-classes-file {args.cam_classes_file}: needs --cam-metrics.')


def check_input_options(args: argparse.Namespace) -> None:
    """Refuse sizes, channels and statistics of the images, and numbers of classes, that no model can take.

    Raises:
        UsageError: with the flag, its value and what is allowed.
    """
    for dest in ('img_size', 'in_chans', 'input_size', 'num_classes'):
        require_range(args, dest, low=1)
    require_range(args, 'seed', low=0, below=2**32)
    require_range(args, 'worker_timeout', low=0)
    require_one_of(args, 'interpolation', ('', *INTERPOLATIONS))
    if getattr(args, 'tf_preprocessing', False) and find_spec('tensorflow') is None:
        raise UsageError('--tf-preprocessing needs the package tensorflow.')
    require_range(args, 'crop_pct', low=0)
    require_one_of(args, 'crop_mode', (None, '', 'squash', 'border', 'center'))
    channels = args.in_chans or 3
    if args.input_size:
        channels = args.input_size[0]
        if args.in_chans not in (None, channels):
            raise UsageError(
                f'--in-chans {args.in_chans}: --input-size {" ".join(map(str, args.input_size))} has {channels}.'
            )
    for dest in ('mean', 'std'):
        require_range(args, dest)
        values = getattr(args, dest)
        if values is not None and len(values) not in (1, channels):
            raise UsageError(
                f'{flag_of(dest)}: {len(values)} values for {channels} channels, expected 1 or {channels}.'
            )
    if args.std is not None and min(args.std) <= 0:
        raise UsageError(f'--std {min(args.std)}: expected more than 0.')


def check_holdout(args: argparse.Namespace) -> None:
    """Refuse a share that is none, and data whose images cannot be told apart.

    Raises:
        UsageError: with the flag and its value.
    """
    require_range(args, 'holdout', low=0, below=1)
    if args.holdout and is_streamed(args.dataset):
        raise UsageError(f'--holdout {args.holdout:g}: {args.dataset} is streamed, its images have no index.')


def check_data_named(args: argparse.Namespace) -> None:
    """Refuse a command line that names no data.

    Raises:
        UsageError: with the flags that name it.
    """
    if not (args.data_dir or args.dataset):
        raise UsageError('no data: pass --data-dir DIR, or --dataset NAME.')


def check_precision(args: argparse.Namespace) -> None:
    """Refuse unknown number formats, and a model in another than float32 under --amp.

    Raises:
        UsageError: with the flag, its value and what is allowed.
    """
    require_one_of(args, 'amp_dtype', ('float16', 'bfloat16'))
    require_one_of(args, 'model_dtype', (None, '', 'float32', 'float16', 'bfloat16', 'float64'))
    if args.amp and args.model_dtype not in (None, '', 'float32'):
        raise UsageError(f'--model-dtype {args.model_dtype}: --amp needs a float32 model; leave out one of the two.')


def check_task(args: argparse.Namespace) -> None:
    """Refuse label formats that do not go with the task.

    Raises:
        UsageError: with the flag, its value and what is allowed.
    """
    if not 0 < args.multilabel_threshold < 1:
        raise UsageError(f'--multilabel-threshold {args.multilabel_threshold}: expected more than 0 and less than 1.')
    try:
        target_keys = parse_target_keys(args.target_key)
        check_target_format(args.target_format, target_keys)
    except ValueError as error:
        raise UsageError(f'--target-key {args.target_key}: {error}') from error
    if args.task == 'multilabel':
        return
    if args.target_format is not None:
        raise UsageError(f'--target-format {args.target_format}: for --task multilabel only.')
    if target_keys:
        raise UsageError(f'--target-key {args.target_key}: several fields are for --task multilabel only.')


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Where the images and labels come from."""
    parser.add_argument('data', nargs='?', metavar='DIR', help='data folder, the older way to say --data-dir')
    add = parser.add_argument_group('data').add_argument
    add('--data-dir', metavar='DIR', help='data folder')
    add('--dataset', metavar='NAME', default='', help='type/name of the data set; a folder of images if empty')
    add('--dataset-download', action='store_true', help='download the data set, where its type allows it')
    add('--class-map', type=str, metavar='FILE', default='', help='file that maps class names to indices')
    add('--input-img-mode', type=str, metavar='MODE', help='PIL mode that images are converted to')
    add('--input-key', type=str, metavar='KEY', help='field of the data set that holds the image')
    add('--target-key', type=str, metavar='KEY', help='field that holds the label; a,b,c for one binary field a class')
    add(
        '--holdout',
        type=float,
        default=0.0,
        metavar='SHARE',
        help='keep this share of the training split for validation',
    )
    add('--dataset-trust-remote-code', action='store_true', help="run code that comes with the Hub's data set")


def add_task_options(parser: argparse.ArgumentParser) -> None:
    """One label an image, or several."""
    add = parser.add_argument_group('task').add_argument
    add('--task', choices=TASKS, default='classification', help='one label an image, or several')
    add('--target-format', choices=TARGET_FORMATS, help='several labels: class indices, or one value a class')
    add('--multilabel-threshold', type=float, default=0.5, metavar='P', help='probability from which F1 counts a label')


def add_input_options(parser: argparse.ArgumentParser) -> None:
    """What the model is fed, and its head."""
    add = parser.add_argument_group('input and head').add_argument
    add('--num-classes', type=int, metavar='N', help="number of classes, the model's own if left out")
    add('--gp', type=str, metavar='POOL', help='global pooling: avg, max, avgmax, catavgmax, fast, ...')
    add('--img-size', type=int, metavar='N', help='height and width of the input')
    add('--in-chans', type=int, metavar='N', help='channels of the input')
    add('--input-size', type=int, nargs=3, metavar='N', help='channels, height and width of the input')
    add('--crop-pct', type=float, metavar='X', help='share of the resized image that the center crop keeps')
    add('--crop-mode', type=str, metavar='MODE', help='how it is cropped: squash, border or center')
    add('--mean', type=float, nargs='+', metavar='X', help='mean that images are normalised with')
    add('--std', type=float, nargs='+', metavar='X', help='standard deviation that images are normalised with')
    add('--interpolation', type=str, default='', metavar='NAME', help='how images are resized')
    add('--model-kwargs', nargs='*', default={}, action=KeyValues, metavar='K=V', help='further model arguments')


def add_loader_options(parser: argparse.ArgumentParser) -> None:
    """How images are loaded, and the seed."""
    add = parser.add_argument_group('loading').add_argument
    add('-j', '--workers', type=int, default=4, metavar='N', help='processes that load data')
    add(
        '--worker-timeout',
        type=float,
        default=600,
        metavar='SECONDS',
        help='end the run where a loading process gives nothing for so long; 0: never',
    )
    add('--pin-mem', action='store_true', help='pin host memory')
    add('--no-prefetcher', action='store_true', help="load without timm's prefetcher")
    add('--seed', type=int, default=42, metavar='N', help='random seed')


def add_device_options(parser: argparse.ArgumentParser) -> 'argparse._MutuallyExclusiveGroup':
    """Device, number formats and compilation; returns the group of the ways to compile."""
    group = parser.add_argument_group('device and precision')
    add = group.add_argument
    add('--device', type=str, default='cuda', help='device to run on')
    add('--amp', action='store_true', help='mixed precision')
    add('--amp-dtype', type=str, default='float16', metavar='TYPE', help='of --amp: float16 or bfloat16')
    add('--model-dtype', type=str, metavar='TYPE', help='without --amp: float32, float16, bfloat16 or float64 weights')
    add('--channels-last', action='store_true', help='channels-last memory layout')
    add('--fast-norm', action='store_true', help='norm layers in the lower precision')
    add('--torchcompile-mode', type=str, metavar='MODE', help='mode of torch.compile')
    add('--fuser', type=str, default='', help=argparse.SUPPRESS)
    compilers = group.add_mutually_exclusive_group()
    compilers.add_argument('--torchscript', action='store_true', help=argparse.SUPPRESS)
    compilers.add_argument(
        '--torchcompile', type=str, nargs='?', const='inductor', metavar='BACKEND', help='compile the model'
    )
    return compilers


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('model').add_argument
    add('--model', '-m', metavar='NAME', default='dpn92', help='model name')
    add('--pretrained', action='store_true', help='load the published weights')
    add('--checkpoint', type=str, metavar='PATH', default='', help='run folder, its model_best, or a weights file')
    add('--use-ema', action='store_true', help="take a checkpoint's averaged weights, where it has them")
    add('--reparam', action='store_true', help='fuse the branches of models that can be')


def _add_evaluation_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('evaluation').add_argument
    add('--split', metavar='NAME', default='validation', help='split of the data set')
    add('--num-samples', type=int, metavar='N', help='number of samples, for data sets that do not know it')
    add('-b', '--batch-size', type=int, default=256, metavar='N', help='images in a batch, on each device')
    add('--use-train-size', action='store_true', help='evaluate at the training size')
    add('--crop-border-pixels', type=int, metavar='N', help='pixels cut off each border')
    add('--tf-preprocessing', action='store_true', help="TensorFlow's preprocessing")
    add('--test-pool', action='store_true', help='pool at test time over larger inputs')
    add('--retry', action='store_true', help='try smaller batches when memory runs out')


def _add_map_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('class activation maps').add_argument
    add('--cam-metrics', action='store_true', help='how flat the maps of absent classes are, and those of present ones')
    add('--cam-topk', type=int, default=10, metavar='K', help='absent classes of each image, highest logits first')
    add('--cam-boxes', action='store_true', help='maps of present classes against the boxes of their objects')
    add('--cam-curves', type=int, default=0, metavar='STEPS', help='deletion and insertion curves of so many steps')
    add('--boxes-dir', type=str, metavar='DIR', help="folder of ImageNet's XML files, for a folder of images")
    add('--boxes-key', type=str, default='objects', metavar='KEY', help='column of objects, with bbox and category')
    add('--boxes-format', choices=FORMATS, default='xyxy', help='corners, or a corner, width and height')
    add('--cam-classes-file', type=str, default='', metavar='FILE', help='CSV of these figures, a row a class')


def _add_result_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('results').add_argument
    add('--log-freq', type=int, default=10, metavar='N', help='batches between log lines')
    add('--results-file', type=str, default='', metavar='FILE', help='where the results are written')
    add('--results-format', type=str, default='csv', metavar='FORMAT', help='csv or json')
    add('--real-labels', type=str, default='', metavar='FILE', help='JSON file of the reassessed ImageNet labels')
    add('--valid-labels', type=str, default='', metavar='FILE', help='text file of the class indices to evaluate')
    add('--metrics-avg', choices=('micro', 'macro', 'weighted'), help='precision, recall and F1, averaged this way')


def _add_refused_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('not supported').add_argument
    add('--num-gpu', type=int, default=1, help=argparse.SUPPRESS)
    add('--naflex-loader', action='store_true', help=argparse.SUPPRESS)
    add('--naflex-max-seq-len', type=int, default=576, help=argparse.SUPPRESS)
