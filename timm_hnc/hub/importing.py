"""Checkpoints of other code as run folders: the authors' ImageNet networks, or any state dict of a timm model."""

import os
import shutil
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import is_model, load_state_dict

from timm_hnc.data.inputs import InputOptions, model_arguments
from timm_hnc.errors import DataError, UsageError, first_lines
from timm_hnc.files.manifest import digest_of
from timm_hnc.files.run_options import dump_yaml
from timm_hnc.files.tables import write_json
from timm_hnc.weights.loading import is_of_classes
from timm_hnc.weights.saving import WEIGHTS, save_pretrained

# of PyTorch's ImageNet example, which the authors' code follows
_IMAGENET_EXAMPLE: dict[str, Any] = {
    'input_size': (3, 224, 224),
    'crop_pct': 0.875,
    'crop_mode': 'center',
    'interpolation': 'bilinear',
    'mean': IMAGENET_DEFAULT_MEAN,
    'std': IMAGENET_DEFAULT_STD,
}
# of timm's own weights of the architecture
_OF_OTHERS = {'tag', 'paper_ids', 'paper_name', 'origin_url', 'notes', 'description', 'license', 'pool_size'}
_WEIGHTS = Path('checkpoints', 'imported', 'model')


def import_checkpoint(
    file: Path,
    model_name: str,
    folder: Path,
    arguments: dict[str, Any],
    hnc: dict[str, Any] | None,
    data_config: dict[str, Any],
    use_ema: bool = False,
) -> None:
    """Make a run folder of a checkpoint, that validates and publishes like one of train.py.

    The file is a state dict or holds one as `state_dict` or `model`, possibly with the `module.` of DataParallel before
    its names. It is loaded without executing anything (`weights_only=True`).

    Args:
        file: .pth, .pth.tar or .safetensors.
        model_name: timm's name of the architecture.
        folder: the run folder, which must not exist.
        arguments: of the architecture, for timm's create_model, such as num_classes, in_chans and global_pool.
        hnc: what the config's `hnc` block says of its training.
        data_config: what is known of its images, such as their input_size; the rest is as in PyTorch's ImageNet
            example, or as this package's CIFAR networks say.
        use_ema: take `state_dict_ema` or `model_ema` where the file has one.

    Raises:
        UsageError: the folder exists, there is no such architecture, it takes no images of that size, or the file is
            one of this package's, which the folder beside it describes.
        DataError: the file cannot be read, is of another architecture, or has numbers that are not finite.
    """
    if folder.exists():
        raise UsageError(f"run folder '{folder}' exists already: choose another --out.")
    if not is_model(model_name):
        raise UsageError(f"--model '{model_name}' is no model of timm's.")
    if file.name == WEIGHTS and (file.parent / 'config.json').is_file():
        raise UsageError(
            f"'{file}' has its config.json beside it: '{file.parent}' is taken as it is, wherever a run is."
        )
    state = _read(file, use_ema)
    model = _create(model_name, data_config, arguments)
    try:
        model.load_state_dict(state)
    except (RuntimeError, AttributeError, TypeError) as error:
        way_out = ' See --num-classes.' if is_of_classes(error, model) else ''
        raise DataError(f"checkpoint '{file}' is not of a '{model_name}': {first_lines(error)}{way_out}") from error
    _check_finite(file, state)
    data_config = _set_images(model, model_name, data_config, arguments.get('in_chans'))
    recorded = {f'hnc_{name}': value for name, value in (hnc or {}).items() if name != 'variant'}
    about = {'model': model_name, 'num_classes': model.num_classes, 'hnc': (hnc or {}).get('variant', 'none')}
    own = {name: value for name, value in arguments.items() if name not in ('num_classes', 'global_pool')}
    about |= {'gp': arguments.get('global_pool'), 'model_kwargs': own}
    result = {'model': model_name, 'imported_from': file.name, 'sha256': digest_of(file)}
    _write_run(folder, model, data_config, hnc, {**about, **recorded}, result)


def _write_run(
    folder: Path,
    model: Any,
    data_config: dict[str, Any],
    hnc: dict[str, Any] | None,
    options: dict[str, Any],
    result: dict[str, Any],
) -> None:
    """Write the run folder at once, or nothing of it."""
    unfinished = folder.with_name(f'.{folder.name}.unfinished')
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        save_pretrained(model, unfinished / _WEIGHTS, data_config=data_config, hnc=hnc)
        os.symlink(_WEIGHTS, unfinished / 'model_best')
        (unfinished / 'args.yaml').write_text(dump_yaml(options), encoding='utf-8')
        write_json(unfinished / 'result.json', result)
        unfinished.rename(folder)
    except (OSError, SafetensorError) as error:
        raise DataError(f"run folder '{folder}' cannot be written: {first_lines(error)}") from error
    except ValueError as error:  # timm's, of a model that takes images of one size
        raise UsageError(f'--img-size {data_config["input_size"][-1]}: {first_lines(error)}') from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _check_finite(file: Path, state: dict[str, Any]) -> None:
    broken = next(
        (name for name, each in state.items() if each.is_floating_point() and not each.isfinite().all()), None
    )
    if broken:
        raise DataError(f"checkpoint '{file}': '{broken}' has numbers that are not finite.")


def _set_images(model: Any, name: str, data_config: dict[str, Any], channels: int | None) -> dict[str, Any]:
    """Write into the model's config what is known of its images, and return it."""
    # what timm knows of its own weights of this architecture does not hold for these
    kept = {name: value for name, value in model.pretrained_cfg.items() if name not in _OF_OTHERS}
    usual = {name: kept[name] for name in _IMAGENET_EXAMPLE} if name.startswith('cifar_') else _IMAGENET_EXAMPLE
    data_config = usual | data_config
    channels = channels or getattr(model, 'in_chans', 3)
    data_config['input_size'] = (channels, *data_config['input_size'][1:])
    for each in ('mean', 'std'):
        if len(data_config[each]) != channels:
            raise UsageError(f'--{each}: expected {channels} values, one a channel of the model.')
    model.pretrained_cfg = kept | data_config
    return data_config


def _read(file: Path, use_ema: bool) -> Any:
    if not file.is_file():
        what = 'is a folder, expected a file' if file.is_dir() else 'does not exist'
        raise DataError(f"checkpoint '{file}' {what}.")
    try:
        return load_state_dict(str(file), use_ema=use_ema, weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler meets
        raise DataError(
            f"checkpoint '{file}' cannot be read without executing code: {first_lines(error, 160)}"
        ) from error


def _create(model_name: str, data_config: dict[str, Any], arguments: dict[str, Any]) -> Any:
    size = data_config.get('input_size')
    try:
        sized = model_arguments(model_name, InputOptions(img_size=size[-1] if size else None), **arguments)
        return timm.create_model(**sized)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UsageError(f"--model '{model_name}' cannot be made: {first_lines(error)}") from error
