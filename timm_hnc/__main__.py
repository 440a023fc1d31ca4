"""What python -m timm_hnc runs: the same as timm-hnc."""

import sys

from timm_hnc.commands.console import console

if __name__ == '__main__':
    sys.exit(console())
