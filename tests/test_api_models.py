"""timm_hnc.train and timm_hnc.evaluate of models that are none of timm's."""

from types import SimpleNamespace

import pytest
import safetensors.torch
import timm
import torch
from api_runs import HNC, SPLITS, loader_of, new_model, weights
from data_fixtures import images
from PIL import Image
from running import arguments, clean_process, equal_tensors, summary
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import ImageFolder

import timm_hnc
from timm_hnc.cam.heads.hooked_head import HookedHead
from timm_hnc.errors import UsageError

__all__ = ['clean_process', 'images']


class Small(nn.Module):
    """A classifier that is none of timm's, with positions at `body`."""

    def __init__(self, as_object=False, channels=3):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(channels, 8, 4, stride=4), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, 3)
        self.as_object = as_object

    def forward(self, x):
        logits = self.fc(self.body(x).mean((2, 3)))
        return SimpleNamespace(logits=logits) if self.as_object else logits


@pytest.mark.parametrize('values', [HNC, {'epochs': 2}, HNC | {'model_ema': True, 'hnc': 'kd', 'mixup': 0.2}])
def test_a_model_that_is_none_of_timms_trains(tmp_path, values):
    model, other = Small(), Small(as_object=True)
    loaders = lambda: (loader_of(images=24), loader_of())  # noqa: E731
    results = []
    for net, name in ((timm_hnc.CamModel(model, features='body', image_size=32), 'a'), (other, 'b')):
        torch.manual_seed(1)
        options = {'device': 'cpu', 'workers': 0, 'no_report': True, 'lr': 0.1, 'output': str(tmp_path)}
        results.append(timm_hnc.train(net, *loaders(), **options | values, cam_images=2, experiment=name))
    torch.manual_seed(1)
    first = Small().state_dict()
    saved = weights(tmp_path / 'a')
    assert saved.keys() == first.keys(), 'the names of the model itself'
    assert any(not torch.equal(saved[name], first[name]) for name in first)
    if not values.get('model_ema'):
        assert equal_tensors(dict(model.state_dict()), saved), 'it ends with its best weights'
    assert equal_tensors(weights(tmp_path / 'b'), saved), 'an output that is an object'
    assert [each['model'] for each in results] == ['Small'] * 2
    assert arguments(tmp_path / 'a')['num_classes'] == 3
    assert (tmp_path / 'a' / 'cams' / 'best.png').is_file()
    again = Small()
    safetensors.torch.load_model(again, tmp_path / 'a' / 'model_best' / 'model.safetensors')
    figures = timm_hnc.evaluate(again, loader_of(), device='cpu', workers=0, cam_metrics=True, img_size=32)
    assert 'cam_negative_peak' in figures


def test_a_model_that_is_none_of_timms_trains_with_losses_of_ours(tmp_path):
    values = {'device': 'cpu', 'workers': 0, 'no_report': True, 'cam_images': 0, 'epochs': 1, 'loss': 'focal'}
    found = timm_hnc.train(Small(), loader_of(images=24), None, **values, output=str(tmp_path), experiment='a')
    assert 'hnc' not in found['train']


def test_the_loss_of_a_model_that_is_none_of_timms_is_that_of_the_task(tmp_path):
    """One step of SGD without momentum, written by hand."""
    images, target = torch.randn(12, 3, 32, 32), torch.arange(12) % 3
    data = DataLoader(TensorDataset(images, target), batch_size=12)
    trained, model = Small(), Small()
    options = {'device': 'cpu', 'opt': 'momentum', 'momentum': 0.0, 'weight_decay': 0.0, 'lr': 0.1, 'warmup_epochs': 0}
    options |= {'sched': 'none', 'no_report': True, 'cam_images': 0, 'workers': 0, 'smoothing': 0.0}
    timm_hnc.train(trained, data, None, **options, **HNC | {'epochs': 1}, output=str(tmp_path), experiment='a')
    features = model.body(images)
    maps = torch.einsum('bchw,oc->bohw', features, model.fc.weight) + model.fc.bias[:, None, None]
    logits = maps.mean((2, 3))
    negatives = logits.masked_fill(torch.nn.functional.one_hot(target, 3).bool(), -torch.inf).argmax(1)
    flat = maps[torch.arange(12), negatives].square().mean((1, 2)).mean()
    loss = torch.nn.functional.cross_entropy(logits, target) + 0.1 * flat
    loss.backward()
    for name, parameter in model.named_parameters():
        expected = parameter.detach() - 0.1 * parameter.grad
        torch.testing.assert_close(dict(trained.named_parameters())[name], expected.requires_grad_())


def test_a_resumed_run_of_a_model_that_is_none_of_timms_is_exact(tmp_path):
    options = {'device': 'cpu', 'workers': 0, 'no_report': True, 'cam_images': 0, 'output': str(tmp_path)} | HNC
    options |= {'epochs': 3, 'lr': 0.1}
    data = loader_of(images=24), loader_of()
    timm_hnc.train(Small(), *data, **options, experiment='whole')
    timm_hnc.train(Small(), *data, **options, experiment='parts', stop_epoch=1)
    timm_hnc.train(Small(), *data, **options, experiment='parts', resume='auto')
    assert equal_tensors(weights(tmp_path / 'parts'), weights(tmp_path / 'whole'))
    assert summary(tmp_path / 'parts') == summary(tmp_path / 'whole')


def test_a_model_of_grey_images_that_is_none_of_timms(images, tmp_path):
    model = timm_hnc.CamModel(Small(channels=1), features='body', image_size=32)
    assert model.data_config['input_size'] == (1, 32, 32)
    grey = [ImageFolder(str(images / split), loader=lambda path: Image.open(path).convert('L')) for split in SPLITS]
    options = {'device': 'cpu', 'workers': 0, 'batch_size': 8}
    more = {'epochs': 1, 'no_report': True, 'cam_images': 0, 'output': str(tmp_path), 'experiment': 'a'}
    result = timm_hnc.train(model, *grey, **options, **more)
    figures = timm_hnc.evaluate(model, grey[1], **options)
    assert figures['top1'] == pytest.approx(result['final']['top1'], abs=1e-3)
    assert figures['model'] == 'Small'


def test_a_model_around_one_of_timms_is_none_of_timms(tmp_path):
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = new_model()
            self.pretrained_cfg = self.inside.pretrained_cfg

        def forward(self, x):
            return self.inside(x)

    options = {'device': 'cpu', 'workers': 0, 'no_report': True, 'cam_images': 0, 'epochs': 1, 'experiment': 'a'}
    timm_hnc.train(Around(), loader_of(images=24), loader_of(), **options, output=str(tmp_path))
    assert all(name.startswith('inside.') for name in weights(tmp_path / 'a'))


def test_the_maps_of_a_cam_model_are_evaluated_at_its_place(monkeypatch):
    model = timm_hnc.CamModel(timm.create_model('test_efficientnet', num_classes=3), features='blocks')
    looked, class_maps = [], HookedHead.class_maps
    monkeypatch.setattr(HookedHead, 'class_maps', lambda head, *rest: looked.append(head) or class_maps(head, *rest))
    timm_hnc.evaluate(model, loader_of(), device='cpu', workers=0, cam_metrics=True)
    assert set(map(id, looked)) == {id(model.head)}


class NoMaps(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3 * 32 * 32, 3)

    def forward(self, x):
        return self.fc(x.flatten(1).sin())


@pytest.mark.parametrize(
    ('model', 'values', 'message'),
    [
        (NoMaps(), {}, "no exact class maps for 'NoMaps': none of its modules returns features with positions"),
        (torch.compile(Small()), {}, "the model is compiled: give the plain one, and torchcompile='inductor'."),
        (Small(), {'push_to_hub': 'a/b'}, "--push-to-hub: 'Small' is none of timm's models"),
        (Small(), {'loss': 'center'}, 'one linear classifier that timm knows'),
        (Small(), {'num_classes': 7}, '--num-classes 7: the model that is provided has 3.'),
    ],
)
def test_what_does_not_go_with_a_model_that_is_none_of_timms(tmp_path, model, values, message):
    with pytest.raises(UsageError) as error:
        timm_hnc.train(model, loader_of(), None, device='cpu', output=str(tmp_path), **values)
    assert message in str(error.value)
