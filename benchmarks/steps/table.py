"""The figures as CSV and Markdown, with what they were measured on."""

import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import timm
import torch

from steps.cases import Case
from steps.measure import median_interval
from timm_hnc.files.tables import write_csv

_HEAD = (
    '| model | classes | k | px | batch | type | mode | variant | time over CE (median, 95 %) | added, ms | rounds '
    '| memory over CE |\n|---|--:|--:|--:|--:|---|---|---|---|--:|--:|--:|'
)


@dataclass(frozen=True)
class Row:
    """One variant of one case.

    Args:
        case: what was measured.
        variant: 'mse', 'kd' or 'full'.
        ce_ms: median time of a cross-entropy step in milliseconds.
        ratio: median over the rounds of the variant's time over cross-entropy's.
        low: end of its 95 % confidence interval.
        high: end of its 95 % confidence interval.
        added_ms: median of the differences, in milliseconds.
        memory: peak memory over cross-entropy's, None where it was not measured.
    """

    case: Case
    variant: str
    ce_ms: float
    ratio: float
    low: float
    high: float
    added_ms: float
    memory: float | None

    @classmethod
    def of(cls, case: Case, variant: str, ce: list[float], seconds: list[float], memory: float | None) -> 'Row':
        """The row of times in seconds, a round each."""
        rounds = list(zip(seconds, ce, strict=True))
        added = median_interval([own - other for own, other in rounds])[0]
        ratios = median_interval([own / other for own, other in rounds])
        return cls(case, variant, median_interval(ce)[0] * 1e3, *ratios, added * 1e3, memory)

    def markdown(self) -> str:
        """The row for people."""
        case, memory = self.case, '' if self.memory is None else f'{self.memory:.3f}'
        return (
            f'| {case.model} | {case.classes:,} | {case.topk} | {case.img_size} | {case.batch_size} | {case.dtype} '
            f'| {case.mode} | {self.variant} | {self.ratio:.3f} ({self.low:.3f} to {self.high:.3f}) '
            f'| {self.added_ms:.1f} | {case.pairs} | {memory} |'
        )


def machine(device: str) -> str:
    """What runs the steps, without names of hosts."""
    if device != 'cpu':
        return f'{torch.cuda.get_device_name()}, torch {torch.__version__}, timm {timm.__version__}'
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
    return (
        f'{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads, {memory:.0f} GiB, '
        f'torch {torch.__version__}, timm {timm.__version__}'
    )


def write(rows: list[Row], out: Path, device: str, command: str) -> None:
    """Write OUT.csv and OUT.md."""
    out.parent.mkdir(parents=True, exist_ok=True)
    flat = [{**asdict(row.case), **{k: v for k, v in asdict(row).items() if k != 'case'}} for row in rows]
    write_csv(out.with_suffix('.csv'), flat)
    text = [
        '# What an HNC step costs beside a cross-entropy step',
        f'`{command}`. Machine: {machine(device)}.',
        'Forward and backward pass, channels-last, interleaved rounds on one set of weights. `mse` and `kd` are ours, '
        '`full` is the published way: a 1x1 convolution to all n maps, a mask, an MSE. Memory: the peak of fresh '
        'processes, all resident memory on a CPU, that of the allocator on a GPU.',
        '\n'.join([_HEAD, *(row.markdown() for row in rows)]),
    ]
    out.with_suffix('.md').write_text('\n\n'.join(text) + '\n')
