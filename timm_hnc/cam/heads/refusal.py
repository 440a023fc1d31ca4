"""Why a head is refused, on its way to who says it to the user."""

from torch import nn

ERRORS = (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError, AssertionError, IndexError)
"""What models raise where they cannot do what is tried on them."""


class Refused(Exception):
    """No exact class maps.

    Args:
        reason: why.
        way_out: what to do; None where that depends on the model.
    """

    def __init__(self, reason: str, way_out: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.way_out = way_out


def other_number(told: int, found: int) -> str:
    """The reason of a classifier that somebody put there by hand."""
    return f'its num_classes says {told}, and it has {found} logits'


def changed_since_probe(model: nn.Module, reason: str) -> ValueError:
    """The error of a pass that is not as the probed one."""
    return ValueError(f'no class maps: {type(model).__name__} works otherwise than when it was probed ({reason}).')
