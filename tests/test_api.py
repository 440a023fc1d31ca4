"""timm_hnc.train and timm_hnc.evaluate: the same loop and the same figures as the commands."""

import copy
import logging
import pickle
import shutil
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from api_runs import HNC, OPTIONS, loader_of, new_model, weights
from data_fixtures import images
from running import NARROW, SMALL, clean_process, equal_tensors, forget_run, summary, train, validate
from timm.layers import is_fast_norm, set_fast_norm
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import ImageFolder

import timm_hnc
from timm_hnc import api
from timm_hnc.errors import DataError, UsageError
from timm_hnc.training import run

__all__ = ['clean_process', 'images']


@pytest.fixture(scope='module')
def command(images, tmp_path_factory):
    """A run of train.py."""
    flags = [word for name, value in HNC.items() for word in (f'--{name.replace("_", "-")}', value)]
    return train('--data-dir', images, *SMALL, *flags, '--output', tmp_path_factory.mktemp('runs'), '--experiment', 'a')


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


def test_calls_of_one_process_each_have_their_own_precision(images, tmp_path):
    forget_run()
    model, data = new_model(), ImageFolder(str(images / 'train'))
    options = {'workers': 0, 'device': 'cpu', 'img_size': 32}
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


def test_a_run_that_is_complete_gives_the_model_its_best_weights(images, tmp_path):
    data = ImageFolder(str(images / 'train'))
    values = {**OPTIONS, 'epochs': 3, 'warmup_epochs': 0, 'output': str(tmp_path), 'experiment': 'a'}
    # the rate grows, so that the last weights are not the best
    values |= {'eval_metric': 'loss', 'lr': 0.02, 'sched': 'step', 'decay_rate': 8.0, 'decay_epochs': 1}
    for _ in range(2):  # the second time nothing is left to train
        forget_run()
        model = new_model()
        timm_hnc.train(model, data, data, **values, resume='auto')
        assert equal_tensors(model.state_dict(), weights(tmp_path / 'a'))
    assert (tmp_path / 'a' / 'model_best').resolve() != (tmp_path / 'a' / 'last' / 'model').resolve()


def test_loops_of_the_callers_own_go_on_beside_it(images, tmp_path):
    """An Accelerator that has stopped between two updates, a data set that is copied, and failures without end."""
    forget_run()
    theirs = Accelerator(cpu=True, gradient_accumulation_steps=4, mixed_precision='bf16')
    network = theirs.prepare(nn.Linear(2, 2))
    with theirs.accumulate(network):
        pass
    assert not theirs.sync_gradients
    model, data = new_model(), ImageFolder(str(images / 'train'))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    timm_hnc.train(model, data, data, **OPTIONS, epochs=1, lr=0.1, warmup_epochs=0, output=str(tmp_path))
    trained = [name for name, _ in model.named_parameters() if not torch.equal(model.state_dict()[name], before[name])]
    assert len(trained) == len(list(model.parameters()))
    timm_hnc.evaluate(model, data, workers=0, device='cpu', img_size=32)
    assert (theirs.sync_gradients, theirs.gradient_accumulation_steps) == (False, 4)
    assert Accelerator(cpu=True, mixed_precision='bf16').mixed_precision == theirs.mixed_precision == 'bf16'
    assert len(pickle.loads(pickle.dumps(copy.deepcopy(data)))) == len(data)
    filters = len(logging.getLogger('timm.data.dataset').filters)
    with pytest.raises(UsageError, match=r'^--opt sgd cannot be made'):
        timm_hnc.train(model, data, data, **OPTIONS, opt_kwargs={'foo': 1}, output=str(tmp_path))
    assert len(logging.getLogger('timm.data.dataset').filters) == filters


def test_a_callers_device_and_arithmetic(images, monkeypatch):
    """Of a PartialState alone, as Accelerate's progress bar makes one, the device is not taken; settings stay."""
    forget_run()
    PartialState().device = torch.device('meta')
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    monkeypatch.setattr(api, 'measure', lambda *_: set_settings(True))

    def set_settings(value):
        matmul.allow_tf32 = cudnn.benchmark = value
        set_fast_norm(value)
        return {'device': PartialState().device.type}

    set_settings(False)
    monkeypatch.setattr(logging.root, 'level', logging.ERROR)
    before = [*logging.root.handlers], logging.getLogger('urllib3').level
    found = timm_hnc.evaluate(new_model(), ImageFolder(str(images / 'train')), workers=0, device='cpu')
    assert found == {'device': 'cpu'}
    assert (matmul.allow_tf32, cudnn.benchmark, is_fast_norm()) == (False, False, False)
    assert (logging.root.handlers, logging.getLogger('urllib3').level) == before
    assert logging.root.level == logging.ERROR
    if hasattr(matmul, 'fp32_precision'):
        matmul.fp32_precision = 'tf32'  # of which `allow_tf32` does not want to know
        try:
            timm_hnc.evaluate(new_model(), ImageFolder(str(images / 'train')), workers=0, device='cpu')
            assert matmul.fp32_precision == 'tf32'
        finally:
            set_settings(False)


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


def test_one_data_set_for_both_is_augmented_for_training_alone(images, tmp_path, monkeypatch):
    forget_run()
    transforms, build_run = [], run.build_run

    def built(*given):
        made = build_run(*given)
        transforms.extend(str(each.dataset.transform) for each in (made.data.train_loader, made.data.eval_loader))
        return made

    monkeypatch.setattr(run, 'build_run', built)
    data = ImageFolder(str(images / 'train'), transform=len)
    timm_hnc.train(new_model(), data, data, **OPTIONS, epochs=1, output=str(tmp_path))
    assert data.transform is len, 'what reads the data set afterwards sees its own images'
    assert 'RandomResizedCrop' in transforms[0]
    assert 'CenterCrop' in transforms[1]


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
        (ImageFolder, {'hnc': None}, "--hnc 'None': expected one of none, mse"),
        (ImageFolder, {'map_loss': {'separability': 0.5}}, "--map-loss {'separability': 0.5}: expected a list"),
        (ImageFolder, {'map_loss': 'separability', 'mean': torch.tensor([0.5]), 'lr': -1.0}, '--lr -1'),
        (ImageFolder, {'scale': ['a', 1]}, "--scale 'a': expected a number"),
        (ImageFolder, {'loss_kwargs': ['gamma=1.5']}, r"--loss-kwargs \['gamma=1.5'\]: expected a mapping"),
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
        (loader_of, {'scale': (0.5, 1.0)}, '--scale 0.5 1.0: does nothing'),
        (loader_of, {'batch_size': 128}, '--batch-size 128: the DataLoader that is provided makes batches of 4'),
        (loader_of, {'batch_size': 4, 'mixup': 0.2}, 'the last batch of 25 images is odd'),
    ],
)
def test_wrong_use(images, data, values, message):
    forget_run()
    data = data(str(images / 'train')) if data is ImageFolder else data() if data is loader_of else data
    with pytest.raises(UsageError, match=message):
        timm_hnc.train(new_model(), data, **{**OPTIONS, **values})


def test_options_that_cannot_be():
    forget_run()
    with pytest.raises(UsageError, match="--val-split '': evaluates nothing, and validation data is given"):
        timm_hnc.train(new_model(), loader_of(images=24), loader_of(), val_split='')
    with pytest.raises(TypeError, match="no option of TrainOptions: epoch, did you mean 'epochs'\\?"):
        timm_hnc.train(new_model(), loader_of(), epoch=3)


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


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(run, 'datetime', SimpleNamespace(now=lambda: datetime(2026, 1, 2)))
    values = {**OPTIONS, 'batch_size': 4, 'epochs': 1, 'output': str(tmp_path)}
    names = [Path(timm_hnc.train(new_model(), loader_of(), **values)['folder']).name for _ in range(2)]
    assert names == ['20260102-000000-test_resnet', '20260102-000000-test_resnet-2']
