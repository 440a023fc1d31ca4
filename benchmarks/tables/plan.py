"""What is run for a table: its cells, with the flags of train.py for each."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from tables.paper import ATTACK_EPS, NOISES, PAPER, Figures
from tables.presets import PRESETS, Preset, hnc_setting
from timm_hnc.errors import UsageError

ROOT = Path(__file__).parents[2]
LOSSES = {
    'ce': 'Cross entropy',
    'center': 'Center loss',
    'lgm': 'LGM loss',
    'focal': 'Focal loss',
    'cb-focal': 'CB focal loss',
    'a-softmax': 'A-Softmax loss',
    'lmc': 'LMC loss',
    'aam': 'AAM loss',
    'anchor': 'Anchor loss',
    'hnc-mse': 'HNC_mse',
    'hnc-kd': 'HNC_kd',
}
SEVERAL_LABELS = {
    'weighted-sigmoid': 'Eq. 8',
    'hnc-mse': 'HNC_mse',
    'hnc-kd': 'HNC_kd',
    'attention-consistency': 'AC',
    'ac+hnc-mse': 'AC + HNC_mse',
    'ac+hnc-kd': 'AC + HNC_kd',
}
NETWORKS = {
    'resnet10t': 'ResNet-10-T',
    'cifar_resnet20': 'ResNet-20',
    'cifar_resnet56': 'ResNet-56',
    'cifar_resnet110': 'ResNet-110',
    'cifar_densenet_bc_100_k12': 'DenseNet-BC (k=12, d=100)',
    'cifar_resnext29_8x64d': 'ResNeXt-29 (c=8, d=64)',
    'cifar_resnext29_16x64d': 'ResNeXt-29 (c=16, d=64)',
    'resnet50': 'ResNet-50',
    'resnet101': 'ResNet-101',
    'resnet152': 'ResNet-152',
}
# what timm calls the network that a recipe starts from published weights
_PRETRAINED = {('cub200', 'resnet50'): 'resnet50.tv_in1k', ('coco', 'resnet101'): 'resnet101.tv_in1k'}
# macro_f1 is F1-C: the mean of the classes' F1, not the harmonic mean of P-C and R-C, which is c_f1
MULTI_LABEL_METRICS = ('map', 'macro_f1', 'c_p', 'c_r', 'o_f1', 'o_p', 'o_r')
HOLDOUT = ('--holdout', '0.1')
LAST_EPOCH = 'Ours: the last epoch (the paper does not say which); the best is in the CSV.'
BEST_EPOCH = (
    'Ours: the epoch with the highest mAP, as in the code of attention consistency (AC) that the paper ran on; the '
    "last is in the CSV. F1-C is the mean of the classes' F1."
)


@dataclass(frozen=True)
class Evaluation:
    """What validate.py does with a finished run.

    Args:
        name: of its file in the run folder.
        flags: of validate.py.
    """

    name: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """A place in a table: one training, repeated with several seeds.

    Args:
        row: key of its row.
        column: key of its column.
        name: what is trained; cells of one name share their runs.
        flags: of train.py.
        evaluation: of the last epoch, which the figure comes from; None for the run's own figures.
        figure: what stands in front of the metric's name among the evaluation's figures.
    """

    row: str
    column: str
    name: str
    flags: tuple[str, ...]
    evaluation: Evaluation | None = None
    figure: str = ''


@dataclass(frozen=True)
class Table:
    """A table and its cells.

    Args:
        name: of the files that it is written to.
        title: what the figures are.
        data: recipe that names the data; '' where none is needed.
        rows: labels by key; `corner` says what they are.
        columns: labels by key.
        cells: what is to be run.
        metrics: figures of a cell.
        errors: the figures are error rates.
        paper: the paper's figures.
        note: on how ours came about.
        by_figure: rows are sorted by their first figure.
        best_epoch: figures are those of the best epoch, not the last.
    """

    name: str
    title: str
    data: str
    corner: str
    rows: dict[str, str]
    columns: dict[str, str]
    cells: tuple[Cell, ...]
    metrics: tuple[str, ...] = ('top1',)
    errors: bool = False
    paper: Figures = field(default_factory=dict)
    note: str = LAST_EPOCH
    by_figure: bool = False
    best_epoch: bool = False


def recipe_file(name: str) -> str:
    """Path of a recipe, seen from here."""
    return os.path.relpath(ROOT / 'hparams' / f'{name}.yaml')


def make_cell(
    preset: Preset,
    recipe: str,
    network: str,
    loss: str,
    row: str,
    column: str,
    *,
    hnc: tuple[float, int] | None = None,
    more: tuple[str, ...] = (),
    suffix: str = '',
    evaluation: Evaluation | None = None,
    figure: str = '',
) -> Cell:
    """A cell of a recipe (in hparams/), a network and a loss (one of LOSSES), with weight and k of `hnc` or the preset.

    `more` are further flags of train.py, which `suffix` stands for in the name; the rest is as in `Cell`.
    """
    name = f'{network}-{loss}'
    model = _PRETRAINED.get((recipe, network), network)
    flags = ['-c', recipe_file(preset.recipe or recipe), '--model', model, *preset.flags]
    if loss.startswith('hnc-'):
        variant = loss.removeprefix('hnc-')
        weight, topk = hnc or hnc_setting(preset, recipe, network, variant)
        name += f'-{weight:g}-k{topk}'
        flags += ['--hnc', variant, '--hnc-weight', f'{weight:g}', '--hnc-topk', str(topk)]
    else:
        flags += ['--hnc', 'none', *(['--loss', loss] if loss != 'ce' else [])]
    return Cell(row, column, f'{name}{suffix}', (*flags, *more), evaluation, figure)


def _networks(preset: Preset, *networks: str) -> dict[str, str]:
    names = [preset.network] if preset.network else networks
    return {name: NETWORKS.get(name, name) for name in names}


def _losses(*names: str) -> dict[str, str]:
    return {name: LOSSES[name] for name in names or LOSSES}


def _by_loss_and_network(preset: Preset, recipe: str, losses: Iterable[str], networks: Iterable[str]) -> list[Cell]:
    return [make_cell(preset, recipe, network, loss, loss, network) for network in networks for loss in losses]


def table1(preset: Preset) -> Table:
    """Losses on CIFAR-100."""
    rows, columns = _losses(), _networks(preset, 'cifar_resnet56', 'cifar_resnet110')
    cells = tuple(_by_loss_and_network(preset, 'cifar100', rows, columns))
    title = 'Table 1: losses on CIFAR-100, accuracy in %'
    return Table('table1', title, 'cifar100', 'Loss', rows, columns, cells, ('top1', 'top5'))


def table2(preset: Preset) -> Table:
    """Losses on ImageNet."""
    rows, columns = _losses('ce', 'lgm', 'hnc-mse', 'hnc-kd'), _networks(preset, 'resnet101', 'resnet152')
    cells = tuple(_by_loss_and_network(preset, 'imagenet', rows, columns))
    title = 'Table 2: losses on ImageNet, error in %'
    return Table('table2', title, 'imagenet', 'Loss', rows, columns, cells, ('top1', 'top5'), errors=True)


def table3(preset: Preset) -> Table:
    """Losses on CUB-200-2011."""
    rows, columns = _losses('ce', 'center', 'focal', 'hnc-mse', 'hnc-kd'), _networks(preset, 'resnet50')
    cells = tuple(_by_loss_and_network(preset, 'cub200', rows, columns))
    return Table('table3', 'Table 3: losses on CUB-200-2011, accuracy in %', 'cub200', 'Loss', rows, columns, cells)


def table4(preset: Preset) -> Table:
    """Several labels an image; AC: attention consistency."""
    chosen, cells = preset.several_labels, []
    sized = replace(preset, recipe='', flags=chosen.flags)
    for row in SEVERAL_LABELS:
        loss = row.removeprefix('ac+')
        options = dict(more=('--loss', 'attention-consistency'), suffix='-ac') if loss != row else {}
        cells.append(make_cell(sized, chosen.recipe, chosen.network, loss, row, chosen.network, **options))
    title = f'Table 4: several labels on {chosen.data}, in %'
    columns = {chosen.network: NETWORKS[chosen.network]}
    flags = f' Trained with {" ".join(chosen.flags)}.' if chosen.flags else ''
    note = f'{BEST_EPOCH} A label counts from a probability of 0.5.{flags}'
    rest = ('Loss', SEVERAL_LABELS, columns, tuple(cells), MULTI_LABEL_METRICS)
    return Table('table4', title, chosen.recipe, *rest, note=note, best_epoch=True)


def table5(preset: Preset) -> Table:
    """Attacked images."""
    rows, columns = _losses('ce', 'center', 'hnc-mse', 'hnc-kd'), {eps: f'eps = {eps}' for eps in ATTACK_EPS}
    (network,) = _networks(preset, 'cifar_resnet110')
    # what the paper leaves open: units of the normalised input, and the loss of training under attack
    flags = ('--attack', 'fgsm', '--attack-eps', *ATTACK_EPS, '--attack-space', 'normalized', '--attack-loss', 'train')
    cells = tuple(
        make_cell(
            *(preset, 'cifar100', network, loss, loss, eps),
            evaluation=Evaluation('fgsm', flags),
            figure=f'fgsm_{eps}_',
        )
        for loss in rows
        for eps in columns
    )
    title = f'Table 5: FGSM on CIFAR-100, {NETWORKS.get(network, network)}, accuracy in %'
    note = 'Last epoch. Ours: eps in units of the normalised input; attacked: cross-entropy, with the HNC of the row.'
    if network != 'cifar_resnet110':
        note += ' The paper: ResNet-110, 164 epochs.'
    return Table('table5', title, 'cifar100', 'Loss', rows, columns, cells, note=note)


def table6(preset: Preset) -> Table:
    """Wrong labels in training."""
    rows, columns = _losses('ce', 'hnc-mse', 'hnc-kd'), {noise: noise.replace(':', ' ') for noise in NOISES}
    (network,) = _networks(preset, 'cifar_resnet110')
    cells = tuple(
        make_cell(
            *(preset, 'cifar100', network, loss, loss, noise),
            more=('--label-noise', noise, *HOLDOUT),
            suffix=f'-{noise.replace(":", "-")}',
            evaluation=Evaluation('test'),
        )
        for noise in NOISES
        for loss in rows
    )
    title = f'Table 6: wrong training labels on CIFAR-100, {NETWORKS.get(network, network)}, test accuracy in %'
    note = 'Test accuracy of the last epoch; a tenth of the training images is held out for validation.'
    return Table('table6', title, 'cifar100', 'Loss', rows, columns, cells, note=note)


def table7(preset: Preset) -> Table:
    """Networks on CIFAR-100."""
    names = ('cifar_resnet110', 'cifar_densenet_bc_100_k12', 'cifar_resnext29_8x64d', 'cifar_resnext29_16x64d')
    rows, columns = _networks(preset, *names), {'ce': 'CE', 'hnc-mse': 'HNC_mse'}
    cells = tuple(make_cell(preset, 'cifar100', row, loss, row, loss) for row in rows for loss in columns)
    return Table('table7', 'Table 7: networks on CIFAR-100, accuracy in %', 'cifar100', 'Network', rows, columns, cells)


def figure4(preset: Preset) -> Table:
    """Weights of HNC; weight 0 is cross-entropy."""
    (network,) = _networks(preset, 'cifar_resnet56')  # the paper does not say which
    weights = sorted({weight for weights in preset.lambdas.values() for weight in weights})
    cells = []
    for variant, tried in preset.lambdas.items():
        column, topk = f'hnc-{variant}', hnc_setting(preset, 'cifar100', network, variant)[1]
        cells.append(make_cell(preset, 'cifar100', network, 'ce', '0', column))
        for weight in tried:
            cells.append(make_cell(preset, 'cifar100', network, column, f'{weight:g}', column, hnc=(weight, topk)))
    settings = {name: hnc_setting(preset, 'cifar100', network, name) for name in preset.lambdas}
    columns = {f'hnc-{name}': f'HNC_{name}, k = {topk}' for name, (_, topk) in settings.items()}
    rows = {'0': '0 (CE)', **{f'{weight:g}': f'{weight:g}' for weight in weights}}
    title = f'Figure 4: the weight of HNC on CIFAR-100, {NETWORKS.get(network, network)}, top-1 accuracy in %'
    note = 'Ours: the last epoch. The figures of the paper cannot be read from its picture.'
    return Table('figure4', title, 'cifar100', 'lambda', rows, columns, tuple(cells), note=note)


def sweep(preset: Preset) -> Table:
    """Weights and k of HNC on held-out training images, for choosing them."""
    (network,) = _networks(preset, 'cifar_resnet56')
    options = dict(more=(*preset.sweep_flags, *HOLDOUT), suffix='-sweep')
    cells, rows = [make_cell(preset, 'cifar100', network, 'ce', 'ce', network, **options)], {'ce': LOSSES['ce']}
    for variant, weight, topk in preset.grid:
        loss = f'hnc-{variant}'
        row = f'{loss}-{weight:g}-k{topk}'
        rows[row] = f'{LOSSES[loss]}, lambda = {weight:g}, k = {topk}'
        cells.append(make_cell(preset, 'cifar100', network, loss, row, network, hnc=(weight, topk), **options))
    title = 'Sweep: weight and k of HNC on CIFAR-100, accuracy on held-out training images in %'
    note = f'Last epoch, a tenth of the training images held out; {" ".join(preset.sweep_flags)}.'
    columns = _networks(preset, network)
    return Table(
        *('sweep', title, 'cifar100', 'Loss', rows, columns, tuple(cells), ('top1', 'top5')), note=note, by_figure=True
    )


TABLES: dict[str, Callable[[Preset], Table]] = {
    **{'table1': table1, 'table2': table2, 'table3': table3, 'table4': table4, 'table5': table5},
    **{'table6': table6, 'table7': table7, 'figure4': figure4, 'sweep': sweep},
}


def plan(name: str, preset_name: str) -> Table:
    """The table of a name (of TABLES) at a size (of PRESETS).

    Raises:
        UsageError: the preset does not have the table.

    Example:
        >>> plan('table1', 'paper').cells[0].name
        'cifar_resnet56-ce'
    """
    preset = PRESETS[preset_name]
    if name not in preset.tables:
        raise UsageError(f'--preset {preset_name}: has {", ".join(preset.tables)}, not {name}.')
    table = TABLES[name](preset)
    title = f'{table.title} ({preset_name} runs)'
    return replace(table, title=title, data=table.data if preset.data else '', paper=PAPER.get(name, {}))


def choose(table: Table, rows: list[str] | None, columns: list[str] | None) -> tuple[Cell, ...]:
    """The cells in these rows and columns, all for None.

    Raises:
        UsageError: the table has no such row or column.
    """
    for flag, wanted, known in (('--rows', rows, table.rows), ('--columns', columns, table.columns)):
        for key in wanted or ():
            if key not in known:
                raise UsageError(f'{flag} {key}: {table.name} has {", ".join(known)}.')
    return tuple(
        cell
        for cell in table.cells
        if (rows is None or cell.row in rows) and (columns is None or cell.column in columns)
    )
