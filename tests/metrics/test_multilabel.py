"""Figures of several labels against scikit-learn's and those of public code."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import precision_recall_fscore_support

from timm_hnc.metrics.multilabel import MultiLabelEvaluator

SAMPLES, CLASSES = 203, 9
# what public code made of these scores and labels; neither repository names a licence, and nothing of them stands here
# - ml_gcn, ml_gcn_top3: Megvii-Nanjing/ML-GCN, commit 5517d6ff8012ead45c26a07b3a9d960cdaa0b9d1, the meter in util.py
# - attention_consistency: hguosc/visual_attention_consistency, commit 7c5b0dcfc444d7e6cecadd793b799b4a7ef9da7d,
#   test.py for MS-COCO: the figures of Table 4, whose rows it has been run for
REFERENCE = load_file(Path(__file__).parent / 'label_figures_reference.safetensors')
ML_GCN = ('o_p', 'o_r', 'o_f1', 'c_p', 'c_r', 'c_f1')
TABLE_4 = ('map', 'macro_f1', 'c_p', 'c_r', 'o_f1', 'o_p', 'o_r')


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
    for name, value in expected((logits >= third) & (logits.sigmoid() >= 0.4), target).items():
        assert found[f'{name}_top3'] == pytest.approx(value), name


def reference_figures(threshold=0.5):
    evaluator = MultiLabelEvaluator(threshold=threshold)
    evaluator.update(REFERENCE['logits'], REFERENCE['target'].float())
    return evaluator.compute()


@pytest.mark.parametrize('suffix', ['', '_top3'])
def test_figures_are_those_of_ml_gcn(suffix):
    found = reference_figures()
    theirs = REFERENCE[f'ml_gcn{suffix}'].tolist()
    assert [found[f'{name}{suffix}'] for name in ML_GCN] == pytest.approx(theirs, rel=1e-12)


def test_table_4_has_the_mean_of_the_classes_f1():
    found = reference_figures()
    theirs = REFERENCE['attention_consistency'].tolist()
    assert [found[name] for name in TABLE_4] == pytest.approx(theirs, rel=1e-12)
    assert found['c_f1'] > found['macro_f1'] + 0.5, 'the harmonic mean of the means is another figure'
    assert found['micro_f1'] == pytest.approx(found['o_f1'], rel=1e-12)


def test_nothing_is_counted_below_the_threshold():
    """A label among the three highest of its image counts from the threshold on only."""
    assert reference_figures(0.5)['o_p_top3'] > reference_figures(1e-9)['o_p_top3'] + 2
    figures = reference_figures(1 - 1e-9)
    assert {figures[f'{name}_top3'] for name in ML_GCN} == {0.0}


def test_nothing_to_count():
    assert MultiLabelEvaluator(max_samples=0).compute()['c_f1'] == 0
    evaluator = MultiLabelEvaluator()
    evaluator.update(torch.full((4, 2), -9.0), torch.zeros(4, 2))
    assert evaluator.compute()['o_p'] == 0
