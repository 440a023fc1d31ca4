"""What the documentation shows runs as it stands, or says in a comment in front of it why not."""

import argparse
import json
import re
import runpy
import shlex
import sys
from importlib import import_module
from pathlib import Path

import pytest
import timm
import torch
import yaml
from accelerate.commands.launch import launch_command_parser
from data_fixtures import images
from documents import BLOCKS, PAGES
from running import ROOT, clean_process
from torch.distributed.run import get_args_parser

import timm_hnc
from timm_hnc.commands.console import COMMANDS
from timm_hnc.commands.options.train_options import parse_train_options
from timm_hnc.commands.options.validate_options import parse_validate_options
from timm_hnc.losses.factory import LOSSES, MAP_LOSSES

__all__ = ['clean_process', 'images']
EXTRAS = re.findall(r'^(\w+) = \[', (ROOT / 'pyproject.toml').read_text().split('optional-dependencies]')[1], re.M)
PARSED = {'train': parse_train_options, 'validate': parse_validate_options}
# networks that take a moment, in place of those that the examples name
SMALLER = {
    "'resnet50', pretrained=True": "'test_resnet', num_classes=10",
    'vit_base_patch16_224': 'test_vit',
    'blocks.10': 'blocks.4',
    "'resnet18'": "'test_resnet'",
    'epochs=20,': "epochs=1, device='cpu', workers=0, img_size=64,",
    'eval_set, cam_metrics=True': "eval_set, device='cpu', workers=0, img_size=64, cam_metrics=True",
}
SHELL = [block for block in BLOCKS if block.language == 'sh' and not block.reason]
COMMAND_LINES = list(
    dict.fromkeys(
        (block.page, command.strip())
        for block in SHELL
        for line in block.text.replace('\\\n', ' ').splitlines()
        for command in line.split('&&')
    )
)
INLINE = [
    (path.relative_to(ROOT).as_posix(), command)
    for path in PAGES
    for command in re.findall(r'`((?:timm-hnc|python|pip install|torchrun) [^`|]*[-\[][^`|]*)`', path.read_text())
    if '...' not in command and '&&' not in command
]


class ParsedError(Exception):
    """Raised where a script has read its options."""


def check_command(words: list[str], monkeypatch) -> None:
    """Parse a command line with the parser of its command; ends the test where that refuses it."""
    match words:
        case ['pip', 'install', *wanted]:
            extras = re.findall(r'[\w.]\[([\w,]+)\]', ' '.join(wanted))
            assert extras
            assert {name for each in extras for name in each.split(',')} <= set(EXTRAS)
        case ['python', script, *argv] if script.startswith('benchmarks/'):
            check_script(ROOT / script, argv, monkeypatch)
        case ['timm-hnc', command, *argv] | ['python', '-m', 'timm_hnc', command, *argv]:
            check_subcommand(command, argv)
        case ['python', 'train.py' | 'validate.py' as script, *argv]:
            check_subcommand(script.removesuffix('.py'), argv)
        case ['accelerate', 'launch', *argv]:
            check_launched(launch_command_parser().parse_args(argv))
        case ['torchrun', *argv]:
            check_launched(get_args_parser().parse_args(argv))
        case _:
            pytest.fail(f'nothing checks this command: {shlex.join(words)}')


def check_launched(options: argparse.Namespace) -> None:
    script = options.training_script
    assert script in ('train.py', 'validate.py', 'timm_hnc.commands.train', 'timm_hnc.commands.validate')
    assert bool(options.module) == (not script.endswith('.py'))
    check_subcommand(script.removesuffix('.py').rpartition('.')[2], options.training_script_args)


def check_subcommand(command: str, argv: list[str]) -> None:
    if command in PARSED:
        PARSED[command](argv)
    else:
        import_module(f'timm_hnc.commands.{COMMANDS[command][0]}').build_parser().parse_args(argv)


def check_script(script: Path, argv: list[str], monkeypatch) -> None:
    parse_args = argparse.ArgumentParser.parse_args

    def stop(self, args=None, namespace=None):
        parse_args(self, args, namespace)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', stop)
    monkeypatch.setattr(sys, 'argv', [str(script), *argv])
    monkeypatch.syspath_prepend(script.parent)
    with pytest.raises(ParsedError):
        runpy.run_path(str(script), run_name='__main__')


def test_every_block_is_run_or_says_why_not():
    assert {block.language for block in BLOCKS if not block.reason} <= {'sh', 'python'}


@pytest.mark.parametrize(('page', 'command'), COMMAND_LINES + INLINE)
def test_commands_parse(page, command, folder, monkeypatch):
    check_command(shlex.split(command, comments=True), monkeypatch)


def world() -> dict:
    """What the examples take as given."""
    torch.manual_seed(0)
    model = timm.create_model('test_resnet', num_classes=10)
    cam_model = timm_hnc.CamModel(model)
    images = torch.rand(2, 3, 96, 96)
    return {
        'model': model,
        'cam_model': cam_model,
        'images': images,
        'maps': cam_model.class_maps(images),
        'target': torch.tensor([3, 7]),
        'criterion': torch.nn.CrossEntropyLoss(),
        'names': [f'class {number}' for number in range(10)],
        'mean': 0.5,
        'std': 0.25,
    }


def test_every_smaller_word_stands_in_a_block():
    python = '\n'.join(block.text for block in BLOCKS if block.language == 'python')
    assert all(name in python for name in SMALLER)


def run_examples(texts: list[str]) -> dict:
    names = world()
    for text in texts:
        for name, smaller in SMALLER.items():
            text = text.replace(name, smaller)
        exec(text, names)
    return names


@pytest.fixture
def folder(images, tmp_path, monkeypatch):
    """A folder with what the examples read."""
    (tmp_path / 'hparams').symlink_to(ROOT / 'hparams')
    run = tmp_path / 'output/train/cifar100-hnc'
    run.mkdir(parents=True)
    (run / 'args.yaml').write_text('model: resnet18\n')
    (tmp_path / 'flowers').symlink_to(images)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize('page', dict.fromkeys(block.page for block in BLOCKS if block.language == 'python'))
def test_python_runs_and_prints_what_is_said(page, folder, capsys):
    model = timm.create_model('test_resnet', num_classes=10)
    timm_hnc.save_pretrained(model, folder / 'output/quickstart/RUN/model_best')
    texts = [block.text for block in BLOCKS if (block.page, block.language, block.reason) == (page, 'python', '')]
    names = run_examples(texts)
    for line in capsys.readouterr().out.splitlines():
        assert f'# {line}' in '\n'.join(texts)
    if page == 'docs/your-model.md':
        assert names['cams'].shape == (2, 5, 3, 3)
        assert names['same'].shape == (2, 2, 3, 3)
        assert names['loss'].requires_grad


def test_notebook_runs(folder):
    cells = json.loads((ROOT / 'docs/notebooks/class_maps.ipynb').read_text())['cells']
    code = [cell for cell in cells if cell['cell_type'] == 'code']
    assert not any(cell['outputs'] for cell in code)
    names = run_examples([''.join(cell['source']) for cell in code])
    assert type(names['plain']) is type(names['model'].model)
    assert names['picture'].size[0] > names['picture'].size[1]


@pytest.mark.parametrize('path', PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files(path):
    for target in re.findall(r'\]\((?!\w+:)([^)#\s]+)', path.read_text()):
        assert (path.parent / target).exists(), target


def known_flags() -> set[str]:
    parsers = [launch_command_parser(), get_args_parser()]
    parsers += [import_module(f'timm_hnc.commands.options.{name}_options').build_parser() for name in PARSED]
    modules = [module for name, (module, _) in COMMANDS.items() if name not in PARSED]
    parsers += [import_module(f'timm_hnc.commands.{module}').build_parser() for module in modules]
    flags = {flag for parser in parsers for action in parser._actions for flag in action.option_strings}
    for script in (ROOT / 'benchmarks').glob('*.py'):
        flags.update(re.findall(r"'(--[\w-]+)'", script.read_text()))
    # of mkdocs, ruff, Slurm and timm's sweep.py
    elsewhere = {'--strict', '--check', '--signal', '--sweep-locks', '--sweep-attempt'}
    return flags | elsewhere | {'--result'}  # the line in front of a run's figures


def test_flags_that_are_named_exist():
    known = known_flags()
    for path in PAGES:
        named = re.findall(r'(?<![\w-])--[a-z][\w-]*', path.read_text())
        assert {flag for flag in named if not flag.endswith('-')} <= known, path  # --kd-* is a group of them


def test_every_page_loss_and_command_has_its_place():
    navigation = (ROOT / 'mkdocs.yml').read_text()
    losses = (ROOT / 'docs/losses.md').read_text()
    api = (ROOT / 'docs/api/losses.md').read_text()
    everything = '\n'.join(path.read_text() for path in PAGES)
    for path in (ROOT / 'docs').rglob('*.md'):
        assert f': {path.relative_to(ROOT / "docs").as_posix()}\n' in navigation
    for name, kind in (LOSSES | MAP_LOSSES).items():
        assert f'| `{name}` |' in losses
        assert f'::: {kind.__module__}.{kind.__name__}\n' in api
    assert all(re.search(rf'timm-hnc {name}\b', everything) for name in COMMANDS)


def test_readme_is_short():
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 150


def test_citation_has_the_version():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert citation['version'] == timm_hnc.__version__
    assert citation['references'][0]['title'] == 'Fixing Localization Errors to Improve Image Classification'


def test_coverage_table_is_that_of_the_measurements(monkeypatch, capsys):
    script = ROOT / 'benchmarks' / 'coverage.py'
    monkeypatch.setattr(sys, 'argv', [str(script), '--table'])
    monkeypatch.syspath_prepend(script.parent)
    with pytest.raises(SystemExit, match=r'^(None|0)$'):
        runpy.run_path(str(script), run_name='__main__')
    table = capsys.readouterr().out
    page = (ROOT / 'docs/architectures.md').read_text()
    shown = re.search(r'<!-- coverage: .*? -->\n(.*?)<!-- end of coverage -->', page, re.DOTALL)
    assert shown[1] == table
