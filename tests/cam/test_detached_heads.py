"""Heads with norms, activations and attention: what is not linear is detached, the rest is followed to the logits."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from map_checks import assert_same, gradients, off_by, roundings_off, seeded
from small_models import DETACHED_MODELS, NUM_CLASSES, SmallModel, perturb
from timm.layers import AttentionPool2d, RotAttentionPool2d, apply_rot_embed_cat
from timm.models.byobnet import ByoBlockCfg
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn import functional

from timm_hnc import CamModel, HNCLoss, HNCTask, hnc_loss
from timm_hnc.cam.following.layout import Live
from timm_hnc.cam.heads.detached_tail import ShadowTracker, Start, TailMaps
from timm_hnc.cam.heads.probe import UnsupportedHead

ALL = pytest.mark.parametrize('small', DETACHED_MODELS.values(), ids=DETACHED_MODELS)
NAMES = ('repvit', 'convnext', 'mobilenetv3', 'efficientvit', 'siglip', 'efficientvim')  # one of every kind
QUICK = (*NAMES, 'convnext_rms', 'mambaout', 'vit_fc_norm', 'vit_map')
ONE_OF_A_KIND = pytest.mark.parametrize('small', [DETACHED_MODELS[name] for name in NAMES], ids=NAMES)
TRAINING = pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])


@ALL
def test_mean_of_maps_is_the_logit(small):
    model = small.cam_model()
    assert (model.kind.name, model.kind.exact, model.kind.trainable) == (small.kind, True, True)
    class_maps = model.class_maps(small.images())
    assert class_maps.grid == small.grid
    assert class_maps.maps(None).shape == (3, NUM_CLASSES, *small.grid)
    assert class_maps.maps(None).std((2, 3)).min() > 0
    assert off_by(class_maps) < 1e-5


@pytest.mark.parametrize('small', [DETACHED_MODELS[name] for name in QUICK], ids=QUICK)
@TRAINING
def test_one_forward_pass_of_the_model_itself(small, training):
    """Bit-equal logits and gradients, the same random numbers drawn, running statistics updated once."""
    plain = small.make(drop_rate=0.5).double().train(training)
    model = small.cam_model(drop_rate=0.5).double().train(training)
    images = small.images().double()
    logits = seeded(plain, images)
    random_state = torch.get_rng_state()
    class_maps = seeded(model.class_maps, images)
    assert torch.equal(class_maps.logits, logits)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert off_by(class_maps) < 1e-9
    for (name, ours), (other, theirs) in zip(model.model.named_buffers(), plain.named_buffers(), strict=True):
        assert name == other
        assert torch.equal(ours, theirs), name
    factors = torch.randn(logits.shape, dtype=logits.dtype)
    expected = gradients((logits * factors).sum(), plain)
    assert_same(gradients((class_maps.logits * factors).sum(), model.model), expected, rtol=0, atol=0)


@pytest.mark.parametrize('name', ['repvit', 'convnext', 'mobilenetv3', 'mambaout', 'efficientvim'])
@TRAINING
def test_maps_are_features_times_gradients_of_the_detached_head(name, training):
    """Another way to the same maps: one backward pass a class through the detached head."""
    small = DETACHED_MODELS[name]
    model = small.cam_model(drop_rate=0.5).double().train(training)
    images = small.images().double()
    with torch.no_grad():
        features = model.model.forward_features(images)
        each = features if isinstance(features, list) else [features]
        expected = detached_gradients(model, features, each, images)
        model.model.forward_features = lambda x: features
        maps = seeded(model.class_maps, images).maps(None)
    torch.testing.assert_close(maps, expected, rtol=1e-9, atol=1e-9 * maps.abs().max().item())


def detached_gradients(model, features, each, images):
    tracker = ShadowTracker()
    starts = [
        Start(tracker.start(tensor), branch.live(tensor, images.shape[-2:]))
        for tensor, branch in zip(each, model.head.branches, strict=True)
        if branch
    ]
    buffers = copy.deepcopy(dict(model.model.named_buffers()))
    with tracker:
        logits = seeded(model.model.forward_head, features)
    for name, tensor in model.model.named_buffers():
        tensor.copy_(buffers[name])
    return TailMaps(logits, tracker.companion(logits), starts).maps(None)


def test_gradient_through_a_detached_layer_norm():
    """Scale detached, mean, weight and bias not: written out for ConvNeXt's head."""
    small = DETACHED_MODELS['convnext']
    model, other = small.cam_model().double(), small.make().double()
    target, images = torch.tensor([1, 0, 4]), small.images().double()
    hnc_loss(model.class_maps(images), target, 'kd', topk=3).backward()
    features, head = other.forward_features(images).flatten(2).transpose(1, 2), other.head
    pooled = features.mean(1)
    scale = (pooled.var(-1, correction=0, keepdim=True) + head.norm.eps).rsqrt().detach()
    positions = (features - features.mean(-1, keepdim=True)) * scale[:, None] * head.norm.weight + head.norm.bias
    assert_same_loss(model, other, functional.linear(positions, head.fc.weight, head.fc.bias), target)


def test_gradient_through_a_detached_activation():
    """The gate f(z) / z detached, both layers not: written out for MobileNetV3's head."""
    small = DETACHED_MODELS['mobilenetv3']
    model, other = small.cam_model().double(), small.make().double()
    target, images = torch.tensor([1, 0, 4]), small.images().double()
    hnc_loss(model.class_maps(images), target, 'kd', topk=3).backward()
    features = other.forward_features(images)
    hidden = other.conv_head(features)
    pooled = hidden.mean((2, 3), keepdim=True)
    gate = (functional.hardswish(pooled) / pooled).detach()
    positions = (hidden * gate).flatten(2).transpose(1, 2)
    assert_same_loss(model, other, other.classifier(positions), target)


def test_gradient_through_a_detached_batch_norm():
    """Statistics of the batch detached: written out for RepViT's two classifiers in training."""
    small = DETACHED_MODELS['repvit']
    model, other = small.cam_model().double().train(), small.make().double().train()
    target, images = torch.tensor([1, 0, 4]), small.images().double()
    hnc_loss(model.class_maps(images), target, 'kd', topk=3).backward()
    features = other.forward_features(images).flatten(2).transpose(1, 2)
    pooled = features.mean(1).detach()
    scores = 0
    for layer in (other.head.head, other.head.head_dist):
        normed = (features - pooled.mean(0)) * (pooled.var(0, correction=0) + layer.bn.eps).rsqrt()
        scores = scores + layer.l(normed * layer.bn.weight + layer.bn.bias) / 2
    assert_same_loss(model, other, scores, target)


def assert_same_loss(model, other, scores, target):
    """Scores (B, L, n) written out give the gradients that the wrapped model got."""
    maps = scores.transpose(1, 2)
    negatives = maps.mean(-1).scatter(1, target[:, None], -torch.inf).topk(3).indices
    chosen = maps.gather(1, negatives[..., None].expand(-1, -1, maps.shape[-1]))
    (-chosen.log_softmax(-1).mean(-1).sum(1).mean()).backward()
    ours = {name: parameter.grad for name, parameter in model.model.named_parameters()}
    theirs = {name: parameter.grad for name, parameter in other.named_parameters()}
    assert_same(ours.values(), theirs.values(), rtol=1e-8, atol=1e-10)
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in theirs.values())


@ONE_OF_A_KIND
def test_training_step_under_bfloat16_channels_last_and_checkpointing(small):
    model = small.make(drop_rate=0.2).train()
    if hasattr(model, 'set_grad_checkpointing') and small.kind != 'H':
        model.set_grad_checkpointing()
    model = model.to(memory_format=torch.channels_last)
    cam_model = CamModel(model)
    task = HNCTask(cam_model, hnc=HNCLoss('kd', topk=3), verbose=False)
    images = small.images().contiguous(memory_format=torch.channels_last)
    with torch.autocast('cpu', torch.bfloat16):
        assert roundings_off(cam_model.class_maps(images)) < 4
        loss = task(images, torch.tensor([0, 5, 2]))['loss']
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@ONE_OF_A_KIND
def test_copies_give_the_same_maps(small):
    model = small.cam_model()
    expected = model.class_maps(small.images()).maps(None)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), ModelEmaV3(model).module):
        assert other.kind == model.kind
        assert torch.equal(other.class_maps(small.images()).maps(None), expected)


def test_compiled():
    small = DETACHED_MODELS['mobilenetv3']
    model = small.cam_model()
    expected = model.class_maps(small.images())
    compiled = torch.compile(model, backend='eager')(small.images(), return_class_maps=True)
    torch.testing.assert_close(compiled.logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(compiled.maps(None), expected.maps(None), rtol=1e-3, atol=1e-3)
    torch._dynamo.reset()


@pytest.mark.parametrize('size', [(64, 64), (96, 32), (80, 112), (32, 32)])
@pytest.mark.parametrize('name', ['convnext', 'mobilenetv3', 'efficientvit', 'repvit'])
def test_images_of_other_sizes(name, size):
    model = DETACHED_MODELS[name].cam_model()
    for batch in (1, 2):
        images = torch.randn(batch, 3, *size)
        class_maps = model.class_maps(images)
        assert class_maps.grid == tuple(model.model.forward_features(images).shape[2:])
        assert off_by(class_maps) < 1e-5


def test_convolution_in_front_of_the_pool():
    """What it makes is the map that enters the pool; behind the pool, the hidden layer is detached."""
    small = DETACHED_MODELS['efficientvit']
    model = small.cam_model().double()
    images = small.images().double()
    head = model.model.head
    entering = head.in_conv(model.model.forward_features(images))
    tracker = ShadowTracker()
    start = Start(tracker.start(entering), Live((2, 3), small.grid))
    with tracker:
        logits = head.classifier(head.global_pool(entering))
    expected = TailMaps(logits, tracker.companion(logits), [start]).maps(None)
    torch.testing.assert_close(model.class_maps(images).maps(None), expected, rtol=1e-9, atol=1e-9)


def test_attention_pool_written_out():
    """Attention weights, the norm's scale and the gates of the hidden layer detached: SigLIP's head."""
    small = DETACHED_MODELS['siglip']
    model = small.cam_model().double()
    images = small.images().double()
    tokens, pool = model.model.forward_features(images), model.model.attn_pool
    heads, width = pool.num_heads, pool.head_dim
    query = pool.q(pool.latent).view(1, heads, 1, width)
    key, value = pool.kv(tokens).view(*tokens.shape[:2], 2, heads, width).permute(2, 0, 3, 1, 4)
    weights = (query @ key.transpose(-2, -1) / width**0.5).softmax(-1)
    parts = (weights.transpose(-2, -1) * value * tokens.shape[1]).transpose(1, 2).flatten(2)
    parts = pool.proj(parts)
    pooled = parts.mean(1, keepdim=True)
    scale = (pooled.var(-1, correction=0, keepdim=True) + pool.norm.eps).rsqrt()
    hidden = (parts - parts.mean(-1, keepdim=True)) * scale * pool.norm.weight + pool.norm.bias
    hidden, before = pool.mlp.fc1(hidden), pool.mlp.fc1(pool.norm(pooled))
    hidden = pool.mlp.fc2(hidden * pool.mlp.act(before) / before)
    expected = model.model.head(parts + hidden).transpose(1, 2).unflatten(2, small.grid)
    torch.testing.assert_close(model.class_maps(images).maps(None), expected, rtol=1e-9, atol=1e-9)


def test_vgg_on_other_sizes():
    """Larger maps enter the pool themselves; a kernel that covers the whole map is taken apart."""
    model = DETACHED_MODELS['vgg'].cam_model()
    for size, grid in ((256, (2, 2)), (224, (7, 7)), (64, (7, 7))):
        class_maps = model.class_maps(torch.randn(2, 3, size, size))
        assert class_maps.grid == grid
        assert off_by(class_maps) < 1e-5


BLOCKS = tuple(ByoBlockCfg('bottle', d=1, c=c, s=s, br=0.25) for c, s in ((32, 1), (64, 2), (64, 2), (64, 2)))
CLIP = SmallModel('resnet50_clip', 'F', (64, 96), (2, 3), {'img_size': (64, 96), 'blocks': BLOCKS})
ONE_LAYER = {'qkv_separate': False, 'out_features': NUM_CLASSES}


@pytest.mark.parametrize(
    ('head', 'fused'),
    [
        pytest.param(lambda: None, True, id='learned positions'),
        pytest.param(lambda: None, False, id='attention by matmul'),
        pytest.param(lambda: AttentionPool2d(64, (2, 3), **ONE_LAYER), True, id='one layer of query, key and value'),
        pytest.param(lambda: RotAttentionPool2d(64, **ONE_LAYER), True, id='rotary positions'),
        pytest.param(lambda: AttentionPool2d(64, (2, 3), class_token=True, **ONE_LAYER), True, id='class token'),
    ],
)
def test_mean_query_attention_pool_written_out(head, fused):
    """CLIP's ResNet: attention weights detached, the mean token the mean of what positions are without their place."""
    models = []
    for _ in range(2):
        plain = CLIP.make()
        plain.head = head() or plain.head
        plain.head.fused_attn = fused
        models.append(perturb(plain).double())
    models[1].load_state_dict(models[0].state_dict())
    model, other = CamModel(models[0]), models[1]
    assert model.kind.name == 'F'
    target, images = torch.tensor([1, 0, 4]), CLIP.images().double()
    class_maps = model.class_maps(images)
    scores = clip_scores(other.head, other.forward_features(images))
    torch.testing.assert_close(class_maps.logits, other(images), rtol=0, atol=0)
    torch.testing.assert_close(class_maps.maps(None).flatten(2), scores.transpose(1, 2), rtol=1e-9, atol=1e-9)
    hnc_loss(class_maps, target, 'kd', topk=3).backward()
    assert_same_loss(model, other, scores, target)


def clip_scores(pool, features):
    """(B, L, n) scores of every position."""
    x = features.flatten(2).transpose(1, 2)
    rotary = isinstance(pool, RotAttentionPool2d)
    places = torch.zeros(x.shape[1] + 1, x.shape[2], dtype=x.dtype) if rotary else pool.pos_embed
    in_front = x if pool.cls_token is None else pool.cls_token.expand_as(x)

    def heads(tokens, layer):
        weight, bias = (layer.weight, layer.bias) if isinstance(layer, nn.Linear) else layer
        return functional.linear(tokens, weight, bias).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)

    joint = [] if pool.qkv is None else zip(pool.qkv.weight.chunk(3), pool.qkv.bias.chunk(3), strict=True)
    query, key, value = [pool.q, pool.k, pool.v] if pool.qkv is None else list(joint)
    asked = heads(in_front.mean(1, keepdim=True) + places[:1], query)
    patches = heads(x + places[1:], key)
    if rotary:
        patches = apply_rot_embed_cat(patches, pool.pos_embed.get_embed(CLIP.grid))
    keys = torch.cat([heads(in_front.mean(1, keepdim=True) + places[:1], key), patches], 2)
    weights = (asked @ keys.transpose(2, 3) / pool.head_dim**0.5).softmax(-1).transpose(2, 3).detach()
    parts = weights[:, :, :1] * heads(in_front + places[:1], value)
    parts = parts + x.shape[1] * weights[:, :, 1:] * heads(x + places[1:], value)
    return pool.proj(parts.transpose(1, 2).flatten(2))


def test_states_without_a_place_in_the_image_are_flat():
    """EfficientViM's hidden states are no positions: their share of a map is the same everywhere."""
    small = DETACHED_MODELS['efficientvim']
    class_maps = small.cam_model().class_maps(small.images())
    widths = small.kwargs['embed_dim']
    states = class_maps.positions[..., : sum(widths)]
    assert torch.equal(states, states[:, :1].expand_as(states))
    assert class_maps.positions[..., sum(widths) :].std(1).min() > 0


def test_a_head_that_works_otherwise_in_training():
    """A head with two outputs in one mode is noticed there, and says so."""
    detached = DETACHED_MODELS['repvit'].cam_model()
    detached.model.set_distilled_training(True)
    with pytest.raises(ValueError, match='works otherwise than when it was probed'):
        detached.train().class_maps(DETACHED_MODELS['repvit'].images())


@pytest.mark.parametrize('name', [name for name in DETACHED_MODELS if name != 'efficientvit'])
def test_maps_are_affine_in_the_features(name):
    """What is detached has no gradient: the second derivative is 0 (EfficientViT has an activation before its pool)."""
    small = DETACHED_MODELS[name]
    model = small.cam_model().double()
    with torch.no_grad():
        features = model.model.forward_features(small.images(1).double())
    each = features if isinstance(features, list) else [features]
    each = [tensor.detach().requires_grad_() for tensor in each]
    model.model.forward_features = lambda x: each if isinstance(features, list) else each[0]
    maps = model.class_maps(small.images(1).double()).maps(None)
    first = torch.autograd.grad((maps * torch.randn_like(maps)).sum(), each, create_graph=True)
    total = sum(gradient.square().sum() for gradient in first)
    second = torch.autograd.grad(total, each, allow_unused=True) if total.requires_grad else (None,)
    assert total > 0
    assert all(gradient is None or gradient.abs().max() < 1e-9 * total for gradient in second)


@pytest.mark.parametrize('name', ['convnext', 'siglip'])
def test_nothing_is_kept_of_a_step(name):
    small = DETACHED_MODELS[name]
    model = small.cam_model()
    features = []
    forward_features = model.model.forward_features
    model.model.forward_features = lambda x: features.append(forward_features(x)) or features[0]
    gc.collect()
    gc.disable()
    try:
        class_maps = model.class_maps(small.images())
        kept = weakref.ref(features.pop())
        del class_maps
        assert kept() is None
    finally:
        gc.enable()


def test_attention_pools_of_a_single_cell():
    model = DETACHED_MODELS['siglip'].cam_model(dynamic_img_size=True)
    class_maps = model.class_maps(torch.randn(2, 3, 16, 16))
    assert class_maps.grid == (1, 1)
    assert off_by(class_maps) < 1e-5


def test_attention_without_the_fused_function():
    for name in ('siglip', 'vit_map'):
        small = DETACHED_MODELS[name]
        fused, other = small.cam_model(), small.cam_model()
        other.model.attn_pool.fused_attn = False
        maps = other.class_maps(small.images()).maps(None)
        torch.testing.assert_close(maps, fused.class_maps(small.images()).maps(None), rtol=1e-4, atol=1e-4)


def test_synchronised_batch_norm_in_the_head_is_refused():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(DETACHED_MODELS['repvit'].make())
    with pytest.raises(UnsupportedHead, match=r'synchronises batch statistics.*leave out --sync-bn'):
        CamModel(model)
    CamModel(nn.SyncBatchNorm.convert_sync_batchnorm(DETACHED_MODELS['mobilenetv3'].make()))
