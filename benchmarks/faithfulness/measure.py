"""Measuring one network: every figure of every map, an image or a grid of images each."""

from pathlib import Path

import timm
import torch
from timm.data import create_transform, resolve_data_config
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from faithfulness.grids import Grids, make_grids, own_shares
from faithfulness.maps import Maps
from faithfulness.networks import CLASSES, COLUMNS
from faithfulness.road import road
from timm_hnc.cam import CamModel
from timm_hnc.data.datasets import create_dataset
from timm_hnc.data.samples import evenly_spread
from timm_hnc.metrics.deletion import curve_areas

METRICS = ('deletion', 'insertion', 'ROAD', 'GridPG')
LOWER_IS_BETTER = {'deletion'}
STEPS = 20
_BATCH = 100
_POOL = 16  # images looked at for every grid

Values = dict[tuple[str, str], Tensor]  # by metric and map, (N,) of images or grids


def run_model(folder: Path, factor: int = 1) -> nn.Module:
    """The best weights of a run; position embeddings are interpolated where the images are `factor` times as large."""
    name = f'local-dir:{folder / "model_best"}'
    model = timm.create_model(name, pretrained=True).eval()
    if factor == 1 or not any('pos_embed' in key for key in model.state_dict()):
        return model
    side = factor * model.pretrained_cfg['input_size'][-1]
    larger = timm.create_model(name, img_size=side).eval()
    state = model.state_dict()
    for key, tensor in larger.state_dict().items():
        if 'pos_embed' in key and tensor.shape != state[key].shape:
            state[key] = _resampled(state[key], tensor.shape[1])
    larger.load_state_dict(state)
    return larger


def _resampled(embedding: Tensor, length: int) -> Tensor:
    """(1, prefix + h * h, D) position embeddings for more positions."""
    prefix = embedding.shape[1] - int(embedding.shape[1] ** 0.5) ** 2
    side = round((length - prefix) ** 0.5)
    return resample_abs_pos_embed(embedding, [side, side], num_prefix_tokens=prefix)


def cifar_images(data: Path, model: nn.Module, count: int) -> tuple[Tensor, Tensor]:
    """Normalised CIFAR-100 test images, taken evenly, and their labels."""
    dataset = create_dataset(f'hfds/{data}', None, 'test', CLASSES, input_key=COLUMNS[0], target_key=COLUMNS[1])
    dataset.transform = create_transform(**resolve_data_config({}, model=model))
    images, labels = zip(*DataLoader(Subset(dataset, evenly_spread(len(dataset), count)), _BATCH), strict=True)
    return torch.cat(images), torch.cat([torch.as_tensor(each) for each in labels])


def measure_run(folder: Path, data: Path, count: int, grids: int, maps: dict[str, Maps], device: str) -> Values:
    """All figures of a run of train.py on `count` images; GridPG is missing where too few are recognised for a grid."""
    model = run_model(folder)
    images, labels = cifar_images(data, model, max(count, _POOL * grids))
    evenly = torch.arange(count) * len(images) // count
    model = model.to(device)
    with torch.no_grad():
        logits = torch.cat([model(each.to(device)).cpu() for each in images.split(_BATCH)])
    made = make_grids(images, labels, logits, grids)
    found = removal(model, images[evenly], maps, device)
    return found | pointing(run_model(folder, factor=2).to(device), made, maps, device)


def removal(model: nn.Module, images: Tensor, maps: dict[str, Maps], device: str) -> Values:
    """Deletion, insertion and ROAD for the class that the model sees, one figure an image."""
    cam_model = CamModel(model).eval()
    generator = torch.Generator().manual_seed(0)
    found: dict[tuple[str, str], list[Tensor]] = {}
    for batch in images.split(_BATCH):
        inputs = batch.to(device)
        with torch.no_grad():
            classes = model(inputs).argmax(1)
        for name, make in maps.items():
            values = make(cam_model, inputs, classes[:, None]).squeeze(1).detach()
            areas = curve_areas(model, inputs, values, classes, STEPS)
            relevance = road(model, inputs, values, classes, generator)
            for metric, each in zip(METRICS, (*areas, relevance), strict=False):
                found.setdefault((metric, name), []).append(each.cpu())
    return {key: torch.cat(parts) for key, parts in found.items()}


def pointing(model: nn.Module, grids: Grids, maps: dict[str, Maps], device: str) -> Values:
    """GridPG, one figure a grid: the mean of its four cells."""
    cam_model = CamModel(model).eval()
    found: dict[tuple[str, str], list[Tensor]] = {}
    parts = zip(grids.images.split(_BATCH), grids.classes.split(_BATCH), strict=True)
    for batch in parts if len(grids.images) else ():
        inputs, classes = (part.to(device) for part in batch)
        for name, make in maps.items():
            shares = own_shares(make(cam_model, inputs, classes).detach()).mean(1)
            found.setdefault(('GridPG', name), []).append(shares.cpu())
    return {key: torch.cat(parts) for key, parts in found.items()}
