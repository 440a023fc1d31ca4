"""What the parts of the page show, for a photograph and what somebody asked of it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gradio as gr
from PIL import Image

from timm_hnc.demo.pictures import map_picture, rows_of_maps, scale_of
from timm_hnc.demo.sights import Sight, distinct, sight_of
from timm_hnc.errors import UsageError
from timm_hnc.plots.lettering import format_probability
from timm_hnc.plots.photo_cams import Subject, check_channels


class Answers:
    """Answers of one model, or of several to the same question.

    Args:
        subjects: the models.

    Raises:
        UsageError: they have different classes or tasks, names are missing, or one takes no photographs.
    """

    def __init__(self, subjects: Sequence[Subject]) -> None:
        first, *others = subjects
        for other in others:
            if list(other.class_names) != list(first.class_names):
                raise UsageError(f"'{first.caption}' and '{other.caption}' have different classes: nothing to compare.")
            if other.multi_label != first.multi_label:
                raise UsageError(
                    f"'{first.caption}' and '{other.caption}': one has a single label an image, the other several: "
                    'nothing to compare; see --task.'
                )
        for subject in subjects:
            check_channels(subject.model)
            if len(subject.class_names) < subject.model.num_classes:
                count = len(subject.class_names)
                raise UsageError(f"'{subject.caption}': {count} class names for {subject.model.num_classes} classes.")
        self.names = distinct(first.class_names)
        self.multi_label = first.multi_label
        self.subjects = [replace(subject, class_names=self.names) for subject in subjects]
        self.title = ' and '.join(subject.caption for subject in subjects)

    def look(self, photo: Image.Image | None) -> list[Any]:
        """What every model sees (None without a photograph), the class asked for (none yet), the likeliest classes."""
        if photo is None:
            return [None, None, *(None for _ in self.subjects)]
        sights = [sight_of(photo, subject) for subject in self.subjects]
        return [sights, None, *(sight.likeliest() for sight in sights)]

    def paint(
        self,
        sights: Sequence[Sight] | None,
        asked: int | None,
        expected: int | Sequence[int] | None,
        threshold: float,
        opacity: float,
    ) -> list[Any]:
        """The map asked for of every model, then its rows of maps, all with one scale.

        Args:
            sights: of `look`.
            asked: class of the large map, the predicted one if None.
            expected: class that is in the photograph, or several; None or none if nobody said.
            threshold: share of the scale below which the large map is not shown.
            opacity: of the large map.
        """
        if not sights:
            count = len(self.subjects)
            return [*(gr.Image(None, label='map') for _ in range(count)), *(None for _ in range(count))]
        present = [expected] if isinstance(expected, int) else expected or []
        cells = [sight.cell(sight.predicted if asked is None else asked) for sight in sights]
        rows = [sight.row(present) for sight in sights]
        mistakes = [sight.mistake(present) for sight in sights]
        scale = scale_of(cells, rows, mistakes)
        pictures = [
            gr.Image(
                map_picture(row.image, cell, scale, threshold, opacity),
                label=f'{cell.name}, {format_probability(cell.probability)}',
            )
            for row, cell in zip(rows, cells, strict=True)
        ]
        html = [rows_of_maps(row, bool(present), why, scale) for row, why in zip(rows, mistakes, strict=True)]
        return [*pictures, *html]
