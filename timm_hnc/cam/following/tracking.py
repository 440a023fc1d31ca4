"""Following tensors through a network's own forward pass, without touching what it computes."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from timm_hnc.cam.following.operations import DETACHED, JOINING, Call, plain_name, tensors_in, works_in_place
from timm_hnc.cam.transforms import in_transform


def of_its_own() -> AbstractContextManager[Any]:
    """What runs inside keeps its own tensors for backward: a checkpointed block does not count them among its own."""
    if in_transform():  # which take no such hooks
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)


@dataclass(frozen=True)
class Lost:
    """A tensor that cannot be followed any further."""

    reason: str


class Detached:
    """A tensor that depends on the first ones and is detached at its value: a constant without a gradient."""


class Tracker(TorchFunctionMode):
    """Keeps a companion for every tensor that depends on the first ones, while the real functions run as they are.

    A subclass says in `follow` what becomes of the companions. What is detached reaches it without a gradient.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []  # names of the functions that were called on what is followed
        self._companions: dict[int, tuple[Tensor, Any]] = {}  # by id; the tensor is kept so that its id stays its own

    def track(self, tensor: Tensor, companion: Any) -> None:
        """Follow a tensor from here on."""
        self._companions[id(tensor)] = (tensor, companion)

    def companion(self, tensor: Any) -> Any:
        """The companion of a tensor, None if it is not followed, or anything else."""
        return self._companions.get(id(tensor), (None, None))[1]

    def forget(self) -> None:
        """Let go of all tensors."""
        self._companions.clear()

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        """Where an error ends it, let go of all tensors: memory may be what it lacked."""
        super().__exit__(kind, value, traceback)
        if kind is not None:
            self.forget()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function as it is, then follow its result."""
        kwargs = kwargs or {}
        if not any(id(tensor) in self._companions for tensor in tensors_in(args, kwargs)):
            return func(*args, **kwargs)
        if not args:  # the tensor given by name
            first = 'input' if 'input' in kwargs else next(iter(kwargs))
            args, kwargs = (kwargs[first],), {key: kwargs[key] for key in kwargs if key != first}
        value = args[0]
        in_place = isinstance(value, Tensor) and works_in_place(func, args, kwargs)
        if in_place and self.needs_value(value):
            value = value.clone()
        out = func(*args, **kwargs)
        name = plain_name(func)
        if name == 'setitem':
            self.track(args[0], Lost('assignment to a part of a tensor'))
        elif tensors_in(out):
            self._follow(Call(name, func, args, kwargs, value, out, in_place))
        return out

    def _follow(self, call: Call) -> None:
        self.calls.append(call.name)
        companions = {id(tensor): self.companion(tensor) for tensor in tensors_in(call.args, call.kwargs)}
        followed = [companion for companion in companions.values() if companion is not None]
        detached = {each for each, companion in companions.items() if isinstance(companion, Detached)}
        if call.name in DETACHED or len(detached) == len(followed):
            self.detach(call)
            companion: Any = Detached()
        elif detached and call.name in JOINING:
            companion = Lost(f'{call.name}() of what is no mean over positions')
        else:
            companion = self.follow(call.with_constants(detached) if detached else call)
        if isinstance(companion, (tuple, list)):
            for tensor, each in zip(call.out, companion, strict=True):
                self._set(tensor, each)
        else:
            for tensor in tensors_in(call.out):
                self._set(tensor, companion)

    def _set(self, tensor: Tensor, companion: Any) -> None:
        if companion is None:
            self._companions.pop(id(tensor), None)
        else:
            self.track(tensor, companion if tensor.is_floating_point() else Detached())

    def needs_value(self, tensor: Tensor) -> bool:
        """Whether `follow` wants to know what a followed tensor held before it is changed in place."""
        return True

    def detach(self, call: Call) -> None:
        """Take note of a function whose result is detached."""

    def follow(self, call: Call) -> Any:
        """The companion of the call's result (a tuple of them for a tuple), None where it is followed no further."""
        raise NotImplementedError
