"""What timm's own train.py does with its options, where that is easily missed."""

import json
import logging

import pytest
import safetensors.torch
import timm
import torch
import yaml
from running import SMALL, arguments, checkpoints, equal_tensors, failure, result, summary, train

from timm_hnc import save_pretrained
from timm_hnc.commands.options.former_flags import FORMER_FLAGS
from timm_hnc.commands.options.train_flags import build_parser
from timm_hnc.commands.options.train_options import parse_train_options
from timm_hnc.data.inputs import input_config
from timm_hnc.errors import DataError, UsageError
from timm_hnc.options import flattened
from timm_hnc.training.setup.models import create_model


def model_of(*argv):
    options, *_ = parse_train_options([str(word) for word in argv])
    return create_model(options.model, options.input)


@pytest.fixture
def weights(tmp_path):
    """Makes a file of weights of test_resnet with so many classes: its path and its tensors."""

    def make(classes, name='weights.safetensors', model='test_resnet'):
        state = timm.create_model(model, num_classes=classes).state_dict()
        safetensors.torch.save_file(state, tmp_path / name)
        return tmp_path / name, state

    return make


def test_a_milestone_is_evaluated_and_kept_whatever_the_interval(images, tmp_path):
    folder = train(
        *('--data-dir', images, *SMALL, '--epochs', 6, '--stop-epoch', 5, '--val-interval', 3, '--save-epochs', 1, 6),
        *('--checkpoint-hist', 1, '--output', tmp_path, '--experiment', 'run'),
    )
    assert [row['epoch'] for row in summary(folder)] == [0, 2, 4]
    assert {'epoch-0', 'epoch-4'} <= checkpoints(folder)
    assert json.loads((folder / 'last' / 'state.json').read_text())['milestones'] == ['epoch-0']


@pytest.mark.parametrize(
    ('command', 'epochs'),
    [
        ('--epochs 2', 2),
        ('--epochs 2 --cooldown-epochs 3', 5),
        ('--epochs 4 --warmup-epochs 2 --warmup-prefix', 6),
        ('--epochs 2 --lr-cycle-limit 2', 4),
        ('--epochs 2 --sched step --decay-epochs 1', 2),
        ('--epochs 2 --sched none', 2),
        ('--epochs 2 --warmup-epochs 0 --sched wsd --decay-epochs .2 --sched-on-updates', 2),
    ],
)
def test_a_run_cannot_stop_behind_the_end_of_its_schedule(command, epochs):
    options, *_ = parse_train_options([*command.split(), '--stop-epoch', str(epochs)])
    assert options.schedule.stop_epoch == epochs
    with pytest.raises(
        UsageError, match=rf'^--stop-epoch {epochs + 1}: the schedule has {epochs} epochs \(see --epoch'
    ):
        parse_train_options([*command.split(), '--stop-epoch', str(epochs + 1)])


def write_config(folder, values):
    (folder / 'args.yaml').write_text(yaml.safe_dump(values))
    return str(folder / 'args.yaml')


def test_options_of_other_versions_of_timm_are_passed_over_with_one_warning(tmp_path, caplog):
    values = vars(build_parser().parse_args(['/data', '--lr', '0.1']))
    path = write_config(tmp_path, {**values, **dict.fromkeys(FORMER_FLAGS, True), 'amp_impl': 'native'})
    options, explicit, _ = parse_train_options(['-c', path])
    assert (options.schedule.lr, options.data.data_dir) == (0.1, '/data')
    assert not FORMER_FLAGS.keys() & (flattened(options).keys() | explicit)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert message.startswith(f'{path}: options of other versions of timm are passed over: ')
    assert '\n' not in message
    for key, instead in FORMER_FLAGS.items():
        assert f'{key} (now {instead})' in message


def test_only_the_first_process_warns(tmp_path, caplog, monkeypatch):
    path = write_config(tmp_path, {'amp_impl': 'native'})
    monkeypatch.setenv('RANK', '1')
    parse_train_options(['-c', path])
    assert not caplog.records


def test_a_misspelt_key_is_an_error_also_beside_one_of_another_version(tmp_path):
    path = write_config(tmp_path, {'amp_impl': 'native', 'hnc_wieght': 0.1})
    with pytest.raises(UsageError, match=r"unknown key 'hnc_wieght', did you mean 'hnc_weight'\?$"):
        parse_train_options(['-c', path])


def test_former_flags_are_none_of_today_and_name_some_of_today():
    options = {option for action in build_parser()._actions for option in action.option_strings}
    assert not FORMER_FLAGS.keys() & vars(build_parser().parse_args([])).keys()
    named = [word for instead in FORMER_FLAGS.values() for word in instead.split() if word.startswith('--')]
    assert named
    assert set(named) <= options


def test_a_checkpoint_with_other_classes_names_the_flags_that_fine_tune(images, tmp_path, capsys, weights):
    path, state = weights(5)
    options = ['--data-dir', images, *SMALL, '--model-kwargs', '--output', tmp_path, '--experiment', 'run']
    code, line = failure(capsys, 'train', *options, '--initial-checkpoint', path)
    assert code == 1
    assert line == (
        f"--initial-checkpoint '{path}' has 5 classes, the model 3: to fine-tune it with a new classifier use "
        f'--pretrained --pretrained-path {path}, to keep its own --num-classes 5.'
    )
    tuned = model_of('--model', 'test_resnet', '--num-classes', 3, '--pretrained', '--pretrained-path', path)
    trunk = {name: tensor for name, tensor in tuned.state_dict().items() if not name.startswith('fc.')}
    assert equal_tensors(trunk, {name: state[name] for name in trunk})
    assert (len(trunk), tuned.fc.weight.shape[0]) == (len(state) - 2, 3)
    kept = model_of('--model', 'test_resnet', '--num-classes', 5, '--initial-checkpoint', path)
    assert equal_tensors(kept.state_dict(), state)


def test_a_run_starts_from_the_weights_of_another_by_its_folder(tmp_path):
    model = timm.create_model('test_resnet', num_classes=5)
    save_pretrained(model, tmp_path / 'run' / 'model_best')
    for path in (tmp_path / 'run', tmp_path / 'run' / 'model_best'):
        kept = model_of('--model', 'test_resnet', '--num-classes', 5, '--initial-checkpoint', path)
        assert equal_tensors(kept.state_dict(), model.state_dict())
        tuned = model_of('--model', 'test_resnet', '--num-classes', 3, '--pretrained-path', path)
        assert equal_tensors({'': tuned.conv1[0].weight}, {'': model.conv1[0].weight})
    (tmp_path / 'empty').mkdir()
    with pytest.raises(DataError, match="empty' is no file of weights, and neither a run folder nor its model_best"):
        model_of('--model', 'test_resnet', '--initial-checkpoint', tmp_path / 'empty')


def test_a_checkpoint_that_differs_in_more_than_its_classes_is_another_architecture(weights):
    path, _ = weights(5, model='test_efficientnet')
    with pytest.raises(DataError, match="do not load into 'test_resnet'"):
        model_of('--model', 'test_resnet', '--num-classes', 3, '--initial-checkpoint', path)
    path, state = weights(5)
    wider = {
        name: tensor.repeat(2, *[1] * (tensor.dim() - 1)) if tensor.dim() else tensor for name, tensor in state.items()
    }
    safetensors.torch.save_file(wider, path)
    with pytest.raises(DataError, match="do not load into 'test_resnet'"):
        model_of('--model', 'test_resnet', '--num-classes', 3, '--initial-checkpoint', path)


def test_fields_of_the_weights_configuration_can_be_replaced(tmp_path, weights):
    (first, _), (second, state) = weights(5, 'first.safetensors'), weights(5, 'second.safetensors')
    named = ['--model', 'test_resnet', '--num-classes', '5', '--pretrained-path', str(first)]
    model = model_of(*named, '--pretrained-cfg-overlay', f'file={second}', 'num_classes=5', 'crop_pct=0.5')
    assert equal_tensors(model.state_dict(), state)
    assert model.pretrained_cfg['crop_pct'] == 0.5
    assert not equal_tensors(model_of(*named).state_dict(), state)
    for written in (None, {}, {'file': str(second), 'num_classes': 5}):
        path = write_config(tmp_path, {'pretrained_cfg_overlay': written})
        assert equal_tensors(model_of(*named, '-c', path).state_dict(), state) == bool(written)
    with pytest.raises(UsageError, match='nothing'):
        model_of(*named, '--pretrained-cfg-overlay', 'nothing=1')


def test_the_size_of_the_images_is_that_of_a_model_of_fixed_size():
    for given in (['--img-size', '32'], ['--input-size', '3', '32', '32'], ['--model-kwargs', 'img_size=32']):
        options, *_ = parse_train_options(['--model', 'test_vit3', '--num-classes', '3', *given])
        model = create_model(options.model, options.input)
        assert model.patch_embed.img_size == (32, 32)
        assert input_config(model, options.input)['input_size'] == (3, 32, 32)
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    with pytest.raises(UsageError, match=r"'test_vit3' cannot be made .* Conflicting input image sizes"):
        model_of('--model', 'test_vit3', '--img-size', 32, '--model-kwargs', 'img_size=48')


def test_images_smaller_than_a_cell_of_the_maps_train_without_maps(images, tmp_path, capsys, caplog):
    options = [
        '--data-dir',
        images,
        *SMALL,
        '--model-kwargs',
        '--img-size',
        16,
        '--cam-images',
        8,
        '--output',
        tmp_path,
    ]
    folder = train(*options, '--experiment', 'plain')
    assert result(folder)['epochs'] == 1
    assert not (folder / 'cams').exists()
    small = 'smaller than one cell of the maps'
    assert [record.getMessage() for record in caplog.records if small in record.getMessage()] == [
        f'No CAM pictures: images of 16 x 16 pixels are {small}, 32 x 32 pixels.'
    ]
    for loss in ('--hnc kd', '--hnc var', '--map-loss teacher'):
        argv = [*loss.split(), *(['--map-teacher', folder] if 'teacher' in loss else [])]
        code, line = failure(capsys, 'train', *options, '--img-size', 32, '--experiment', 'one', *argv)
        assert (code, line.split(':')[0]) == (2, loss)
        assert 'images of 32 pixels are a single cell, and flat as they are: see --img-size' in line
    argv = ['--img-size', 48, '--hnc', 'kd', '--model', 'test_convnext', '--experiment', 'one']
    code, line = failure(capsys, 'train', *options, *argv)
    assert (code, 'images of 48 pixels are a single cell' in line) == (2, True), 'whose maps round down'
    argv = ['--img-size', 32, '--model-kwargs', 'output_stride=8', '--map-loss', 'teacher', '--map-teacher', folder]
    code, line = failure(capsys, 'train', *options, '--model', 'resnet18', *argv, '--experiment', 'one')
    assert (code, 'its maps of images of 32 pixels are a single cell, and say nothing' in line) == (2, True), line
    larger = train(*options, '--img-size', 32, '--train-img-sizes', 64, '--experiment', 'larger', '--hnc', 'kd')
    assert result(larger)['epochs'] == 1, 'images that are evaluated alone may be of one cell'
    code, line = failure(capsys, 'train', *options, '--experiment', 'hnc', '--hnc', 'mse')
    assert code == 2
    assert line == f"--hnc mse: images of 16 pixels are {small} of 'test_resnet', 32 pixels: see --img-size."


def test_a_learning_rate_that_nobody_gave_follows_the_batch_again(images, tmp_path):
    options = ['--data-dir', images, *SMALL, '--output', tmp_path]
    first = train(*options, '--experiment', 'first') / 'args.yaml'
    other = ['-c', first, '--output', tmp_path, '-b', 16, '--opt', 'adamw']
    assert arguments(train(*other, '--experiment', 'other'))['lr'] == pytest.approx(0.1 * (16 / 256) ** 0.5)
    given = first.read_text().replace('\nlr: 0.003125\n', '\nlr: 0.00625\n')
    assert given != first.read_text()
    first.write_text(given)
    assert arguments(train(*other, '--experiment', 'given'))['lr'] == 0.00625
