"""What the page says of a photograph, beside plain timm, PIL and matplotlib."""

from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from image_data import CLASSES, MULTI_LABEL_COUNT
from PIL import Image
from running import SMALL, failure, train
from small_models import DETACHED_MODELS, MODELS, TAIL_MODELS
from timm.data import create_transform, resolve_data_config
from torch.utils.data import IterableDataset
from torchvision.datasets import ImageFolder

from timm_hnc import create_model
from timm_hnc.commands import demo
from timm_hnc.demo.answers import Answers
from timm_hnc.demo.pictures import map_picture
from timm_hnc.demo.samples import spread_over
from timm_hnc.demo.sights import distinct, sight_of
from timm_hnc.errors import UsageError
from timm_hnc.plots.panel import Cell
from timm_hnc.plots.photo_cams import Subject, names_of

NAMES = [f'class {index}' for index in range(20)]


def photograph(size=(60, 44)):
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope='module')
def subject():
    model = MODELS['resnet'].cam_model().eval()
    return Subject(model, 'resnet', NAMES[: model.num_classes])


def test_probabilities_and_maps_are_those_of_plain_timm(subject):
    model, photo = subject.model.model, photograph()
    transform = create_transform(**resolve_data_config({}, model=model))
    with torch.no_grad():
        features = model.forward_features(transform(photo)[None])
        logits = model.forward_head(features)[0]
    maps = torch.einsum('chw,oc->ohw', features[0], model.fc.weight) + model.fc.bias[:, None, None]
    sight = sight_of(photo, subject)
    order = logits.argsort(descending=True).tolist()
    expected = {NAMES[index]: logits.softmax(0)[index].item() for index in order[:6]}
    assert sight.likeliest() == pytest.approx(expected)
    assert list(sight.likeliest()) == list(expected)
    for index in order:
        torch.testing.assert_close(sight.cell(index).map, maps[index], atol=1e-5, rtol=1e-4)


def test_probabilities_that_are_all_1_leave_the_order_of_the_logits(subject):
    logits = torch.full((1, subject.model.num_classes), -2.0)
    logits[0, 1], logits[0, 2] = 32.4, 60.8
    sight = sight_of(photograph(), replace(subject, multi_label=True))
    sight = replace(sight, class_maps=replace(sight.class_maps, logits=logits), probability=logits[0].sigmoid())
    assert sight.predicted == 2
    assert list(sight.likeliest(2)) == [NAMES[2], NAMES[1]]


def test_the_row_has_the_class_that_is_there_and_the_absent_ones_by_logit(subject):
    sight = sight_of(photograph(), subject)
    order = [int(name.split()[1]) for name in sight.likeliest()]
    there = order[3]
    row = sight.row([there])
    assert row.positive.name == NAMES[there]
    assert [cell.name for cell in row.negatives] == [NAMES[index] for index in order[:5] if index != there][:4]
    assert sight.row([]).positive.name == NAMES[order[0]], 'nobody said what is there'


def test_the_difference_of_two_maps_explains_that_of_their_logits(subject):
    sight = sight_of(photograph(), subject)
    worst = int(sight.probability.argmin())
    why = sight.mistake([worst])
    logits = sight.class_maps.logits[0]
    assert (why.predicted.name, why.expected.name) == (NAMES[sight.predicted], NAMES[worst])
    assert why.difference.mean().item() == pytest.approx((logits[sight.predicted] - logits[worst]).item(), abs=1e-4)
    assert sight.mistake([]) is None
    assert sight.mistake([sight.predicted, worst]) is None


@pytest.mark.parametrize('name', ['convnext', 'vit'])
def test_other_kinds_of_models_have_maps_too(name):
    model = (DETACHED_MODELS | TAIL_MODELS)[name].cam_model().eval()
    sight = sight_of(photograph(), Subject(model, name, NAMES[: model.num_classes]))
    for index in (0, 1):
        assert sight.cell(index).map.mean().item() == pytest.approx(sight.class_maps.logits[0, index].item(), abs=1e-3)


def test_several_labels_are_sigmoids(subject):
    several = Subject(subject.model, '', subject.class_names, multi_label=True)
    sight = sight_of(photograph(), several)
    torch.testing.assert_close(sight.probability, sight.class_maps.logits[0].sigmoid())
    there = sight.probability.argsort().tolist()[:2]
    row = sight.row(there)
    assert row.positive.name == NAMES[there[1]]
    assert not {cell.name for cell in row.negatives} & {NAMES[index] for index in there}


def test_a_map_of_full_opacity_has_the_colours_of_viridis():
    map_ = torch.linspace(0, 1, 4).repeat(4, 1)
    picture = np.asarray(map_picture(torch.rand(3, 16, 16), Cell(map_, '', 0.5), (0.0, 1.0), 0, 1.0))
    ramp = np.asarray(Image.fromarray(map_.numpy()).resize((512, 512), Image.Resampling.BICUBIC))
    expected = matplotlib.colormaps['viridis'](ramp.clip(0, 1))[..., :3] * 255
    difference = np.abs(picture - expected)  # the picture's colours are interpolated between ten of viridis
    assert difference.max() < 20
    assert difference.mean() < 4


def test_below_the_threshold_the_photograph_is_seen_as_it_is():
    image, map_ = torch.rand(3, 512, 512), torch.tensor([[0.0, 1.0]]).repeat_interleave(4, 1).repeat(8, 1)
    picture = np.asarray(map_picture(image, Cell(map_, '', 0.5), (0.0, 1.0), 0.5, 0.6))
    photo = image.permute(1, 2, 0).numpy() * 255
    assert np.abs(picture - photo)[:, :150].max() < 0.51
    assert (np.abs(picture - photo)[:, -150:].max(2) > 1).mean() > 0.95
    covered = np.asarray(map_picture(image, Cell(map_, '', 0.5), (0.0, 1.0), 0, 0.6))
    assert (np.abs(covered - photo)[:, :150].max(2) > 1).mean() > 0.95


def test_classes_of_one_name_are_told_apart():
    assert distinct(['crane', 'cat', 'crane']) == ['crane (0)', 'cat', 'crane (2)']
    assert len(set(distinct(['a', 'a', 'a (0)']))) == 3


@pytest.fixture(scope='module')
def run(images, tmp_path_factory):
    argv = ['--data-dir', images, *SMALL, '--output', tmp_path_factory.mktemp('runs'), '--experiment', 'run']
    return train(*argv)


def test_the_photographs_to_pick_from_are_spread_over_the_validation_images(run, images):
    subject = Subject(create_model(f'local-dir:{run / "model_best"}').eval(), 'run', CLASSES)
    folder = ImageFolder(images / 'validation')
    found = demo._samples(str(run), subject, 5)
    expected = [folder[place * len(folder) // 5] for place in range(5)]
    assert [sample.expected for sample in found] == [(label,) for _, label in expected]
    for sample, (photo, _) in zip(found, expected, strict=True):
        assert (np.asarray(sample.photo) == np.asarray(photo)).all()
    assert len(demo._samples(str(run), subject, 1000)) == len(folder)
    assert demo._samples('resnet18', subject, 5) == []


def test_the_held_out_images_of_several_labels_are_those_of_the_run(multi_label, tmp_path):
    run = train(*multi_label, *SMALL, '--holdout', '0.2', '--output', tmp_path, '--experiment', 'run')
    subject = Subject(create_model(f'local-dir:{run / "model_best"}').eval(), 'run', CLASSES, multi_label=True)
    found = demo._samples(str(run), subject, 1000)
    assert len(found) == round(0.2 * MULTI_LABEL_COUNT['train'])
    assert {len(sample.expected) for sample in found} > {1}


def test_data_that_only_comes_in_order_is_read_from_its_beginning():
    class Stream(IterableDataset):
        def __iter__(self):
            yield from ((photograph(), label) for label in range(9))

    assert [sample.expected for sample in spread_over(Stream(), 3)] == [(0,), (1,), (2,)]


@pytest.mark.parametrize(
    ('argv', 'code', 'message'),
    [
        (['resnet10t'] * 3, 2, '3 models: expected one, or two to compare.'),
        (['resnet10t', '--images', '-1'], 2, '--images -1: expected 0 or more.'),
        (['test_resnet', '--no-pretrained', '--port', '99999'], 2, '--port 99999: expected 1 to 65535.'),
        (['test_resnet', '--no-pretrained', '--port', '0'], 2, '--port 0: expected 1 to 65535.'),
        (['no_such_model'], 2, "'no_such_model' cannot be made: Unknown model (no_such_model)"),
        (['.'], 1, "'.' is neither a run folder nor a folder of weights."),
        (
            ['test_resnet', 'test_vit', '--no-pretrained', '--num-classes', '0'],
            2,
            '--num-classes 0: expected 1 or more',
        ),
        (
            ['test_resnet', '--no-pretrained', '--host', '::1'],
            2,
            '--host ::1: the page is served on names and addresses',
        ),
        (
            ['test_resnet', '--no-pretrained', '--host', '192.0.2.1'],
            2,
            '--host 192.0.2.1: the page cannot be served there',
        ),
    ],
)
def test_bad_options_are_one_line(capsys, tmp_path, monkeypatch, argv, code, message):
    monkeypatch.chdir(tmp_path)
    found, line = failure(capsys, 'demo', *argv)
    assert (found, message in line) == (code, True), line


def test_names_of_another_number_of_classes_are_not_taken(run):
    model = create_model(f'local-dir:{run / "model_best"}', num_classes=2)
    assert names_of(model.model) == ['0', '1']


def test_models_in_half_precision_see_the_same(subject):
    half = replace(subject, model=MODELS['resnet'].cam_model().eval().bfloat16())
    expected = sight_of(photograph(), subject).likeliest()
    assert sight_of(photograph(), half).likeliest() == pytest.approx(expected, abs=0.02)


def test_every_class_has_a_name(subject):
    with pytest.raises(UsageError, match=rf"'resnet': 2 class names for {subject.model.num_classes} classes"):
        Answers([replace(subject, class_names=NAMES[:2])])


def test_models_of_different_classes_are_not_compared(capsys, run):
    code, line = failure(capsys, 'demo', run, 'test_resnet', '--no-pretrained')
    assert (code, line) == (2, "'run' and 'test_resnet' have different classes: nothing to compare.")


def test_models_of_different_tasks_are_not_compared(subject):
    with pytest.raises(UsageError, match='one has a single label an image, the other several: nothing to compare'):
        Answers([subject, replace(subject, multi_label=True)])


def test_without_gradio_the_command_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(demo, 'find_spec', lambda name: None)
    assert failure(capsys, 'demo', 'resnet10t') == (2, 'the page needs Gradio: pip install "timm_hnc[demo]".')
