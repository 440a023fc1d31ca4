#!/usr/bin/env python3
"""Train a timm model, with the HNC loss if --hnc asks for it."""

import sys

from timm_hnc.commands.command_line import run_command
from timm_hnc.commands.train import main

if __name__ == '__main__':
    sys.exit(run_command(main))
