"""The command timm-hnc, and python -m timm_hnc: a subcommand for every task."""

import sys
from collections.abc import Sequence
from importlib import import_module

from timm_hnc.commands.command_line import run_command
from timm_hnc.errors import UsageError
from timm_hnc.version import __version__

# what a user types: the module with its main(), and what it does
COMMANDS = {
    'train': ('train', 'train a timm model, with or without HNC'),
    'validate': ('validate', 'evaluate weights: accuracy, maps, attacks'),
    'push': ('push', 'publish the best weights of a run to the Hugging Face Hub'),
    'export': ('export', 'write a model with its class maps as one file (ONNX, torch.export)'),
    'demo': ('demo', 'serve a page on this machine to try a model on, or to compare two'),
    'import': ('import_', 'make a run folder of a checkpoint file'),
    'cams': ('cams', 'draw class activation maps of photographs'),
    'curves': ('curves', 'draw training curves of runs'),
    'losses': ('losses', "draw HNC's mse and kd and their gradients"),
    'report': ('report', 'write one HTML page of runs'),
}
_WIDTH = max(map(len, COMMANDS)) + 2
_USAGE = 'usage: timm-hnc COMMAND ...  (timm-hnc COMMAND --help: its options)\n\n' + ''.join(
    f'  {name:{_WIDTH}}{does}\n' for name, (_, does) in COMMANDS.items()
)


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run the command that the first word names."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ['--help']
    if name in ('-h', '--help', '--version'):
        sys.stdout.write(f'timm_hnc {__version__}\n' if name == '--version' else _USAGE)
        return 0
    if name not in COMMANDS:
        raise UsageError(f"'{name}' is no command: expected one of {', '.join(COMMANDS)}.")
    return import_module(f'timm_hnc.commands.{COMMANDS[name][0]}').main(rest)


def console() -> int:
    """What the installed timm-hnc runs; its exit code."""
    return run_command(main)
