"""Command lines of the scripts that would measure nothing, or something else than was asked, end in a line."""

import pytest
from scripts import load_script

from timm_hnc.commands.command_line import run_command


@pytest.mark.parametrize(
    ('script', 'argv', 'message'),
    [
        ('evidence', 'run voc-short --data-dir x --out x --jobs 0', 'argument --jobs: 0: expected 1 or more'),
        ('guidance', '--out x --seeds many', "argument --seeds: invalid whole number value: 'many'"),
        ('faults', '', 'nothing to do: say what, such as --kills 50.'),
        ('faults', '--kills -3', 'argument --kills: -3: expected 0 or more'),
        ('step_cost', '--dtype bfloat16', '--dtype: needs --model; a preset has its own.'),
        ('step_cost', '--model resnet1800', "--model 'resnet1800' is no model of timm's."),
        ('maps', '--measure cam-boxes', '--measure: needs --command.'),
        ('coverage', '--names nosuch', "--names 'nosuch': timm has no such model."),
        ('export', '--names nosuch', "--names 'nosuch': coverage.csv has no such model of 30 million or less."),
        ('any_model', '--names squeezenet1_1', '--names: needs --out, the results hold all of a library.'),
        ('any_model', '--names nosuch --out x', '--names nosuch: torchvision has none of these.'),
    ],
)
def test_wrong_command_lines(script, argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = run_command(load_script(script).main, argv.split())
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
