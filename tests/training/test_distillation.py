"""Distillation by timm's tasks, alone and with HNC: against loops over them that are written by hand."""

import copy
import json
import shlex
import shutil

import pytest
import timm
import torch
from running import NARROW, SMALL, arguments, equal_tensors, failure, run_differences, summary, train, training_state
from running import validate as figures_of
from timm.optim import create_optimizer_v2
from timm.task import FeatureDistillationTask, LogitDistillationTask, TokenDistillationTask
from torch.utils.data import DataLoader, TensorDataset

import timm_hnc
from timm_hnc import CamModel, HNCLoss, save_pretrained
from timm_hnc.errors import UsageError
from timm_hnc.hub.bundle import bundle_run
from timm_hnc.report.page import write_report
from timm_hnc.tasks import HNCTask
from timm_hnc.training import epoch
from timm_hnc.training.setup import build
from timm_hnc.training.setup.objective.distillation import DistillationOptions, create_distillation

DEIT = {'img_size': 32, 'patch_size': 8, 'embed_dim': 16, 'depth': 2, 'num_heads': 2}
LEVIT = {'depth': (1, 1, 1), 'embed_dim': (16, 24, 32), 'num_heads': (2, 2, 2), 'key_dim': 8}
STUDENTS = {
    'logit': ('test_resnet', NARROW),
    'feature': ('test_resnet', NARROW),
    'soft': ('deit_tiny_distilled_patch16_224', DEIT),
    'hard': ('deit_tiny_distilled_patch16_224', DEIT),
}


def student_of(kind):
    name, options = STUDENTS[kind]
    torch.manual_seed(3)
    return timm.create_model(name, num_classes=3, **options)


def teacher_model():
    torch.manual_seed(5)
    return timm.create_model('test_efficientnet', num_classes=3)


def timms_task(kind, student, teacher, **options):
    options |= {'criterion_kwargs': {'smoothing': 0.1}, 'task_loss_weight': 0.7}
    if kind == 'logit':
        return LogitDistillationTask(student, teacher, temperature=3.0, **options)
    if kind == 'feature':
        return FeatureDistillationTask(student, teacher, **options)
    return TokenDistillationTask(student, teacher, distill_type=kind, temperature=3.0, **options)


def flags_of(kind):
    kinds = {'kd_distill_type': kind} if kind in ('logit', 'feature') else {'kd_distill_type': 'token'}
    kinds |= {'kd_token_distill_type': kind} if kind in ('soft', 'hard') else {}
    return kinds | {'kd_temperature': 3.0, 'task_loss_weight': 0.7}


@pytest.mark.parametrize('kind', STUDENTS)
def test_without_hnc_a_run_is_timms(kind, tmp_path, monkeypatch):
    begun = []
    made = build.create_distillation
    monkeypatch.setattr(build, 'create_distillation', lambda *args, **kwargs: noted(made(*args, **kwargs), begun))
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(24, 3, 32, 32, generator=generator), torch.arange(24) % 3)
    loader = DataLoader(data, batch_size=8)
    save_pretrained(teacher_model(), tmp_path / 'teacher')
    common = {'device': 'cpu', 'workers': 0, 'lr': 0.02, 'sched': 'none', 'warmup_epochs': 0, 'weight_decay': 0.1}
    common |= {'epochs': 3, 'cam_images': 0, 'no_report': True, 'output': str(tmp_path), 'experiment': 'run'}
    trained = student_of(kind)
    timm_hnc.train(trained, loader, None, **common, **flags_of(kind), kd_model_name=str(tmp_path / 'teacher'))

    student = student_of(kind)
    task = timms_task(kind, student, teacher_model().eval()).train()
    task.load_task_state(begun[0])
    optimizer = create_optimizer_v2(task.trainable_module, 'sgd', lr=0.02, weight_decay=0.1, momentum=0.9)
    for row in summary(tmp_path / 'run'):
        losses = []
        for images, target in loader:
            optimizer.zero_grad()
            loss = task(images, target)['loss']
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert row['train_loss'] == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    student.eval(), trained.eval()
    torch.testing.assert_close(trained(data.tensors[0]), student(data.tensors[0]), rtol=1e-4, atol=1e-5)


def noted(task, found):
    found.append(copy.deepcopy(task.get_task_state()))
    return task


def passes_of(module, counts, name):
    module.register_forward_hook(lambda *_: counts.update({name: counts.get(name, 0) + 1}))


@pytest.mark.parametrize('kind', ['logit', 'feature', 'soft', 'hard'])
def test_with_hnc_the_loss_and_its_gradients_are_the_sum_of_both(kind, monkeypatch):
    """One pass of the student and one of the teacher; beside it, timm's task and HNC in passes of their own."""
    name, options = ('levit_128s', LEVIT) if kind in ('soft', 'hard') else STUDENTS[kind]
    size = 224 if kind in ('soft', 'hard') else 32
    torch.manual_seed(3)
    student = timm.create_model(name, num_classes=3, **options).double().train()
    twin = timm.create_model(name, num_classes=3, **options).double().train()
    twin.load_state_dict(student.state_dict())
    teacher = teacher_model().double().eval()
    images, target = torch.randn(4, 3, size, size, dtype=torch.float64), torch.tensor([0, 1, 2, 1])
    device = torch.device('cpu')

    def distil(student, criterion):
        options = DistillationOptions(kd_model_name='teacher', **flags_of(kind))
        torch.manual_seed(7)  # of the projection
        made = create_distillation(
            options, teacher, student.pretrained_cfg, student, device, verbose=False, criterion=criterion
        )
        return made.double()

    hnc = HNCLoss('mse', topk=2)
    task = HNCTask(CamModel(student), criterion_kwargs={'smoothing': 0.1}, hnc=hnc, hnc_weight=0.5, distil=distil)
    task = task.double().train()
    counts = {}
    passes_of(next(module for module in student.modules() if isinstance(module, torch.nn.Conv2d)), counts, 'student')
    passes_of(next(module for module in teacher.modules() if isinstance(module, torch.nn.Conv2d)), counts, 'teacher')
    # nothing of the student was exchanged: there is nothing to compare
    monkeypatch.setattr('timm_hnc.cam.heads.base.agree', lambda *_: pytest.fail('compared'))
    found = task(images, target)
    assert counts == {'student': 1, 'teacher': 1}
    found['loss'].backward()

    torch.manual_seed(7)
    by_hand = timms_task(kind, twin, teacher).double().train()
    apart = by_hand(images, target)
    if kind in ('soft', 'hard'):
        twin.set_distilled_training(False)
    flat = hnc(CamModel(twin).class_maps(images), target)
    (apart['loss'] + 0.5 * flat).backward()
    assert found['loss'].item() == pytest.approx((apart['loss'] + 0.5 * flat).item(), rel=1e-9)
    assert found['hnc'].item() == pytest.approx(flat.item(), rel=1e-9)
    for (where, left), right in zip(student.named_parameters(), twin.parameters(), strict=True):
        assert (left.grad - right.grad).abs().max() <= 1e-6 * right.grad.abs().max() + 1e-9, where
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.fixture(scope='module')
def teacher(images, tmp_path_factory):
    """A run folder whose features are longer than the student's."""
    output = tmp_path_factory.mktemp('teacher')
    wider = [word.replace('(16,16,16,16)', '(16,24,24,24)') for word in SMALL]
    return train('--data-dir', images, *wider, '--lr', 0.05, '--output', output, '--experiment', 'teacher')


@pytest.fixture
def argv(images, tmp_path, teacher):
    def build(name, more):
        words = [str(teacher) if word == 'TEACHER' else word for word in shlex.split(more)]
        return ['--data-dir', images, *SMALL, '--lr', 0.05, '--output', tmp_path, '--experiment', name, *words]

    return build


EVERYTHING = '--hnc kd --mixup 0.3 --model-ema --grad-accum-steps 2 --clip-grad 1 --amp --amp-dtype bfloat16'


@pytest.mark.parametrize('more', ['--hnc mse --hnc-weight auto --map-loss separability', EVERYTHING, ''])
def test_a_run_goes_on_exactly_and_tells_of_its_teacher(argv, teacher, capsys, more):
    options = f'{more} --kd-model-name TEACHER --kd-distill-type feature --epochs 2'
    whole = train(*argv('whole', options))
    train(*argv('parts', f'{options} --stop-epoch 1'))
    parts = train(*argv('parts', f'{options} --resume auto'))
    assert run_differences(parts, whole) == []
    state = training_state(whole)
    assert [tuple(tensor.shape) for tensor in state['projection'].values()] == [(24, 16), (24,)]
    plain = timm.create_model(f'local-dir:{whole / "model_best"}', pretrained=True)
    assert plain.state_dict().keys() == state['model'].keys(), 'the plain student'
    assert not equal_tensors(state['model'], training_state(teacher)['model'])
    for row in summary(whole):
        assert row['train_kd_loss'] > 0
    figures = figures_of(capsys, '--checkpoint', whole, '--device', 'cpu', '--workers', 0, '-b', 8)
    assert figures['teacher'] == str(teacher)
    bundle_run(whole, whole.parent / 'published', 'user/name')
    card = (whole.parent / 'published' / 'README.md').read_text()
    assert '- Distilled from: teacher (by its features)\n' in card
    write_report([whole], whole / 'page.html')
    assert f'<dt>teacher of distillation</dt><dd>{teacher}</dd>' in (whole / 'page.html').read_text()


@pytest.mark.slow  # 10 s of Dynamo
def test_compiled_runs_have_the_losses_of_others(argv):
    options = '--hnc mse --hnc-weight 0.1 --hnc-topk 2 --kd-model-name TEACHER'
    rows = [
        summary(train(*argv(name, f'{options} {more}')))
        for name, more in (('plain', ''), ('compiled', '--torchcompile eager'))
    ]
    assert rows[0][0]['train_kd_loss'] == pytest.approx(rows[1][0]['train_kd_loss'], rel=1e-5)
    assert rows[0][0]['train_hnc'] == pytest.approx(rows[1][0]['train_hnc'], rel=1e-5)


def test_the_teacher_gets_images_as_it_wants_them():
    """A run with --mean and --std of its own: timm's task would take those of the student's published weights."""
    options = DistillationOptions(kd_model_name='teacher')
    task = create_distillation(
        options,
        teacher_model(),
        {'mean': (0.1, 0.2, 0.3), 'std': (1.0, 1.0, 1.0), 'input_size': (3, 32, 32)},
        student_of('logit'),
        torch.device('cpu'),
        verbose=False,
        criterion=torch.nn.CrossEntropyLoss(),
    )
    pixels = torch.rand(2, 3, 4, 4)
    mean, std = (torch.tensor(task.teacher.model.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ('mean', 'std'))
    own = (pixels - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)) / 1.0
    given = task.teacher.normalize_input(own, task.student_mean, task.student_std)
    torch.testing.assert_close(given, (pixels - mean) / std)


def test_grey_images(argv, tmp_path):
    save_pretrained(timm.create_model('test_resnet', num_classes=3, in_chans=1), tmp_path / 'grey')
    for name, more in (('own', '--mean 0.4 --std 0.2'), ('published', '--hnc mse')):
        run = train(*argv(name, f'--in-chans 1 --kd-model-name {tmp_path / "grey"} {more}'))
        assert summary(run)[0]['train_kd_loss'] > 0


def test_what_is_clipped_is_what_timm_clips(argv, teacher, tmp_path, monkeypatch):
    clipped = []
    monkeypatch.setattr(epoch.utils, 'dispatch_clip_grad', lambda parameters, *_, **__: clipped.append(len(parameters)))
    train(*argv('run', '--kd-model-name TEACHER --kd-distill-type feature --clip-grad 0.1 --clip-mode agc'))
    model = timm.create_model(f'local-dir:{teacher / "model_best"}', pretrained=True)
    task = FeatureDistillationTask(student_of('feature'), model)
    assert set(clipped) == {len(task.get_clip_parameters(exclude_head=True))}


def test_a_model_of_two_classifiers_is_left_as_it_was(tmp_path):
    save_pretrained(teacher_model(), tmp_path / 'teacher')
    data = DataLoader(TensorDataset(torch.randn(8, 3, 32, 32), torch.arange(8) % 3), batch_size=8)
    model = student_of('soft')
    options = {'device': 'cpu', 'workers': 0, 'cam_images': 0, 'no_report': True, 'epochs': 1, 'output': str(tmp_path)}
    timm_hnc.train(model, data, **options, **flags_of('soft'), kd_model_name=tmp_path / 'teacher', experiment='a')
    assert model.train()(data.dataset.tensors[0]).shape == (8, 3)
    timm_hnc.train(model, data, **options, experiment='b')


def test_a_teacher_that_comes_later_needs_a_fresh_optimizer(argv, capsys):
    train(*argv('run', '--epochs 2 --stop-epoch 1'))
    more = '--epochs 2 --resume auto --kd-model-name TEACHER --kd-distill-type feature'
    code, line = failure(capsys, 'train', *argv('run', more))
    assert (code, 'has another optimizer than this run' in line) == (1, True), line
    assert summary(train(*argv('run', f'{more} --no-resume-opt')))[1]['train_kd_loss'] > 0


def test_maps_at_another_place_are_refused_with_a_teacher(teacher, tmp_path):
    data = DataLoader(TensorDataset(torch.randn(8, 3, 64, 64), torch.arange(8) % 3), batch_size=8)
    model = CamModel(timm.create_model('test_efficientnet', num_classes=3), features='blocks')
    with pytest.raises(UsageError, match="not together with losses on the maps at features='blocks'"):
        timm_hnc.train(model, data, device='cpu', hnc='mse', kd_model_name=str(teacher), output=str(tmp_path))


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        (
            '--kd-model-name TEACHER --kd-distill-type feature --kd-student-feature-dim 7',
            '--kd-student-feature-dim 7: the pooled features of the student have 16.',
        ),
        ('--kd-model-name TEACHER --task multilabel', 'for --task classification only.'),
        ('--kd-model-name no_such_model', "--kd-model-name 'no_such_model' is no model of timm's."),
        ('--kd-model-name TEACHER --kd-loss-type mse', "--kd-loss-type 'mse': expected one of kl."),
        ('--kd-model-name TEACHER --kd-temperature 0', '--kd-temperature 0.0: expected more than 0.'),
        ('--kd-model-name TEACHER --distill-loss-weight -1', '--distill-loss-weight -1.0: expected 0 or more.'),
        ('--kd-model-name TEACHER --task-loss-weight 2', 'give --distill-loss-weight as well.'),
        ('--kd-model-name TEACHER --kd-distill-type token', "'test_resnet' has no classifier for the teacher"),
        ('--kd-model-name TEACHER --kd-distill-type feature --kd-teacher-feature-dim 0', 'feature-dim 0: expected 1'),
        ('--kd-model-name TEACHER --loss center', 'not together with --loss center, which looks at more than logits'),
    ],
)
def test_what_does_not_go_with_a_teacher(argv, capsys, tmp_path, more, message):
    code, line = failure(capsys, 'train', *argv('run', more))
    assert (code, message in line) == (2, True), line
    assert not (tmp_path / 'run').exists() or not (tmp_path / 'run' / 'checkpoints').exists()


def test_a_teacher_of_classes_in_another_order(argv, teacher, images, tmp_path, capsys):
    other = shutil.copytree(images, tmp_path / 'images')
    for split in ('train', 'validation'):
        (other / split / 'blue').rename(other / split / 'yellow')
    for flags in ('--kd-model-name TEACHER', '--map-loss teacher --map-teacher TEACHER'):
        code, line = failure(capsys, 'train', *argv('run', flags), '--data-dir', other)
        assert code == 1
        assert f"'{teacher}' does not fit this data: class 'green' is number 0 in the data" in line


def test_teachers_that_do_not_go_with_the_run(argv, capsys, tmp_path):
    def saved(name, **kwargs):
        save_pretrained(timm.create_model(name, **kwargs), tmp_path / name)
        return str(tmp_path / name)

    name = saved('test_vit3', num_classes=3)
    code, line = failure(capsys, 'train', *argv('run', f'--kd-model-name {name}'))
    assert (code, line.startswith(f"--kd-model-name '{name}': images of 3 x 32 x 32 do not pass: ")) == (
        2,
        True,
    )
    name = saved('test_resnet', num_classes=4)
    code, line = failure(capsys, 'train', *argv('run', f'--kd-model-name {name}'))
    assert (code, line) == (
        2,
        f"--kd-model-name '{name}': it has 4 classes, the model 3: choose one of the same classes.",
    )
    code, line = failure(capsys, 'train', *argv('run', f'--kd-model-name {tmp_path / "gone"}'))
    expected = f"--kd-model-name '{tmp_path / 'gone'}' is no folder with weights: expected a run folder, hf-hub:USER/"
    assert (code, line.startswith(expected)) == (1, True)
    code, line = failure(capsys, 'train', *argv('run', '--kd-model-name no_such_model'), '--data-dir', tmp_path / 'no')
    assert (code, line) == (2, "--kd-model-name 'no_such_model' is no model of timm's."), 'before the data'
    name = saved('test_vit', num_classes=3, img_size=32, dynamic_img_size=False)
    code, line = failure(capsys, 'train', *argv('run', f'--kd-model-name {name} --train-img-sizes 32 48'))
    assert (code, line.startswith(f"--kd-model-name '{name}': images of 3 x 48 x 48 do not pass: ")) == (
        2,
        True,
    ), line
    train(*argv('sized', f'--kd-model-name {name} --img-size 48 --train-img-sizes 32 --kd-distill-type feature'))
    (tmp_path / 'empty').mkdir()
    code, line = failure(capsys, 'train', *argv('run', f'--kd-model-name local-dir:{tmp_path / "empty"}'))
    assert (code, 'config.json' in line) == (1, True)


def test_flags_of_a_teacher_alone_change_nothing(argv):
    """As in timm's train.py, which looks at them where there is a teacher."""
    run = train(*argv('run', '--kd-temperature 2 --distill-loss-weight 3'))
    assert arguments(run)['kd_model_name'] is None
    assert 'train_kd_loss' not in summary(run)[0]
    assert json.loads((run / 'result.json').read_text())['model'] == 'test_resnet'
