"""What torch's functions do to a tensor that is followed through a network: the groups that class maps rest on."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only


def names(text: str) -> frozenset[str]:
    """A group of functions."""
    return frozenset(text.split())


# affine in the tensors that are followed
LINEAR = names("""
    add sub neg sum mean linear conv1d conv2d cat concat stack reshape view view_as reshape_as flatten unflatten squeeze
    unsqueeze permute transpose t mT swapaxes movedim moveaxis getitem select narrow index_select unbind chunk split
    tensor_split expand expand_as broadcast_to repeat repeat_interleave pad roll flip interpolate contiguous clone to
    type type_as float double half bfloat16 avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d
""")
# element by element f(z) with f(0) = 0, so that f(z) = gate * z; detached by the gate f(z) / z
GATED = names("""
    relu relu6 gelu silu mish hardswish hardtanh leaky_relu elu celu selu prelu tanh softsign square pow dropout
    normalize
""")
# what comes out is a weight, a scale or a shape and no content: detached at its value
DETACHED = names("""
    softmax log_softmax sigmoid hardsigmoid rsqrt sqrt reciprocal exp log var std norm vector_norm detach data new_empty
    new_zeros new_ones new_tensor zeros_like ones_like empty_like rand_like randn_like bernoulli argmax topk gt lt ge le
    eq ne
""")
# linear, and element by element of the tensors that it takes
AS_THEY_ARE = names('add sub neg contiguous clone to type type_as float double half bfloat16')
# here a detached tensor would be content, which has its positions no more, not a scale
JOINING = names('add sub cat concat stack')
NORMS = names('layer_norm rms_norm batch_norm group_norm')
# only these lay elements out anew, so that positions may end in other dimensions
RESHAPING = names("""
    reshape view flatten unflatten squeeze unsqueeze permute transpose t mT swapaxes movedim moveaxis getitem select
    narrow unbind chunk split tensor_split expand
""")
_OPERATORS = {
    **dict.fromkeys(('radd', 'iadd'), 'add'),
    **dict.fromkeys(('rsub', 'isub', 'subtract'), 'sub'),
    **dict.fromkeys(('rmul', 'imul', 'multiply'), 'mul'),
    **dict.fromkeys(('truediv', 'itruediv', 'true_divide', 'divide'), 'div'),
    **dict.fromkeys(('bmm', 'mm'), 'matmul'),
    'ipow': 'pow',
    'rtruediv': 'reciprocal',
}


@dataclass
class Call:
    """One call of a torch function on tensors that are followed.

    Args:
        name: the plain name of the function: 'add' for x + y, x.add_(y) and torch.add(x, y).
        function: to be called again on other tensors.
        args: its arguments, the first one being the tensor.
        kwargs: its keyword arguments.
        value: what the first argument held before the call, which may have changed it.
        out: what the function returned.
        in_place: the call changed its first argument.
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    value: Any
    out: Any
    in_place: bool = False

    @property
    def options(self) -> tuple[Any, ...]:
        """The arguments behind the tensor."""
        return self.args[1:]

    def argument(self, index: int, name: str, default: Any = None) -> Any:
        """The option at a place, wherever it was given: by place, or by name."""
        return self.options[index] if len(self.options) > index else self.kwargs.get(name, default)

    @property
    def layer(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of linear() or conv2d()."""
        return self.argument(0, 'weight'), self.argument(1, 'bias')

    @property
    def dims(self) -> frozenset[int] | None:
        """The dimensions, counted from 0, that mean() or sum() is over; None for all of them."""
        dim = self.argument(0, 'dim', self.kwargs.get('axis'))
        each = (dim,) if isinstance(dim, int) else tuple(dim or ())
        return frozenset(one % self.value.ndim for one in each) or None

    def with_constants(self, constants: Collection[int]) -> 'Call':
        """The same call with some of its tensors, by id, cut off from the gradient."""

        def constant(tensor: Tensor) -> Tensor:
            return tensor.detach() if id(tensor) in constants else tensor

        args, kwargs = tree_map_only(Tensor, constant, (self.args, self.kwargs))
        value = self.value.detach() if id(self.args[0]) in constants else self.value
        return replace(self, args=args, kwargs=kwargs, value=value)

    def repeated(self, others: Mapping[int, Tensor]) -> Any:
        """The same call on other tensors, given by the id of those that they replace."""
        args, kwargs = tree_map_only(Tensor, lambda each: others.get(id(each), each), (self.args, self.kwargs))
        if self.in_place:
            first = others.get(id(self.args[0]), self.value)
            args = (first.clone(), *args[1:])
        return self.function(*args, **kwargs)


def plain_name(function: Callable[..., Any]) -> str:
    """Name of a torch function without underscores, operators by what they do, properties by their own name."""
    name = getattr(function, '__name__', '')
    if name == '__get__':
        name = getattr(getattr(function, '__self__', None), '__name__', name)
    name = name.strip('_')
    return _OPERATORS.get(name, name)


def works_in_place(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call changes its first argument."""
    name = getattr(function, '__name__', '')
    if name.startswith('__'):
        return name in ('__iadd__', '__isub__', '__imul__', '__itruediv__', '__ipow__', '__setitem__')
    return name.endswith('_') or bool(kwargs.get('inplace')) or (name in GATED and args[-1] is True)


def tensors_in(*containers: Any) -> list[Tensor]:
    """The tensors in nested arguments, in order."""
    return [leaf for leaf in tree_leaves(containers) if isinstance(leaf, Tensor)]
