"""Models that timm does not have: accepted or refused by what they do, whatever their names say."""

import copy

import pytest
import torch
from torch import nn

from timm_hnc import CamModel
from timm_hnc.cam.probe import UnsupportedHead

IMAGES = [(3, 16, 24), (1, 16, 24), (2, 24, 16), (2, 4, 24), (2, 16, 4)]


class Tiny(nn.Module):
    """A model in timm's shape: NCHW features, the mean over positions, a linear layer."""

    channels = 8
    num_classes = 5
    layout = 'NCHW'

    def __init__(self):
        super().__init__()
        self.pretrained_cfg = {'input_size': (3, 16, 24), 'architecture': 'tiny', 'classifier': 'fc'}
        self.stem = nn.Conv2d(3, self.channels, 4, stride=4)
        self.fc = self.classifier()

    @property
    def num_features(self):
        return self.channels

    def classifier(self):
        return nn.Linear(self.channels, self.num_classes)

    def get_classifier(self):
        return self.fc

    def forward_features(self, x):
        x = self.stem(x)
        if self.layout == 'NLC':
            return x.flatten(2).transpose(1, 2)
        return x.permute(0, 2, 3, 1) if self.layout == 'NHWC' else x

    def pool(self, x):
        return x.mean({'NCHW': (2, 3), 'NHWC': (1, 2), 'NLC': 1}[self.layout])

    def forward_head(self, x, pre_logits: bool = False):
        x = self.pool(x)
        return x if pre_logits else self.fc(x)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


def images(shape, seed=3):
    """(B, 3, H, W) in float64, given (B, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape[0], 3, *shape[1:], dtype=torch.float64, generator=generator)


@torch.no_grad()
def accepted(model_class) -> CamModel:
    """A fresh model that was accepted, then moved: float64 and nothing left at its initial value."""
    torch.manual_seed(0)
    cam_model = CamModel(model_class()).double().eval()
    generator = torch.Generator().manual_seed(1)
    for tensor in cam_model.parameters():
        tensor += 0.3 * torch.randn(tensor.shape, dtype=tensor.dtype, generator=generator)
    return cam_model


def seeded(function, *args):
    torch.manual_seed(11)
    return function(*args)


def assert_exact(cam_model, training, shapes=IMAGES):
    """Logits of the model itself, bit by bit; the mean of a map is the logit; maps of the image's shape."""
    cam_model.train(training)
    for shape in shapes:
        x = images(shape)
        expected = seeded(copy.deepcopy(cam_model.model), x)
        class_maps = seeded(cam_model.class_maps, x)
        assert torch.equal(class_maps.logits, expected)
        maps = class_maps.maps(None)
        assert maps.shape == (shape[0], 5, shape[1] // 4, shape[2] // 4)
        scale = expected.abs().max().item()
        torch.testing.assert_close(maps.mean((2, 3)), expected, rtol=1e-9, atol=1e-9 * scale)


def with_patches_moved(x, order):
    """Images of 16 x 24 pixels, their 4 x 4 patches in another order."""
    patches = x.unflatten(3, (6, 4)).unflatten(2, (4, 4)).transpose(3, 4).flatten(2, 3)[:, :, order]
    return patches.unflatten(2, (4, 6)).transpose(3, 4).flatten(2, 3).flatten(3, 4)


def assert_maps_move_with_the_patches(cam_model):
    """True of heads that know no place: a map's cells are those of the image, and no channels."""
    order = torch.randperm(24, generator=torch.Generator().manual_seed(4))
    x = images((2, 16, 24))
    maps = seeded(cam_model.eval().class_maps, x).maps(None).flatten(2)
    moved = seeded(cam_model.class_maps, with_patches_moved(x, order)).maps(None).flatten(2)
    assert (maps.std(-1) > 1e-6).all()
    torch.testing.assert_close(moved, maps[..., order], rtol=1e-9, atol=1e-9 * maps.abs().max().item())


class LastLayout(Tiny):
    layout = 'NHWC'


class Tokens(Tiny):
    layout = 'NLC'


class ConvolutionalClassifier(Tiny):
    def classifier(self):
        return nn.Conv2d(self.channels, self.num_classes, 1)

    def pool(self, x):
        return x.mean((2, 3), keepdim=True)

    def forward_head(self, x, pre_logits: bool = False):
        x = self.pool(x)
        return x if pre_logits else self.fc(x).flatten(1)


class PrefixTokens(Tokens):
    def forward_features(self, x):
        tokens = super().forward_features(x)
        return torch.cat([tokens[:, :3].square(), tokens], 1)

    def pool(self, x):
        return x[:, 3:].mean(1)


class NoConfig(Tiny):
    """Its classifier is found without pretrained_cfg['classifier']."""

    def __init__(self):
        super().__init__()
        del self.pretrained_cfg['classifier']


class TwoAveraged(Tiny):
    def __init__(self):
        super().__init__()
        self.fc2 = self.classifier()
        self.pretrained_cfg['classifier'] = ('fc', 'fc2')

    def get_classifier(self):
        return self.fc, self.fc2

    def forward_head(self, x, pre_logits: bool = False):
        x = self.pool(x)
        return x if pre_logits else (self.fc(x) + self.fc2(x)) / 2


class ClassTokenInTheMean(Tokens):
    """The mean over all tokens, one of which is no patch."""

    def forward_features(self, x):
        tokens = super().forward_features(x)
        return torch.cat([tokens.mean(1, keepdim=True).square(), tokens], 1)


class ChannelsBeforeTokens(Tiny):
    """(B, C, L) features."""

    def forward_features(self, x):
        return self.stem(x).flatten(2)

    def pool(self, x):
        return x.mean(-1)


class HiddenLayerClassifier(Tiny):
    def classifier(self):
        return nn.Sequential(nn.Linear(self.channels, 6), nn.Linear(6, self.num_classes))


class NormalizedWeights(Tiny):
    def classifier(self):
        return nn.utils.parametrizations.weight_norm(super().classifier())


class SpectralNorm(Tiny):
    """Its weight changes at every access in train mode."""

    def classifier(self):
        return nn.utils.parametrizations.spectral_norm(super().classifier())


class SeveralFeatures(Tiny):
    def forward_features(self, x):
        x = super().forward_features(x)
        return [x, x]

    def pool(self, x):
        return super().pool(x[0])


class TwoGrids(TwoAveraged):
    """A map and its average over cells of 2 x 2, each with its own classifier."""

    def forward_features(self, x):
        x = self.stem(x)
        return x, nn.functional.avg_pool2d(x, 2, ceil_mode=True)

    def forward_head(self, x, pre_logits: bool = False):
        fine, coarse = (branch.mean((2, 3)) for branch in x)
        return fine if pre_logits else self.fc(fine) + self.fc2(coarse.tanh())


class MapAndState(TwoAveraged):
    """The second of its features has no place in the image."""

    def forward_features(self, x):
        x = self.stem(x)
        return x, nn.functional.adaptive_avg_pool2d(x, (2, 3))

    def forward_head(self, x, pre_logits: bool = False):
        features, state = (branch.mean((2, 3)) for branch in x)
        return features if pre_logits else self.fc(features.relu()) + self.fc2(state)


ALIKE = {
    'A1': (Tiny, NoConfig),
    'A2': (ConvolutionalClassifier,),
    'A3': (LastLayout,),
    'A4': (Tokens,),
    'A5': (PrefixTokens,),
    'A6': (TwoAveraged,),
    'A': (ClassTokenInTheMean, ChannelsBeforeTokens, NormalizedWeights, SpectralNorm),
    'D': (HiddenLayerClassifier,),
    'H': (SeveralFeatures, TwoGrids, MapAndState),
}


@pytest.mark.parametrize(('kind', 'model'), [(kind, model) for kind, models in ALIKE.items() for model in models])
@pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])
def test_unknown_models_are_accepted_by_what_they_do(kind, model, training):
    cam_model = accepted(model)
    assert cam_model.head.kind == kind
    assert_exact(cam_model, training)
    if model not in (TwoGrids, MapAndState):
        assert_maps_move_with_the_patches(cam_model)


class AsManyChannelsAsRows(Tiny):
    """(B, H, W, C) features with H = C: their shape does not say which is which."""

    layout = 'NHWC'
    channels = 4

    def forward_head(self, x, pre_logits: bool = False):
        return self.fc(x.mean((1, 2)).tanh())


class Cube(AsManyChannelsAsRows):
    """Features of 4 x 4 x 4: either layout fits a square image."""

    def __init__(self):
        super().__init__()
        self.pretrained_cfg['input_size'] = (3, 16, 16)


def missing(_):
    raise AttributeError


def without(attribute, model_class):
    """The same model without one of its attributes."""
    return type(f'Without_{attribute}', (model_class,), {attribute: property(missing)})


@pytest.mark.parametrize(
    ('kind', 'model'),
    [
        *(('A1', Tiny), ('A2', ConvolutionalClassifier), ('A3', LastLayout), ('A4', Tokens), ('A5', PrefixTokens)),
        *(('D', HiddenLayerClassifier), ('A', NormalizedWeights), ('H', TwoGrids), ('D', AsManyChannelsAsRows)),
    ],
)
def test_models_that_do_not_say_their_channels(kind, model):
    cam_model = accepted(without('num_features', model))
    assert cam_model.head.kind == kind
    assert_exact(cam_model, False)
    if model is not TwoGrids:
        assert_maps_move_with_the_patches(cam_model)


@pytest.mark.parametrize(
    ('attribute', 'model', 'what', 'way_out'),
    [
        ('num_features', ChannelsBeforeTokens, 'no num_features, and the shape (2, 8, 24) does', 'its num_features to'),
        ('num_features', ClassTokenInTheMean, 'no num_features, and the shape (2, 25, 8) does', 'its num_features to'),
        ('num_features', Cube, 'no num_features, and the shape (2, 4, 4, 4) does', 'its num_features to'),
        ('num_classes', Tiny, 'no num_classes', 'it to the number of its classes'),
        ('get_classifier', Tiny, 'no get_classifier()', None),
    ],
)
def test_a_missing_attribute_is_named(attribute, model, what, way_out):
    model = model()
    model.__class__ = without(attribute, type(model))
    with pytest.raises(UnsupportedHead) as error:
        CamModel(model)
    assert f'it has {what}' in str(error.value)
    assert f'Way out: {f"set {way_out}" if way_out else "use an image classifier of timm"}' in str(error.value)


def fail(*_):
    raise RuntimeError('out of order')


WITHOUT_POSITIONS = {
    'class token': type('ClassToken', (PrefixTokens,), {'pool': lambda m, x: x[:, 0]}),
    'a dictionary': type('Named', (Tiny,), {'forward_features': lambda m, x: {'map': m.stem(x)}}),
    'pooled features': type('Pooled', (Tiny,), {'forward_features': lambda m, x: m.stem(x).mean((2, 3))}),
    'no classifier': type('NoClassifier', (Tiny,), {'num_classes': 0, 'classifier': lambda m: nn.Identity()}),
    'broken features': type('BrokenFeatures', (Tiny,), {'forward_features': fail}),
    'broken head': type('BrokenHead', (Tiny,), {'forward_head': fail}),
    'as many channels as rows': AsManyChannelsAsRows,
}


@pytest.mark.parametrize('model', WITHOUT_POSITIONS.values(), ids=WITHOUT_POSITIONS)
def test_models_without_positions_are_refused(model):
    torch.manual_seed(0)
    with pytest.raises(UnsupportedHead, match=r"^no exact class maps for 'tiny': .*Way out: ") as error:
        CamModel(model())
    assert '\n' not in str(error.value)


# --- transformers ---


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
