"""What a resumed run is trained with, beside what its checkpoint was trained with."""

import json
import logging
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

from timm_hnc.checkpoints.checkpoints import epoch_of, run_folder_of
from timm_hnc.data.class_names import class_to_idx
from timm_hnc.data.naflex import TrainNaFlexOptions
from timm_hnc.data.options import DataOptions
from timm_hnc.errors import DataError
from timm_hnc.files.run_options import NOT_COMPARED
from timm_hnc.files.run_parts import Part
from timm_hnc.options import flag_of, flattened
from timm_hnc.training.outputs.results import figures_of
from timm_hnc.training.setup.build import Run
from timm_hnc.training.setup.objective.distillation import DistillationOptions
from timm_hnc.training.setup.objective.loss_options import LossOptions
from timm_hnc.training.setup.optimizer import LOSS_GROUP, inner_optimizer

_logger = logging.getLogger(__name__)

# options that do nothing without another
_NEEDS = {
    'amp_dtype': 'amp',
    **{each.name: 'kd_model_name' for each in fields(DistillationOptions) if each.name != 'kd_model_name'},
    **{each.name: 'naflex_loader' for each in fields(TrainNaFlexOptions) if each.name != 'naflex_loader'},
    **dict.fromkeys(('model_ema_decay', 'model_ema_warmup', 'model_ema_force_cpu'), 'model_ema'),
}
# options that say how strongly HNC and the criterion pull
_OF_THE_LOSSES = {'hnc', 'hnc_topk', 'hnc_alpha', 'hnc_reduction', 'task', *(each.name for each in fields(LossOptions))}
_OF_THE_LOSSES -= {'loss_lr'}
# options that a run goes on exactly with, whatever they were before
_EXACT = frozenset(
    {
        *('data_dir', 'on_nonfinite', 'pretrained', 'pretrained_path', 'pretrained_cfg_overlay'),
        *('initial_checkpoint', 'head_init_scale', 'head_init_bias'),
    }
)
# facts that say which images an update takes
_OF_THE_ORDER = ('training images', 'classes', 'updates an epoch', 'images an update', 'patches an image')
_FACTS = (*_OF_THE_ORDER, 'processes', 'device')


def _facts(run: Run) -> dict[str, Any]:
    dataset = run.data.train_set
    naflex = run.options.naflex
    return {
        'training images': len(dataset),
        'classes': len(class_to_idx(dataset)) or run.options.input.num_classes,
        'updates an epoch': run.updates_per_epoch,
        'images an update': run.options.batches.batch_size * run.options.batches.grad_accum_steps,
        # which say how many images each batch has
        'patches an image': sorted(naflex.naflex_train_seq_lens) if naflex.naflex_loader else None,
        'processes': run.accelerator.num_processes,
        'device': run.accelerator.device.type,
    }


def _compared(options: dict[str, Any]) -> dict[str, Any]:
    """Options that matter, as JSON keeps them: what was filled in and what was given are alike."""
    left_out = NOT_COMPARED | {name for name, switch in _NEEDS.items() if not options.get(switch)}
    if not DataOptions(dataset=options.get('dataset') or '').is_streamed and not options.get('use_multi_epochs_loader'):
        left_out |= {'workers', 'worker_seeding'}  # of other data, all depends on the place of a sample alone
    kept = {name: value for name, value in options.items() if name not in left_out}
    kept['loss'] = kept.get('loss') or ('bce' if kept.get('task') == 'multilabel' else 'ce')
    return json.loads(json.dumps(kept, default=str))


def check_place(run: Run, checkpoint: Path) -> None:
    """Refuse to go on inside an epoch that would take other images than were meant."""
    progress = run.checkpoints.progress
    if not progress.updates_in_epoch or run.data.seeded is None or run.options.schedule.start_epoch is not None:
        return
    before, now = progress.parts[-1].options, _facts(run)
    part = Part(changed=_differences(before, {name: now[name] for name in _OF_THE_ORDER}))
    if not part.changed:
        return
    folders = [each.parent for each in run_folder_of(checkpoint).glob('checkpoints/epoch-*/state.json')]
    ends = [folder for folder in folders if folder.name.removeprefix('epoch-').isdecimal()]
    ends.sort(key=lambda end: epoch_of(end.name))
    other = f", or go on from an epoch's end with --resume {ends[-1]}" if ends else ''
    raise DataError(
        f"checkpoint '{checkpoint}' stands inside epoch {progress.completed_epochs}, which would go on with other "
        f'images than were meant ({part.changes}): bring data and options back{other}.'
    )


def changes_of_the_losses(run: Run) -> str:
    """What makes the weight that HNC was given by its gradient one of another loss; '' where nothing does."""
    now = _compared(flattened(run.options))
    pull = {name: value for name, value in now.items() if name in _OF_THE_LOSSES}
    changed = _differences(run.checkpoints.progress.parts[-1].options, pull)
    return Part(changed=changed).changes


def metric_changed(run: Run) -> bool:
    """Whether the checkpoints so far were ranked by something else."""
    before = run.checkpoints.progress.parts[-1].options
    was = before.get('eval_metric') if before.get('val_split') else 'loss', bool(before.get('val_split'))
    return was != (run.eval_metric, bool(run.options.splits.val_split))


def rank_anew(run: Run, checkpoint: Path) -> None:
    """Rank the checkpoints so far by the metric now in force, from summary.csv."""
    ranking, folder = run.checkpoints.progress.ranking, run_folder_of(checkpoint)
    if not ranking or not metric_changed(run):
        return
    data, metrics = 'eval' if run.options.splits.val_split else 'train', {}
    if (folder / 'summary.csv').is_file():
        known = {name: figures_of(folder, epoch_of(name), data) for name, _ in ranking}
        metrics = {name: figures[run.eval_metric] for name, figures in known.items() if run.eval_metric in figures}
    is_main = run.accelerator.is_main_process
    run.checkpoints.rank_anew(metrics, write=is_main)
    if is_main:
        best = next((name for name, _ in run.checkpoints.progress.ranking), 'none, no checkpoint has this metric')
        _logger.warning(f'The best checkpoint so far, by {run.eval_metric}: {best}.')


def use_settings(run: Run, fresh: list[dict[str, Any]]) -> None:
    """Let the optimizer go on with the settings now in force, not with those that its state brings.

    Settings are what the optimizer is made with (`beta1` is Adafactor's of its betas), and the shares of the rate by
    layer; what else a group has, it counts.
    """
    before, options = run.checkpoints.progress.parts[-1].options, run.options
    rates = {'lr': options.schedule.lr, 'loss_lr': options.loss.loss_lr}
    optimizer = inner_optimizer(run.optimizer.optimizer)
    names = {*signature(type(optimizer)).parameters, 'beta1', 'lr_scale'} - {'params', 'lr'}
    names |= options.optimizer.opt_kwargs.keys() | (before.get('opt_kwargs') or {}).keys()
    for group, settings in zip(run.optimizer.param_groups, fresh, strict=True):
        group.update({name: settings[name] for name in names & settings.keys() & group.keys()})
        rate = 'loss_lr' if LOSS_GROUP in group else 'lr'
        # where no schedule sets it
        if before.get(rate) and before[rate] != rates[rate]:
            group['lr'] *= rates[rate] / before[rate]


def begin_part(run: Run, checkpoint: Path | None) -> None:
    """Note what the run is trained with from here on, and say what differs from the checkpoint that it goes on from."""
    parts, now = run.checkpoints.progress.parts, _compared(flattened(run.options)) | _facts(run)
    if checkpoint is None:
        parts.append(Part(run.start_epoch, options=now))
        return
    changed = _differences(parts[-1].options, now) | _of_this_resume(run)
    if not changed:
        return
    exact = changed.keys() <= {flag_of(name) for name in _EXACT}
    parts.append(Part(run.start_epoch, run.start_update, now, changed, exact))
    if run.accelerator.is_main_process:
        end = '.' if exact else '; no longer exact from here on.'
        _logger.warning(f'Going on with other options than before: {parts[-1].changes}{end}')


def _differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, list[Any]]:
    return {
        name if name in _FACTS else flag_of(name): [before[name], value]
        for name, value in now.items()
        if name in before and before[name] != value
    }


def _of_this_resume(run: Run) -> dict[str, list[Any]]:
    start_epoch = run.options.schedule.start_epoch
    start = {'--start-epoch': [None, start_epoch]} if start_epoch is not None else {}
    return start | ({'--no-resume-opt': [False, True]} if run.options.run.no_resume_opt else {})
