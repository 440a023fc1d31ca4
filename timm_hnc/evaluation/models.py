"""The model that validate.py evaluates."""

import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

import timm
from timm.models import load_checkpoint, parse_model_name, reparameterize_model

from timm_hnc.errors import DataError, UsageError, first_lines
from timm_hnc.evaluation.inputs import model_arguments
from timm_hnc.evaluation.sources import Source
from timm_hnc.weights.loading import reading
from timm_hnc.weights.saving import check_architecture

_logger = logging.getLogger(__name__)


def load_model(args: Namespace, source: Source, explicit: frozenset[str]) -> Any:
    """Create a model with its weights, on the CPU.

    Args:
        args: options of validate.py.
        source: which model and weights.
        explicit: names of the options that were given.

    Raises:
        UsageError: timm refuses the options.
        DataError: the weights are missing, damaged or of another architecture.
    """
    _check_architecture(args, source, explicit)
    try:
        with reading(source.model):
            options = dict(num_classes=args.num_classes, global_pool=args.gp, **args.model_kwargs)
            arguments = model_arguments(source.model, args, **options)
            model = timm.create_model(**arguments, pretrained=source.pretrained)
        if source.checkpoint:
            load_checkpoint(model, source.checkpoint, args.use_ema)
    except (UsageError, DataError):
        raise
    except (TypeError, AssertionError) as error:
        raise UsageError(f"timm cannot make '{source.model}' with these options: {first_lines(error)}") from error
    except Exception as error:  # safetensors, torch and the Hub each have errors of their own
        where = source.checkpoint or source.model
        raise DataError(f"weights '{where}' do not load into '{args.model}': {first_lines(error)}") from error
    if args.reparam:
        model = reparameterize_model(model)
    _logger.info(f'{source.model}: {sum(p.numel() for p in model.parameters()):,} parameters.')
    return model


def _check_architecture(args: Namespace, source: Source, explicit: frozenset[str]) -> None:
    scheme, name = parse_model_name(source.model)
    if scheme == 'local-dir' and args.checkpoint:
        given = args.model if 'model' in explicit else None
        args.model = check_architecture(Path(name), f"--checkpoint '{args.checkpoint}'", given)
