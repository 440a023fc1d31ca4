"""ResNets and ResNeXts against what the papers say, written out."""

import pytest
import timm
import torch
import torch.nn.functional as F
from small_models import make_on_meta, perturb
from torch import nn

from timm_hnc.models import PadShortcut


def images(side=32):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def norm(state, name, x):
    return F.batch_norm(
        x,
        state[f'{name}.running_mean'],
        state[f'{name}.running_var'],
        state[f'{name}.weight'],
        state[f'{name}.bias'],
    )


@pytest.mark.parametrize('side', [8, 7])
@pytest.mark.parametrize(('channels', 'stride'), [((4, 8), 2), ((4, 4), 2), ((3, 7), 1)])
def test_the_shortcut_is_every_other_pixel_and_zeros(side, channels, stride):
    before, after = channels
    x = torch.randn(2, before, side, side)
    expected = torch.zeros(2, after, (side - 1) // stride + 1, (side - 1) // stride + 1)
    for row in range(expected.shape[2]):
        for column in range(expected.shape[3]):
            expected[:, :before, row, column] = x[:, :, stride * row, stride * column]
    shortcut = PadShortcut(before, after, stride)
    assert torch.equal(shortcut(x), expected)
    assert not list(shortcut.parameters())


def test_a_shortcut_drops_no_channels():
    with pytest.raises(ValueError, match='8 to 4'):
        PadShortcut(8, 4)


def test_no_parameters_outside_convolutions_norms_and_classifier():
    model = make_on_meta('cifar_resnet56')
    shortcuts = [name for name, module in model.named_modules() if isinstance(module, PadShortcut)]
    assert shortcuts == ['layer2.0.downsample', 'layer3.0.downsample']


@pytest.mark.parametrize('side', [32, 30])
def test_a_resnet_is_the_one_of_the_paper(side):
    model = perturb(timm.create_model('cifar_resnet20')).eval()
    state = model.state_dict()
    x = F.relu(norm(state, 'bn1', F.conv2d(images(side), state['conv1.weight'], padding=1)))
    for stage in (1, 2, 3):
        for block in range(3):
            name = f'layer{stage}.{block}'
            stride = 2 if stage > 1 and block == 0 else 1
            y = F.conv2d(x, state[f'{name}.conv1.weight'], stride=stride, padding=1)
            y = F.conv2d(F.relu(norm(state, f'{name}.bn1', y)), state[f'{name}.conv2.weight'], padding=1)
            x = x[:, :, ::stride, ::stride]
            x = torch.cat([x, torch.zeros_like(x)], 1) if stride == 2 else x
            x = F.relu(x + norm(state, f'{name}.bn2', y))
    torch.testing.assert_close(model.forward_features(images(side)), x)
    torch.testing.assert_close(model(images(side)), F.linear(x.mean((2, 3)), state['fc.weight'], state['fc.bias']))


@pytest.mark.parametrize(('name', 'cardinality'), [('cifar_resnext29_8x64d', 8), ('cifar_resnext29_16x64d', 16)])
def test_widths_of_the_resnexts(name, cardinality):
    model = make_on_meta(name)
    assert model.conv1.weight.shape == (64, 3, 3, 3)
    before = 64
    for stage in range(3):
        blocks = model.get_submodule(f'layer{stage + 1}')
        width, after = cardinality * 64 * 2**stage, 256 * 2**stage
        assert len(blocks) == 3
        for number, block in enumerate(blocks):
            assert block.conv1.weight.shape == (width, after if number else before, 1, 1)
            assert block.conv2.weight.shape == (width, width // cardinality, 3, 3)
            assert block.conv2.stride == ((2, 2) if stage and not number else (1, 1))
            assert block.conv3.weight.shape == (after, width, 1, 1)
            assert (block.downsample is None) == bool(number)
        assert isinstance(blocks[0].downsample[0], nn.Conv2d)
        before = after


def test_stochastic_depth_grows_linearly():
    model = timm.create_model('cifar_resnet20', drop_path_rate=0.8)
    rates = [
        getattr(block.drop_path, 'drop_prob', 0.0)
        for stage in (model.layer1, model.layer2, model.layer3)
        for block in stage
    ]
    assert rates == pytest.approx([0.1 * index for index in range(9)])


def test_only_maps_of_channels_first():
    with pytest.raises(ValueError, match='NHWC'):
        timm.create_model('cifar_resnet20').forward_intermediates(images(), output_fmt='NHWC')


def test_other_activations_and_norms():
    model = timm.create_model('cifar_resnet20', act_layer='gelu', norm_layer='groupnorm1').eval()
    assert type(model.layer1[0].act1).__name__ == 'GELU'
    assert isinstance(model.layer3[2].bn2, nn.GroupNorm)
    assert model(images()).shape == (2, 100)
