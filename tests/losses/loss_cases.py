"""Inputs for losses, and every loss with inputs of its kind."""

import torch

from timm_hnc import ClassMaps
from timm_hnc.losses.base import MULTI_LABEL, Loss
from timm_hnc.losses.factory import LOSSES, create_loss

CLASSES, FEATURES, GRID = 5, 3, (2, 3)
LABELS = torch.tensor([2, 0, 4, 2])
CASES = [(name, task) for name, kind in LOSSES.items() for task in kind.tasks]
IDS = [f'{name}-{task}' for name, task in CASES]
# without annealing, so that the margin is all there is
OPTIONS = {'a-softmax': {'base': 0.0, 'min_weight': 0.0}}


def draw(*shape, seed=0, scale=1.0, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()


def draw_factors(batch=4, bias=True, seed=0, dtype=torch.float64) -> list[torch.Tensor]:
    """Positions, weight and bias."""
    shapes = [(batch, GRID[0] * GRID[1], FEATURES), (CLASSES, FEATURES), (CLASSES,)][: 3 if bias else 2]
    return [draw(*shape, seed=seed + part, dtype=dtype) for part, shape in enumerate(shapes)]


def class_maps(positions, weight, bias=None) -> ClassMaps:
    return ClassMaps(positions, weight, bias, GRID)


def of_features(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> ClassMaps:
    """Class maps of a single position: the features are the position."""
    return ClassMaps(features[:, None], weight, bias, (1, 1))


def make_loss(name: str, task: str, **options) -> Loss:
    return create_loss(
        name,
        num_classes=CLASSES,
        num_features=FEATURES,
        class_counts=torch.tensor([90.0, 5, 30, 60, 1]),
        num_samples=250,
        multi_label=task == MULTI_LABEL,
        **(OPTIONS.get(name, {}) | options),
    )


def target_of(task: str) -> torch.Tensor:
    if task == MULTI_LABEL:
        return torch.nn.functional.one_hot(LABELS, CLASSES).float() + torch.eye(CLASSES)[[3, 3, 3, 3]]
    return LABELS


def evaluate(loss: Loss, maps: ClassMaps, target: torch.Tensor) -> torch.Tensor:
    """The loss of class maps, whatever it needs of them."""
    return loss(maps.logits if loss.needs == 'logits' else maps, target)


def batch_of(loss: Loss) -> int:
    """How many images go with the four targets."""
    return 8 if loss.needs == 'two_views' else 4
