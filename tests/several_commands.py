"""Several command lines one after the other in the same processes, for tests that run torchrun.

python several_commands.py '[["train", "--model", ...], ["validate", ...]]'
"""

import json
import sys

from running import forget_run, kept_process_group

import timm_hnc.commands.train
import timm_hnc.commands.validate

MAIN = {'train': timm_hnc.commands.train.main, 'validate': timm_hnc.commands.validate.main}

if __name__ == '__main__':
    with kept_process_group():
        for command, *argv in json.loads(sys.argv[1]):
            forget_run()
            MAIN[command](argv)
