"""Parameters that two processes hold in parts train as those that each holds whole."""

import json
import math
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from running import best_weights, result, run_differences, run_script, state_of_checkpoint, summary, training_state
from timm.utils import adaptive_clip_grad
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from timm_hnc import save_pretrained
from timm_hnc.errors import UsageError
from timm_hnc.training.setup.optimizer import EmaOptions, create_ema
from timm_hnc.training.sharding import (
    check_sharding,
    check_units,
    load_optimizer_state,
    load_state,
    operations_of_parts,
    prepare,
    whole_state,
)

# gloo of older ones adds gradients up where their mean is asked for
pytestmark = pytest.mark.skipif(torch.__version__ < '2.9', reason='gloo has no mean before torch 2.9')
HERE = Path(__file__).parent
COMMON = '--num-classes 3 --img-size 64 --workers 0 --device cpu -b 6 --lr 0.01 --warmup-epochs 0'
RUNS = {
    'gn': '--model test_efficientnet_gn --hnc mse --hnc-weight auto --hnc-topk 1 --grad-accum-steps 2 --clip-grad 0.5 '
    '--epochs 2 --opt adamw --opt-eps 1e-3 --layer-decay 0.7 --model-ema --model-ema-decay 0.8 --no-report '
    '--cam-images 0',
    'bn': '--model test_efficientnet --no-ddp-bb --hnc kd --hnc-weight 0.1 --hnc-topk 1 --loss center --amp '
    '--clip-grad 0.1 --clip-mode value --epochs 1 --amp-dtype bfloat16 --model-ema --no-report --cam-images 2',
    'teacher': '--model test_efficientnet_gn --hnc mse --hnc-weight 0.1 --hnc-topk 1 --kd-model-name taught '
    '--channels-last --epochs 1 --kd-distill-type feature --clip-grad 0.5 --no-report --cam-images 0',
}


def command(images, run, name, *more):
    data = ['--data-dir', str(images), '--output', '.', '--experiment', name]
    return ['train', *shlex.split(f'{COMMON} {RUNS[run]}'), *data, *more]


def in_two_processes(script, commands, cwd):
    done = run_script(script, json.dumps(commands), processes=2, cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]


def distance(left, right):
    """The largest difference of two trees' tensors, relative to a tensor's norm; all else is the same."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        return max((distance(left[name], right[name]) for name in left), default=0)
    if isinstance(left, (list, tuple)):
        return distance(dict(enumerate(left)), dict(enumerate(right)))
    if not isinstance(left, torch.Tensor):
        assert left == right or left == pytest.approx(right, rel=1e-4)
        return 0
    assert type(left) is type(right)
    assert (left.shape, left.dtype) == (right.shape, right.dtype)
    found = ((left - right).double().norm() / left.double().norm().clamp(min=1e-6)).item()
    assert math.isfinite(found)
    return found


@pytest.fixture(scope='module')
def runs(images, tmp_path_factory):
    """Every run with whole parameters and, behind `-parts`, with parts of them; one was interrupted in between."""
    folder = tmp_path_factory.mktemp('runs')
    save_pretrained(timm.create_model('test_resnet', num_classes=3), folder / 'taught')
    in_two_processes(HERE.parent / 'several_commands.py', [command(images, run, run) for run in RUNS], folder)
    parts = [command(images, run, f'{run}-parts') for run in RUNS]
    parts += [command(images, 'gn', 'again', '--stop-epoch', '1'), command(images, 'gn', 'again', '--resume', 'auto')]
    in_two_processes(HERE / 'sharded_commands.py', parts, folder)
    return folder


@pytest.mark.parametrize('run', RUNS)
def test_parts_train_as_whole_parameters(runs, run):
    whole_run, parts = runs / run, runs / f'{run}-parts'
    assert distance(*(training_state(each) for each in (whole_run, parts))) < 1e-4
    assert distance(*(best_weights(each) for each in (whole_run, parts))) < 1e-4
    for before, now in zip(*(summary(each) for each in (whole_run, parts)), strict=True):
        assert now == pytest.approx(before, rel=1e-3)
    assert result(parts)['final'] == pytest.approx(result(whole_run)['final'], rel=1e-3)
    assert [path.name for path in sorted(parts.rglob('*')) if path.is_file()] == [
        path.name for path in sorted(whole_run.rglob('*')) if path.is_file()
    ]


def test_parts_go_on_exactly_and_so_does_their_checkpoint_with_whole_parameters(runs, images):
    assert run_differences(runs / 'gn-parts', runs / 'again') == []
    on = [command(images, 'gn', 'whole-again', '--resume', str(runs / 'again' / 'checkpoints' / 'epoch-0'))]
    in_two_processes(HERE.parent / 'several_commands.py', on, runs)
    last, again = (state_of_checkpoint(runs / name / 'checkpoints' / 'epoch-1') for name in ('gn', 'whole-again'))
    assert all(distance(last[part], again[part]) < 1e-4 for part in ('training', 'weights'))


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'fsdp_version': 1}, '--fsdp_version 1: use --fsdp_version 2'),
        ({'fsdp_version': 2, 'activation_checkpointing': True}, "activation_checkpointing: use timm's --grad-check"),
        ({'fsdp_version': 2, 'cpu_offload': True}, '--fsdp_offload_params: use --fsdp_offload_params false'),
    ],
)
def test_what_the_launcher_cannot_ask_for_beside_them(settings, message):
    plugin = FullyShardedDataParallelPlugin(**settings)
    state = SimpleNamespace(fsdp_plugin=plugin)
    with pytest.raises(UsageError, match=f'^accelerate launch asks for FSDP with .*{message}'):
        check_sharding(SimpleNamespace(distributed_type=DistributedType.FSDP, state=state))


@pytest.fixture
def group():
    """Of this process alone."""
    torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.init_device_mesh('cpu', (1,))
    torch.distributed.destroy_process_group()


def sharded(mesh, **settings):
    torch.manual_seed(0)
    model = timm.create_model('test_efficientnet_gn', num_classes=3, **settings)
    return fully_shard(model, mesh=mesh)


def test_a_unit_with_the_classifier_is_refused(group):
    model = timm.create_model('test_efficientnet_gn', num_classes=3)
    fully_shard(model.blocks[0], mesh=group)
    check_units(model)
    fully_shard(model.classifier, mesh=group)
    with pytest.raises(UsageError, match=r"^accelerate launch shards 'classifier' by itself, with the classifier, of"):
        check_units(model)
    with pytest.raises(UsageError, match=r"^accelerate launch shards 'FSDPEfficientNet' by itself"):
        check_units(sharded(group))


def of_a_launcher(mesh=None, error=None):
    """An accelerator that shards a task at once, or cannot."""

    def shard(task, optimizer):
        if error is not None:
            raise error
        return fully_shard(task, mesh=mesh), optimizer

    return SimpleNamespace(distributed_type=DistributedType.FSDP, prepare=shard)


def test_any_layout_is_prepared(group):
    model = timm.create_model('test_efficientnet_gn').to(memory_format=torch.channels_last)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _, _, copied = prepare(of_a_launcher(group), torch.nn.Sequential(model), None, model)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    assert distance(weights, dict(copied.state_dict())) == 0
    assert distance(weights, whole_state(dict(model.state_dict()), keep=True)) == 0
    assert {*whole_state(dict(model.named_parameters()), keep=False).values()} == {None}


def test_what_cannot_be_prepared_is_said_in_a_line():
    task = timm.create_model('test_efficientnet_gn')
    message = '^accelerate launch asks for FSDP: Could not find the transformer layer class Blok in the model'
    error = ValueError('Could not find the transformer layer class Blok in the model.')
    with pytest.raises(UsageError, match=message):
        prepare(of_a_launcher(error=error), task, None, task)
    task.stem = torch.nn.Conv2d(3, 4, 3, dtype=torch.bfloat16)
    with pytest.raises(UsageError, match=r'^FSDP: model and losses learn bfloat16 and float32: leave out'):
        prepare(of_a_launcher(), task, None, task)


def test_what_torch_cannot_do_with_parts_is_said_with_its_flag(group):
    model = sharded(group)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    message = r'^--clip-mode agc: cannot be used with FSDP \(.*placement'
    with pytest.raises(UsageError, match=message), operations_of_parts('--clip-mode agc', in_parts=True):
        adaptive_clip_grad(model.parameters())
    for error, in_parts in ((RuntimeError('DTensor'), False), (RuntimeError('out of memory'), True)):
        with pytest.raises(RuntimeError, match=str(error)), operations_of_parts('--opt sgd', in_parts):
            raise error
    for options, message in (
        (EmaOptions(model_ema=True, model_ema_force_cpu=True), '--model-ema-force-cpu: not with FSDP'),
        (EmaOptions(model_ema=True), '--model-ema: not with FSDP and weights in bfloat16'),
    ):
        with pytest.raises(UsageError, match=f'^{message}'):
            create_ema(options, model, whole=timm.create_model('test_resnet').bfloat16())


@pytest.mark.parametrize('opt', ['lamb', 'lion', 'adafactorbv', 'lookahead_momentum'])
def test_states_of_optimizers_come_back_as_they_were(group, opt):
    """Those of the shape of their parameter in parts, others (adafactorbv) whole on every process."""
    runs = []
    for restart in (False, True):
        model = sharded(group)
        optimizer = timm.optim.create_optimizer_v2(model, opt=opt, lr=0.01)
        generator = torch.Generator().manual_seed(1)
        for step in range(3):
            if restart and step == 2:
                state = whole_state({'model': model.state_dict(), 'optimizer': optimizer.state_dict()}, keep=True)
                assert not any(isinstance(each, DTensor) for each in state['model'].values())
                model = sharded(group)
                optimizer = timm.optim.create_optimizer_v2(model, opt=opt, lr=0.01)
                load_state(model, state['model'])
                load_optimizer_state(optimizer, state['optimizer'])
            model(torch.randn(2, 3, 32, 32, generator=generator)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert isinstance(model, FSDPModule)
        runs.append(whole_state({'model': model.state_dict(), 'optimizer': optimizer.state_dict()['state']}, keep=True))
    assert distance(*runs) == 0
