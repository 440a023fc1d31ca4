"""What models see in a photograph: probabilities, and the maps of the classes that somebody asks for."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from timm_hnc.cam import ClassMaps
from timm_hnc.plots.cams import panel_rows
from timm_hnc.plots.panel import MAX_NEGATIVES, Cell, PanelRow
from timm_hnc.plots.photo_cams import Subject, see

SHOWN_CLASSES = 6


@dataclass(frozen=True, eq=False)
class Mistake:
    """A photograph that was taken for something else.

    Args:
        predicted: the map of the predicted class.
        expected: the map of the class that is there.
        difference: (h, w) of both; its mean is the difference of the logits.
    """

    predicted: Cell
    expected: Cell
    difference: Tensor


@dataclass(frozen=True, eq=False)
class Sight:
    """What a model sees in a photograph.

    Args:
        subject: the model.
        class_maps: of a batch of one.
        image: (1, C, H, W) in [0, 1], as the model sees it.
        probability: (n,) of every class.
    """

    subject: Subject
    class_maps: ClassMaps
    image: Tensor
    probability: Tensor

    @property
    def logits(self) -> Tensor:
        """(n,) of every class, on the CPU."""
        return self.class_maps.logits[0].detach().float().cpu()

    @property
    def predicted(self) -> int:
        """The class with the highest logit."""
        return int(self.logits.argmax())

    def likeliest(self, count: int = SHOWN_CLASSES) -> dict[str, float]:
        """The names of the likeliest classes, and their probabilities."""
        classes = self.logits.topk(min(count, len(self.logits))).indices  # probabilities may all be 1
        return {self.subject.class_names[index]: self.probability[index].item() for index in classes.tolist()}

    @torch.no_grad()
    def cell(self, index: int) -> Cell:
        """The map of a class."""
        map_ = self.class_maps.maps([index])[0, 0].float().cpu()
        return Cell(map_, self.subject.class_names[index], self.probability[index].item())

    @torch.no_grad()
    def row(self, expected: Sequence[int]) -> PanelRow:
        """The map of the class that is there, and of the absent ones with the highest logits.

        Args:
            expected: the classes that are there; that with the highest logit if nobody said.
        """
        present = torch.zeros(1, len(self.probability))
        present[0, list(expected) or [self.predicted]] = 1
        present = present.to(self.class_maps.logits.device)
        names, multi_label = self.subject.class_names, self.subject.multi_label
        [row] = panel_rows(self.class_maps, self.image, present, names, multi_label, MAX_NEGATIVES)
        return row

    @torch.no_grad()
    def mistake(self, expected: Sequence[int]) -> Mistake | None:
        """Why the photograph was taken for something else; None where it was not, or nobody said what it is."""
        if not expected or self.predicted in expected:
            return None
        likeliest = max(expected, key=lambda index: self.logits[index].item())
        difference = self.class_maps.contrast([self.predicted], [likeliest])[0, 0].float().cpu()
        return Mistake(self.cell(self.predicted), self.cell(likeliest), difference)


@torch.no_grad()
def sight_of(photo: Image.Image, subject: Subject) -> Sight:
    """What a model sees in a photograph."""
    class_maps, image = see(photo, subject)
    logits = class_maps.logits[0].float()
    probability = logits.sigmoid() if subject.multi_label else logits.softmax(0)
    return Sight(subject, class_maps, image, probability.cpu())


def distinct(names: Sequence[str]) -> list[str]:
    """Names that tell classes apart: one that several classes have gets its number (ImageNet has two cranes)."""
    counts = Counter(names)
    named = [f'{name} ({index})' if counts[name] > 1 else name for index, name in enumerate(names)]
    return named if len(set(named)) == len(named) else [f'{name} ({index})' for index, name in enumerate(names)]
