"""Maps of classifiers that are none of timm's: found, exact, trained on, or refused with the reason."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import timm
import torch
import torchvision
from small_models import TAIL_MODELS
from torch import nn
from torch.nn import functional

from timm_hnc import CamModel, HNCLoss, HNCTask


class Net(nn.Module):
    """Convolutions, then what the test says."""

    def __init__(self, head, width=6, classes=5):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, width, 3, 2, 1), nn.ReLU())
        self.head, self.classifier = head, nn.LazyLinear(classes)
        with torch.no_grad():
            self.eval()(torch.zeros(1, 3, 16, 24))
            for parameter in self.train().parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))

    def forward(self, x):
        return self.classifier(self.head(self.trunk(x)))


class Mean(nn.Module):
    def __init__(self, dims=(2, 3)):
        super().__init__()
        self.dims = dims

    def forward(self, x):
        return x.mean(self.dims)


class WithLogits(nn.Module):
    """As transformers have it."""

    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, x):
        return SimpleNamespace(logits=self.inner(x), hidden_states=None)


class TwoWays(Net):
    """A second way around the features."""

    def forward(self, x):
        return super().forward(x) + x.mean((2, 3))[:, :1]


def logits_and_maps(cam_model, images):
    with torch.no_grad():
        class_maps = cam_model.class_maps(images)
    return class_maps.logits, class_maps.maps(None)


class Windows(Net):
    """Its trunk sees quarters of the images, one after the other."""

    def __init__(self):
        super().__init__(Mean())

    def forward(self, x):
        rows = torch.cat([part for half in x.chunk(2, 2) for part in half.chunk(2, 3)])
        return self.classifier(self.head(self.trunk(rows)).unflatten(0, (4, -1)).mean(0))


class Resized(nn.Module):
    """Tokens of images that it makes as large as its own first."""

    def __init__(self):
        super().__init__()
        self.patches, self.norm, self.fc = nn.Conv2d(3, 8, 8, 8), nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x):
        x = functional.interpolate(x, (64, 64))
        return self.fc(self.norm(self.patches(x).flatten(2).mT).mean(1))


class WithToken(nn.Module):
    """A class token beside patches, which it has attended to already; both enter the logits."""

    def __init__(self):
        super().__init__()
        self.patches, self.fc = nn.Conv2d(3, 8, 4, 4), nn.Linear(16, 5)
        self.mix = nn.Identity()

    def forward(self, x):
        patches = self.patches(x).flatten(2).transpose(1, 2)
        token = functional.scaled_dot_product_attention(patches[:, :1] * 0 + 1, patches, patches)
        tokens = self.mix(torch.cat([token, patches], 1))
        return self.fc(torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1))


class Queries(nn.Module):
    """What is learned asks the patches: as many queries as a grid has cells, and none has a place."""

    def __init__(self):
        super().__init__()
        self.patches, self.queries = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 6, 8))
        self.mix, self.fc = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x):
        patches = self.patches(x).flatten(2).transpose(1, 2)
        asked = functional.scaled_dot_product_attention(self.queries.expand(len(x), -1, -1), patches, patches)
        return self.fc(self.mix(asked).mean(1))


class Shuffled(nn.Module):
    """Patches in another order than the image's."""

    def __init__(self):
        super().__init__()
        self.patches, self.mix, self.fc = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.mix(self.patches(x).flatten(2).transpose(1, 2).flip(1)).mean(1))


TURNS = {
    'as it is': lambda x: x,
    'left to right': lambda x: x.flip(3),
    'upside down': lambda x: x.flip(2),
    'turned by half': lambda x: x.flip(2, 3),
    'transposed': lambda x: x.transpose(2, 3),
    'turned by a quarter': lambda x: x.transpose(2, 3).flip(3),
}


class Turned(nn.Module):
    """A feature map that was turned."""

    def __init__(self, turn):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 6, 5, 4, 2), nn.ReLU())
        self.turn, self.turned, self.fc = TURNS[turn], nn.Identity(), nn.Linear(6, 5)

    def forward(self, x):
        return self.fc(self.turned(self.turn(self.trunk(x))).mean((2, 3)))


class LastFirst(nn.Module):
    """The convolution that was made first comes last."""

    def __init__(self, channels=3):
        super().__init__()
        self.head, self.trunk = nn.Conv2d(6, 5, 1), nn.Conv2d(channels, 6, 4, 4)

    def forward(self, x):
        return self.head(self.trunk(x).relu()).mean((2, 3))


@pytest.fixture
def images():
    return torch.randn(3, 3, 16, 24)


def test_a_pool_and_a_linear_layer(images):
    model = Net(Mean()).eval()
    for where in ({}, {'features': 'trunk'}, {'features_input': 'head'}):
        cam_model = CamModel(model, image_size=(16, 24), **where)
        assert cam_model.kind.name == 'A'
        assert cam_model.num_classes == 5
        logits, maps = logits_and_maps(cam_model, images)
        assert torch.equal(logits, model(images))
        by_hand = torch.einsum('nd,bdhw->bnhw', model.classifier.weight, model.trunk(images))
        torch.testing.assert_close(maps, by_hand + model.classifier.bias[:, None, None])
    assert str(CamModel(model, image_size=(16, 24)).head.place) == "features='trunk'"


def test_features_that_are_flattened(images):
    """Every position has weights of its own."""
    model = Net(nn.Flatten()).eval()
    cam_model = CamModel(model, image_size=(16, 24))
    logits, maps = logits_and_maps(cam_model, images)
    torch.testing.assert_close(logits, model(images))
    weight = model.classifier.weight.unflatten(1, (6, 4, 6))
    by_hand = 24 * torch.einsum('ndhw,bdhw->bnhw', weight, model.trunk(images))
    torch.testing.assert_close(maps, by_hand + model.classifier.bias[:, None, None], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ('head', 'kind'),
    [
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(16), nn.ReLU(), nn.Dropout(0.5)), 'D'),
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(6)), 'B'),
        (nn.Sequential(nn.AvgPool2d((9, 9), ceil_mode=True), nn.Flatten(), nn.LayerNorm(6)), 'C'),
        (nn.Sequential(nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten()), 'A'),
    ],
)
def test_heads_that_are_more(head, kind, images):
    model = WithLogits(Net(head).eval())
    cam_model = CamModel(model, image_size=(16, 24))
    assert cam_model.kind.name == kind
    for mode in (False, True):
        cam_model.train(mode)
        maps = cam_model.class_maps(images)
        torch.testing.assert_close(maps.maps(None).mean((2, 3)), maps.logits, atol=1e-5, rtol=1e-4)
    assert cam_model(images).shape == (3, 5)


def test_scores_that_are_pooled(images):
    model = Net(Mean(), width=5).eval()
    model.classifier = nn.Identity()
    logits, maps = logits_and_maps(CamModel(model, image_size=(16, 24)), images)
    torch.testing.assert_close(maps, model.trunk(images))
    torch.testing.assert_close(logits, model(images))


@pytest.mark.parametrize('width', [6, 8])
def test_channels_that_come_last(width):
    """As many of them as there are columns, on square images, or more."""
    head = nn.Sequential(torchvision.ops.Permute([0, 2, 3, 1]), nn.LayerNorm(width), Mean((1, 2)))
    model = Net(head, width).eval()
    images = torch.randn(2, 3, 24, 24)
    for where in ({}, {'features': 'head.1'}):
        logits, maps = logits_and_maps(CamModel(model, image_size=24, **where), images)
        torch.testing.assert_close(logits, model(images))
        features = model.head[1](model.trunk(images).permute(0, 2, 3, 1))
        by_hand = torch.einsum('nd,bhwd->bnhw', model.classifier.weight, features)
        torch.testing.assert_close(maps, by_hand + model.classifier.bias[:, None, None], atol=1e-5, rtol=1e-4)


def test_it_trains_with_hnc(images):
    """The gradient of HNC beside that of a loop over its definition."""
    model = Net(Mean()).double()
    images = images.double()
    task = HNCTask(CamModel(model, image_size=(16, 24)), hnc=HNCLoss('mse', topk=2), hnc_weight=0.5)
    target = torch.tensor([0, 1, 2])
    task(images, target)['loss'].backward()
    found = model.trunk[0].weight.grad.clone()
    model.zero_grad()
    features = model.trunk(images)
    maps = torch.einsum('nd,bdhw->bnhw', model.classifier.weight, features) + model.classifier.bias[:, None, None]
    hnc = 0
    for image, own in enumerate(target):
        scores = maps[image].mean((1, 2)).detach()
        scores[own] = -torch.inf
        hnc = hnc + sum((maps[image, index] ** 2).mean() for index in scores.topk(2).indices)
    loss = functional.cross_entropy(maps.mean((2, 3)), target) + 0.5 * hnc / len(images)
    loss.backward()
    torch.testing.assert_close(found, model.trunk[0].weight.grad)


@pytest.mark.parametrize('name', ['squeezenet1_1', 'shufflenet_v2_x0_5', 'mobilenet_v3_small'])
def test_networks_of_torchvision(name):
    model = torchvision.models.get_model(name, num_classes=7).eval()
    cam_model = CamModel(model, image_size=(64, 96))
    images = torch.randn(2, 3, 64, 96)
    logits, maps = logits_and_maps(cam_model, images)
    assert torch.equal(logits, model(images))
    torch.testing.assert_close(maps.mean((2, 3)), logits, atol=1e-5, rtol=1e-4)


def test_class_tokens_have_maps_in_front_of_the_last_block():
    """Shaped as those for pictures are, and a gradient flows."""
    small = TAIL_MODELS['vit']
    tail = small.cam_model().eval()
    cam_model = CamModel(tail.model, features='blocks.0')
    assert cam_model.kind.trainable
    images = small.images()
    maps = cam_model.class_maps(images)
    shapes = [each.maps(None).detach() for each in (maps, tail.class_maps(images))]
    shapes = torch.stack([(each - each.mean((2, 3), keepdim=True)).flatten() for each in shapes])
    assert torch.corrcoef(shapes)[0, 1] > 0.99
    torch.testing.assert_close(maps.maps(None).mean((2, 3)), tail.model(images), atol=1e-4, rtol=1e-3)
    maps.maps([0]).square().sum().backward()
    assert tail.model.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize('turn', list(TURNS))
@pytest.mark.parametrize('size', [(32, 48), (32, 32)])
def test_maps_that_are_flipped_or_turned_are_refused(turn, size):
    if turn == 'as it is':
        assert str(CamModel(Turned(turn), 'turned', image_size=size).head.place) == "features='turned'"
        return
    with pytest.raises(ValueError, match=r"the positions at features='turned' are not in the order of the image"):
        CamModel(Turned(turn), 'turned', image_size=size)


def test_channels_are_those_of_the_convolution_that_takes_images(images):
    for channels in (3, 1):
        cam_model = CamModel(LastFirst(channels).eval(), image_size=(16, 24))
        assert cam_model.data_config['input_size'] == (channels, 16, 24)
        logits, maps = logits_and_maps(cam_model, images[:, :channels])
        torch.testing.assert_close(maps.mean((2, 3)), logits)


def test_parameters_without_elements(images):
    model = Net(Mean()).eval()
    model.unused = nn.ParameterList([torch.empty(0, 4), torch.empty(0)])
    logits, maps = logits_and_maps(CamModel(model, image_size=(16, 24)), images)
    torch.testing.assert_close(maps.mean((2, 3)), logits)


def test_nothing_of_the_model_is_changed(images):
    model = Net(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(6)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cam_model = CamModel(model, image_size=(16, 24))
    assert cam_model.training
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    cam_model.class_maps(images)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Aux(nn.Module):
    """Two classifiers in training, as inception has them."""

    def __init__(self):
        super().__init__()
        self.net = Net(Mean())

    def forward(self, x):
        logits = self.net(x)
        return (logits, logits) if self.training else logits


@pytest.mark.parametrize(
    ('make', 'where', 'message'),
    [
        (
            lambda: Net(Mean()),
            {'features': 'nothing'},
            r"no module features='nothing'.*its modules are trunk, head, cl",
        ),
        (lambda: Net(Mean()), {'features': 'classifier'}, r"at features='classifier' has no positions .* \(2, 5\)"),
        (lambda: TwoWays(Mean()), {'features': 'trunk'}, r"'TwoWays': .*(depend on more|cannot be followed)"),
        (lambda: Net(nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())), {}, r'Way out: name'),
        (lambda: Net(nn.Flatten()), {'image_size': (32, 32)}, r'does not run on images of 32 x 32 .*image_size='),
        (lambda: nn.Conv2d(3, 4, 3), {}, r'returns no \(batch, classes\) logits'),
        (lambda: nn.Flatten(), {}, r'it has no weights'),
        (lambda: Net(Mean(), classes=0), {}, r'it has no classifier'),
        (lambda: timm.create_model('test_vit', num_classes=0), {'features': 'blocks.4'}, r'it has no classifier'),
        (lambda: nn.Sequential(nn.LazyConv2d(4, 3), Mean()), {}, r'made with its first batch. Way out: run it once'),
        (Shuffled, {'features': 'mix'}, r"the positions at features='mix' are not in the order of the image"),
        (Queries, {'features': 'mix'}, r"what is at features='mix' has no positions"),
        (Windows, {'features': 'trunk'}, r"what is at features='trunk' are 8 rows of 2 images"),
        (lambda: torch.jit.script(Net(Mean())), {}, r'TorchScript .*Way out: give the model that it was made of'),
        (Aux, {}, r'in training \(it returns no \(batch, classes\) logits\)'),
        (WithToken, {'features': 'mix'}, r"class tokens, .* behind features='mix'.*the block in front of the last"),
    ],
)
def test_what_is_refused(make, where, message):
    with pytest.raises(ValueError, match=message):
        CamModel(make(), **{'image_size': (16, 24), **where})


def test_tokens_of_images_that_a_model_resizes():
    """As many cells would fit into the image itself: 4 x 16 of eight pixels."""
    cam_model = CamModel(Resized().eval(), features='norm', image_size=(64, 64))
    images = torch.zeros(2, 3, 32, 128)
    images[1, :, :8, :16] = 1
    logits, maps = logits_and_maps(cam_model, images)
    assert maps.shape == (2, 5, 8, 8)
    torch.testing.assert_close(logits, maps.mean((2, 3)))
    torch.testing.assert_close(maps[1, :, 2:, 1:], maps[0, :, 2:, 1:])
    assert (maps[1, :, :2, 0] - maps[0, :, :2, 0]).abs().min() > 0


def test_how_it_wants_its_images():
    class Small(Net):
        """With one of the methods of timm's models."""

        def forward_features(self, x):
            return self.trunk(x)

    assert CamModel(Small(Mean()), image_size=48).data_config['input_size'] == (3, 48, 48)
    assert CamModel(Small(Mean())).data_config['input_size'] == (3, 224, 224)
    with pytest.raises(ValueError, match='meta device'):
        CamModel(Small(Mean()).to('meta'))


@pytest.mark.parametrize('image_size', [(64,), '64', (64, 64, 3), (1.5, 2), -1, (0, 64), True])
def test_image_sizes_that_are_none(image_size):
    with pytest.raises(ValueError, match=r'expected \(height, width\) or one side, in pixels'):
        CamModel(Net(Mean()), image_size=image_size)


def test_threads_do_not_see_each_other():
    model = Net(Mean()).eval()
    cam_model = CamModel(model, image_size=(16, 24))
    alone = [torch.randn(2, 3, 16, 24), torch.randn(2, 3, 32, 24)]
    expected = [cam_model.class_maps(each).maps(None) for each in alone]
    with ThreadPoolExecutor(2) as pool:
        for found, wanted in zip(
            pool.map(lambda each: cam_model.class_maps(each).maps(None), alone * 20), expected * 20, strict=True
        ):
            assert torch.equal(found, wanted)


def test_one_place():
    with pytest.raises(ValueError, match='one place, not two'):
        CamModel(Net(Mean()), features='trunk', features_input='head')
