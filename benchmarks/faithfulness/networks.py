"""A small network of every kind of head, and how train.py trains it on CIFAR-100."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tables.plan import Cell
from tables.runs import Plan, Run

CLASSES = 100
COLUMNS = ('img', 'fine_label')
HNC = ('--hnc', 'kd', '--hnc-weight', '0.003', '--hnc-topk', '10')


@dataclass(frozen=True)
class Network:
    """A network and the images it takes.

    Args:
        key: the kind of head, and what tells it from others of its kind.
        model: timm's name.
        size: side of the images in pixels; the maps of all are 8 x 8.
        kwargs: `--model-kwargs` of train.py.
        flags: further flags of train.py.
        trainable: its maps have gradients, so that HNC can be trained.
    """

    key: str
    model: str
    size: int
    kwargs: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    trainable: bool = True

    def cell(self, hnc: bool) -> Cell:
        """The network trained with cross-entropy, or with HNC."""
        kwargs = ('--model-kwargs', *self.kwargs) if self.kwargs else ()
        flags = ('--model', self.model, '--img-size', str(self.size), *kwargs, *self.flags, *(HNC if hnc else ()))
        return Cell(self.key, '', f'{self.key}-{"hnc" if hnc else "ce"}', flags)


# one trunk, so that only the head differs
_VIT = ('img_size=32', 'patch_size=4', 'embed_dim=128', 'depth=6', 'num_heads=4')
_PATCHES = (*_VIT, 'class_token=False')
_CROSSVIT = ('img_size=32', 'img_scale=(1.0,1.0)', 'patch_size=(4,8)', 'embed_dim=(64,128)', 'depth=((1,3,0),(1,3,0))')

NETWORKS = (
    Network('A1', 'cifar_resnet20', 32),
    Network('A4', 'vit_tiny_patch16_224', 32, (*_PATCHES, 'fc_norm=False'), ('--gp', 'avg')),
    Network('B', 'repvit_m0_9', 64, ('embed_dim=(48,96)', 'depth=(2,6)')),
    Network('C', 'vit_tiny_patch16_224', 32, _PATCHES, ('--gp', 'avg')),
    Network(
        'C-convnext',
        'convnext_atto',
        64,
        ('patch_size=2', 'output_stride=8', 'ls_init_value=None', 'dims=(40,80,160,160)', 'depths=(1,1,4,1)'),
    ),
    Network('D', 'test_mambaout', 64, ('dims=(48,96)', 'depths=(2,6)')),
    Network('E', 'efficientvit_b0', 64, ('widths=(16,32,64)', 'depths=(1,2,3)', 'head_widths=(256,256)')),
    Network('F', 'vit_tiny_patch16_224', 32, _PATCHES, ('--gp', 'map')),
    Network('G', 'vit_tiny_patch16_224', 32, _VIT, trainable=False),
    Network('H', 'crossvit_9_240', 32, _CROSSVIT, ('--gp', 'avg')),
)


def shared_flags(data: Path, epochs: int, images: int | None, device: str) -> tuple[str, ...]:
    """Flags of train.py that all runs share: CIFAR-100, AdamW, padded crops and flips, bfloat16; all images if None."""
    limit = f'[:{images}]' if images else ''
    return (
        *('--dataset', f'hfds/{data}', '--input-key', COLUMNS[0], '--target-key', COLUMNS[1]),
        *('--train-split', f'train{limit}', '--val-split', f'test{limit}'),
        *('--num-classes', str(CLASSES), '--crop-pct', '1.0', '--interpolation', 'bicubic'),
        *('--mean', '0.5071', '0.4865', '0.4409', '--std', '0.2673', '0.2564', '0.2762'),
        *('--data-in-memory', '--train-crop-mode', 'pad', '--color-jitter', '0', '--smoothing', '0'),
        *('-b', '256', '--opt', 'adamw', '--lr', '0.002', '--weight-decay', '0.05', '--clip-grad', '1'),
        *('--epochs', str(epochs), '--sched-on-updates', '--warmup-epochs', '1', '--val-interval', str(epochs)),
        *('--device', device, '--amp', '--amp-dtype', 'bfloat16', '--channels-last', '--workers', '1'),
    )


def plan(output: Path, flags: tuple[str, ...], only: Sequence[str] = ()) -> list[Run]:
    """Every network, trained with cross-entropy and, where its maps have gradients, with HNC."""
    shared = Plan(output, flags)
    chosen = [network for network in NETWORKS if not only or network.key in only]
    return [
        Run(shared, network.cell(hnc), 0) for hnc in (False, True) for network in chosen if network.trainable or not hnc
    ]
