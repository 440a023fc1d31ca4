"""A network of ordinary size on photographs: EfficientNet-Lite0 with its ImageNet weights, foolbox's 20 images."""

from importlib.util import find_spec
from pathlib import Path

import torch
from lite import pretrained_lite
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from faithfulness.grids import make_grids
from faithfulness.maps import Maps
from faithfulness.measure import Values, pointing, removal
from timm_hnc.errors import UsageError


def measure_photographs(grids: int, maps: dict[str, Maps], device: str) -> Values:
    """All figures of the pretrained network.

    Raises:
        UsageError: a package is missing.
    """
    if find_spec('foolbox') is None:
        raise UsageError('--photographs: needs pip install foolbox.')
    model = pretrained_lite().to(device)
    images, labels = _photographs(model)
    with torch.no_grad():
        logits = model(images.to(device)).cpu()
    found = removal(model, images, maps, device)
    return found | pointing(model, make_grids(images, labels, logits, grids), maps, device)


def _photographs(model: nn.Module) -> tuple[Tensor, Tensor]:
    import foolbox

    transform = create_transform(**resolve_model_data_config(model))
    # file name: imagenet_<number>_<class index>.jpg
    paths = sorted((Path(foolbox.__file__).parent / 'data').glob('imagenet_*.jpg'))
    images = torch.stack([transform(Image.open(path).convert('RGB')) for path in paths])
    return images, torch.tensor([int(path.stem.split('_')[-1]) for path in paths])
