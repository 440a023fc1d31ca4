"""python watched_command.py COMMAND ...: timm-hnc, which says on stderr of every address that it connects to."""

import sys

from timm_hnc.commands.console import console


def tell(event: str, arguments: tuple) -> None:
    if event in ('socket.connect', 'socket.getaddrinfo'):
        print('asks for', arguments[1] if event == 'socket.connect' else arguments[:2], file=sys.stderr, flush=True)


sys.addaudithook(tell)
sys.exit(console())
