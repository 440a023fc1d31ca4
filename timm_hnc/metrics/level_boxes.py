"""Boxes around the connected parts of a map above each of its levels, all levels at once."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVELS = 255  # 0 to 254: what lies above them has a value from 1 to 255
_NOWHERE = np.iinfo(np.int32).max
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))  # one of each two opposite ones, those at corners last


def level_boxes(values: NDArray[Any], ranks: NDArray[Any], corners: bool) -> tuple[NDArray[Any], NDArray[Any]]:
    """Boxes around the connected parts of the pixels above a level, for the levels from 0 to 254.

    With falling levels the parts grow around peaks and merge at the passes between them, so that one look at every
    pixel tells the boxes of all levels (a component tree, as in Najman and Couprie, IEEE TIP 2006).

    Args:
        values: (h, w) integers from 0 to 255.
        ranks: (h, w) of the pixels by a finer value, from 0 to h * w - 1, none twice; they may not contradict `values`.
        corners: pixels that share no more than a corner are connected too.

    Returns:
        (m,) levels, and (m, 4) first and last pixel of a part: x1, y1, x2, y2.
    """
    peaks = _peaks(ranks, corners)
    boxes = _boxes_of_peaks(peaks, values)
    parts = list(range(len(boxes)))

    def part_of(peak: int) -> int:
        while parts[peak] != peak:
            parts[peak] = peak = parts[parts[peak]]
        return peak

    for height, *ends in _passes(peaks, values, corners):
        kept, merged = (part_of(peak) for peak in ends)
        if kept != merged:
            parts[merged] = kept
            below = slice(LEVELS - height, None)
            np.minimum(boxes[kept, :, below], boxes[merged, :, below], out=boxes[kept, :, below])
            boxes[merged, :, below] = _NOWHERE
    boxes = boxes.transpose(0, 2, 1)
    peak, row = (boxes[..., 0] != _NOWHERE).nonzero()
    return LEVELS - 1 - row, boxes[peak, row] * [1, 1, -1, -1]


def _peaks(ranks: NDArray[Any], corners: bool) -> NDArray[Any]:
    """(h, w) number of the peak that the steepest way up from a pixel leads to."""
    padded = np.pad(ranks, 1, constant_values=-1)
    columns = np.maximum(np.maximum(padded[:-2], padded[2:]), padded[1:-1])
    beside = columns if corners else padded[1:-1]
    highest = np.maximum(np.maximum(beside[:, :-2], beside[:, 2:]), columns[:, 1:-1])
    own = np.arange(ranks.size)
    places = np.empty_like(own)
    places[ranks.ravel()] = own
    up = places[highest.ravel()]
    tops = up == own
    while not tops[up].all():
        up = up[up]
    return (tops.cumsum() - 1)[up].reshape(ranks.shape)


def _boxes_of_peaks(peaks: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
    """(peaks, 4, LEVELS) x1, y1, -x2, -y2 of a peak's pixels above a level, levels from the highest."""
    boxes = np.full((peaks.max() + 1, 4, LEVELS), _NOWHERE, dtype=np.int32)
    y, x = (values > 0).nonzero()
    start = peaks[y, x] * boxes[0].size + LEVELS - values[y, x]
    for edge, places in enumerate((x, y, -x, -y)):
        np.minimum.at(boxes.reshape(-1), start + edge * LEVELS, places.astype(np.int32))
    return np.minimum.accumulate(boxes, axis=2)


def _passes(peaks: NDArray[Any], values: NDArray[Any], corners: bool) -> list[tuple[int, int, int]]:
    """Value of a pass and the two peaks that it connects at the levels below it, the highest pass first."""
    height, width = peaks.shape
    pairs, values_of, count = [], [], int(peaks.max()) + 1
    for down, right in _NEIGHBOURS if corners else _NEIGHBOURS[:2]:
        one = slice(0, height - down), slice(max(0, -right), width - max(0, right))
        other = slice(down, height), slice(max(0, right), width - max(0, -right))
        differ = peaks[one] != peaks[other]
        ends = peaks[one][differ], peaks[other][differ]
        pairs.append(np.minimum(*ends) * count + np.maximum(*ends))
        values_of.append(np.minimum(values[one][differ], values[other][differ]).astype(int))
    pair, value = np.concatenate(pairs), np.concatenate(values_of)
    falling = (-value).argsort(kind='stable')
    highest = np.sort(np.unique(pair[falling], return_index=True)[1])
    chosen = falling[highest]
    chosen = chosen[value[chosen] > 0]
    return list(
        zip(value[chosen].tolist(), (pair[chosen] // count).tolist(), (pair[chosen] % count).tolist(), strict=True)
    )
