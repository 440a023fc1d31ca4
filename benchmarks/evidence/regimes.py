"""Where HNC is tried: data, network, schedule and the settings from which each row chooses its own."""

from dataclasses import dataclass

from lite import MODEL

MULTI_LABEL, SINGLE_LABEL = 'map', 'top1'
BASELINE = 'baseline'


@dataclass(frozen=True)
class Row:
    """One way to train.

    Args:
        key: of the row.
        label: what it is.
        flags: of train.py.
        weights: tried for `--hnc-weight` with the first k; none: there is nothing to choose.
        topks: tried for `--hnc-topk` with the best weight, which is scaled so that weight * k stays.
        teacher: key of a row of the regime that has no weights to choose; its first run is `--map-teacher`.
    """

    key: str
    label: str
    flags: tuple[str, ...]
    weights: tuple[str, ...] = ()
    topks: tuple[int, ...] = ()
    teacher: str = ''


@dataclass(frozen=True)
class Regime:
    """Data, network and schedule.

    Args:
        key: of its folder.
        title: in a few words.
        about: one sentence.
        data: 'voc2007' or 'cifar100'.
        flags: of train.py, for all runs.
        rows: the baseline first.
        train_split: as train.py takes it.
        test_split: as validate.py takes it.
        holdout: share of the training images on which settings are chosen.
        choice_seeds: seeds of every setting; 0: nothing is tried.
        seeds: runs of every row once its setting is chosen; none of these seeds was used for choosing.
        pretrained: the runs begin with the ImageNet weights of EfficientNet-Lite0.
        boxes: maps are compared with boxes, and objects covered.
    """

    key: str
    title: str
    about: str
    data: str
    flags: tuple[str, ...]
    rows: tuple[Row, ...]
    train_split: str = 'train'
    test_split: str = 'test'
    holdout: float = 0.2
    choice_seeds: int = 2
    seeds: int = 5
    pretrained: bool = False
    boxes: bool = False

    @property
    def multi_label(self) -> bool:
        """Whether images have several labels."""
        return 'multilabel' in self.flags

    @property
    def metric(self) -> str:
        """The figure that counts, in %: 'map' or 'top1'."""
        return MULTI_LABEL if self.multi_label else SINGLE_LABEL

    @property
    def num_classes(self) -> int:
        """Outputs of the network."""
        return int(self.flags[self.flags.index('--num-classes') + 1])


def _forms(mse: tuple[str, ...], kd: tuple[str, ...], topks: tuple[int, ...], *more: str) -> tuple[Row, ...]:
    """HNC in all its forms, with `more` flags; the halves of mse are tried with its weights."""
    forms = (
        ('mse', 'HNC mse', 'mse', mse),
        ('kd', 'HNC kd', 'kd', kd),
        ('var', 'HNC var, flat maps alone', 'var', mse),
        ('logit', 'HNC logit, small logits alone, no maps', 'logit', mse),
        ('auto', 'HNC mse, weight auto', 'mse', ('auto:0.03', 'auto:0.1', 'auto:0.3')),
        ('follow', 'HNC mse, weight follows', 'mse', ('follow:0.03', 'follow:0.1', 'follow:0.3')),
    )
    return tuple(Row(key, label, ('--hnc', form, *more), weights, topks) for key, label, form, weights in forms)


def _single_label(mse: tuple[str, ...], kd: tuple[str, ...], topks: tuple[int, ...]) -> tuple[Row, ...]:
    return (
        Row(BASELINE, 'cross-entropy', ('--smoothing', '0')),
        Row('smoothing', 'label smoothing 0.1', ('--smoothing', '0.1')),
        *_forms(mse, kd, topks, '--smoothing', '0'),
    )


_FAST = ('--amp', '--amp-dtype', 'bfloat16', '--channels-last')
_LITE = (
    *('--model', MODEL, '-b', '32', '--opt', 'momentum', '--lr', '0.01', '--weight-decay', '1e-4'),
    *('--sched', 'cosine', '--sched-on-updates', '--warmup-epochs', '1', '--warmup-lr', '1e-4'),
    *('--crop-pct', '1.0', '--hflip', '0.5', '--color-jitter', '0', *_FAST),
)
_VOC = (
    *('--task', 'multilabel', '--num-classes', '20', '--loss', 'bce', '--bce-sum', '--smoothing', '0'),
    *('--img-size', '128', '--train-crop-mode', 'rrc', '--scale', '0.5', '1.0', '--crop-mode', 'squash'),
)
_VOC_ROWS = (
    Row(BASELINE, 'BCE, summed over classes', ()),
    *_forms(('0.001', '0.003', '0.01'), ('0.006', '0.02', '0.06'), (5, 10)),
)
_CIFAR = (
    *('--num-classes', '100', '--img-size', '32', '--crop-pct', '1.0', '--hflip', '0.5', '--color-jitter', '0'),
    *('--train-crop-mode', 'pad', '--mean', '0.5071', '0.4865', '0.4409', '--std', '0.2673', '0.2564', '0.2762'),
    *('--model', 'cifar_resnet56', '-b', '128', '--opt', 'momentum', '--lr', '0.1', '--weight-decay', '1e-4'),
    *('--sched', 'multistep', '--decay-rate', '0.1', '--warmup-epochs', '0', '--data-in-memory', *_FAST),
)
# timm counts the epochs of milestones from 1: the rate drops after 60 epochs, when `late` begins
_MSE = ('0.0003', '0.001', '0.003')
_CIFAR_ROWS = _single_label(_MSE, ('0.001', '0.003', '0.01'), (10, 50))
_LATE = Row(
    *('late', 'HNC mse from the first drop of the learning rate on'),
    *(('--hnc', 'mse', '--hnc-start-epoch', '60', '--smoothing', '0'), _MSE, (10, 50)),
)


def _given(mse: str, kd: str) -> tuple[Row, ...]:
    """Cross-entropy and both forms of the paper with these weights and k = 10: nothing is chosen."""
    return (
        _CIFAR_ROWS[0],
        *(
            Row(
                form,
                f'HNC {form}: {weight}, k 10',
                ('--hnc', form, '--hnc-weight', weight, '--hnc-topk', '10', '--smoothing', '0'),
            )
            for form, weight in (('mse', mse), ('kd', kd))
        ),
    )


# as in hparams/cifar100.yaml, chosen on held-out training images with ResNet-20: trials of 164 epochs are dear
_PAPER_ROWS = _given('0.001', '0.003')
_KD = ('--hnc', 'kd', '--hnc-weight', '0.06', '--hnc-topk', '5')
_ENERGY = ('--map-loss', 'energy=1')
_BOXES = '--map-loss energy, boxes of'
_BOX_ROWS = (
    _VOC_ROWS[0],
    *(
        Row(key, label, flags)
        for key, label, flags in (
            ('kd', 'HNC kd, 0.06, k 5', _KD),
            ('energy', f'{_BOXES} all images', _ENERGY),
            ('energy-tenth', f'{_BOXES} 10 % of the images', (*_ENERGY, '--boxes-share', '0.1')),
            (
                'energy10-tenth',
                f'{_BOXES} 10 % of the images, ten times the weight',
                ('--map-loss', 'energy=10', '--boxes-share', '0.1'),
            ),
            ('energy-hundredth', f'{_BOXES} 1 % of the images', (*_ENERGY, '--boxes-share', '0.01')),
            ('outside', '--map-loss outside, boxes of all images', ('--map-loss', 'outside=0.03')),
            ('energy-kd', f'{_BOXES} all images, and HNC kd', (*_ENERGY, *_KD)),
            ('target-maps', '--map-loss target-maps, boxes of all images', ('--map-loss', 'target-maps')),
            ('separability', '--map-loss separability, no boxes', ('--map-loss', 'separability')),
            ('consistency', '--map-loss consistency, no boxes', ('--map-loss', 'consistency')),
            ('two-views', 'its control: mirror images beside images, no boxes', ('--map-loss', 'consistency=1e-9')),
            ('energy-consistency', f'{_BOXES} all images, and consistency', (*_ENERGY, 'consistency')),
            (
                'energy2-consistency',
                f'{_BOXES} all images, energy twice as strong, and consistency',
                ('--map-loss', 'energy=2', 'consistency'),
            ),
            (
                'energy2-consistency-tenth',
                f'{_BOXES} 10 % of the images, energy twice as strong, and consistency',
                ('--map-loss', 'energy=2', 'consistency', '--boxes-share', '0.1'),
            ),
            (
                'energy20-consistency-tenth',
                f'{_BOXES} 10 % of the images, energy twenty times as strong, and consistency',
                ('--map-loss', 'energy=20', 'consistency', '--boxes-share', '0.1'),
            ),
            (
                'energy3-consistency',
                f'{_BOXES} all images, energy three times as strong, and consistency',
                ('--map-loss', 'energy=3', 'consistency'),
            ),
        )
    ),
    Row(
        'teacher',
        '--map-loss teacher, the first run of `energy`, no boxes',
        ('--map-loss', 'teacher'),
        teacher='energy',
    ),
)
_LITE_CIFAR = (*_LITE, '--num-classes', '100', '--img-size', '96', '--train-crop-mode', 'rrc', '--scale', '0.5', '1.0')
_VOC_NAME = 'VOC2007-test re-split (2,476 training images, not the official split), EfficientNet-Lite0 fine-tuned'

REGIMES = {
    regime.key: regime
    for regime in (
        Regime(
            'voc-short',
            'VOC2007, fine-tuned, 6 epochs',
            f'{_VOC_NAME} at 128 px for 6 epochs',
            'voc2007',
            (*_LITE, *_VOC, '--epochs', '6'),
            **dict(rows=_VOC_ROWS, test_split='validation', pretrained=True),
        ),
        Regime(
            'voc-long',
            'VOC2007, fine-tuned, 25 epochs',
            f'{_VOC_NAME} at 128 px for 25 epochs',
            'voc2007',
            (*_LITE, *_VOC, '--epochs', '25'),
            **dict(rows=_VOC_ROWS, test_split='validation', pretrained=True),
        ),
        Regime(
            'voc-boxes',
            'VOC2007 with boxes, fine-tuned, 6 epochs',
            f'{_VOC_NAME} at 128 px for 6 epochs, with boxes',
            'voc2007',
            (*_LITE, *_VOC, '--epochs', '6'),
            **dict(rows=_BOX_ROWS, test_split='validation', pretrained=True, boxes=True, choice_seeds=0, seeds=3),
        ),
        Regime(
            'cifar-5000',
            'CIFAR-100, 5,000 images, fine-tuned',
            'CIFAR-100, 5,000 training images, EfficientNet-Lite0 fine-tuned at 96 px for 10 epochs',
            'cifar100',
            (*_LITE_CIFAR, '--epochs', '10'),
            _CIFAR_ROWS,
            train_split='train[:5000]',
            pretrained=True,
        ),
        Regime(
            'cifar-50000',
            'CIFAR-100, 50,000 images, fine-tuned',
            'CIFAR-100, all 50,000 training images, EfficientNet-Lite0 fine-tuned at 96 px for 10 epochs; settings of '
            '`cifar-5000`',
            'cifar100',
            (*_LITE_CIFAR, '--epochs', '10'),
            _given('0.003', '0.003'),
            **dict(pretrained=True, choice_seeds=0, seeds=3),
        ),
        Regime(
            'cifar-10000',
            'CIFAR-100, 10,000 images, from scratch',
            'CIFAR-100, 10,000 training images, ResNet-56 from scratch for 120 epochs',
            'cifar100',
            (*_CIFAR, '--epochs', '120', '--decay-milestones', '61', '91'),
            (*_CIFAR_ROWS, _LATE),
            train_split='train[:10000]',
        ),
        Regime(
            'cifar-noisy',
            'CIFAR-100, 10,000 images, 40 % wrong labels',
            'CIFAR-100, 10,000 training images with 40 % symmetric label noise, ResNet-56 from scratch for 120 epochs; '
            'settings are chosen on clean labels',
            'cifar100',
            (*_CIFAR, '--epochs', '120', '--decay-milestones', '61', '91', '--label-noise', 'symmetric:0.4'),
            (*_CIFAR_ROWS, _LATE),
            train_split='train[:10000]',
            seeds=3,
        ),
        Regime(
            'cifar-paper',
            "CIFAR-100, the paper's schedule, one seed",
            "CIFAR-100, the paper's own schedule: ResNet-56 from scratch for 164 epochs",
            'cifar100',
            (*_CIFAR, '--epochs', '164', '--decay-milestones', '85', '123'),
            _PAPER_ROWS,
            choice_seeds=0,
            seeds=1,
        ),
    )
}
