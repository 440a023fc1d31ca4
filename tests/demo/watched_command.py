"""python watched_command.py COMMAND ...: timm-hnc, which says on stderr of every address that it connects to."""

import sys

from timm_hnc.commands.console import console


def tell(event: str, arguments: tuple) -> None:
    if event == 'socket.connect':
        print('connects to', arguments[1], file=sys.stderr, flush=True)


sys.addaudithook(tell)
sys.exit(console())
