"""Weights and config in timm's Hub format."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import safetensors.torch
import timm
import torch
from timm.layers import SplitBatchNorm2d
from timm.models import split_model_name_tag
from timm.models._hub import save_config_for_hf
from timm.utils import unwrap_model
from torch import Tensor, nn

from timm_hnc.cam import CamModel
from timm_hnc.cam.heads.hooked_head import is_of_timm
from timm_hnc.cam.model import names_by_index
from timm_hnc.errors import DataError, UsageError, first_lines
from timm_hnc.files.manifest import MANIFEST, check_manifest
from timm_hnc.files.run_options import options_of_run
from timm_hnc.files.tables import write_json

WEIGHTS = 'model.safetensors'
_OTHERS = ('_orig', 'weight_g', 'weight_v')  # ends of names: of pruning and spectral norm, of weight norm


def export_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """A model's weights as plain timm loads them: on the CPU, contiguous, none sharing storage with another.

    Args:
        model: a timm model, unwrapped. Auxiliary batch norms (--split-bn) serve training only and are left out.
    """
    auxiliary = tuple(
        f'{name}.aux_bn.' if name else 'aux_bn.'
        for name, module in model.named_modules()
        if isinstance(module, SplitBatchNorm2d)
    )
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
        if not (auxiliary and name.startswith(auxiliary))
    }


def plain_model(model: Any) -> Any:
    """The model inside a CamModel and what wraps or compiles either."""
    model = unwrap_model(model)
    return unwrap_model(model.model) if isinstance(model, CamModel) else model


def check_weights_file(folder: Path) -> None:
    """Refuse weights of a run's checkpoint that are not what was written; other folders have no manifest.

    Raises:
        DataError: naming the file.
    """
    parent = folder.resolve().parent
    if (parent / MANIFEST).is_file():
        check_manifest(parent, folder.resolve().name)


def find_weights(path: Path) -> Path | None:
    """The folder with config.json and model.safetensors of a run folder or checkpoint, or the path itself; else None.

    Raises:
        DataError: they are not what the run wrote.
    """
    for folder in (path / 'model_best', path / 'model', path):
        if (folder / 'config.json').is_file() and (folder / WEIGHTS).is_file():
            check_weights_file(folder)
            return folder
    return None


def check_architecture(folder: Path, what: str, model: str | None) -> str:
    """The architecture that config.json names; a name given beside the weights may not contradict it.

    It may repeat it, with a tag of timm's behind it, or be the name that the run was trained by.

    Raises:
        DataError: the architectures differ, or config.json cannot be read.
    """
    try:
        found = json.loads((folder / 'config.json').read_text(encoding='utf-8'))['architecture']
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"'{folder}/config.json' cannot be read: {first_lines(error)}") from error
    if model is None or split_model_name_tag(model.rpartition(':')[2])[0] == found:
        return found
    if options_of_run(str(folder)).get('model') != model:
        raise DataError(f"{what} is of the architecture '{found}', not '{model}': leave --model out.")
    return found


def save_pretrained(
    model: Any,
    folder: str | Path,
    class_names: Sequence[str] | Mapping[int, str] | None = None,
    data_config: dict[str, Any] | None = None,
    hnc: dict[str, Any] | None = None,
) -> None:
    """Write config.json and model.safetensors; plain timm loads them, with timm_hnc not installed.

    Args:
        model: a timm model or its CamModel, also compiled or wrapped by DistributedDataParallel.
        folder: made if it is missing.
        class_names: label names, one a class, in their order or by index.
        data_config: input size, mean, std, interpolation and crop that the weights were trained for.
        hnc: what stands in the config's `hnc` block.

    Raises:
        UsageError: (a ValueError) the model is none of timm's, its weights have other names or shapes than timm's
            (pruned, parametrised, fused or added layers), or there are more or fewer names than classes.
        OSError: the folder cannot be written.

    Example:
        >>> save_pretrained(cam_model, 'weights')
        >>> timm.create_model('local-dir:weights', pretrained=True)
    """
    _save(model, folder, class_names, data_config, hnc, check=True)


def _save(
    model: Any,
    folder: str | Path,
    class_names: Sequence[str] | Mapping[int, str] | None,
    data_config: dict[str, Any] | None,
    hnc: dict[str, Any] | None,
    check: bool,
) -> None:
    model = plain_model(model)
    if not hasattr(model, 'pretrained_cfg'):
        raise UsageError(
            f"the model is a {type(model).__name__}, none of timm's, and timm could not load it: "
            "safetensors.torch.save_model(model, 'model.safetensors') saves its weights."
        )
    weights = export_state_dict(model)
    other = next((name for name in weights if name.endswith(_OTHERS) or 'parametrizations.' in name), None)
    if other:
        raise UsageError(
            f"plain timm has no weight '{other}': make pruning, weight or spectral norm permanent first (in "
            'torch.nn.utils: prune.remove, remove_weight_norm, parametrize.remove_parametrizations ...).'
        )
    config: dict[str, Any] = {}
    if class_names is not None and model.num_classes:
        config['label_names'] = _label_names(class_names, model.num_classes)
    if hnc:
        config['hnc'] = hnc
    if check:
        with TemporaryDirectory() as temporary:
            save_config_for_hf(model, f'{temporary}/config.json', model_config=config, data_config=data_config)
            _check_fits(weights, f'local-dir:{temporary}')
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_config_for_hf(model, str(folder / 'config.json'), model_config=config, data_config=data_config)
    safetensors.torch.save_file(weights, folder / WEIGHTS, metadata={'format': 'pt'})


def _check_fits(weights: Mapping[str, Tensor], name: str) -> None:
    """Refuse weights that the model that timm makes by that name does not have."""
    try:
        with torch.device('meta'):
            expected = timm.create_model(name, pretrained=False).state_dict()
    except Exception:  # what cannot be made without numbers is not looked at
        return
    shapes, theirs = ({key: tuple(each.shape) for key, each in state.items()} for state in (weights, expected))
    differing = next((key for key in shapes | theirs if shapes.get(key) != theirs.get(key)), None)
    if differing:
        found, wanted = (each.get(differing, 'none') for each in (shapes, theirs))
        raise UsageError(
            f"plain timm could not load the weights: '{differing}' is {found} here, and {wanted} in timm's model. "
            'Save a model before its layers are fused or exchanged.'
        )


def save_weights(
    model: Any,
    folder: Path,
    class_names: Sequence[str],
    data_config: dict[str, Any],
    hnc: dict[str, Any] | None = None,
) -> None:
    """What `save_pretrained` writes, also of a model that is none of timm's: its class loads it, timm does not.

    Raises:
        OSError: the folder cannot be written.
    """
    if is_of_timm(model):
        _save(model, folder, class_names, data_config, hnc, check=False)  # at every checkpoint, of what timm has made
        return
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(export_state_dict(model), folder / WEIGHTS, metadata={'format': 'pt'})
    config = {'architecture': type(model).__name__, 'num_classes': len(class_names), 'pretrained_cfg': data_config}
    write_json(folder / 'config.json', config | {'label_names': class_names} | ({'hnc': hnc} if hnc else {}))


def _label_names(names: Sequence[str] | Mapping[Any, str], num_classes: int) -> list[str]:
    if isinstance(names, Mapping):
        by_index = names_by_index(names)
        if by_index is None:
            raise UsageError(f'class_names: expected the indices 0 to {num_classes - 1} and a name for each.')
        names = by_index
    if isinstance(names, str) or len(names) != num_classes or not all(isinstance(name, str) for name in names):
        raise UsageError(f'class_names: {len(names)} given for {num_classes} classes, expected a text for every class.')
    return list(names)
