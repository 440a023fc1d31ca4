"""What all tests share."""

import copy
import gc
import os
import signal
import sys
from contextlib import ExitStack

import pytest
from faulty_images import faulty_format
from forks import fork_server

__all__ = ['faulty_format']

# torch is imported below: the process that hands out the tests does without, and starts the others the sooner

# glibc reads them where a process starts: it keeps freed memory for the next tensor instead of giving it back
os.environ.setdefault('MALLOC_MMAP_THRESHOLD_', str(32 * 2**20))
os.environ.setdefault('MALLOC_TRIM_THRESHOLD_', str(2**30))
os.environ.setdefault('TORCHINDUCTOR_COMPILE_THREADS', '1')  # no processes of its own, which import torch first
# it is for a power cut, which no test makes: a killed process leaves what it wrote; a busy disk takes 10 ms
os.fsync = lambda file: None


def pytest_configure(config):
    """The process that hands out the tests starts the server, which imports while the others collect them."""
    if not hasattr(config, 'workerinput') and not config.option.collectonly:
        stack = ExitStack()
        stack.enter_context(fork_server())
        config.add_cleanup(stack.close)


@pytest.fixture
def no_timer():
    """Without the timer of pytest-timeout meanwhile."""
    timer = signal.setitimer(signal.ITIMER_REAL, 0)
    yield
    signal.setitimer(signal.ITIMER_REAL, *timer)


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Every test draws the same numbers, whichever ran before it."""
    import torch

    torch.default_generator.manual_seed(0)


# the files that take more than ten seconds, those of few long tests first
LONG = (
    *('killed_processes', 'loading', 'processes', 'export', 'page', 'train_runs', 'compilation', 'interrupted'),
    *('report', 'kinds_of_heads', 'resume', 'loss_matrix', 'map_boxes', 'tasks', 'selected', 'validate_runs'),
    *('distillation', 'naflex_runs', 'changed_options', 'cam_model', 'detached_heads', 'probe', 'space', 'bad_input'),
    'sharding',
)


TOGETHER = ('tests/hub/', 'tests/data/loading/')  # a server of each, and multiprocessing's forkserver


def pytest_collection_modifyitems(items):
    """Files that take long come first: else one of the two processes waits for the other at the end."""
    places = {f'test_{name}.py': place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A process takes a whole file, so that what a file shares is made once; of some folders, all files."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition('::')[0]
            return next((folder for folder in TOGETHER if file.startswith(folder)), file)

    return ByFile(config, log)


def _made_once(build):
    """A parser takes 10 ms to make, and tests parse 2,000 times: its name follows from argv, its defaults are fresh."""
    made = {}

    def parser():
        key = tuple(sys.argv[:2])
        if key not in made:
            new = build()
            made[key] = new, [(each, each.default) for each in new._actions if isinstance(each.default, (list, dict))]
        found, defaults = made[key]
        for action, default in defaults:
            action.default = copy.deepcopy(default)
        return found

    return parser


def pytest_collection_finish():
    """What is there before the first test stays: the garbage collector need not look at it, nor a fork copy it.

    Models are made of circles of small objects, and looking at them less often saves time.
    """
    import torch

    torch.set_num_threads(1)  # the suite runs in two processes, on models that gain nothing from a second thread
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    from timm_hnc.commands.options import train_options, validate_options

    for module in (train_options, validate_options):
        module.build_parser = _made_once(module.build_parser)
