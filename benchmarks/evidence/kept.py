"""What shows how figures came about is kept beside the tables, and another machine goes on from it."""

from pathlib import Path
from shutil import copyfile, copytree
from tempfile import TemporaryDirectory

from evidence.regimes import Regime
from evidence.runs import add_choices, read_choices

KEPT = ('args.yaml', 'summary.csv', 'figures.json', 'result.json')


def keep(regime: Regime, folder: Path, kept: Path) -> None:
    """Copy what shows how the figures of a regime came about to the folder of all that is kept."""
    target = kept / regime.key
    for run in _complete(folder):
        copy = target / run.relative_to(folder)
        copy.mkdir(parents=True, exist_ok=True)
        for file in KEPT:
            if (run / file).is_file():
                copyfile(run / file, copy / file)
    if chosen := read_choices(folder):
        add_choices(target, chosen)


def _complete(folder: Path) -> list[Path]:
    """Run folders that are trained, and measured where they are to be."""
    runs = [file.parent for file in sorted(folder.glob('runs/*/figures.json'))]
    runs += [file.parent for file in sorted(folder.glob('trials/runs/*/summary.csv'))]
    return [run for run in runs if (run / 'result.json').is_file()]


def take_up(regime: Regime, folder: Path, kept: Path) -> None:
    """Copy what was kept of a regime to the folder of its runs, but for runs that are there, begun or complete."""
    source = kept / regime.key
    for run in _complete(source):
        target = folder / run.relative_to(source)
        if not target.exists():
            _copy_at_once(run, target, folder)
    if chosen := read_choices(source):
        add_choices(folder, chosen, read_choices(folder))


def _copy_at_once(run: Path, target: Path, folder: Path) -> None:
    """Copy a run so that it is never there by half, neither if this is killed nor if another process does the same."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix='.') as unfinished:
        copy = copytree(run, Path(unfinished) / run.name)
        try:
            copy.rename(target)
        except OSError:
            if not target.exists():
                raise
