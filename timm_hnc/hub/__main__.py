"""The command python -m timm_hnc.hub."""

import sys

from timm_hnc.command_line import run_command
from timm_hnc.hub.command import main

if __name__ == '__main__':
    sys.exit(run_command(main))
