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
        self.counts: dict[str, int] = {}  # of samples that had this scalar: a resumed epoch may have others
        self.count = 0

    def update(self, result: dict[str, Tensor], count: int) -> None:
        """Add the scalars among a step's results."""
        for name, value in result.items():
            if value.ndim == 0:
                self._add(name, value.detach().to(widest(value.device)) * count, count)
        self.count += count

    def add(self, other: 'Averages') -> None:
        """Add what another has summed up."""
        for name, value in other.sums.items():
            self._add(name, value, other.counts[name])
        self.count += other.count

    def _add(self, name: str, value: Tensor, count: int) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value
        self.counts[name] = self.counts.get(name, 0) + count

    def summary(self) -> dict[str, float]:
        """Means so far, of this process."""
        return {name: (value / self.counts[name]).item() for name, value in self.sums.items()}

    def compute(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over all processes."""
        totals = accelerator.reduce(self._own(accelerator.device)).tolist()
        sums, counts = totals[: len(self.sums)], totals[len(self.sums) : -1]
        return {name: value / count for name, value, count in zip(self.sums, sums, counts, strict=True)}

    def state(self, accelerator: Accelerator) -> dict[str, Any]:
        """What every process has summed up, for a checkpoint; all processes call it."""
        own = self._own(accelerator.device)
        return {'names': list(self.sums), 'sums': accelerator.gather(own[None]).cpu()}

    def _own(self, device: torch.device) -> Tensor:
        """Sums, then their counts, then that of all samples."""
        counts = torch.tensor([*self.counts.values(), self.count], dtype=widest(device), device=device)
        return torch.cat([torch.stack([*self.sums.values()]), counts]) if self.sums else counts

    @classmethod
    def restored(cls, state: dict[str, Any], accelerator: Accelerator) -> 'Averages':
        """Those of this process, as it saved them."""
        averages, names, own = cls(), state['names'], state['sums'][accelerator.process_index]
        device = accelerator.device
        *counts, averages.count = (int(count) for count in own[len(names) :].tolist())
        counts = counts or [averages.count] * len(names)  # of a checkpoint of an earlier version
        averages.counts = dict(zip(names, counts, strict=True))
        averages.sums = {name: value.to(device, widest(device)) for name, value in zip(names, own, strict=False)}
        return averages
