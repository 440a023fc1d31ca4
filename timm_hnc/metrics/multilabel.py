"""Precision, recall and F1 of several labels an image, by class and over all (Table 4 of the paper)."""

from typing import Any

import torch
from accelerate.utils import gather_object
from timm.task import MultiLabelClassificationEvaluator
from torch import Tensor

TOP = 3
_FIGURES = ('c_p', 'c_r', 'c_f1', 'o_p', 'o_r', 'o_f1')


class MultiLabelEvaluator(MultiLabelClassificationEvaluator):
    """timm's evaluator (mAP, F1) with the figures of the multi-label literature, in percent.

    c_p and c_r are the means over classes of precision and recall, o_p and o_r those of all labels together. There are
    two kinds of F1 by class:

    - `macro_f1` (timm's): the mean of the classes' F1. It is F1-C of the paper's Table 4, of SRN (Zhu et al., CVPR
      2017) and of attention consistency (Guo et al., CVPR 2019).
    - `c_f1`: the harmonic mean of c_p and c_r, CF1 of ML-GCN (Chen et al., CVPR 2019). It is never below `macro_f1`.

    o_f1, the harmonic mean of o_p and o_r, is ML-GCN's OF1 and Table 4's F1-O, and equals timm's `micro_f1`.

    A class that is never predicted has precision 0, one that never occurs recall 0, as in scikit-learn with
    zero_division=0. Predicted are labels at or above the threshold; with `_top3` behind the name, those of them that
    are among the image's three highest, as in ML-GCN.
    """

    metric_names: tuple[str, ...] = (  # type: ignore[assignment]  # timm's is of five
        *MultiLabelClassificationEvaluator.metric_names,
        *_FIGURES,
        *(f'{name}_top{TOP}' for name in _FIGURES),
    )

    def compute(self, distributed: bool = False) -> Any:
        """The figures, over all processes if they are several."""
        metrics = super().compute(distributed=distributed)
        hits = sum(map(self._hits, self.outputs, self.targets), torch.zeros(2, 3, 1, dtype=torch.long))
        if distributed:  # a process that had nothing but padding has zeros of one class
            hits = sum(gather_object([hits]), torch.zeros(2, 3, 1, dtype=torch.long))
        for suffix, way in zip(('', f'_top{TOP}'), hits, strict=True):
            metrics.update({f'{name}{suffix}': value for name, value in _figures(way.double()).items()})
        return metrics

    def _hits(self, scores: Tensor, present: Tensor) -> Tensor:
        """(2 ways to predict, [true positives, predicted, present], n) of a batch."""
        likely = scores.sigmoid() >= self.threshold
        highest = scores.topk(min(TOP, scores.shape[1]), dim=1).indices
        predicted = torch.stack([likely, likely & torch.zeros_like(likely).scatter_(1, highest, True)])
        return torch.stack([(predicted & present).sum(1), predicted.sum(1), present.sum(0).expand(2, -1)], 1)


def _figures(hits: Tensor) -> dict[str, float]:
    """Of (3, n) true positives, predicted and present labels."""
    correct, predicted, present = hits
    figures = {
        'c_p': (correct / predicted.clamp(min=1)).mean().item(),
        'c_r': (correct / present.clamp(min=1)).mean().item(),
        'o_p': (correct.sum() / predicted.sum().clamp(min=1)).item(),
        'o_r': (correct.sum() / present.sum().clamp(min=1)).item(),
    }
    for kind in 'co':
        precision, recall = figures[f'{kind}_p'], figures[f'{kind}_r']
        figures[f'{kind}_f1'] = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {name: 100 * figures[name] for name in _FIGURES}
