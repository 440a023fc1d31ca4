"""What the README shows runs as it stands."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import timm
import torch

import timm_hnc
from timm_hnc.commands.options.train_options import parse_train_options

README = (Path(__file__).parents[1] / 'README.md').read_text()


def python_blocks():
    return re.findall(r'```python\n(.*?)```', README, re.DOTALL)


def train_commands():
    text = README.replace('\\\n', ' ')
    return [
        line.split('train.py', 1)[1] for line in text.splitlines() if line.startswith('    ') and 'train.py' in line
    ]


def test_hnc_in_an_existing_script():
    blocks = [block for block in python_blocks() if 'images' in block]
    assert len(blocks) == 2
    names = {
        'model': timm.create_model('test_resnet', num_classes=10),
        'images': torch.randn(2, 3, 96, 96),
        'target': torch.tensor([3, 7]),
        'criterion': torch.nn.CrossEntropyLoss(),
        'timm_hnc': timm_hnc,
    }
    for block in blocks:
        exec(block, names)
        names['loss'].backward()
    assert names['cams'].shape == (2, 5, 3, 3)
    assert names['same'].shape == (2, 2, 3, 3)


@pytest.mark.parametrize('command', train_commands())
def test_training_commands_parse(command):
    if '...' not in command:
        parse_train_options(shlex.split(command))


def test_kind_of_a_class_token_model(capsys):
    (block,) = [block for block in python_blocks() if 'print(model.kind)' in block]
    exec(block.replace('vit_base_patch16_224', 'test_vit'), {'timm_hnc': timm_hnc})
    assert capsys.readouterr().out.strip() in block


def test_coverage_table_is_that_of_the_measurements(monkeypatch, capsys):
    script = Path(__file__).parents[1] / 'benchmarks' / 'coverage.py'
    monkeypatch.setattr(sys, 'argv', [str(script), '--table'])
    runpy.run_path(str(script), run_name='__main__')
    table = capsys.readouterr().out
    shown = re.search(r'<!-- coverage: .*? -->\n(.*?)<!-- end of coverage -->', README, re.DOTALL)
    assert shown[1] == table
