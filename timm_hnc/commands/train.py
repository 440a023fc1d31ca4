"""timm-hnc train, and train.py: a training run."""

import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from timm_hnc.commands.command_line import print_result, run_command
from timm_hnc.commands.options.train_options import parse_train_options
from timm_hnc.data.loading.worker_signals import spare_fork_server
from timm_hnc.launcher import command_words, process_count
from timm_hnc.training.run import Outcome, train_run

_logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the command line says."""
    options, explicit, others = parse_train_options(argv)
    resume = options.run.resume
    is_run = resume and (Path(resume) / 'args.yaml').is_file()
    options.data.check_named(f', or the options of a run: -c {resume}/args.yaml --resume {resume}' if is_run else '')
    if options.loader.workers:
        spare_fork_server()
    outcome = train_run(options, explicit, recorded=others)
    if outcome.is_main_process:
        _say(outcome)
    return outcome.stopped.exit_code if outcome.stopped else 0


def _say(outcome: Outcome) -> None:
    folder = outcome.folder
    if outcome.stopped is not None:
        again = shlex.join([*command_words('train.py'), '-c', str(folder / 'args.yaml'), '--resume', str(folder)])
        as_many = f', in {process_count()} processes as it was started' if process_count() > 1 else ''
        _logger.info(f'{outcome.stopped} It is saved; to go on{as_many}: {again}')
        return
    print_result(outcome.result or {})
    _logger.info(f'Run folder: {folder}')
    for title, path in (('CAM pictures', folder / 'cams'), ('Report', folder / 'report.html')):
        if path.exists():
            _logger.info(f'{title}: {path}')


if __name__ == '__main__':  # accelerate launch -m
    sys.exit(run_command(main))
