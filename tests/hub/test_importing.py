"""Checkpoints of the authors' kind as run folders: what they hold, that they validate and publish, what is refused."""

import json

import pytest
import timm
import torch
from safetensors import SafetensorError
from test_loading import pickle_that_runs

from timm_hnc.commands.command_line import run_command
from timm_hnc.commands.console import main
from timm_hnc.weights.saving import save_pretrained


def write_checkpoint(path, model, wrap=True):
    """As PyTorch's ImageNet example saves a DataParallel model."""
    state = {f'module.{name}' if wrap else name: tensor for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    about = {'epoch': 120, 'arch': 'resnet101', 'best_acc1': torch.tensor(78.1), 'optimizer': optimizer.state_dict()}
    torch.save({**about, 'state_dict': state} if wrap else state, path)


@pytest.fixture
def model():
    torch.manual_seed(2)
    return timm.create_model('test_resnet', num_classes=3).eval()


@pytest.mark.parametrize('wrap', [True, False])
def test_an_imported_run_validates_and_is_published(server, worker, model, images, tmp_path, wrap):
    write_checkpoint(tmp_path / 'model_best.pth.tar', model, wrap)
    argv = [
        '--model',
        'test_resnet',
        '--num-classes',
        '3',
        '--hnc',
        'mse',
        '--hnc-weight',
        '0.0007',
        '--hnc-topk',
        '100',
    ]
    run = tmp_path / 'run'
    assert worker('import', tmp_path / 'model_best.pth.tar', *argv, '--out', run).out.strip() == str(run)
    loaded = timm.create_model(f'local-dir:{run / "model_best"}', pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(x), model(x))
    config = loaded.pretrained_cfg
    assert (config['interpolation'], config['crop_pct'], tuple(config['input_size'])) == (
        'bilinear',
        0.875,
        (3, 224, 224),
    )
    assert not {'tag', 'license', 'paper_ids', 'origin_url', 'test_input_size', 'test_crop_pct'} & {
        name for name, value in config.items() if value
    }
    results = ['--results-file', run / 'validation.json', '--results-format', 'json']
    here = ['--data-dir', images, '--img-size', '32', '--workers', '0', '--device', 'cpu', '-b', '8']
    done = worker('validate', '--checkpoint', run, *here, *results)
    assert done.code == 0, done.err
    top1 = json.loads((run / 'validation.json').read_text())['top1']
    assert worker('push', run, f'alice/imported-{wrap}').code == 0
    files = server.files(f'alice/imported-{wrap}')
    config = json.loads(files['config.json'])
    assert (config['hnc']['variant'], config['hnc']['weight'], config['hnc']['topk']) == ('mse', 0.0007, 100)
    assert f'| top-1, % | {top1:.2f} |' in files['README.md'].decode()


def refused(capsys, *argv):
    capsys.readouterr()
    code = run_command(main, [str(word) for word in argv])
    error = capsys.readouterr().err
    assert 'Traceback' not in error
    return code, error


def test_what_is_refused(model, tmp_path, capsys):
    path, out = tmp_path / 'a.pth', ['--out', tmp_path / 'run']
    write_checkpoint(path, model)
    proof = tmp_path / 'executed'
    (tmp_path / 'evil.pth').write_bytes(pickle_that_runs(proof))
    (tmp_path / 'text.pth').write_text('no checkpoint')
    torch.save([1, 2], tmp_path / 'list.pth')
    (tmp_path / 'there').mkdir()
    for argv, code, message in (
        ((tmp_path / 'none.pth', '--model', 'test_resnet', *out), 1, "none.pth' does not exist"),
        ((path, '--model', 'resnet_none', *out), 2, "--model 'resnet_none' is no model of timm's"),
        ((path, '--model', 'test_vit', *out), 1, "a.pth' is not of a 'test_vit'"),
        ((path, '--model', 'test_resnet', *out), 1, "a.pth' is not of a 'test_resnet': "),
        ((path, '--model', 'test_resnet', *out), 1, 'See --num-classes.'),
        ((path, '--model', 'test_resnet', '--num-classes', 3, '--out', tmp_path / 'there'), 2, 'exists already'),
        ((tmp_path / 'evil.pth', '--model', 'test_resnet', *out), 1, 'cannot be read without executing code'),
        ((tmp_path / 'text.pth', '--model', 'test_resnet', *out), 1, 'cannot be read without executing code'),
        ((tmp_path / 'list.pth', '--model', 'test_resnet', *out), 1, 'list.pth'),
    ):
        found, error = refused(capsys, 'import', *argv)
        assert found == code, (argv, error)
        assert message in error
        assert len(error.strip().splitlines()) == 1, error
    assert not proof.exists()
    assert not (tmp_path / 'run').exists()


def test_an_import_that_fails_leaves_nothing_in_the_way(model, tmp_path, capsys, monkeypatch):
    write_checkpoint(tmp_path / 'a.pth', model)
    argv = ['import', tmp_path / 'a.pth', '--model', 'test_resnet', '--num-classes', '3', '--out', tmp_path / 'run']
    with monkeypatch.context() as patch:
        patch.setattr('timm_hnc.weights.saving.safetensors.torch.save_file', no_space)
        code, error = refused(capsys, *argv)
    assert code == 1
    assert 'No space left on device' in error
    assert [path.name for path in tmp_path.iterdir()] == ['a.pth']
    assert refused(capsys, *argv)[0] == 0


def test_a_model_of_fixed_size_takes_images_of_its_own(tmp_path, capsys):
    model = timm.create_model('test_vit3', num_classes=3)
    write_checkpoint(tmp_path / 'a.pth', model)
    argv = ['import', tmp_path / 'a.pth', '--model', 'test_vit3', '--num-classes', '3', '--out', tmp_path / 'run']
    code, error = refused(capsys, *argv)
    assert code == 2
    assert '--img-size 224: Requested image size (224, 224), but the model requires (160, 160)' in error
    assert len(error.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ['a.pth']
    assert refused(capsys, *argv, '--img-size', '160')[0] == 0


def no_space(*args, **kwargs):
    raise SafetensorError('I/O error: No space left on device (os error 28)')


def test_a_network_of_ours_has_its_own_images(tmp_path, capsys):
    write_checkpoint(tmp_path / 'a.pth', timm.create_model('cifar_resnet20', num_classes=3))
    argv = ['import', tmp_path / 'a.pth', '--model', 'cifar_resnet20', '--num-classes', '3']
    own = timm.get_pretrained_cfg('cifar_resnet20')
    for more, mean in (([], own.mean), (['--mean', '0.1', '0.2', '0.3'], (0.1, 0.2, 0.3))):
        run = tmp_path / str(len(more))
        assert refused(capsys, *argv, *more, '--out', run)[0] == 0
        config = json.loads((run / 'model_best' / 'config.json').read_text())['pretrained_cfg']
        assert (config['input_size'], config['crop_pct']) == ([3, 32, 32], 1.0)
        assert (tuple(config['mean']), tuple(config['std'])) == (mean, own.std)


@pytest.mark.parametrize('flags', [[], ['--use-ema']])
def test_an_average_is_taken_where_it_is_asked_for(flags, model, tmp_path, capsys):
    average = {name: tensor / 2 for name, tensor in model.state_dict().items()}
    torch.save({'state_dict': model.state_dict(), 'state_dict_ema': average}, tmp_path / 'a.pth')
    argv = ['import', tmp_path / 'a.pth', '--model', 'test_resnet', '--num-classes', '3', '--out', tmp_path / 'run']
    assert refused(capsys, *argv, *flags)[0] == 0
    loaded = timm.create_model(f'local-dir:{tmp_path / "run" / "model_best"}', pretrained=True)
    assert torch.equal(loaded.fc.weight, average['fc.weight'] if flags else model.fc.weight)


@pytest.mark.parametrize(
    ('name', 'arguments', 'flags'),
    [
        (
            'test_resnet',
            {'output_stride': 8, 'global_pool': 'max'},
            ['--gp', 'max', '--model-kwargs', 'output_stride=8'],
        ),
        ('test_resnet', {'in_chans': 1}, ['--model-kwargs', 'in_chans=1', '--mean', '0.4', '--std', '0.3']),
        ('test_vit', {'img_size': 64, 'global_pool': 'avg'}, ['--gp', 'avg']),
    ],
)
def test_a_model_of_other_arguments_is_the_same_model_afterwards(name, arguments, flags, tmp_path, capsys):
    model = timm.create_model(name, num_classes=3, **arguments).eval()
    write_checkpoint(tmp_path / 'a.pth', model)
    argv = ['import', tmp_path / 'a.pth', '--model', name, '--num-classes', '3', '--img-size', '64', *flags]
    code, error = refused(capsys, *argv, '--crop-mode', 'squash', '--out', tmp_path / 'run')
    assert code == 0, error
    loaded = timm.create_model(f'local-dir:{tmp_path / "run" / "model_best"}', pretrained=True).eval()
    images = torch.randn(2, arguments.get('in_chans', 3), 64, 64)
    assert torch.equal(loaded(images), model(images))
    assert loaded.pretrained_cfg['crop_mode'] == 'squash'
    assert loaded.pretrained_cfg['input_size'] == tuple(images.shape[1:])


def test_weights_that_say_more_themselves_are_not_imported(model, tmp_path, capsys):
    save_pretrained(model, tmp_path / 'weights')
    argv = [tmp_path / 'weights' / 'model.safetensors', '--model', 'test_resnet', '--num-classes', '3']
    code, error = refused(capsys, 'import', *argv, '--out', tmp_path / 'run')
    assert (code, 'has its config.json beside it' in error) == (2, True)


def test_numbers_that_are_not_finite_are_told(model, tmp_path, capsys):
    with torch.no_grad():
        model.fc.weight[0, 0] = torch.nan
    write_checkpoint(tmp_path / 'a.pth', model)
    argv = ['import', tmp_path / 'a.pth', '--model', 'test_resnet', '--num-classes', '3', '--out', tmp_path / 'run']
    code, error = refused(capsys, *argv)
    assert (code, "'fc.weight' has numbers that are not finite" in error) == (1, True)


def test_options_of_an_import(model, tmp_path, capsys):
    write_checkpoint(tmp_path / 'a.pth', model)
    start = ['import', tmp_path / 'a.pth', '--num-classes', '3', '--out', tmp_path / 'run', '--model']
    for argv, message in (
        (['test_resnet.nope'], "--model 'test_resnet.nope' cannot be made: Invalid pretrained tag"),
        (['test_resnet', '--hnc-weight', '1'], '--hnc-weight 1.0: does nothing without --hnc.'),
        (['test_resnet', '--crop-pct', '2.1'], '--crop-pct 2.1: expected 0.1 or more and 2 or less.'),
        (['test_resnet', '--img-size', '0'], '--img-size 0: expected 1 or more.'),
        (['test_resnet', '--std', '1', '0', '1'], '--std 0.0: expected more than 0.'),
        (['test_resnet', '--hnc', 'mse', '--hnc-weight', 'nan'], '--hnc-weight nan: expected a finite number'),
        (['test_resnet', '--hnc', 'mse', '--hnc-topk', '0'], '--hnc-topk 0: expected 1 or more.'),
        (['test_resnet', '--num-classes', '0'], '--num-classes 0: expected 1 or more.'),
        (['test_resnet', '--mean', '0.5'], '--mean: expected 3 values, one a channel of the model.'),
    ):
        code, error = refused(capsys, *start, *argv)
        assert code == 2
        assert message in error
    assert not (tmp_path / 'run').exists()
    argv = ['test_resnet', '--hnc', 'kd', '--img-size', '64', '--crop-pct', '1.15', '--interpolation', 'bicubic']
    assert refused(capsys, *start, *argv)[0] == 0
    config = json.loads((tmp_path / 'run' / 'model_best' / 'config.json').read_text())['pretrained_cfg']
    assert (config['input_size'], config['crop_pct'], config['interpolation']) == ([3, 64, 64], 1.15, 'bicubic')
