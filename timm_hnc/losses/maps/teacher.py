"""Explanations of a teacher (e2KD, Parchami-Araghi et al., ECCV 2024): look where the teacher looks."""

from collections.abc import Sequence

import torch
from timm.task import DistillationTeacher
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate

from timm_hnc.cam import CamModel, ClassMaps
from timm_hnc.cam.heads.detached_functions import raised
from timm_hnc.cam.object_masks import ObjectMasks
from timm_hnc.losses.maps.base import MapLoss


class TeacherLoss(MapLoss):
    """1 - cosine of the student's map and a frozen teacher's, both of the class that the teacher predicts.

    As the authors' code does with GradCAM, it compares the positive parts of the maps; the gradient flows through the
    student's alone. Theirs are enlarged to the image first, ours are compared on the student's grid, to which another
    grid of the teacher is resized. Their distillation of logits is no part of it.

    The teacher is no module of the loss: it is neither trained nor saved with it, and no process sends it to another.

    Args:
        teacher: of as many classes as the student; it is put into evaluation mode.
        mean: by which the student's images are normalised, a value a channel; the teacher gets them normalised as its
            pretrained_cfg says.
        std: likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, teacher: CamModel, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        first = next(teacher.parameters())
        timms = DistillationTeacher(teacher.model, device=first.device, dtype=first.dtype)
        self._teacher = timms, teacher.eval().requires_grad_(False)
        for name, values in (('mean', mean), ('std', std)):
            channels = torch.tensor(values, device=first.device, dtype=first.dtype)
            self.register_buffer(name, channels.view(1, -1, 1, 1), persistent=False)

    def forward(
        self,
        class_maps: ClassMaps,
        target: Tensor,
        target_floor: float = 0.0,
        images: Tensor | None = None,
        masks: ObjectMasks | None = None,
    ) -> Tensor:
        """The loss of a batch, a scalar; see `MapLoss.forward`.

        Raises:
            TypeError: the images are not there.
        """
        if images is None:
            raise TypeError('a teacher needs the images.')
        timms, teacher = self._teacher
        with torch.no_grad():
            maps = teacher.head.class_maps(teacher.model, timms.normalize_input(images, self.mean, self.std))
            predicted = maps.logits.argmax(1, keepdim=True)
            expected = raised(maps.maps(predicted)).relu()
            if maps.grid != class_maps.grid:
                expected = interpolate(expected, class_maps.grid, mode='bilinear', antialias=True)
        own = raised(class_maps.maps(predicted)).relu()
        return (1 - cosine_similarity(own.flatten(1), expected.flatten(1).to(own.dtype))).mean()
