"""Models that somebody changed, before or after wrapping: their maps are those of what they compute, or refused."""

import gc
import threading
import weakref

import pytest
import timm
import torch
from accelerate import Accelerator
from running import clean_process
from torch import nn
from torch.optim.swa_utils import AveragedModel

from timm_hnc import CamModel, HNCTask, hnc_loss
from timm_hnc.cam.heads.probe import UnsupportedHead

__all__ = ['clean_process']


def resnet():
    return timm.create_model('test_resnet', num_classes=7).eval()


def images(side=64):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def changed(model, **functions):
    """The model with other functions, in a class of its own."""
    model.__class__ = type('Changed', (type(model),), functions)
    return model


def by_name():
    def forward(self, x):
        return self.forward_head(self.forward_features(pixels=x))

    return changed(
        resnet(),
        forward=forward,
        forward_features=lambda self, pixels: type(self).__base__.forward_features(self, pixels),
    )


def with_hook():
    model = resnet()
    model.register_forward_pre_hook(lambda module, args: (5 * args[0] + 1,))
    return model


def in_training(change_images=False, change_features=False):
    def forward(self, x):
        if self.training and change_images:
            x = x + 0.1
        features = self.forward_features(x)
        if self.training and change_features:
            features = features * 0.5
        return self.forward_head(features)

    return changed(resnet(), forward=forward)


class Doubled(nn.Module):
    """A pool that says nothing of itself."""

    def forward(self, x):
        return 2 * x.mean((2, 3))


def others():
    """A classifier that is none of timm's."""
    return nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def normalising():
    return changed(resnet(), forward=lambda self, x: type(self).__base__.forward(self, (x - 0.5) / 0.1))


def pooled_by_hand():
    return changed(resnet(), forward=lambda self, x: self.fc(type(self).forward_features(self, x).amax((2, 3))))


@pytest.mark.parametrize(
    ('make', 'what'),
    [
        (with_hook, 'does more to images than'),
        (normalising, 'does more to images than'),
        (pooled_by_hand, 'goes around'),
    ],
)
def test_a_forward_that_is_more_than_features_and_head(make, what):
    with pytest.raises(UnsupportedHead, match=rf'its forward\(\) {what} its forward_features\(\)'):
        CamModel(make())


@pytest.mark.parametrize(
    ('options', 'what'),
    [
        ({'change_images': True}, r'does more to images than its forward_features\(\)'),
        ({'change_features': True}, r'does more than its forward_head\(\)'),
    ],
)
def test_a_forward_that_is_more_in_training(options, what):
    with pytest.raises(UnsupportedHead, match=rf'its forward\(\) in training {what}'):
        CamModel(in_training(**options))


def test_images_that_are_handed_on_by_name():
    assert CamModel(by_name()).kind.name == 'A1'


class HandingOn(nn.Module):
    """A wrapper with the attributes of what is inside, as libraries put around a model."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inside, name)

    def forward(self, *args, **kwargs):
        return self.inside(*args, **kwargs)


@pytest.mark.parametrize('name', ['test_resnet', 'test_convnext'])
def test_a_wrapper_that_hands_attributes_on(name):
    model = HandingOn(timm.create_model(name, num_classes=7)).eval()
    torch.testing.assert_close(
        CamModel(model).class_maps(images()).maps().mean((2, 3)), model(images()), atol=1e-4, rtol=1e-4
    )


def test_its_maps_behind_a_named_module_are_those_of_its_forward():
    model = normalising()
    cam_model = CamModel(model, features='layer4')
    maps = cam_model.class_maps(images())
    torch.testing.assert_close(maps.logits, model(images()))
    torch.testing.assert_close(maps.maps().mean((2, 3)), model(images()), atol=1e-5, rtol=1e-4)


def written_into(module, args):
    args[0].mul_(2)


class Cosine(nn.Linear):
    """A classifier of unit vectors."""

    def forward(self, x):
        return 10 * nn.functional.linear(nn.functional.normalize(x), nn.functional.normalize(self.weight))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda model: model.reset_classifier(5, 'max'), 'its pool is max now'),
        (lambda model: model.reset_classifier(0), 'its classifier is of the type Identity now'),
        (
            lambda model: setattr(model, 'fc', nn.Sequential(model.fc, nn.ReLU())),
            'its classifier is of the type Sequential now',
        ),
        (
            lambda model: setattr(model.global_pool, 'forward', lambda x: 2 * x.mean((2, 3))),
            'global_pool was exchanged',
        ),
        (lambda model: setattr(model, 'global_pool', Doubled()), 'its global_pool was exchanged'),
        (
            lambda model: setattr(model, 'forward_head', lambda x: 2 * model.fc(x.mean((2, 3)))),
            r'its forward_head\(\) was exchanged',
        ),
        (lambda model: changed(model, forward_head=lambda self, x: (x, x)), 'returns a tuple'),
        (lambda model: setattr(model, 'fc', Cosine(model.num_features, 7)), 'a Cosine, has another forward'),
        (lambda model: setattr(model.fc, 'forward', lambda x: 2 * x[:, :7]), 'a Linear, has another forward'),
        (lambda model: model.fc.register_forward_hook(lambda *args: args[2] / 2), 'a hook changes what enters'),
        (lambda model: model.fc.register_forward_pre_hook(lambda *args: args[1][0] / 2), 'a hook changes what enters'),
        (lambda model: model.fc.register_forward_hook(lambda *args: args[2].mul_(2)), 'a hook changes what enters'),
        (lambda model: model.fc.register_forward_pre_hook(written_into), 'a hook changes what enters'),
        (lambda model: model.global_pool.register_forward_hook(lambda *args: args[2] / 2), 'a hook changes what'),
        (lambda model: setattr(model, 'fc', nn.Linear(model.num_features, 9)), 'num_classes says 7, and it has 9'),
        (
            lambda model: setattr(model, 'forward', lambda x: type(model).forward(model, x) / 2),
            r'its forward\(\) was replaced',
        ),
        (lambda model: model.register_forward_pre_hook(lambda module, args: (3 * args[0],)), 'changes the images'),
        (
            lambda model: model.register_forward_pre_hook(
                lambda module, args, kwargs: ((3 * args[0],), kwargs), with_kwargs=True
            ),
            'changes the images',
        ),
        (lambda model: model.register_forward_hook(lambda *args: args[2] / 2), 'changes the logits'),
        (
            lambda model: model.register_forward_hook(
                lambda module, args, kwargs, logits: logits / 2, with_kwargs=True
            ),
            'changes the logits',
        ),
    ],
)
def test_a_plain_head_that_changed(change, message):
    cam_model = CamModel(resnet())
    change(cam_model.model)
    with pytest.raises(ValueError, match=f'works otherwise than when it was probed .*{message}'):
        cam_model.class_maps(images())


def test_an_error_in_the_head_lets_go_of_the_features():
    """Without waiting for the garbage collector: memory may have been what was missing."""
    model, seen = timm.create_model('mobilenetv3_small_050', num_classes=3).eval(), []
    cam_model = CamModel(model)

    def fails(module, args):
        seen.append(weakref.ref(args[0]))
        raise torch.OutOfMemoryError('CUDA out of memory.')

    model.conv_head.register_forward_pre_hook(fails)
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(torch.OutOfMemoryError):
            cam_model.class_maps(images())
        assert [each() for each in seen] == [None]
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda model: setattr(model, 'fc_norm', nn.LayerNorm(64)), 'its fc_norm was exchanged'),
        (
            lambda model: setattr(model, 'head_drop', nn.Sequential(nn.ReLU())),
            'its head_drop was exchanged',
        ),
        (lambda model: model.reset_classifier(7, global_pool=''), r'its logits have the shape \(2, 17, 7\)'),
        (lambda model: setattr(model, 'fc_norm', nn.Dropout(0.5)), None),
    ],
)
def test_what_lies_beside_a_plain_head_that_changed(change, message):
    cam_model = CamModel(timm.create_model('test_vit', num_classes=7, global_pool='avg', fc_norm=False, img_size=64))
    change(cam_model.model)
    if message is None:
        maps = cam_model.class_maps(images())
        torch.testing.assert_close(maps.maps().mean((2, 3)), maps.logits, atol=1e-5, rtol=1e-4)
        return
    with pytest.raises(ValueError, match=message):
        cam_model.class_maps(images())


@pytest.mark.parametrize('norm', [nn.utils.parametrizations.spectral_norm, nn.utils.parametrizations.weight_norm])
def test_weights_that_are_made_anew_at_every_pass(norm):
    cam_model = CamModel(resnet()).train()
    norm(cam_model.model.fc)
    with pytest.raises(ValueError, match='its classifier has a parametrization now: wrap the model anew'):
        cam_model.class_maps(images())
    maps = CamModel(cam_model.model).class_maps(images())
    torch.testing.assert_close(maps.maps().mean((2, 3)), maps.logits, atol=1e-6, rtol=1e-6)


def test_a_named_place_of_a_model_that_says_another_number_of_classes():
    model = resnet()
    model.fc = nn.Linear(model.num_features, 5)
    with pytest.raises(UnsupportedHead, match=r'num_classes says 7, and it has 5 logits.*model.num_classes = 5'):
        CamModel(model, features='layer4')


def test_an_exchanged_pool_that_does_the_same_leaves_bad_numbers_to_others():
    model = resnet()
    cam_model = CamModel(model).train()
    model.global_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert cam_model.class_maps(images() * torch.nan).logits.isnan().all()
    cam_model.to('meta').class_maps(images().to('meta'))


def test_a_classifier_of_others_with_other_classes():
    cam_model = CamModel(others())
    cam_model.model[3] = nn.Linear(8, 5)
    with pytest.raises(ValueError, match='num_classes says 3, and it has 5 logits'):
        cam_model.class_maps(images())


@pytest.mark.parametrize('make', [resnet, others])
@pytest.mark.parametrize('wrapped', [CamModel, nn.DataParallel, AveragedModel])
def test_another_wrapper_in_place_of_a_copy(make, wrapped):
    cam_model = CamModel(make())
    with pytest.raises(TypeError, match=r'expected a (ResNet|Sequential), perhaps the one inside of it'):
        cam_model.around(wrapped(make()))


@pytest.mark.parametrize('name', ['test_resnet', 'test_convnext', 'test_vit'])
def test_no_classifier_is_left(name):
    cam_model = CamModel(timm.create_model(name, num_classes=7).eval())
    cam_model.model.reset_classifier(0)
    with pytest.raises(ValueError, match='works otherwise than when it was probed'):
        cam_model.class_maps(torch.randn(2, 3, 160, 160))


def test_hooks_that_look_see_the_pass_of_the_maps():
    cam_model, seen = CamModel(resnet()), []
    model = cam_model.model
    model.register_forward_pre_hook(lambda module, args: seen.extend(args))
    model.register_forward_hook(lambda module, args, logits: seen.append(logits))
    model.fc.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = images()
    maps = cam_model.class_maps(x)
    assert [id(seen[0]), seen[1].shape, id(seen[2])] == [id(x), (2, model.num_features), id(maps.logits)]
    torch.testing.assert_close(maps.maps().mean((2, 3)), cam_model(x))


def test_a_forward_that_is_its_own_again(clean_process):
    cam_model, accelerator = CamModel(resnet()), Accelerator(cpu=True, mixed_precision='bf16')
    expected = cam_model.class_maps(images()).maps()
    prepared = accelerator.prepare(cam_model.model)
    with pytest.raises(ValueError, match=r'its forward\(\) was replaced'):
        cam_model.class_maps(images())
    model = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    assert 'forward' in vars(model)
    for wrapped in (cam_model, CamModel(model)):
        torch.testing.assert_close(wrapped.class_maps(images()).maps(), expected)
    model.forward = resnet().forward
    with pytest.raises(ValueError, match=r'its forward\(\) was replaced'):
        cam_model.class_maps(images())


@pytest.mark.parametrize('meta', [False, True])
@pytest.mark.parametrize('batch', [0, 2])
def test_hooks_that_change_types_and_layouts_alone(batch, meta):
    cam_model = CamModel(resnet().half())
    model = cam_model.model
    model.fc.float()
    model.fc.register_forward_pre_hook(lambda module, args: (args[0].float(),))
    model.fc.register_forward_hook(lambda module, args, logits: logits.double())
    model.register_forward_pre_hook(lambda module, args: args[0].half().to(memory_format=torch.channels_last))
    model.register_forward_hook(lambda module, args, logits: logits.float())
    x = images()[:batch]
    if meta:
        assert cam_model.to('meta').class_maps(x.to('meta')).logits.is_meta
        return
    maps = cam_model.class_maps(x)
    assert maps.logits.dtype == torch.float32
    torch.testing.assert_close(maps.logits, cam_model(x))
    torch.testing.assert_close(maps.maps().float().mean((2, 3)), maps.logits, atol=5e-3, rtol=5e-3)


def test_a_forward_that_was_replaced_before():
    model = resnet()
    forward = model.forward
    model.forward = lambda x: 2 * forward(x)
    with pytest.raises(UnsupportedHead, match=r'was replaced, by a patch .* accelerator\.prepare\(CamModel\(model\)\)'):
        CamModel(model)


@pytest.mark.parametrize(
    'change',
    [
        lambda model: model.reset_classifier(5),
        lambda model: model.reset_classifier(5, 'fastavg'),
        lambda model: setattr(model, 'global_pool', nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())),
    ],
)
def test_a_plain_head_that_is_as_good(change):
    cam_model = CamModel(resnet())
    change(cam_model.model)
    torch.testing.assert_close(cam_model.class_maps(images()).maps().mean((2, 3)), cam_model(images()))


def test_patch_dropout_leaves_no_map_whole_in_training():
    cam_model = CamModel(timm.create_model('test_vit', global_pool='avg', num_classes=7, patch_drop_rate=0.75))
    assert cam_model.eval().class_maps(images(160)).grid == (10, 10)
    with pytest.raises(ValueError, match='create the model with patch_drop_rate=0'):
        cam_model.train().class_maps(images(160))


def test_checkpointed_blocks_behind_a_named_module():
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = timm.create_model('test_vit', num_classes=7).train()
        model.set_grad_checkpointing(checkpointing)
        task = HNCTask(CamModel(model, features='blocks.4'))
        task(images(160), torch.tensor([1, 2]))['loss'].backward()
        gradients.append(model.blocks[0].attn.qkv.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(('name', 'kind'), [('test_resnet', 'A'), ('test_convnext', 'C')])
def test_a_head_that_uses_what_the_features_left(name, kind):
    def forward_features(self, x):
        self.gain = 2.0
        return type(self).__base__.forward_features(self, x)

    def forward_head(self, x, pre_logits=False):
        return type(self).__base__.forward_head(self, x * self.gain, pre_logits=pre_logits)

    model = timm.create_model(name, num_classes=7).eval()
    cam_model = CamModel(changed(model, forward_features=forward_features, forward_head=forward_head))
    assert cam_model.kind.name == kind
    maps = cam_model.class_maps(images())
    torch.testing.assert_close(maps.maps().mean((2, 3)), model(images()), atol=1e-4, rtol=1e-4)


class Watching:
    """Keeps what a layer returns, with its graph."""

    def __init__(self, layer):
        self.seen = []
        layer.register_forward_hook(self.see)

    def see(self, module, args, output):
        self.seen.append(output)


def test_models_that_keep_activations():
    model = resnet()
    Watching(model.layer4)
    model.kept = {'logits': [model(images())]}
    model.kept['itself'] = [model.kept]
    assert CamModel(model).kind.name == 'A1'


def test_a_model_that_cannot_be_copied():
    model = resnet()
    model.lock = threading.Lock()
    with pytest.raises(UnsupportedHead, match=r'it cannot be copied to be tried out \(.*lock.*Way out: take off'):
        CamModel(model)


@pytest.mark.parametrize(('name', 'kind'), [('test_resnet', 'A1'), ('test_convnext', 'C'), ('test_vit', 'G')])
def test_inference_mode_and_default_devices_change_no_kind(name, kind):
    model = timm.create_model(name, num_classes=7).eval()
    with torch.inference_mode():
        assert CamModel(timm.create_model(name, num_classes=7).eval()).kind.name == kind
        maps = CamModel(model).class_maps(images(160))
    assert maps.maps([1]).shape == (2, 1, *maps.grid), 'asked for outside'
    with torch.device('meta'):
        assert CamModel(timm.create_model(name, num_classes=7)).kind.name == kind


def test_features_that_are_changed_in_place_behind_their_module():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 8, 8), nn.SiLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    cam_model = CamModel(model, features='0')
    torch.testing.assert_close(cam_model.class_maps(images()).maps().mean((2, 3)), model(images()))


@pytest.mark.parametrize('make', [resnet, others])
def test_a_compiled_model(make):
    with pytest.raises(UnsupportedHead, match='wrap the model, and compile the wrapper'):
        CamModel(torch.compile(make(), backend='eager'))


@pytest.mark.parametrize('name', ['test_resnet', 'test_convnext'])
def test_derivatives_of_maps_as_functions(name):
    cam_model, x = CamModel(timm.create_model(name, num_classes=7).eval()), images().requires_grad_()
    expected = torch.autograd.grad(cam_model.class_maps(x).maps([1]).square().sum(), x)[0]
    found = torch.func.grad(lambda each: cam_model.class_maps(each).maps([1]).square().sum())(images())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('name', ['test_resnet', 'test_convnext'])
def test_gradients_of_every_sample(name):
    cam_model, target = CamModel(timm.create_model(name, num_classes=7).eval()), torch.tensor([3, 1])
    weights = dict(cam_model.named_parameters())

    def loss(weights, image, label):
        maps = torch.func.functional_call(cam_model, weights, (image[None], True))
        return hnc_loss(maps, label[None], 'kd', topk=3)

    found = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(weights, images(), target)
    for sample in range(2):
        value = hnc_loss(cam_model.class_maps(images()[sample, None]), target[sample, None], 'kd', topk=3)
        for name, expected in zip(weights, torch.autograd.grad(value, [*weights.values()]), strict=True):
            torch.testing.assert_close(found[name][sample], expected, atol=1e-5, rtol=1e-4)


def test_maps_are_compiled_with_their_model():
    cam_model = CamModel(timm.create_model('test_resnet', layers=(1, 1, 0, 0), channels=(16,) * 4).eval())
    compiled = torch.compile(lambda x: cam_model.class_maps(x).maps([1]), backend='eager', fullgraph=True)
    torch.testing.assert_close(compiled(images()), cam_model.class_maps(images()).maps([1]))


@pytest.mark.parametrize('wrong', ['resnet50', None])
def test_no_model(wrong):
    with pytest.raises(TypeError, match=r'expected an nn\.Module'):
        CamModel(wrong)
    with pytest.raises(TypeError, match='expected a tensor, or a NaFlex batch'):
        CamModel(resnet()).class_maps(wrong)
