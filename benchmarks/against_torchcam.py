#!/usr/bin/env python3
"""Our class maps beside those of torchcam 0.5 (`CAM(...)(..., normalized=False)`), on all of timm where it works.

torchcam chooses the layer by itself and leaves the classifier's bias out. Where it raises, it does not work; where the
mean of its map and the bias are not the logit, it shows another layer than the one that enters the pool. On all others
the two must agree: the largest difference, relative to the largest value of the map; where rounding makes it larger
than 1e-5 (large weights that cancel), once more in float64.

    pip install torchcam==0.5.0
    python benchmarks/against_torchcam.py --params 30
"""

import argparse
import logging
import warnings
from collections import Counter
from typing import Any

import timm
import torch
from timm.models import get_model_input_config
from torchcam.methods import CAM

import timm_hnc

NUM_CLASSES = 10
AGREE = 1e-5


def build(name: str, most_params: float) -> Any:
    """A model in evaluation mode with its norms and biases moved, None where it is too large or has no classifier."""
    with torch.device('meta'):
        small = sum(parameter.numel() for parameter in timm.create_model(name).parameters()) <= most_params * 1e6
    if not small:
        return None
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=NUM_CLASSES).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


@torch.no_grad()
def compare(model: Any) -> str | float:
    """The difference of the maps of one class, or why there is none."""
    size = get_model_input_config(model)['input_size']
    images = torch.randn(2, *size, generator=torch.Generator().manual_seed(0)).to(next(model.parameters()))
    try:
        with CAM(model, input_shape=size) as extractor:
            logits = model(images)
            theirs = extractor(3, normalized=False)[0]
    except Exception as error:  # whatever torchcam raises
        return f'torchcam fails: {type(error).__name__}'
    class_maps = timm_hnc.CamModel(model).class_maps(images)
    bias = class_maps.bias[3] if class_maps.bias is not None else 0.0
    if theirs.ndim != 3 or not torch.allclose(theirs.mean((1, 2)) + bias, logits[:, 3], rtol=1e-3, atol=1e-4):
        return 'torchcam shows another layer'
    ours = class_maps.maps(torch.full((2, 1), 3))[:, 0] - bias
    if ours.shape != theirs.shape:
        return f'other grids: {tuple(ours.shape)}, torchcam {tuple(theirs.shape)}'
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def main() -> None:
    """Compare every name, print what differs and a summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--names', default='*')
    parser.add_argument('--params', type=float, default=30, help='names up to so many million parameters')
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter('ignore')
    outcomes: Counter[str] = Counter()
    worst = 0.0
    for name in timm.list_models(args.names, exclude_filters='cifar_*'):
        model = build(name, args.params)
        outcome = 'too large' if model is None else compare(model)
        if isinstance(outcome, float) and outcome > AGREE:
            print(f'{name}: {outcome:.1e} in float32', flush=True)
            outcome = compare(model.double())
        if isinstance(outcome, float):
            worst = max(worst, outcome)
            outcome = 'agree' if outcome <= AGREE else 'DIFFER'
        if outcome.startswith(('DIFFER', 'other')):
            print(f'{name}: {outcome}', flush=True)
        outcomes[outcome] += 1
    for outcome, count in outcomes.most_common():
        print(f'{count:5d}  {outcome}')
    print(f'largest difference where they agree or differ: {worst:.1e}')


if __name__ == '__main__':
    main()
