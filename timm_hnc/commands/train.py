"""timm-hnc train, and train.py: a training run."""

import json
import logging
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from timm.models import safe_model_name

from timm_hnc.checkpoints.checkpoints import CheckpointFolder, Progress, find_checkpoint, read_progress, run_folder_of
from timm_hnc.checkpoints.run_lock import run_lock
from timm_hnc.commands.command_line import command_words, run_command
from timm_hnc.commands.options.train_options import parse_train_options
from timm_hnc.data.loading.loader_errors import watched_workers
from timm_hnc.errors import DataError, UsageError
from timm_hnc.evaluation.precision import end_training
from timm_hnc.files.run_parts import write_parts
from timm_hnc.files.tables import without_nan
from timm_hnc.options import flattened
from timm_hnc.report.run_files import read_result
from timm_hnc.training.fit import fit
from timm_hnc.training.outputs.changed_options import begin_part, parts_of
from timm_hnc.training.outputs.publishing import Publisher, check_publishing
from timm_hnc.training.outputs.results import start_trackers, write_args
from timm_hnc.training.outputs.state import restore, start_schedule
from timm_hnc.training.setup.build import Run, build_run
from timm_hnc.training.setup.environment import create_accelerator
from timm_hnc.training.setup.models import check_model_name
from timm_hnc.training.setup.options import TrainOptions, agreed_options, check_class_maps
from timm_hnc.training.signals import RunStopped

_logger = logging.getLogger(__name__)


@watched_workers()
def main(argv: Sequence[str] | None = None) -> int:
    """Train as the command line says.

    Args:
        argv: the command line, sys.argv[1:] if None.

    Returns:
        The exit code: 0, or 130 after Ctrl-C, when the run was saved.

    Raises:
        UsageError: options are wrong.
        DataError: data, weights or folders cannot be used, or the loss is not finite.
    """
    options, explicit = parse_train_options(argv)
    options.data.check_named()
    check_model_name(options.model.model)
    check_publishing(options.hub)
    if options.needs_class_maps or (options.run.cam_images and 'cam_images' in explicit):
        check_class_maps(options)
    options = agreed_options(options, explicit)
    accelerator = create_accelerator(options.device, options.processes, options.tracking)
    folder = _run_folder(options)
    [folder] = broadcast_object_list([folder])
    with run_lock(folder, accelerator):
        checkpoint = _checkpoint(options.run.resume, folder)
        accelerator.wait_for_everyone()
        return _train(options, accelerator, folder, checkpoint)


def _train(options: TrainOptions, accelerator: Accelerator, folder: Path, checkpoint: Path | None) -> int:
    """Build the run, restore it, and train it to its end; the exit code."""
    name = options.model.model
    progress = read_progress(checkpoint, name) if checkpoint else Progress(name)
    progress.parts = parts_of(checkpoint, progress) if checkpoint else []
    decreasing = options.run.eval_metric == 'loss' or not options.splits.val_split
    run = build_run(options, accelerator, CheckpointFolder(folder, options.run.checkpoint_hist, decreasing, progress))
    if checkpoint:
        restore(run, checkpoint)
    start_schedule(run)
    publisher = Publisher(options.hub, folder)
    [complete] = broadcast_object_list([checkpoint is not None and _is_complete(run, checkpoint)])
    if complete:
        _say_complete(run, publisher)
        return 0
    begin_part(run, checkpoint)
    if accelerator.is_main_process:
        _write_options(run)
    accelerator.wait_for_everyone()
    start_trackers(accelerator, folder, options.tracking, flattened(run.options))
    with run.stop:
        try:
            result = fit(run, publisher)
        except RunStopped as stopped:
            _say_how_to_go_on(accelerator, folder, stopped)
            return stopped.exit_code
    end_training(accelerator)
    if accelerator.is_main_process:
        publisher.publish('Add model')
        _say_result(folder, result)
    return 0


def _say_complete(run: Run, publisher: Publisher) -> None:
    if run.accelerator.is_main_process:
        epochs = f'{run.num_epochs} of {run.num_epochs} epochs'
        _logger.info(f"Run '{run.folder}' is complete, {epochs}: its files stay as they are.")
        publisher.publish('Add model')
        _say_result(run.folder, read_result(run.folder))


def _say_result(folder: Path, result: dict[str, Any]) -> None:
    # timm's scripts print their results this way, for sweeps that read them
    sys.stdout.write(f'--result\n{json.dumps(without_nan(result), indent=4)}\n')
    _logger.info(f'Run folder: {folder}')
    for title, path in (('CAM pictures', folder / 'cams'), ('Report', folder / 'report.html')):
        if path.exists():
            _logger.info(f'{title}: {path}')


def _say_how_to_go_on(accelerator: Accelerator, folder: Path, stopped: RunStopped) -> None:
    end_training(accelerator)
    if accelerator.is_main_process:
        again = shlex.join([*command_words('train.py'), '-c', str(folder / 'args.yaml'), '--resume', str(folder)])
        _logger.info(f'{stopped} It is saved; to go on: {again}')


def _run_folder(options: TrainOptions) -> Path:
    """The run folder, of which nothing is read yet but where it lies.

    Without --experiment a resumed run goes on in its own folder; with it, in the folder that it names.

    Raises:
        DataError: --resume names nothing that a run could go on from.
    """
    run = options.run
    own = Path(run.output or 'output/train') / (run.experiment or _default_name(options.model.model))
    if run.resume in ('', 'auto'):
        return own
    path = Path(run.resume)
    if (path / 'state.json').is_file():
        path = run_folder_of(path.resolve())
    elif not any((path / 'checkpoints').glob('*/')):
        raise _no_checkpoint(run.resume)
    return own if run.experiment else path


def _checkpoint(resume: str, folder: Path) -> Path | None:
    """The checkpoint to go on from, if there is one.

    Raises:
        UsageError: there is a run in the folder, and it is not to go on.
        DataError: no checkpoint is whole.
    """
    checkpoint = find_checkpoint(folder if resume == 'auto' else Path(resume)) if resume else None
    if checkpoint is None and resume not in ('', 'auto'):
        raise _no_checkpoint(resume)
    going_on = checkpoint is not None and run_folder_of(checkpoint) == folder.resolve()
    if (folder / 'args.yaml').exists() and not going_on and resume != 'auto':
        raise UsageError(
            f"run folder '{folder}' exists already: go on with --resume auto, or choose another --experiment."
        )
    return checkpoint


def _no_checkpoint(resume: str) -> DataError:
    return DataError(
        f"--resume '{resume}' is no run folder and no checkpoint of one; to start from a weights file use "
        '--initial-checkpoint.'
    )


def _default_name(model: str) -> str:
    return '-'.join([datetime.now().strftime('%Y%m%d-%H%M%S'), safe_model_name(model)])


def _is_complete(run: Run, checkpoint: Path) -> bool:
    """Whether the newest checkpoint is the run's last, and what follows it was written."""
    newest = checkpoint == (run.folder / 'last').resolve()
    return newest and run.start_epoch >= run.num_epochs and (run.folder / 'result.json').is_file()


def _write_options(run: Run) -> None:
    try:
        write_args(run.folder, flattened(run.options))
        write_parts(run.folder, run.checkpoints.progress.parts)
    except OSError as error:
        raise DataError(f"run folder '{run.folder}' cannot be written: {error}. See --output.") from error


if __name__ == '__main__':  # accelerate launch -m
    sys.exit(run_command(main))
