"""Fig. 3 of the paper: values and gradients of HNC's mse and kd over a peak and over a regular map."""

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from timm_hnc.cam import ClassMaps
from timm_hnc.losses import hnc_loss
from timm_hnc.plots.figures import COLOUR_MAP, COLOURS, as_image, new_figure

SIDE = 7
VARIANTS = ('mse', 'kd')


def example_maps() -> dict[str, Tensor]:
    """A map with a single peak, and one that is neither focused nor flat; (h, w), in units of logits."""
    rows, columns = torch.meshgrid(*(torch.arange(SIDE, dtype=torch.float64),) * 2, indexing='ij')
    distance = (rows - 3).square() + (columns - 3).square()
    return {'peak': 6 * torch.exp(-distance / 1.2), 'regular': 2.5 * torch.exp(-distance / 12)}


def values_and_gradients(map_: Tensor, variant: str) -> tuple[Tensor, Tensor]:
    """The loss of a map cell by cell, whose sum is the loss, and its gradient with respect to the map; (h, w) each."""
    cells = map_.clone().requires_grad_()
    # two classes with this very map: one is the image's own, the other its only negative
    class_maps = ClassMaps(cells.reshape(1, -1, 1), torch.ones(2, 1, dtype=cells.dtype), None, (SIDE, SIDE))
    hnc_loss(class_maps, torch.tensor([0]), variant, topk=1).backward()
    share = map_.square() if variant == 'mse' else -map_.flatten().log_softmax(0).view_as(map_)
    return share / map_.numel(), cells.grad  # type: ignore[return-value]  # backward has set it


def draw_losses() -> Image.Image:
    """Both maps, a row each: the map, loss and gradient against the value of a cell, then both over the map."""
    figure = new_figure(15, 5.2)
    axes = figure.subplots(2, 7)
    for row, (name, map_) in enumerate(example_maps().items()):
        found = {variant: values_and_gradients(map_, variant) for variant in VARIANTS}
        order = map_.flatten().argsort()
        _picture(figure, axes[row, 0], map_, f'{name} map')
        for place, title in enumerate(('loss of a cell', 'gradient at a cell')):
            axis = axes[row, 1 + place]
            for number, variant in enumerate(VARIANTS):
                line = found[variant][place].flatten()[order]
                axis.plot(map_.flatten()[order], line, color=COLOURS[number], label=variant, marker='.', markersize=4)
            axis.set_title(title, fontsize=11)
            axis.set_xlabel('value of the map')
            axis.grid(alpha=0.3)
            axis.legend(fontsize=9)
        for place, title in enumerate(('loss', 'gradient')):
            for number, variant in enumerate(VARIANTS):
                _picture(figure, axes[row, 3 + 2 * place + number], found[variant][place], f'{variant}: {title}')
    return as_image(figure)


def loss_rows() -> list[dict[str, Any]]:
    """The figures behind the picture: a row a map, form of HNC and cell."""
    rows = []
    for name, map_ in example_maps().items():
        for variant in VARIANTS:
            figures = torch.stack([map_, *values_and_gradients(map_, variant)]).flatten(1).T.tolist()
            for cell, (value, loss, gradient) in enumerate(figures):
                about = {'map': name, 'variant': variant, 'row': cell // SIDE, 'column': cell % SIDE}
                rows.append(about | {'value': value, 'loss': loss, 'gradient': gradient})
    return rows


def _picture(figure, axis, values: Tensor, title: str) -> None:  # type: ignore[no-untyped-def]  # matplotlib's
    shown = axis.imshow(values.detach(), cmap=COLOUR_MAP)
    axis.set_title(title, fontsize=11)
    axis.set_xticks([])
    axis.set_yticks([])
    figure.colorbar(shown, ax=axis, shrink=0.75, format='%.2g').ax.tick_params(labelsize=8)
