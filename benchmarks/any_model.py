#!/usr/bin/env python3
"""Class maps of classifiers that are none of timm's: torchvision's, and small networks of transformers.

Every network has random weights. Where its features are is looked for; the distance of a map's mean from its logit is
relative to the largest logit, on random images; a step with HNC must leave every gradient finite.

    python benchmarks/any_model.py                              # torchvision
    python benchmarks/any_model.py --library transformers       # pip install transformers
"""

import argparse
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from timm_hnc import CamModel, HNCLoss
from timm_hnc.cam.heads.probe import UnsupportedHead
from timm_hnc.commands.command_line import run_command
from timm_hnc.errors import UsageError, first_lines
from timm_hnc.files.tables import write_csv

RESULTS = Path(__file__).parent / 'results'
CLASSES = 10
IMAGE_SIZES = {'inception_v3': (299, 299)}  # its second classifier trains on no smaller ones
_FOUR = {'hidden_sizes': [16, 16, 32, 32], 'depths': [1, 1, 1, 1]}
_VIT = {'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 2, 'intermediate_size': 64}
_VISION = {'vision_config': _VIT}
_HEADS = {'num_attention_heads': [1, 1, 2, 2]}
_SWIN = {'embed_dim': 16, 'depths': [1, 1, 1, 1], 'num_heads': [1, 2, 2, 4]}
# what makes a small network of a config of transformers
CONFIGS: dict[str, dict[str, Any]] = {
    'ResNet': {**_FOUR, 'embedding_size': 16, 'layer_type': 'basic'},
    'RegNet': {**_FOUR, 'embedding_size': 16, 'groups_width': 8},
    'ConvNext': _FOUR,
    'ConvNextV2': _FOUR,
    'Swin': _SWIN,
    'Swinv2': {**_SWIN, 'image_size': 256, 'window_size': 8},
    'MobileNetV1': {'depth_multiplier': 0.25},
    'MobileNetV2': {'depth_multiplier': 0.35},
    'EfficientNet': {'width_coefficient': 0.25, 'depth_coefficient': 0.2, 'hidden_dim': 320},
    'PoolFormer': _FOUR,
    'SwiftFormer': {'depths': [1, 1, 1, 1], 'embed_dims': [16, 24, 32, 40]},
    'HGNetV2': {},
    'MobileViT': {'hidden_sizes': [16, 24, 32], 'neck_hidden_sizes': [8, 8, 16, 24, 24, 32, 64]},
    'MobileViTV2': {'width_multiplier': 0.25},
    'FocalNet': {'embed_dim': 16, 'depths': [1, 1, 1, 1]},
    'Pvt': {**_FOUR, **_HEADS},
    'PvtV2': {**_FOUR, **_HEADS},
    'Segformer': {**_FOUR, **_HEADS},
    'Hiera': {'embed_dim': 16, 'depths': [1, 1, 1, 1], 'num_heads': [1, 1, 2, 2]},
    'ViT': _VIT,
    'DeiT': _VIT,
    'Beit': _VIT,
    'Data2VecVision': _VIT,
    'ViTMSN': _VIT,
    'IJepa': _VIT,
    'Dinov2': {**_VIT, 'image_size': 224, 'patch_size': 16},
    'Dinov2WithRegisters': {**_VIT, 'image_size': 224, 'patch_size': 16},
    'Siglip': _VISION,
    'Siglip2': _VISION,
    'CLIP': _VISION,
}


def of_torchvision() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """All image classifiers of torchvision."""
    for name in torchvision.models.list_models(module=torchvision.models):
        kwargs = {'init_weights': False} if name in ('googlenet', 'inception_v3') else {}
        yield name, lambda name=name, kwargs=kwargs: torchvision.models.get_model(name, num_classes=CLASSES, **kwargs)


def of_transformers() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """One small network a config.

    Raises:
        UsageError: transformers is missing.
    """
    try:
        import transformers
    except ImportError as error:
        raise UsageError('--library transformers: pip install transformers') from error
    transformers.logging.set_verbosity_error()
    for name, options in CONFIGS.items():
        config = getattr(transformers, f'{name}Config')
        yield (
            name,
            lambda config=config, options=options: transformers.AutoModelForImageClassification.from_config(
                config(**options, num_labels=CLASSES)
            ),
        )


LIBRARIES = {'torchvision': of_torchvision, 'transformers': of_transformers}


def measure(name: str, make: Callable[[], nn.Module]) -> dict[str, Any]:
    """The row of a network."""
    torch.manual_seed(0)
    found: dict[str, Any] = dict.fromkeys(('name', 'kind', 'features', 'grid', 'distance', 'trains', 'refused'), '')
    found['name'] = name
    try:
        cam_model = CamModel(_with_weights(make()).eval(), image_size=IMAGE_SIZES.get(name))
    except UnsupportedHead as error:
        return found | {'refused': str(error).partition(': ')[2].partition('. Way out')[0]}
    except Exception as error:  # what a library raises where it cannot make a network
        return found | {'refused': f'not made: {first_lines(error, 100)}'}
    images = torch.randn(2, *cam_model.data_config['input_size'])
    class_maps = cam_model.class_maps(images)
    maps = class_maps.maps(None)
    logits = class_maps.logits.detach()
    distance = (maps.detach().mean((2, 3)) - logits).abs().max() / logits.abs().max().clamp(min=1e-12)
    found |= {'kind': cam_model.kind.name, 'grid': '{} x {}'.format(*class_maps.grid), 'distance': f'{distance:.0e}'}
    found['features'] = getattr(cam_model.head, 'place', cam_model.head).module
    if cam_model.kind.trainable:
        HNCLoss('mse', topk=3)(class_maps, torch.tensor([0, 1])).backward()
        gradients = [parameter.grad for parameter in cam_model.parameters() if parameter.grad is not None]
        found['trains'] = bool(gradients) and all(gradient.isfinite().all() for gradient in gradients)
    return found


@torch.no_grad()
def _with_weights(model: nn.Module) -> nn.Module:
    """Random ones that keep activations and logits away from 0, whatever the library begins with."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter.flatten(1) if parameter.ndim > 2 else parameter)
        else:
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def table(library: str, rows: Sequence[dict[str, Any]]) -> str:
    """All networks, and how many there are of what."""
    count = Counter(row['kind'] for row in rows)
    exact = [row for row in rows if row['kind'] and float(row['distance']) < 1e-4]
    kinds = ', '.join(f'{count[kind]} of kind {kind}' for kind in sorted(filter(None, count)))
    trained = sum(row['trains'] is True for row in rows)
    version = sys.modules[library].__version__
    summary = f'{len(rows)} networks, {len(exact)} with exact maps ({kinds}), {trained} train on them.'
    lines = [f'{library} {version}: {summary}']
    lines += ['', f'| {" | ".join(rows[0])} |', '|---' * len(rows[0]) + '|']
    return '\n'.join([*lines, *(f'| {" | ".join(map(str, row.values()))} |' for row in rows)]) + '\n'


def main(argv: Sequence[str] | None = None) -> None:
    """Measure a library, and write its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--library', default='torchvision', choices=LIBRARIES, help='torchvision or transformers')
    parser.add_argument('--names', nargs='+', metavar='NAME', help='only these')
    parser.add_argument('--out', type=Path, metavar='PATH', help='table, without .md and .csv')
    args = parser.parse_args(argv)
    if args.names and not args.out:
        parser.error('--names: needs --out, the results hold all of a library.')
    warnings.simplefilter('ignore')
    rows = []
    for name, make in LIBRARIES[args.library]():
        if args.names is None or name in args.names:
            started = time.monotonic()
            rows.append(measure(name, make))
            print(*rows[-1].values(), f'{time.monotonic() - started:.0f} s', flush=True)
    if not rows:
        raise UsageError(f'--names {" ".join(args.names)}: {args.library} has none of these.')
    out = args.out or RESULTS / f'any_model_{args.library}'
    write_csv(out.with_suffix('.csv'), rows)
    out.with_suffix('.md').write_text(table(args.library, rows))


if __name__ == '__main__':
    sys.exit(run_command(main))
