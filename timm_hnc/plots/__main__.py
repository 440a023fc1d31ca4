"""What `python -m timm_hnc.plots` runs."""

import sys

from timm_hnc.commands.command_line import run_command
from timm_hnc.commands.plots import main

if __name__ == '__main__':
    sys.exit(run_command(main))
