"""timm_hnc.train and timm_hnc.evaluate: the same loop and the same figures as the commands."""

import json
import shutil
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from accelerate import Accelerator
from data_fixtures import images
from PIL import Image
from running import NARROW, SMALL, arguments, clean_process, equal_tensors, forget_run, summary, train, validate
from timm.utils import random_seed
from torch import nn
from torch.nn import functional
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)
from torchvision.datasets import ImageFolder

import timm_hnc
from timm_hnc.cam.heads.hooked_head import HookedHead
from timm_hnc.errors import DataError, UsageError
from timm_hnc.training import run
from timm_hnc.training.setup.options import TrainOptions

__all__ = ['clean_process', 'images']
OPTIONS = {'img_size': 32, 'workers': 0, 'batch_size': 8, 'device': 'cpu', 'no_report': True, 'cam_images': 0}
SPLITS = ('train', 'validation')
HNC = {'hnc': 'mse', 'hnc_weight': 0.1, 'hnc_topk': 1, 'epochs': 2}


def new_model():
    random_seed(42, 0)  # as train.py seeds before it makes its model
    return timm.create_model('test_resnet', num_classes=3, **NARROW)


def loader_of(size=4, images=25):
    return DataLoader(TensorDataset(torch.randn(images, 3, 32, 32), torch.arange(images) % 3), batch_size=size)


@pytest.fixture(scope='module')
def command(images, tmp_path_factory):
    """A run of train.py."""
    flags = [word for name, value in HNC.items() for word in (f'--{name.replace("_", "-")}', value)]
    return train('--data-dir', images, *SMALL, *flags, '--output', tmp_path_factory.mktemp('runs'), '--experiment', 'a')


def weights(folder):
    return safetensors.torch.load_file(folder / 'model_best' / 'model.safetensors')


@pytest.mark.parametrize('wrapped', [False, True])
def test_it_trains_as_the_command_does(images, command, tmp_path, wrapped):
    forget_run()
    sets = [ImageFolder(str(images / split)) for split in ('train', 'validation')]
    model = new_model()
    given = timm_hnc.CamModel(model) if wrapped else model
    result = timm_hnc.train(given, *sets, **OPTIONS, **HNC, output=str(tmp_path), experiment='b')
    assert result['folder'] == str(tmp_path / 'b')
    expected = weights(command)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path / 'b').items())
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert summary(tmp_path / 'b') == summary(command)
    names = timm.create_model(f'local-dir:{tmp_path / "b" / "model_best"}', pretrained=True).pretrained_cfg[
        'label_names'
    ]
    assert names == sets[0].classes


def test_it_evaluates_as_the_command_does(images, command, capsys):
    flags = ['--data-dir', images, '--workers', 0, '--device', 'cpu', '--cam-metrics', '--attack', 'fgsm']
    expected = validate(capsys, '--checkpoint', command, *flags)
    forget_run()
    model = timm.create_model(f'local-dir:{command / "model_best"}', pretrained=True)
    data = ImageFolder(str(images / 'validation'))
    found = timm_hnc.evaluate(model, data, workers=0, device='cpu', cam_metrics=True, attack=['fgsm'])
    assert found == expected
    assert model.training, 'the mode that it had'


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


def test_pooling_at_test_time_leaves_the_model_as_it_was():
    forget_run()
    model = timm.create_model('test_resnet', num_classes=3)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loader = DataLoader(TensorDataset(torch.zeros(2, 3, 192, 192), torch.arange(2)), batch_size=2)
    options = {'device': 'cpu', 'img_size': 192, 'test_pool': True}
    figures = timm_hnc.evaluate(model, loader, attack=['fgsm'], attack_eps=[0.0], **options)
    assert figures['fgsm_0_top1'] == figures['top1'] == 50
    assert equal_tensors(model.state_dict(), state)
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 3)


def test_a_loader_of_a_list_is_evaluated():
    forget_run()
    generator = torch.Generator().manual_seed(0)
    pairs = [(torch.randn(3, 32, 32, generator=generator), number % 3) for number in range(4)]
    figures = timm_hnc.evaluate(new_model(), DataLoader(pairs, batch_size=4), device='cpu')
    assert (figures['top5'], figures['skipped_images']) == (100, 0)


def test_calls_of_one_process_each_have_their_own_precision(images, tmp_path):
    forget_run()
    model, data = new_model(), ImageFolder(str(images / 'train'))
    options = {'workers': 0, 'device': 'cpu'}
    plain = timm_hnc.evaluate(model, data, **options)['loss']
    half = timm_hnc.evaluate(model, data, **options, amp=True, amp_dtype='bfloat16')['loss']
    assert half != plain
    for name, amp in (('half', True), ('plain', False)):
        values = {**OPTIONS, 'amp': amp, 'amp_dtype': 'bfloat16', 'epochs': 1, 'output': str(tmp_path)}
        result = timm_hnc.train(new_model(), data, **values, experiment=name)
        assert result['precision'] == ('bf16' if amp else 'no')
    timm_hnc.evaluate(model, data, **options, model_dtype='bfloat16')
    assert timm_hnc.evaluate(model, data, **options)['loss'] == plain, 'its weights are what they were'


@pytest.mark.parametrize('loss', ['lmc', 'lgm'])
def test_a_loss_that_makes_its_own_scores_ends_with_the_best_weights_too(images, tmp_path, loss):
    forget_run()
    model, data = new_model(), ImageFolder(str(images / 'train'))
    values = {**OPTIONS, 'loss': loss, 'epochs': 2, 'lr': 0.1, 'warmup_epochs': 0, 'output': str(tmp_path)}
    result = timm_hnc.train(model, data, data, **values, experiment='a')
    best = weights(tmp_path / 'a')
    assert all(torch.equal(tensor, best[name]) for name, tensor in model.state_dict().items())
    found = timm_hnc.evaluate(model, data, workers=0, device='cpu', img_size=32)
    assert found['top1'] == pytest.approx(result['final']['top1'], abs=1e-4)


@pytest.mark.parametrize('task', [timm_hnc.train, timm_hnc.evaluate])
def test_a_loader_is_not_read_by_several_processes(task, tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, 'num_processes', property(lambda accelerator: 2))
    forget_run()
    loader = DataLoader(TensorDataset(torch.randn(8, 3, 32, 32), torch.arange(8) % 3), batch_size=8)
    options = {} if task is timm_hnc.evaluate else {'output': str(tmp_path), 'no_report': True, 'cam_images': 0}
    with pytest.raises(UsageError, match='a DataLoader, and 2 processes'):
        task(new_model(), loader, device='cpu', img_size=32, **options)


def test_without_validation_data_the_training_loss_ranks(images, tmp_path):
    forget_run()
    data = ImageFolder(str(images / 'train'))
    result = timm_hnc.train(new_model(), data, epochs=np.int64(1), **OPTIONS, output=tmp_path)
    assert result['final'] is None
    assert list(result['best_metric']) == ['loss']


def test_classes_are_counted_in_a_data_set_without_a_target_transform(images, tmp_path):
    forget_run()
    data = ImageFolder(str(images / 'train'))
    result = timm_hnc.train(new_model(), data, loss='cb-focal', **OPTIONS, epochs=1, output=str(tmp_path))
    assert result['epochs'] == 1


@pytest.mark.parametrize('values', [{'loss': 'cb-focal'}, {'loss': 'bce', 'loss_class_weight': 'inv_freq'}])
def test_counts_of_other_classes_than_the_models(images, tmp_path, values):
    forget_run()
    stats = tmp_path / 'stats.json'
    stats.write_text('{"pos_counts": [5, 5, 5, 5], "num_samples": 20}')
    with pytest.raises(UsageError, match=r'^--(class-stats|loss-class-weight) .*: 4 values for --num-classes 3\.$'):
        timm_hnc.train(
            new_model(),
            ImageFolder(str(images / 'train')),
            **{**OPTIONS, **values, 'class_stats': str(stats), 'output': str(tmp_path / 'runs')},
        )


def test_the_learning_rate_follows_the_batch_of_a_loader(tmp_path):
    forget_run()
    values = {name: value for name, value in OPTIONS.items() if name != 'batch_size'}
    timm_hnc.train(new_model(), loader_of(), **values, epochs=1, output=str(tmp_path), experiment='a')
    found = arguments(tmp_path / 'a')
    assert (found['batch_size'], found['lr']) == (4, pytest.approx(0.1 * 4 / 256))


def test_one_data_set_for_both_is_augmented_for_training_alone(images, tmp_path, monkeypatch):
    forget_run()
    runs, build_run = [], run.build_run
    monkeypatch.setattr(run, 'build_run', lambda *given: runs.append(build_run(*given)) or runs[0])
    data = ImageFolder(str(images / 'train'))
    timm_hnc.train(new_model(), data, data, **OPTIONS, epochs=1, output=str(tmp_path))
    trained, evaluated = (
        str(loader.dataset.transform) for loader in (runs[0].data.train_loader, runs[0].data.eval_loader)
    )
    assert 'RandomResizedCrop' in trained
    assert 'CenterCrop' in evaluated


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'split': 'test'}, '--split test: does nothing, the data is provided'),
        ({'data_dir': 'here'}, '--data-dir here: does nothing'),
        ({'checkpoint': 'x.pth'}, '--checkpoint x.pth: does nothing, the model is provided'),
        ({'batch_size': 8}, '--batch-size 8: does nothing, the DataLoader that is provided makes the batches'),
        ({'crop_border_pixels': 2}, '--crop-border-pixels 2: does nothing'),
        ({'crop_pct': 0.5}, '--crop-pct 0.5: does nothing, the DataLoader'),
        ({'interpolation': 'bicubic'}, '--interpolation bicubic: does nothing'),
        ({'num_classes': 7}, '--num-classes 7: the model that is provided has 3'),
    ],
)
def test_an_evaluation_refuses_what_would_do_nothing(values, message):
    with pytest.raises(UsageError, match=message):
        timm_hnc.evaluate(new_model(), loader_of(), **values)


@pytest.mark.parametrize(
    ('data', 'values', 'message'),
    [
        ([], {}, "data of type 'list': expected a data set with an attribute `transform`"),
        (ImageFolder, {'hnc_topk': 3}, '--hnc-topk 3: does nothing without --hnc'),
        (ImageFolder, {'hnc': 'mse', 'gp': 'max', 'batch_size': 0}, '--batch-size 0'),
        (ImageFolder, {'epochs': '1'}, "--epochs '1': expected an integer"),
        (ImageFolder, {'model_ema': 1}, '--model-ema 1: expected True or False'),
        (ImageFolder, {'hnc': True}, "--hnc 'True': expected one of none, mse, kd, var, logit"),
        (ImageFolder, {'label_noise': 'symmetric:0.9'}, '--label-noise symmetric:0.9: does nothing, the data sets are'),
        (ImageFolder, {'holdout': 0.5}, '--holdout 0.5: does nothing'),
        (ImageFolder, {'epoch_repeats': 2}, '--epoch-repeats 2: does nothing'),
        (ImageFolder, {'target_key': 'label'}, '--target-key label: does nothing'),
        (ImageFolder, {'drop': 0.5}, '--drop 0.5: does nothing, the model is provided'),
        (ImageFolder, {'initial_checkpoint': 'nowhere.pth'}, '--initial-checkpoint nowhere.pth: does nothing'),
        (ImageFolder, {'pretrained': True}, '--pretrained: does nothing'),
        (ImageFolder, {'gp': 'max'}, '--gp max: does nothing'),
        (ImageFolder, {'num_classes': 5}, '--num-classes 5: the model that is provided has 3'),
        (loader_of, {'reprob': 0.5}, '--reprob 0.5: does nothing, the DataLoader that is provided makes the'),
        (loader_of, {'scale': (0.5, 1.0)}, r'--scale \[0.5, 1.0\]: does nothing'),
        (loader_of, {'batch_size': 128}, '--batch-size 128: the DataLoader that is provided makes batches of 4'),
        (loader_of, {'batch_size': 4, 'mixup': 0.2}, 'the last batch of 25 images is odd'),
    ],
)
def test_wrong_use(images, data, values, message):
    forget_run()
    data = data(str(images / 'train')) if data is ImageFolder else data() if data is loader_of else data
    with pytest.raises(UsageError, match=message):
        timm_hnc.train(new_model(), data, **{**OPTIONS, **values})
    with pytest.raises(UsageError, match="--val-split '': evaluates nothing, and validation data is given"):
        timm_hnc.train(new_model(), loader_of(images=24), loader_of(), val_split='')
    with pytest.raises(TypeError, match='no option of TrainOptions: epoch'):
        timm_hnc.train(new_model(), data, epoch=3)


def test_classes_of_other_numbers(images, tmp_path):
    """Folders number their own classes, wherever the data set comes from; a target transform numbers them anew."""
    forget_run()
    for name in ('green', 'red'):
        shutil.copytree(images / 'validation' / name, tmp_path / 'other' / name)
    train_set, other = ImageFolder(str(images / 'train')), ImageFolder(str(tmp_path / 'other'))
    with pytest.raises(DataError, match=r"^class 'green' is number 0 in the validation data but 1 in the training"):
        timm_hnc.train(new_model(), train_set, other, **OPTIONS, output=str(tmp_path / 'runs'))
    options = {'batch_size': 8, 'device': 'cpu', 'workers': 0}
    model = new_model()
    model.pretrained_cfg = model.pretrained_cfg | {'label_names': train_set.classes}
    with pytest.raises(DataError, match=r"^class 'green' is number 0 in the data but 1 in the model"):
        timm_hnc.evaluate(model, other, **options)
    anew = ImageFolder(
        str(tmp_path / 'other'), target_transform=lambda label: train_set.class_to_idx[other.classes[label]]
    )
    assert timm_hnc.evaluate(model, anew, **options) == timm_hnc.evaluate(new_model(), anew, **options)
    model = timm.create_model('test_resnet', num_classes=2, **NARROW)
    with pytest.raises(DataError, match=r"^data set 'ImageFolder' has labels outside the model's range 0 to 1"):
        timm_hnc.evaluate(model, train_set, **options)


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


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(run, 'datetime', SimpleNamespace(now=lambda: datetime(2026, 1, 2)))
    values = {**OPTIONS, 'batch_size': 4, 'epochs': 1, 'output': str(tmp_path)}
    names = [Path(timm_hnc.train(new_model(), loader_of(), **values)['folder']).name for _ in range(2)]
    assert names == ['20260102-000000-test_resnet', '20260102-000000-test_resnet-2']


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
    model = timm.create_model('test_resnet', num_classes=3)
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


class Small(nn.Module):
    """A classifier that is none of timm's, with positions at `body`."""

    def __init__(self, as_object=False, channels=3):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(channels, 8, 4, stride=4), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, 3)
        self.as_object = as_object

    def forward(self, x):
        logits = self.fc(self.body(x).mean((2, 3)))
        return SimpleNamespace(logits=logits) if self.as_object else logits


@pytest.mark.parametrize('values', [HNC, {'epochs': 2}, HNC | {'model_ema': True, 'hnc': 'kd', 'mixup': 0.2}])
def test_a_model_that_is_none_of_timms_trains(tmp_path, values):
    model, other = Small(), Small(as_object=True)
    loaders = lambda: (loader_of(images=24), loader_of())  # noqa: E731
    results = []
    for net, name in ((timm_hnc.CamModel(model, features='body', image_size=32), 'a'), (other, 'b')):
        torch.manual_seed(1)
        options = {'device': 'cpu', 'workers': 0, 'no_report': True, 'lr': 0.1, 'output': str(tmp_path)}
        results.append(timm_hnc.train(net, *loaders(), **options | values, cam_images=2, experiment=name))
    torch.manual_seed(1)
    first = Small().state_dict()
    saved = weights(tmp_path / 'a')
    assert saved.keys() == first.keys(), 'the names of the model itself'
    assert any(not torch.equal(saved[name], first[name]) for name in first)
    if not values.get('model_ema'):
        assert equal_tensors(dict(model.state_dict()), saved), 'it ends with its best weights'
    assert results[0]['model'] == 'Small'
    assert arguments(tmp_path / 'a')['num_classes'] == 3
    assert (tmp_path / 'a' / 'cams' / 'best.png').is_file()
    again = Small()
    safetensors.torch.load_model(again, tmp_path / 'a' / 'model_best' / 'model.safetensors')
    figures = timm_hnc.evaluate(again, loader_of(), device='cpu', workers=0, cam_metrics=True, img_size=32)
    assert 'cam_negative_peak' in figures


def test_a_model_that_is_none_of_timms_trains_with_losses_of_ours(tmp_path):
    values = {'device': 'cpu', 'workers': 0, 'no_report': True, 'cam_images': 0, 'epochs': 1, 'loss': 'focal'}
    found = timm_hnc.train(Small(), loader_of(images=24), None, **values, output=str(tmp_path), experiment='a')
    assert 'hnc' not in found['train']


def test_the_loss_of_a_model_that_is_none_of_timms_is_that_of_the_task(tmp_path):
    """One step of SGD without momentum, written by hand."""
    images, target = torch.randn(12, 3, 32, 32), torch.arange(12) % 3
    data = DataLoader(TensorDataset(images, target), batch_size=12)
    trained, model = Small(), Small()
    options = {'device': 'cpu', 'opt': 'momentum', 'momentum': 0.0, 'weight_decay': 0.0, 'lr': 0.1, 'warmup_epochs': 0}
    options |= {'sched': 'none', 'no_report': True, 'cam_images': 0, 'workers': 0, 'smoothing': 0.0}
    timm_hnc.train(trained, data, None, **options, **HNC | {'epochs': 1}, output=str(tmp_path), experiment='a')
    features = model.body(images)
    maps = torch.einsum('bchw,oc->bohw', features, model.fc.weight) + model.fc.bias[:, None, None]
    logits = maps.mean((2, 3))
    negatives = logits.masked_fill(torch.nn.functional.one_hot(target, 3).bool(), -torch.inf).argmax(1)
    flat = maps[torch.arange(12), negatives].square().mean((1, 2)).mean()
    loss = torch.nn.functional.cross_entropy(logits, target) + 0.1 * flat
    loss.backward()
    for name, parameter in model.named_parameters():
        expected = parameter.detach() - 0.1 * parameter.grad
        torch.testing.assert_close(dict(trained.named_parameters())[name], expected.requires_grad_())


def test_a_resumed_run_of_a_model_that_is_none_of_timms_is_exact(tmp_path):
    options = {'device': 'cpu', 'workers': 0, 'no_report': True, 'cam_images': 0, 'output': str(tmp_path)} | HNC
    options |= {'epochs': 3, 'lr': 0.1}
    data = loader_of(images=24), loader_of()
    timm_hnc.train(Small(), *data, **options, experiment='whole')
    timm_hnc.train(Small(), *data, **options, experiment='parts', stop_epoch=1)
    timm_hnc.train(Small(), *data, **options, experiment='parts', resume='auto')
    assert equal_tensors(weights(tmp_path / 'parts'), weights(tmp_path / 'whole'))
    assert summary(tmp_path / 'parts') == summary(tmp_path / 'whole')


def test_a_model_of_grey_images_that_is_none_of_timms(images, tmp_path):
    model = timm_hnc.CamModel(Small(channels=1), features='body', image_size=32)
    assert model.data_config['input_size'] == (1, 32, 32)
    grey = [ImageFolder(str(images / split), loader=lambda path: Image.open(path).convert('L')) for split in SPLITS]
    options = {'device': 'cpu', 'workers': 0, 'batch_size': 8}
    more = {'epochs': 1, 'no_report': True, 'cam_images': 0, 'output': str(tmp_path), 'experiment': 'a'}
    result = timm_hnc.train(model, *grey, **options, **more)
    figures = timm_hnc.evaluate(model, grey[1], **options)
    assert figures['top1'] == pytest.approx(result['final']['top1'], abs=1e-3)
    assert figures['model'] == 'Small'


def test_a_model_around_one_of_timms_is_none_of_timms(tmp_path):
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = new_model()
            self.pretrained_cfg = self.inside.pretrained_cfg

        def forward(self, x):
            return self.inside(x)

    options = {'device': 'cpu', 'workers': 0, 'no_report': True, 'cam_images': 0, 'epochs': 1, 'experiment': 'a'}
    timm_hnc.train(Around(), loader_of(images=24), loader_of(), **options, output=str(tmp_path))
    assert all(name.startswith('inside.') for name in weights(tmp_path / 'a'))


def test_the_maps_of_a_cam_model_are_evaluated_at_its_place(monkeypatch):
    model = timm_hnc.CamModel(timm.create_model('test_efficientnet', num_classes=3), features='blocks')
    looked, class_maps = [], HookedHead.class_maps
    monkeypatch.setattr(HookedHead, 'class_maps', lambda head, *rest: looked.append(head) or class_maps(head, *rest))
    timm_hnc.evaluate(model, loader_of(), device='cpu', workers=0, cam_metrics=True)
    assert set(map(id, looked)) == {id(model.head)}


class NoMaps(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3 * 32 * 32, 3)

    def forward(self, x):
        return self.fc(x.flatten(1).sin())


@pytest.mark.parametrize(
    ('model', 'values', 'message'),
    [
        (NoMaps(), {}, "no exact class maps for 'NoMaps': none of its modules returns features with positions"),
        (Small(), {'push_to_hub': 'a/b'}, "--push-to-hub: 'Small' is none of timm's models"),
        (Small(), {'loss': 'center'}, 'one linear classifier that timm knows'),
        (Small(), {'num_classes': 7}, '--num-classes 7: the model that is provided has 3.'),
    ],
)
def test_what_does_not_go_with_a_model_that_is_none_of_timms(tmp_path, model, values, message):
    with pytest.raises(UsageError) as error:
        timm_hnc.train(model, loader_of(), None, device='cpu', output=str(tmp_path), **values)
    assert message in str(error.value)
