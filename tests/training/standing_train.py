"""train.py that stands still (SIGSTOP) once a checkpoint inside an epoch is written: python standing_train.py EPOCH ...

Whoever kills it then kills it between two updates, however slow the machine is.
"""

import os
import signal
import sys

import timm_hnc.training.fit
from timm_hnc.commands.command_line import run_command
from timm_hnc.commands.train import main

if __name__ == '__main__':
    epoch, *argv = sys.argv[1:]
    save = timm_hnc.training.fit.save_run

    def save_and_stand(run, name, *args, **kwargs):
        save(run, name, *args, **kwargs)
        if name.startswith(f'recovery-{epoch}-') and name != f'recovery-{epoch}-1':
            os.kill(os.getpid(), signal.SIGSTOP)

    timm_hnc.training.fit.save_run = save_and_stand
    sys.exit(run_command(main, argv))
