import copy
import math

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from small_models import MODELS, NUM_CLASSES, REPRESENTATIVES, SmallModel
from timm.data import Mixup
from timm.data.mixup import mixup_target
from timm.loss import LOSS_TYPES, create_classification_loss
from timm.loss._loss_factory import MULTI_LABEL_LOSS_TYPES
from timm.task import ClassificationTask, MultiLabelClassificationTask
from timm.task.evaluator import ClassificationEvaluator, MultiLabelClassificationEvaluator
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from timm_hnc import ClassMaps, HNCLoss, HNCMultiLabelTask, HNCTask
from timm_hnc.losses.center import CenterLoss

SMALL = MODELS['resnet']
COMPILED = SmallModel('test_resnet', 'A1', (64, 96), (8, 12), {'layers': (1, 1, 0, 0), 'channels': (16,) * 4})
# with running statistics, and without
BOTH_TASKS = [(HNCTask, COMPILED), pytest.param(HNCMultiLabelTask, MODELS['vit'], marks=pytest.mark.slow)]
BATCH = 4
LABELS = torch.tensor([2, 0, 5, 2])
LABEL_SETS = torch.tensor(
    [[1.0, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 1, 0]]
)


@pytest.fixture(autouse=True)
def fresh_compiler():
    yield
    torch._dynamo.reset()


@pytest.fixture
def images():
    return SMALL.images(BATCH)


def make(task=HNCTask, hnc=None, small=SMALL, **kwargs):
    hnc = hnc if hnc is not None else HNCLoss('kd', topk=3)
    return task(small.cam_model(), hnc=hnc, verbose=False, **kwargs)


def hnc_of_plain_model(model: nn.Module, images: torch.Tensor, absent: torch.Tensor, variant: str, k: int) -> float:
    """Eq. 2 or Eq. 5 of a plain timm model, with its classifier convolved over its features (Eq. 1)."""
    features = model.forward_features(images)
    maps = nn.functional.conv2d(features, model.fc.weight[:, :, None, None], model.fc.bias)
    total = 0.0
    for image, logits in enumerate(model.forward_head(features)):
        negatives = sorted(absent[image].nonzero().flatten().tolist(), key=lambda o: -logits[o].item())[:k]
        for o in negatives:
            cells = maps[image, o].flatten()
            total += cells.square().mean() if variant == 'mse' else cells.logsumexp(0) - cells.mean()
    return total / len(images)


def absent_classes(target: torch.Tensor) -> torch.Tensor:
    """Of hard labels or label sets."""
    return torch.eye(NUM_CLASSES)[target] == 0 if target.ndim == 1 else target == 0


def check(task, plain, images, target, absent, criterion, weight, variant='kd', k=3):
    result = task(images, target)
    assert set(result) == {'loss', 'output', 'criterion', 'hnc'}
    logits = plain(images)
    expected_criterion = criterion(logits, target)
    expected_hnc = hnc_of_plain_model(plain, images, absent, variant, k)
    torch.testing.assert_close(result['output'], logits)
    torch.testing.assert_close(result['criterion'], expected_criterion)
    torch.testing.assert_close(result['hnc'], expected_hnc, rtol=1e-4, atol=1e-5)
    expected = expected_criterion + weight * expected_hnc
    torch.testing.assert_close(result['loss'], expected, rtol=1e-4, atol=1e-5)
    assert not result['criterion'].requires_grad
    assert not result['hnc'].requires_grad
    ours = torch.autograd.grad(result['loss'], list(task.parameters()))
    theirs = torch.autograd.grad(expected, list(plain.parameters()))
    scale = max(gradient.abs().max().item() for gradient in theirs)
    for gradient, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-5 * scale)


# --- criterion + lambda * HNC (Eq. 7 and Eq. 9) ---

SINGLE = [
    {},
    {'smoothing': 0.1},
    {'loss_type': 'ce', 'soft_targets': True},
    {'loss_type': 'ce', 'soft_targets': True, 'smoothing': 0.1},
    {'loss_type': 'bce'},
    {'loss_type': 'bce', 'smoothing': 0.1, 'bce_sum': True},
    {'loss_type': 'bce', 'soft_targets': True, 'smoothing': 0.1, 'bce_target_thresh': 0.2},
    {'loss_type': 'asl', 'smoothing': 0.1},
    {'loss_type': 'poly', 'poly_epsilon': 1.0},
    {'loss_type': 'poly', 'soft_targets': True, 'smoothing': 0.2},
    {'loss_type': 'jsd', 'jsd_splits': 2, 'smoothing': 0.1},
]
MULTI = [
    {},
    {'smoothing': 0.1},
    {'soft_targets': True, 'smoothing': 0.1},
    {'loss_type': 'bce', 'pos_weight': 2.0},
    {'loss_type': 'asl'},
    {'loss_type': 'asl', 'soft_targets': True, 'smoothing': 0.2},
    {'loss_type': 'poly', 'poly_gamma': 1.0},
    {'loss_type': 'twoway'},
    {'loss_type': 'zlpr'},
    {'loss_type': 'db', 'class_counts': [3, 2, 1, 4, 2, 2, 1], 'num_samples': 9},
]


def test_every_loss_type_is_tried():
    assert {options.get('loss_type', 'ce') for options in SINGLE} == set(LOSS_TYPES) - {'twoway', 'zlpr', 'db'}
    assert {options.get('loss_type', 'bce') for options in MULTI} == set(MULTI_LABEL_LOSS_TYPES)


@pytest.mark.parametrize('options', SINGLE, ids=str)
def test_single_label(options, images):
    target, absent = LABELS, absent_classes(LABELS)
    if options.get('soft_targets'):
        target = mixup_target(LABELS, NUM_CLASSES, 0.3, options.get('smoothing', 0.0))
        absent = absent & absent.flip(0)
    task = make(criterion_kwargs=options, hnc_weight=0.05)
    check(task, SMALL.make(), images, target, absent, create_classification_loss(**options), 0.05)


@pytest.mark.parametrize('options', MULTI, ids=str)
def test_several_labels(options, images):
    target, absent = LABEL_SETS, absent_classes(LABEL_SETS)
    if options.get('soft_targets'):
        target = mixup_target(LABEL_SETS, NUM_CLASSES, 0.3, options['smoothing'], multi_label=True)
        absent = absent & absent.flip(0)
    task = make(HNCMultiLabelTask, HNCLoss('mse', topk=3), criterion_kwargs=options, hnc_weight=0.05)
    criterion = create_classification_loss(multi_label=True, **options)
    check(task, SMALL.make(), images, target, absent, criterion, 0.05, 'mse')


@pytest.mark.parametrize('criterion', [nn.MultiMarginLoss(), lambda logits, target: logits.square().mean()])
def test_explicit_criterion(criterion, images):
    task = make(criterion=criterion, hnc_weight=2.0)
    check(task, SMALL.make(), images, LABELS, absent_classes(LABELS), criterion, 2.0)
    with pytest.raises(ValueError, match='either an explicit criterion or criterion_kwargs'):
        make(criterion=criterion, criterion_kwargs={'smoothing': 0.1})


@pytest.mark.parametrize(('variant', 'weight'), [('mse', 0.0007), ('kd', 0.0065)])
def test_default_weights_are_the_authors(variant, weight, images):
    task = make(hnc=HNCLoss(variant, topk=3))
    assert task.hnc_weight == weight
    check(task, SMALL.make(), images, LABELS, absent_classes(LABELS), nn.CrossEntropyLoss(), weight, variant)
    default = HNCTask(SMALL.cam_model(), verbose=False)
    assert (default.hnc.variant, default.hnc.topk, default.hnc_weight) == ('mse', 100, 0.0007)


def test_in_double_precision(images):
    task = make(hnc_weight=0.1).double()
    assert task.dtype == torch.float64
    assert task(images.double(), LABELS)['loss'].dtype == torch.float64


# --- which classes mixup and smoothing leave absent ---


@pytest.mark.parametrize(
    ('task', 'options', 'floor'),
    [
        (HNCTask, {}, 0.0),
        (HNCTask, {'smoothing': 0.1}, 0.0),  # smoothing inside the criterion: targets are indices
        (HNCTask, {'soft_targets': True}, 0.0),
        (HNCTask, {'soft_targets': True, 'smoothing': 0.1}, 0.1 / NUM_CLASSES),
        (HNCMultiLabelTask, {'smoothing': 0.1}, 0.0),
        (HNCMultiLabelTask, {'soft_targets': True}, 0.0),
        (HNCMultiLabelTask, {'soft_targets': True, 'smoothing': 0.1}, 0.05),
    ],
)
def test_target_floor(task, options, floor):
    assert make(task, criterion_kwargs=options).target_floor == pytest.approx(floor)
    assert make(task, criterion_kwargs=options, target_floor=0.25).target_floor == 0.25


@pytest.mark.parametrize('cutmix', [False, True])
@pytest.mark.parametrize('task', [HNCTask, HNCMultiLabelTask])
def test_with_timm_mixup(task, cutmix, images):
    np.random.seed(3)
    multi_label = task is HNCMultiLabelTask
    alphas = (0.0, 1.0) if cutmix else (0.8, 0.0)
    mixup = Mixup(*alphas, label_smoothing=0.1, num_classes=NUM_CLASSES, multi_label=multi_label)
    labels = LABEL_SETS if multi_label else LABELS
    mixed, target = mixup(images.clone(), labels)
    absent = absent_classes(labels)
    options = {'soft_targets': True, 'smoothing': 0.1}
    criterion = create_classification_loss(multi_label=multi_label, **options)
    task = make(task, criterion_kwargs=options, hnc_weight=0.1)
    check(task, SMALL.make(), mixed, target, absent & absent.flip(0), criterion, 0.1)


# --- errors ---


@pytest.mark.parametrize('name', REPRESENTATIVES)
def test_no_step_reads_a_number_from_the_device(name):
    """Tensors without data refuse to be read: what runs on them never makes the host wait for an accelerator."""
    small = MODELS[name]
    model = small.cam_model().train().to('meta')
    images = small.images(BATCH).to('meta')
    for variant in ('mse', 'kd'):
        result = HNCTask(model, hnc=HNCLoss(variant, topk=3), verbose=False)(images, LABELS.to('meta'))
        result['loss'].backward()
        assert result['output'].is_meta


class NothingIsRead(TorchDispatchMode):
    """Refuses what makes the host wait for a device: numbers that are read, and shapes that depend on them."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name == 'index' and any(index is not None and index.dtype is torch.bool for index in args[1])
        if by_mask or name in ('_local_scalar_dense', 'nonzero', 'masked_select', 'equal', 'unique'):
            raise AssertionError(f'{name} waits for the device')
        return func(*args, **(kwargs or {}))


def test_no_loss_reads_a_number_of_a_gpu(monkeypatch):
    """With gradients and without. The tensors say that they are on one, so that checks of the CPU are left out."""
    positions = torch.randn(BATCH, 16, 8, requires_grad=True)
    maps = ClassMaps(positions, torch.randn(NUM_CLASSES, 8), None, (4, 4))
    monkeypatch.setattr(torch.Tensor, 'is_cuda', property(lambda self: True))
    with NothingIsRead():
        for variant in ('mse', 'kd', 'var', 'logit'):
            hnc = HNCLoss(variant, topk=3)
            for needed in (True, False):
                with torch.set_grad_enabled(needed):
                    assert hnc(maps, LABELS).requires_grad == needed
            assert not hnc.norm(maps, LABELS).requires_grad
        with torch.no_grad():
            assert maps.maps(maps.logits.argmax(1, keepdim=True)).shape == (BATCH, 1, 4, 4)
        with pytest.raises(AssertionError, match='_local_scalar_dense waits'):
            maps.logits.sum().item()


def test_only_a_cam_model_will_do():
    with pytest.raises(TypeError, match=r'the model is a ResNet: wrap it, HNCTask\(CamModel\(model\), ...\)'):
        HNCTask(SMALL.make(), verbose=False)
    with pytest.raises(TypeError, match=r'a DataParallel of a CamModel: wrap the task, DataParallel\(HNCTask\(model'):
        HNCTask(nn.DataParallel(SMALL.cam_model()), verbose=False)


@pytest.mark.parametrize('weight', [-0.1, math.nan, math.inf])
def test_bad_weights_are_refused(weight):
    with pytest.raises(ValueError, match=f'hnc_weight = {weight}: expected a finite number'):
        make(hnc_weight=weight)


def test_timm_refuses_what_it_refuses():
    with pytest.raises(ValueError, match="Unknown loss type 'hinge'"):
        make(criterion_kwargs={'loss_type': 'hinge'})
    with pytest.raises(ValueError, match='threshold must be between 0 and 1'):
        make(HNCMultiLabelTask, threshold=1.5)
    with pytest.raises(TypeError, match='threshold'):
        make(HNCTask, threshold=0.5)


@pytest.mark.parametrize(('target', 'found'), [(LABELS, r'int64 of shape \(4,\)'), (LABEL_SETS.long(), 'int64 of')])
def test_several_labels_need_dense_floats(target, found, images):
    with pytest.raises(ValueError, match=f'several labels need dense float targets .*, got {found}'):
        make(HNCMultiLabelTask)(images, target)


def test_smoothing_that_lifts_all_classes_above_the_floor_is_told_once(images, caplog):
    target = Mixup(label_smoothing=0.1, num_classes=NUM_CLASSES)(images.clone(), LABELS)[1]
    task = make(criterion=nn.CrossEntropyLoss())
    for _ in range(2):
        assert task(images, target)['hnc'] == 0
    assert make(criterion=nn.CrossEntropyLoss(), target_floor=0.1 / NUM_CLASSES)(images, target)['hnc'] > 1
    make()(images, functional.one_hot(LABELS, NUM_CLASSES).float())
    make(HNCMultiLabelTask)(images[:1], torch.ones(1, NUM_CLASSES))
    [message] = [record.getMessage() for record in caplog.records if record.name == 'timm_hnc.tasks']
    assert 'above 0 for all classes, so that none is absent, and losses on maps' in message
    assert message.endswith(f'(smoothing / {NUM_CLASSES}).')


@pytest.mark.parametrize(('variant', 'told'), [('kd', 1), ('var', 1), ('mse', 0)])
def test_maps_of_one_cell_are_told_once_where_only_flatness_counts(variant, told, caplog):
    task = make(hnc=HNCLoss(variant))
    small = torch.rand(BATCH, 3, 32, 32)
    for _ in range(2):
        assert (task(small, LABELS)['hnc'] == 0) == (variant != 'mse')
    assert caplog.text.count('does nothing: the maps of the first batch are a single cell') == told


def test_labels_are_integers_of_any_type(images):
    expected = make(hnc_weight=1.0)(images, LABELS)['loss']
    for dtype in (torch.int32, torch.uint8):
        torch.testing.assert_close(make(hnc_weight=1.0)(images, LABELS.to(dtype))['loss'], expected)


def test_a_name_is_no_loss():
    with pytest.raises(TypeError, match=r"hnc = 'mse': expected the loss, such as HNCLoss\('mse'\)"):
        make(hnc='mse')


def test_targets_of_another_size_are_refused(images):
    with pytest.raises(ValueError, match='target of'):
        make(criterion=lambda logits, target: logits.sum())(images, torch.zeros(BATCH, NUM_CLASSES + 1))


# --- a drop-in for timm's tasks ---


def train(task, images, target, steps=3):
    optimizer = torch.optim.SGD(task.parameters(), lr=0.01, momentum=0.9)
    task.train()
    for _ in range(steps):
        task(images, target)['loss'].backward()
        optimizer.step()
        optimizer.zero_grad()
    return task


def assert_equal_states(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize('multi_label', [False, True])
def test_with_weight_zero_it_trains_as_timm_does(multi_label, images):
    several = HNCMultiLabelTask, MultiLabelClassificationTask, LABEL_SETS
    ours, theirs, target = several if multi_label else (HNCTask, ClassificationTask, LABELS)
    task = train(make(ours, hnc_weight=0.0), images, target)
    timm_task = train(theirs(SMALL.make(), verbose=False), images, target)
    assert issubclass(ours, theirs)
    states = task.get_checkpoint_state(), timm_task.get_checkpoint_state()
    assert states[0].keys() == states[1].keys() == {'state_dict'}
    assert_equal_states(states[0]['state_dict'], states[1]['state_dict'])


@pytest.mark.parametrize('variant', ['mse', 'kd'])
def test_training_makes_negative_maps_homogeneous(variant, images):
    deviations = {}
    for weight in (0.0, 0.5):
        task = train(make(hnc=HNCLoss(variant, topk=3), hnc_weight=weight), images, LABELS, steps=15)
        class_maps = task.trainable_module(images, return_class_maps=True)
        maps = class_maps.maps(class_maps.topk_negatives(LABELS, 3)[0]).flatten(2)
        deviations[weight] = maps.std(-1).mean().item()
    assert deviations[0.5] < 0.7 * deviations[0.0]


@pytest.mark.parametrize('compiled', [False, True])
@pytest.mark.parametrize(('task', 'small'), BOTH_TASKS)
def test_compile_ema_and_checkpoint(task, small, compiled):
    images, target = small.images(BATCH), LABELS if task is HNCTask else LABEL_SETS
    reference = train(make(task, small=small), images, target)
    task = make(task, small=small)
    before = copy.deepcopy(task.trainable_module.model.state_dict())
    if compiled:
        task.compile(backend='eager', fullgraph=True)
    task.setup_ema(decay=0.75)
    train(task, images, target)
    task.update_ema()
    state, ema = task.get_checkpoint_state(), task.get_checkpoint_state(ema=True)
    trained, averaged = state['state_dict'], ema['state_dict_ema']
    plain = timm.create_model(small.name, num_classes=NUM_CLASSES, **small.kwargs)
    assert list(trained) == list(averaged) == list(plain.state_dict())
    for name, tensor in reference.trainable_module.model.state_dict().items():
        torch.testing.assert_close(trained[name], tensor)
        if tensor.is_floating_point():
            torch.testing.assert_close(averaged[name], 0.75 * before[name] + 0.25 * trained[name], rtol=1e-4, atol=1e-6)
    for weights, model in ((trained, task.get_eval_model()), (averaged, task.get_eval_model(ema=True))):
        plain.load_state_dict(weights, strict=True)
        torch.testing.assert_close(model.eval()(images), plain.eval()(images))
    assert not torch.allclose(task.get_eval_model(ema=True)(images), task.get_eval_model()(images))


@pytest.mark.parametrize(('task', 'small'), BOTH_TASKS)
def test_what_a_compiled_task_trains_and_evaluates_is_compiled(task, small):
    calls = []

    def counting(graph, inputs):
        return lambda *inputs: calls.append(torch.is_grad_enabled()) or graph(*inputs)

    images, target = small.images(BATCH), LABELS if task is HNCTask else LABEL_SETS
    task = make(task, small=small)
    names = list(task.state_dict())
    assert task.compile_ema() is None
    assert task.compile(backend=counting) is task.get_eval_model()
    assert list(task.state_dict()) == names
    task.setup_ema(decay=0.5)
    assert task.compile_ema(backend=counting) is task.get_eval_model(ema=True)
    task(images, target)['loss'].backward()
    task.eval()
    with torch.inference_mode():
        task.get_eval_model()(images)
        task.get_eval_model(ema=True)(images)
    assert calls == [True, False, False]
    plain = list(small.make().state_dict())
    assert list(task.get_checkpoint_state()['state_dict']) == plain
    assert list(task.get_checkpoint_state(ema=True)['state_dict_ema']) == plain


def test_checkpoint_of_a_compiled_task_loads_into_another(images):
    first = train(make(small=COMPILED), images, LABELS)
    first.setup_ema(decay=0.5)
    second = make(small=COMPILED)
    second.compile(backend='eager')
    second.setup_ema(decay=0.5)
    second.load_checkpoint_state(first.get_checkpoint_state()['state_dict'])
    second.load_checkpoint_state(first.get_checkpoint_state(ema=True)['state_dict_ema'], ema=True)
    first.eval(), second.eval()
    torch.testing.assert_close(second(images, LABELS)['loss'], first(images, LABELS)['loss'])
    torch.testing.assert_close(second.get_eval_model(ema=True)(images), first.get_eval_model(ema=True)(images))
    ema = second.compile_ema(backend='eager')
    torch.testing.assert_close(ema(images), first.get_eval_model(ema=True)(images))
    assert list(second.get_checkpoint_state(ema=True)['state_dict_ema']) == list(COMPILED.make().state_dict())


def test_eval_model_is_the_plain_model(images):
    task = make()
    model = task.trainable_module.model
    assert task.get_eval_model() is model
    assert task.get_eval_model(module=task.trainable_module) is model
    assert task.get_eval_model(ema=True) is None
    assert task.get_trainable_module() is task.trainable_module


def test_no_tensor_stands_under_two_names(tmp_path):
    task = make(HNCMultiLabelTask)
    task.setup_ema()
    storages = [tensor.untyped_storage().data_ptr() for tensor in task.state_dict().values()]
    assert len(set(storages)) == len(storages)
    safetensors.torch.save_file(task.get_checkpoint_state()['state_dict'], tmp_path / 'model.safetensors')
    for state in (task.get_checkpoint_state()['state_dict'], task.get_checkpoint_state(ema=True)['state_dict_ema']):
        assert not [name for name in state if name.startswith(('model.', 'module.', '_orig_mod.'))]


def test_evaluators(images):
    evaluator = make().create_evaluator()
    assert type(evaluator) is ClassificationEvaluator
    model = SMALL.make()
    evaluator.update(make().get_eval_model()(images), LABELS)
    assert evaluator.summary()['top1'] == 100 * (model(images).argmax(1) == LABELS).float().mean()
    several = make(HNCMultiLabelTask, threshold=0.3).create_evaluator()
    assert type(several) is MultiLabelClassificationEvaluator
    assert several.threshold == 0.3


def test_distributed_wrapper(images):
    """One process: the wrapped task computes the same and saves plain names."""
    torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        task = make().prepare_distributed()
        task.setup_ema(decay=0.5)
        with task.no_sync():
            task(images, LABELS)['loss'].backward()
        task.zero_grad()
        train(task, images, LABELS)
        task.update_ema()
        expected = train(make(), images, LABELS).get_checkpoint_state()['state_dict']
        assert_equal_states(dict(expected), dict(task.get_checkpoint_state()['state_dict']))
        assert list(task.get_checkpoint_state(ema=True)['state_dict_ema']) == list(expected)
        options = {'soft_targets': True, 'smoothing': 0.1}
        assert make(criterion_kwargs=options).prepare_distributed().target_floor == pytest.approx(0.1 / NUM_CLASSES)
        with pytest.raises(ValueError, match=r'wrapped whole: DistributedDataParallel\(task\)'):
            make(distil=lambda student, criterion: task).prepare_distributed()
        with pytest.raises(ValueError, match='a task with a criterion that learns is wrapped whole'):
            make(criterion=CenterLoss(NUM_CLASSES, SMALL.make().num_features)).prepare_distributed()
    finally:
        torch.distributed.destroy_process_group()
