#!/usr/bin/env python3
"""Evaluate a timm model, whatever it was trained with."""

import sys

from timm_hnc.commands.command_line import run_command
from timm_hnc.commands.validate import main

if __name__ == '__main__':
    sys.exit(run_command(main))
