"""Small real data sets on disk, in every form that train.py reads; none of their sizes divides by 2, 3 or 8."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ('blue', 'green', 'red')
TRAIN_COUNTS, VALIDATION_COUNTS = (21, 20, 18), (9, 8, 8)  # 59 and 25 images
MULTI_LABEL_COUNT = {'train': 41, 'validation': 25}


def square(rng: np.random.Generator, channels: set[int], size: int = 32) -> Image.Image:
    """Noise with a square that is brighter in some of the channels."""
    pixels = rng.integers(0, 120, (size, size, 3))
    start = rng.integers(0, size // 2, 2)
    for channel in channels:
        pixels[start[0] : start[0] + size // 2, start[1] : start[1] + size // 2, channel] += 70
    return Image.fromarray(pixels.astype(np.uint8))


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, 'PNG')
    return file.getvalue()


def samples(split: str, seed: int = 0) -> list[tuple[str, int, bytes]]:
    """(name, label, PNG bytes) of a split's images."""
    rng = np.random.default_rng([seed, split == 'train'])
    counts = TRAIN_COUNTS if split == 'train' else VALIDATION_COUNTS
    return [
        (f'{CLASSES[label]}-{number:02d}', label, png(square(rng, {2 - label})))
        for label, count in enumerate(counts)
        for number in range(count)
    ]


def write_folder(root: Path) -> Path:
    """<root>/<split>/<class>/<name>.png."""
    for split in ('train', 'validation'):
        for name, label, content in samples(split):
            path = root / split / CLASSES[label] / f'{name}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return root


def write_tar(path: Path, split: str) -> Path:
    """A tar of <class>/<name>.png."""
    with tarfile.open(path, 'w') as file:
        for name, label, content in samples(split):
            _add(file, f'{CLASSES[label]}/{name}.png', content)
    return path


def _add(file: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    file.addfile(member, io.BytesIO(content))


def write_shards(root: Path, shards: int = 2, damaged: bool = False) -> Path:
    """Webdataset shards, images of all classes in each, and the _info.json that timm's reader wants."""
    root.mkdir(parents=True)
    info = {}
    for split in ('train', 'validation'):
        names, lengths = [f'{split}-{shard}.tar' for shard in range(shards)], []
        for shard, name in enumerate(names):
            chosen = samples(split)[shard::shards]
            with tarfile.open(root / name, 'w') as file:
                for sample, label, content in chosen:
                    _add(file, f'{sample}.png', b'no image' if damaged else content)
                    _add(file, f'{sample}.cls', str(label).encode())
            lengths.append(len(chosen))
        info[split] = {'name': split, 'num_samples': sum(lengths), 'filenames': names, 'shard_lengths': lengths}
    (root / '_info.json').write_text(json.dumps({'splits': info}))
    return root


def write_parquet(root: Path) -> Path:
    """A data set of Hugging Face's `datasets`: columns image and label."""
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as ImageFeature

    features = Features(
        {'image': ImageFeature(), 'label': ClassLabel(names=list(CLASSES)), 'name': Value('string')},
    )
    for split in ('train', 'validation'):
        names, labels, contents = zip(*samples(split), strict=True)
        images = [{'bytes': content, 'path': None} for content in contents]
        dataset = Dataset.from_dict({'image': images, 'label': labels, 'name': names}, features=features)
        _write_split(dataset, root, split)
    return root


def write_multi_label_parquet(root: Path) -> Path:
    """Images with none to three bright channels: column image, lists of labels and vectors of ones and zeros."""
    from datasets import ClassLabel, Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    features = Features(
        {
            'image': ImageFeature(),
            'labels': List(ClassLabel(names=list(CLASSES))),
            'vector': List(Value('float32')),
            'label': ClassLabel(names=list(CLASSES)),
        }
    )
    for split, count in MULTI_LABEL_COUNT.items():
        rng = np.random.default_rng(len(split))
        sets = [[label for label in range(3) if number & (1 << label)] for number in range(count)]
        images = [{'bytes': png(square(rng, {2 - label for label in labels})), 'path': None} for labels in sets]
        vectors = [[float(label in labels) for label in range(3)] for labels in sets]
        firsts = [min(labels, default=0) for labels in sets]
        columns = {'image': images, 'labels': sets, 'vector': vectors, 'label': firsts}
        _write_split(Dataset.from_dict(columns, features=features), root, split)
    return root


def _write_split(dataset, root: Path, split: str) -> None:
    (root / 'data').mkdir(parents=True, exist_ok=True)
    dataset.to_parquet(str(root / 'data' / f'{split}-00000-of-00001.parquet'))


def write_cub(root: Path) -> Path:
    """CUB-200-2011's layout: index files, images of three birds, a box each."""
    folder = root / 'CUB_200_2011'
    names = [f'{number + 1:03d}.{name}' for number, name in enumerate(CLASSES)]
    lines: dict[str, list[str]] = {'images': [], 'image_class_labels': [], 'train_test_split': [], 'bounding_boxes': []}
    for split in ('train', 'validation'):
        for name, label, content in samples(split):
            number = len(lines['images']) + 1
            path = folder / 'images' / names[label] / f'{name}-{split}.jpg'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.open(io.BytesIO(content)).save(path)
            lines['images'].append(f'{number} {path.relative_to(folder / "images")}')
            lines['image_class_labels'].append(f'{number} {label + 1}')
            lines['train_test_split'].append(f'{number} {int(split == "train")}')
            lines['bounding_boxes'].append(f'{number} {number % 5}.0 2.0 10.0 20.5')
    lines['classes'] = [f'{number + 1} {name}' for number, name in enumerate(names)]
    for name, rows in lines.items():
        (folder / f'{name}.txt').write_text('\n'.join(rows) + '\n')
    return root


def write_tiny_imagenet(root: Path) -> Path:
    """Tiny-ImageNet's layout: ids of three classes, training images by class, validation images in one folder."""
    folder, wnids = root / 'tiny-imagenet-200', ('n03', 'n01', 'n02')
    lines: dict[Path, list[str]] = {folder / 'wnids.txt': list(wnids)}
    for split, where in (('train', 'train'), ('validation', 'val')):
        for number, (_, label, content) in enumerate(samples(split)):
            wnid, box = sorted(wnids)[label], f'{number % 5} 2 20 23'.replace(' ', '\t')
            image = f'{wnid}_{number}.JPEG' if split == 'train' else f'val_{number}.JPEG'
            path = folder / where / (wnid if split == 'train' else '') / 'images' / image
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.open(io.BytesIO(content)).save(path, 'JPEG')
            if split == 'train':
                lines.setdefault(folder / 'train' / wnid / f'{wnid}_boxes.txt', []).append(f'{image}\t{box}')
            else:
                lines.setdefault(folder / 'val' / 'val_annotations.txt', []).append(f'{image}\t{wnid}\t{box}')
    for path, rows in lines.items():
        path.write_text('\n'.join(rows) + '\n')
    return root


def write_coco(root: Path) -> Path:
    """MS-COCO's layout of 2014: images with none to three bright channels, an object a channel; ids with gaps.

    The first object of an image is a crowd, and comes last.
    """
    ids = (3, 17, 90)
    for split, count in (('train2014', 41), ('val2014', 25)):
        rng = np.random.default_rng(count)
        images, annotations = [], []
        for number in range(count):
            labels = [label for label in range(3) if number & (1 << label)]
            path = root / split / f'COCO_{split}_{number:012d}.jpg'
            path.parent.mkdir(parents=True, exist_ok=True)
            square(rng, {2 - label for label in labels}).save(path)
            images.append({'id': 1000 + number, 'file_name': path.name, 'width': 32, 'height': 32})
            for crowd, label in [*((0, label) for label in labels[1:]), *((1, label) for label in labels[:1])]:
                entry = {'id': len(annotations), 'image_id': 1000 + number, 'category_id': ids[label]}
                annotations.append({**entry, 'bbox': [float(label), 1.0, 10.0, 20.5], 'iscrowd': crowd})
        categories = [
            {'id': number, 'name': name} for number, name in zip(reversed(ids), reversed(CLASSES), strict=True)
        ]
        content = {'images': images, 'annotations': annotations, 'categories': categories}
        (root / 'annotations').mkdir(exist_ok=True)
        (root / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))
    return root
