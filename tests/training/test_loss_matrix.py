"""Every loss of timm_hnc.losses beside HNC: number formats, gradients, accumulation, processes, save and resume."""

import json
import math
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from running import (
    SMALL,
    best_weights,
    equal_tensors,
    result,
    run_script,
    summary,
    train,
    training_state,
    validate,
)
from small_models import MODELS, NUM_CLASSES

from timm_hnc import ClassMaps, HNCLoss, HNCMultiLabelTask, HNCTask
from timm_hnc.losses.base import MULTI_LABEL
from timm_hnc.losses.factory import LOSSES, create_loss

CASES = [(name, task) for name, kind in LOSSES.items() for task in kind.tasks]
each = pytest.mark.parametrize(('name', 'task'), CASES, ids=[f'{name}-{task}' for name, task in CASES])
NUM_FEATURES = 32
# a gradient that is stopped on purpose differs from that of the values: the losses' own tests look at it
DIFFERENTIABLE = {'anchor': {'gamma': 0.0}, 'attention-consistency': {'weight': 0.0}}
LABELS = torch.tensor([2, 0, 5, 2])
LABEL_SETS = torch.nn.functional.one_hot(LABELS, NUM_CLASSES) + torch.eye(NUM_CLASSES)[[3, 3, 3, 3]]


def make_loss(name, task, num_features=NUM_FEATURES, **options):
    torch.manual_seed(4)
    loss = create_loss(
        name,
        num_classes=NUM_CLASSES,
        num_features=num_features,
        class_counts=torch.tensor([90.0, 5, 30, 60, 1, 44, 20]),
        num_samples=250,
        multi_label=task == MULTI_LABEL,
        **options,
    )
    for parameter in loss.parameters():
        torch.nn.init.normal_(parameter)
    return loss


def make_task(name, task):
    model = MODELS['efficientnet'].cam_model(drop_path_rate=0.0)
    loss = make_loss(name, task, model.model.num_features)
    kind = HNCMultiLabelTask if task == MULTI_LABEL else HNCTask
    # batch norms that see half a batch have other gradients, so all stays in evaluation mode
    return kind(model, criterion=loss, hnc=HNCLoss('kd', topk=3), hnc_weight=0.1, verbose=False).eval()


def targets(task):
    return LABEL_SETS if task == MULTI_LABEL else LABELS


@each
def test_bfloat16_is_near_float32(name, task):
    trained = make_task(name, task)
    images = MODELS['efficientnet'].images(4)
    expected = trained(images, targets(task))['loss']
    with torch.autocast('cpu', torch.bfloat16):
        loss = trained(images, targets(task))['loss']
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0.01)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in trained.parameters() if p.grad is not None)


@each
def test_gradients_are_those_of_the_values(name, task):
    loss = make_loss(name, task, num_features=3, **DIFFERENTIABLE.get(name, {})).double().eval()
    generator = torch.Generator().manual_seed(5)
    images = 8 if loss.needs == 'two_views' else 4
    factors = [
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((images, 2, 3), (NUM_CLASSES, 3), (NUM_CLASSES,))
    ]

    target = targets(task)
    of_all_views = target.repeat(images // len(target), *[1] * (target.ndim - 1))

    def value(positions, weight, bias):
        maps = ClassMaps(positions, weight, bias, (1, 2))
        criterion = loss(maps.logits if loss.needs == 'logits' else maps, target)
        return criterion + 0.1 * HNCLoss('mse', topk=3)(loss.as_plain(maps), of_all_views)

    assert value(*factors).dtype == torch.float64
    assert torch.autograd.gradcheck(value, factors)


@each
def test_halves_accumulate_to_the_whole(name, task):
    trained = make_task(name, task).double()
    images, target = MODELS['efficientnet'].images(4).double(), targets(task)
    parameters = list(trained.trainable_module.parameters())
    trained(images, target)['loss'].backward()
    whole = [p.grad.clone() for p in parameters]
    trained.zero_grad()
    for half in (slice(0, 2), slice(2, 4)):
        (trained(images[half], target[half])['loss'] / 2).backward()
    scale = max(gradient.abs().max() for gradient in whole)
    for parameter, gradient in zip(parameters, whole, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-10 * scale)


def test_two_processes_have_the_gradients_of_one(images, multi_label, tmp_path):
    model = '--model test_efficientnet_gn --num-classes 3 --img-size 32 --workers 0 --device cpu --lr 0.01'
    rest = '--warmup-epochs 0 --grad-accum-steps 2 --hnc mse --hnc-weight 0.01 --hnc-topk 1'
    commands = []
    for name, task in CASES:
        data = multi_label if task == MULTI_LABEL else ['--data-dir', str(images)]
        commands.append([*shlex.split(f'{model} {rest} --loss {name} --task {task}'), *data])
    found = {}
    for processes, batch_size in ((0, 6), (2, 3)):
        argv = json.dumps([[*command, '-b', str(batch_size)] for command in commands])
        script = Path(__file__).parent / 'one_epoch.py'
        done = run_script(script, argv, tmp_path / f'{processes}.pt', processes=processes, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        found[processes] = torch.load(tmp_path / f'{processes}.pt', weights_only=True)
    for case, one, two in zip(CASES, found[0], found[2], strict=True):
        left, right = (torch.cat([g.flatten().double() for g in r['gradients'][0].values()]) for r in (one, two))
        assert (left - right).norm() < 1e-9 * left.norm(), case
        # centers move by the share of a class in each batch, and a batch here is a process's
        tolerance = 0.02 if case[0] == 'center' else 1e-9
        assert two['metrics']['loss'] == pytest.approx(one['metrics']['loss'], rel=tolerance), case


WITH_STATE = [case for case in CASES if make_loss(*case).state_dict()]  # the others are saved as cross-entropy is


@pytest.mark.parametrize(('name', 'task'), WITH_STATE)
def test_a_run_goes_on_where_it_was_saved(name, task, images, multi_label, tmp_path, caplog):
    data = multi_label if task == MULTI_LABEL else ['--data-dir', images]
    options = [*data, *SMALL, '--loss', name, '--task', task, '--lr', '0.02', '--epochs', '2']
    options += ['-b', '24', '--hnc', 'kd', '--output', tmp_path, '--experiment']
    whole = train(*options, 'whole')
    parts = shutil.copytree(whole, tmp_path / 'parts', symlinks=True)
    train(*options, 'parts', '--resume', parts / 'checkpoints' / 'epoch-0')
    assert "epoch-0' with epoch 1, update 0." in caplog.text
    assert (parts / 'summary.csv').read_text() == (whole / 'summary.csv').read_text()
    assert [math.isfinite(row['train_loss']) for row in summary(parts)] == [True, True]
    for part in ('model', 'loss'):
        assert equal_tensors(training_state(parts)[part], training_state(whole)[part])
    assert equal_tensors(best_weights(parts), best_weights(whole))
    assert result(parts)['final'] == result(whole)['final']


@pytest.mark.parametrize('name', [name for name, kind in LOSSES.items() if kind.export_note])
def test_the_saved_classifier_is_the_plain_one(name, images, tmp_path, capsys):
    options = ['--data-dir', images, *SMALL, '--loss', name, '--lr', '0.02', '--hnc', 'mse']
    run = train(*options, '--model-ema', '--output', tmp_path, '--experiment', 'run')
    weight, bias = (best_weights(run)[f'fc.{part}'] for part in ('weight', 'bias'))
    trained = training_state(run)['model_ema']
    if name == 'lgm':
        assert torch.equal(weight, trained['fc.weight'])
        torch.testing.assert_close(bias, -weight.square().sum(1) / 2)
    else:
        torch.testing.assert_close(weight.norm(dim=1), torch.ones(3))
        torch.testing.assert_close(weight, trained['fc.weight'] / trained['fc.weight'].norm(dim=1, keepdim=True))
        assert not bias.any()
    figures = validate(capsys, '--checkpoint', run, '--workers', '0', '--device', 'cpu', '-b', '8')
    assert figures['loss'] == pytest.approx(result(run)['final']['loss'], rel=1e-5)
