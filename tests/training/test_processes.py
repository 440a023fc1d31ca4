"""Several processes train as one does."""

import json
import shlex
from pathlib import Path

import pytest
import sharded_step
import timm
import torch
from running import (
    ROOT,
    SMALL,
    WITH_REPORT,
    arguments,
    checkpoints,
    failure,
    result,
    run_differences,
    run_script,
    summary,
    train,
    validate,
)

from timm_hnc import save_pretrained
from timm_hnc.report.examples import read_examples

HERE = Path(__file__).parent
TASKS = [
    '--hnc mse --hnc-weight auto --hnc-topk 1',
    '--hnc kd --hnc-weight 0.1 --hnc-reduction mean --grad-accum-steps 2 --clip-grad 0.5 --model-ema --img-size 64',
    '--hnc mse --hnc-weight 0.1 --task multilabel --clip-grad 0.02 --clip-mode agc --map-loss separability consistency',
    '--loss ce',
    '--hnc mse --hnc-weight 0.1 --hnc-topk 1 --kd-model-name TEACHER --kd-distill-type feature --clip-grad 0.5',
    '--hnc mse --hnc-weight auto --hnc-topk 1 --torchcompile eager',  # the first one, compiled
]


def distance(left, right):
    """The difference of two state dicts, relative to the norm of all of their tensors."""
    assert left.keys() == right.keys()
    left, right = (torch.cat([tensor.flatten().double() for tensor in state.values()]) for state in (left, right))
    return ((left - right).norm() / left.norm()).item()


def test_processes_with_their_share_of_the_batch_have_the_gradients_of_one(images, multi_label, tmp_path):
    # group norms: batch norms would see half a batch
    model = '--model test_efficientnet_gn --num-classes 3 --img-size 32 --workers 0 --device cpu'
    save_pretrained(timm.create_model('test_resnet', num_classes=3), tmp_path / 'teacher')
    commands = []
    for task in TASKS:
        data = multi_label if 'multilabel' in task else ['--data-dir', str(images)]
        words = shlex.split(f'{model} --lr 0.05 --warmup-epochs 0 {task}')
        commands.append([*(str(tmp_path / 'teacher') if word == 'TEACHER' else word for word in words), *data])
    # compiling takes longest: two processes that do it have the gradients of one that does not
    found = {}
    for processes, chosen in ((1, [*commands[:-1], commands[0]]), (2, commands)):
        argv = json.dumps([[*command, '-b', str(6 // processes)] for command in chosen])
        out, group = tmp_path / f'{processes}.pt', processes if processes > 1 else 0
        done = run_script(HERE / 'one_epoch.py', argv, out, processes=group, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        found[processes] = torch.load(out, weights_only=True)
    for task, one, two in zip(TASKS, *found.values(), strict=True):
        assert (one['processes'], two['processes']) == (1, 2)
        assert len(one['gradients']) == len(two['gradients']) == (2 if 'accum' in task else 3), task
        for step, (left, right) in enumerate(zip(one['gradients'], two['gradients'], strict=True)):
            assert distance(left, right) < 1e-9, (task, step)
        assert distance(one['weights'], two['weights']) < 1e-9, task
        if 'ema' in task:
            assert distance(one['ema'], two['ema']) < 1e-9
        assert two['metrics'] == pytest.approx(one['metrics'], rel=1e-9)
        compiled = ['OptimizedModule'] if 'torchcompile' in task else []
        assert two['wrappers'] == ['DistributedDataParallel', *compiled, *one['wrappers']]


def test_a_task_whose_parameters_are_sharded_and_one_whose_graph_stays(tmp_path):
    """FSDP: one module with one forward; its state dict gathers to the weights of the plain timm model."""
    done = run_script(HERE / 'sharded_step.py', tmp_path / 'weights.pt', processes=2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    task = sharded_step.make_task()
    sharded_step.step(task, *sharded_step.batch())
    gathered, static = torch.load(tmp_path / 'weights.pt', weights_only=True)
    prefix = 'trainable_module.model.'
    weights = {name.removeprefix(prefix): tensor for name, tensor in gathered.items() if name.startswith(prefix)}
    model = timm.create_model('test_efficientnet_gn', num_classes=3)
    model.load_state_dict(weights)
    assert distance(model.state_dict(), task.trainable_module.model.state_dict()) < 1e-6
    assert distance(static, task.trainable_module.model.state_dict()) < 1e-6


def test_train_py_in_two_processes(images, tmp_path, capsys):
    options = [*WITH_REPORT, *shlex.split('-b 4 --epochs 2 --hnc mse --model-ema --workers 0 --cam-images 2')]
    output = ['--output', 'out', '--experiment', 'run']
    done = run_script(ROOT / 'train.py', '--data-dir', images, *options, *output, processes=2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / 'out' / 'run'
    figures = result(folder)
    assert done.stdout.count('--result') == 1
    assert (figures['num_processes'], figures['device']) == (2, 'cpu')
    rows = summary(folder)
    assert [row['epoch'] for row in rows] == [0, 1]
    assert checkpoints(folder) == {'epoch-0', 'epoch-1'}
    # 59 images, a batch of 4 in each of two processes: 7 updates an epoch
    assert json.loads((folder / 'last' / 'state.json').read_text())['num_updates'] == 2 * 7
    assert (folder / 'cams' / 'best.png').is_file()
    best = max(rows, key=lambda row: row['eval_top1'])
    assert figures['final'] == pytest.approx({name: best[f'eval_{name}'] for name in ('loss', 'top1', 'top5')})
    model = timm.create_model(f'local-dir:{folder / "model_best"}', pretrained=True)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    # the report's figures are those of one process; its parts are of all images
    report = folder / 'report'
    alone = validate(capsys, '--checkpoint', folder, '--cam-metrics', '--workers', 0, '--device', 'cpu')
    figures = json.loads((report / 'figures.json').read_text())
    maps = [name for name in figures if name.startswith('cam_')]
    assert len(maps) == 7
    assert {name: figures[name] for name in maps} == pytest.approx({name: alone[name] for name in maps}, rel=1e-4)
    assert sum(row['images'] for row in json.loads((report / 'confusions.json').read_text())) == 25
    kept = read_examples(report)
    assert all(len(kept[end]) == len({example.sample for example in kept[end]}) == 4 for end in kept)
    assert max(example.loss for example in kept['best']) <= min(example.loss for example in kept['worst'])
    # one process goes on with what two have done, where that is asked for
    argv = ['-c', folder / 'args.yaml', '--epochs', 3, '--output', folder.parent, '--experiment', 'run']
    code, message = failure(capsys, 'train', *argv, '--resume', 'auto')
    assert code == 1
    assert message.startswith('the run was trained by 2 process(es), now it has 1: start as many, or pass --allow-')
    train(*argv, '--resume', 'auto', '--allow-world-size-change', '--no-report', '--cam-images', 0)
    assert len(summary(folder)) == 3


def test_statistics_of_their_own_are_kept_at_the_end_of_an_epoch(images, tmp_path):
    argv = ['train', '--data-dir', str(images), *SMALL, '-b', '4', '--lr', '0.05', '--epochs', '2', '--dist-bn', '']
    argv += ['--no-ddp-bb', '--output', str(tmp_path), '--experiment']
    commands = [[*argv, 'whole'], [*argv, 'parts', '--stop-epoch', '1'], [*argv, 'parts', '--resume', 'auto']]
    done = run_script(HERE.parent / 'several_commands.py', json.dumps(commands), processes=2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert run_differences(tmp_path / 'whole', tmp_path / 'parts') == []


@pytest.mark.slow
def test_every_loss_and_task_under_torchrun(images, multi_label, tmp_path):
    commands = {}
    for task, data in (('one', ['--data-dir', str(images)]), ('several', multi_label)):
        for hnc in ('none', 'mse', 'kd'):
            options = [*SMALL, '-b', '4', '--hnc', hnc, '--output', str(tmp_path), '--experiment', f'{task}-{hnc}']
            commands[f'{task}-{hnc}'] = ['train', *data, *options]
    for name, options in {
        'accumulated': '--grad-accum-steps 3 --mixup 0.5 --clip-grad 1',
        'augmented': '--aug-splits 2 --split-bn --jsd-loss --aug-repeats 2',
        'statistics': '--dist-bn broadcast --no-ddp-bb --sched-on-updates',
        'sizes': '--train-img-sizes 24 32 --variable-batch-loss-scale sqrt',
        'compiled': '--torchcompile eager --amp',
        'lookahead': '--opt lookahead_adamw --layer-decay 0.8',
        'unranked': "--val-split ''",
    }.items():
        argv = ['--data-dir', str(images), *SMALL, '-b', '4', *shlex.split(options)]
        commands[name] = ['train', *argv, '--output', str(tmp_path), '--experiment', name]
    done = run_script(
        HERE.parent / 'several_commands.py', json.dumps(list(commands.values())), processes=2, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in commands:
        assert result(tmp_path / name)['num_processes'] == 2, name
        assert len(summary(tmp_path / name)) == 1


@pytest.mark.slow
def test_streamed_data_under_torchrun(shards, tmp_path):
    argv = ['--dataset', 'wds/x', '--data-dir', str(shards), *SMALL, '-b', '4', '--output', str(tmp_path)]
    commands = [['train', *argv, '--experiment', f'{workers}', '--workers', f'{workers}'] for workers in (0, 1)]
    done = run_script(HERE.parent / 'several_commands.py', json.dumps(commands), processes=2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for workers in ('0', '1'):
        assert result(tmp_path / workers)['num_processes'] == 2


@pytest.mark.slow
def test_resumed_under_torchrun(images, tmp_path):
    argv = ['train', '--data-dir', str(images), *SMALL, '-b', '4', '--epochs', '4', '--output', str(tmp_path)]
    argv += ['--model-ema', '--aa', 'rand-m5', '--mixup', '0.3', '--hnc', 'kd', '--workers', '1']
    commands = [
        [*argv, '--experiment', 'whole'],
        [*argv, '--experiment', 'parts', '--stop-epoch', '2'],
        [*argv, '--experiment', 'parts', '--resume', 'auto'],
    ]
    done = run_script(HERE.parent / 'several_commands.py', json.dumps(commands), processes=2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert run_differences(tmp_path / 'whole', tmp_path / 'parts') == []
    assert arguments(tmp_path / 'parts')['resume'] == 'auto'


@pytest.mark.slow
def test_errors_under_torchrun_are_told_once(images, tmp_path):
    wrong = [*SMALL, '--hnc', 'mse', '--hnc-topk', '0']
    done = run_script(ROOT / 'train.py', '--data-dir', images, *wrong, processes=2, fresh=True, cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.count('train.py: error: --hnc-topk 0: expected 1 or more.') == 1
    done = run_script(
        ROOT / 'train.py', '--data-dir', tmp_path / 'nowhere', *SMALL, processes=2, fresh=True, cwd=tmp_path
    )
    assert done.returncode != 0
    assert 'does not exist: see --data-dir.' in done.stderr
