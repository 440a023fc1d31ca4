"""Flip a byte, or cut the end, of every file of a checkpoint, and see whether going on from it is refused."""

import random
import subprocess
from pathlib import Path

from faults.kills import command, start
from timm_hnc.errors import DataError
from timm_hnc.files.manifest import check_manifest


def flip(content: bytes, at: int, bit: int) -> bytes:
    """The same with one bit changed."""
    return content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :]


def corrupt(work: Path, flips: int, seed: int, extra: list[str]) -> bool:
    """Damage every file of a checkpoint, one at a time, `flips` bits of each and its end; whether all was seen."""
    rng, log = random.Random(seed), work / 'log.txt'
    short = [*extra, '--epochs', '1']
    if start(command(work, 'damaged', short), log).wait():
        raise DataError(f'the run failed: {log.read_text()[-2000:]}')
    checkpoint = (work / 'damaged' / 'last').resolve()
    good = True
    print('| file | bytes | flipped bits seen | end cut off, seen | train.py names it |\n|---|--:|--:|--:|---|')
    for path in sorted(path for path in checkpoint.rglob('*') if path.is_file()):
        content, name = path.read_bytes(), path.relative_to(checkpoint).as_posix()
        damages = [flip(content, rng.randrange(len(content)), rng.randrange(8)) for _ in range(flips)]
        cuts = [content[: rng.randrange(len(content))] for _ in range(20)]
        seen = [sum(_is_seen(checkpoint, path, each) for each in kind) for kind in (damages, cuts)]
        path.write_bytes(damages[0])
        argv = [*command(work, 'damaged', short)[:-1], str(checkpoint)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        last = done.stderr.strip().splitlines()[-1]
        named = done.returncode == 1 and name in last and 'Traceback' not in done.stderr
        path.write_bytes(content)
        print(
            f'| {name} | {len(content):,} | {seen[0]} of {flips} | {seen[1]} of 20 | {"yes" if named else last} |',
            flush=True,
        )
        good &= seen == [flips, 20] and named
    check_manifest(checkpoint)
    return good


def _is_seen(checkpoint: Path, path: Path, content: bytes) -> bool:
    path.write_bytes(content)
    try:
        check_manifest(checkpoint)
    except DataError as error:
        return path.name in str(error)
    return False
