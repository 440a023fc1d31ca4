"""From options to the arguments of timm's criterion."""

from collections.abc import Callable
from typing import Any

from timm.loss import load_class_stats, resolve_class_weights
from torch import Tensor

from timm_hnc.errors import UsageError
from timm_hnc.options import flag_of
from timm_hnc.training.setup.objective.loss_options import LossOptions


def timm_criterion_kwargs(
    options: LossOptions, soft_targets: bool = False, jsd_splits: int = 0, num_classes: int | None = None
) -> dict[str, Any]:
    """The arguments of timm's `create_classification_loss`, without `multi_label`, which the task passes itself."""
    stats = read_class_stats(options, None)

    def weights(kind: str, name: str) -> float | Tensor | None:
        value, power = getattr(options, name), options.loss_weight_power
        found = _read(name, value, lambda: resolve_class_weights(value, kind, class_stats=stats, power=power))
        if isinstance(found, Tensor):
            _check_length(name, value, found, num_classes)
        return found

    names = ['bce_target_thresh', 'bce_sum', 'asl_gamma_pos', 'asl_gamma_neg', 'asl_clip', 'asl_reduction']
    names += ['poly_epsilon', 'poly_gamma', 'poly_alpha', 'twoway_tp', 'twoway_tn']
    kwargs = {
        'loss_type': options.loss,
        'smoothing': options.smoothing,
        'soft_targets': soft_targets,
        'jsd_splits': jsd_splits,
        'class_weight': weights('class_weight', 'loss_class_weight'),
        'pos_weight': weights('pos_weight', 'loss_pos_weight'),
        **{name: getattr(options, name) for name in names},
    }
    if options.loss == 'db' and stats is not None:
        _check_length('class_stats', options.class_stats, stats[0], num_classes)
        kwargs['class_counts'], kwargs['num_samples'] = stats
    return kwargs


def read_class_stats(options: LossOptions, num_classes: int | None) -> tuple[Tensor, int] | None:
    """(n,) training samples of every class, and how many samples there are, from --class-stats, if it is given."""
    stats = _read('class_stats', options.class_stats, lambda: load_class_stats(options.class_stats))
    if stats is not None:
        _check_length('class_stats', options.class_stats, stats[0], num_classes)
    return stats


def _check_length(name: str, value: str | None, values: Tensor, num_classes: int | None) -> None:
    if num_classes not in (None, len(values)):
        raise UsageError(f'{flag_of(name)} {value}: {len(values)} values for --num-classes {num_classes}.')


def _read(name: str, value: str | None, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        hint = ' (no file, method or list of numbers)' if 'could not convert' in str(error) else ''
        raise UsageError(f'{flag_of(name)} {value}: {str(error).rstrip(".")}{hint}.') from error
