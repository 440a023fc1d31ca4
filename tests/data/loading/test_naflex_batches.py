"""NaFlex batches are functions of seed, epoch and place."""

import os

import pytest
import torch
from PIL import Image
from timm.data import create_naflex_loader

from timm_hnc.data.loading.naflex_batches import seed_naflex_batches


class Images:
    """Grey images of several shapes that say which they are, and by which process they were read."""

    transform = None

    def __init__(self):
        self.readers = torch.zeros(2, dtype=torch.int64).share_memory_()

    def __len__(self):
        return 40

    def __getitem__(self, index):
        self.readers[0 if os.getpid() == self.readers[1] else 1] = os.getpid()
        return Image.new('RGB', (16 + 8 * (index % 5), 40), (index, index, index)), index


def loader_of(workers=0):
    loader = create_naflex_loader(
        Images(), patch_size=8, train_seq_lens=(4, 16), batch_size=8, is_training=True, num_workers=workers,
        device=torch.device('cpu'), seed=3, scale=(0.5, 1.0), re_prob=0.5, re_mode='pixel',
    )  # fmt: skip
    return loader, seed_naflex_batches(loader, 5)


def read(loader, seeded, epoch, start=0):
    loader.dataset.set_epoch(epoch)
    seeded.start = start
    return [
        ({name: value.clone() for name, value in batch.items() if name != 'seq_len'}, target)
        for batch, target in loader
    ]


def equal(left, right):
    pairs = zip(left, right, strict=True)
    return all(torch.equal(a[1], b[1]) and all(torch.equal(a[0][key], b[0][key]) for key in a[0]) for a, b in pairs)


@pytest.mark.parametrize('workers', [1, 2])
def test_an_epoch_can_begin_at_any_batch_with_any_workers(workers):
    kept, plain = loader_of(workers), loader_of()
    epochs = [read(*kept, epoch) for epoch in range(2)]
    assert not equal(epochs[0][:1], epochs[1][:1])
    for epoch, batches in enumerate(epochs):
        indices = [index for _, target in batches for index in target.tolist()]
        assert sorted(indices) == list(range(40))
        torch.manual_seed(epoch)  # what was drawn before makes no difference
        assert equal(read(*plain, epoch), batches)
        assert equal(read(*kept, epoch, start=2), batches[2:])
        samples = [plain[1].samples(number) for number in range(len(batches))]
        assert samples == [target.tolist() for _, target in batches]
    assert len(kept[0]) == len(epochs[0])
