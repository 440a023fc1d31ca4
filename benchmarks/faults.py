#!/usr/bin/env python3
"""What becomes of runs that are killed, of damaged checkpoints and images, and of wrong command lines.

    python benchmarks/faults.py --kills 50      SIGKILL at random moments, resume, compare with an undisturbed run
    python benchmarks/faults.py --together 5    start a run three times at once, kill it, start it three times again
    python benchmarks/faults.py --corrupt       a bit flipped, or the end cut off, in every file of a checkpoint
    python benchmarks/faults.py --lines 500     command lines and YAML files at random
    python benchmarks/faults.py --images 500    damaged images
    python benchmarks/faults.py --costs         what a checkpoint and the order of the data cost

The exit code is 0 where every kill ended equal, one run at a time held a folder, every damage was seen, and everything
else ended well or in one line.
"""

import argparse
import shlex
import signal
import sys
import tempfile
from pathlib import Path

from arguments import at_least
from faults.corruption import corrupt
from faults.costs import saving, seeding
from faults.images import fuzz_images
from faults.kills import kill_and_resume
from faults.lines import fuzz_lines
from faults.together import STARTED, start_together

from timm_hnc.commands.command_line import run_command


def main(argv: list[str] | None = None) -> int:
    count = {'type': at_least(0), 'default': 0, 'metavar': 'N'}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', **count, help='kill runs at least so often')
    parser.add_argument('--together', **count, help='rounds of a run started several times')
    parser.add_argument('--corrupt', action='store_true', help='damage the files of a checkpoint')
    parser.add_argument('--flips', type=at_least(0), default=200, metavar='N', help='bits a file that --corrupt flips')
    parser.add_argument('--lines', **count, help='command lines and YAML files at random')
    parser.add_argument('--images', **count, help='damaged images')
    parser.add_argument('--costs', action='store_true', help='time checkpoints and loaders')
    parser.add_argument('--seed', type=int, default=0, metavar='N', help='of all that is random')
    parser.add_argument('--options', type=shlex.split, default=[], metavar='"..."', help='more for the runs')
    args = parser.parse_args(argv)
    if not any((args.kills, args.together, args.corrupt, args.lines, args.images, args.costs)):
        parser.error('nothing to do: say what, such as --kills 50.')
    good = True
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if args.kills:
            count = kill_and_resume(work, args.kills, args.seed, args.options)
            print(
                f'{count.kills} kills, {count.resumes} resumes, {count.lost} updates made twice, '
                f'{count.equal} of {count.rounds} runs equal to the undisturbed one'
            )
            good &= count.equal == count.rounds
        if args.together:
            found = start_together(work, args.together, args.seed, args.options)
            print(
                f'{found.rounds} folders, {found.starts} starts of {STARTED} at once: {found.refused} refused with the '
                f"holder's name; {found.resumed} of {found.kills} resumed right after SIGKILL, loading workers frozen; "
                f'{found.equal} of {found.rounds} runs equal to the undisturbed one'
            )
            good &= found.good
        if args.costs:
            saving()
            seeding()
        if args.corrupt:
            good &= corrupt(work, args.flips, args.seed, args.options)
        if args.lines:
            good &= fuzz_lines(work, args.lines, args.seed)
        if args.images:
            good &= fuzz_images(work, args.images, args.seed)
    return 0 if good else 1


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run_command(main))
