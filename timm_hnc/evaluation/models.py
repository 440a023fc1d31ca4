"""The model that validate.py evaluates."""

import logging
from typing import Any

import timm
from timm.models import load_checkpoint, reparameterize_model

from timm_hnc.data.inputs import InputOptions, model_arguments
from timm_hnc.errors import DataError, UsageError, first_lines
from timm_hnc.evaluation.sources import Source, SourceOptions
from timm_hnc.weights.loading import WITH_WEIGHTS, check_classes, is_of_classes, reading

_logger = logging.getLogger(__name__)


def load_model(source: Source, options: SourceOptions, input: InputOptions) -> Any:
    """Create a model with its weights, on the CPU."""
    model = None
    try:
        with reading(source.model):
            arguments = dict(num_classes=input.num_classes, global_pool=input.gp, **input.model_kwargs)
            arguments = model_arguments(source.model, input, **arguments)
            model = timm.create_model(**arguments, pretrained=source.pretrained)
        if source.model.startswith(WITH_WEIGHTS):
            check_classes(model, options.checkpoint or source.model)
        if source.checkpoint:
            load_checkpoint(model, source.checkpoint, options.use_ema)
    except (UsageError, DataError):
        raise
    except (TypeError, AssertionError) as error:
        raise UsageError(f"timm cannot make '{source.model}' with these options: {first_lines(error)}") from error
    except Exception as error:  # safetensors, torch and the Hub each have errors of their own
        where = source.checkpoint or source.model
        way_out = ' See --num-classes.' if is_of_classes(error, model) else ''
        raise DataError(f"weights '{where}' do not load into '{source.name}': {first_lines(error)}{way_out}") from error
    if options.reparam:
        model = reparameterize_model(model)
    _logger.info(f'{source.model}: {sum(p.numel() for p in model.parameters()):,} parameters.')
    return model
