"""Models that timm does not have, and what their maps must hold."""

import copy

import torch
from torch import nn

from timm_hnc import CamModel

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
