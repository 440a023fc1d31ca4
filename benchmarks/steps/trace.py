"""Where the added time of a step goes, by torch.profiler."""

from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from steps.cases import Case
from steps.measure import build_model, build_step

_STEPS = 5
_SHOWN = 12


def trace(case: Case, variant: str, device: str, folder: Path) -> str:
    """A Markdown table of the operations in which a variant and cross-entropy differ most, in milliseconds a step.

    The traces go to the folder, for chrome://tracing or Perfetto.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = build_model(case, device)
    steps = {name: build_step(model, name, case, device) for name in ('ce', variant)}
    found: dict[str, dict[str, float]] = {}
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device != 'cpu' else [])]
    for name, step in steps.items():
        step()
        step()
        with profile(activities=activities) as profiler:
            for _ in range(_STEPS):
                step()
        profiler.export_chrome_trace(str(folder / f'{case.model}-{case.classes}-{name}.json'))
        found[name] = {
            each.key: (each.self_device_time_total if device != 'cpu' else each.self_cpu_time_total) / 1e3 / _STEPS
            for each in profiler.key_averages()
        }
    return _table(found['ce'], found[variant], variant)


def _table(ce: dict[str, float], ours: dict[str, float], variant: str) -> str:
    added = {name: ours.get(name, 0.0) - ce.get(name, 0.0) for name in {*ce, *ours}}
    names = sorted(added, key=lambda name: -abs(added[name]))[:_SHOWN]
    rows = [f'| {name} | {ce.get(name, 0):.2f} | {ours.get(name, 0):.2f} | {added[name]:+.2f} |' for name in names]
    total = f'| all | {sum(ce.values()):.2f} | {sum(ours.values()):.2f} | {sum(added.values()):+.2f} |'
    return '\n'.join([f'| operation, ms a step | ce | {variant} | added |\n|---|--:|--:|--:|', *rows, total])
