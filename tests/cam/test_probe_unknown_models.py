"""Heads that no timm model has: accepted or refused by what they do, whatever their names say."""

import pytest
import torch
from torch import nn

from timm_hnc import CamModel
from timm_hnc.cam.probe import UnsupportedHead


class Tiny(nn.Module):
    """A model in timm's shape: NCHW features, the mean over positions, a linear layer."""

    num_features = 8
    num_classes = 5
    layout = 'NCHW'

    def __init__(self):
        super().__init__()
        self.pretrained_cfg = {'input_size': (3, 16, 24), 'architecture': 'tiny', 'classifier': 'fc'}
        self.stem = nn.Conv2d(3, self.num_features, 4, stride=4)
        self.fc = self.classifier()

    def classifier(self):
        return nn.Linear(self.num_features, self.num_classes)

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


class LastLayout(Tiny):
    layout = 'NHWC'


class Tokens(Tiny):
    layout = 'NLC'


class ConvolutionalClassifier(Tiny):
    def classifier(self):
        return nn.Conv2d(self.num_features, self.num_classes, 1)

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


class MaxPool(Tiny):
    def pool(self, x):
        return x.amax((2, 3))


class SumPool(Tiny):
    def pool(self, x):
        return x.sum((2, 3))


class GeneralizedMeanPool(Tiny):
    def pool(self, x):
        return x.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3)


class ActivationBeforePool(Tiny):
    def pool(self, x):
        return nn.functional.relu(x).mean((2, 3))


class PartOfTheImage(Tiny):
    def pool(self, x):
        return x[:, :, :2].mean((2, 3))


class ScaledPool(Tiny):
    def pool(self, x):
        return x.mean((2, 3)) * 1.5


class ClassToken(PrefixTokens):
    def pool(self, x):
        return x[:, 0]


class ClassTokenInTheMean(Tokens):
    """The mean over all tokens, one of which is no patch."""

    def forward_features(self, x):
        tokens = super().forward_features(x)
        return torch.cat([tokens[:, :1].square(), tokens], 1)


class HiddenScale(Tiny):
    def forward_head(self, x, pre_logits: bool = False):
        x = super().forward_head(x, pre_logits)
        return x if pre_logits else x * 2.0


class HiddenShift(Tiny):
    def forward_head(self, x, pre_logits: bool = False):
        x = super().forward_head(x, pre_logits)
        return x if pre_logits else x + 1.0


class Softmax(Tiny):
    def forward_head(self, x, pre_logits: bool = False):
        x = super().forward_head(x, pre_logits)
        return x if pre_logits else x.softmax(-1)


class OtherBias(Tiny):
    """The same operations as Tiny's, other numbers."""

    def __init__(self):
        super().__init__()
        self.other = nn.Parameter(torch.randn(self.num_classes))

    def forward_head(self, x, pre_logits: bool = False):
        x = self.pool(x)
        return x if pre_logits else nn.functional.linear(x, self.fc.weight, self.other)


class TwoLinearLayers(Tiny):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(self.num_features, self.num_features)

    def forward_head(self, x, pre_logits: bool = False):
        x = self.pool(x)
        return x if pre_logits else self.fc(self.hidden(x))


class FreshBatchNorm(Tiny):
    """At its initial statistics it changes nothing, yet training would."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(self.num_features, eps=0.0)

    def forward_head(self, x, pre_logits: bool = False):
        x = self.norm(self.pool(x))
        return x if pre_logits else self.fc(x)


class FreshScale(Tiny):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward_head(self, x, pre_logits: bool = False):
        x = super().forward_head(x, pre_logits)
        return x if pre_logits else x * self.scale


class ZeroActivation(Tiny):
    """With a classifier of zeros all logits agree, whatever the head does."""

    def __init__(self):
        super().__init__()
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward_head(self, x, pre_logits: bool = False):
        x = self.pool(x)
        return x if pre_logits else self.fc(x.tanh())


class TwoAdded(TwoAveraged):
    def forward_head(self, x, pre_logits: bool = False):
        x = self.pool(x)
        return x if pre_logits else self.fc(x) + self.fc2(x)


class HiddenLayerClassifier(Tiny):
    def classifier(self):
        return nn.Sequential(nn.Linear(self.num_features, 6), nn.Linear(6, self.num_classes))


class SeveralFeatures(Tiny):
    def forward_features(self, x):
        x = super().forward_features(x)
        return [x, x]

    def pool(self, x):
        return super().pool(x[0])


ALIKE = {
    'A1': (Tiny, NoConfig),
    'A2': (ConvolutionalClassifier,),
    'A3': (LastLayout,),
    'A4': (Tokens,),
    'A5': (PrefixTokens,),
    'A6': (TwoAveraged,),
}
SNEAKY = [
    *(MaxPool, SumPool, GeneralizedMeanPool, ActivationBeforePool, PartOfTheImage, ScaledPool, ClassToken),
    *(ClassTokenInTheMean, HiddenScale, HiddenShift, Softmax, OtherBias, TwoLinearLayers, FreshBatchNorm, FreshScale),
    *(ZeroActivation, TwoAdded, HiddenLayerClassifier, SeveralFeatures),
]


@pytest.mark.parametrize(('kind', 'model'), [(kind, model) for kind, models in ALIKE.items() for model in models])
@pytest.mark.parametrize('image', [(16, 24), (24, 16), (8, 8)])
def test_unknown_models_are_accepted_by_what_they_do(kind, model, image):
    torch.manual_seed(0)
    cam_model = CamModel(model())
    assert cam_model.head.kind == kind
    class_maps = cam_model.class_maps(torch.randn(2, 3, *image))
    assert class_maps.grid == (image[0] // 4, image[1] // 4)
    torch.testing.assert_close(class_maps.maps(None).mean((2, 3)), class_maps.logits, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('model', SNEAKY)
def test_sneaky_models_are_refused(model):
    torch.manual_seed(0)
    with pytest.raises(UnsupportedHead, match="no exact class maps for 'tiny'"):
        CamModel(model())


# --- probing changes nothing ---
