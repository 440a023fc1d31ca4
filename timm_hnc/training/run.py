"""A run from its options to its end: its folder and lock, where it goes on, and what it leaves."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import chain, count
from pathlib import Path
from types import MappingProxyType
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from timm.models import safe_model_name

from timm_hnc.checkpoints.checkpoints import CheckpointFolder, Progress, find_checkpoint, read_progress, run_folder_of
from timm_hnc.checkpoints.run_lock import run_lock
from timm_hnc.data.loading.loader_errors import watched_workers
from timm_hnc.data.loading.skipped_images import counting_skipped
from timm_hnc.errors import DataError, UsageError
from timm_hnc.files.run_options import dump_yaml
from timm_hnc.files.run_parts import write_parts
from timm_hnc.files.whole import write_whole
from timm_hnc.options import flattened
from timm_hnc.report.run_files import read_result
from timm_hnc.runtime.process import end_training
from timm_hnc.training.fit import fit, load_best
from timm_hnc.training.outputs.changed_options import begin_part, rank_anew
from timm_hnc.training.outputs.publishing import Publisher, check_publishing
from timm_hnc.training.outputs.results import start_trackers
from timm_hnc.training.outputs.state import restore, start_schedule
from timm_hnc.training.setup.build import Run, build_run
from timm_hnc.training.setup.environment import create_accelerator
from timm_hnc.training.setup.model_checks import check_class_maps
from timm_hnc.training.setup.models import check_model_name
from timm_hnc.training.setup.options import TrainOptions, agreed_options
from timm_hnc.training.setup.provided import Provided
from timm_hnc.training.signals import RunStopped

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Args:
        folder: the run folder.
        is_main_process: of several, the one that speaks.
        result: what stands in result.json; None of a run that a signal stopped.
        stopped: the signal, and where the run stood.
    """

    folder: Path
    is_main_process: bool
    result: dict[str, Any] | None = None
    stopped: RunStopped | None = None


@watched_workers()
def train_run(
    options: TrainOptions,
    explicit: frozenset[str] = frozenset(),
    provided: Provided | None = None,
    recorded: Mapping[str, Any] = MappingProxyType({}),
) -> Outcome:
    """Train, from the first epoch or from where an earlier attempt stopped, and publish where that is asked for.

    Somebody chose the `explicit` ones of the options; what is `recorded` comes into args.yaml beside them.

    Raises:
        UsageError: options are wrong.
        DataError: data, weights or folders cannot be used, or the loss is not finite.
    """
    provided = provided or Provided()
    if provided.model is None:
        check_model_name(options.model.model)
    check_publishing(options.hub)
    if options.needs_class_maps or (options.run.cam_images and 'cam_images' in explicit):
        check_class_maps(options, None if provided.model is None else partial(provided.wrap, provided.model))
    options = agreed_options(options, explicit)
    accelerator = create_accelerator(options.device, options.processes, options.tracking)
    [folder] = broadcast_object_list([_run_folder(options)])
    with run_lock(folder, accelerator):
        checkpoint = _checkpoint(options.run.resume, folder)
        found = gather_object([checkpoint and checkpoint.name])
        if len(set(found)) > 1:
            raise DataError(
                f"--resume {options.run.resume}: some processes find a checkpoint of '{folder}' that others do not: "
                'machines that train together need one folder for all (--output).'
            )
        return _train(options, provided, recorded, accelerator, folder, checkpoint)


def _train(
    options: TrainOptions,
    provided: Provided,
    recorded: Mapping[str, Any],
    accelerator: Accelerator,
    folder: Path,
    checkpoint: Path | None,
) -> Outcome:
    """Build the run, and train it to its end."""
    name = options.model.model
    progress = read_progress(checkpoint, name) if checkpoint else Progress(name)
    decreasing = options.run.eval_metric == 'loss' or not options.splits.val_split
    checkpoints = CheckpointFolder(folder, options.run.checkpoint_hist, decreasing, progress)
    with counting_skipped() as skipped:
        run = build_run(options, accelerator, checkpoints, provided, skipped)
        with run.compiled:
            return _go_on(run, recorded, checkpoint, leave_group=provided.model is not None)


def _go_on(run: Run, recorded: Mapping[str, Any], checkpoint: Path | None, leave_group: bool) -> Outcome:
    """Restore the run, and train it to its end; a command ends the group of processes with it."""
    options, accelerator, folder = run.options, run.accelerator, run.folder
    is_main = accelerator.is_main_process
    if checkpoint:
        restore(run, checkpoint)
    start_schedule(run)
    publisher = Publisher(options.hub, folder)
    [complete] = broadcast_object_list([checkpoint is not None and _is_complete(run, checkpoint)])
    if complete:
        count = max(run.start_epoch, run.num_epochs)
        epochs = f'{count} of {count} epochs'
        _logger.info(f"Run '{folder}' is complete, {epochs}: its files stay as they are.")
        result = read_result(folder) if is_main else {}
        if leave_group and run.checkpoints.progress.ranking:
            load_best(run)  # into the model that was provided
    else:
        _check_something_is_left(run)
        if checkpoint is not None:
            rank_anew(run, checkpoint)
        begin_part(run, checkpoint)
        if is_main:
            _write_options(run, recorded, checkpoint)
        accelerator.wait_for_everyone()
        start_trackers(accelerator, folder, options.tracking, flattened(run.options))
        with run.stop:
            try:
                result = fit(run, publisher)
            except RunStopped as stopped:
                end_training(accelerator, leave_group)
                return Outcome(folder, is_main, stopped=stopped)
            except BaseException:
                _end_trackers(accelerator)
                raise
        end_training(accelerator, leave_group)
    if is_main:
        publisher.publish('Add model')
    return Outcome(folder, is_main, result)


def _end_trackers(accelerator: Accelerator) -> None:
    """End them after a failure: else they would be told of the next run of this process."""
    for tracker in accelerator.trackers:
        with suppress(Exception):  # the failure is what is told
            if tracker.name == 'wandb':
                tracker.tracker.finish(exit_code=1)
            else:
                tracker.finish()


def _run_folder(options: TrainOptions) -> Path:
    """The run folder, of which nothing is read yet but where it lies.

    Without --experiment a resumed run goes on in its own folder, and a new one in a folder of its own; with it, in the
    folder that it names.
    """
    output, experiment, resume = options.run.output, options.run.experiment, options.run.resume
    for flag, name in (('--output', output), ('--experiment', experiment), ('--resume', resume)):
        if any('\udc80' <= letter <= '\udcff' for letter in name or ''):
            raise UsageError(f"{flag} '{name}': expected a name in UTF-8, weights are saved under no other.")
    default = f'{datetime.now():%Y%m%d-%H%M%S}-{safe_model_name(options.model.model)}'
    root = Path(output or 'output/train')
    named = root / (experiment or default)
    if named.resolve() in (root.resolve(), *root.resolve().parents):
        raise UsageError(f"--experiment '{experiment}': expected the name of a folder in that of --output.")
    if not experiment:  # runs that were started together
        others = (named.with_name(f'{default}-{number}') for number in count(2))
        named = next(each for each in chain([named], others) if not each.exists())
    if resume in ('', 'auto'):
        return named
    path = Path(resume)
    if (path / 'state.json').is_file():
        path = run_folder_of(path.resolve())
    elif not any(each.is_dir() for each in (path / 'checkpoints').glob('*')):
        raise _no_checkpoint(resume)
    return named if experiment else path


def _checkpoint(resume: str, folder: Path) -> Path | None:
    """The checkpoint to go on from, if there is one."""
    checkpoint = find_checkpoint(folder if resume == 'auto' else Path(resume)) if resume else None
    if checkpoint is None and resume not in ('', 'auto'):
        raise _no_checkpoint(resume)
    going_on = checkpoint is not None and run_folder_of(checkpoint) == folder.resolve()
    has_run = any((folder / name).exists() for name in ('checkpoints', 'summary.csv', 'result.json'))
    if has_run and not going_on and resume != 'auto':
        raise UsageError(
            f"run folder '{folder}' exists already: go on with --resume auto, or choose another --experiment."
        )
    return checkpoint


def _no_checkpoint(resume: str) -> DataError:
    return DataError(
        f"--resume '{resume}' is no run folder and no checkpoint of one; to start from a weights file use "
        '--initial-checkpoint.'
    )


def _is_complete(run: Run, checkpoint: Path) -> bool:
    """Whether the newest checkpoint is the run's last, and what follows it was written."""
    newest = checkpoint == (run.folder / 'last').resolve()
    wanted = ['result.json', *([] if run.options.run.no_report else ['report.html'])]
    return newest and run.start_epoch >= run.num_epochs and all((run.folder / name).is_file() for name in wanted)


def _check_something_is_left(run: Run) -> None:
    kept = (run.folder / 'last').exists() and run.checkpoints.progress.ranking
    if run.start_epoch >= run.num_epochs and not kept:
        given = run.options.schedule.start_epoch
        if given is not None:
            raise UsageError(f'--start-epoch {given}: the run ends after {run.num_epochs} epochs.')
        raise UsageError(
            f'nothing is left to train: {run.num_epochs} epochs are done where the run goes on, and --epochs or '
            '--stop-epoch asks for no more.'
        )


def _write_options(run: Run, recorded: Mapping[str, Any], checkpoint: Path | None) -> None:
    """What repeats the run, or goes on with it from a checkpoint: where an attempt at it began is no part of that."""
    values = {**recorded, **flattened(run.options), 'start_epoch': None}
    folder = run.folder.resolve()
    if checkpoint is not None and run_folder_of(checkpoint) == folder:
        values |= {'no_resume_opt': False, 'resume': 'auto' if run.options.run.resume == 'auto' else ''}
    try:
        if checkpoint is not None and checkpoint.parent == folder / 'checkpoints':
            run.checkpoints.point_at_last(checkpoint.name)  # it may be an earlier one: later ones are left behind
        write_whole(run.folder / 'args.yaml', dump_yaml(values))
        write_parts(run.folder, run.checkpoints.progress.parts)
    except OSError as error:
        raise DataError(f"run folder '{run.folder}' cannot be written: {error}. See --output.") from error
