"""Weights and config in timm's Hub format."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from timm.layers import SplitBatchNorm2d
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from timm_hnc.cam import CamModel

WEIGHTS = 'model.safetensors'


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


def find_weights(path: Path) -> Path | None:
    """The folder with config.json and model.safetensors that a run folder, a checkpoint or the folder itself has.

    Returns:
        None where there is none, such as for a weights file.
    """
    for folder in (path / 'model_best', path / 'model', path):
        if (folder / 'config.json').is_file() and (folder / WEIGHTS).is_file():
            return folder
    return None


def save_pretrained(
    model: Any,
    folder: str | Path,
    class_names: Sequence[str] | None = None,
    data_config: dict[str, Any] | None = None,
    hnc: dict[str, Any] | None = None,
) -> None:
    """Write config.json and model.safetensors; plain timm loads them, with timm_hnc not installed.

    Args:
        model: a timm model or CamModel.
        folder: made if it is missing.
        class_names: label names, one a class.
        data_config: input size, mean, std, interpolation and crop that the weights were trained for.
        hnc: what stands in the config's `hnc` block.

    Raises:
        OSError: the folder cannot be written.

    Example:
        >>> save_pretrained(cam_model, 'weights')
        >>> timm.create_model('local-dir:weights', pretrained=True)
    """
    model = model.model if isinstance(model, CamModel) else model
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {}
    if class_names:
        config['label_names'] = list(class_names)
    if hnc:
        config['hnc'] = hnc
    safetensors.torch.save_file(export_state_dict(model), folder / WEIGHTS, metadata={'format': 'pt'})
    save_config_for_hf(model, str(folder / 'config.json'), model_config=config, data_config=data_config)
