"""The figures of benchmarks/faithfulness.py against loops and a dense solution."""

import sys

import pytest
import torch
from running import ROOT

sys.path.insert(0, str(ROOT / 'benchmarks'))

from faithfulness.alternatives import ALTERNATIVES
from faithfulness.grids import make_grids, own_shares
from faithfulness.road import _TOLERANCE, impute
from faithfulness.table import Measured, markdown, rows

from timm_hnc import CamModel, create_model

WEIGHTS = {0: 0.0, 1: 1 / 6, 2: 1 / 12}  # by the squared distance of two pixels


def test_missing_pixels_are_the_weighted_means_of_their_neighbours():
    """All equations at once, by a dense solver; at the borders, too, the weights are divided by their sum."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 2, 7, 6, dtype=torch.float64, generator=generator)
    keep = torch.rand(3, 1, 7, 6, generator=generator) < 0.4
    places = [(y, x) for y in range(7) for x in range(6)]
    near = torch.tensor([[WEIGHTS.get((a - c) ** 2 + (b - d) ** 2, 0.0) for c, d in places] for a, b in places])
    system = near.double().sum(1).diag() - near.double()
    for image, kept, filled in zip(images, keep, impute(images, keep), strict=True):
        known = kept.flatten()
        own, from_known = system[~known][:, ~known], -system[~known][:, known] @ image.flatten(1)[:, known].T
        expected = torch.linalg.solve(own, from_known)
        # conjugate gradients stop where the residual is that share of the right side
        bound = _TOLERANCE * torch.linalg.norm(from_known, dim=0) / torch.linalg.eigvalsh(own).min()
        assert (torch.linalg.norm(filled.flatten(1)[:, ~known].T - expected, dim=0) <= bound).all()
        assert bound.max() < torch.linalg.norm(expected, dim=0).min() / 100
        assert torch.equal(filled[:, kept[0]], image[:, kept[0]])


def test_shares_of_a_grid_are_those_of_a_loop():
    maps = torch.randn(3, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    for image, shares in zip(maps, own_shares(maps), strict=True):
        for cell, map_ in enumerate(image):
            y, x = 3 * (cell // 2), 4 * (cell % 2)
            positive = map_.clamp(min=0)
            assert shares[cell].item() == pytest.approx((positive[y : y + 3, x : x + 4].sum() / positive.sum()).item())
    assert own_shares(torch.ones(1, 4, 2, 2)).tolist() == [[0.25] * 4]
    assert own_shares(-torch.ones(1, 4, 2, 2)).tolist() == [[0.0] * 4]


def test_grids_hold_four_classes_of_recognised_images_each():
    labels = torch.arange(30) % 6
    images = torch.arange(30.0).view(30, 1, 1, 1).expand(-1, 1, 2, 2)
    logits = torch.nn.functional.one_hot(labels, 6) * torch.linspace(1, 5, 30)[:, None]
    logits[:6] = logits[:6].roll(1, 1)  # not recognised
    grids = make_grids(images, labels, logits, 3)
    assert grids.images.shape == (3, 1, 4, 4)
    cells = grids.images.squeeze(1)[:, ::2, ::2].flatten(1).long()
    assert torch.equal(labels[cells], grids.classes)
    assert all(len(set(classes)) == 4 for classes in grids.classes.tolist())
    assert len(set(cells.flatten().tolist())) == 12
    assert cells.min() >= 6


@pytest.mark.parametrize('name', ALTERNATIVES)
def test_every_alternative_is_exact(name):
    torch.manual_seed(0)
    options = {'img_size': 16, 'patch_size': 4, 'embed_dim': 16, 'depth': 2, 'num_heads': 2, 'num_classes': 5}
    model = create_model('vit_tiny_patch16_224', class_token=False, global_pool='avg', **options)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    images, classes = torch.randn(2, 3, 16, 16, dtype=torch.float64), torch.tensor([[0, 3], [4, 1]])
    alternative = ALTERNATIVES[name]
    logits = model(images)
    if alternative.contrast:
        logits = logits - (logits.softmax(1) * logits).sum(1, keepdim=True)
    maps = alternative(model, images, classes)
    torch.testing.assert_close(maps.mean((2, 3)), logits.gather(1, classes), rtol=1e-9, atol=1e-9)
    if name == 'all':
        assert isinstance(model, CamModel)
        torch.testing.assert_close(maps, model.class_maps(images).maps(classes), rtol=1e-9, atol=1e-9)


def test_a_table_has_differences_where_there_is_more_than_ours():
    ours = {('deletion', 'ours'): torch.tensor([0.1, 0.3])}
    both = ours | {('deletion', 'random'): torch.tensor([0.4, 0.5])}
    for values, row in (
        (ours, '| A1-ce | 19.2 | ours | 0.200 (0.100 to 0.300) |'),
        (both, '| A1-ce | random | **-0.250 (-0.300 to -0.200)** |'),
    ):
        measured = [Measured('A1-ce', 'cifar_resnet20', 19.2, values)]
        table = markdown(measured, rows(measured), 'about')
        assert row in table
        assert ('ours minus' in table) == (len(values) == 2)
