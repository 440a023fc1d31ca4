"""What safety costs: seconds a checkpoint takes, and the time of a loader with seeded batches beside one without."""

import statistics
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import timm
import torch
from steps.measure import time_pairs
from timm.data import create_loader

from timm_hnc.checkpoints.checkpoints import CheckpointFolder, Progress
from timm_hnc.data.datasets import create_dataset
from timm_hnc.data.loading.seeded_batches import seed_batches
from timm_hnc.weights.saving import save_pretrained

IMAGES_OF_IMAGENET = 1_281_167


def saving(repeats: int = 5) -> None:
    """Seconds of a checkpoint of ResNet-50 for 1,000 classes with SGD's momentum, and the epoch of which it is 2 %."""
    model = timm.create_model('resnet50')
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    names = [str(index) for index in range(1000)]

    def write(folder: Path) -> None:
        save_pretrained(model, folder / 'model', names)
        state = {'model': model.state_dict(), 'optimizer': optimizer.state_dict()}
        torch.save(state, folder / 'training_state.pt')

    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = CheckpointFolder(Path(folder), 2, False, Progress('resnet50'))
        for epoch in range(repeats):
            started = time.perf_counter()
            checkpoints.save(f'epoch-{epoch}', write, float(epoch))
            seconds.append(time.perf_counter() - started)
    middle = statistics.median(seconds)
    epoch = 50 * middle
    print(
        f'a checkpoint of ResNet-50: {middle:.2f} s (median of {repeats}, {min(seconds):.2f} to {max(seconds):.2f}): '
        f'2 % of an epoch of {epoch:.0f} s; of ImageNet that is {IMAGES_OF_IMAGENET / epoch:,.0f} images/s'
    )


def seeding(pairs: int = 30) -> None:
    """Time of an epoch of the digits' training loader with seeded batches over one without, interleaved."""
    plain, seeded = _loader(), _loader()
    seed_batches(seeded, 0)
    ratios, _ = time_pairs(lambda: deque(plain, maxlen=0), lambda: deque(seeded, maxlen=0), pairs, time.process_time)
    low, high = statistics.quantiles(ratios, n=20)[0], statistics.quantiles(ratios, n=20)[-1]
    print(
        f'CPU time of an epoch of images with seeded batches over without: {statistics.median(ratios):.3f} '
        f'(median of {pairs} pairs, 5 to 95 %: {low:.3f} to {high:.3f})'
    )


def _loader() -> Any:
    dataset = create_dataset('hnc/digits', None, 'train', num_classes=10)
    options = dict(input_size=(3, 64, 64), batch_size=64, is_training=True, num_workers=0)
    return create_loader(dataset, **options, device=torch.device('cpu'), auto_augment='rand-m9-mstd0.5-inc1')
