"""A validation pass from its options: figures of one model, on clean and attacked images, with its maps."""

import logging
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size
from timm.layers import apply_test_time_pool
from timm.utils import check_batch_size_retry, decay_batch_step

from timm_hnc.attacks.attacks import cross_entropy, normalized
from timm_hnc.cam import CamModel
from timm_hnc.cam.heads.hooked_head import is_of_timm
from timm_hnc.cam.model import names_of_weights
from timm_hnc.data.class_names import check_classes_of_model, class_names
from timm_hnc.data.inputs import input_config
from timm_hnc.data.label_checks import check_provided
from timm_hnc.data.loading.loader_errors import watched_workers
from timm_hnc.data.loading.loaders import create_eval_loader, is_loader, open_eval_dataset
from timm_hnc.data.loading.skipped_images import SkippedImages, counting_skipped
from timm_hnc.data.naflex import Patches
from timm_hnc.errors import DataError, UsageError, first_lines
from timm_hnc.evaluation.evaluate import batches, create_evaluator, evaluate
from timm_hnc.evaluation.labels import OtherLabels
from timm_hnc.evaluation.map_pass import watch_maps, with_maps
from timm_hnc.evaluation.models import load_model
from timm_hnc.evaluation.options import ValidateOptions
from timm_hnc.evaluation.robustness import robust_figures, threat_of
from timm_hnc.evaluation.sources import Source
from timm_hnc.runtime.compilation import Compilation
from timm_hnc.runtime.process import one_process_first, sum_of_processes

_logger = logging.getLogger(__name__)
# as timm's script orders them
_FIRST = ('model', 'top1', 'top1_err', 'top5', 'top5_err', 'param_count', 'img_size', 'crop_pct', 'interpolation')


def validate(
    options: ValidateOptions, source: Source, accelerator: Accelerator, of_several: bool = False
) -> dict[str, Any]:
    """Figures of one model; where memory runs out, with --retry or of several, one process tries smaller batches."""
    while True:
        try:
            with one_process_first(accelerator):
                model = load_model(source, options.model, options.input)
            return measure(model, None, options, source, accelerator)
        except RuntimeError as error:
            retry = options.evaluation.retry and check_batch_size_retry(str(error))
            retry = retry or (of_several and should_reduce_batch_size(error))
            retry = retry and accelerator.num_processes == 1  # several would have to agree on it
            if isinstance(error, DataError) or not retry:
                raise
            batch_size = decay_batch_step(options.evaluation.batch_size)
            if batch_size == 0:
                raise DataError(f'{source.name}: no batch size works: {first_lines(error)}') from error
            _logger.warning(f'{first_lines(error)}: trying batches of {batch_size}.')
            options = replace(options, evaluation=replace(options.evaluation, batch_size=batch_size))


@watched_workers()
def measure(
    model: Any,
    data: Any,
    options: ValidateOptions,
    source: Source,
    accelerator: Accelerator,
    wrap: Callable[[Any], CamModel] = CamModel,
) -> dict[str, Any]:
    """Figures of a model on a data set or loader of normalised batches; if None, on the data of the options.

    `wrap` makes its CamModel.
    """
    evaluation, num_classes = options.evaluation, options.input.num_classes or model.num_classes
    parameters = sum(parameter.numel() for parameter in model.parameters())
    use_test_size, verbose = not evaluation.use_train_size, accelerator.is_main_process
    patches = options.naflex.patches(model)
    data_config = input_config(model, options.input, use_test_size=use_test_size, verbose=verbose)
    names = () if options.labels.valid_labels else names_of_weights(model) or ()
    if evaluation.test_pool:
        # a copy, for timm takes the classifier out of the model that it is given
        model, pooled = apply_test_time_pool(deepcopy(model), data_config)
        if pooled and model.original_pool is None:
            raise UsageError(f"--test-pool: '{source.name}' does not say over how many cells it pools (pool_size).")
        data_config = {**data_config, **({'crop_pct': 1.0} if pooled else {})}
    elif not is_of_timm(model):
        model = wrap(model)  # whose output is the logits
    compiled = Compilation(options.device.torchcompile, options.device.torchcompile_mode)
    model = compiled(options.device.placed(model, accelerator.device))
    loader: Any = data
    if data is not None:
        check_provided(data, num_classes, options.task.multi_label)
    provided = is_loader(data, accelerator.num_processes)
    with compiled, counting_skipped() as skipped:
        if not provided:
            loader = _create_loader(data, options, data_config, num_classes, patches, accelerator)
            check_classes_of_model(names, loader.dataset)
            loader.dataset.skipped_images = skipped  # travels to the loader's workers
        metrics = _evaluate(model, loader, options, data_config, num_classes, source, accelerator, skipped, wrap)
        count = sum_of_processes(torch.tensor(metrics.pop('skipped_images')), accelerator)
    found = {
        'model': source.name,
        **metrics,
        'param_count': round(parameters / 1e6, 2),
        **({} if provided else _images_as_they_come(data_config, patches)),
        'skipped_images': int(count),
    }
    return {name: found[name] for name in _FIRST if name in found} | found if 'top1' in found else found


def _images_as_they_come(data_config: dict[str, Any], patches: Patches | None) -> dict[str, Any]:
    found: dict[str, Any] = {'img_size': data_config['input_size'][-1], 'crop_pct': data_config['crop_pct']}
    if patches is not None:  # they are neither cropped nor of one size
        found = {'naflex_max_seq_len': patches.max_seq_len}
    return found | {'interpolation': data_config['interpolation']}


def _create_loader(
    dataset: Any,
    options: ValidateOptions,
    data_config: dict[str, Any],
    num_classes: int,
    patches: Patches | None,
    accelerator: Accelerator,
) -> Any:
    evaluation = options.evaluation
    if dataset is None:
        dataset = open_eval_dataset(
            options.data,
            options.task,
            data_config['input_size'][0],
            num_classes,
            options.loader.seed,
            split=evaluation.split,
            num_samples=evaluation.num_samples,
            batch_size=evaluation.batch_size,
            load_bytes=evaluation.tf_preprocessing,
        )
    others = {'crop_border_pixels': evaluation.crop_border_pixels, 'tf_preprocessing': evaluation.tf_preprocessing}
    return create_eval_loader(
        dataset,
        options.data,
        options.loader,
        data_config,
        evaluation.batch_size,
        accelerator,
        patches,
        img_dtype=options.device.input_dtype,
        **(others if patches is None else {}),
    )


def _evaluate(
    model: Any,
    loader: Any,
    options: ValidateOptions,
    data_config: dict[str, Any],
    num_classes: int,
    source: Source,
    accelerator: Accelerator,
    skipped: SkippedImages,
    wrap: Callable[[Any], CamModel],
) -> dict[str, float]:
    device, distributed, task, dataset = accelerator.device, accelerator.num_processes > 1, options.task, loader.dataset
    labels = OtherLabels(options.labels, dataset, loader, distributed, num_classes)
    inputs = partial(batches, loader, device, options.device, num_classes)
    evaluator = partial(create_evaluator, loader, device, task.multi_label, task.multilabel_threshold)
    threat = threat_of(options.attacks, source, options.loader.seed) if options.attacks.attack else None
    attacked = model
    if threat is not None and threat.loss is not cross_entropy:
        attacked = with_maps(model, wrap, '--attack-loss train')
    names, autocast = class_names(dataset, num_classes), accelerator.autocast
    watched = watch_maps(model, options.maps, loader, names, task.multi_label, autocast, wrap)
    metrics = evaluate(
        watched or model,
        inputs(),
        evaluator(),
        autocast,
        distributed,
        on_batch=watched.before(labels) if watched else labels,
        log_interval=options.evaluation.log_freq,
    )
    more: dict[str, Any] = {'skipped_images': skipped.count}  # of one pass, attacks make more
    if threat is not None:
        classifier = normalized(attacked, data_config['mean'], data_config['std'])
        try:
            robust = robust_figures(classifier, inputs, evaluator, threat, autocast, metrics, distributed)
        except ValueError as error:
            raise UsageError(f'--attack: {error}') from error
        more |= options.attacks.described()
        more |= {name: value if name.endswith('loss') else round(value, 4) for name, value in robust.items()}
    more |= watched.figures(accelerator) if watched else {}
    if task.multi_label:
        return {name: round(value, 4) for name, value in metrics.items()} | {'loss': metrics['loss']} | more
    metrics |= labels.accuracy()
    result = {'loss': metrics['loss']}
    for name in ('top1', 'top5'):
        result |= {name: round(metrics[name], 4), f'{name}_err': round(100 - metrics[name], 4)}
    return result | labels.precision_and_recall() | more
