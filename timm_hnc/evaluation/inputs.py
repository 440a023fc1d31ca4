"""Which images a model takes: its arguments and its preprocessing, by timm's rules for its scripts."""

from argparse import Namespace
from typing import Any

from timm.data import resolve_input_data_config
from timm.models import resolve_model_input_args

from timm_hnc.errors import UsageError, first_lines


def model_arguments(name: str, args: Namespace, **options: Any) -> dict[str, Any]:
    """Arguments for `timm.create_model`, with the image size and channels that were asked for.

    Args:
        name: of the model, as timm takes it.
        args: options with in_chans, img_size and input_size. A model of fixed size is made for that size; of one that
            takes any, the size is a matter of preprocessing.
        **options: further arguments; None leaves one out.

    Raises:
        UsageError: the options contradict each other.
    """
    asked = {key: getattr(args, key) for key in ('in_chans', 'img_size', 'input_size')}
    try:
        return resolve_model_input_args(name, asked, **options)
    except (ValueError, TypeError) as error:
        raise UsageError(f"'{name}' cannot be made with these options: {first_lines(error)}") from error


def input_config(model: Any, args: Namespace, **options: Any) -> dict[str, Any]:
    """Input size, mean, std, interpolation and crop.

    Args:
        model: plain timm model.
        args: options of train.py or validate.py.
        **options: for timm's `resolve_input_data_config`.

    Raises:
        UsageError: the model does not take what the options say.
    """
    try:
        return resolve_input_data_config(model, vars(args), **options)
    except ValueError as error:
        raise UsageError(f"'{args.model}' does not take such images: {first_lines(error)}") from error
