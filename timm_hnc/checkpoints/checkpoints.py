"""Checkpoints of a run: which there are, which is best, which to go on from.

A checkpoint is a folder `checkpoints/<name>/`, complete once it has that name:

    model/                config.json and model.safetensors of the weights that were evaluated, in timm's Hub format
    training_state.pt     weights, EMA, optimizer, scaler ... to go on from: what `training/outputs/state.py` gathers
    state.json            epochs and updates done, the ranking of all checkpoints, and what was trained with
    manifest.json         size and SHA-256 of the others, written last
"""

import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from timm_hnc.errors import DataError, first_lines
from timm_hnc.files.manifest import check_manifest, sync, write_manifest
from timm_hnc.files.run_parts import Part


@dataclass
class Progress:
    """What state.json holds.

    Args:
        architecture: name of the timm model.
        completed_epochs: epochs done when the checkpoint was made.
        num_updates: optimizer updates done.
        updates_in_epoch: those of them in the epoch that was under way.
        num_processes: how many trained.
        skipped_updates: left out because of numbers that are not finite.
        skipped_in_a_row: how many of them were the last updates.
        skipped_images: that could not be decoded.
        ranking: [name, metric] of the kept checkpoints, best first.
        milestones: names of checkpoints that are kept whatever they score.
        parts: what the run was trained with, a part for every change of options.
    """

    architecture: str
    completed_epochs: int = 0
    num_updates: int = 0
    updates_in_epoch: int = 0
    num_processes: int = 1
    skipped_updates: int = 0
    skipped_in_a_row: int = 0
    skipped_images: int = 0
    ranking: list[tuple[str, float]] = field(default_factory=list)
    milestones: list[str] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)


_logger = logging.getLogger(__name__)
_LEFT = 2**20  # bytes; less is no space for a checkpoint
_OWN_NAME = re.compile(r'epoch-\d+|recovery-\d+-\d+|\..*\.(unfinished|replaced)')


class CheckpointFolder:
    """The checkpoints of one run folder.

    Args:
        folder: the run folder.
        keep: how many of the best to keep.
        decreasing: a lower metric is better.
        progress: of the checkpoint that a resumed run goes on from.
    """

    def __init__(self, folder: Path, keep: int, decreasing: bool, progress: Progress) -> None:
        self.folder = folder
        self.keep = keep
        self.decreasing = decreasing
        self.progress = progress
        # a run may go on in another folder, or from an earlier checkpoint
        here = {path.parent.name for path in folder.glob('checkpoints/*/state.json')}
        progress.ranking = [entry for entry in progress.ranking if entry[0] in here]
        progress.milestones = [name for name in progress.milestones if name in here]

    def rank_anew(self, metrics: Mapping[str, float], write: bool) -> None:
        """Rank the checkpoints so far by another metric; those that have none go once another is ranked.

        Args:
            metrics: by name of the checkpoint.
            write: point `model_best` at the best, which one process does.
        """
        self.progress.ranking = self._sorted(list(metrics.items()))
        if write and self.progress.ranking:
            self.point_at_best()

    def save(
        self,
        name: str,
        write: Callable[[Path], None] | None,
        metric: float | None = None,
        milestone: bool = False,
    ) -> None:
        """Write a checkpoint, point `last` at it, and `model_best` if it is the best; then drop what is not kept.

        Args:
            name: of the checkpoint.
            write: fills the folder that it is given; None where another process writes, and this one only ranks.
            metric: ranks the checkpoint; unranked ones are kept while they are the last.
            milestone: keep it whatever it scores.

        Raises:
            DataError: it cannot be written. Earlier checkpoints are untouched.
        """
        self._rank(name, metric, milestone)
        if write is None:
            return
        checkpoints = self.folder / 'checkpoints'
        unfinished, replaced = checkpoints / f'.{name}.unfinished', checkpoints / f'.{name}.replaced'
        final = checkpoints / name
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            write(unfinished)
            (unfinished / 'state.json').write_text(json.dumps(asdict(self.progress), indent=2), encoding='utf-8')
            write_manifest(unfinished)
            if final.exists():
                # never a moment without a whole checkpoint: the old one goes when the new one has its name
                shutil.rmtree(replaced, ignore_errors=True)
                final.rename(replaced)
            unfinished.rename(final)
            sync(checkpoints)
            shutil.rmtree(replaced, ignore_errors=True)
            self.point_at_last(name)
            if self.progress.ranking:
                self.point_at_best()
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have errors of their own
            full = _is_full(self.folder)  # torch does not say so
            shutil.rmtree(unfinished, ignore_errors=True)
            reason = 'no space left on the disk' if full else first_lines(error)
            raise DataError(f"checkpoint '{final}' cannot be written ({reason}); earlier ones are whole.") from error
        self._drop(name)

    def _rank(self, name: str, metric: float | None, milestone: bool) -> None:
        if metric is not None:
            # those of later epochs are of another way that the run went before --start-epoch
            ranking = [entry for entry in self.progress.ranking if epoch_of(entry[0]) < epoch_of(name)]
            self.progress.ranking = self._sorted([*ranking, (name, metric)])[: self.keep]
            self.progress.milestones = [each for each in self.progress.milestones if epoch_of(each) <= epoch_of(name)]
        if milestone and name not in self.progress.milestones:
            self.progress.milestones.append(name)

    def _sorted(self, ranking: list[tuple[str, float]]) -> list[tuple[str, float]]:
        # the sort is stable: of equal metrics the earlier one stays in front; NaN is worse than any number
        return sorted(ranking, key=lambda entry: (math.isnan(entry[1]), entry[1] if self.decreasing else -entry[1]))

    def point_at_last(self, name: str) -> None:
        """Let the run go on from this checkpoint unless somebody says another."""
        _swap_link(self.folder / 'last', Path('checkpoints') / name)

    def point_at_best(self) -> None:
        """Let `model_best` be the best of the checkpoints that are ranked."""
        link, target = self.folder / 'model_best', Path('checkpoints') / self.progress.ranking[0][0] / 'model'
        if not link.is_symlink() or link.readlink() != target:
            _swap_link(link, target)

    def _drop(self, last: str) -> None:
        best = (self.folder / 'model_best').resolve().parent.name  # not ranked any more where the metric is another
        kept = {last, best, *self.progress.milestones, *(name for name, _ in self.progress.ranking)}
        for checkpoint in (self.folder / 'checkpoints').iterdir():
            if checkpoint.name not in kept and _OWN_NAME.fullmatch(checkpoint.name):  # copies of theirs stay
                shutil.rmtree(checkpoint, ignore_errors=True)


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < _LEFT
    except OSError:  # of a folder that is gone
        return False


def _swap_link(link: Path, target: Path) -> None:
    """Point a relative symlink elsewhere in one step."""
    temporary = link.with_name(f'.{link.name}.new')
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, link)
    sync(link.parent)


def epoch_of(name: str) -> int:
    """The epoch at whose end a checkpoint of this name was made."""
    return int(name.removeprefix('epoch-'))


def find_checkpoint(path: Path) -> Path | None:
    """The newest whole checkpoint of a run folder, or the path itself if it is a checkpoint.

    What is passed over is said in the log, and why.

    Returns:
        None where there is no checkpoint at all.

    Raises:
        DataError: there are checkpoints, and none is whole.
    """
    if (path / 'state.json').is_file():
        check_manifest(path)
        return path.resolve()
    last = (path / 'last').resolve().name  # others may be of epochs that are trained anew
    checkpoints = (each for each in (path / 'checkpoints').glob('*') if each.is_dir())
    candidates = sorted(checkpoints, key=lambda each: (each.name == last, _age(each)), reverse=True)
    problem: DataError | None = None
    for candidate in candidates:
        if candidate.name.startswith('.'):
            continue  # not written to its end
        try:
            check_manifest(candidate)
        except DataError as error:
            problem = problem or error
            _logger.warning(f'Checkpoint {candidate.name} is passed over: {error}')
            continue
        return candidate.resolve()
    if problem is not None:
        raise DataError(f"no checkpoint of '{path}' is whole: {problem} Remove the folder to begin anew.")
    return None


def _age(checkpoint: Path) -> tuple[int, ...]:
    """Epochs and updates done, and nanoseconds of its state; those that cannot be read are oldest."""
    try:
        path = checkpoint / 'state.json'
        state = json.loads(path.read_text(encoding='utf-8'))
        # another size of batch makes other numbers of updates
        done = (int(state[name]) for name in ('completed_epochs', 'updates_in_epoch', 'num_updates'))
        return *done, path.stat().st_mtime_ns
    except (OSError, ValueError, KeyError, TypeError):
        return (-1,)


def run_folder_of(checkpoint: Path) -> Path:
    """The run folder that a checkpoint lies in."""
    return checkpoint.parent.parent


def read_progress(checkpoint: Path, architecture: str) -> Progress:
    """What a checkpoint says of the run so far.

    Raises:
        DataError: it is damaged, or of another architecture.
    """
    try:
        state = json.loads((checkpoint / 'state.json').read_text(encoding='utf-8'))
        lists = {
            'ranking': [(name, metric) for name, metric in state['ranking']],
            'parts': [Part(**part) for part in state['parts']],
        }
        progress = Progress(**{**state, **lists})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"checkpoint '{checkpoint}' is damaged: state.json cannot be read ({error}).") from error
    if progress.architecture != architecture:
        raise DataError(
            f"checkpoint '{checkpoint}' is of the architecture '{progress.architecture}', not '{architecture}': "
            'see --model, or start from its weights with --initial-checkpoint.'
        )
    return progress


def read_training_state(checkpoint: Path) -> dict[str, Any]:
    """Tensors to go on from."""
    path = checkpoint / 'training_state.pt'
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler meets
        raise DataError(f"checkpoint file '{path}' is damaged or missing ({first_lines(error)}).") from error
