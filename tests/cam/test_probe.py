import copy
import random
import re
from collections import Counter

import numpy as np
import pytest
import timm
import torch
from map_checks import off_by
from running import differences
from small_models import (
    ATTENTION,
    DETACHED_MODELS,
    MODELS,
    NUM_CLASSES,
    REPRESENTATIVES,
    TAIL_MODELS,
    heads_table,
    make_on_meta,
    perturb,
)
from timm.layers import set_fast_norm
from torch import nn

from timm_hnc import CamModel
from timm_hnc.cam.heads.probe import UnsupportedHead, check_trainable, probe_head

ADVICE = "create it with global_pool='avg' (--gp avg)"
KINDS = heads_table()
PLAIN = [
    *('resnet14t', 'test_byobnet', 'ese_vovnet19b_slim', 'legacy_seresnet18', 'nf_resnet26', 'test_efficientnet_gn'),
    *('botnet26t_256', 'coatnet_pico_rw_224', 'mobilevitv2_075', 'convnext_tiny_hnf', 'hrnet_w18_small'),
    *('densenetblur121d', 'samvit_base_patch16_224', 'swinv2_cr_tiny_224', 'focalnet_tiny_srf', 'resnetv2_18d'),
    *('dpn48b', 'resmlp_12_224', 'vit_medium_patch16_gap_240', 'mvitv2_tiny'),
]  # small ones of other families are in test_cam_model.py
DETACHED = [
    *('hiera_tiny_224', 'test_vit4', 'resnet50_mlp', 'vgg13')  # and in test_detached_heads.py
]
FOR_PICTURES = [
    'vit_xsmall_patch16_clip_224'  # test_detached_tail.py has the other families
]
REFUSED = ['vit_small_patch14_dinov2']
WITH_AVG = {'img_size': 64, 'num_classes': NUM_CLASSES, **ATTENTION, 'global_pool': 'avg'}


def found(name: str) -> tuple[str, bool]:
    """Kind and whether it is trainable."""
    try:
        head = probe_head(make_on_meta(name))
    except UnsupportedHead:
        return 'refused', False
    return head.kind, head.trainable


def expected(name: str) -> tuple[str, bool]:
    kind = KINDS[name]
    if kind[0] in 'IJ':
        return 'refused', False
    trainable = kind[0] != 'G' and (kind[0] != 'H' or name.startswith('efficientvim'))
    return kind if kind[0] == 'A' else kind[0], trainable


# --- the table of timm's models ---


def test_the_table_is_whole():
    kinds = Counter(kind[0] for kind in KINDS.values())
    assert len(KINDS) == 1371
    assert kinds == {'A': 673, 'B': 47, 'C': 137, 'D': 125, 'E': 32, 'F': 14, 'G': 165, 'H': 33, 'I': 138, 'J': 7}
    assert {kind for kind in KINDS.values() if kind.startswith('A')} == {'A1', 'A2', 'A3', 'A4', 'A5', 'A6'}


@pytest.mark.parametrize('name', PLAIN + DETACHED + FOR_PICTURES + REFUSED)  # the slow test below takes all
def test_a_sample_of_timm(name):
    assert (name in PLAIN) == KINDS[name].startswith('A')
    assert (name in PLAIN + DETACHED) == expected(name)[1]
    assert found(name) == expected(name)


@pytest.mark.parametrize('name', ['efficientvim_m4_dist'])
def test_states_of_any_number_are_no_tokens(name):
    assert found(name) == expected(name)


@pytest.mark.slow
@pytest.mark.parametrize('part', range(8))
def test_every_name_of_timm(part):
    names = sorted(KINDS)[part::8]
    assert {name: found(name) for name in names} == {name: expected(name) for name in names}


def advice(name: str) -> str:
    """What training on a model that is for pictures only is refused with."""
    model = make_on_meta(name)
    with pytest.raises(UnsupportedHead, match=f"^no trainable class maps for '{name}': ") as error:
        check_trainable(model, probe_head(model))
    return str(error.value)


def can_pool() -> list[str]:
    """Names that are for pictures only as listed, and have a global_pool='avg'."""
    names = [name for name in sorted(KINDS) if KINDS[name][0] in 'GH' and not expected(name)[1]]
    return [name for name in names if not name.startswith(('pit_', 'volo_')) and 'distilled' not in name]


def test_most_models_that_are_for_pictures_only_can_pool():
    assert sum(KINDS[name][0] in 'GH' and not expected(name)[1] for name in KINDS) == 190
    assert len(can_pool()) == 167


@pytest.mark.slow
@pytest.mark.parametrize('part', range(4))
def test_the_advice_to_pool_works(part):
    for name in can_pool()[part::4]:
        assert f'Way out: {ADVICE}; its class-token weights' in advice(name)
        head = probe_head(make_on_meta(name, global_pool='avg'))
        assert (head.kind, head.trainable) in [(kind, True) for kind in ('A', 'A4', 'A5', 'C', 'H')]


@pytest.mark.slow
def test_no_advice_to_pool_where_it_would_not_help():
    for name in KINDS:
        if KINDS[name][0] in 'GH' and not expected(name)[1] and name not in can_pool():
            assert 'Way out: choose a model with an average pool' in advice(name)


# --- refusals ---


@pytest.mark.parametrize(
    ('name', 'kwargs', 'reason', 'way_out'),
    [
        ('test_resnet', {'num_classes': 0}, 'it has no classifier', 'create it with num_classes=N'),
        ('test_vit', {'num_classes': 0}, 'it has no classifier', '--num-classes N'),
        ('test_resnet', {'global_pool': 'max'}, 'its head cannot be followed.*max', ADVICE),
        ('test_resnet', {'global_pool': 'catavgmax'}, 'its head cannot be followed.*max', ADVICE),
        ('test_convnext', {'global_pool': 'max'}, 'its head cannot be followed.*max', ADVICE),
    ],
)
@pytest.mark.parametrize('state', ['fresh', 'perturbed', 'training'])
def test_refusals_say_which_model_why_and_what_to_do(name, kwargs, reason, way_out, state):
    model = timm.create_model(name, **kwargs).eval()
    if state == 'perturbed' and kwargs.get('num_classes') != 0:
        perturb(model)
    with pytest.raises(UnsupportedHead, match=f"^no exact class maps for '{name}': {reason}") as error:
        CamModel(model.train(state == 'training'))
    assert isinstance(error.value, ValueError)
    assert way_out in str(error.value).split('Way out: ')[1]
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', [name for name, kind in KINDS.items() if kind.startswith('J')])
def test_encoders_are_refused(name):
    with pytest.raises(UnsupportedHead, match=rf"no exact class maps for '{name}': .*Way out: use an image classifier"):
        CamModel(make_on_meta(name))


@pytest.mark.parametrize('kwargs', [{}, {'reg_tokens': 4}])
def test_the_way_out_of_a_vision_transformer_leads_out(kwargs):
    model = timm.create_model('vit_tiny_patch16_224', **{**WITH_AVG, 'global_pool': 'token'}, **kwargs)
    cam_model = CamModel(model)
    assert (cam_model.kind.name, cam_model.kind.trainable) == ('G', False)
    with pytest.raises(UnsupportedHead, match=re.escape(f'Way out: {ADVICE}; its class-token weights')):
        check_trainable(model, cam_model.head)
    cam_model = CamModel(perturb(timm.create_model('vit_tiny_patch16_224', **WITH_AVG, **kwargs)))
    check_trainable(cam_model.model, cam_model.head)
    class_maps = cam_model.double().class_maps(torch.randn(2, 3, 64, 64, dtype=torch.float64))
    assert off_by(class_maps) < 1e-9


def test_models_that_can_be_trained_on_are_not_refused():
    for small in (MODELS['resnet'], DETACHED_MODELS['convnext'], DETACHED_MODELS['siglip']):
        model = small.make()
        assert check_trainable(model, probe_head(model)) is None


@pytest.mark.parametrize('size', [64, 80])
@pytest.mark.parametrize('fc_norm', [False, True])
def test_register_tokens_in_the_mean_have_no_place(size, fc_norm):
    """Not even where patches and registers together form a grid: 16 + 4 tokens are 4 x 5."""
    options = {**WITH_AVG, 'img_size': size, 'class_token': False, 'reg_tokens': 4, 'fc_norm': fc_norm}
    with_registers, without = (
        CamModel(perturb(timm.create_model('vit_tiny_patch16_224', pool_include_prefix=prefix, **options)).double())
        for prefix in (True, False)
    )
    assert [model.head.kind for model in (with_registers, without)] == (['C', 'C'] if fc_norm else ['A', 'A5'])
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    for model in (with_registers.eval(), without.eval()):
        class_maps = model.class_maps(x)
        assert class_maps.grid == (size // 16, size // 16)
        assert torch.equal(class_maps.logits, model(x))
        assert off_by(class_maps) < 1e-9


# --- models that look alike ---


def snapshot(model):
    return {
        'training': [module.training for module in model.modules()],
        'state': {name: tensor.clone() for name, tensor in model.state_dict().items()},
        'ids': {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()},
        'grad': [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        'requires_grad': [p.requires_grad for p in model.parameters()],
        'hooks': [{k: len(v) for k, v in vars(module).items() if k.endswith('_hooks')} for module in model.modules()],
        'attributes': [sorted(vars(module)) for module in model.modules()],
    }


def some_gradients_and_flags(model):
    """Gradients on some parameters, others frozen, every second module in train mode."""
    for index, parameter in enumerate(model.parameters()):
        if index % 3 == 0:
            parameter.grad = torch.randn_like(parameter)
        parameter.requires_grad_(index % 4 != 1)
    for index, module in enumerate(model.modules()):
        module.training = index % 2 == 0
    return model


def changes_nothing(model, function):
    """Weights, flags, hooks, gradients and every random state are as before."""
    before = snapshot(model)
    random_states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    function()
    assert not differences(snapshot(model), before)
    assert torch.equal(torch.get_rng_state(), random_states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == random_states[1:]


ONE_OF_EACH = {
    **{name: MODELS[name] for name in REPRESENTATIVES},
    **{
        name: DETACHED_MODELS[name]
        for name in ('repvit', 'convnext', 'mobilenetv3', 'efficientvit', 'siglip', 'efficientvim')
    },
    'class token': TAIL_MODELS['vit'],
    'two rows of tokens': TAIL_MODELS['coat'],
}


def test_one_of_each_kind():
    kinds = {small.kind[0] for small in ONE_OF_EACH.values()}
    assert kinds == set('ABCDEFGH')


@pytest.mark.parametrize('small', ONE_OF_EACH.values(), ids=ONE_OF_EACH)
def test_probing_changes_nothing(small):
    model = some_gradients_and_flags(small.make())
    changes_nothing(model, lambda: CamModel(model))


def test_probing_changes_nothing_where_there_is_dropout():
    for small in (MODELS['resnet'], DETACHED_MODELS['convnext'], TAIL_MODELS['vit']):
        model = some_gradients_and_flags(small.make(drop_rate=0.5))
        changes_nothing(model, lambda model=model: CamModel(model))


@pytest.mark.parametrize(
    ('name', 'kwargs'),
    [
        ('test_resnet', {'global_pool': 'max'}),
        ('test_resnet', {'global_pool': 'catavgmax'}),
        ('mobilenetv3_small_050', {'global_pool': 'max'}),
        ('test_vit', {'global_pool': 'max'}),
        ('test_efficientnet', {'num_classes': 0}),
    ],
)
def test_a_refusal_changes_nothing(name, kwargs):
    model = timm.create_model(name, **kwargs)
    model = some_gradients_and_flags(perturb(model) if model.num_classes else model)

    def refused():
        with pytest.raises(UnsupportedHead):
            CamModel(model)

    changes_nothing(model, refused)


def test_a_refusal_to_train_changes_nothing():
    """The way out is tried on another model."""
    model = some_gradients_and_flags(TAIL_MODELS['vit'].make())
    head = probe_head(model)

    def refused():
        with pytest.raises(UnsupportedHead):
            check_trainable(model, head)

    changes_nothing(model, refused)


@pytest.mark.parametrize('grad', [False, True])
def test_a_model_that_was_evaluated_before(grad):
    """efficientformer keeps its attention biases from evaluation, in an autograd graph, which cannot be copied."""
    small = MODELS['efficientformer']
    model = small.make()
    with torch.set_grad_enabled(grad):
        expected = model(small.images())
    assert any(getattr(module, 'attention_bias_cache', None) for module in model.modules())
    torch.testing.assert_close(CamModel(model).class_maps(small.images()).logits, expected)


def test_half_and_double_models_are_accepted():
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        for small in (MODELS['resnet'], DETACHED_MODELS['convnext'], TAIL_MODELS['vit']):
            assert CamModel(small.make().to(dtype)).head.kind == small.kind


def test_weights_that_are_not_finite_are_told():
    model = timm.create_model('test_resnet')
    with torch.no_grad():
        model.fc.weight[0, 0] = torch.nan
    with pytest.raises(UnsupportedHead, match=r'its weights hold NaN or infinity\. Way out: load other weights'):
        CamModel(model)


@pytest.mark.parametrize('small', [MODELS['vit_reg4'], DETACHED_MODELS['mobilenetv3'], TAIL_MODELS['vit']])
def test_weights_are_not_copied(small, monkeypatch):
    """A model of gigabytes is probed on the meta device."""

    def refuse(self, memo):
        raise AssertionError('a parameter was copied')

    model = small.make()
    monkeypatch.setattr(nn.Parameter, '__deepcopy__', refuse)
    with pytest.raises(AssertionError, match='was copied'):
        copy.deepcopy(model)
    CamModel(model)


def test_fast_norms():
    """They ask whether autocast is on, which the meta device does not know."""
    set_fast_norm(True)
    try:
        assert probe_head(make_on_meta('test_convnext')).kind == 'C'
        model = CamModel(perturb(timm.create_model('test_convnext', num_classes=NUM_CLASSES)).eval())
        with torch.autocast('cpu', torch.bfloat16):
            class_maps = model.class_maps(torch.randn(2, 3, 64, 64))
        means = class_maps.maps(None).float().mean((2, 3))
        torch.testing.assert_close(means, class_maps.logits.float(), rtol=3e-2, atol=3e-1)
    finally:
        set_fast_norm(False)
