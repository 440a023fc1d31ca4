"""What a user may do wrong with a CamModel: one clear error, nothing half-wrapped."""

import pytest
import timm
import torch
from small_models import DETACHED_MODELS, MODELS, TAIL_MODELS
from torch import nn

from timm_hnc import CamModel
from timm_hnc.cam.heads.probe import UnsupportedHead

KINDS = pytest.mark.parametrize('small', [MODELS['resnet'], DETACHED_MODELS['convnext'], TAIL_MODELS['vit']], ids='ACG')


@KINDS
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_pixels_that_are_not_finite(small, value):
    images = small.images()
    images[1, 0, 3, 4] = value
    with pytest.raises(ValueError, match='logits of image 1 of the batch are not finite'):
        small.cam_model().class_maps(images)


@KINDS
def test_classes_out_of_range(small):
    class_maps = small.cam_model().class_maps(small.images())
    for wrong in (7, -1):
        with pytest.raises(IndexError, match=f'class {wrong} is out of range: the model has 7 classes, from 0 on'):
            class_maps.maps(torch.tensor([[0], [wrong], [1]]))
    with pytest.raises(ValueError, match=r'classes are int64 of shape \(3,\): expected \(3, k\) class indices'):
        class_maps.maps(torch.tensor([0, 1, 2]))
    for other in (torch.float32, torch.bool, torch.complex64):
        name = str(other).removeprefix('torch.')
        with pytest.raises(ValueError, match=rf'classes are {name} of shape \(3, 2\): expected \(3, k\) class indices'):
            class_maps.maps(torch.zeros(3, 2).to(other))
    assert class_maps.maps(torch.zeros(3, 0, dtype=torch.long)).shape[1] == 0


@KINDS
def test_classes_that_are_no_tensor(small):
    class_maps = small.cam_model().class_maps(small.images())
    assert torch.equal(class_maps.maps(3), class_maps.maps(torch.full((3, 1), 3)))
    assert torch.equal(class_maps.maps([3, 0]), class_maps.maps(torch.tensor([[3, 0]] * 3)))
    assert class_maps.maps([]).shape[:2] == (3, 0)
    for wrong in (7, -1, [0, 7], [-1, 0], torch.tensor(7)):
        with pytest.raises(IndexError, match=r'class (7|-1) is out of range: the model has 7 classes, from 0 on'):
            class_maps.maps(wrong)
    wanted = r'expected a class index or a list of them \(the same classes for every image\), a \(3, k\) tensor of'
    for wrong, name in (
        *((1.0, r'1\.0'), ('cat', "'cat'"), (True, 'True'), ([0, False], r'\[0, False\]'), ([1.5], r'\[1\.5\]')),
        *(([[0], [1], [2]], r'\[\[0\], \[1\], \[2\]\]'), ({1}, r'\{1\}'), ([0.5] * 99, 'list')),
    ):
        with pytest.raises(TypeError, match=f'^classes are {name}: {wanted}') as error:
            class_maps.maps(wrong)
        assert '\n' not in str(error.value)


@KINDS
def test_images_of_wrong_shape(small):
    model = small.cam_model()
    with pytest.raises(ValueError, match=r'images of shape \(3, 64, 96\): expected \(batch, channels, height, width\)'):
        model.class_maps(small.images()[0])
    with pytest.raises(ValueError, match='images of 8 x 96 pixels are smaller than one cell of the maps'):
        model.class_maps(small.images()[:, :, :8])


class SeveralImages(nn.Module):
    """Two images in, as in change detection."""

    num_classes = 2

    def __init__(self):
        super().__init__()
        self.body = timm.create_model('test_resnet', num_classes=2)

    def get_classifier(self):
        return self.body.get_classifier()

    def forward_features(self, before, after):
        return self.body.forward_features(after) - self.body.forward_features(before)

    def forward_head(self, features, pre_logits: bool = False):
        return self.body.forward_head(features, pre_logits)


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        (lambda: nn.Linear(3, 4), r"'Linear': it does not run on images of 224 x 288"),
        (lambda: timm.create_model('test_resnet', num_classes=0), "'test_resnet': it has no classifier"),
        (SeveralImages, r"'SeveralImages': its forward_features\(\) failed"),
    ],
    ids=['not_timm', 'no_classifier', 'several_images'],
)
def test_models_without_maps(model, message):
    model = model()
    before = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    with pytest.raises(UnsupportedHead, match=f'^no exact class maps for {message}.*Way out: ') as error:
        CamModel(model)
    assert '\n' not in str(error.value)
    assert {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()} == before
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_custom_head_that_cannot_be_followed():
    model = timm.create_model('test_resnet', num_classes=5)
    model.fc = nn.Sequential(nn.Linear(model.num_features, 5), nn.Softmax(-1))
    with pytest.raises(UnsupportedHead, match="no exact class maps for 'test_resnet'"):
        CamModel(model)
