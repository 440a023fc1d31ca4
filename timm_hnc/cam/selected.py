"""Scores of chosen classes at every position, at the least cost in time and memory that their sizes allow.

Two ways lead to the same: gathering the k weight rows of every image, or one product with all n rows from which k maps
are taken. The second reads the weights once for the whole batch, but computes n maps an image instead of k.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from timm_hnc.cam.transforms import in_transform

_LINEAR = {'AddmmBackward0', 'MmBackward0'}
_PRODUCTS_PER_COPY = 200
_WIDE_ROWS = 4


def selected_scores(positions: Tensor, weight: Tensor, classes: Tensor, logits: Tensor) -> Tensor:
    """``weight[classes[b, j]] @ positions[b, i]`` for every image b, chosen class j and position i.

    Args:
        positions: (B, L, D).
        weight: (n, D).
        classes: (B, k) class indices.
        logits: (B, n) that the same weight made; only their graph is looked at.

    Returns:
        (B, k, L), in the type of the positions (under autocast, in autocast's).
    """
    _, length, features = positions.shape
    exporting = torch.compiler.is_exporting()  # its sizes are no numbers, and comparing them would make them constants
    if not exporting and one_product_is_cheaper(classes.shape[1], length, features, len(weight)):
        return product_scores(positions, weight, classes)
    if torch.compiler.is_compiling() or in_transform():
        return gathered_scores(positions, weight, classes)
    return _GatheredScores.apply(positions, weight, classes, _logits_gradient(weight, logits))


def one_product_is_cheaper(k: int, positions: int, features: int, num_classes: int) -> bool:
    """Whether all n maps cost less than the k weight rows of every image, from sizes alone.

    A row has D numbers (features) and a map L (positions). To copy a row, twice, and to add its gradient costs as much
    as about 200 products with it: measured on a CPU where D is 10 L to 40 L, both ways cost the same at k of about
    n / 4 for L = 49. Where D is about L, copies cost less at every k (`benchmarks/README.md`).
    """
    return num_classes * positions < k * _PRODUCTS_PER_COPY and features > positions * _WIDE_ROWS


def product_scores(positions: Tensor, weight: Tensor, classes: Tensor) -> Tensor:
    """`selected_scores` by one product of the whole batch with all n rows."""
    scores = torch.nn.functional.linear(positions, weight.to(positions.dtype)).transpose(1, 2)
    return scores.gather(1, classes[:, :, None].expand(-1, -1, scores.shape[2]))


def gathered_scores(positions: Tensor, weight: Tensor, classes: Tensor) -> Tensor:
    """`selected_scores` from copies of the k rows of every image."""
    rows = torch.nn.functional.embedding(classes, weight)
    return torch.matmul(rows.to(positions.dtype), positions.transpose(1, 2))


class _Additions:
    """Rows that wait to be added, in place, to the gradient that the logits hand to the weight.

    The node of that gradient is held by who adds, never here: its hook holds this object, and the circle would keep the
    whole graph.
    """

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight
        self._rows: list[tuple[int, Tensor, Tensor]] = []
        self._finished = -1

    def offer(self, rows: Tensor, classes: Tensor, node: torch.autograd.graph.Node) -> bool:
        """Whether the (B, k, D) rows of the (B, k) classes will be added in this backward pass."""
        task = torch._C._current_graph_task_id()
        if torch.is_grad_enabled() or task == self._finished or not _will_accumulate(node):
            return False
        self._rows.append((task, classes, rows))
        return True

    def add(self, to_weight: tuple[Tensor | None], _: tuple[Tensor | None]) -> None:
        """Hook of the node. It runs after what was made later, so that all rows have come; later ones are refused.

        Where all that reads the logits handed them no gradient, there is none to add to, nor may a hook make one: the
        rows are accumulated here, before the weight's node does nothing.
        """
        self._finished = torch._C._current_graph_task_id()
        while self._rows:
            task, classes, rows = self._rows.pop()
            if task != self._finished:
                continue
            dense = to_weight[0]
            if dense is None:
                if self._weight.grad is None:
                    self._weight.grad = torch.zeros_like(self._weight)
                dense = self._weight.grad
            dense.index_add_(0, classes.flatten(), rows.flatten(0, 1))


def _will_accumulate(node: torch.autograd.graph.Node) -> bool:
    """Whether this backward pass runs the node and then adds to its leaf's ``grad``; `torch.autograd.grad` does not."""
    ((leaf, _),) = node.next_functions
    try:
        return leaf is not None and all(torch._C._will_engine_execute_node(n) for n in (node, leaf))
    except RuntimeError:  # what torch answers under torch.autograd.grad
        return False


class _LogitsGradient(NamedTuple):
    """The node that hands the logits' gradient to the weight, and what is added there."""

    node: torch.autograd.graph.Node
    additions: _Additions


class _GatheredScores(torch.autograd.Function):
    """`gathered_scores` that keeps none of the copied rows for backward, but gathers them once more.

    On a CPU the gradient of the k rows is added in place to the logits' dense one, where that comes to the same leaf in
    the same backward pass: no second (n, D) tensor is cleared, read and added.
    """

    @staticmethod
    def forward(ctx: Any, positions: Tensor, weight: Tensor, classes: Tensor, dense: _LogitsGradient | None) -> Tensor:
        ctx.save_for_backward(positions, weight, classes)
        ctx.dense = dense
        return gathered_scores(positions, weight, classes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        positions, weight, classes = ctx.saved_tensors
        of_positions = of_weight = None
        if ctx.needs_input_grad[0]:
            rows = torch.nn.functional.embedding(classes, weight).to(grad.dtype)
            of_positions = torch.matmul(grad.transpose(1, 2), rows).to(positions.dtype)
        if ctx.needs_input_grad[1]:
            of_rows = torch.matmul(grad, positions.to(grad.dtype)).to(weight.dtype)
            dense = ctx.dense
            if dense is None or not dense.additions.offer(of_rows, classes, dense.node):
                of_weight = torch.ops.aten.embedding_dense_backward(of_rows, classes, len(weight), -1, False)
        return of_positions, of_weight, None, None


def _logits_gradient(weight: Tensor, logits: Tensor) -> _LogitsGradient | None:
    """Where the linear layer that made the logits hands its gradient to the weight; None where another way leads there.

    Only tensors that nobody else holds may be added to in place: what a linear layer makes of its own weight's
    transpose is one, and so is its copy in another type (autocast).
    """
    if not (weight.is_leaf and weight.requires_grad and weight.device.type == 'cpu' and torch.is_grad_enabled()):
        return None
    linear = logits.grad_fn
    if linear is None or linear.name() not in _LINEAR:
        return None
    node = linear.next_functions[-1][0]
    if node is None or node.name() != 'TBackward0':
        return None
    ((leaf, _),) = node.next_functions
    if leaf is not None and leaf.name() == 'ToCopyBackward0':
        node, ((leaf, _),) = leaf, leaf.next_functions
    if getattr(leaf, 'variable', None) is not weight:
        return None
    additions = _Additions(weight)
    node.register_hook(additions.add)
    return _LogitsGradient(node, additions)
