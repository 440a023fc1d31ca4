import numpy as np
import pytest
import torch
from loss_cases import LABELS, class_maps, draw, draw_factors, of_features
from scipy.stats import multivariate_normal
from torch.nn import functional

from timm_hnc.losses.lgm import LargeMarginGaussianLoss


def log_densities(vectors, means):
    return np.array([[multivariate_normal(mean).logpdf(x) for mean in means] for x in vectors])


def test_without_a_margin_it_is_the_posterior_of_gaussians():
    vectors, means = draw(4, 3, scale=2), draw(5, 3, seed=1, scale=2)
    density = log_densities(vectors.detach().numpy(), means.detach().numpy())
    posterior = density - np.log(np.exp(density).sum(1, keepdims=True))
    maps = of_features(vectors, means)
    value = LargeMarginGaussianLoss(margin=0, likelihood_weight=0)(maps, LABELS)
    assert value.item() == pytest.approx(-posterior[range(4), LABELS].mean(), rel=1e-10)
    with_likelihood = LargeMarginGaussianLoss(margin=0, likelihood_weight=0.3)(maps, LABELS)
    likelihood = -density[range(4), LABELS].mean() - 3 / 2 * np.log(2 * np.pi)  # but for the constant
    assert (with_likelihood - value).item() == pytest.approx(0.3 * likelihood, rel=1e-10)


@pytest.mark.parametrize('margin', [0.0, 0.1, 1.0])
def test_value_and_gradients_by_the_formula(margin):
    positions, means, bias = draw_factors()
    value = LargeMarginGaussianLoss(margin, 0.1)(class_maps(positions, means, bias), LABELS)
    expected = 0.0
    for image, y in enumerate(LABELS.tolist()):
        distances = [(positions[image].mean(0) - means[k]).square().sum() / 2 for k in range(5)]
        scores = [-d * (1 + margin * (k == y)) for k, d in enumerate(distances)]
        total = sum(score.exp() for score in scores)
        expected = expected + (-(scores[y].exp() / total).log() + 0.1 * distances[y]) / 4
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)
    gradients = (torch.autograd.grad(loss, [positions, means]) for loss in (value, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_what_is_exported_has_the_same_probabilities():
    loss = LargeMarginGaussianLoss()
    positions, means, bias = draw_factors(batch=20)
    for given in (bias, None):
        plain = loss.as_plain(class_maps(positions, means, given))
        assert plain.bias.shape == (5,)
        density = log_densities(positions.mean(1).detach().numpy(), means.detach().numpy())
        posterior = np.exp(density) / np.exp(density).sum(1, keepdims=True)
        np.testing.assert_allclose(plain.logits.softmax(1).detach().numpy(), posterior, rtol=1e-9)
        maps = plain.maps().flatten(2).mean(-1)
        torch.testing.assert_close(maps, plain.logits)
    assert loss.changes_scores
    assert plain.weight is means


def test_exact_with_features_far_from_the_origin():
    vectors, means = draw(4, 64, dtype=torch.float32), draw(5, 64, seed=1, dtype=torch.float32)
    vectors, means = vectors + 20, means + 20  # |x| of 160, distances of 8
    loss = LargeMarginGaussianLoss()
    value = loss(of_features(vectors, means), LABELS)
    exact = loss(of_features(vectors.double(), means.double()), LABELS)
    torch.testing.assert_close(value.double(), exact, rtol=2e-4, atol=0)


def test_under_autocast_distances_are_not_rounded():
    vectors, means = draw(4, 3, scale=20, dtype=torch.float32), draw(5, 3, seed=1, scale=20, dtype=torch.float32)
    maps = of_features(vectors, means)
    expected = LargeMarginGaussianLoss()(maps, LABELS)
    with torch.autocast('cpu', torch.bfloat16):
        value = LargeMarginGaussianLoss()(maps, LABELS)
    torch.testing.assert_close(value, expected)


def test_cross_entropy_of_the_exported_classifier_is_the_loss_without_its_extras():
    positions, means, bias = draw_factors()
    maps = class_maps(positions, means, bias)
    loss = LargeMarginGaussianLoss(0, 0)
    torch.testing.assert_close(loss(maps, LABELS), functional.cross_entropy(loss.as_plain(maps).logits, LABELS))
