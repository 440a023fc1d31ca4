import pytest
import torch
from loss_cases import LABELS, class_maps, draw, draw_factors, of_features
from torch.nn import functional

from timm_hnc.losses.center import CenterLoss
from timm_hnc.training.setup.optimizer import OptimizerOptions, ScheduleOptions, create_optimizer

CENTERS = torch.arange(15, dtype=torch.float64).view(5, 3).div(7).cos()


def make(weight=0.003) -> CenterLoss:
    loss = CenterLoss(5, 3, weight).double()
    loss.centers.data.copy_(CENTERS)
    return loss


def test_value_and_gradients_by_the_formula():
    positions, weight, bias = draw_factors()
    value = make(0.7)(class_maps(positions, weight, bias), LABELS)
    distance = 0.0
    for image, y in enumerate(LABELS.tolist()):
        vector = sum(positions[image]) / positions.shape[1]
        distance = distance + 0.7 / 2 * sum((vector[d] - CENTERS[y, d]) ** 2 for d in range(3)) / len(LABELS)
    expected = functional.cross_entropy(positions.mean(1) @ weight.T + bias, LABELS) + distance
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)
    factors = [positions, weight, bias]
    for ours, theirs in zip(torch.autograd.grad(value, factors), torch.autograd.grad(expected, factors), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_images_that_cross_entropy_leaves_out_move_no_center():
    positions, weight, bias = draw_factors()
    labels, kept = torch.full_like(LABELS, -100), torch.arange(len(LABELS)) % 2 == 0
    labels[kept] = LABELS[kept]
    losses = [make(0.7), make(0.7)]
    values = [
        losses[0](class_maps(positions, weight, bias), labels),
        losses[1](class_maps(positions[kept], weight, bias), LABELS[kept]),
    ]
    torch.testing.assert_close(*values, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(v, loss.centers)[0] for v, loss in zip(values, losses, strict=True)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=0)


@pytest.mark.parametrize('weight', [0.0, 0.003, 5.0])
@pytest.mark.parametrize('alpha', [0.5, 1.0])
def test_centers_follow_equation_4(weight, alpha):
    """The rule of the paper in loops over several batches; it knows neither lambda nor the batch's size."""
    loss, expected = make(weight), CENTERS.clone()
    optimizer = torch.optim.SGD(loss.parameters(), lr=alpha)
    generator = torch.Generator().manual_seed(1)
    for _ in range(6):
        batch = int(torch.randint(1, 9, (), generator=generator))
        labels = torch.randint(0, 4, (batch,), generator=generator)  # class 4 is never seen
        vectors = torch.randn(batch, 3, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        loss(of_features(vectors, draw(5, 3)), labels).backward()
        optimizer.step()
        change = torch.zeros_like(expected)
        for j in range(5):
            of_class = [vectors[i] for i in range(batch) if labels[i] == j]
            change[j] = sum((expected[j] - x for x in of_class), torch.zeros(3)) / (1 + len(of_class))
        expected = expected - alpha * change
        torch.testing.assert_close(loss.centers.data, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(loss.centers[4], CENTERS[4])


@pytest.mark.parametrize(('opt', 'told'), [('sgd', False), ('lookahead_sgd', False), ('adamw', True)])
def test_an_optimizer_that_is_not_sgd_is_told(caplog, opt, told):
    create_optimizer(OptimizerOptions(opt=opt), ScheduleOptions(lr=0.1), torch.nn.Linear(2, 2), CenterLoss(2, 3), 0.5)
    assert ('follows its own rule with SGD alone (--opt sgd), not AdamW' in caplog.text) == told


def test_centers_reach_the_features():
    loss = CenterLoss(2, 3)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.5)
    vectors = torch.tensor([[1.0, 2, 3], [-4, 5, 6]]).repeat(8, 1)
    for _ in range(30):
        optimizer.zero_grad()
        loss(of_features(vectors, torch.zeros(2, 3)), torch.tensor([0, 1]).repeat(8)).backward()
        optimizer.step()
    torch.testing.assert_close(loss.centers.data, vectors[:2], rtol=1e-4, atol=1e-4)


def test_the_centers_are_its_only_parameters():
    loss = CenterLoss(7, 4)
    assert [(name, tuple(p.shape)) for name, p in loss.named_parameters()] == [('centers', (7, 4))]
    assert not loss.changes_scores
