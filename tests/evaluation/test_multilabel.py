"""Figures of several labels against scikit-learn's."""

import pytest
import torch
from sklearn.metrics import precision_recall_fscore_support

from timm_hnc.evaluation.multilabel import MultiLabelEvaluator

SAMPLES, CLASSES = 203, 9


def data():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(SAMPLES, CLASSES, generator=generator)
    logits[:, 0] = -5  # never predicted, but among the top 3 of nobody either
    target = (torch.rand(SAMPLES, CLASSES, generator=generator) < 0.3).float()
    target[:, 1] = 0  # never there
    return logits, target


def expected(predicted, target):
    figures = {}
    for kind, average in (('c', 'macro'), ('o', 'micro')):
        precision, recall, *_ = precision_recall_fscore_support(target, predicted, average=average, zero_division=0)
        f1 = 2 * precision * recall / (precision + recall)
        figures |= {f'{kind}_p': 100 * precision, f'{kind}_r': 100 * recall, f'{kind}_f1': 100 * f1}
    return figures


@pytest.mark.parametrize('batch', [1, 50, SAMPLES])
def test_figures_are_those_of_scikit_learn(batch):
    logits, target = data()
    evaluator = MultiLabelEvaluator(max_samples=SAMPLES - 3, threshold=0.4)
    for start in range(0, SAMPLES, batch):
        evaluator.update(logits[start : start + batch], target[start : start + batch])
    found = evaluator.compute()
    assert tuple(found) == MultiLabelEvaluator.metric_names
    logits, target = logits[:-3], target[:-3]
    for name, value in expected(logits.sigmoid() >= 0.4, target).items():
        assert found[name] == pytest.approx(value), name
    third = logits.sort(dim=1, descending=True).values[:, 2:3]
    for name, value in expected(logits >= third, target).items():
        assert found[f'{name}_top3'] == pytest.approx(value), name


def test_nothing_to_count():
    assert MultiLabelEvaluator(max_samples=0).compute()['c_f1'] == 0
    evaluator = MultiLabelEvaluator()
    evaluator.update(torch.full((4, 2), -9.0), torch.zeros(4, 2))
    assert evaluator.compute()['o_p'] == 0
