"""Command line and launcher end in one Accelerator; two that contradict each other are an error."""

import logging
import re
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, DynamoBackend
from running import forget_run
from torch import nn

from timm_hnc.commands.options.train_options import parse_train_options
from timm_hnc.errors import UsageError
from timm_hnc.options import flattened
from timm_hnc.runtime.compilation import Compilation
from timm_hnc.runtime.device import DeviceOptions, agreed_device
from timm_hnc.runtime.process import accelerator_of
from timm_hnc.training.outputs.results import start_trackers
from timm_hnc.training.setup.environment import create_accelerator
from timm_hnc.training.setup.options import agreed_options
from timm_hnc.training.setup.output_options import TrackingOptions


@pytest.fixture(autouse=True)
def fast_bfloat16(monkeypatch):
    """As on a CPU that computes bfloat16; on others there is a warning more."""
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: 'AVX512')


def accelerator(*argv):
    options = agreed_options(*parse_train_options([*argv, '--device', 'cpu'])[:2])
    made = create_accelerator(options.device, options.processes, options.tracking)
    return made, SimpleNamespace(**flattened(options))


@pytest.mark.parametrize(
    ('launcher', 'argv', 'precision'),
    [
        (None, [], 'no'),
        ('no', [], 'no'),
        ('', [], 'no'),
        ('bf16', [], 'bf16'),
        (None, ['--amp', '--amp-dtype', 'bfloat16'], 'bf16'),
        ('no', ['--amp', '--amp-dtype', 'bfloat16'], 'bf16'),
        ('bf16', ['--amp'], 'bf16'),
        ('bf16', ['--amp', '--amp-dtype', 'bfloat16'], 'bf16'),
        ('no', ['--model-dtype', 'bfloat16'], 'no'),
        ('bf16', ['--model-dtype', ''], 'bf16'),
        ('no', ['--amp', '--amp-dtype', 'bfloat16', '--model-dtype', ''], 'bf16'),
    ],
)
def test_precision_comes_from_either(monkeypatch, caplog, launcher, argv, precision):
    if launcher is not None:
        monkeypatch.setenv('ACCELERATE_MIXED_PRECISION', launcher)
    made, args = accelerator(*argv)
    assert made.mixed_precision == precision
    assert args.amp == (precision != 'no')
    if precision != 'no':
        assert args.amp_dtype == 'bfloat16'
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ('launcher', 'argv', 'message'),
    [
        ('bf16', ['--amp', '--amp-dtype', 'float16'], '--amp-dtype float16 contradicts the launcher, which says bf16'),
        (
            'fp16',
            ['--amp', '--amp-dtype', 'bfloat16'],
            '--amp-dtype bfloat16 contradicts the launcher',
        ),
        ('bf16', ['--model-dtype', 'bfloat16'], '--model-dtype bfloat16 contradicts mixed precision'),
    ],
)
def test_precisions_that_contradict_each_other_are_refused(monkeypatch, launcher, argv, message):
    monkeypatch.setenv('ACCELERATE_MIXED_PRECISION', launcher)
    with pytest.raises(UsageError, match=message):
        accelerator(*argv)


@pytest.mark.parametrize(
    ('capability', 'launcher', 'argv', 'left_out'),
    [
        ('AVX2', 'no', ['--amp', '--amp-dtype', 'bfloat16'], 'mixed precision'),
        ('AVX2', 'bf16', [], 'mixed precision'),
        ('AVX2', 'no', ['--model-dtype', 'bfloat16'], '--model-dtype bfloat16'),
        ('AVX2', 'no', ['--model-dtype', 'float64'], None),
        ('AVX2', 'no', [], None),
        ('DEFAULT', 'bf16', [], None),  # of ARM, which may compute it
    ],
)
def test_a_cpu_without_bfloat16_says_so(monkeypatch, caplog, capability, launcher, argv, left_out):
    monkeypatch.setenv('ACCELERATE_MIXED_PRECISION', launcher)
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: capability)
    accelerator(*argv)
    found = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(found) == (left_out is not None)
    assert all(f'in float32: leave out {left_out}' in message for message in found)


@pytest.mark.parametrize('launcher', ['no', 'fp16'])
def test_half_precision_on_a_cpu_means_bfloat16_and_says_so_once(monkeypatch, caplog, launcher):
    monkeypatch.setenv('ACCELERATE_MIXED_PRECISION', launcher)
    made, args = accelerator(*(['--amp'] if launcher == 'no' else []))
    assert made.mixed_precision == 'bf16'
    assert (args.amp, args.amp_dtype) == (True, 'bfloat16')
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.getMessage() for record in warnings] == [
        'Mixed precision on a CPU means bfloat16 here: float16 has no effect there.'
    ]
    with made.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_precision_on_an_accelerator_keeps_float16(monkeypatch):
    monkeypatch.setattr('torch.accelerator.is_available', lambda *args: True)
    options = DeviceOptions(amp=True)
    assert agreed_device(options, frozenset(['amp'])).precision == 'fp16'
    monkeypatch.setenv('ACCELERATE_MIXED_PRECISION', 'bf16')
    found = agreed_device(options, frozenset(['amp']))
    assert (found.precision, found.amp_dtype) == ('bf16', 'bfloat16')


def test_what_apples_gpus_cannot_do_is_left_out_or_refused(monkeypatch, caplog):
    monkeypatch.setattr('torch.accelerator.is_available', lambda *args: True)
    monkeypatch.setattr('torch.accelerator.current_accelerator', lambda *args: torch.device('mps'))
    monkeypatch.setattr('torch.accelerator.device_count', lambda *args: 1)
    assert not agreed_device(DeviceOptions('mps', channels_last=True), frozenset()).channels_last
    assert 'No --channels-last: on mps' in caplog.text
    assert agreed_device(DeviceOptions('cpu', channels_last=True), frozenset()).channels_last
    with pytest.raises(UsageError, match='--model-dtype float64: mps has no float64'):
        agreed_device(DeviceOptions('mps', model_dtype='float64'), frozenset())


def test_what_accelerate_refuses_is_one_line():
    with pytest.raises(UsageError, match=r'^Accelerate: .*nothing'):
        accelerator_of(DeviceOptions('cpu'), log_with=['nothing'])


def test_gradient_accumulation_comes_from_either(monkeypatch):
    assert accelerator()[1].grad_accum_steps == 1
    assert accelerator('--grad-accum-steps', '4')[1].grad_accum_steps == 4
    monkeypatch.setenv('ACCELERATE_GRADIENT_ACCUMULATION_STEPS', '4')
    made, args = accelerator()
    assert args.grad_accum_steps == 4
    # our own counter does it: Accelerate must not divide the loss once more
    assert made.gradient_accumulation_steps == 1
    assert accelerator('--grad-accum-steps', '4')[1].grad_accum_steps == 4
    with pytest.raises(UsageError, match='--grad-accum-steps 2 contradicts the launcher, which says 4'):
        accelerator('--grad-accum-steps', '2')
    monkeypatch.setenv('ACCELERATE_GRADIENT_ACCUMULATION_STEPS', '1')
    assert accelerator('--grad-accum-steps', '2')[1].grad_accum_steps == 2


def compilation(*argv):
    """What Accelerate compiles (nothing), and what --torchcompile and its mode say in the end."""
    forget_run()
    made, args = accelerator(*argv)
    assert made.state.dynamo_plugin.backend == DynamoBackend.NO
    return args.torchcompile, args.torchcompile_mode, Compilation(args.torchcompile, args.torchcompile_mode).options


def options(backend, mode, dynamic=None, fullgraph=False):
    return {'backend': backend, 'mode': mode, 'dynamic': dynamic, 'fullgraph': fullgraph}


@pytest.mark.parametrize(
    ('name', 'value', 'message'),
    [
        ('MIXED_PRECISION', 'fp8', 'accelerate launch asks for the precision fp8: expected no, fp16 or bf16'),
        ('GRADIENT_ACCUMULATION_STEPS', 'auto', 'ACCELERATE_GRADIENT_ACCUMULATION_STEPS=auto: expected a whole'),
        ('GRADIENT_ACCUMULATION_STEPS', '0', 'ACCELERATE_GRADIENT_ACCUMULATION_STEPS=0: expected a whole'),
        ('USE_MEGATRON_LM', 'true', 'Accelerate: Megatron'),
    ],
)
def test_what_a_launcher_cannot_have(monkeypatch, name, value, message):
    monkeypatch.setenv(f'ACCELERATE_{name}', value)
    forget_run()
    with pytest.raises(UsageError, match=message):
        accelerator()


def test_parts_of_a_model_are_refused(monkeypatch):
    parts = SimpleNamespace(distributed_type=None, parallelism_config=SimpleNamespace(tp_size=2, cp_size=1))
    monkeypatch.setattr('timm_hnc.training.setup.environment.accelerator_of', lambda *args, **kwargs: parts)
    with pytest.raises(UsageError, match=r'accelerate launch asks for --parallelism_config_tp_size: launch train\.py'):
        accelerator()


def test_a_launcher_may_ask_for_the_cpu(monkeypatch):
    monkeypatch.setattr('torch.accelerator.is_available', lambda *args: True)
    assert not DeviceOptions().on_cpu
    monkeypatch.setenv('ACCELERATE_USE_CPU', 'true')
    assert DeviceOptions().on_cpu


def test_compilation_comes_from_either(monkeypatch):
    assert compilation() == (None, None, None)
    expected = ('eager', None, options('eager', None))
    assert compilation('--torchcompile', 'eager') == expected
    # what the launcher exports where it was asked for nothing but a backend
    monkeypatch.setenv('ACCELERATE_DYNAMO_MODE', 'default')
    for name in ('FULLGRAPH', 'DYNAMIC', 'REGIONAL_COMPILATION'):
        monkeypatch.setenv(f'ACCELERATE_DYNAMO_USE_{name}', 'False')
    for launcher in ('NO', 'no', ''):
        monkeypatch.setenv('ACCELERATE_DYNAMO_BACKEND', launcher)
        assert compilation('--torchcompile', 'eager') == expected
    for launcher in ('EAGER', 'eager'):
        monkeypatch.setenv('ACCELERATE_DYNAMO_BACKEND', launcher)
        for argv in ([], ['--torchcompile', 'eager']):
            assert compilation(*argv) == expected


def test_modes_and_wishes_of_the_launcher(monkeypatch):
    monkeypatch.setenv('ACCELERATE_DYNAMO_BACKEND', 'INDUCTOR')
    monkeypatch.setenv('ACCELERATE_DYNAMO_MODE', 'reduce-overhead')
    for argv in ([], ['--torchcompile'], ['--torchcompile-mode', 'reduce-overhead']):
        assert compilation(*argv)[:2] == ('inductor', 'reduce-overhead')
    monkeypatch.setenv('ACCELERATE_DYNAMO_BACKEND', 'NO')
    assert compilation('--torchcompile')[:2] == ('inductor', 'reduce-overhead')
    monkeypatch.setenv('ACCELERATE_DYNAMO_BACKEND', 'INDUCTOR')
    monkeypatch.setenv('ACCELERATE_DYNAMO_USE_FULLGRAPH', 'True')
    monkeypatch.setenv('ACCELERATE_DYNAMO_USE_DYNAMIC', 'True')
    assert compilation()[2] == options('inductor', 'reduce-overhead', dynamic=True, fullgraph=True)


def test_blocks_are_compiled_where_the_launcher_asks_for_regions(monkeypatch):
    monkeypatch.setenv('ACCELERATE_DYNAMO_BACKEND', 'EAGER')
    monkeypatch.setenv('ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION', 'True')
    args = accelerator()[1]
    blocks = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    model = nn.ModuleDict({'blocks': blocks, 'head': nn.Linear(2, 2)})
    compilation = Compilation(args.torchcompile)
    assert compilation(model) is model, 'a copy would not see what changes in it'
    assert all(block._compiled_call_impl for block in blocks)
    compilation.undo()
    assert not any(block._compiled_call_impl for block in blocks)


def test_compilers_that_contradict_each_other_or_that_there_are_not(monkeypatch):
    with pytest.raises(UsageError, match=r'--torchcompile nothing: expected one of .*eager.*inductor'):
        accelerator('--torchcompile', 'nothing')
    with pytest.raises(UsageError, match=r'--torchcompile-mode fast: expected one of default.*reduce-overhead'):
        accelerator('--torchcompile', '--torchcompile-mode', 'fast')
    monkeypatch.setenv('ACCELERATE_DYNAMO_BACKEND', 'INDUCTOR')
    monkeypatch.setenv('ACCELERATE_DYNAMO_MODE', 'max-autotune')
    with pytest.raises(UsageError, match='--torchcompile eager contradicts the launcher, which says inductor'):
        accelerator('--torchcompile', 'eager')
    with pytest.raises(
        UsageError, match='--torchcompile-mode reduce-overhead contradicts the launcher, which says max-autotune'
    ):
        accelerator('--torchcompile-mode', 'reduce-overhead')


def test_without_an_accelerator_it_says_that_it_trains_on_the_cpu(monkeypatch, caplog):
    monkeypatch.setattr('torch.accelerator.is_available', lambda *args: False)
    options, *_ = parse_train_options([])
    assert create_accelerator(options.device, options.processes, options.tracking).device.type == 'cpu'
    assert 'No accelerator here: training on the CPU.' in caplog.text


@pytest.fixture
def chosen(monkeypatch):
    """Chooses a device where there are so many of CUDA; the indices that were made the current one."""
    indices = []
    monkeypatch.setattr('torch.accelerator.set_device_index', indices.append)

    def choose(device, count=2):
        monkeypatch.setattr('torch.accelerator.is_available', lambda *args: count > 0)
        monkeypatch.setattr('torch.accelerator.device_count', lambda: count)
        monkeypatch.setattr('torch.accelerator.current_accelerator', lambda *args: torch.device('cuda'))
        assert agreed_device(DeviceOptions(device), frozenset(['device'])).device == device
        return indices

    return choose


@pytest.mark.parametrize('device', ['cuda', 'cpu', 'cpu:0'])
@pytest.mark.parametrize('count', [0, 2])
def test_a_device_without_an_index_is_what_accelerate_takes(chosen, device, count):
    assert chosen(device, count) == []


def test_a_device_with_an_index_is_the_current_one_before_accelerate_looks(chosen, monkeypatch):
    assert chosen('cuda:1') == [1]
    assert chosen('cuda:0') == [1, 0]
    # which is the one that Accelerate takes
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    assert PartialState(cpu=True).default_device.index is None


def test_processes_of_a_launcher_have_their_own_devices(chosen, monkeypatch, caplog):
    monkeypatch.setenv('LOCAL_RANK', '1')
    assert chosen('cuda') == []
    assert not caplog.records
    assert chosen('cuda:0') == []
    assert [record.getMessage() for record in caplog.records] == [
        '--device cuda:0: the launcher gives every process a device, the index is passed over.'
    ]


@pytest.mark.parametrize(
    ('device', 'count', 'message'),
    [
        ('cuda:2', 2, '--device cuda:2: this machine has cpu, cuda:0, cuda:1.'),
        ('mps', 2, '--device mps: this machine has cpu, cuda:0, cuda:1.'),
        ('meta', 1, '--device meta: this machine has cpu, cuda:0.'),
        ('cuda:0', 0, '--device cuda:0: this machine has cpu.'),
        ('xpu', 0, '--device xpu: this machine has cpu.'),
        ('cudaa:7', 2, "--device 'cudaa:7': expected a device of torch's, such as cpu, cuda or cuda:1."),
        ('', 2, "--device '': expected a device of torch's, such as cpu, cuda or cuda:1."),
    ],
)
def test_devices_that_there_are_not(chosen, device, count, message):
    with pytest.raises(UsageError, match=f'^{re.escape(message)}$'):
        chosen(device, count)
    assert chosen('cpu') == []


def test_sync_bn_on_a_cpu_is_refused():
    with pytest.raises(UsageError, match='--sync-bn: PyTorch synchronises batch statistics on accelerators only'):
        accelerator('--sync-bn')


def test_no_tracker_no_warning(recwarn):
    assert accelerator()[0].trackers == []
    assert not [warning for warning in recwarn if 'log_with' in str(warning.message)]


def test_engines_of_their_own_are_refused(monkeypatch):
    monkeypatch.setattr(Accelerator, 'distributed_type', DistributedType.DEEPSPEED)
    with pytest.raises(UsageError, match=r'asks for DEEPSPEED: launch train\.py with --multi_gpu, or with --use_fsdp'):
        accelerator()


def test_parts_that_there_cannot_be_here(monkeypatch, caplog):
    monkeypatch.setenv('ACCELERATE_USE_FSDP', 'true')
    accelerator()
    assert 'FSDP, which needs several accelerators: parameters stay whole.' in caplog.text


@pytest.mark.parametrize('name', ['no_such_module', '', '..', 'a b'])
def test_device_modules_that_cannot_be_imported(name):
    with pytest.raises(UsageError, match=rf'--device-modules {re.escape(name)}: cannot be imported \('):
        accelerator('--device-modules', name)


@pytest.mark.parametrize(('asked', 'expected'), [(None, 'of the variable'), ('asked', 'asked')])
def test_weights_and_biases_gets_all_options_and_the_project_that_is_named(asked, expected, tmp_path, monkeypatch):
    monkeypatch.setenv('WANDB_PROJECT', 'of the variable')
    given = []
    settings = SimpleNamespace(logging_dir=None)
    opened = {'log_with': ['wandb'], 'project_configuration': settings}
    tracked = SimpleNamespace(**opened, init_trackers=lambda *found: given.extend(found))
    values = {'lr': 0.1, 'opt_betas': [0.9, 0.95], 'aa': None}
    start_trackers(tracked, tmp_path / 'run', TrackingOptions(log_wandb=True, wandb_project=asked), values)
    project, scalars, of_trackers = given
    assert (project, scalars, of_trackers['wandb']['config']) == (expected, {'lr': 0.1}, values)
