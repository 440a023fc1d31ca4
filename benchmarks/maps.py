#!/usr/bin/env python3
"""What maps cost: those of pictures over a forward pass, and figures of validate.py over a plain validation.

Pictures: logits and the maps of the 5 highest classes of every image, over `model(images)`, both under no_grad. Beside
them, where they are installed, torchcam's CAM and pytorch-grad-cam's GradCAM for the same classes. Validation: whole
passes of `timm_hnc.evaluation.evaluate` over images in memory, with and without `--cam-metrics`, or whole commands of
validate.py, also with `--cam-boxes`. All run in one process on one set of weights, in interleaved pairs whose order
alternates; the ratio is taken pair by pair, so that a machine whose speed drifts does not matter.

    pip install torchcam==0.5.0 grad-cam                              # optional; or --rivals FOLDER ...
    python benchmarks/maps.py                                         # pictures and validation, some minutes
    python benchmarks/maps.py --quick                                 # tries everything on small models, some seconds
    python benchmarks/maps.py --parts pictures --pictures resnet50 --channels-last
    python benchmarks/maps.py --command --model cifar_resnet20 --dataset hfds/cifar100 --input-key img ...
    python benchmarks/maps.py --measure cam-boxes --command --model resnet50 --dataset hfds/voc2007 ...
"""

import argparse
import contextlib
import io
import logging
import sys
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import timm
import torch
from arguments import at_least
from steps.measure import median_interval, time_pairs
from timm.data import resolve_model_data_config
from timm.task import ClassificationEvaluator

import timm_hnc
from timm_hnc.commands.command_line import run_command
from timm_hnc.commands.validate import main as validate
from timm_hnc.evaluation.evaluate import evaluate
from timm_hnc.evaluation.map_pass import QualityPass, WatchedMaps

Step = Callable[[], Any]
# one kind of head or two a line
PICTURES = (
    'resnet50',
    'swin_tiny_patch4_window7_224',
    'gmlp_ti16_224',
    'vit_tiny_patch16_dinov3_qkvb',
    'repvit_m0_9',
    'convnext_atto',
    'convnext_tiny',
    'mambaout_femto',
    'mobilenetv3_large_100',
    'efficientvit_b1',
    'vit_pe_core_tiny_patch16_384',
    'vit_tiny_patch16_224',
)
VALIDATED = ('cifar_resnet20:100:256', 'cifar_resnet20:100:128', 'resnet50:1000:16', 'mobilenetv3_large_100:1000:64')


def build(name: str, num_classes: int, args: argparse.Namespace) -> Any:
    """A model in evaluation mode, with random weights."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=num_classes).to(args.device).eval()
    return model.to(memory_format=torch.channels_last) if args.channels_last else model


def random_images(model: Any, count: int, args: argparse.Namespace) -> torch.Tensor:
    """Images of the size that the model is made for."""
    images = torch.randn(count, *resolve_model_data_config(model)['input_size'], device=args.device)
    return images.contiguous(memory_format=torch.channels_last) if args.channels_last else images


def row(cells: tuple[str, ...], measured: tuple[list[float], float]) -> None:
    """Print a row of a table."""
    ratios, seconds = measured
    middle, low, high = median_interval(ratios)
    spread = f'{middle:.3f} ({low:.3f} to {high:.3f})'
    print(f'| {" | ".join(cells)} | {1000 * seconds:.0f} | {spread} | {len(ratios)} |', flush=True)


def ours(model: Any, images: torch.Tensor, topk: int) -> Step:
    """Logits and maps, in one forward pass."""
    cam_model = timm_hnc.CamModel(model)

    @torch.no_grad()
    def step() -> torch.Tensor:
        class_maps = cam_model.class_maps(images)
        return class_maps.maps(class_maps.logits.topk(topk).indices)

    return step


def torchcam_cam(model: Any, images: torch.Tensor, topk: int) -> Step:
    """CAM of torchcam: one forward pass, then a class of every image at a time."""
    from torchcam.methods import CAM

    model = deepcopy(model)  # so that its hooks are not in the plain pass
    extractor = CAM(model, target_layer='layer4')

    @torch.no_grad()
    def step() -> torch.Tensor:
        classes = model(images).topk(topk).indices
        return torch.stack([extractor(column.tolist(), normalized=False)[0] for column in classes.T], 1)

    return step


def grad_cam(model: Any, images: torch.Tensor, topk: int) -> Step:
    """GradCAM of pytorch-grad-cam: one forward and one backward pass a class; the first also tells the classes."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = deepcopy(model)
    extractor = GradCAM(model=model, target_layers=[model.layer4])

    def step() -> list[Any]:
        maps = [extractor(images, None)]
        for column in extractor.outputs.topk(topk).indices[:, 1:].T.tolist():
            maps.append(extractor(images, [ClassifierOutputTarget(index) for index in column]))
        return maps

    return step


def measure_pictures(args: argparse.Namespace) -> None:
    """Every model's maps over its plain forward pass; the rivals on models whose last features are `layer4`."""
    print(f'\nPictures: batch {args.batch_size}, maps of {args.topk} classes.\n')
    print('| model | kind | maps of | forward pass (ms) | time over it (median, 95 %) | pairs |')
    print('|---|---|---|--:|---|--:|')
    for name in args.pictures:
        model = build(name, 1000, args)
        images = random_images(model, args.batch_size, args)
        kind = timm_hnc.CamModel(model).kind
        plain = torch.no_grad()(lambda model=model, images=images: model(images))
        # a backward pass a class takes long and is far from any limit
        pairs = args.pairs if kind.trainable else args.rival_pairs
        row((name, kind.name, 'timm_hnc'), time_pairs(plain, ours(model, images, args.topk), pairs, args.clock))
        if name in ('resnet18', 'resnet50'):
            measure_rivals(name, kind.name, (model, images, args.topk), plain, args)


def measure_rivals(name: str, kind: str, made_of: tuple, plain: Step, args: argparse.Namespace) -> None:
    """The other libraries on a model whose last features are `layer4`; those that are not installed are named."""
    for rival, make, pairs in (
        ('torchcam (CAM)', torchcam_cam, args.pairs),
        ('pytorch-grad-cam (GradCAM)', grad_cam, args.rival_pairs),
    ):
        try:
            step = make(*made_of)
        except ImportError as error:
            print(f'{rival} was not found: {error}', file=sys.stderr)
            continue
        row((name, kind, rival), time_pairs(plain, step, pairs, args.clock))


def measure_validation(args: argparse.Namespace) -> None:
    """Whole passes over images in memory, with and without the figures of --cam-metrics."""
    print(f'\nValidation: figures of --cam-metrics, {args.cam_topk} negatives and the class itself an image.\n')
    print('| model | classes | batch | images | plain pass (ms) | time over it (median, 95 %) | passes |')
    print('|---|--:|--:|--:|--:|---|--:|')
    for name, classes, size in (entry.split(':') for entry in args.validated):
        model = build(name, int(classes), args)
        data = [
            (random_images(model, int(size), args), torch.randint(int(classes), (int(size),), device=args.device))
            for _ in range(args.batches)
        ]
        cam_model = timm_hnc.CamModel(model)

        def one_pass(model: Any = model, data: list = data, on_batch: Any = None) -> None:
            autocast = contextlib.nullcontext
            evaluate(model, data, ClassificationEvaluator(args.device), autocast, on_batch=on_batch)

        def with_maps(cam_model: Any = cam_model, classes: int = int(classes), one_pass: Step = one_pass) -> None:
            quality = QualityPass([''] * classes, args.cam_topk)
            watched = WatchedMaps(cam_model, [quality], None)
            one_pass(watched, on_batch=watched.before(lambda output, target: (output, target)))
            quality.quality.compute()

        measured = time_pairs(one_pass, with_maps, args.passes, args.clock)
        row((name, classes, size, str(int(size) * args.batches)), measured)


def measure_command(args: argparse.Namespace) -> None:
    """validate.py as it is called, in this process: start-up of Python and its packages is left out."""

    def command(*more: str) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            validate([*args.command, *more])
        logging.disable(logging.INFO)

    flag = f'--{args.measure or "cam-metrics"}'
    measured = time_pairs(command, lambda: command(flag), args.passes, args.clock)
    print(f'| command | plain (ms) | with {flag} over it (median, 95 %) | runs |')
    print('|---|--:|---|--:|')
    row((f'`validate.py {" ".join(args.command)}`',), measured)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; --quick overrides models and repetitions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--parts', nargs='+', default=['pictures', 'validation'], choices=('pictures', 'validation'))
    parser.add_argument('--pictures', nargs='+', default=PICTURES, metavar='MODEL')
    parser.add_argument('--topk', type=at_least(1), default=5, help='classes that get a map in pictures')
    parser.add_argument('--batch-size', type=at_least(1), default=16, help='of pictures')
    parser.add_argument('--pairs', type=at_least(1), default=40)
    parser.add_argument('--rival-pairs', type=at_least(1), default=10, help='where there is a backward pass a class')
    parser.add_argument('--validated', nargs='+', default=VALIDATED, metavar='MODEL:CLASSES:BATCH')
    parser.add_argument('--cam-topk', type=at_least(1), default=10, help='as in validate.py')
    parser.add_argument('--batches', type=at_least(1), default=4, help='of a validation pass')
    parser.add_argument('--passes', type=at_least(1), default=20, help='pairs of validation passes')
    parser.add_argument('--channels-last', action='store_true')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--threads', type=int, default=0, help='of torch on a CPU, 0 for its own choice')
    parser.add_argument('--cpu-time', action='store_true', help='of the process: with --threads 1 on a busy machine')
    parser.add_argument('--rivals', nargs='*', default=[], metavar='FOLDER', help='where else to look for the rivals')
    parser.add_argument('--quick', action='store_true', help='few repetitions on small models, to try the script')
    parser.add_argument('--measure', choices=('cam-metrics', 'cam-boxes'), help='of --command (default: cam-metrics)')
    parser.add_argument('--command', nargs=argparse.REMAINDER, help='instead: validate.py with the options that follow')
    args = parser.parse_args(argv)
    if args.measure is not None and args.command is None:
        parser.error('--measure: needs --command.')
    args.clock = time.process_time if args.cpu_time else time.perf_counter
    if args.quick:
        args.pictures, args.batch_size, args.pairs, args.rival_pairs = ['resnet18', 'test_vit'], 2, 3, 2
        args.validated, args.batches, args.passes = ['cifar_resnet20:100:8'], 2, 3
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    sys.path.extend(args.rivals)
    if args.threads:
        torch.set_num_threads(args.threads)
    clock = 'CPU time' if args.cpu_time else 'wall time'
    print(f'{args.device}, {torch.get_num_threads()} thread(s), {clock}, torch {torch.__version__}')
    if args.command is not None:
        measure_command(args)
        return
    if 'pictures' in args.parts:
        measure_pictures(args)
    if 'validation' in args.parts:
        measure_validation(args)


if __name__ == '__main__':
    sys.exit(run_command(main))
