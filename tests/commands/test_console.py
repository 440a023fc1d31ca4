"""timm-hnc COMMAND, and what it shares with train.py and validate.py."""

import re
import sys
from pathlib import Path

import pytest
from running import run_script

from timm_hnc.commands import console
from timm_hnc.commands.command_line import command_words, run_command
from timm_hnc.version import __version__


@pytest.mark.parametrize('name', console.COMMANDS)
def test_every_command_has_its_help(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['/usr/bin/timm-hnc', name, '--help'])
    with pytest.raises(SystemExit, match='0'):
        console.main()
    assert capsys.readouterr().out.startswith(f'usage: timm-hnc {name} ')


@pytest.mark.parametrize('argv', [[], ['-h'], ['--help']])
def test_without_a_command_it_lists_them(argv, capsys):
    assert console.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(console.COMMANDS)


def test_version(capsys):
    assert console.main(['--version']) == 0
    assert capsys.readouterr().out == f'timm_hnc {__version__}\n'


def test_a_word_that_is_no_command(capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['timm-hnc', 'trian'])
    assert run_command(console.main) == 2
    names = ', '.join(console.COMMANDS)
    assert capsys.readouterr().err == f"timm-hnc trian: error: 'trian' is no command: expected one of {names}.\n"


@pytest.mark.parametrize(
    ('argv', 'words'),
    [
        (['/somewhere/train.py', '--epochs', '1'], ['train.py']),
        (['/usr/bin/timm-hnc', 'train', '--epochs', '1'], ['timm-hnc', 'train']),
        (['/somewhere/timm_hnc/__main__.py', 'train'], ['python', '-m', 'timm_hnc', 'train']),
    ],
)
def test_words_that_run_the_command_again(argv, words, monkeypatch):
    monkeypatch.setattr(sys, 'argv', argv)
    assert command_words('train.py') == words


@pytest.mark.parametrize('words', [['timm_hnc', 'train'], ['timm_hnc.commands.train'], ['timm_hnc.commands.validate']])
def test_modules_are_commands_for_a_launcher(words, tmp_path):
    done = run_script('-m', *words, '--batch-size', '0', cwd=tmp_path)
    assert done.returncode == 2
    assert 'error: --batch-size 0: expected 1 or more.' in done.stderr


def test_every_module_with_a_main_is_a_command():
    folder = Path(console.__file__).parent
    modules = {
        path.stem for path in folder.glob('*.py') if re.search('^(def main\\b|main = )', path.read_text(), re.MULTILINE)
    }
    assert modules - {'console'} == {module for module, _ in console.COMMANDS.values()}
