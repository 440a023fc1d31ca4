import math
from pathlib import Path

import pytest
import torch
from loss_cases import draw
from safetensors.torch import load_file
from timm.loss import BinaryCrossEntropy
from torch.nn import functional

from timm_hnc.losses.weighted_sigmoid import WeightedSigmoidLoss

COUNTS, SAMPLES = torch.tensor([0.0, 5, 50, 99, 100]), 100
TARGET = torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0]])


def by_the_paper(logits, sets):
    """Eq. 8 in loops, with its signs, mean over images."""
    total = 0.0
    for scores, present in zip(logits.tolist(), sets, strict=True):
        loss = 0.0
        for o, s in enumerate(scores):
            p = COUNTS[o].item() / SAMPLES
            if o in present:
                loss += math.exp(1 - p) * math.log(1 / (1 + math.exp(-s)))
            else:
                loss += math.exp(p) * math.log(math.exp(-s) / (1 + math.exp(-s)))
        total += -loss / len(scores)
    return total / len(sets)


def test_equation_8():
    logits = draw(4, 5, scale=3)
    sets = [{o for o in range(5) if row[o]} for row in TARGET]
    value = WeightedSigmoidLoss(COUNTS, SAMPLES).double()(logits, TARGET)
    assert value.item() == pytest.approx(by_the_paper(logits, sets), rel=1e-6)


def test_the_sum_over_classes_is_what_the_paper_ran_on():
    """The weighted loss of hguosc/visual_attention_consistency; commit and licence: test_attention_consistency.py."""
    theirs = load_file(Path(__file__).parent / 'attention_consistency_reference.safetensors')
    logits = theirs['features'].mean((2, 3)) @ theirs['weight'].T + theirs['bias']
    target = theirs['target'].repeat(2, 1).double()
    summed, averaged = (
        WeightedSigmoidLoss(theirs['counts'], theirs['samples'].item(), reduction).double()(logits, target)
        for reduction in ('sum', 'mean')
    )
    # the weights of the classes are rounded to float32
    torch.testing.assert_close(summed, theirs['criterion'], rtol=1e-6, atol=0)
    torch.testing.assert_close(summed, len(theirs['counts']) * averaged, rtol=1e-12, atol=0)


def test_the_sum_has_n_times_the_gradient_of_the_mean():
    logits = draw(4, 5, scale=3)
    losses = [WeightedSigmoidLoss(COUNTS, SAMPLES, reduction)(logits, TARGET) for reduction in ('sum', 'mean')]
    summed, averaged = (torch.autograd.grad(loss, logits)[0] for loss in losses)
    torch.testing.assert_close(summed, 5 * averaged, rtol=1e-12, atol=0)


def test_another_reduction_is_refused():
    with pytest.raises(ValueError, match="reduction = none: expected 'mean' or 'sum'"):
        WeightedSigmoidLoss(COUNTS, SAMPLES, 'none')


def test_weights_are_those_of_binary_cross_entropy():
    logits = draw(4, 5, scale=3)
    share = COUNTS.double() / SAMPLES
    weight = TARGET * (1 - share).exp() + (1 - TARGET) * share.exp()
    expected = functional.binary_cross_entropy_with_logits(logits, TARGET.double(), weight)
    value = WeightedSigmoidLoss(COUNTS, SAMPLES)(logits, TARGET)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(x, logits)[0] for x in (value, expected)), rtol=1e-6, atol=1e-9)


def test_smoothing_is_that_of_timm():
    logits = draw(4, 5, scale=3, dtype=torch.float32)
    loss = WeightedSigmoidLoss(torch.full((5,), 50), 100)  # both weights are sqrt(e)
    loss.smoothing = 0.2
    expected = math.sqrt(math.e) * BinaryCrossEntropy(smoothing=0.2, smooth_dense=True)(logits, TARGET)
    torch.testing.assert_close(loss(logits, TARGET), expected)


@pytest.mark.parametrize(
    ('counts', 'samples'), [([1.0, 11.0], 10), ([-1.0, 3.0], 10), ([0.0, 0.0], 0), ([math.nan, 3.0], 10)]
)
def test_counts_that_are_no_shares_are_refused(counts, samples):
    with pytest.raises(ValueError, match=f'{samples} samples: expected'):
        WeightedSigmoidLoss(torch.tensor(counts), samples)
