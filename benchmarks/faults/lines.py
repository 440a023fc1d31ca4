"""Command lines and YAML files that nobody meant: every one ends in success or in one clear line."""

import argparse
import random
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import yaml

from faults.isolated import isolated
from timm_hnc.commands.command_line import run_command
from timm_hnc.commands.options.train_flags import build_parser as train_parser
from timm_hnc.commands.options.validate_options import build_parser as validate_parser
from timm_hnc.commands.train import main as train
from timm_hnc.commands.validate import main as validate
from timm_hnc.errors import DataError

# runs that would be long, would speak to a network or would write elsewhere are not what is looked for
_LEFT_ALONE = {'help', 'config', 'output', 'experiment', 'log_wandb', 'wandb_project', 'push_to_hub', 'torchcompile'}
_LEFT_ALONE |= {'hub_every', 'results_file', 'dataset_download', 'torchscript', 'aot_autograd', 'torchcompile_mode'}
_LEFT_ALONE |= {'fuser', 'epochs', 'cooldown_epochs', 'epoch_repeats'}
_LEFT_ALONE |= {
    'holdout',
    'train_batches_per_epoch',
    'checkpoint',
    'device',
    'workers',
    'worker_timeout',
    'aug_repeats',
}
_WORDS = ['', '0', '-1', '1', '2', '3', '0.5', '1e9', '-0.1', 'nan', 'inf', 'x', 'true', 'None', '[]', '{}', 'a=b', '=']
_WORDS += ['ä', '../..', '/dev/null', '8/255', '1/0', ' ', '\t', '9' * 30, "'", '%s', '{0}', 'a,b', '1 2']
_YAML = ['\t', '{', '"', ':', '\0', '- ', '&a', '*a', '!!python/object:os.system']
_SMALL = ['--model', 'test_resnet', '--model-kwargs', 'output_stride=8', '--num-classes', '10', '--img-size', '32']
_SMALL += ['--dataset', 'hnc/digits', '--workers', '0', '--device', 'cpu', '-b', '64', '--epochs', '1', '--no-report']
_SMALL += ['--holdout', '0.9', '--cam-images', '0']
_VALIDATE = ['--workers', '0', '--device', 'cpu', '--num-samples', '64', '-b', '64']


def fuzz_lines(work: Path, count: int, seed: int) -> bool:
    """Start train.py and validate.py with options at random; whether every one ended well or in one line."""
    base = [*_SMALL, '--output', str(work), '--experiment', 'base']
    end = isolated(lambda: _run(train, base), work / 'log.txt', seconds=300)
    if end.kind != 'success':
        raise DataError(f'the run to validate failed: {end.text}')
    found: Counter[str] = Counter()
    for number in range(count):
        rng = random.Random(f'{seed} {number}')
        name = rng.choice(['train', 'train', 'validate'])
        argv = _argv(rng, name, work, number)
        main = train if name == 'train' else validate
        end = isolated(lambda main=main, argv=argv: _run(main, argv), work / 'log.txt', seconds=120)
        found[end.kind] += 1
        if not end.good:
            print(f'{end.kind}: {name}.py {argv}\n{end.text}\n', flush=True)
    print(f'{count} command lines and YAML files: {dict(found)}', flush=True)
    return set(found) <= {'success', 'one line'}


def _run(main: Any, argv: list[str]) -> int:
    torch.set_num_threads(1)  # of the fork; its parent's threads are not there
    return run_command(main, argv)


def _argv(rng: random.Random, name: str, work: Path, number: int) -> list[str]:
    parser = train_parser() if name == 'train' else validate_parser()
    actions = [each for each in parser._actions if each.option_strings and each.dest not in _LEFT_ALONE]
    chosen = rng.sample(actions, rng.choice([1, 1, 2, 3]))
    argv = list(_SMALL) if name == 'train' else [*_VALIDATE, '--checkpoint', str(work / 'base')]
    if name == 'train':
        argv += ['--output', str(work / 'runs'), '--experiment', str(number)]
    if rng.random() < 0.35 and name == 'train':
        path = work / 'config.yaml'
        path.write_text(_config(rng, chosen))
        return ['-c', str(path), *argv]
    for action in chosen:
        argv += [action.option_strings[-1], *_values(rng, action)]
    return argv if rng.random() < 0.95 else [*argv, rng.choice(['--', '--nothing', '-', '--hnc-', 'word'])]


def _values(rng: random.Random, action: argparse.Action) -> list[str]:
    if action.nargs == 0:
        return []
    many = rng.choice([0, 1, 2, 3]) if action.nargs in ('*', '+') else 1
    return [_value(rng, action) for _ in range(many)]


def _value(rng: random.Random, action: argparse.Action) -> str:
    if action.choices and rng.random() < 0.5:
        return str(rng.choice(list(action.choices)))
    if action.type in (int, float) and rng.random() < 0.5:
        return str(rng.choice([0, 1, 2, 5, 0.1, 0.9, -3, 17, 1e-3, 100]))
    return rng.choice(_WORDS)


def _config(rng: random.Random, chosen: list[argparse.Action]) -> str:
    values: dict[Any, Any] = {}
    for action in chosen:
        kinds = [_value(rng, action), 3, -1, 0.5, None, True, False, [], [1, 'a'], {'a': 1}, 10**40, '2020-01-01']
        values[action.dest] = rng.choice(kinds)
    text = yaml.safe_dump(values)
    if rng.random() < 0.2:
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(_YAML) + text[at:]
    return text
