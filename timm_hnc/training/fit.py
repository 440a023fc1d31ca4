"""The training run from first epoch to result.json."""

import logging
import math
import time
from functools import partial
from typing import Any

import safetensors.torch
import torch
from accelerate.utils import broadcast, broadcast_object_list, gather_object
from timm import utils

from timm_hnc.errors import DataError
from timm_hnc.evaluation.evaluate import batches, create_evaluator, evaluate
from timm_hnc.evaluation.map_pass import OnBatch
from timm_hnc.report.page import write_report
from timm_hnc.runtime.process import sum_of_processes
from timm_hnc.training.epoch import OnUpdate, learning_rate, settle, train_one_epoch
from timm_hnc.training.outputs.pictures import CamPictures
from timm_hnc.training.outputs.publishing import Publisher
from timm_hnc.training.outputs.report_findings import Findings
from timm_hnc.training.outputs.results import add_row, drop_rows, environment, figures_of, remove_results, write_result
from timm_hnc.training.outputs.state import save_run
from timm_hnc.training.setup.build import Run
from timm_hnc.training.signals import RunStopped
from timm_hnc.training.update_flags import Notice
from timm_hnc.weights.saving import WEIGHTS, check_weights_file

_logger = logging.getLogger(__name__)
_ENOUGH_IMAGES = 5000


def fit(run: Run, publisher: Publisher) -> dict[str, Any]:
    """Train, evaluate and save every epoch; then evaluate the best weights as they were saved."""
    started = time.monotonic()
    pictures = CamPictures(run)
    if run.accelerator.is_main_process:
        drop_rows(run.folder / 'summary.csv', run.start_epoch)
        if run.start_epoch < run.num_epochs:
            remove_results(run.folder)
    train_metrics: dict[str, float] = {}
    hub_every, published = run.options.hub.hub_every, run.start_epoch
    for epoch in range(run.start_epoch, run.num_epochs):
        is_first = epoch == run.start_epoch and not run.start_update
        train_metrics = train_one_epoch(run, epoch, _on_update(run, epoch, is_first))
        _synchronise_batch_norm(run, run.model)
        if is_first:
            _tell_of_unused_objects(run, *_check_objects(run))
        done = epoch + 1
        milestone = done in (run.options.run.save_epochs or ())
        if done % run.options.run.val_interval and done != run.num_epochs and not milestone:
            if run.scheduler is not None:
                run.scheduler.step(done, None)
            continue
        metrics = _evaluate_epoch(run)
        lr = learning_rate(run.optimizer)
        metric = (metrics or train_metrics)[run.eval_metric]
        if run.scheduler is not None:
            run.scheduler.step(done, metric)
        # a run that is killed between the two finds a row too many, and drops it
        _add_row(run, epoch, train_metrics, metrics, lr)
        save_run(run, f'epoch-{epoch}', done, metric=metric, milestone=milestone)
        _log_epoch(run, epoch, metric)
        if signal := max(gather_object([run.stop.received])):
            raise RunStopped(signal, f'after epoch {epoch}.')
        if hub_every and done // hub_every > published // hub_every and done != run.num_epochs:
            _publish_so_far(run, publisher, pictures, epoch)
            published = done
    final, skipped_images = _show_best(run, pictures)
    epochs = max(run.start_epoch, run.num_epochs)  # --epochs may ask for fewer than there are
    result = _result(run, final, epochs) | {
        'train': train_metrics,
        'skipped_updates': run.skipped_updates,
        'skipped_images': skipped_images,
        'seconds': round(time.monotonic() - started, 1),
    }
    if run.accelerator.is_main_process:
        if not train_metrics:  # killed behind its last checkpoint
            result['train'] = figures_of(run.folder, epochs - 1, 'train')
        write_result(run.folder, result)
        if not run.options.run.no_report:
            write_report([run.folder], run.folder / 'report.html')
    return result


def _publish_so_far(run: Run, publisher: Publisher, pictures: CamPictures, epoch: int) -> None:
    """Publish the best weights of the epochs so far, with their figures, and their picture if it can be drawn."""
    if not run.accelerator.is_main_process:
        return
    name, _ = run.checkpoints.progress.ranking[0]
    if name == f'epoch-{epoch}':
        pictures.draw('best', run.evaluated_model, _title(run, name))
        pictures.best = name
    result = _result(run, figures_of(run.folder, int(name.removeprefix('epoch-'))), epoch + 1)
    publisher.publish_so_far(f'Add model of epoch {epoch}', result, with_picture=pictures.best == name)


def _add_row(run: Run, epoch: int, train: dict[str, float], evaluation: dict[str, float] | None, lr: float) -> None:
    """An epoch to summary.csv and to the trackers."""
    figures = {f'train_{name}': value for name, value in train.items()}
    figures |= {f'eval_{name}': value for name, value in (evaluation or {}).items()}
    figures['lr'] = lr
    run.accelerator.log(figures, step=epoch)
    if run.accelerator.is_main_process:
        add_row(run.folder / 'summary.csv', {'epoch': epoch, **figures})


def _on_update(run: Run, epoch: int, is_first: bool) -> OnUpdate:
    """What follows an update; in the first epoch also a look at objects, once enough images were read."""
    batches = run.options.batches
    images = batches.batch_size * batches.grad_accum_steps * run.accelerator.num_processes
    enough = math.ceil(_ENOUGH_IMAGES / images / run.options.map_losses.boxes_share)

    def on_update(update: int, notice: Notice | None) -> None:
        if is_first and update == enough:
            _check_objects(run)
        _after_update(run, epoch, update, notice)

    return on_update


def _check_objects(run: Run) -> tuple[int, int]:
    """Refuse to go on where a loss needs boxes or masks and no image had one of its class so far.

    How many images had odd ones, and how many only those of other classes.
    """
    guided, flag = run.data.guided, run.options.map_losses.needs_objects
    if guided is None:
        return 0, 0
    kind = guided.source.kind
    counts = torch.tensor([guided.guided_images.value, guided.odd_images.value, guided.strange_images.value])
    found, odd, strange = sum_of_processes(counts, run.accelerator).tolist()
    if not found:
        why = f', {odd} are odd ({guided.source.odd})' if odd else ''
        why += f', {strange} have {kind} of other classes alone' if strange else ''
        raise DataError(
            f'{flag}: no training image has {kind} of its class{why}: see --{kind}-dir, --{kind}-key and --boxes-share.'
        )
    return odd, strange


def _tell_of_unused_objects(run: Run, odd: int, strange: int) -> None:
    if run.data.guided is None:
        return
    flag, source = run.options.map_losses.needs_objects, run.data.guided.source
    for images, how in ((odd, f'odd ({source.odd})'), (strange, 'of other classes alone')):
        if images:
            _logger.warning(f'{flag}: the {source.kind} of {images} images are {how} and are left out.')


def _title(run: Run, checkpoint: str) -> str:
    return f'{run.options.model.model}, {checkpoint}, {run.options.hnc}'


def _synchronise_batch_norm(run: Run, model: Any) -> None:
    if run.distributed and run.options.processes.dist_bn in ('broadcast', 'reduce') and not run.options.model.sync_bn:
        utils.distribute_bn(model, run.accelerator.num_processes, run.options.processes.dist_bn == 'reduce')


def _evaluate_epoch(run: Run) -> dict[str, float] | None:
    if run.averaged_parts is not run.model:
        _synchronise_batch_norm(run, run.averaged_parts)
    if run.data.eval_loader is None:
        return None
    run.put_together()
    return evaluate_run(run, run.classifier(run.compiled(run.evaluated_model)))


def evaluate_run(run: Run, model: Any, on_batch: OnBatch | None = None) -> dict[str, float]:
    """Figures of a model on the run's validation data, over all processes; `on_batch` as in `evaluate`."""
    options, device = run.options, run.accelerator.device
    task = options.task
    evaluator = create_evaluator(run.data.eval_loader, device, task.multi_label, task.multilabel_threshold)
    return evaluate(
        model,
        batches(run.data.eval_loader, device, options.device, len(run.data.class_names)),
        evaluator,
        run.accelerator.autocast,
        distributed=run.distributed,
        log_interval=options.run.log_interval,
        on_batch=on_batch,
    )


def _after_update(run: Run, epoch: int, update: int, notice: Notice | None) -> None:
    """A checkpoint inside an epoch, where one is due or a signal asks to stop."""
    number = notice.signal if notice else 0
    if number or run.clock.after(update) or (notice and notice.due):
        settle(run, epoch)
        save_run(run, f'recovery-{epoch}-{update}', epoch, update)
    if number:
        raise RunStopped(number, f'in epoch {epoch}, update {update}.')


def _log_epoch(run: Run, epoch: int, metric: float) -> None:
    name, best = run.checkpoints.progress.ranking[0]
    _logger.info(f'Epoch {epoch}: {run.eval_metric} {metric:.4f} (best {best:.4f}, {name})')
    weight = run.auto_weight
    if weight is not None:
        state = 'settled' if weight.settled else 'following'
        unusable = f'; {weight.unusable} batches without a usable gradient' if weight.unusable else ''
        _logger.info(f'Weight of HNC: {weight.value:.4g}, {state}{unusable}.')


def load_best(run: Run) -> Any:
    """The evaluated model with the best weights as they were saved; what trained in place has them as well.

    The one process that sees the run folder reads them for all.

    Raises:
        DataError: they are not what was saved.
    """
    model, folder = run.evaluated_model, run.folder / 'model_best'
    [problem] = broadcast_object_list([_problem_of_best(run) if run.accelerator.is_main_process else None])
    if problem:
        raise DataError(
            f"{problem.rstrip('.')}. Remove '{folder.resolve().parent}' and go on with --resume auto, without it."
        )
    if run.accelerator.is_main_process:
        weights = safetensors.torch.load_file(folder / WEIGHTS)
        model.load_state_dict(weights, strict=not run.options.model.split_bn)
    for tensor in model.state_dict().values() if run.distributed else ():
        tensor.copy_(broadcast(tensor))
    if model is run.export_copy and run.averaged_model is run.model:
        run.model.load_state_dict(model.state_dict())
    return model


def _problem_of_best(run: Run) -> str:
    """What is wrong with the best weights, '' where nothing is."""
    try:
        run.checkpoints.point_at_best()  # another one, where somebody has removed it
        check_weights_file(run.folder / 'model_best')
    except (OSError, DataError) as error:
        return str(error)
    return ''


def _evaluate_best(run: Run, model: Any) -> tuple[dict[str, float] | None, Findings | None]:
    """Figures of the best weights, and what the report shows of them."""
    if run.data.eval_loader is None:
        return None, None
    if run.options.run.no_report:
        return evaluate_run(run, run.classifier(run.compiled(model))), None
    findings = Findings(run, model)
    return findings.evaluate(partial(evaluate_run, run)), findings


def _show_best(run: Run, pictures: CamPictures) -> tuple[dict[str, float] | None, int]:
    """Load the best weights, evaluate and draw them; their figures, and how many images the run skipped.

    What one process does alone comes last, however long it takes: the others wait for nothing any more.
    """
    if not run.checkpoints.progress.ranking:
        return None, run.count_skipped_images()
    model = load_best(run)
    final, findings = _evaluate_best(run, model)
    skipped_images = run.count_skipped_images()
    if findings is not None and final is not None:
        findings.write(final)
    pictures.draw('best', model, _title(run, run.checkpoints.progress.ranking[0][0]))
    return final, skipped_images


def _result(run: Run, final: dict[str, float] | None, epochs: int) -> dict[str, Any]:
    """What result.json says of the best weights of so many epochs, whether more are to come or not."""
    ranking = run.checkpoints.progress.ranking
    name, metric = ranking[0] if ranking else (None, None)
    return {
        'model': run.options.model.model,
        'best_checkpoint': name,
        'best_metric': {run.eval_metric: metric},
        'final': final,
        'epochs': epochs,
        **environment(run.accelerator),
    }
