"""What all the CIFAR networks have in common: size, initial weights, timm's interface and class maps."""

from collections import defaultdict
from functools import partial

import pytest
import timm
import torch
from map_checks import off_by
from small_models import make_on_meta, perturb
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay
from torch import nn

from timm_hnc import CamModel, save_pretrained
from timm_hnc.models import CifarDenseNet, CifarResNet

MILLIONS = {  # as published, for 100 classes
    'cifar_resnet56': 0.86,
    'cifar_resnet110': 1.73,
    'cifar_densenet_bc_100_k12': 0.80,
    'cifar_resnext29_8x64d': 34.4,
    'cifar_resnext29_16x64d': 68.2,
}
NAMES = [*MILLIONS, 'cifar_resnet20', 'cifar_resnet32', 'cifar_resnet44']
SMALLEST = ('cifar_resnet20', 'cifar_densenet_bc_100_k12', 'cifar_resnext29_8x64d')  # of every family
CHANNELS = {'cifar_resnet': [16, 32, 64], 'cifar_resnext': [256, 512, 1024], 'cifar_densenet': [216, 300, 342]}
THIN = {'layers': (1, 2, 1), 'channels': (4, 8, 16), 'stem_width': 8, 'cardinality': 2}
SMALL = {
    'resnet': partial(timm.create_model, 'cifar_resnet20'),
    'resnext': partial(timm.create_model, 'cifar_resnext29_8x64d', **THIN),
    'densenet': partial(timm.create_model, 'cifar_densenet_bc_100_k12', block_config=(2, 3, 2)),
}


def images(batch=2, side=32, channels=3):
    return torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=SMALL)
def make(request):
    return SMALL[request.param]


@pytest.fixture
def model(make):
    return perturb(make(num_classes=7)).eval()


def channels_of(name):
    return next(channels for family, channels in CHANNELS.items() if name.startswith(family))


@pytest.mark.parametrize(('name', 'millions'), MILLIONS.items())
def test_there_are_as_many_parameters_as_published(name, millions):
    count = sum(parameter.numel() for parameter in make_on_meta(name).parameters())
    assert count == pytest.approx(millions * 1e6, rel=0.01)


@pytest.mark.parametrize('name', NAMES)
def test_the_number_in_the_name_is_that_of_the_layers(name):
    model = make_on_meta(name)
    shortcuts = {id(part) for n, m in model.named_modules() if n.endswith('downsample') for part in m.modules()}
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and id(m) not in shortcuts]
    number = 100 if 'densenet' in name else int(name.split('_')[1].strip('resntx'))
    assert len(layers) == number


@pytest.mark.parametrize('name', NAMES)
def test_features_of_every_network(name):
    model = make_on_meta(name, features_only=True)
    assert model.feature_info.channels() == channels_of(name)
    assert model.feature_info.reduction() == [1, 2, 4]
    for side in (32, 64) if name in SMALLEST else (64,):
        shapes = [tuple(feature.shape) for feature in model(torch.empty(2, 3, side, side, device='meta'))]
        assert shapes == [(2, chs, side // r, side // r) for chs, r in zip(channels_of(name), (1, 2, 4), strict=True)]


@pytest.mark.parametrize('name', NAMES)
def test_defaults_are_those_of_cifar_100(name):
    model = make_on_meta(name)
    config = timm.data.resolve_data_config({}, model=model)
    assert config == {
        'input_size': (3, 32, 32),
        'interpolation': 'bilinear',
        'mean': (0.5071, 0.4865, 0.4409),
        'std': (0.2673, 0.2564, 0.2762),
        'crop_pct': 1.0,
        'crop_mode': 'center',
    }
    config = model.pretrained_cfg
    assert (config['architecture'], config['num_classes'], config['pool_size']) == (name, 100, (8, 8))
    assert model.num_classes == model.get_classifier().out_features == 100
    assert model.get_submodule(config['first_conv']).in_channels == 3
    assert model.get_submodule(config['classifier']) is model.get_classifier()
    assert model.get_classifier(name_only=True) == config['classifier']
    assert name in timm.list_models('cifar*')
    assert name not in timm.list_models(pretrained=True)
    assert isinstance(model, CifarDenseNet if 'densenet' in name else CifarResNet)


@pytest.mark.parametrize('name', [*SMALLEST, 'cifar_resnet110'])  # others of a family are deeper or wider
def test_class_maps_of_every_network_are_exact(name):
    model = CamModel(perturb(timm.create_model(name)).eval())
    assert model.kind.name == 'A1'
    with torch.no_grad():
        class_maps = model.class_maps(images(1))
    assert class_maps.maps(None).shape == (1, 100, 8, 8)
    assert class_maps.logits.std() > 0
    assert off_by(class_maps) < 1e-5


@pytest.mark.parametrize('name', [name for name in NAMES if '16x64d' not in name])
def test_initial_weights(name):
    model = timm.create_model(name)
    total = defaultdict(float)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            expected = (2 / fan_out) ** 0.5
            scaled = module.weight.detach() / expected
            if scaled.numel() > 4000:
                assert scaled.std().item() == pytest.approx(1, rel=0.05)
            total['square'] += scaled.square().sum().item()
            total['count'] += scaled.numel()
            assert module.bias is None
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert not module.bias.any()
        elif isinstance(module, nn.Linear):
            assert module.weight.std() > 0
            assert not module.bias.any()
    assert total['square'] / total['count'] == pytest.approx(1, rel=0.02)


def test_intermediates_end_in_the_features(model):
    x = images()
    features, taken = model.forward_intermediates(x, norm=True)
    assert torch.equal(features, model.forward_features(x))
    assert torch.equal(taken[-1], features)
    last = model.forward_intermediates(x, indices=1, intermediates_only=True)
    assert len(last) == 1
    assert torch.equal(last[0], features)
    for index in (0, 1, -1):
        stopped, (only,) = model.forward_intermediates(x, indices=[index], stop_early=True)
        assert torch.equal(stopped, only)
        assert torch.equal(only, taken[index])


@pytest.mark.parametrize('feature_cls', ['list', 'getter', 'hook'])
@pytest.mark.parametrize('indices', [(0, 1, 2), (0,), (1, 2)])
def test_features_are_the_intermediates(make, model, feature_cls, indices):
    options = {} if feature_cls == 'list' else {'feature_cls': feature_cls}
    net = make(num_classes=7, features_only=True, out_indices=indices, **options).eval()
    state = model.state_dict()
    for name, tensor in net.state_dict().items():  # timm's wrappers rename
        tensor.copy_(state[name.removeprefix('model.').removeprefix('body.').replace('features_', 'features.')])
    expected = model.forward_intermediates(images(), indices=list(indices), intermediates_only=True)
    for ours, theirs in zip(net(images()), expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(('index', 'prune_head'), [(0, True), (1, True), (2, True), (0, False), (1, False)])
def test_pruning_leaves_what_the_features_need(model, index, prune_head):
    expected = model.forward_intermediates(images(), indices=[index], intermediates_only=True)
    before = sum(parameter.numel() for parameter in model.parameters())
    channels = model.feature_info[index]['num_chs']
    assert model.prune_intermediate_layers([index], prune_head=prune_head) == [index]
    assert sum(parameter.numel() for parameter in model.parameters()) < before
    assert torch.equal(model.forward_intermediates(images(), indices=[index], intermediates_only=True)[0], expected[0])
    assert model.num_classes == 0
    assert model(images()).shape[:2] == (2, channels)
    assert model.num_features == channels
    model.reset_classifier(3, 'avg')
    assert model(images()).shape == (2, 3)


def test_pruning_can_leave_the_head(model):
    expected = model(images())
    assert model.prune_intermediate_layers([0, 2], prune_head=False) == [0, 2]
    assert torch.equal(model(images()), expected)


def test_a_forward_pass_is_features_and_head(model):
    features = model.forward_features(images())
    assert torch.equal(model(images()), model.forward_head(features))
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    torch.testing.assert_close(model.get_classifier()(pooled), model(images()))
    assert pooled.shape[1] == model.num_features == model.head_hidden_size


@pytest.mark.parametrize('intermediates', [False, True])
def test_gradient_checkpointing_changes_no_gradient(make, intermediates):
    model = perturb(make(num_classes=7)).double().train()
    x = images(4, 16).double()

    def gradients():
        if intermediates:
            loss = sum(feature.square().mean() for feature in model.forward_intermediates(x, intermediates_only=True))
        else:
            loss = model(x).square().mean()
        model.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    calls = []
    conv = [module for module in model.modules() if isinstance(module, nn.Conv2d)][1]
    conv.register_forward_pre_hook(lambda *_: calls.append(1))
    model.set_grad_checkpointing()
    checkpointed = gradients()
    assert len(calls) == 2  # once more in the backward pass
    assert checkpointed.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-9, atol=1e-12)
    model.set_grad_checkpointing(False)
    calls.clear()
    gradients()
    assert len(calls) == 1


def test_a_new_classifier(model):
    expected = model.forward_features(images())
    model.reset_classifier(11)
    assert model.num_classes == model.get_classifier().out_features == 11
    assert not model.get_classifier().bias.any()
    assert not model.get_classifier().training
    assert model(images()).shape == (2, 11)
    model.reset_classifier(5, 'catavgmax')
    assert model.head_hidden_size == 2 * model.num_features
    assert model(images()).shape == (2, 5)
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert model(images()).shape == (2, 2 * model.num_features)
    model.reset_classifier(0, '')
    assert torch.equal(model(images()), expected)
    model.double().reset_classifier(3, 'avg')
    assert model.get_classifier().weight.dtype == torch.float64


@pytest.mark.parametrize(
    ('options', 'shape'),
    [
        ({'in_chans': 1}, (2, 100)),
        ({'num_classes': 10, 'global_pool': 'max'}, (2, 10)),
        ({'num_classes': 0, 'global_pool': ''}, (2, None, 8, 8)),
        ({'pretrained_cfg_overlay': {'mean': (0.1, 0.2, 0.3), 'num_classes': 10}}, (2, 10)),
        ({'dtype': torch.float64, 'device': 'cpu'}, (2, 100)),
    ],
)
def test_options_of_timm(make, options, shape):
    model = make(**options).eval()
    x = images(channels=options.get('in_chans', 3)).to(options.get('dtype'))
    assert model(x).shape == tuple(size or model.num_features for size in shape)
    if 'pretrained_cfg_overlay' in options:
        assert model.pretrained_cfg['mean'] == (0.1, 0.2, 0.3)
        assert model.pretrained_cfg['std'] == (0.2673, 0.2564, 0.2762)


@pytest.mark.parametrize('options', [{'drop_rate': 0.5}, {'drop_path_rate': 0.5}])
def test_dropping_while_training_only(make, options):
    dropping, plain = make(num_classes=7, **options), make(num_classes=7)
    plain.load_state_dict(dropping.state_dict())  # no other names
    x = images(8)
    dropping.train(), plain.train()
    assert torch.equal(plain(x), plain(x))
    assert not torch.equal(dropping(x), dropping(x))
    dropping(x).square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in dropping.parameters())
    plain.load_state_dict(dropping.state_dict())
    assert torch.equal(dropping.eval()(x), plain.eval()(x))


def test_groups_for_layer_wise_learning_rates(model):
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse=coarse))
        assert sorted(name for names in groups.values() for name in names) == sorted(
            name for name, _ in model.named_parameters()
        )
        first = 'features.conv0' if isinstance(model, CifarDenseNet) else 'conv1'
        assert all(name.split('.weight')[0].split('.bias')[0] in (first, 'bn1') for name in groups[0])
        if coarse:
            assert len(groups) == 5  # stem, three stages, head
    assert len(param_groups_layer_decay(model, layer_decay=0.5)) > 5


def test_weights_come_back_from_a_folder(model, tmp_path):
    full = 'cifar_resnet20' if isinstance(model, CifarResNet) else 'cifar_densenet_bc_100_k12'
    saved = perturb(timm.create_model(full, num_classes=7)).eval()
    save_pretrained(saved, tmp_path)
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert type(loaded) is type(saved)
    assert torch.equal(loaded(images()), saved(images()))


def test_there_are_no_published_weights(make):
    with pytest.raises(RuntimeError, match='pretrained weights'):
        make(pretrained=True)
