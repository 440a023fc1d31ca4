import copy
import random
import re
from collections import Counter

import numpy as np
import pytest
import timm
import torch
from small_models import ATTENTION, MODELS, NUM_CLASSES, REPRESENTATIVES, heads_table, make_on_meta, perturb
from torch import nn

from timm_hnc import CamModel
from timm_hnc.cam.probe import UnsupportedHead, probe_head

KINDS = heads_table()
ACCEPTED = [
    *('resnet14t', 'darknet17', 'test_byobnet', 'ese_vovnet19b_slim', 'legacy_seresnet18', 'cspnext_tiny'),
    *('nf_resnet26', 'test_efficientnet_gn', 'botnet26t_256', 'regnetx_002', 'coatnet_pico_rw_224', 'pvt_v2_b1'),
    *('mobilevitv2_075', 'convnext_tiny_hnf', 'gcvit_xxtiny', 'hrnet_w18_small', 'densenetblur121d'),
    *('samvit_base_patch16_224', 'swinv2_cr_tiny_224', 'focalnet_tiny_srf'),
    *('resnetv2_18d', 'dla34', 'dpn48b', 'swin_s3_tiny_224', 'resmlp_12_224', 'vit_srelpos_small_patch16_224'),
    *('vit_medium_patch16_gap_240', 'mvitv2_tiny', 'twins_pcpvt_small', 'vit_so150m_patch16_reg4_gap_256'),
    *('efficientformer_l1', 'efficientformerv2_s0', 'swiftformer_s'),
]
REFUSED = [
    *('levit_512_s8', 'repvit_m1_1', 'convnext_atto', 'hiera_tiny_224', 'test_vit4', 'mobilenetv3_small_050'),
    *('resnet50_mlp', 'test_mambaout', 'vgg13', 'vit_pe_core_base_patch16_224', 'resnet50_clip', 'pit_s_224'),
    *('vit_xsmall_patch16_clip_224', 'mvitv2_small_cls', 'deit_small_distilled_patch16_224', 'efficientvim_m1'),
    *('crossvit_9_dagger_240', 'vit_small_patch14_dinov2', 'qwen3_vit_88m_enc'),
]
ADVICE = "Way out: create it with global_pool='avg', fc_norm=False (--gp avg --model-kwargs fc_norm=False)"


def found(name: str) -> str:
    try:
        return probe_head(make_on_meta(name)).kind
    except UnsupportedHead:
        return 'refused'


def expected(name: str) -> str:
    return KINDS[name] if KINDS[name].startswith('A') else 'refused'


# --- the table of timm's models ---


def test_the_table_is_whole():
    kinds = Counter(kind[0] for kind in KINDS.values())
    assert len(KINDS) == 1371
    assert kinds['A'] == 673
    assert {kind for kind in KINDS.values() if kind.startswith('A')} == {'A1', 'A2', 'A3', 'A4', 'A5', 'A6'}


@pytest.mark.parametrize('name', ACCEPTED + REFUSED)
def test_a_sample_of_timm(name):
    assert (name in ACCEPTED) == KINDS[name].startswith('A')
    assert found(name) == expected(name)


@pytest.mark.slow
@pytest.mark.parametrize('part', range(8))
def test_every_name_of_timm(part):
    names = sorted(KINDS)[part::8]
    assert {name: found(name) for name in names} == {name: expected(name) for name in names}


@pytest.mark.slow
@pytest.mark.parametrize('part', range(4))
def test_the_advice_works_wherever_it_is_given(part):
    refused = [name for name in sorted(KINDS) if KINDS[name][0] not in 'AI'][part::4]
    kinds = {}
    for name in refused:
        with pytest.raises(UnsupportedHead) as error:
            probe_head(make_on_meta(name))
        advised = re.search(r"global_pool='avg', (\w+)=False", str(error.value))
        if advised:
            prefix = (
                {'pool_include_prefix': False} if name == 'test_vit3' else {}
            )  # refused once more, for its registers
            kinds[name] = probe_head(make_on_meta(name, global_pool='avg', **{advised[1]: False}, **prefix)).kind
    assert len(kinds) > 10
    assert set(kinds.values()) <= {'A4', 'A5'}


# --- refusals ---


@pytest.mark.parametrize(
    ('name', 'kwargs', 'reason', 'way_out'),
    [
        (
            'test_convnext',
            {},
            'its head has more than a mean.*native_layer_norm',
            'choose a model with an average pool',
        ),
        ('mobilenetv3_small_050', {}, 'its head has more than a mean.*hardswish', 'such as resnet50'),
        ('levit_128s', {}, 'its head has more than a mean.*batch_norm', 'such as resnet50'),
        ('repvit_m0_9', {}, '.*batch_norm', 'such as resnet50'),
        ('test_vit', {}, 'its head has more than a mean', '--gp avg --model-kwargs fc_norm=False'),
        ('test_resnet', {'num_classes': 0}, 'it has no classifier', 'create it with num_classes=N'),
        ('test_vit', {'num_classes': 0}, 'it has no classifier', '--num-classes N'),
        ('test_resnet', {'global_pool': 'max'}, 'its head has more than a mean.*max', 'such as resnet50'),
        ('test_resnet', {'global_pool': 'catavgmax'}, 'its head has more than a mean.*max', 'such as resnet50'),
    ],
)
@pytest.mark.parametrize('state', ['fresh', 'perturbed', 'training'])
def test_refusals_say_which_model_why_and_what_to_do(name, kwargs, reason, way_out, state):
    model = timm.create_model(name, **kwargs).eval()
    if state == 'perturbed' and not kwargs:
        perturb(model)
    with pytest.raises(UnsupportedHead, match=f"^no exact class maps for '{name}': {reason}") as error:
        CamModel(model.train(state == 'training'))
    assert isinstance(error.value, ValueError)
    assert way_out in str(error.value)
    assert '\n' not in str(error.value)


def test_encoders_are_refused():
    with pytest.raises(UnsupportedHead, match=r"no exact class maps for 'qwen3_vit_88m_enc': .*Way out"):
        CamModel(make_on_meta('qwen3_vit_88m_enc'))


@pytest.mark.parametrize('model', [nn.Linear(3, 4), nn.Sequential(nn.Conv2d(3, 4, 1))])
def test_other_modules_are_refused(model):
    with pytest.raises(UnsupportedHead, match=rf"'{type(model).__name__}': it has no forward_features\(\).*of timm"):
        CamModel(model)


@pytest.mark.parametrize('kwargs', [{}, {'reg_tokens': 4}, {'global_pool': 'map'}, {'global_pool': 'avg'}])
def test_the_way_out_of_a_vision_transformer_leads_out(kwargs):
    options = {'img_size': 64, 'num_classes': NUM_CLASSES, **ATTENTION, **kwargs}
    with pytest.raises(UnsupportedHead) as error:
        CamModel(timm.create_model('vit_tiny_patch16_224', **options))
    assert ADVICE in str(error.value)
    model = timm.create_model('vit_tiny_patch16_224', **{**options, 'global_pool': 'avg', 'fc_norm': False})
    class_maps = CamModel(perturb(model)).class_maps(torch.randn(2, 3, 64, 64))
    torch.testing.assert_close(class_maps.maps(None).mean((2, 3)), class_maps.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('size', [64, 80])
def test_register_tokens_in_the_mean_are_refused(size):
    """Even where patches and registers together form a grid: 16 + 4 tokens are 4 x 5."""
    options = {'img_size': size, 'class_token': False, 'reg_tokens': 4, **ATTENTION}
    options.update(global_pool='avg', fc_norm=False, pool_include_prefix=True)
    with pytest.raises(UnsupportedHead, match='its mean takes in class or register tokens') as error:
        CamModel(timm.create_model('vit_tiny_patch16_224', **options))
    assert 'Way out: create it with pool_include_prefix=False (--model-kwargs pool_' in str(error.value)
    model = timm.create_model('vit_tiny_patch16_224', **{**options, 'pool_include_prefix': False})
    assert CamModel(model).head.kind == 'A5'


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


def same(first, second) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    return first == second


def some_gradients_and_flags(model):
    """Gradients on some parameters, others frozen, every second module in train mode."""
    for index, parameter in enumerate(model.parameters()):
        if index % 3 == 0:
            parameter.grad = torch.randn_like(parameter)
        parameter.requires_grad_(index % 4 != 1)
    for index, module in enumerate(model.modules()):
        module.training = index % 2 == 0
    return model


@pytest.mark.parametrize('name', REPRESENTATIVES)
def test_probing_changes_nothing(name):
    model = some_gradients_and_flags(MODELS[name].make(drop_rate=0.5))
    before = snapshot(model)
    random_states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    CamModel(model)
    assert same(snapshot(model), before)
    assert torch.equal(torch.get_rng_state(), random_states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == random_states[1:]


@pytest.mark.parametrize('name', ['levit_128s', 'test_vit', 'mobilenetv3_small_050'])
def test_a_refusal_changes_nothing(name):
    model = some_gradients_and_flags(perturb(timm.create_model(name)))
    before, random_state = snapshot(model), torch.get_rng_state()
    with pytest.raises(UnsupportedHead):
        CamModel(model)
    assert same(snapshot(model), before)
    assert torch.equal(torch.get_rng_state(), random_state)


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
        assert CamModel(MODELS['resnet'].make().to(dtype)).head.kind == 'A1'


def test_weights_are_not_copied(monkeypatch):
    """A model of gigabytes is probed on the meta device."""

    def refuse(self, memo):
        raise AssertionError('a parameter was copied')

    model = MODELS['vit_reg4'].make()
    monkeypatch.setattr(nn.Parameter, '__deepcopy__', refuse)
    with pytest.raises(AssertionError, match='was copied'):
        copy.deepcopy(model)
    CamModel(model)
