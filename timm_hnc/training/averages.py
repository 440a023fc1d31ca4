"""Means over an epoch."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from timm_hnc.cam.number_types import widest


class Averages:
    """Sample-weighted means of a task's scalars, kept on the device: no step waits for the host."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def update(self, result: dict[str, Tensor], count: int) -> None:
        """Add the scalars among a step's results."""
        for name, value in result.items():
            if value.ndim == 0:
                self.sums[name] = self.sums.get(name, 0.0) + value.detach().to(widest(value.device)) * count
        self.count += count

    def add(self, other: 'Averages') -> None:
        """Add what another has summed up."""
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += other.count

    def summary(self) -> dict[str, float]:
        """Means so far, of this process."""
        return {name: (value / self.count).item() for name, value in self.sums.items()}

    def compute(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over all processes."""
        *sums, count = accelerator.reduce(self._own(accelerator.device)).tolist()
        return {name: value / count for name, value in zip(self.sums, sums, strict=True)}

    def state(self, accelerator: Accelerator) -> dict[str, Any]:
        """What every process has summed up, for a checkpoint; all processes call it."""
        own = self._own(accelerator.device)
        return {'names': list(self.sums), 'sums': accelerator.gather(own[None]).cpu()}

    def _own(self, device: torch.device) -> Tensor:
        return torch.stack([*self.sums.values(), torch.tensor(self.count, dtype=widest(device), device=device)])

    @classmethod
    def restored(cls, state: dict[str, Any], accelerator: Accelerator) -> 'Averages':
        """Those of this process, as it saved them."""
        averages = cls()
        *sums, count = state['sums'][accelerator.process_index]
        averages.count = int(count)
        device = accelerator.device
        sums = [value.to(device, widest(device)) for value in sums]
        averages.sums = dict(zip(state['names'], sums, strict=True))
        return averages
