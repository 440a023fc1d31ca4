"""timm_hnc.train and timm_hnc.evaluate on DataLoaders that a caller brings."""

import json
import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import timm
import torch
import torchvision
from accelerate import Accelerator
from api_runs import HNC, OPTIONS, loader_of, new_model
from data_fixtures import images
from running import arguments, clean_process, forget_run
from torch.nn import functional
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)
from torchvision.datasets import ImageFolder

import timm_hnc
from timm_hnc.errors import DataError, UsageError
from timm_hnc.training import run
from timm_hnc.training.outputs.picture_samples import spread_samples
from timm_hnc.training.setup.options import TrainOptions

__all__ = ['clean_process', 'images']

READING = {name: OPTIONS[name] for name in ('img_size', 'workers', 'batch_size', 'device')}


class Pets(torchvision.datasets.VisionDataset):
    """Reads by `transforms`, as OxfordIIITPet and others of torchvision's."""

    def __init__(self, count=8):
        super().__init__('', transform=torchvision.transforms.ToTensor())
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        return self.transforms(torchvision.transforms.functional.to_pil_image(self.pixels[index]), index % 3)


def test_data_sets_that_read_by_their_transforms_are_read_by_that_of_the_loader():
    data, model = Pets(), new_model().eval()
    before = data.transform, data.transforms.transform
    found = timm_hnc.evaluate(model, data, mean=[0.5], std=[0.5], crop_pct=1.0, **READING)
    images = data.pixels / 127.5 - 1
    loader = DataLoader(TensorDataset(images, torch.arange(8) % 3), batch_size=4)
    assert found['loss'] == pytest.approx(timm_hnc.evaluate(model, loader, device='cpu')['loss'], rel=1e-4)
    assert (data.transform, data.transforms.transform) == before


def test_data_sets_that_do_not_use_their_transform_are_refused():
    class Tensors(Pets):
        def __getitem__(self, index):
            return self.pixels[index] / 255, index % 3

    with pytest.raises(
        UsageError, match="'Tensors': expected a data set with an attribute `transform` that its images"
    ):
        timm_hnc.evaluate(new_model(), Tensors(), **READING)


def test_loaders_of_tensors_are_taken_as_they_are(tmp_path):
    forget_run()
    generator = torch.Generator().manual_seed(0)
    pixels, labels = torch.randn(24, 3, 32, 32, generator=generator), torch.arange(24) % 3
    loader = DataLoader(TensorDataset(pixels, labels), batch_size=8)
    model = new_model()
    options = {**OPTIONS, 'cam_images': 2, 'no_report': False}
    result = timm_hnc.train(model, loader, loader, TrainOptions(), **options, **HNC, output=str(tmp_path))
    assert result['epochs'] == 2
    forget_run()
    figures = timm_hnc.evaluate(model, loader, device='cpu')
    model.eval()
    with torch.inference_mode():
        right = (model(pixels).argmax(1) == labels).double().mean()
    assert figures['top1'] == pytest.approx(100 * float(right), abs=1e-4)
    assert figures['top1'] == pytest.approx(result['final']['top1'], abs=1e-4)


def test_targets_and_images_that_the_loop_cannot_take(images):
    forget_run()
    data = ImageFolder(str(images / 'train'), target_transform=lambda index: [index])
    for workers in (0, 1):
        with pytest.raises(DataError, match=r'a target is a list: expected a class index or, with --task multilabel'):
            timm_hnc.evaluate(new_model(), data, device='cpu', workers=workers)
    bytes_ = DataLoader(TensorDataset(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.arange(4) % 3))
    with pytest.raises(DataError, match='the loader gives images of uint8: expected normalised ones, of floats'):
        timm_hnc.evaluate(new_model(), bytes_, device='cpu')


def test_a_loader_of_a_list_is_evaluated():
    forget_run()
    generator = torch.Generator().manual_seed(0)
    pairs = [(torch.randn(3, 32, 32, generator=generator), number % 3) for number in range(4)]
    figures = timm_hnc.evaluate(new_model(), DataLoader(pairs, batch_size=4), device='cpu')
    assert (figures['top5'], figures['skipped_images']) == (100, 0)


@pytest.mark.parametrize('task', [timm_hnc.train, timm_hnc.evaluate])
def test_a_loader_is_not_read_by_several_processes(task, tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, 'num_processes', property(lambda accelerator: 2))
    forget_run()
    loader = DataLoader(TensorDataset(torch.randn(8, 3, 32, 32), torch.arange(8) % 3), batch_size=8)
    options = {} if task is timm_hnc.evaluate else {'output': str(tmp_path), 'no_report': True, 'cam_images': 0}
    with pytest.raises(UsageError, match='a DataLoader, and 2 processes'):
        task(new_model(), loader, device='cpu', img_size=32, **options)


def test_the_learning_rate_follows_the_batch_of_a_loader(tmp_path):
    forget_run()
    values = {name: value for name, value in OPTIONS.items() if name != 'batch_size'}
    timm_hnc.train(new_model(), loader_of(), **values, epochs=1, output=str(tmp_path), experiment='a')
    found = arguments(tmp_path / 'a')
    assert (found['batch_size'], found['lr']) == (4, pytest.approx(0.1 * 4 / 256))


def test_labels_of_a_loader_are_those_of_the_model():
    labels = torch.arange(16) % 4 - 1
    data = TensorDataset(torch.randn(16, 3, 32, 32), labels)
    message = r"^data set 'TensorDataset' has labels outside .* 0 to 2, such as -1: number the classes from 0\.$"
    with pytest.raises(DataError, match=message):
        timm_hnc.train(new_model(), DataLoader(data, batch_size=8), None, **OPTIONS)
    with pytest.raises(DataError, match=message):
        timm_hnc.evaluate(new_model(), DataLoader(data, batch_size=8), device='cpu')

    def from_zero(samples):
        images, labels = default_collate(samples)
        return images, (labels + 1) % 3

    class Coarse(TensorDataset):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image, label.clamp(0)

    few = SubsetRandomSampler(labels.gt(-1).nonzero().flatten().tolist())
    for loader in (DataLoader(data, batch_size=8, sampler=few), DataLoader(Coarse(*data.tensors), batch_size=8)):
        timm_hnc.evaluate(new_model(), loader, device='cpu')
    found = timm_hnc.evaluate(new_model(), DataLoader(data, batch_size=8, collate_fn=from_zero), device='cpu')
    assert not {'img_size', 'crop_pct', 'interpolation'} & found.keys()  # those of the images are not known


@pytest.mark.parametrize(
    ('target', 'values', 'message'),
    [
        (torch.zeros(8), {}, r'of shape \(8,\), floats: expected \(B,\), integer class indices'),
        (torch.zeros(8, 1, dtype=torch.long), {}, r'of shape \(8, 1\): expected \(B,\), integer class'),
        (
            torch.zeros(8, dtype=torch.long),
            {'task': 'multilabel'},
            r'\(8,\), integers: expected \(B, 3\), a value a class',
        ),
        (torch.zeros(8, 3), {}, r'of shape \(8, 3\): expected \(B,\), integer class indices'),
    ],
)
def test_targets_of_a_loader_that_no_loss_takes(tmp_path, target, values, message):
    loader = DataLoader(TensorDataset(torch.randn(8, 3, 32, 32), target), batch_size=8)
    with pytest.raises(DataError, match=message):
        timm_hnc.train(new_model(), loader, None, **OPTIONS, **values, output=str(tmp_path))
    with pytest.raises(DataError, match=message):
        timm_hnc.evaluate(new_model(), loader, device='cpu', **values)


@pytest.mark.parametrize('index', [3, -1, -100])
def test_class_indices_that_only_batches_show(tmp_path, index):
    class Own(Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, place):
            return torch.randn(3, 32, 32), index if place == 5 else place % 3

    loader = DataLoader(Own(), batch_size=8)
    with pytest.raises(DataError, match=f'^a target is class {index}, outside the range 0 to 2: ') as error:
        timm_hnc.evaluate(new_model(), loader, device='cpu', cam_metrics=True)
    if index == -100:  # which cross-entropy leaves out
        found = timm_hnc.train(new_model(), loader, None, **OPTIONS, **HNC, smoothing=0.0, output=tmp_path)
        assert found['epochs'] == 2
        return
    with pytest.raises(DataError, match=str(error.value)):
        timm_hnc.train(new_model(), loader, None, **OPTIONS, **HNC, output=tmp_path)


@pytest.mark.parametrize('values', [{}, {'task': 'multilabel'}], ids=['one label', 'several'])
def test_integers_of_any_kind_are_targets_of_a_loader(tmp_path, values):
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 3
    labels = functional.one_hot(labels) if values else labels
    kinds = (torch.float32, torch.bool, torch.int16) if values else (torch.int64, torch.uint8, torch.int32)
    loaders = [DataLoader(TensorDataset(images, labels.to(kind)), batch_size=8) for kind in kinds]
    options = OPTIONS | values | {'epochs': 1, 'output': str(tmp_path)}
    losses = [
        timm_hnc.train(new_model(), loader, None, **options, experiment=name)
        for name, loader in zip('abc', loaders, strict=True)
    ]
    assert len({each['train']['loss'] for each in losses}) == 1
    found = [timm_hnc.evaluate(new_model(), loader, device='cpu', **values) for loader in loaders]
    assert found[0] == found[1] == found[2]


def test_a_loader_of_something_else_than_images_and_targets():
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 3
    for loader, kind in (
        (DataLoader(TensorDataset(images, labels, labels), batch_size=8), 'list of Tensor, Tensor, Tensor'),
        (DataLoader([{'image': image, 'label': 1} for image in images], batch_size=8), 'dict'),
    ):
        with pytest.raises(DataError, match=f'the loader gives a {kind} a batch: expected'):
            timm_hnc.evaluate(new_model(), loader, device='cpu')


def test_the_learning_rate_follows_from_a_batch_samplers_batch(tmp_path, monkeypatch):
    runs, build_run = [], run.build_run
    monkeypatch.setattr(run, 'build_run', lambda *given: runs.append(build_run(*given)) or runs[-1])
    data = loader_of().dataset
    batches = BatchSampler(SequentialSampler(data), 4, False)
    for name, loader in (('a', DataLoader(data, batch_size=4)), ('b', DataLoader(data, batch_sampler=batches))):
        options = {'device': 'cpu', 'workers': 0, 'no_report': True, 'cam_images': 0, 'epochs': 1}
        timm_hnc.train(new_model(), loader, None, **options, output=str(tmp_path), experiment=name)
    assert runs[0].options.schedule.lr == runs[1].options.schedule.lr == 0.1 * 4 / 256


def test_images_of_a_loader_that_are_a_single_cell(tmp_path):
    other = torchvision.models.shufflenet_v2_x0_5(num_classes=3)
    for model in (timm.create_model('test_resnet', num_classes=3), other):
        with pytest.raises(UsageError, match=r'--hnc kd: the maps .* of images of 32 pixels are a single cell'):
            timm_hnc.train(model, loader_of(), None, device='cpu', workers=0, hnc='kd', output=str(tmp_path))
    wide = DataLoader(TensorDataset(torch.randn(4, 3, 32, 96), torch.arange(4) % 3), batch_size=4)
    values = {'device': 'cpu', 'workers': 0, 'no_report': True, 'cam_images': 0, 'epochs': 1, 'hnc': 'kd'}
    assert timm_hnc.train(model, wide, None, **values, output=str(tmp_path))['train']['hnc'] > 0


def test_smoothed_targets_of_a_loader_have_no_absent_class(tmp_path, caplog):
    target = functional.one_hot(torch.arange(8) % 3, 3) * 0.9 + 0.1 / 3
    for name, each in (('plain', target.round()), ('smoothed', target)):
        caplog.clear()
        loader = DataLoader(TensorDataset(torch.randn(8, 3, 32, 32), each), batch_size=8)
        options = OPTIONS | HNC | {'epochs': 1, 'smoothing': 0.0, 'output': str(tmp_path), 'experiment': name}
        found = timm_hnc.train(new_model(), loader, None, **options)['train']
        assert (found['hnc'] == 0) == (name == 'smoothed') == ('so that none is absent' in caplog.text)


@pytest.mark.parametrize(
    ('loss', 'smoothing', 'taken'),
    [('ce', 0.0, True), ('ce', 0.1, False), ('bce', 0.1, True), ('focal', 0.1, True), ('lmc', 0.0, False)],
)
def test_values_of_a_loader_go_to_losses_that_take_them(tmp_path, loss, smoothing, taken):
    target = functional.one_hot(torch.arange(8) % 3, 3) * 0.9
    loader = DataLoader(TensorDataset(torch.randn(8, 3, 32, 32), target), batch_size=8)
    options = OPTIONS | {'epochs': 1, 'loss': loss, 'smoothing': smoothing, 'output': str(tmp_path)}
    with nullcontext() if taken else pytest.raises(DataError, match=r'shape \(8, 3\): expected \(B,\), integer class'):
        timm_hnc.train(new_model(), loader, None, **options)


def test_mixup_pairs_the_images_of_a_batch_sampler(tmp_path):
    data, options = loader_of().dataset, {'device': 'cpu', 'workers': 0, 'no_report': True, 'cam_images': 0}
    even = BatchSampler(SubsetRandomSampler(range(24)), 4, False), BatchSampler(SequentialSampler(data), 4, True)
    for name, batches in zip('ab', even, strict=True):
        loader = DataLoader(data, batch_sampler=batches)
        timm_hnc.train(new_model(), loader, None, **options, mixup=0.2, epochs=1, output=str(tmp_path), experiment=name)
    loader = DataLoader(data, batch_sampler=BatchSampler(SequentialSampler(data), 4, False))
    with pytest.raises(UsageError, match='the last batch of 25 images is odd'):
        timm_hnc.train(new_model(), loader, None, **options, mixup=0.2)


def test_batches_of_no_known_number():
    class Batches:
        def __iter__(self):
            yield from ([0, 1, 2], [3])

    data = TensorDataset(torch.randn(4, 3, 32, 32), torch.arange(4) % 3)
    loaders = DataLoader(data, batch_sampler=Batches()), DataLoader(data, batch_size=3)
    first, second = (timm_hnc.evaluate(new_model(), loader, device='cpu') for loader in loaders)
    assert first == second


@pytest.mark.filterwarnings('ignore:Length of IterableDataset')
def test_a_loader_of_more_batches_than_it_says(tmp_path):
    class Stream(IterableDataset):
        def __len__(self):
            return 16

        def __iter__(self):
            yield from ((torch.full((3, 32, 32), float(index)), index % 3) for index in range(40))

    loader = DataLoader(Stream(), batch_size=8)
    found = timm_hnc.train(new_model(), loader, None, **OPTIONS, epochs=1, grad_accum_steps=2, output=str(tmp_path))
    assert math.isfinite(found['train']['loss'])


def test_a_loader_that_does_not_know_its_length(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            yield torch.zeros(3, 32, 32), 0

    with pytest.raises(UsageError, match='does not know how many batches it has'):
        timm_hnc.train(new_model(), DataLoader(Stream(), batch_size=8), None, **OPTIONS, output=str(tmp_path))


def test_reassessed_labels_want_images_in_order_and_enough_classes(images, tmp_path):
    (tmp_path / 'real.json').write_text('[]')
    data = ImageFolder(str(images / 'validation'))
    loader = DataLoader(data, shuffle=True)
    with pytest.raises(UsageError, match='takes the images in order: the DataLoader may have another each time'):
        timm_hnc.evaluate(new_model(), loader, device='cpu', real_labels=str(tmp_path / 'real.json'))
    (tmp_path / 'real.json').write_text(json.dumps([[0]] * len(data)))
    data = timm.data.create_dataset('', root=str(images), split='validation')
    options = {'device': 'cpu', 'workers': 0, 'batch_size': 8, 'real_labels': str(tmp_path / 'real.json')}
    with pytest.raises(UsageError, match="of ImageNet's classes, the model has 3"):
        timm_hnc.evaluate(new_model(), data, **options)


def test_a_loader_of_validation_batches_has_its_own_size(images):
    forget_run()
    with pytest.raises(UsageError, match='--validation-batch-size 2: does nothing, the DataLoader that is provided'):
        timm_hnc.train(new_model(), loader_of(), loader_of(), **OPTIONS, validation_batch_size=2)


def test_pictures_are_of_the_images_that_a_loader_takes_put_together_as_it_does():
    kept = [{'image': torch.full((3, 4, 4), float(place)), 'label': place} for place in range(10)]

    def collate(samples):
        return torch.stack([each['image'] for each in samples]), torch.tensor([each['label'] for each in samples])

    shuffled = DataLoader(kept, 4, collate_fn=collate, sampler=SubsetRandomSampler([9, 1, 5, 3, 7]))
    whole = DataLoader([collate(kept[start : start + 4]) for start in (0, 4)], batch_size=None)
    for loader, count, expected in ((shuffled, 3, [1, 3, 7]), (shuffled, 8, [1, 3, 5, 7, 9]), (whole, 6, [*range(6)])):
        data = SimpleNamespace(eval_loader=loader, patches=None)
        found, targets = spread_samples(SimpleNamespace(data=data), count)
        assert targets.tolist() == found[:, 0, 0, 0].tolist() == expected
