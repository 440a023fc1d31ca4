"""timm-hnc validate, and validate.py: figures of weights on a validation set."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from accelerate import Accelerator
from timm import utils

from timm_hnc.commands.command_line import print_result, run_command
from timm_hnc.commands.options.validate_options import parse_validate_options
from timm_hnc.errors import DataError, UsageError, first_lines
from timm_hnc.evaluation.options import ValidateOptions
from timm_hnc.evaluation.sources import Source, find_sources
from timm_hnc.evaluation.validation import validate
from timm_hnc.files.run_options import options_of_run
from timm_hnc.files.tables import write_csv, write_json
from timm_hnc.options import check_output_file
from timm_hnc.runtime.device import agreed_device
from timm_hnc.runtime.process import end_training, evaluation_accelerator

_logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate as the command line says: figures to stdout, and to --results-file."""
    options, explicit, others = parse_validate_options(argv)
    sources = find_sources(options.model, 'model' in explicit)
    options.data.check_named()
    check_output_file('results_file', others['results_file'])
    if len(sources) > 1 and options.maps.cam_classes_file:
        raise UsageError(f'--cam-classes-file {options.maps.cam_classes_file}: for one model, not {len(sources)}.')
    options = replace(options, device=agreed_device(options.device, explicit))
    accelerator = evaluation_accelerator(options.device)
    utils.random_seed(options.loader.seed)
    if len(sources) == 1:
        results: Any = validate(options, sources[0], accelerator) | _teacher_of(options.model.checkpoint)
    else:
        _logger.info(f'Evaluating {len(sources)} models.')
        results = _validate_all(options, sources, accelerator)
    if accelerator.is_main_process:
        print_result(results)
        if others['results_file']:
            _write_results(others['results_file'], results, others['results_format'])
    end_training(accelerator)


def _teacher_of(checkpoint: str) -> dict[str, str]:
    """The model that a run learned from, by its name; empty without one."""
    teacher = options_of_run(checkpoint).get('kd_model_name')
    return {'teacher': teacher} if teacher else {}


def _validate_all(options: ValidateOptions, sources: list[Source], accelerator: Accelerator) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    refused: UsageError | None = None
    for source in sources:
        try:
            result = validate(options, source, accelerator, True)
        except (DataError, UsageError) as error:
            if accelerator.num_processes > 1 and isinstance(error, DataError):
                raise  # the others may have read other data, and be waiting for this one
            _logger.error(f'{source.model}: {error}')
            refused = error if isinstance(error, UsageError) else refused
            continue
        except Exception as error:  # whatever a model raises that the images do not fit
            if accelerator.num_processes > 1:
                raise  # the others may be waiting for this one
            _logger.error(f'{source.model}: {first_lines(error)}')
            continue
        except KeyboardInterrupt:
            if not results or accelerator.num_processes > 1:
                raise
            _logger.warning(f'{source.model} was interrupted: the figures are those of the models before it.')
            break
        results.append({**result, **({'checkpoint': source.checkpoint} if source.checkpoint else {})})
    if not results:
        # options that were refused are as wrong for every other model
        raise refused or DataError(f'none of {len(sources)} models could be evaluated; why, is said above.')
    metric = 'map' if options.task.multi_label else 'top1'
    return sorted(results, key=lambda result: result[metric], reverse=True)


def _write_results(path: str, results: Any, format: str) -> None:
    try:
        if format == 'json' or path.lower().endswith('.json'):
            write_json(path, results)
        else:
            write_csv(path, results if isinstance(results, list) else [results])
    except OSError as error:
        raise UsageError(f"--results-file '{path}' cannot be written: {error}") from error


if __name__ == '__main__':  # accelerate launch -m
    sys.exit(run_command(main))
