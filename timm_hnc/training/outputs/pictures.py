"""CAM pictures of fixed validation images into a run's cams/ folder."""

import logging
from typing import Any

from torch import Tensor

from timm_hnc.cam.heads.model_copies import evaluating
from timm_hnc.cam.heads.probe import UnsupportedHead
from timm_hnc.cam.naflex_maps import on_device
from timm_hnc.plots.cams import draw_cams
from timm_hnc.training.outputs.picture_samples import restored, spread_samples
from timm_hnc.training.outputs.results import writing
from timm_hnc.training.setup.build import Run

_logger = logging.getLogger(__name__)


class CamPictures:
    """Draws the same validation images whenever it is asked to; none where the model has no exact class maps."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.best: str | None = None  # the checkpoint that cams/best.png shows
        self.samples = self._samples() if run.accelerator.is_main_process else None

    def _samples(self) -> tuple[Any, Tensor] | None:
        if self.run.data.eval_loader is None or not self.run.options.run.cam_images:
            return None
        try:
            self.run.wrap(self.run.averaged_model)
        except UnsupportedHead as error:
            _logger.info(f'No CAM pictures: {error}')
            return None
        return spread_samples(self.run, self.run.options.run.cam_images)

    def draw(self, name: str, model: Any, title: str) -> None:
        """Write cams/<name>.png of a model of the run's architecture."""
        if self.samples is None:
            return
        run, (inputs, targets) = self.run, self.samples
        device = run.accelerator.device
        cam_model = run.wrap(model)
        try:
            with evaluating(cam_model):
                picture = draw_cams(
                    cam_model,
                    on_device(inputs, device, run.options.device.input_dtype),
                    restored(run, inputs),
                    targets.to(device),
                    run.data.class_names,
                    multi_label=run.options.task.multi_label,
                    title=title,
                )
        except ValueError as error:  # the model has maps, of other images than these
            _logger.warning(f'No CAM pictures: {error}')
            self.samples = None
            return
        path = run.folder / 'cams' / f'{name}.png'
        with writing(path):
            path.parent.mkdir(exist_ok=True)
            picture.save(path)
