"""The command python -m timm_hnc.hub."""

import sys

from timm_hnc.commands.command_line import run_command
from timm_hnc.commands.hub import main

if __name__ == '__main__':
    sys.exit(run_command(main))
