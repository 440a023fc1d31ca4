"""DenseNet-BC against what the paper says, written out."""

import pytest
import timm
import torch
import torch.nn.functional as F
from small_models import perturb

from timm_hnc.models.cifar_densenet import DropPathDenseLayer

NAME = 'cifar_densenet_bc_100_k12'


def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def activated(state, name, x):
    mean, variance = state[f'{name}.running_mean'], state[f'{name}.running_var']
    return F.relu(F.batch_norm(x, mean, variance, state[f'{name}.weight'], state[f'{name}.bias']))


@torch.no_grad()
def test_every_layer_sees_all_before_it():
    model = perturb(timm.create_model(NAME)).eval()
    state = {name.removeprefix('features.'): tensor for name, tensor in model.state_dict().items()}
    x = F.conv2d(images(), state['conv0.weight'], padding=1)
    assert x.shape[1] == 24
    widths = []
    for block in (1, 2, 3):
        for layer in range(1, 17):
            name = f'denseblock{block}.denselayer{layer}'
            y = F.conv2d(activated(state, f'{name}.norm1', x), state[f'{name}.conv1.weight'])
            assert y.shape[1] == 48
            y = F.conv2d(activated(state, f'{name}.norm2', y), state[f'{name}.conv2.weight'], padding=1)
            assert y.shape[1] == 12
            x = torch.cat([x, y], 1)
        widths.append(x.shape[1])
        if block < 3:
            name = f'transition{block}'
            x = F.avg_pool2d(F.conv2d(activated(state, f'{name}.norm', x), state[f'{name}.conv.weight']), 2)
            assert x.shape[1] == widths[-1] // 2
    x = activated(state, 'norm5', x)
    assert widths == [216, 300, 342]
    assert x.shape[2:] == (8, 8)
    assert len([name for name in state if name.endswith('weight') and state[name].ndim > 1]) == 100
    torch.testing.assert_close(model.forward_features(images()), x, rtol=1e-4, atol=1e-4)
    logits = F.linear(x.mean((2, 3)), state['classifier.weight'], state['classifier.bias'])
    torch.testing.assert_close(model(images()), logits, rtol=1e-4, atol=1e-4)


def test_there_is_neither_norm_nor_pool_in_the_stem():
    names = [name for name, _ in timm.create_model(NAME).features.named_children()]
    assert names == ['conv0', 'denseblock1', 'transition1', 'denseblock2', 'transition2', 'denseblock3', 'norm5']


def test_dropped_layers_add_zeros_for_whole_images():
    model = timm.create_model(NAME, block_config=(2, 1, 2), drop_path_rate=0.5).train()
    layers = [layer for layer in model.modules() if isinstance(layer, DropPathDenseLayer)]
    assert [layer.drop_path.drop_prob for layer in layers] == pytest.approx([0, 0.125, 0.25, 0.375, 0.5])
    x = torch.randn(400, 342 - 14 * 12, 2, 2)[:, : layers[-1].conv1.in_channels]
    new = layers[-1](x)
    layers[-1].drop_path.eval()
    whole = layers[-1](x)
    dropped = (new == 0).flatten(1).all(1)
    assert dropped.float().mean().item() == pytest.approx(0.5, abs=0.1)
    torch.testing.assert_close(new[~dropped], 2 * whole[~dropped])


def test_dropout_of_new_channels():
    model = timm.create_model(NAME, block_config=(1, 1, 1), proj_drop_rate=0.2, drop_path_rate=0.1).train()
    assert [block[name].drop_rate for block in model.features if hasattr(block, 'keys') for name in block] == [0.2] * 3
    assert not torch.equal(model(images()), model(images()))


def test_checkpointing_from_the_start():
    for rate in (0.0, 0.1):
        model = timm.create_model(NAME, block_config=(1, 1, 1), memory_efficient=True, drop_path_rate=rate)
        assert model.features.denseblock1.denselayer1.grad_checkpointing
