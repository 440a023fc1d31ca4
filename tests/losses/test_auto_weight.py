"""A weight of HNC that follows from both gradients at the class maps."""

import pytest
import torch
from small_models import MODELS, NUM_CLASSES
from torch import nn

from timm_hnc import CamModel, ClassMaps, HNCLoss, HNCTask, hnc_loss
from timm_hnc.losses import AutoWeight
from timm_hnc.losses.auto_weight import criterion_norm
from timm_hnc.losses.center import CenterLoss

SMALL = MODELS['resnet']
LABELS = torch.tensor([0, 3, 2])
SEVERAL = torch.tensor([[1.0, 0, 0, 1, 0], [0, 1, 0, 0, 0], [1, 1, 1, 1, 1]])  # the last one has no negatives


def leaf_maps():
    """Maps as a leaf, and ClassMaps that have them: their features are the maps themselves."""
    maps = torch.randn(3, 5, 2, 3, dtype=torch.float64).requires_grad_()
    return maps, ClassMaps(maps.flatten(2).transpose(1, 2), torch.eye(5, dtype=torch.float64), None, (2, 3))


@pytest.mark.parametrize('target', [LABELS, SEVERAL], ids=['one label', 'several'])
def test_norm_of_the_criterion_is_that_of_its_gradient_at_the_maps(target):
    criterion = nn.CrossEntropyLoss() if target.ndim == 1 else nn.BCEWithLogitsLoss(reduction='sum')
    maps, class_maps = leaf_maps()
    [gradient] = torch.autograd.grad(
        criterion(maps.mean((2, 3)), target.to(maps) if target.ndim == 2 else target), maps
    )
    found = criterion_norm(criterion, class_maps, target.to(maps) if target.ndim == 2 else target)
    torch.testing.assert_close(found, gradient.norm(), rtol=1e-12, atol=0)


@pytest.mark.parametrize('variant', ['mse', 'kd', 'var', 'logit'])
@pytest.mark.parametrize('reduction', ['sum', 'mean'])
@pytest.mark.parametrize('target', [LABELS, SEVERAL], ids=['one label', 'several'])
def test_norm_of_hnc_is_that_of_its_gradient_at_the_maps(variant, reduction, target):
    maps, class_maps = leaf_maps()
    options = {'variant': variant, 'topk': 3, 'alpha': 0.4, 'reduction': reduction}
    [gradient] = torch.autograd.grad(hnc_loss(class_maps, target, **options), maps)
    found = HNCLoss(**options).norm(class_maps, target)
    torch.testing.assert_close(found, gradient.norm(), rtol=1e-12, atol=0)
    assert not found.requires_grad


def test_averages_by_hand():
    weight = AutoWeight(0.5)
    pairs = [(2.0, 4.0), (3.0, 1.0), (1.0, 8.0)]
    for count, (first, second) in enumerate(pairs, 1):
        weight.update(torch.tensor(first), torch.tensor(second))
        shares = torch.tensor([0.98 ** (count - 1 - place) for place in range(count)])
        criterion, hnc = shares @ torch.tensor(pairs[:count])
        assert weight.value.item() == pytest.approx(0.5 * (criterion / hnc).item())
    assert weight.unusable == 0


def test_it_goes_to_where_the_model_is():
    weight = AutoWeight()
    weight.update(torch.ones((), device='meta'), torch.ones((), device='meta'))
    assert {weight.norms.device.type, weight.unusable.device.type} == {'meta'}


def test_averages_stay_in_float64():
    """A half type would round steps of 2 % away."""
    weight = AutoWeight(1.0)
    for norm in [1.0] + 400 * [1.15]:
        weight.to(torch.bfloat16).update(torch.tensor(norm), torch.tensor(1.0))
    assert weight.value.item() == pytest.approx(1.15, abs=1e-4)


@pytest.mark.parametrize('bad', [0.0, float('inf'), float('nan')])
@pytest.mark.parametrize('place', [0, 1])
def test_what_is_no_use_leaves_the_weight_and_is_counted(bad, place):
    weight, norms = AutoWeight(0.1), [torch.tensor(2.0), torch.tensor(4.0)]
    found = [torch.tensor(bad) if number == place else norm for number, norm in enumerate(norms)]
    weight.update(*found)
    assert weight.value == 0
    weight.update(*norms)
    before = weight.value.clone()
    weight.update(*found)
    assert weight.value == before == 0.1 * 2 / 4
    assert weight.unusable == 2
    weight.update(*norms)
    assert weight.value.item() == pytest.approx(before.item(), rel=1e-12), 'the averages are as they were'


@pytest.mark.parametrize('share', [0, -1.0, float('nan'), float('inf')])
def test_a_share_is_above_0(share):
    with pytest.raises(ValueError, match=f'share = {share}: expected a finite number above 0'):
        AutoWeight(share)


def make(**options):
    return HNCTask(SMALL.cam_model().double(), nn.CrossEntropyLoss(), verbose=False, **options).train()


@pytest.mark.parametrize('variant', ['mse', 'kd', 'var', 'logit'])
def test_hnc_pulls_at_the_maps_with_its_share(variant):
    hnc = HNCLoss(variant, topk=2)
    task = make(hnc=hnc, hnc_weight=AutoWeight(0.25))
    images, seen = SMALL.images().double(), {}
    head = type(task.trainable_module.head)
    with pytest.MonkeyPatch.context() as patch:  # the class maps of the step, with their positions as leaves
        made = head.class_maps

        def kept(self, *args, **kwargs):
            maps = made(self, *args, **kwargs)
            seen['maps'] = ClassMaps(maps.positions.detach(), maps.weight.detach(), maps.bias.detach(), maps.grid)
            return maps

        patch.setattr(head, 'class_maps', kept)
        result = task(images, LABELS)
    maps = seen['maps'].maps(None).requires_grad_()
    leaf = ClassMaps(maps.flatten(2).transpose(1, 2), torch.eye(NUM_CLASSES).double(), None, seen['maps'].grid)
    [criterion] = torch.autograd.grad(nn.functional.cross_entropy(maps.mean((2, 3)), LABELS), maps)
    [pull] = torch.autograd.grad(result['hnc_weight'] * hnc(leaf, LABELS), maps)
    torch.testing.assert_close(pull.norm(), 0.25 * criterion.norm(), rtol=1e-9, atol=0)
    torch.testing.assert_close(result['loss'], result['criterion'] + result['hnc_weight'] * result['hnc'])


def test_it_follows_in_training_alone_and_until_it_is_settled():
    weight = AutoWeight()
    task, images = make(hnc_weight=weight), SMALL.images().double()
    found = [task(images, LABELS)['hnc_weight']]
    task.eval()
    assert task(images, LABELS)['hnc_weight'] == found[0]
    task.train()
    with torch.no_grad():
        assert task(images, LABELS)['hnc_weight'] == found[0]
    found.append(task(images * 2, LABELS.roll(1))['hnc_weight'])
    weight.settled = True
    found += [task(images * factor, LABELS.roll(1))['hnc_weight'] for factor in (5, 9)]
    assert found[0] != found[1] == found[2] == found[3]


def test_a_state_goes_on():
    first, second = AutoWeight(0.3), AutoWeight(0.3)
    norms = torch.rand(3, 2) + 0.5
    first.update(*norms[0])
    second.load_state_dict(first.state_dict())
    assert not second.settled
    for pair in norms[1:]:
        for each in (first, second):
            each.update(*pair)
    assert first.value == second.value


def test_another_share_is_in_force_from_a_state_on():
    first, second = AutoWeight(0.3), AutoWeight(0.6)
    first.update(torch.tensor(2.0), torch.tensor(5.0))
    first.settled = True
    second.load_state_dict(first.state_dict())
    assert second.settled
    assert second.value.item() == pytest.approx(2 * first.value.item(), rel=1e-12)


def test_where_there_are_no_negatives_the_criterion_is_alone():
    model = SMALL.make(num_classes=1)
    weight = AutoWeight()
    task = HNCTask(CamModel(model), nn.CrossEntropyLoss(), hnc_weight=weight, verbose=False).train()
    result = task(SMALL.images(), torch.zeros(3, dtype=torch.long))
    assert result['loss'] == result['criterion']
    assert (weight.value, weight.unusable) == (0, 1)


def test_a_criterion_that_looks_at_more_than_logits_is_refused():
    loss = CenterLoss(NUM_CLASSES, SMALL.make().num_features)
    with pytest.raises(ValueError, match='CenterLoss is no function of logits: AutoWeight needs one'):
        HNCTask(SMALL.cam_model(), loss, hnc_weight=AutoWeight(), verbose=False)
