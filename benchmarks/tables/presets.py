"""How large the runs are: the paper's, small ones for a few hours on a CPU, and smoke for a look at the machinery."""

from dataclasses import dataclass, field

CIFAR_TABLES = ('table1', 'table5', 'table6', 'table7', 'figure4', 'sweep')
ALL_TABLES = ('table1', 'table2', 'table3', 'table4', 'table5', 'table6', 'table7', 'figure4', 'sweep')


@dataclass(frozen=True)
class SeveralLabels:
    """What is trained on images with several labels.

    Args:
        recipe: name in hparams/.
        data: as the title has it.
        network: name of the model, without what it is pretrained on.
        flags: of train.py, in place of the preset's own.
    """

    recipe: str = 'coco'
    data: str = 'MS-COCO'
    network: str = 'resnet101'
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preset:
    """A size of runs.

    Args:
        about: what it is, for the report.
        tables: that it has.
        hnc: weight (lambda) and k of 'mse' and 'kd'.
        lambdas: weights of Fig. 4, by variant; k as in `hnc`.
        grid: variant, weight and k of the sweep.
        sweep_flags: of train.py, for the sweep alone.
        flags: of train.py, for all runs.
        recipe: in place of each table's own.
        network: in place of each table's own.
        data: needs --data-dir.
        test_split: which figures on test data come from.
        several_labels: of the table on images with several labels.
    """

    about: str
    tables: tuple[str, ...]
    hnc: dict[str, tuple[float, int]]
    lambdas: dict[str, tuple[float, ...]]
    grid: tuple[tuple[str, float, int], ...]
    sweep_flags: tuple[str, ...]
    flags: tuple[str, ...] = ()
    recipe: str = ''
    network: str = ''
    data: bool = True
    test_split: str = 'test'
    several_labels: SeveralLabels = field(default_factory=SeveralLabels)


PRESETS = {
    'paper': Preset(
        about='the recipes as they stand',
        tables=ALL_TABLES,
        # the paper has none for CIFAR-100, CUB-200-2011 and MS-COCO: those of the small preset
        hnc={'mse': (0.001, 10), 'kd': (0.003, 10)},
        lambdas={'mse': (0.0001, 0.0003, 0.001, 0.003, 0.01), 'kd': (0.0001, 0.0003, 0.001, 0.003, 0.01)},
        grid=tuple(
            (variant, weight, topk) for variant in ('mse', 'kd') for topk in (10, 50) for weight in (1e-4, 3e-4, 1e-3)
        ),
        sweep_flags=('--epochs', '40', '--decay-milestones', '20', '30'),
    ),
    'small': Preset(
        about='ResNet-20, bfloat16; 30 epochs, --decay-milestones 15 23, unless a note below says otherwise',
        tables=(*CIFAR_TABLES, 'table4'),
        # the best of the sweep, see benchmarks/results
        hnc={'mse': (0.001, 10), 'kd': (0.003, 10)},
        lambdas={'mse': (0.0001, 0.0003, 0.001, 0.003), 'kd': (0.0003, 0.001, 0.003, 0.01)},
        grid=(
            *(('mse', 0.003, 10), ('mse', 0.001, 10), ('mse', 0.0003, 10), ('mse', 0.0003, 50)),
            *(('kd', 0.01, 10), ('kd', 0.003, 10), ('kd', 0.001, 10), ('kd', 0.001, 50)),
        ),
        sweep_flags=('--epochs', '4', '--decay-milestones', '2', '3'),
        flags=(
            *('--epochs', '30', '--decay-milestones', '15', '23'),
            *('--amp', '--amp-dtype', 'bfloat16', '--channels-last'),
        ),
        network='cifar_resnet20',
        several_labels=SeveralLabels(
            recipe='voc2007',
            data='VOC2007',
            network='resnet10t',
            flags=(
                *('--epochs', '4', '--decay-milestones', '4'),
                *('--amp', '--amp-dtype', 'bfloat16', '--channels-last'),
            ),
        ),
    ),
    'smoke': Preset(
        about="scikit-learn's digits and a tiny network for 2 epochs: figures that mean nothing",
        tables=tuple(name for name in ALL_TABLES if name != 'table4'),
        hnc={'mse': (0.001, 5), 'kd': (0.001, 5)},
        lambdas={'mse': (0.001, 0.01), 'kd': (0.001, 0.01)},
        grid=(('mse', 0.001, 5), ('kd', 0.001, 5)),
        sweep_flags=('--epochs', '1'),
        flags=(
            *('--dataset', 'hnc/digits', '--val-split', 'validation', '--num-classes', '10'),
            *('--model-kwargs', 'output_stride=8', '--epochs', '2', '--decay-milestones', '2', '--workers', '0'),
        ),
        recipe='cifar100',
        network='test_resnet',
        data=False,
        test_split='validation',
    ),
}
# of the authors' ImageNet code, whatever the preset says
HNC_OF_IMAGENET = {
    ('resnet101', 'mse'): (0.0007, 100),
    ('resnet101', 'kd'): (0.0065, 100),
    ('resnet152', 'mse'): (0.0007, 100),
    ('resnet152', 'kd'): (0.0048, 100),
}


def hnc_setting(preset: Preset, recipe: str, network: str, variant: str) -> tuple[float, int]:
    """Weight (lambda) and k of a variant of HNC."""
    of_authors = HNC_OF_IMAGENET if recipe == 'imagenet' else {}
    return of_authors.get((network, variant), preset.hnc[variant])
