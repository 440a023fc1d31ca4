"""What is measured of a trained network: accuracy, fit, flat maps, where they point, calibration, and attacks."""

from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from faithfulness.grids import make_grids, own_shares
from tables.runs import COLUMNS
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from evidence.boxes import EnergyInBoxes, MapsInBoxes, Objects, covered
from evidence.regimes import Regime
from timm_hnc.attacks.attacks import Attack, attack, normalized
from timm_hnc.cam import CamModel
from timm_hnc.cam.heads.model_copies import exact_numbers
from timm_hnc.data.datasets import create_dataset
from timm_hnc.data.noise import LabelNoise, NoisyLabels
from timm_hnc.data.samples import evenly_spread
from timm_hnc.errors import DataError
from timm_hnc.metrics.map_quality import MapQuality
from timm_hnc.metrics.multilabel import MultiLabelEvaluator
from timm_hnc.weights.saving import find_weights

NEGATIVES = 5  # of each image, whatever the run was trained with
EPS = (1, 2)  # of FGSM, in 1/255
_BATCH = 50
_BINS = 15  # of the calibration error, torchmetrics' default


@exact_numbers()
def run_figures(
    folder: Path, regime: Regime, data_dir: str, train: int = 1000, attacked: int = 500, grids: int = 200
) -> dict[str, float]:
    """Figures of a run's last epoch, computed in float32, on an accelerator where there is one.

    Images are taken evenly from their split.

    Args:
        folder: of the run.
        regime: data and network.
        data_dir: folder of parquet files.
        train: training images.
        attacked: test images under attack.
        grids: of four test images.

    Returns:
        In %: `accuracy` (mAP or top-1), `train_accuracy` on training images without augmentation and with the labels
        of training, `calibration_error` (of several labels each one is a yes or no), `fgsm_1` and `fgsm_2` (accuracy
        under FGSM at 1/255 and 2/255 against cross-entropy), `energy` (share of a map's positive values inside the
        boxes of its class, where images have several labels), `grid_pointing` (share of a class's positive map in its
        own cell of a 2 x 2 grid, 25 by chance; NaN without grids). In units of logits `negative_peak`, the highest
        value of a negative map above its mean, of 5 negatives an image. A regime of boxes has those of `evidence.boxes`
        as well, the logits of `attacked` images.

    Raises:
        DataError: the run has no weights.
    """
    if find_weights(folder / 'last') is None:
        raise DataError(f"'{folder}' has no weights of its last epoch.")
    model = timm.create_model(f'local-dir:{folder / "last" / "model"}', pretrained=True).eval().to(_device())
    test = _dataset(regime, data_dir, regime.test_split, model)
    images, targets = _tensors(test)
    found, logits = _clean(model, test, images, targets, regime.boxes)
    some = evenly_spread(len(images), attacked)
    found |= _attacked(model, images[some], targets[some])
    if regime.boxes:
        found |= covered(model, Objects(test), some, images[some], targets[some])
    found['grid_pointing'] = _grid_pointing(model, images, targets.cpu(), logits, grids)
    seen = _as_trained(_dataset(regime, data_dir, regime.train_split, model), folder, regime)
    images, targets = _tensors(Subset(seen, evenly_spread(len(seen), train)))
    return {**found, 'train_accuracy': _accuracy(_logits(model, images), targets)}


def _dataset(regime: Regime, data_dir: str, split: str, model: Any) -> Any:
    image, label, _ = COLUMNS[regime.data]
    names = dict(input_key=image, target_key=label)
    dataset: Any = create_dataset(f'hfds/{data_dir}', None, split, regime.num_classes, regime.multi_label, **names)
    dataset.transform = create_transform(**resolve_data_config({}, model=model))
    return dataset


def _as_trained(dataset: Any, folder: Path, regime: Regime) -> Any:
    """With the label noise of a run."""
    options = yaml.safe_load((folder / 'args.yaml').read_text())
    if not options.get('label_noise'):
        return dataset
    return NoisyLabels(dataset, LabelNoise.parse(options['label_noise']), regime.num_classes, options['seed'])


def _device() -> torch.device:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device('cpu')


def _tensors(dataset: Any) -> tuple[Tensor, Tensor]:
    images, targets = zip(*DataLoader(dataset, _BATCH), strict=True)
    return torch.cat(images).to(_device()), torch.cat([torch.as_tensor(each) for each in targets]).to(_device())


@torch.no_grad()
def _logits(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(batch) for batch in images.split(_BATCH)])


def _accuracy(logits: Tensor, targets: Tensor) -> float:
    """MAP of label sets, top-1 of class indices, in %."""
    logits, targets = logits.cpu(), targets.cpu()
    if targets.ndim == 1:
        return 100 * (logits.argmax(1) == targets).double().mean().item()
    evaluator = MultiLabelEvaluator()
    evaluator.update(logits, targets)
    return float(evaluator.compute()['map'])


@torch.no_grad()
def _clean(
    model: nn.Module, dataset: Any, images: Tensor, targets: Tensor, all_of_boxes: bool
) -> tuple[dict[str, float], Tensor]:
    """Figures of images as they are, and the (N, n) logits, on the CPU."""
    cam_model, several, logits = CamModel(model).eval(), targets.ndim == 2, []
    num_classes: Any = model.num_classes
    quality = MapQuality(num_classes, NEGATIVES)
    in_boxes = None
    if several:
        objects = Objects(dataset)
        in_boxes = MapsInBoxes(objects, num_classes) if all_of_boxes else EnergyInBoxes(objects)
    for inputs, labels in zip(images.split(_BATCH), targets.split(_BATCH), strict=True):
        class_maps = cam_model.class_maps(inputs)
        quality.update(class_maps, labels)
        if in_boxes is not None:
            in_boxes.update(class_maps.maps().cpu(), labels.cpu())
        logits.append(class_maps.logits)
    scores, targets = torch.cat(logits).cpu(), targets.cpu()
    # here, for importing it takes two seconds, which the choice of settings does without
    from torchmetrics.classification import BinaryCalibrationError, MulticlassCalibrationError

    error = BinaryCalibrationError(_BINS) if several else MulticlassCalibrationError(num_classes, _BINS)
    chances = (scores.sigmoid().flatten(), targets.flatten().long()) if several else (scores.softmax(1), targets)
    found = {
        'accuracy': _accuracy(scores, targets),
        'calibration_error': 100 * error(*chances).item(),
        'negative_peak': quality.compute()['negative_peak'],
    }
    return found | (in_boxes.compute() if in_boxes is not None else {}), scores


def _attacked(model: nn.Module, images: Tensor, targets: Tensor) -> dict[str, float]:
    classifier, logits = normalized(model), {eps: list[Tensor]() for eps in EPS}
    for inputs, labels in zip(images.split(_BATCH), targets.split(_BATCH), strict=True):
        clean = classifier.restore(inputs)
        # one gradient for all: FGSM goes the same way however far, and what a short step clips a longer one clips too
        step = (attack(classifier, clean, labels, Attack('fgsm', EPS[0] / 255)) - clean) / EPS[0]
        for eps in EPS:
            logits[eps].append(_logits(classifier, (clean + eps * step).clamp(0, 1)))
    return {f'fgsm_{eps}': _accuracy(torch.cat(logits[eps]), targets) for eps in EPS}


@torch.no_grad()
def _grid_pointing(model: nn.Module, images: Tensor, targets: Tensor, logits: Tensor, count: int) -> float:
    """Of images with one label, the most confident first."""
    if targets.ndim == 2:
        single = targets.sum(1) == 1
        images, targets, logits = images[single], targets[single].argmax(1), logits[single]
    grids, cam_model = make_grids(images, targets, logits, count), CamModel(model).eval()
    parts = zip(grids.images.split(_BATCH), grids.classes.to(images.device).split(_BATCH), strict=True)
    shares = [own_shares(cam_model.class_maps(inputs).maps(classes)) for inputs, classes in parts if len(inputs)]
    return 100 * torch.cat(shares).mean().item() if shares else float('nan')
