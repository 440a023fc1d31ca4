import inspect
import re

import pytest
import torch
from loss_cases import (
    CASES,
    IDS,
    LABELS,
    OPTIONS,
    batch_of,
    class_maps,
    draw_factors,
    evaluate,
    make_loss,
    of_features,
    target_of,
)

from timm_hnc import ClassMaps
from timm_hnc.losses.base import MULTI_LABEL, SINGLE_LABEL
from timm_hnc.losses.factory import LOSSES

each = pytest.mark.parametrize(('name', 'task'), CASES, ids=IDS)


@pytest.mark.parametrize('name', [name for name, task in CASES if task != MULTI_LABEL])
@pytest.mark.parametrize('dtype', [torch.uint8, torch.int32])
def test_class_indices_of_any_type(name, dtype):
    loss = make_loss(name, SINGLE_LABEL)
    maps = class_maps(*draw_factors(5 * batch_of(loss) // 4))
    labels = torch.tensor([1, 2, 3, 4, 1])  # as many as classes, and none is 0: as a mask they would do
    torch.testing.assert_close(evaluate(loss, maps, labels.to(dtype)), evaluate(loss, maps, labels))
    first = next(iter(inspect.signature(loss.forward).parameters))
    given = {first: maps.logits if loss.needs == 'logits' else maps, 'target': labels.to(dtype)}
    torch.testing.assert_close(loss(**given), evaluate(loss, maps, labels))


@each
def test_mean_over_the_batch(name, task):
    loss = make_loss(name, task).double()
    positions, weight, bias = draw_factors(batch_of(loss))
    target = target_of(task)
    whole = evaluate(loss, class_maps(positions, weight, bias), target)
    views = [[image, image + 4] if loss.needs == 'two_views' else [image] for image in range(4)]
    parts = [evaluate(loss, class_maps(positions[v], weight, bias), target[[i]]) for i, v in enumerate(views)]
    torch.testing.assert_close(whole, sum(parts) / 4, rtol=1e-10, atol=1e-12)


@each
@pytest.mark.parametrize('half', [torch.bfloat16, torch.float16])
def test_half_types_are_raised(name, task, half):
    loss = make_loss(name, task)
    halves = [factor.to(half) for factor in draw_factors(batch_of(loss), dtype=torch.float32)]
    found = evaluate(loss, class_maps(*halves), target_of(task))
    positions, weight, bias = (factor.float() for factor in halves)
    near = evaluate(loss, class_maps(positions, weight, bias), target_of(task))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, near, rtol=0.03, atol=0.01)
    # the very numbers that came in half, with the loss itself in float32
    logits = class_maps(*halves).logits
    maps = ClassMaps(positions, weight, bias, (2, 3), logits.float())
    rtol = 1e-5 if loss.needs == 'logits' else 0.03
    torch.testing.assert_close(found, evaluate(loss, maps, target_of(task)), rtol=rtol, atol=0.01 if rtol > 0.01 else 0)


@each
def test_autocast_does_not_reach_into_the_loss(name, task):
    loss = make_loss(name, task).eval()
    positions, weight, bias = draw_factors(batch_of(loss), dtype=torch.float32)
    maps = class_maps(positions, weight, bias)
    expected = evaluate(loss, maps, target_of(task))
    with torch.autocast('cpu', torch.bfloat16):
        found = evaluate(loss, maps, target_of(task))
    assert found.dtype == torch.float32
    # maps of attention consistency are made of the factors, in the type that autocast wants
    tolerance = dict(rtol=0.02, atol=0) if loss.needs == 'two_views' else dict(rtol=1e-6, atol=0)
    torch.testing.assert_close(found, expected, **tolerance)


@each
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('sign', [1, -1])
def test_large_scores_have_finite_values_and_gradients(name, task, dtype, sign):
    loss = make_loss(name, task).eval()
    weight = torch.eye(5, 3, dtype=dtype).mul(10).requires_grad_()
    rows = torch.eye(3, dtype=dtype)[[2, 0, 0, 2]].repeat(batch_of(loss) // 4, 1)
    features = (sign * 10 * rows).requires_grad_()  # logits of 100 and -100, cosines of 1, -1 and 0
    bias = torch.zeros(5, dtype=dtype, requires_grad=True)
    value = evaluate(loss, of_features(features, weight, bias), target_of(task))
    assert value.isfinite()
    for gradient in torch.autograd.grad(value, [features, weight, bias], allow_unused=True):
        assert gradient is None or gradient.isfinite().all()


@each
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_features_of_zero_have_finite_values_and_gradients(name, task, dtype):
    loss = make_loss(name, task).eval()
    features = torch.zeros(batch_of(loss), 3, dtype=dtype, requires_grad=True)
    weight = draw_factors(dtype=dtype)[1].detach()
    weight[1] = 0
    weight.requires_grad_()
    value = evaluate(loss, of_features(features, weight), target_of(task))
    assert value.isfinite()
    for gradient in torch.autograd.grad(value, [features, weight], allow_unused=True):
        assert gradient is None or gradient.isfinite().all()
        assert gradient is None or gradient.abs().max() < 1e9  # and not so large that one step ruins the weights


@each
def test_the_meta_device_will_do(name, task):
    """No number is looked at: nothing waits for a GPU."""
    loss = make_loss(name, task).to('meta')
    factors = [factor.detach().to('meta') for factor in draw_factors(batch_of(loss), dtype=torch.float32)]
    value = evaluate(loss, class_maps(*factors), target_of(task).to('meta'))
    assert value.shape == ()
    assert value.dtype == torch.float32


@each
def test_a_bias_gets_a_gradient(name, task):
    """Processes wait for the gradient of every parameter, also where a loss has no use for the bias."""
    loss = make_loss(name, task)
    factors = draw_factors(batch_of(loss), dtype=torch.float32)
    value = evaluate(loss, class_maps(*factors), target_of(task))
    gradients = torch.autograd.grad(value, [*factors, *loss.parameters()])
    if loss.changes_scores:
        assert not gradients[2].any()
    without = draw_factors(batch_of(loss), bias=False, dtype=torch.float32)
    assert evaluate(loss, class_maps(*without), target_of(task)).isfinite()


@each
def test_what_goes_into_a_checkpoint_comes_back(name, task):
    loss = make_loss(name, task)
    positions, weight, bias = draw_factors(batch_of(loss), dtype=torch.float32)
    for _ in range(3):
        evaluate(loss, class_maps(positions, weight, bias), target_of(task))
    again = make_loss(name, task)
    again.load_state_dict(loss.state_dict())
    values = [evaluate(one.eval(), class_maps(positions, weight, bias), target_of(task)) for one in (loss, again)]
    assert torch.equal(*values)


@pytest.mark.parametrize(
    'name', [n for n, kind in LOSSES.items() if not kind.soft_targets and MULTI_LABEL not in kind.tasks]
)
def test_values_are_refused_where_indices_are_wanted(name):
    loss = make_loss(name, SINGLE_LABEL)
    values = torch.eye(5, dtype=torch.float64)[LABELS]
    with pytest.raises(
        ValueError, match=rf'targets of shape \(4, 5\): {type(loss).__name__} takes \(B,\) class indices'
    ):
        evaluate(loss, class_maps(*draw_factors()), values)


@pytest.mark.parametrize('name', [name for name, kind in LOSSES.items() if kind.soft_targets])
def test_soft_targets_are_linear(name):
    task = LOSSES[name].tasks[0]
    loss = make_loss(name, task).double()
    maps = class_maps(*draw_factors())
    one, other = torch.eye(5, dtype=torch.float64)[LABELS], torch.eye(5, dtype=torch.float64)[[1, 1, 3, 0]]
    mixed = loss(maps.logits, 0.3 * one + 0.7 * other)
    torch.testing.assert_close(mixed, 0.3 * loss(maps.logits, one) + 0.7 * loss(maps.logits, other))
    if task != MULTI_LABEL:
        torch.testing.assert_close(loss(maps.logits, one), loss(maps.logits, LABELS))
        loss.smoothing = 0.2
        smoothed = loss(maps.logits, LABELS)
        expected = loss(maps.logits, one * 0.8 + 0.2 / 5)
        torch.testing.assert_close(smoothed, expected)
        assert smoothed != loss(maps.logits, one)


@pytest.mark.parametrize(
    ('name', 'option', 'value'),
    [
        ('focal', 'gamma', -1),
        ('focal', 'gamma', float('nan')),
        ('cb-focal', 'gamma', -1),
        ('cb-focal', 'beta', 1.0),
        ('cb-focal', 'beta', -0.1),
        ('center', 'weight', -0.1),
        ('lgm', 'margin', -0.1),
        ('lgm', 'likelihood_weight', float('inf')),
        ('a-softmax', 'margin', 0),
        ('a-softmax', 'margin', 2.5),
        ('a-softmax', 'margin', float('inf')),
        ('a-softmax', 'margin', float('nan')),
        ('a-softmax', 'base', -1),
        ('a-softmax', 'gamma', -1),
        ('a-softmax', 'min_weight', -1),
        ('lmc', 'margin', -0.1),
        ('lmc', 'scale', 0),
        ('lmc', 'scale', -64),
        ('aam', 'margin', 3.2),
        ('aam', 'margin', -0.1),
        ('aam', 'scale', 0),
        ('anchor', 'gamma', -1),
        ('anchor', 'slack', -0.1),
        ('guided-complement', 'alpha', -0.1),
        ('max-entropy', 'gamma', -1),
        ('attention-consistency', 'weight', -1),
    ],
)
def test_bad_options_are_refused(name, option, value):
    with pytest.raises(ValueError, match=f'{option} = {value}: expected'):
        make_loss(name, LOSSES[name].tasks[0], **{option: value})


@each
def test_options_are_printed(name, task):
    loss = make_loss(name, task)
    for option, value in (type(loss).options() | OPTIONS.get(name, {})).items():
        assert re.search(rf'\b{option}={re.escape(str(value))}[,)\n]', repr(loss)), option
