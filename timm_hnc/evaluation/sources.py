"""What validate.py is to evaluate: which models, with which weights."""

import logging
from dataclasses import dataclass
from pathlib import Path

from timm.models import is_model, list_models, parse_model_name
from timm.utils import natural_key

from timm_hnc.errors import DataError, UsageError
from timm_hnc.weights.saving import WEIGHTS, check_architecture, find_weights

_logger = logging.getLogger(__name__)
_OF_OTHER_LABELS = ['*_in21k', '*_in22k', '*in12k', '*_dino', '*fcmae', '*seer']


@dataclass(frozen=True)
class SourceOptions:
    """Which model is evaluated, and its weights.

    Args:
        model: model name.
        pretrained: does nothing: published weights are loaded unless there is a --checkpoint, as in timm.
        checkpoint: run folder, its model_best, or a weights file.
        use_ema: take a checkpoint's averaged weights, where it has them.
        reparam: fuse the branches of models that can be.
    """

    model: str = 'dpn92'
    pretrained: bool = False
    checkpoint: str = ''
    use_ema: bool = False
    reparam: bool = False


@dataclass(frozen=True)
class Source:
    """A model and where its weights come from.

    Args:
        model: name for timm.create_model, with its 'hf-hub:' or 'local-dir:' if it has one.
        pretrained: load the weights that come with the name.
        checkpoint: weights file to load, or ''.
        name: what its figures and errors call it; the model's if left out.
    """

    model: str
    pretrained: bool = False
    checkpoint: str = ''
    name: str = ''

    def __post_init__(self) -> None:
        object.__setattr__(self, 'name', self.name or self.model)


def find_sources(options: SourceOptions, model_given: bool) -> list[Source]:
    """The models to evaluate; more than one for a folder of checkpoints, a file of names, a wildcard or 'all'."""
    if options.checkpoint:
        return _of_checkpoint(options, model_given)
    if Path(options.model).is_file():
        try:
            text = Path(options.model).read_text(encoding='utf-8-sig')
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--model '{options.model}' is no text file of names; weights: --checkpoint.") from error
        names = [line.strip() for line in text.splitlines() if line.strip()]
    elif _is_one_model(options.model):
        names = [options.model]
    elif options.model == 'all':
        names = list_models(pretrained=True, exclude_filters=_OF_OTHER_LABELS)
    else:
        names = list_models(options.model, pretrained=True)
    if not names:
        raise UsageError(
            f"--model '{options.model}' is no model of timm's, no pattern of its names and no file of names."
        )
    return [Source(name, pretrained=True) for name in names]


def _is_one_model(name: str) -> bool:
    try:
        return bool(parse_model_name(name)[0]) or is_model(name)
    except ValueError as error:
        raise UsageError(f'--model: {error}') from error


def _of_checkpoint(options: SourceOptions, model_given: bool) -> list[Source]:
    path = Path(options.checkpoint)
    if not path.exists():
        raise DataError(f"--checkpoint '{path}' does not exist.")
    if path.is_file() and not (path.name == WEIGHTS and (path.parent / 'config.json').is_file()):
        _check_named(options.model, model_given, f"--checkpoint '{path}': a file of weights")
        return [Source(options.model, checkpoint=str(path))]
    folder = find_weights(path.parent if path.is_file() else path)
    if folder is not None:
        given = options.model if model_given else None
        name = check_architecture(folder, f"--checkpoint '{path}'", given)
        if options.use_ema:
            _logger.warning(
                f"--use-ema: does nothing, '{path}' has one set of weights, the average where that was evaluated."
            )
        return [Source(f'local-dir:{folder}', pretrained=True, name=name)]
    files = sorted([*path.glob('*.pth.tar'), *path.glob('*.pth')], key=lambda file: natural_key(str(file)))
    if not files:
        raise DataError(f"--checkpoint '{path}' is neither a run folder nor its model_best, and holds no .pth files.")
    _check_named(options.model, model_given, f"--checkpoint '{path}': a folder of weights")
    return [Source(options.model, checkpoint=str(file)) for file in files]


def _check_named(model: str, model_given: bool, what: str) -> None:
    """Refuse weights alone without the name of their architecture."""
    if not model_given:
        raise UsageError(f'{what} needs its architecture, see --model.')
    if not is_model(model):
        raise UsageError(f"{what} needs its architecture, --model '{model}' names none of timm's.")
