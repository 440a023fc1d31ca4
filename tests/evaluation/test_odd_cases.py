"""Maps, boxes, attacks and results at their edges."""

import json
import shutil
from contextlib import nullcontext
from functools import partial

import pytest
import timm
import torch
from running import main_of, validate
from timm.data.distributed_sampler import OrderedDistributedSampler
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler

from timm_hnc import CamModel, save_pretrained
from timm_hnc.attacks.attacks import Attack, attack, normalized, sample_losses, with_hnc
from timm_hnc.commands.command_line import run_command
from timm_hnc.commands.options.validate_options import fraction
from timm_hnc.data.loading.loaders import sample_order
from timm_hnc.data.objects.boxes import BoxSource
from timm_hnc.errors import DataError, UsageError
from timm_hnc.evaluation.evaluate import create_evaluator, evaluate
from timm_hnc.evaluation.labels import LabelOptions, OtherLabels
from timm_hnc.evaluation.map_pass import CurvePass
from timm_hnc.files.tables import write_json
from timm_hnc.losses import HNCLoss


class Reader:
    def __init__(self, boxes, labels):
        self.boxes, self.box_labels = [boxes], [labels]


class Data:
    def __init__(self, boxes, labels):
        self.reader = Reader(boxes, labels)


@pytest.mark.parametrize(
    ('boxes', 'labels'),
    [
        ([[0, 0, float('nan'), 5]], [1]),
        ([[0, 0, 5, 5]], [1, 2]),
        ([[0, 0, 5]], [1]),
        (3, [1]),
        ([[0, 0, 5, 5]], None),
    ],
)
def test_boxes_that_are_none_are_named(boxes, labels):
    with pytest.raises(DataError, match='sample 0'):
        BoxSource(Data(boxes, labels))[0]


def test_the_attacked_loss_of_several_labels_is_the_mean_that_training_takes():
    torch.manual_seed(0)
    model = CamModel(timm.create_model('test_resnet', num_classes=6, output_stride=8)).eval()
    images, target = torch.rand(3, 3, 32, 32), torch.randint(0, 2, (3, 6)).float()
    classifier = normalized(model)
    found = with_hnc(HNCLoss('mse', topk=2), 0.0)(classifier, images, target)
    logits = classifier(images)
    expected = nn.functional.binary_cross_entropy_with_logits(logits, target, reduction='none').mean(1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(sample_losses(logits, target), 6 * expected)
    summed = with_hnc(HNCLoss('mse', topk=2), 0.0, bce_sum=True)(classifier, images, target)
    torch.testing.assert_close(summed, 6 * expected)


def test_restarts_keep_the_worst_of_every_image():
    torch.manual_seed(0)
    model = CamModel(timm.create_model('test_resnet', num_classes=4, output_stride=8)).eval()
    images, target = torch.rand(6, 3, 32, 32), torch.randint(0, 4, (6,))
    classifier, loss = normalized(model), with_hnc(HNCLoss('mse', topk=2), 5.0)
    options = {'eps': 0.03, 'steps': 1}
    found = attack(
        classifier,
        images,
        target,
        Attack('pgd', restarts=4, **options),
        loss,
        generator=torch.Generator().manual_seed(1),
    )
    generator = torch.Generator().manual_seed(1)
    single = [attack(classifier, images, target, Attack('pgd', **options), loss, generator=generator) for _ in range(4)]

    @torch.no_grad()
    def values(of):
        return torch.cat([loss(classifier, *each) for each in zip(of.split(1), target.split(1), strict=True)])

    torch.testing.assert_close(values(found), torch.stack([values(each) for each in single]).amax(0))


def test_weights_of_another_type_are_attacked():
    model = timm.create_model('test_resnet', num_classes=4).eval().bfloat16()
    images = torch.rand(2, 3, 32, 32)
    found = attack(normalized(model), images, torch.tensor([0, 1]), Attack('fgsm', 0.03))
    assert (found - images).abs().max() > 0


def test_an_eps_without_end():
    with pytest.raises(ValueError, match='1e400'):
        fraction('1e400')


def test_json_has_no_nan(tmp_path):
    write_json(
        tmp_path / 'x.json', {'a': float('nan'), 'b': [1.5, float('inf')], 'c': {'d': -float('inf')}, 'e': 'NaN'}
    )
    expected = {'a': None, 'b': [1.5, None], 'c': {'d': None}, 'e': 'NaN'}
    assert json.loads((tmp_path / 'x.json').read_text(), parse_constant=pytest.fail) == expected


def test_options_that_do_nothing_are_refused(tmp_path):
    from timm_hnc.commands.options.validate_options import parse_validate_options

    for argv, message in (
        (['--attack-eps', '0.1'], '--attack-eps 0.1: does nothing without --attack'),
        (['--boxes-dir', 'x'], '--boxes-dir x: does nothing without --cam-boxes'),
        (['--boxes-key', 'x', '--cam-metrics'], '--boxes-key x: does nothing without --cam-boxes'),
    ):
        with pytest.raises(UsageError, match=message):
            parse_validate_options(argv)


def test_one_channel_and_a_damaged_image(tmp_path, capsys, images):
    """Statistics of three channels fit a model of one; attacks read the data again, and count its damage once."""
    root = shutil.copytree(images, tmp_path / 'data')
    next((root / 'validation').rglob('*.png')).write_bytes(b'no image')
    weights = tmp_path / 'weights.pth'
    torch.save(timm.create_model('test_resnet', num_classes=3, in_chans=1).state_dict(), weights)
    argv = [
        '--data-dir',
        root,
        '--model',
        'test_resnet',
        '--num-classes',
        '3',
        '--in-chans',
        '1',
        '--checkpoint',
        weights,
    ]
    argv += [
        '--img-size',
        '32',
        '-b',
        '8',
        '--workers',
        '0',
        '--device',
        'cpu',
        '--attack',
        'fgsm',
        '--attack-eps',
        '0.1',
    ]
    figures = validate(capsys, *argv)
    assert figures['skipped_images'] == 1
    assert 0 <= figures['fgsm_0.1_top1'] <= 100
    photo = next((root / 'train').rglob('*.png'))
    save_pretrained(timm.create_model('test_resnet', num_classes=3, in_chans=1), tmp_path / 'grey')
    out = ['--out', str(tmp_path / 'cams.png')]
    assert run_command(main_of('cams'), [str(photo), '--checkpoint', str(tmp_path / 'grey'), *out]) == 0
    save_pretrained(timm.create_model('test_resnet', num_classes=3, in_chans=4), tmp_path / 'four')
    assert run_command(main_of('cams'), [str(photo), '--checkpoint', str(tmp_path / 'four'), *out]) == 2
    assert 'the model has 4 input channels: photos have 1 or 3.' in capsys.readouterr().err


def test_an_order_is_known_only_where_it_is_the_same_each_time():
    data = list(range(5))
    assert list(sample_order(DataLoader(data, 2))) == data
    own = OrderedDistributedSampler(data, num_replicas=2, rank=1)
    assert list(sample_order(DataLoader(data, 2, sampler=own))) == [1, 3, 0]
    for loader in (
        DataLoader(data, 2, shuffle=True),
        DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 2, False)),
        DataLoader(data, batch_sampler=[[4, 1], [0, 2]]),
        DataLoader(data, batch_size=None),
    ):
        assert sample_order(loader) is None


def test_curves_are_of_the_model_in_its_precision():
    model = CamModel(timm.create_model('test_resnet', num_classes=3, output_stride=8)).eval()
    types = []
    model.model.fc.register_forward_hook(lambda module, inputs, output: types.append(output.dtype))
    inputs, target = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    curves = CurvePass(model.model, 2, False, partial(torch.autocast, 'cpu', torch.bfloat16))
    curves.update(model.class_maps(inputs), target, inputs, 0)
    assert types[-6:] == [torch.bfloat16] * 6  # three points on each of two curves


class Stream:
    """A reader that keeps its epoch in a tensor from pass to pass, as Hugging Face's streams do."""

    def __init__(self):
        self.epoch = None

    def __iter__(self):
        self.epoch = torch.zeros(()) if self.epoch is None else self.epoch
        self.epoch += 1
        yield torch.randn(4, 3, 8, 8), torch.arange(4) % 2


def test_a_stream_that_was_evaluated_can_be_read_again_elsewhere():
    stream = Stream()
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    evaluate(model, stream, create_evaluator(stream, torch.device('cpu')), nullcontext)
    assert len(list(stream)) == 1
    assert stream.epoch == 2


class Names(IterableDataset):
    """A stream of images whose names are known, or those of whose reader are not."""

    def __init__(self, known):
        self.known = known

    def __iter__(self):
        return iter(())

    def filenames(self, basename):
        assert self.known, 'Not supported'
        return ['ILSVRC2012_val_00000001.JPEG']


def test_reassessed_labels_of_streams(tmp_path):
    (tmp_path / 'real.json').write_text('[[0]]')

    def other_labels(known, workers):
        dataset = Names(known)
        loader = DataLoader(dataset, num_workers=workers)
        return OtherLabels(LabelOptions(real_labels=str(tmp_path / 'real.json')), dataset, loader, False, 9)

    with pytest.raises(UsageError, match='in order: read a stream with --workers 1'):
        other_labels(True, 2)
    with pytest.raises(DataError, match='this data set gives no file names of its images'):
        other_labels(False, 1)
    assert other_labels(True, 1).real_labels.filenames == ['ILSVRC2012_val_00000001.JPEG']
