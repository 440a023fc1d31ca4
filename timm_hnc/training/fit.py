"""The training run from first epoch to result.json."""

import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate.utils import broadcast
from timm import utils

from timm_hnc.errors import DataError, first_lines
from timm_hnc.evaluation.evaluate import batches, create_evaluator, evaluate
from timm_hnc.evaluation.map_pass import OnBatch
from timm_hnc.hub.weights import save_pretrained
from timm_hnc.plots.report import write_report
from timm_hnc.training.build import Run
from timm_hnc.training.checkpoints import read_training_state
from timm_hnc.training.epoch import learning_rate, train_one_epoch
from timm_hnc.training.findings import Findings
from timm_hnc.training.pictures import CamPictures
from timm_hnc.training.publishing import publish
from timm_hnc.training.results import Summary, environment, write_result

_logger = logging.getLogger(__name__)


def fit(run: Run) -> dict[str, Any]:
    """Train, evaluate and save every epoch; then evaluate the best weights as they were saved.

    Args:
        run: from `build_run`, possibly restored from a checkpoint.

    Returns:
        What stands in result.json.

    Raises:
        DataError: the loss is not finite, or something cannot be read or written.
    """
    started = time.monotonic()
    summary = Summary(run.folder, run.accelerator, run.start_epoch)
    pictures = CamPictures(run)
    train_metrics: dict[str, float] = {}
    for epoch in range(run.start_epoch, run.num_epochs):
        train_metrics = train_one_epoch(run, epoch, partial(_save_recovery, run, epoch))
        _synchronise_batch_norm(run, run.model)
        done = epoch + 1
        if done % run.args.val_interval and done != run.num_epochs:
            if run.scheduler is not None:
                run.scheduler.step(done, None)
            continue
        metrics = _evaluate_epoch(run)
        lr = learning_rate(run.optimizer)
        metric = (metrics or train_metrics)[run.eval_metric]
        if run.scheduler is not None:
            run.scheduler.step(done, metric)
        run.checkpoints.progress.completed_epochs = done
        run.checkpoints.progress.num_updates = done * run.updates_per_epoch
        _save(run, f'epoch-{epoch}', metric, milestone=done in (run.args.save_epochs or ()))
        summary.add(epoch, train_metrics, metrics, lr)
        _log_epoch(run, epoch, metric)
        if run.args.hub_every and done % run.args.hub_every == 0 and done != run.num_epochs:
            _publish_so_far(run, pictures, epoch)
    return _finish(run, pictures, train_metrics, time.monotonic() - started)


def _publish_so_far(run: Run, pictures: CamPictures, epoch: int) -> None:
    """Publish the best weights of the epochs so far, with a picture if they are those of this epoch."""
    if run.accelerator.is_main_process:
        name, _ = run.checkpoints.progress.ranking[0]
        if name == f'epoch-{epoch}':
            pictures.draw('best', run.evaluated_model, _title(run, name))
        publish(run.args, run.folder, f'Add model of epoch {epoch}')
    run.accelerator.wait_for_everyone()


def _title(run: Run, checkpoint: str) -> str:
    loss = 'without HNC' if run.args.hnc == 'none' else f'HNC {run.args.hnc}, weight {run.args.hnc_weight:g}'
    return f'{run.args.model}, {checkpoint}, {loss}'


def _synchronise_batch_norm(run: Run, model: Any) -> None:
    if run.distributed and run.args.dist_bn in ('broadcast', 'reduce') and not run.args.sync_bn:
        utils.distribute_bn(model, run.accelerator.num_processes, run.args.dist_bn == 'reduce')


def _evaluate_epoch(run: Run) -> dict[str, float] | None:
    if run.eval_loader is None:
        return None
    if run.averaged_model is not run.model:
        _synchronise_batch_norm(run, run.averaged_model)
    return evaluate_run(run, run.evaluated_model)


def evaluate_run(run: Run, model: Any, on_batch: OnBatch | None = None) -> dict[str, float]:
    """Figures of a model on the run's validation data, over all processes; `on_batch` as in `evaluate`."""
    args, device = run.args, run.accelerator.device
    evaluator = create_evaluator(run.eval_loader, device, args.task == 'multilabel', args.multilabel_threshold)
    return evaluate(
        model,
        batches(run.eval_loader, device, run.input_dtype, args.channels_last),
        evaluator,
        run.accelerator.autocast,
        distributed=run.distributed,
        tta=args.tta,
        on_batch=on_batch,
    )


def _write_checkpoint(run: Run, folder: Path) -> None:
    hnc = None
    if run.args.hnc != 'none':
        names = ('weight', 'topk', 'alpha', 'reduction')
        hnc = {'variant': run.args.hnc, **{name: getattr(run.args, f'hnc_{name}') for name in names}}
    save_pretrained(run.evaluated_model, folder / 'model', run.class_names, run.data_config, hnc)
    state = {'model': run.model.state_dict(), 'optimizer': run.optimizer.optimizer.state_dict()}
    if run.ema is not None:
        state['ema'] = run.ema.module.state_dict()
    if run.loss is not None:
        state['loss'] = run.loss.state_dict()
    if run.accelerator.scaler is not None:
        state['scaler'] = run.accelerator.scaler.state_dict()
    torch.save(state, folder / 'training_state.pt')


def _save(run: Run, name: str, metric: float | None, milestone: bool = False) -> None:
    write = partial(_write_checkpoint, run) if run.accelerator.is_main_process else None
    run.checkpoints.save(name, write, metric, milestone)
    run.accelerator.wait_for_everyone()


def _save_recovery(run: Run, epoch: int, update: int) -> None:
    """A checkpoint inside an epoch; a resumed run begins that epoch anew with its weights."""
    if run.args.recovery_interval and update % run.args.recovery_interval == 0:
        run.checkpoints.progress.completed_epochs = epoch
        run.checkpoints.progress.num_updates = epoch * run.updates_per_epoch + update
        _save(run, f'recovery-{epoch}-{update}', None)


def restore(run: Run, checkpoint: Path) -> None:
    """Put a checkpoint's state into a run, and start where it stopped.

    Raises:
        DataError: the state is damaged or does not fit the model.
    """
    state = read_training_state(checkpoint)
    try:
        run.model.load_state_dict(state['model'])
        if run.ema is not None:
            run.ema.module.load_state_dict(state.get('ema', state['model']))
        if run.loss is not None:
            run.loss.load_state_dict(state['loss'])
        if not run.args.no_resume_opt:
            run.optimizer.optimizer.load_state_dict(state['optimizer'])
            if run.accelerator.scaler is not None and 'scaler' in state:
                run.accelerator.scaler.load_state_dict(state['scaler'])
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"checkpoint '{checkpoint}' does not fit this run: {first_lines(error)}") from error
    run.start_epoch = run.checkpoints.progress.completed_epochs
    _logger.info(f"Going on from '{checkpoint}' with epoch {run.start_epoch}.")


def start_schedule(run: Run) -> None:
    """Bring the learning rate to where the start epoch has it."""
    if run.args.start_epoch is not None:
        run.start_epoch = run.args.start_epoch
    if run.scheduler is not None and run.start_epoch > 0:
        if run.args.sched_on_updates:
            run.scheduler.step_update(run.start_epoch * run.updates_per_epoch)
        else:
            run.scheduler.step(run.start_epoch)


def _log_epoch(run: Run, epoch: int, metric: float) -> None:
    name, best = run.checkpoints.progress.ranking[0]
    _logger.info(f'Epoch {epoch}: {run.eval_metric} {metric:.4f} (best {best:.4f}, {name})')


def _load_best(run: Run, model: Any) -> None:
    """The best weights as they were saved, from the one process that sees the run folder to all."""
    if run.accelerator.is_main_process:
        weights = safetensors.torch.load_file(run.folder / 'model_best' / 'model.safetensors')
        model.load_state_dict(weights, strict=not run.args.split_bn)
    for tensor in model.state_dict().values() if run.distributed else ():
        tensor.copy_(broadcast(tensor))


def _evaluate_best(run: Run, model: Any) -> dict[str, float] | None:
    """Figures of the best weights; what the report shows of them goes to its folder."""
    if run.eval_loader is None:
        return None
    if run.args.no_report or run.args.tta > 1:
        return evaluate_run(run, model)
    findings = Findings(run, model)
    final = findings.evaluate(partial(evaluate_run, run))
    findings.write(final)
    run.accelerator.wait_for_everyone()
    return final


def _finish(run: Run, pictures: CamPictures, train_metrics: dict[str, float], seconds: float) -> dict[str, Any]:
    """Evaluate and draw model_best, and write result.json."""
    ranking = run.checkpoints.progress.ranking
    best_name, best_metric = ranking[0] if ranking else (None, None)
    final = None
    if ranking:
        model = run.evaluated_model
        _load_best(run, model)
        final = _evaluate_best(run, model)
        pictures.draw('best', model, _title(run, best_name or ''))
    skipped = torch.tensor(run.skipped.count, device=run.accelerator.device)
    run.skipped.stop()
    result = {
        'model': run.args.model,
        'best_checkpoint': best_name,
        'best_metric': {run.eval_metric: best_metric},
        'final': final,
        'train': train_metrics,
        'epochs': run.num_epochs,
        'skipped_images': int(run.accelerator.reduce(skipped, 'sum')),
        'seconds': round(seconds, 1),
        **environment(run.accelerator),
    }
    if run.accelerator.is_main_process:
        write_result(run.folder, result)
        if not run.args.no_report:
            write_report([run.folder], run.folder / 'report.html')
    return result
