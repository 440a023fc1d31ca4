"""A weight of HNC that follows from the gradients: HNC pulls at the maps with a fixed share of the criterion's pull."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from timm_hnc.cam import ClassMaps
from timm_hnc.cam.number_types import at_least_float32, widest
from timm_hnc.losses.hnc import HNCLoss

DEFAULT_SHARE = 0.03
_DECAY = 0.98


class AutoWeight(nn.Module):
    r"""Lambda of Eq. 7 and Eq. 9 from running averages of two norms (not in the paper, where it is tuned).

    .. math::
        \lambda = \rho \, \frac{\overline{\| \partial \text{criterion} / \partial M \|}}
        {\overline{\| \partial \text{HNC} / \partial M \|}}

    with Frobenius norms over a batch: of the criterion over all n maps, of HNC over its k. As the mean of a map is its
    logit, the criterion pulls every position of class o by its gradient at the logit, over h w: neither norm needs a
    backward pass through the network. Several processes take the norms over all their batches together.

    Args:
        share: rho, above 0.

    Attributes:
        settled: the weight stays as it is from here on; whoever trains says so, such as after the warm-up.
        part_of_epoch: measuring began inside an epoch, whose end is then too early to settle.
        norms: (2,) running averages of the criterion's and of HNC's norm, which begin with 0: their ratio is that of
            weighted means.
        unusable: () batches whose norms were not, and which left the weight as it was.

    Raises:
        ValueError: the share is no finite number above 0.

    Example:
        >>> task = HNCTask(CamModel(timm.create_model('resnet18')), hnc=HNCLoss('mse'), hnc_weight=AutoWeight())
        >>> task(torch.randn(2, 3, 224, 224), torch.tensor([7, 3]))['hnc_weight']
    """

    norms: Tensor
    unusable: Tensor

    def __init__(self, share: float = DEFAULT_SHARE) -> None:
        super().__init__()
        if not (math.isfinite(share) and share > 0):
            raise ValueError(f'share = {share}: expected a finite number above 0.')
        self.share = share
        self.settled = self.part_of_epoch = False
        self.register_buffer('norms', torch.zeros(2, dtype=torch.float64))
        self.register_buffer('unusable', torch.zeros((), dtype=torch.long))

    @property
    def value(self) -> Tensor:
        """() the weight in force; 0 until both norms were above 0 and finite once."""
        return torch.where(self.norms[1] > 0, self.share * self.norms[0] / self.norms[1], 0.0)

    @torch.compiler.disable  # it keeps averages
    def follow(
        self,
        criterion: Callable[[Tensor, Tensor], Tensor],
        hnc: HNCLoss,
        class_maps: ClassMaps,
        target: Tensor,
        target_floor: float = 0.0,
    ) -> Tensor:
        """Look at a training batch, unless the weight is settled; the weight to use, ()."""
        if not self.settled:
            self.update(criterion_norm(criterion, class_maps, target), hnc.norm(class_maps, target, target_floor))
        return self.value

    @torch.no_grad()
    def update(self, criterion_norm: Tensor, hnc_norm: Tensor) -> None:
        """Take the norms of a training batch, each () and of this process; no number is read from the device."""
        if self.norms.device != hnc_norm.device:
            self.to(hnc_norm.device)  # in a loop of one's own that moves the model alone
        squares = torch.stack([criterion_norm, hnc_norm]).to(self.norms.dtype).square()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(squares)
        found = squares.sqrt()
        usable = (found.isfinite() & (found > 0)).all()
        self.norms.copy_(torch.where(usable, _DECAY * self.norms + (1 - _DECAY) * found, self.norms))
        self.unusable += ~usable

    def begin_anew(self, part_of_epoch: bool = False) -> None:
        """Forget what was measured, as of another loss."""
        self.norms.zero_()
        self.settled, self.part_of_epoch = False, part_of_epoch

    def get_extra_state(self) -> dict[str, Any]:
        """How far it is, for a checkpoint."""
        return {'settled': self.settled, 'part_of_epoch': self.part_of_epoch}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on as it was."""
        self.settled, self.part_of_epoch = state['settled'], state['part_of_epoch']

    def extra_repr(self) -> str:
        """The option, for print(task)."""
        return f'share={self.share:g}'

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> 'AutoWeight':
        """Move it, but keep the widest type: a half type would round small steps of the averages away."""
        norms, type_there = self.norms, widest(fn(torch.zeros(())).device)
        if type_there == torch.float32:
            norms = self.norms = norms.float()  # float64 cannot go there
        super()._apply(fn, recurse)
        moved = self.norms if norms.is_meta else norms.to(self.norms.device)
        self.norms = moved.to(type_there)
        return self


def criterion_norm(criterion: Callable[[Tensor, Tensor], Tensor], class_maps: ClassMaps, target: Tensor) -> Tensor:
    """Frobenius norm of the gradient of a criterion on logits with respect to all n maps of a batch, a scalar."""
    logits = at_least_float32(class_maps.logits.detach()).requires_grad_()
    with torch.enable_grad():
        [gradient] = torch.autograd.grad(criterion(logits, target), logits)
    return (gradient / class_maps.num_positions**0.5).norm()
