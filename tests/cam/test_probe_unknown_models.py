"""Models that timm does not have: accepted or refused by what they do, whatever their names say."""

import pytest
import timm
import torch
from torch import nn
from unknown_models import Tiny, accepted, assert_exact, assert_maps_move_with_the_patches

from timm_hnc import CamModel
from timm_hnc.cam.heads.probe import UnsupportedHead


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


def test_a_module_that_is_named_needs_nothing_else_of_timms():
    model = Tiny().double()
    model.__class__ = without('num_classes', without('get_classifier', Tiny))
    with pytest.raises(UnsupportedHead, match=r"or name the module whose output has positions with features='\.\.\.'"):
        CamModel(model)
    cam_model = CamModel(model, features='stem')
    assert cam_model.num_classes == Tiny().num_classes
    assert_exact(cam_model, False)


def test_a_classifier_that_was_put_there_by_hand():
    model = timm.create_model('test_resnet')
    model.fc = nn.Linear(model.num_features, 7)
    with pytest.raises(UnsupportedHead, match=r'num_classes says 1000, and it has 7 logits\. Way out: set model\.num_'):
        CamModel(model)
    model.num_classes = 7
    assert CamModel(model).num_classes == 7


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
