"""Runs of train.py for the cells of a table: which are done, what comes next, and their figures."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tables.plan import MULTI_LABEL_METRICS, ROOT, Cell
from timm_hnc.commands.options.train_options import parse_train_options
from timm_hnc.errors import DataError, UsageError
from timm_hnc.files.run_options import dump_yaml
from timm_hnc.files.tables import read_csv
from timm_hnc.options import flattened

METRICS = ('top1', 'top5')
# input column, label column and evaluation split of a Hugging Face-style folder
COLUMNS = {
    'cifar100': ('img', 'fine_label', 'test'),
    'imagenet': ('image', 'label', 'validation'),
    'cub200': ('image', 'label', 'test'),
    'coco': ('image', 'labels', 'validation'),
    'voc2007': ('image', 'labels', 'validation'),
}
# options that say where things lie and how they are computed, not what is trained
_ELSEWHERE = {
    *('data', 'data_dir', 'dataset', 'dataset_download', 'input_key', 'target_key', 'val_split'),
    *('config', 'output', 'experiment', 'resume', 'workers', 'pin_mem', 'device', 'torchcompile'),
    *('torchcompile_mode', 'channels_last', 'cam_images', 'checkpoint_hist', 'log_interval', 'recovery_interval'),
    *('checkpoint_interval', 'pretrained_path', 'map_teacher'),
    *(
        'no_report',
        'validation_batch_size',
        'no_prefetcher',
        'save_epochs',
        'log_tensorboard',
        'log_wandb',
        'wandb_project',
    ),
}
# options of a run that its evaluation repeats
_REPEATED = ('dataset', 'data_dir', 'input_key', 'target_key', 'workers', 'device', 'amp_dtype')
_REPEATED_SWITCHES = ('amp', 'channels_last')


def data_flags(data: str, data_dir: str | None) -> list[str]:
    """Flags of train.py that name the data.

    Args:
        data: 'cifar100', 'imagenet', 'cub200', 'coco', 'voc2007', or '' where the preset brings its own.
        data_dir: a folder as torchvision, timm or timm_hnc reads it, or a Hugging Face-style one with parquet files.

    Raises:
        UsageError: there is no folder.
    """
    if not data:
        return []
    if not data_dir:
        raise UsageError(f'--data-dir: needed, the folder of {data} (CIFAR-100 is downloaded to it).')
    if not holds_parquet(data_dir):
        return ['--data-dir', data_dir]
    image, label, split = COLUMNS[data]
    return ['--dataset', f'hfds/{data_dir}', '--input-key', image, '--target-key', label, '--val-split', split]


def holds_parquet(data_dir: str) -> bool:
    """Whether there are parquet files in a folder or its children."""
    folder = Path(data_dir)
    return any(next(folder.glob(pattern), None) for pattern in ('*.parquet', '*/*.parquet'))


@dataclass(frozen=True)
class Plan:
    """What the runs of a table share.

    Args:
        folder: of the preset; runs lie in `runs/`.
        flags: of train.py that name the data.
        extra: of train.py, from the command line; they win, but for the seed.
        test_split: which figures on test data come from.
    """

    folder: Path
    flags: Sequence[str] = ()
    extra: Sequence[str] = ()
    test_split: str = 'test'
    _options: dict[str, dict[str, Any]] = field(default_factory=dict, compare=False)

    def runs(self, cells: Iterable[Cell], seeds: int) -> list['Run']:
        """The runs of cells, seed by seed; cells of one name share theirs."""
        named = {cell.name: cell for cell in cells}
        return [Run(self, cell, seed) for seed in range(seeds) for cell in named.values()]

    def finished(self, cell: Cell) -> list['Run']:
        """The complete runs of a cell, of every seed that is there."""
        prefix = f'{cell.name}-seed'
        folders = (self.folder / 'runs').glob(f'{prefix}*')
        seeds = sorted(int(path.name.removeprefix(prefix)) for path in folders if path.name[len(prefix) :].isdigit())
        return [run for run in (Run(self, cell, seed) for seed in seeds) if run.next_step is None]

    def options(self, cell: Cell) -> dict[str, Any]:
        """The options that a cell's flags come to, checked by train.py's own parser.

        Raises:
            UsageError: train.py would refuse them.
        """
        if cell.name not in self._options:
            options, *_ = parse_train_options([*cell.flags, *self.flags, *self.extra])
            self._options[cell.name] = flattened(options)
        return self._options[cell.name]


@dataclass(frozen=True)
class Run:
    """A training of a cell with one seed.

    Args:
        plan: what it shares with others.
        cell: what is trained.
        seed: of train.py.
    """

    plan: Plan
    cell: Cell
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f'{self.cell.name}-seed{self.seed}'

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return self.plan.folder / 'runs' / self.name

    @property
    def options(self) -> dict[str, Any]:
        """The options that its flags come to."""
        return self.plan.options(self.cell) | {'seed': self.seed}

    @property
    def next_step(self) -> str | None:
        """'train' (from the start or from the last checkpoint), 'test', or None for a complete run."""
        if not (self.folder / 'result.json').is_file():
            return 'train'
        if self.cell.evaluation and not self._evaluated.is_file():
            return 'test'
        return None

    def command(self, step: str) -> list[str]:
        """The script of a step and its arguments."""
        return self._test_command() if step == 'test' else self._train_command()

    def _train_command(self) -> list[str]:
        return [
            *(str(ROOT / 'train.py'), *self.cell.flags, *self.plan.flags),
            *('--cam-images', '0', '--no-report', '--checkpoint-hist', '1', *self.plan.extra, '--seed', str(self.seed)),
            *('--output', str(self.folder.parent), '--experiment', self.name, '--resume', 'auto'),
        ]

    def _test_command(self) -> list[str]:
        options = self.recorded() or self.options
        command = [str(ROOT / 'validate.py'), '--checkpoint', str(self.folder / 'last')]
        for name in _REPEATED:
            if options.get(name) not in (None, ''):
                command += [f'--{name.replace("_", "-")}', str(options[name])]
        command += [f'--{name.replace("_", "-")}' for name in _REPEATED_SWITCHES if options.get(name)]
        results = ('--results-format', 'json', '--results-file', str(self.unfinished_test))
        flags = self.cell.evaluation.flags if self.cell.evaluation else ()
        return [*command, '--split', self.plan.test_split, *flags, *results]

    @property
    def unfinished_test(self) -> Path:
        """Where the evaluation writes; the file is renamed when it is whole."""
        return self._evaluated.with_suffix('.unfinished')

    @property
    def _evaluated(self) -> Path:
        name = self.cell.evaluation.name if self.cell.evaluation else 'test'
        return self.folder / f'{name}.json'

    def keep_evaluation(self) -> None:
        """Give the file of an evaluation that has ended its name."""
        if self.unfinished_test.is_file():
            self.unfinished_test.replace(self._evaluated)

    def recorded(self) -> dict[str, Any]:
        """The options in force, as the run wrote them; empty where it has not begun."""
        path = self.folder / 'args.yaml'
        try:
            return yaml.safe_load(path.read_text()) or {}
        except (FileNotFoundError, yaml.YAMLError):
            return {}  # killed while it began

    def check_options(self) -> None:
        """Refuse a run that was begun with other options than those planned.

        Raises:
            DataError: with the first that differs.
        """
        planned = yaml.safe_load(dump_yaml(self.options))  # tuples are lists in a file
        recorded = self.recorded()
        for name in sorted(set(recorded) & set(planned) - _ELSEWHERE):
            if recorded[name] != planned[name]:
                raise DataError(
                    f'was begun with {name} = {recorded[name]}, now {planned[name]}: remove its folder, give the same '
                    'flags, or choose another --out.'
                )

    @cached_property
    def figures(self) -> dict[str, float]:
        """Figures of a complete run: 'top1' and 'top5' of the last epoch (of the cell's evaluation where it has one).

        With 'best_top1', 'best_top5' and 'best_epoch' of the epoch that is best on the run's validation data; of
        several labels 'map' and the others of Table 4.

        Raises:
            DataError: its files do not hold them.
        """
        try:
            epochs = read_csv(self.folder / 'summary.csv')
            names = MULTI_LABEL_METRICS if 'eval_map' in epochs[-1] else METRICS
            last, best = epochs[-1], max(epochs, key=lambda row: float(row[f'eval_{names[0]}']))
            figures = {name: float(last[f'eval_{name}']) for name in names}
            if self.cell.evaluation:
                test = json.loads(self._evaluated.read_text())
                figures = {name: float(test[f'{self.cell.figure}{name}']) for name in names}
            figures |= {f'best_{name}': float(best[f'eval_{name}']) for name in names}
            _ = self._result
            return figures | {'best_epoch': int(best['epoch']), 'epochs': int(last['epoch']) + 1}
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise DataError(f'has no figures that can be read: {error!r}.') from error

    @property
    def machine(self) -> str:
        """Device and versions that a complete run was trained with."""
        result = self._result
        versions = result.get('versions', {})
        return f'{result.get("device", "?")}, torch {versions.get("torch", "?")}, timm {versions.get("timm", "?")}'

    @cached_property
    def _result(self) -> dict[str, Any]:
        return json.loads((self.folder / 'result.json').read_text())
