import copy
import pickle
import warnings

import pytest
import timm
import torch
from map_checks import assert_same, gradients, off_by, roundings_off, seeded
from safetensors.torch import load_file
from small_models import MODELS, NUM_CLASSES, REPRESENTATIVES, SmallModel, heads_table, make_on_meta, perturb
from timm.optim import create_optimizer_v2
from torch import nn

from timm_hnc import CamModel, ClassMaps, HNCLoss, HNCTask, create_model
from timm_hnc.weights.saving import save_pretrained

ALL = pytest.mark.parametrize('small', MODELS.values(), ids=MODELS)
FEW = pytest.mark.parametrize('small', [MODELS[name] for name in REPRESENTATIVES], ids=REPRESENTATIVES)
TRAINING = pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])


@pytest.fixture(autouse=True)
def fresh_compiler():
    yield
    torch._dynamo.reset()


# --- the mean of a map is the logit ---


@ALL
@TRAINING
def test_mean_of_maps_is_the_logit(small, training):
    model = small.cam_model(drop_rate=0.5).train(training)
    assert model.head.kind == small.kind
    class_maps = model.class_maps(small.images())
    assert class_maps.grid == small.grid
    assert class_maps.maps(None).shape == (3, NUM_CLASSES, *small.grid)
    assert off_by(class_maps) < 1e-5
    assert off_by(model.double().class_maps(small.images().double())) < 1e-10


@FEW
@TRAINING
def test_mean_of_maps_is_the_logit_in_bfloat16(small, training):
    model = small.cam_model(drop_rate=0.5).train(training)
    with torch.autocast('cpu', torch.bfloat16):
        class_maps = model.class_maps(small.images())
        assert roundings_off(class_maps) < 4
        assert class_maps.maps(None).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ('small', 'training'),
    [
        *(pytest.param(small, True, id=f'{name}-train') for name, small in MODELS.items()),
        *(pytest.param(MODELS[name], False, id=f'{name}-eval') for name in REPRESENTATIVES),
    ],
)
def test_one_forward_pass_of_the_model_itself(small, training):
    """Bit-equal logits, the same random numbers drawn, running statistics updated once, the same gradients."""
    plain = small.make(drop_rate=0.5).double().train(training)
    model = small.cam_model(drop_rate=0.5).double().train(training)
    images = small.images().double()
    logits = seeded(plain, images)
    random_state = torch.get_rng_state()
    class_maps = seeded(model.class_maps, images)
    assert torch.equal(class_maps.logits, logits)
    assert torch.equal(torch.get_rng_state(), random_state)
    for (name, ours), (other, theirs) in zip(model.model.named_buffers(), plain.named_buffers(), strict=True):
        assert name == other
        assert torch.equal(ours, theirs), name
    if training:
        assert not torch.equal(seeded(small.make().double().train(), images), logits)  # dropout took part
    factors = torch.randn(logits.shape, dtype=logits.dtype)
    expected = gradients((logits * factors).sum(), plain)
    through_maps = gradients((class_maps.maps(None).mean((2, 3)) * factors).sum(), model.model)
    assert_same(gradients((seeded(model, images) * factors).sum(), model.model), expected, rtol=1e-9, atol=1e-9)
    assert_same(through_maps, expected, rtol=1e-9, atol=1e-9)


@FEW
def test_gradient_of_the_logits(small):
    plain, model = small.make(drop_rate=0.5).train(), small.cam_model(drop_rate=0.5).train()
    factors = torch.randn(3, NUM_CLASSES)
    expected = gradients((seeded(plain, small.images()) * factors).sum(), plain)
    ours = gradients((seeded(model.class_maps, small.images()).logits * factors).sum(), model.model)
    for gradient, reference in zip(ours, expected, strict=True):
        assert torch.equal(gradient, reference)


@pytest.mark.parametrize('name', [name for name in MODELS if name != 'efficientnet'])
def test_maps_lie_where_timm_puts_the_features(name):
    """timm's own NCHW intermediates give the raster order (efficientnet's leave out its last convolution)."""
    small = MODELS[name]
    model = small.cam_model()
    (features,) = model.model.forward_intermediates(small.images(), indices=1, norm=True, intermediates_only=True)
    layers = [model.model.get_submodule(layer) for layer in model.head.classifiers]
    expected = sum(
        nn.functional.conv2d(features, layer.weight.reshape(NUM_CLASSES, -1, 1, 1), layer.bias) for layer in layers
    ) / len(layers)
    maps = model.class_maps(small.images()).maps(None)
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_dropout_leaves_its_mask_in_the_maps():
    small = MODELS['resnet']
    class_maps = small.cam_model(drop_rate=0.5).train().class_maps(small.images())
    dropped = (class_maps.positions == 0).all(1)
    assert 0.35 < dropped.float().mean() < 0.65
    assert off_by(class_maps) < 1e-5


def test_efficientformer_v2_with_two_classifiers_and_one():
    """With one, its pretrained_cfg still lists two."""
    for distillation, kind in ((True, 'A6'), (False, 'A1')):
        small = SmallModel('efficientformerv2_s0', kind, (64, 64), (2, 2), {'img_size': 64})
        model = small.cam_model(distillation=distillation)
        assert model.head.kind == kind
        assert off_by(model.class_maps(small.images())) < 1e-5


@pytest.mark.parametrize('size', [(64, 64), (96, 32), (80, 112), (33, 33)])
@pytest.mark.parametrize('name', ['resnet', 'twins'])
def test_images_of_other_sizes(name, size):
    model = MODELS[name].cam_model()
    images = torch.randn(2, 3, *size)
    class_maps = model.class_maps(images)
    assert class_maps.grid == tuple(side // 32 if name == 'twins' else -(-side // 32) for side in size)
    assert off_by(class_maps) < 1e-5


def test_token_models_of_dynamic_size():
    small = MODELS['vit_reg4']
    model = small.cam_model(dynamic_img_size=True)
    for size in ((64, 64), (48, 160), (160, 32)):
        class_maps = model.class_maps(torch.randn(2, 3, *size))
        assert class_maps.grid == (size[0] // 16, size[1] // 16)
        assert off_by(class_maps) < 1e-5


@FEW
@TRAINING
def test_channels_last(small, training):
    plain = small.cam_model().double().train(training)
    model = small.cam_model().double().to(memory_format=torch.channels_last).train(training)
    images = small.images().double()
    expected = seeded(plain.class_maps, images)
    class_maps = seeded(model.class_maps, images.contiguous(memory_format=torch.channels_last))
    scale = expected.maps(None).abs().max().item()
    torch.testing.assert_close(class_maps.maps(None), expected.maps(None), rtol=1e-9, atol=1e-9 * scale)
    assert off_by(class_maps) < 1e-9


# --- torch.compile ---


@pytest.mark.parametrize(
    ('name', 'backend'),
    [
        *[('swiftformer', 'eager'), ('vit_reg4', 'aot_eager'), ('resnetv2', 'eager')],
        *[pytest.param(name, 'eager', marks=pytest.mark.slow) for name in ('twins', 'swin')],
    ],
)
def test_compiled_without_graph_breaks(name, backend):
    small = MODELS[name]
    plain = small.cam_model(drop_rate=0.5).train()
    model = small.cam_model(drop_rate=0.5).train()
    expected = seeded(plain, small.images(), return_class_maps=True)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    class_maps = seeded(compiled, small.images(), return_class_maps=True)
    assert isinstance(class_maps, ClassMaps)
    assert class_maps.grid == small.grid
    torch.testing.assert_close(class_maps.logits, expected.logits)
    torch.testing.assert_close(class_maps.maps(None), expected.maps(None))
    assert_same(model.buffers(), plain.buffers())


@pytest.mark.parametrize(('name', 'backend'), [('vit_reg4', 'aot_eager')])
def test_compiled_task_without_graph_breaks(name, backend):
    small, target = MODELS[name], torch.tensor([0, 3, 6])
    tasks = [
        HNCTask(small.cam_model(drop_rate=0.5).train(), hnc=HNCLoss('kd', topk=3), hnc_weight=0.1, verbose=False)
        for _ in range(2)
    ]
    expected = seeded(tasks[0], small.images(), target)
    result = seeded(torch.compile(tasks[1], fullgraph=True, backend=backend), small.images(), target)
    for key, value in expected.items():
        torch.testing.assert_close(result[key], value)
    assert_same(tasks[1].buffers(), tasks[0].buffers())
    tolerance = dict(rtol=1e-4, atol=1e-5)
    assert_same(gradients(result['loss'], tasks[1]), gradients(expected['loss'], tasks[0]), **tolerance)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['resnet', 'vit_reg4'])
def test_compiled_with_inductor(name):
    small, target = MODELS[name], torch.tensor([0, 3, 6])
    tasks = [
        HNCTask(small.cam_model().train(), hnc=HNCLoss('mse', topk=3), hnc_weight=0.1, verbose=False) for _ in range(2)
    ]
    for task in tasks:  # inductor draws other random numbers
        for module in task.modules():
            if type(module).__name__ == 'DropPath':
                module.drop_prob = 0.0
    expected = tasks[0](small.images(), target)
    result = torch.compile(tasks[1], fullgraph=True)(small.images(), target)
    torch.testing.assert_close(result['loss'], expected['loss'], rtol=1e-4, atol=1e-4)
    ours, theirs = gradients(result['loss'], tasks[1]), gradients(expected['loss'], tasks[0])
    scale = max(gradient.abs().max().item() for gradient in theirs if gradient is not None)
    assert_same(ours, theirs, rtol=1e-2, atol=1e-4 * scale)
    masked = small.cam_model(drop_rate=0.5).train()
    assert off_by(torch.compile(masked, fullgraph=True)(small.images(), return_class_maps=True)) < 1e-5


# --- the wrapper ---


@FEW
def test_the_model_is_untouched(small):
    timm_model = small.make()
    before = {name: (parameter, parameter.clone()) for name, parameter in timm_model.named_parameters()}
    model = CamModel(timm_model)
    class_maps = model.class_maps(small.images())
    class_maps.maps(None).sum().backward()
    assert model.model is timm_model
    after = dict(model.model.named_parameters())
    assert list(after) == list(before)
    for name, (parameter, values) in before.items():
        assert after[name] is parameter
        assert torch.equal(parameter, values)
    assert set(model.state_dict()) == {f'model.{name}' for name in timm_model.state_dict()}
    for module in model.modules():
        hooks = {name: value for name, value in vars(module).items() if name.endswith('_hooks') and value}
        assert not hooks
    with pytest.raises(TypeError, match='CamModel already'):
        CamModel(model)


@FEW
def test_delegations(small):
    model = small.cam_model()
    assert model.num_classes == model.model.num_classes == NUM_CLASSES
    assert model.pretrained_cfg is model.model.pretrained_cfg
    ours, theirs = model.get_classifier(), model.model.get_classifier()
    assert all(a is b for a, b in zip(ours, theirs, strict=True)) if isinstance(ours, tuple) else ours is theirs
    assert torch.equal(model(small.images()), model.model(small.images()))


@FEW
@pytest.mark.parametrize('duplicate', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=['copy', 'pickle'])
def test_copies_work_on_their_own(small, duplicate):
    model = small.cam_model()
    other = duplicate(model)
    expected = model.class_maps(small.images())
    assert torch.equal(other.class_maps(small.images()).maps(None), expected.maps(None))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(model.class_maps(small.images()).maps(None), expected.maps(None))


def test_optimizer_sees_timm_names():
    """Weight decay groups of the wrapped model are those of the plain one."""
    small = MODELS['vit_reg4']
    plain, model = small.make(), small.cam_model().model
    options = dict(opt='adamw', lr=1e-3, weight_decay=0.1, layer_decay=0.7)
    ours, theirs = (create_optimizer_v2(m, **options).param_groups for m in (model, plain))
    assert [[p.shape for p in group['params']] for group in ours] == [[p.shape for p in g['params']] for g in theirs]
    assert [group['lr_scale'] for group in ours] == [group['lr_scale'] for group in theirs]


# --- create_model ---


def test_create_model_takes_timm_options():
    torch.manual_seed(5)
    model = create_model('test_resnet', num_classes=3, in_chans=1, drop_rate=0.1)
    torch.manual_seed(5)
    plain = timm.create_model('test_resnet', num_classes=3, in_chans=1, drop_rate=0.1)
    assert isinstance(model, CamModel)
    images = torch.randn(2, 1, 64, 64)
    assert torch.equal(model.eval()(images), plain.eval()(images))
    with pytest.raises(ValueError, match="no exact class maps for 'test_resnet'"):
        create_model('test_resnet', global_pool='max')


@pytest.mark.parametrize(
    ('name', 'memory_format'),
    [
        *((name, torch.contiguous_format) for name in ('resnet', 'resnetv2', 'swiftformer')),
        ('resnet', torch.channels_last),
    ],
)
def test_local_folders_load_their_weights_unless_told_not_to(tmp_path, name, memory_format):
    small = MODELS[name]
    trained = CamModel(small.make(drop_rate=0.1).to(memory_format=memory_format))
    save_pretrained(trained, tmp_path)
    images = small.images()
    expected = trained.eval()(images)
    options = dict(small.kwargs)
    loaded = create_model(f'local-dir:{tmp_path}', **options).eval()
    torch.testing.assert_close(loaded(images), expected, rtol=1e-4, atol=1e-4)
    assert loaded.num_classes == NUM_CLASSES
    plain = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, **options).eval()
    assert torch.equal(plain(images), loaded(images))
    for key, value in load_file(tmp_path / 'model.safetensors').items():
        assert torch.equal(value, trained.model.state_dict()[key])
    untrained = create_model(f'local-dir:{tmp_path}', pretrained=False, **options).eval()
    assert not torch.allclose(untrained(images), expected, rtol=1e-1)


# --- every family ---


@pytest.mark.slow
def test_a_model_of_every_family_is_exact():
    """In train mode, with dropout where the family has it: the smallest model of every file of timm and kind."""
    smallest = {}
    for name, kind in heads_table().items():
        if kind.startswith('A'):
            model = make_on_meta(name)
            size = sum(parameter.numel() for parameter in model.parameters())
            key = (type(model).__module__, type(model).__name__, kind)
            smallest[key] = min(smallest.get(key, (size, name)), (size, name))
    assert len(smallest) >= 50
    wrong = {}
    for (module, _, kind), (size, name) in smallest.items():
        if size > 60e6:
            continue
        try:
            timm_model = timm.create_model(name, num_classes=NUM_CLASSES, drop_rate=0.5)
        except TypeError:  # the family has no dropout
            timm_model = timm.create_model(name, num_classes=NUM_CLASSES)
        model = CamModel(perturb(timm_model)).train()
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            images = torch.randn(2, *timm_model.pretrained_cfg['input_size'])
            class_maps = seeded(model.class_maps, images)
        if model.head.kind != kind or not off_by(class_maps) < 1e-4:
            wrong[name] = (module, kind, model.head.kind, off_by(class_maps))
    assert not wrong
