"""Transformers that timm does not have: accepted or refused by what reaches their logits."""

import pytest
import torch
from torch import nn
from unknown_models import Tiny, accepted, assert_exact, assert_maps_move_with_the_patches

from timm_hnc import CamModel
from timm_hnc.cam.heads.probe import UnsupportedHead


class Block(nn.Module):
    def __init__(self, width, gate=torch.tanh):
        super().__init__()
        self.norm, self.projection, self.gate = nn.LayerNorm(width), nn.Linear(width, 3 * width), gate

    def forward(self, x):
        query, key, value = self.projection(self.norm(x)).chunk(3, -1)
        return x + self.gate(nn.functional.scaled_dot_product_attention(query, key, value))


class Transformer(Tiny):
    """A class token that sees the patches through attention alone."""

    layout = 'NLC'

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, self.channels))
        self.blocks = nn.Sequential(Block(self.channels), Block(self.channels))

    def forward_features(self, x):
        x = super().forward_features(x)
        return self.blocks(torch.cat([self.token.expand(len(x), -1, -1), x], 1))

    def pool(self, x):
        return x[:, 0]


class ClassTokenAndMean(Transformer):
    def pool(self, x):
        return x[:, 0] + x[:, 1:].mean(1)


class TransformerOfTheMean(Transformer):
    def pool(self, x):
        return x[:, 1:].mean(1)


class MaximumOfTokens(Transformer):
    def pool(self, x):
        return x[:, 1:].max(1).values


class SoftmaxOfTheToken(Transformer):
    def forward_head(self, x, pre_logits: bool = False):
        return super().forward_head(x, pre_logits).softmax(-1)


class ClampedToken(Transformer):
    def pool(self, x):
        return x[:, 0].clamp(-0.5, 0.5)


class AttentionOverChannels(Tiny):
    """Rows of as many channels as a grid has cells; a 'class channel' is read, and no position is ever apart."""

    channels = 24

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block(12), Block(12))
        self.fc = nn.Linear(12, self.num_classes)

    def forward_features(self, x):
        return self.blocks(nn.functional.adaptive_avg_pool2d(self.stem(x), (3, 4)).flatten(2))

    def forward_head(self, x, pre_logits: bool = False):
        return self.fc(x[:, 0])


@pytest.mark.parametrize(
    ('model', 'kind', 'trainable'),
    [
        (Transformer, 'G', False),
        (MaximumOfTokens, 'H', False),
        (ClassTokenAndMean, 'A', True),
        (TransformerOfTheMean, 'A5', True),
    ],
)
@pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])
def test_transformers_are_accepted_by_what_reaches_the_logits(model, kind, trainable, training):
    cam_model = accepted(model)
    assert (cam_model.kind.name, cam_model.kind.trainable) == (kind, trainable)
    assert_exact(cam_model, training)
    assert_maps_move_with_the_patches(cam_model)


@pytest.mark.parametrize(
    'model',
    [
        SoftmaxOfTheToken,
        ClampedToken,
        AttentionOverChannels,
    ],
)
def test_transformers_without_maps_are_refused(model):
    torch.manual_seed(0)
    with pytest.raises(UnsupportedHead, match=r"^no exact class maps for 'tiny': .*Way out: "):
        CamModel(model())
