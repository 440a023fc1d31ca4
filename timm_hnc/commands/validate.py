"""What validate.py does."""

import json
import logging
import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timm import utils
from timm.layers import apply_test_time_pool
from timm.utils import check_batch_size_retry, decay_batch_step

from timm_hnc.attacks.attacks import normalized
from timm_hnc.cam import CamModel
from timm_hnc.commands.command_line import run_command
from timm_hnc.commands.options.attack_options import threat_of
from timm_hnc.commands.options.validate_options import check_data_named, parse_validate_options
from timm_hnc.data.datasets import class_names
from timm_hnc.data.loading.loader_errors import watched_workers
from timm_hnc.data.loading.skipped_images import SkippedImages
from timm_hnc.errors import DataError, UsageError, first_lines
from timm_hnc.evaluation.compilation import Compilation
from timm_hnc.evaluation.evaluate import batches, create_evaluator, evaluate
from timm_hnc.evaluation.inputs import input_config
from timm_hnc.evaluation.labels import LabelOptions
from timm_hnc.evaluation.loaders import create_eval_dataset, create_eval_loader
from timm_hnc.evaluation.map_pass import watch_maps
from timm_hnc.evaluation.models import load_model
from timm_hnc.evaluation.precision import end_training, on_cpu, resolve_precision, set_up_process
from timm_hnc.evaluation.robustness import robust_figures
from timm_hnc.evaluation.sources import Source, find_sources, use_run_data
from timm_hnc.files.options import flag_of
from timm_hnc.files.tables import without_nan, write_csv, write_json

_logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate as the command line says: figures to stdout, and to --results-file.

    Args:
        argv: the command line, sys.argv[1:] if None.

    Raises:
        UsageError: options are wrong.
        DataError: data or weights cannot be used.
    """
    args, explicit = parse_validate_options(argv)
    use_run_data(args, explicit)
    check_data_named(args)
    for name in ('results_file', 'cam_classes_file'):
        if getattr(args, name) and not Path(getattr(args, name)).parent.is_dir():
            raise UsageError(f'{flag_of(name)} {getattr(args, name)}: its folder does not exist.')
    sources = find_sources(args, explicit)
    accelerator = Accelerator(mixed_precision=resolve_precision(args, explicit), cpu=on_cpu(args))
    set_up_process(args, accelerator)
    utils.random_seed(args.seed)
    if len(sources) == 1:
        results: Any = validate(args, sources[0], accelerator, explicit)
    else:
        _logger.info(f'Evaluating {len(sources)} models.')
        results = _validate_all(args, sources, accelerator, explicit)
    if accelerator.is_main_process:
        # timm's scripts print their results this way, for other programs to read
        sys.stdout.write(f'--result\n{json.dumps(without_nan(results), indent=4)}\n')
        if args.results_file:
            _write_results(args.results_file, results, args.results_format)
    end_training(accelerator)


def validate(args: Namespace, source: Source, accelerator: Accelerator, explicit: frozenset[str]) -> dict[str, Any]:
    """Figures of one model; with --retry in smaller batches if memory runs out.

    Raises:
        UsageError: options are wrong.
        DataError: data or weights cannot be used.
    """
    args = Namespace(**vars(args))
    args.model = source.model if not args.checkpoint else args.model
    while True:
        try:
            return _validate(args, source, accelerator, explicit)
        except RuntimeError as error:
            if isinstance(error, DataError) or not args.retry or not check_batch_size_retry(str(error)):
                raise
            args.batch_size = decay_batch_step(args.batch_size)
            if args.batch_size == 0:
                raise DataError(f'{args.model}: no batch size works: {first_lines(error)}') from error
            _logger.warning(f'{first_lines(error)}: trying batches of {args.batch_size}.')


def _validate_all(
    args: Namespace, sources: list[Source], accelerator: Accelerator, explicit: frozenset[str]
) -> list[dict[str, Any]]:
    results = []
    for source in sources:
        try:
            result = validate(args, source, accelerator, explicit)
        except DataError as error:
            _logger.error(f'{source.model}: {error}')
            continue
        results.append({**result, **({'checkpoint': source.checkpoint} if source.checkpoint else {})})
    metric = 'map' if args.task == 'multilabel' else 'top1'
    return sorted(results, key=lambda result: result[metric], reverse=True)


@watched_workers()
def _validate(args: Namespace, source: Source, accelerator: Accelerator, explicit: frozenset[str]) -> dict[str, Any]:
    args = Namespace(**vars(args))
    with accelerator.local_main_process_first():  # what is downloaded, is downloaded once
        model = load_model(args, source, explicit)
    args.num_classes = model.num_classes if args.num_classes is None else args.num_classes
    parameters = sum(parameter.numel() for parameter in model.parameters())
    data_config = input_config(model, args, use_test_size=not args.use_train_size, verbose=accelerator.is_main_process)
    if args.test_pool:
        model, pooled = apply_test_time_pool(model, data_config)
        data_config = {**data_config, **({'crop_pct': 1.0} if pooled else {})}
    model = _place(model, args, accelerator)
    skipped = SkippedImages()
    dataset = create_eval_dataset(
        args, data_config, args.split, args.num_samples, seed=args.seed, load_bytes=args.tf_preprocessing
    )
    dataset.skipped_images = skipped  # type: ignore[attr-defined]  # travels to the loader's workers
    metrics = _evaluate(model, source, dataset, args, data_config, accelerator)
    count = torch.tensor(metrics.pop('skipped_images'), device=accelerator.device)
    count = accelerator.reduce(count, 'sum')
    skipped.stop()
    return {
        'model': args.model,
        **metrics,
        'param_count': round(parameters / 1e6, 2),
        'img_size': data_config['input_size'][-1],
        'crop_pct': data_config['crop_pct'],
        'interpolation': data_config['interpolation'],
        'skipped_images': int(count),
    }


def _place(model: Any, args: Namespace, accelerator: Accelerator) -> Any:
    dtype = getattr(torch, args.model_dtype) if args.model_dtype else None
    model = model.to(device=accelerator.device, dtype=dtype)
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return Compilation(args)(model)


def _evaluate(
    model: Any,
    source: Source,
    dataset: Any,
    args: Namespace,
    data_config: dict[str, Any],
    accelerator: Accelerator,
) -> dict[str, float]:
    distributed, multi_label = accelerator.num_processes > 1, args.task == 'multilabel'
    loader = create_eval_loader(
        dataset,
        args,
        data_config,
        args.batch_size,
        accelerator.device,
        distributed,
        crop_border_pixels=args.crop_border_pixels,
        tf_preprocessing=args.tf_preprocessing,
    )
    labels = LabelOptions(args, dataset, loader, distributed)
    inputs = partial(
        batches, loader, accelerator.device, getattr(torch, args.model_dtype or 'float32'), args.channels_last
    )
    evaluator = partial(create_evaluator, loader, accelerator.device, multi_label, args.multilabel_threshold)
    threat = threat_of(args, source) if args.attack else None
    watched = watch_maps(model, args, loader, dataset, class_names(dataset, args.num_classes))
    metrics = evaluate(
        watched or model,
        inputs(),
        evaluator(),
        accelerator.autocast,
        distributed,
        on_batch=watched.before(labels) if watched else labels,
        log_interval=args.log_freq,
    )
    more: dict[str, Any] = {'skipped_images': dataset.skipped_images.count}  # of one pass, attacks make more
    if threat is not None:
        attacked = CamModel(model) if args.attack_loss == 'train' else model
        classifier = normalized(attacked, data_config['mean'], data_config['std'])
        try:
            robust = robust_figures(classifier, inputs, evaluator, threat, accelerator.autocast, metrics, distributed)
        except ValueError as error:
            raise UsageError(f'--attack: {error}') from error
        more |= {'attack_space': args.attack_space, 'attack_loss': args.attack_loss}
        more |= {name: value if name.endswith('loss') else round(value, 4) for name, value in robust.items()}
    more |= watched.figures(accelerator) if watched else {}
    if multi_label:
        return {name: round(value, 4) for name, value in metrics.items()} | {'loss': metrics['loss']} | more
    metrics |= labels.accuracy()
    result = {'loss': metrics['loss']}
    for name in ('top1', 'top5'):
        result |= {name: round(metrics[name], 4), f'{name}_err': round(100 - metrics[name], 4)}
    return result | labels.precision_and_recall() | more


def _write_results(path: str, results: Any, format: str) -> None:
    try:
        if format == 'json':
            write_json(path, results)
        else:
            write_csv(path, results if isinstance(results, list) else [results])
    except OSError as error:
        raise UsageError(f"--results-file '{path}' cannot be written: {error}") from error


if __name__ == '__main__':  # accelerate launch -m
    sys.exit(run_command(main))
