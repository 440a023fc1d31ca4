"""CAM pictures of fixed validation images into a run's cams/ folder."""

import logging
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from timm_hnc.cam import CamModel
from timm_hnc.cam.copies import evaluating
from timm_hnc.cam.probe import UnsupportedHead
from timm_hnc.evaluation.evaluate import read
from timm_hnc.plots.cams import draw_cams
from timm_hnc.training.build import Run

_logger = logging.getLogger(__name__)


class CamPictures:
    """Draws the same validation images whenever it is asked to.

    Args:
        run: what to draw; its --cam-images says how many. Nothing is drawn where the model has no exact class maps.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.samples = self._samples() if run.accelerator.is_main_process else None

    def _samples(self) -> tuple[Tensor, Tensor] | None:
        run = self.run
        if run.eval_loader is None or not run.args.cam_images:
            return None
        try:
            CamModel(run.model)
        except UnsupportedHead as error:
            _logger.info(f'No CAM pictures: {error}')
            return None
        samples = _spread(run.eval_loader.dataset, run.args.cam_images, run.args.workers)
        if not samples:
            return None  # the evaluation will say so
        images, targets = zip(*samples, strict=True)
        stacked = torch.stack([torch.as_tensor(image) for image in images])
        if stacked.dtype == torch.uint8:
            stacked = (stacked / 255 - self._statistic('mean')) / self._statistic('std')
        return stacked, torch.stack([torch.as_tensor(target) for target in targets])

    def _statistic(self, name: str) -> Tensor:
        return torch.tensor(self.run.data_config[name]).view(1, -1, 1, 1)

    def draw(self, name: str, model: Any, title: str) -> None:
        """Write cams/<name>.png of a model of the run's architecture."""
        if self.samples is None:
            return
        run, (inputs, targets) = self.run, self.samples
        device = run.accelerator.device
        cam_model = CamModel(model)
        with evaluating(cam_model):
            picture = draw_cams(
                cam_model,
                inputs.to(device, run.input_dtype),
                (inputs * self._statistic('std') + self._statistic('mean')).clamp(0, 1),
                targets.to(device),
                run.class_names,
                multi_label=run.args.task == 'multilabel',
                title=title,
            )
        folder = run.folder / 'cams'
        folder.mkdir(exist_ok=True)
        picture.save(folder / f'{name}.png')


def _spread(dataset: Any, count: int, workers: int) -> list[tuple[Any, Any]]:
    """Samples evenly spread over a data set, or the first ones where it can only be read in order."""
    if not isinstance(dataset, IterableDataset):
        count = min(count, len(dataset))
        dataset = Subset(dataset, [index * len(dataset) // count for index in range(count)])
    # where workers read the data, one reads this too: they would share what a reader has opened before they were forked
    loader = DataLoader(dataset, batch_size=None, num_workers=min(1, workers))
    return list(islice(read(loader), count))
