"""Losses on class maps that stand beside a criterion, against loops, alone and in a task."""

import copy

import pytest
import torch
from loss_cases import CLASSES, GRID, LABELS, class_maps, draw_factors
from small_models import MODELS, NUM_CLASSES
from torch.nn.functional import cross_entropy, interpolate, one_hot

from timm_hnc import CamModel, ClassMaps, HNCLoss, HNCMultiLabelTask, HNCTask, hnc_loss
from timm_hnc.cam import topk_positives
from timm_hnc.cam.object_masks import ObjectMasks
from timm_hnc.losses.attention_consistency import AttentionConsistencyLoss
from timm_hnc.losses.factory import MAP_LOSSES
from timm_hnc.losses.maps.base import MOST_PRESENT
from timm_hnc.losses.maps.consistency import ConsistencyLoss
from timm_hnc.losses.maps.separability import SeparabilityLoss
from timm_hnc.losses.maps.teacher import TeacherLoss
from timm_hnc.tasks import ClassMapMultiLabelTask, ClassMapTask

# none, one, two and all classes present
SETS = torch.tensor([[0.0] * 5, [0, 1, 0, 0, 0], [1, 0, 0, 0.4, 0], [1] * 5], dtype=torch.float64)


def scores_of(positions, rows, bias):
    return (positions @ rows.T + bias).unflatten(1, GRID)  # (B, h, w, n)


def overlap_by_the_formula(factors, present):
    """The mean over images of the mean over present classes, in loops."""
    maps = scores_of(*factors).clamp(min=0)
    logits = scores_of(*factors).mean((1, 2))
    total = 0.0
    for image, own in enumerate(present):
        absent = [o for o in range(CLASSES) if o not in own]
        if not absent or not own:
            continue
        confusing = max(absent, key=lambda o: logits[image, o].item())
        for t in own:
            shared = both = 0.0
            for i in range(GRID[0]):
                for j in range(GRID[1]):
                    a, c = maps[image, i, j, t], maps[image, i, j, confusing]
                    shared, both = shared + torch.minimum(a, c), both + a + c
            total = total + 2 * shared / both / len(own)
    return total / len(present)


@pytest.mark.parametrize(
    ('target', 'floor', 'present'),
    [
        (LABELS, 0.0, [[label] for label in LABELS.tolist()]),
        (SETS, 0.0, [[], [1], [0, 3], [0, 1, 2, 3, 4]]),
        (0.9 * SETS + 0.05, 0.05, [[], [1], [0, 3], [0, 1, 2, 3, 4]]),
    ],
    ids=['one label', 'several', 'smoothed'],
)
def test_overlap_and_its_gradients_are_those_of_loops(target, floor, present):
    factors = draw_factors()
    value = SeparabilityLoss()(class_maps(*factors), target, floor)
    expected = overlap_by_the_formula(factors, present)
    assert 0 < value < 1
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    for ours, theirs in zip(torch.autograd.grad(value, factors), torch.autograd.grad(expected, factors), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def two_maps(first, second):
    """Class maps of one image with a position more than a map has features for: a class a feature."""
    positions = torch.tensor([first, second], dtype=torch.float64).T[None].requires_grad_()
    return positions, ClassMaps(positions, torch.eye(2, dtype=torch.float64), None, (1, len(first)))


@pytest.mark.parametrize(
    ('first', 'second', 'expected'),
    [
        ([1, 2, 0], [1, 2, 0], 1.0),
        ([1, 2, 0], [0, 0, 3], 0.0),
        ([1, 2, -9], [-7, 2, 0], 2 * 2 / 5),
        ([-1, -2, 0], [-1, 0, -3], 0.0),
        ([1, 0, 0], [-1, 0, -3], 0.0),
    ],
    ids=['equal', 'apart', 'positive parts alone', 'nothing positive', 'one without'],
)
def test_ends_of_the_overlap(first, second, expected):
    positions, maps = two_maps(first, second)
    value = SeparabilityLoss()(maps, torch.tensor([0]))
    assert value.item() == pytest.approx(expected)
    [gradient] = torch.autograd.grad(value, positions)
    assert gradient.abs().max() <= 1


def test_present_classes_by_their_logits():
    logits = torch.tensor([[1.0, 5, 3, 4, 2], [5, 4, 3, 2, 1]])
    indices, valid = topk_positives(logits, torch.tensor([4, 0]), 3)
    assert (indices.tolist(), valid.tolist()) == ([[4], [0]], [[True], [True]])
    target = torch.tensor([[1.0, 0, 1, 1, 0], [0, 0, 0, 0, 1]])
    indices, valid = topk_positives(logits, target, 2)
    assert indices[0].tolist() == [3, 2]
    assert (indices[1, 0].item(), valid.tolist()) == (4, [[True, True], [True, False]])
    with pytest.raises(ValueError, match='k = 0: at least one present class'):
        topk_positives(logits, target, 0)
    with pytest.raises(ValueError, match='target of 1 images: expected 2'):
        topk_positives(logits, target[:1], 2)


def test_of_very_many_present_classes_the_strongest_are_looked_at():
    maps = class_maps(torch.randn(2, 6, 4), torch.randn(30, 4))
    target = (torch.arange(30) < 25).float().expand(2, 30)
    expected = 0.0
    for logits, each in zip(maps.logits, maps.maps(None).flatten(2).relu(), strict=True):
        present = logits[:25].argsort(descending=True)[:MOST_PRESENT]
        other = each[25 + logits[25:].argmax()]
        for own in each[present]:
            expected += torch.minimum(own, other).sum() * 2 / (own + other).sum() / MOST_PRESENT / 2
    torch.testing.assert_close(SeparabilityLoss()(maps, target), expected)


def test_maps_that_move_with_the_image_differ_in_nothing():
    positions, rows, bias = (each.detach() for each in draw_factors())
    mirrored = positions.unflatten(1, GRID).flip(2).flatten(1, 2)
    both = class_maps(torch.cat([positions, mirrored]), rows, bias)
    assert ConsistencyLoss()(both, LABELS.repeat(2)) == 0


# --- in a task ---

IMAGES = MODELS['efficientnet'].images(4).double()
TARGETS = {
    'one label': torch.tensor([2, 0, 5, 2]),
    'several': one_hot(torch.tensor([2, 0, 5, 2]), NUM_CLASSES).double() + torch.eye(NUM_CLASSES)[[3, 3, 3, 3]],
}


def model_of():
    # batch norms see the whole batch, mirror images or not
    return CamModel(MODELS['efficientnet'].make(drop_path_rate=0.0)).double().eval()


def gradients_of(task, target):
    result = task(IMAGES, target)
    return result, torch.autograd.grad(result['loss'], list(task.parameters()))


@pytest.mark.parametrize('labels', TARGETS)
def test_a_task_adds_them_to_criterion_and_hnc(labels):
    target, kind = TARGETS[labels], HNCTask if labels == 'one label' else HNCMultiLabelTask
    weights = {'separability': 0.3, 'consistency': 0.2}
    losses = {name: (MAP_LOSSES[name](), weight) for name, weight in weights.items()}
    task = kind(model_of(), hnc=HNCLoss('kd', 3), hnc_weight=0.1, map_losses=losses, verbose=False).eval()
    found, ours = gradients_of(task, target)
    assert set(found) == {'loss', 'output', 'criterion', 'hnc', *weights}

    model = model_of()
    both = target.repeat(2, *[1] * (target.ndim - 1))
    maps = model.class_maps(torch.cat([IMAGES, IMAGES.flip(-1)]))
    expected = task.criterion(maps.logits, both) + 0.1 * hnc_loss(maps, both, 'kd', 3)
    expected = expected + 0.3 * SeparabilityLoss()(maps, both) + 0.2 * ConsistencyLoss()(maps, both)
    torch.testing.assert_close(found['loss'], expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(found['output'], maps.logits[:4], rtol=1e-9, atol=1e-9)
    theirs = torch.autograd.grad(expected, list(model.parameters()))
    scale = max(gradient.abs().max() for gradient in theirs)
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-7, atol=1e-9 * scale)


def test_consistency_beside_cross_entropy_is_attention_consistency():
    target = TARGETS['one label']
    beside = ClassMapTask(
        model_of(), cross_entropy, map_losses={'consistency': (ConsistencyLoss(), 0.6)}, verbose=False
    )
    whole = ClassMapTask(model_of(), AttentionConsistencyLoss().double(), verbose=False)
    (one, ours), (other, theirs) = gradients_of(beside.eval(), target), gradients_of(whole.eval(), target)
    torch.testing.assert_close(one['loss'], other['loss'], rtol=1e-12, atol=0)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert set(other) == {'loss', 'output'}


@pytest.mark.parametrize('weight', [-1.0, float('nan'), float('inf')])
def test_a_weight_that_is_none(weight):
    with pytest.raises(ValueError, match=r'separability = .*: expected a finite number of 0 or more'):
        ClassMapTask(model_of(), map_losses={'separability': (SeparabilityLoss(), weight)}, verbose=False)


@pytest.mark.parametrize('name', ['loss', 'criterion', 'hnc'])
def test_names_of_other_parts_are_taken(name):
    with pytest.raises(ValueError, match=f"map_losses: '{name}' is the name of another part of the result"):
        ClassMapTask(model_of(), map_losses={name: (SeparabilityLoss(), 1.0)}, verbose=False)


# --- a teacher ---

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def teacher_of(**kwargs):
    """Of another architecture, with other normalisation."""
    torch.manual_seed(7)
    teacher = CamModel(MODELS['resnet'].make(**kwargs)).double().train()
    teacher.pretrained_cfg.update(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    return teacher


@pytest.mark.parametrize('finer', [False, True])
def test_the_teachers_map_of_its_prediction(finer):
    teacher, student = teacher_of(**({'output_stride': 8} if finer else {})), model_of()
    loss = TeacherLoss(teacher, MEAN, STD)
    maps = student.class_maps(IMAGES)
    assert (teacher.class_maps(IMAGES).grid != maps.grid) == finer
    value = loss(maps, TARGETS['one label'], images=IMAGES)
    total = 0.0
    for image in range(4):
        pixels = [IMAGES[image, c] * STD[c] + MEAN[c] for c in range(3)]
        theirs = torch.stack([(pixels[c] - (0.1, 0.2, 0.3)[c]) / (0.5, 0.6, 0.7)[c] for c in range(3)])
        explained = teacher.eval().class_maps(theirs[None])
        predicted = explained.logits.argmax().item()
        cells = interpolate(explained.maps(predicted).relu(), maps.grid, mode='bilinear', antialias=True)
        a, b = cells.flatten(), maps.maps(None)[image, predicted].relu().flatten()
        total = total + 1 - (a * b).sum() / (a.norm() * b.norm())
    torch.testing.assert_close(value, total / 4)
    assert 0 < value < 1
    assert any(g is not None and g.any() for g in torch.autograd.grad(value, student.parameters(), allow_unused=True))
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    student = model_of()
    twin = copy.deepcopy(student)
    twin.pretrained_cfg.update(mean=MEAN, std=STD)
    value = TeacherLoss(twin, MEAN, STD)(student.class_maps(IMAGES), TARGETS['one label'], images=IMAGES)
    assert value.item() == pytest.approx(0, abs=1e-12)


def test_a_teacher_is_no_part_of_what_trains_and_is_saved():
    teacher = teacher_of()
    losses = {'teacher': (TeacherLoss(teacher, MEAN, STD), 1.0)}
    task = HNCTask(model_of(), map_losses=losses, verbose=False)
    plain = HNCTask(model_of(), verbose=False)
    assert list(task.state_dict()) == list(plain.state_dict())
    assert len(list(task.parameters())) == len(list(plain.parameters()))
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    task.train()(IMAGES, TARGETS['one label'])['loss'].backward()
    assert not teacher.model.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    with pytest.raises(TypeError, match='a teacher needs the images'):
        losses['teacher'][0](task.trainable_module.class_maps(IMAGES), TARGETS['one label'])
    task.float()(IMAGES.float(), TARGETS['one label'])['loss'].backward()  # the teacher has gone along


# --- boxes ---

MASKS = ObjectMasks(
    torch.tensor([[2, -1], [0, 4], [-1, -1], [3, 1]]), torch.rand(4, 2, *GRID, dtype=torch.float64).round(decimals=1)
)


def by_boxes(factors, loss):
    """Energy, what lies outside, and the distance from the masks, in loops."""
    maps, total = scores_of(*factors).clamp(min=0), 0.0
    for image, classes in enumerate(MASKS.classes.tolist()):
        values = []
        for slot, label in enumerate(classes):
            if label < 0:
                continue
            cover, own = MASKS.cover[image, slot], maps[image, ..., label]
            inside = sum(own[i, j] * cover[i, j] for i in range(GRID[0]) for j in range(GRID[1]))
            beyond = sum((1 - cover[i, j]) * own[i, j] ** 2 for i in range(GRID[0]) for j in range(GRID[1]))
            energy = 1 - inside / own.sum() if own.sum() > 0 else 1 + 0 * own.sum()
            top = own.max() if own.max() > 0 else 1.0
            shares = [own[i, j] / top - cover[i, j] for i in range(GRID[0]) for j in range(GRID[1])]
            apart = sum(share.abs() for share in shares) / len(shares)
            values.append({'energy': energy, 'outside': beyond / (1 - cover).sum(), 'target-maps': apart}[loss])
        total = total + sum(values) / max(1, len(values))
    return total / len(MASKS.classes)


@pytest.mark.parametrize('name', ['energy', 'outside', 'target-maps'])
def test_losses_with_boxes_and_their_gradients_are_those_of_loops(name):
    factors = draw_factors()
    loss = MAP_LOSSES[name]()
    value, expected = loss(class_maps(*factors), LABELS, masks=MASKS), by_boxes(factors, name)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    for ours, theirs in zip(torch.autograd.grad(value, factors), torch.autograd.grad(expected, factors), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    with pytest.raises(TypeError, match='a loss with boxes needs the masks'):
        loss(class_maps(*factors), LABELS)


@pytest.mark.parametrize(
    ('values', 'cover', 'energy', 'outside', 'apart'),
    [
        ([1, 2, 0], [1, 1, 0], 0.0, 0.0, 0.5 / 3),
        ([1, 2, 0], [0, 0, 1], 1.0, 2.5, 2.5 / 3),
        ([-1, 3, 1], [0, 1, 0.5], 1 - 3.5 / 4, 0.5 / 1.5, (1 / 6) / 3),
        ([-1, -2, -3], [1, 0, 0], 1.0, 0.0, 1 / 3),
        ([1, 2, 3], [1, 1, 1], 0.0, 0.0, 1 / 3),
        ([1, 2, 3], [1 - 2e-7, 1 + 2e-7, 1], 0.0, 0.0, 1 / 3),
    ],
    ids=['inside', 'outside', 'in part', 'nothing positive', 'everywhere', 'everywhere but for rounding'],
)
def test_ends_of_the_losses_with_boxes(values, cover, energy, outside, apart):
    positions, maps = two_maps(values, [0, 0, 0])
    masks = ObjectMasks(torch.tensor([[0]]), torch.tensor([[[cover]]], dtype=torch.float64))
    for name, expected in (('energy', energy), ('outside', outside), ('target-maps', apart)):
        value = MAP_LOSSES[name]()(maps, torch.tensor([0]), masks=masks)
        assert value.item() == pytest.approx(expected, abs=1e-6)
        assert torch.autograd.grad(value, positions)[0].isfinite().all()


def test_masks_of_another_grid_and_of_mirror_images():
    cover = torch.arange(16.0).reshape(1, 1, 4, 4) / 16
    masks = ObjectMasks(torch.tensor([[0]]), cover)
    assert masks.on((2, 2))[0, 0, 0, 0] == cover[0, 0, :2, :2].mean()
    three = ObjectMasks(torch.tensor([[0]]), torch.eye(5)[None, None]).on((3, 3))
    torch.testing.assert_close(three.mean(), torch.tensor(0.2))  # the area stays where cells are cut
    both = masks.with_mirrored()
    assert both.classes.tolist() == [[0], [0]]
    assert torch.equal(both.cover[1], cover[0].flip(-1))


def test_a_task_gives_masks_to_the_losses_that_need_them():
    torch.manual_seed(3)
    masks = ObjectMasks(torch.tensor([[2], [0], [-1], [2]]), torch.rand(4, 1, 3, 2, dtype=torch.float64))
    losses = {'energy': (MAP_LOSSES['energy'](), 0.5), 'consistency': (ConsistencyLoss(), 0.1)}
    task = HNCTask(model_of(), hnc_weight=0.1, map_losses=losses, verbose=False).eval()
    found = task(IMAGES, TARGETS['one label'], masks)
    maps = model_of().class_maps(torch.cat([IMAGES, IMAGES.flip(-1)]))
    expected = MAP_LOSSES['energy']()(maps, TARGETS['one label'].repeat(2), masks=masks.with_mirrored())
    torch.testing.assert_close(found['energy'], expected, rtol=1e-9, atol=0)


# --- all of them ---


def loss_of(name, *moved):
    if name != 'teacher':
        return MAP_LOSSES[name]()
    return TeacherLoss(teacher_of(output_stride=8).to(*moved), MEAN, STD)  # no part of a task, which moves


OBJECTS = ObjectMasks(
    torch.tensor([[2], [0], [5], [-1]]),
    torch.rand(4, 1, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
)
each = pytest.mark.parametrize(('name', 'labels'), [(name, labels) for name in MAP_LOSSES for labels in TARGETS])


def task_of(name, labels, dtype=torch.float64):
    kind = ClassMapTask if labels == 'one label' else ClassMapMultiLabelTask
    return kind(model_of(), map_losses={name: (loss_of(name, dtype), 2.0)}, verbose=False).eval().to(dtype)


@each
def test_bfloat16_is_near_float32(name, labels):
    task, images, target, masks = task_of(name, labels, torch.float32), IMAGES.float(), TARGETS[labels], OBJECTS
    expected = task(images, target, masks)[name]
    with torch.autocast('cpu', torch.bfloat16):
        found = task(images, target, masks)
    assert found[name].dtype == torch.float32
    torch.testing.assert_close(found[name], expected.float(), rtol=0.05, atol=0.01)
    found['loss'].backward()
    assert all(p.grad.isfinite().all() for p in task.parameters() if p.grad is not None)


@each
def test_halves_accumulate_to_the_whole(name, labels):
    task, target, masks = task_of(name, labels), TARGETS[labels], OBJECTS
    parameters = [p for p in task.parameters() if p.requires_grad]
    whole = torch.autograd.grad(task(IMAGES, target, masks)['loss'], parameters)
    halves = []
    for half in (slice(0, 2), slice(2, 4)):
        part = ObjectMasks(masks.classes[half], masks.cover[half])
        halves.append(torch.autograd.grad(task(IMAGES[half], target[half], part)['loss'] / 2, parameters))
    scale = max(gradient.abs().max() for gradient in whole)
    for gradient, first, second in zip(whole, *halves, strict=True):
        torch.testing.assert_close(first + second, gradient, rtol=1e-9, atol=1e-10 * scale)


def test_no_loss_reads_a_number_from_the_device():
    """Tensors without data refuse to be read; tests/test_tasks.py says so of HNC."""
    weighted = {name: (loss_of(name, 'meta'), 1.0) for name in MAP_LOSSES}
    task = ClassMapTask(model_of(), cross_entropy, map_losses=weighted, verbose=False).to('meta').train()
    masks = ObjectMasks(*(part.to('meta') for part in OBJECTS))
    result = task(IMAGES.to('meta'), TARGETS['one label'].to('meta'), masks)
    result['loss'].backward()
    assert set(result) == {'loss', 'output', 'criterion', *MAP_LOSSES}
