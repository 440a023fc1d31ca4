"""What all processes must know of an update: bad numbers, a signal, a checkpoint that is due. One collective tells it.

It is read before the optimizer's step. On CUDA reading it would make the host wait in every step, so it is read one
update later, and before anything is saved; a run that may leave updates out reads it at once. So do other accelerators:
on Apple's, copies without waiting were seen to bring wrong numbers (github.com/pytorch/pytorch/issues/139550).
"""

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor


@dataclass(frozen=True)
class Notice:
    """What is known of one update.

    Args:
        batches: indices of its batches.
        bad_loss: the loss of a process is not finite.
        bad: the loss or a gradient of a process is not finite.
        here: the loss of this process is not finite; gradients are means over all of them.
        signal: number of a signal that a process got, 0 for none.
        due: the first process's clock says that a checkpoint is due.
    """

    batches: range
    bad_loss: bool
    bad: bool
    here: bool
    signal: int
    due: bool


class Notices:
    """Exchanges notices."""

    def __init__(self, accelerator: Accelerator, at_once: bool = False) -> None:
        self.accelerator = accelerator
        self.at_once = at_once or accelerator.device.type != 'cuda'
        self._pending: tuple[range, Tensor, torch.Event | None] | None = None

    def exchange(self, batches: range, bad_loss: Tensor, bad_gradient: Tensor, signal: int, due: bool) -> Notice | None:
        """Tell the others of an update that is about to be made, as `Notice` has it; all processes call it.

        Returns:
            The notice of this update, or of the one before where that is read later.
        """
        earlier = None if self.at_once else self.settle()
        device = self.accelerator.device
        # torch.tensor(device=) would wait for the device
        ours = [torch.full((), int(number), device=device) for number in (signal, due)]
        told = torch.stack([each.to(device, torch.int64) for each in (bad_loss, bad_loss | bad_gradient, *ours)])
        if self.accelerator.num_processes > 1:
            torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
        told = torch.cat([told, bad_loss.to(told)[None]])
        event = None
        if not self.at_once and device.type == 'cuda':
            told = told.to('cpu', non_blocking=True)
            event = torch.Event(device)
            event.record()
        self._pending = (batches, told, event)
        return self.settle() if self.at_once else earlier

    def settle(self) -> Notice | None:
        """The notice that was not read yet, if there is one."""
        if self._pending is None:
            return None
        (batches, told, event), self._pending = self._pending, None
        if event is not None:
            event.synchronize()
        bad_loss, bad, signal, due, here = told.tolist()
        return Notice(batches, bool(bad_loss), bool(bad), bool(here), signal, bool(due))
