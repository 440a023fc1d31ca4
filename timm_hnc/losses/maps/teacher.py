"""Explanations of a teacher (e2KD, Parchami-Araghi et al., ECCV 2024): look where the teacher looks."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from timm.data import resolve_data_config
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate

from timm_hnc.cam import CamModel
from timm_hnc.cam.number_types import at_least_float32
from timm_hnc.losses.maps.base import MapBatch, MapLoss


class TeacherLoss(MapLoss):
    """1 - cosine of the student's map and a frozen teacher's, both of the class that the teacher predicts.

    As the authors' code does with GradCAM, it compares the positive parts of the maps; the gradient flows through the
    student's alone. Theirs are enlarged to the image first, ours are compared on the student's grid, to which another
    grid of the teacher is resized. Their distillation of logits is no part of it.

    The teacher is no module of the loss: it is neither trained nor saved with it, and no process sends it to another.

    Args:
        teacher: of as many classes as the student; it is put into evaluation mode, and its parameters take no gradient
            from here on.
        mean: by which the student's images are normalised, a value a channel; the teacher gets them normalised as its
            pretrained_cfg says.
        std: likewise.
    """

    needs_several_cells: ClassVar[bool] = True
    scale: Tensor
    shift: Tensor

    def __init__(self, teacher: CamModel, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self._teacher = (teacher.eval().requires_grad_(False),)
        # timm's DistillationTeacher compares both normalisations at every step, which waits for the device
        own = resolve_data_config({}, model=teacher.model)
        ours = [torch.tensor(values, dtype=torch.float64) for values in (mean, std)]
        theirs = [torch.tensor(own[name], dtype=torch.float64) for name in ('mean', 'std')]
        like = next(teacher.parameters())
        for name, values in (('scale', ours[1] / theirs[1]), ('shift', (ours[0] - theirs[0]) / theirs[1])):
            self.register_buffer(name, values.view(1, -1, 1, 1).to(like.device, like.dtype), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> 'TeacherLoss':
        """Move the teacher along: where a task goes, all that it computes with goes."""
        self._teacher[0]._apply(fn, recurse)
        super()._apply(fn, recurse)
        return self

    def of_batch(self, batch: MapBatch) -> Tensor:
        """The loss of a batch, a scalar; see `MapLoss.forward`."""
        class_maps, images, [teacher] = batch.class_maps, batch.images, self._teacher
        if images is None:
            raise TypeError('a teacher needs the images.')
        with torch.no_grad():
            maps = teacher.head.class_maps(teacher.model, images * self.scale + self.shift)
            predicted = maps.logits.argmax(1, keepdim=True)
            expected = at_least_float32(maps.maps(predicted)).relu()
            if maps.grid != class_maps.grid:
                expected = interpolate(expected, class_maps.grid, mode='bilinear', antialias=True)
        own = at_least_float32(class_maps.maps(predicted)).relu()
        return (1 - cosine_similarity(own.flatten(1), expected.flatten(1).to(own.dtype))).mean()
