"""What validate.py is to evaluate: which model, which weights, which data."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from timm.models import is_model, list_models, parse_model_name
from timm.utils import natural_key

from timm_hnc.errors import DataError, UsageError
from timm_hnc.files.options import read_options
from timm_hnc.weights.saving import find_weights

_OF_OTHER_LABELS = ['*_in21k', '*_in22k', '*in12k', '*_dino', '*fcmae', '*seer']
# options of a run that say which data it validated on
_DATA_OPTIONS = (
    'dataset',
    'class_map',
    'input_img_mode',
    'input_key',
    'target_key',
    'target_format',
    'task',
    'multilabel_threshold',
    'in_chans',
)


@dataclass(frozen=True)
class Source:
    """A model and where its weights come from.

    Args:
        model: name for timm.create_model, with its 'hf-hub:' or 'local-dir:' if it has one.
        pretrained: load the weights that come with the name.
        checkpoint: weights file to load, or ''.
    """

    model: str
    pretrained: bool = False
    checkpoint: str = ''


def use_run_data(args: Namespace, explicit: frozenset[str]) -> None:
    """Validate a run folder on its own validation data, unless the command line names other data.

    Args:
        args: options of validate.py, changed in place.
        explicit: names of the options that were given.

    Raises:
        DataError: the run's args.yaml cannot be read.
    """
    path = Path(args.checkpoint or '') / 'args.yaml'
    if not args.checkpoint or not path.is_file() or {'data', 'data_dir', 'dataset'} & explicit:
        return
    options = read_options(path.parent)
    for name in _DATA_OPTIONS:
        if name not in explicit and name in options:
            setattr(args, name, options[name])
    args.data_dir = options.get('data_dir')
    if 'split' in explicit:
        return
    args.split = options.get('val_split') or args.split
    if options.get('holdout') and 'holdout' not in explicit:
        args.holdout, args.seed = options['holdout'], options['seed']


def find_sources(args: Namespace, explicit: frozenset[str]) -> list[Source]:
    """The models to evaluate; more than one for a folder of checkpoints, a file of names, a wildcard or 'all'.

    Raises:
        UsageError: no such model.
        DataError: no such weights.
    """
    if args.checkpoint:
        return _of_checkpoint(args, explicit)
    if Path(args.model).is_file():
        names = [line.strip() for line in Path(args.model).read_text().splitlines() if line.strip()]
    elif _is_one_model(args.model):
        names = [args.model]
    elif args.model == 'all':
        names = list_models(pretrained=True, exclude_filters=_OF_OTHER_LABELS)
    else:
        names = list_models(args.model, pretrained=True)
    if not names:
        raise UsageError(f"--model '{args.model}' is no model of timm's, no pattern of its names and no file of names.")
    return [Source(name, pretrained=True) for name in names]


def _is_one_model(name: str) -> bool:
    try:
        return bool(parse_model_name(name)[0]) or is_model(name)
    except ValueError as error:
        raise UsageError(f'--model: {error}') from error


def _of_checkpoint(args: Namespace, explicit: frozenset[str]) -> list[Source]:
    path = Path(args.checkpoint)
    if not path.exists():
        raise DataError(f"--checkpoint '{path}' does not exist.")
    if path.is_file():
        if not is_model(args.model):
            raise UsageError(f"--model '{args.model}' is no model of timm's: a weights file needs its architecture.")
        return [Source(args.model, checkpoint=str(path))]
    folder = find_weights(path)
    if folder is not None:
        return [Source(f'local-dir:{folder}', pretrained=True)]
    files = sorted([*path.glob('*.pth.tar'), *path.glob('*.pth')], key=lambda file: natural_key(str(file)))
    if not files:
        raise DataError(f"--checkpoint '{path}' is neither a run folder nor its model_best, and holds no .pth files.")
    return [Source(args.model, checkpoint=str(file)) for file in files]
