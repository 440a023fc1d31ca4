"""Damaged images: every one is read, or skipped and counted."""

import io
import random
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from faults.isolated import isolated
from timm_hnc.commands.command_line import run_command
from timm_hnc.data.datasets import create_dataset
from timm_hnc.data.loading.skipped_images import SkippedImages
from timm_hnc.errors import DataError
from timm_hnc.evaluation.evaluate import read

_FORMATS = ['JPEG', 'PNG', 'WEBP', 'BMP', 'PPM', 'TIFF']
_MODES = {'JPEG': ['RGB', 'L', 'CMYK'], 'PNG': ['RGB', 'L', 'P', 'RGBA', '1'], 'TIFF': ['RGB', 'CMYK', 'L', 'LAB']}


def fuzz_images(work: Path, count: int, seed: int) -> bool:
    """Read so many damaged images through the data set that train.py reads; whether every one ended well."""
    found: Counter[str] = Counter()
    folder = work / 'images' / 'train'
    for name in ('a', 'b'):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / 'b' / 'whole.png').write_bytes(_encoded(random.Random(0), 'PNG'))
    for number in range(count):
        rng = random.Random(f'{seed} {number}')
        format = rng.choice(_FORMATS)
        damaged = folder / 'a' / 'damaged.png'  # Pillow looks at what is in it
        damaged.write_bytes(_damage(rng, _encoded(rng, format)))
        log = work / 'log.txt'
        end = isolated(lambda: run_command(lambda _: _read(folder.parent), []), log, seconds=60)
        kind = (
            'read' if end.kind == 'success' and 'Skipped sample' not in log.read_text(errors='replace') else 'skipped'
        )
        found[kind if end.kind == 'success' else end.kind] += 1
        if not end.good:
            print(f'{end.kind}: image {number} of seed {seed} ({format})\n{end.text}\n', flush=True)
        damaged.unlink()
    print(f'{count} damaged images: {dict(found)}', flush=True)
    return set(found) <= {'read', 'skipped'}


def _read(folder: Path) -> int:
    skipped = SkippedImages()
    dataset = create_dataset('', str(folder), 'train', num_classes=2)
    before = skipped.count
    samples = list(read(dataset[index] for index in range(len(dataset))))
    if len(samples) != 2 or skipped.count - before not in (0, 1):
        raise DataError(f'{len(samples)} samples, {skipped.count} skipped')
    return 0


def _encoded(rng: random.Random, format: str) -> bytes:
    pixels = np.random.default_rng(rng.randrange(99)).integers(0, 256, (12, 16, 3)).astype(np.uint8)
    image = Image.fromarray(pixels).resize((96, 72)).convert(rng.choice(_MODES.get(format, ['RGB'])))
    file = io.BytesIO()
    options = {'progressive': rng.random() < 0.5} if format == 'JPEG' else {}
    if format == 'TIFF':
        options = {'compression': rng.choice([None, 'tiff_lzw', 'tiff_adobe_deflate', 'packbits'])}
    image.save(file, format, **options)
    return file.getvalue()


def _damage(rng: random.Random, content: bytes) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        at = rng.randrange(rng.choice([len(damaged), min(len(damaged), 200)]) or 1)
        kind = rng.randrange(6)
        if kind == 0:
            damaged[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            damaged[at] = rng.choice([0, 255, rng.randrange(256)])
        elif kind == 2:
            del damaged[at:]
        elif kind == 3:
            damaged[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 4:
            del damaged[at : at + rng.randrange(1, 20)]
        else:
            damaged[at : at + 8] = bytes(8)
        if not damaged:
            break
    return bytes(damaged)
