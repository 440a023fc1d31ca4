"""Checkpoints of the authors' kind as run folders: what they hold, that they validate and publish, what is refused."""

import json

import pytest
import timm
import torch
from test_loading import pickle_that_runs

from timm_hnc.command_line import run_command
from timm_hnc.hub.command import main


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
    assert worker('hub', 'import', tmp_path / 'model_best.pth.tar', *argv, '--out', run).out.strip() == str(run)
    loaded = timm.create_model(f'local-dir:{run / "model_best"}', pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(x), model(x))
    results = ['--results-file', run / 'validation.json', '--results-format', 'json']
    here = ['--data-dir', images, '--img-size', '32', '--workers', '0', '--device', 'cpu', '-b', '8']
    done = worker('validate', '--checkpoint', run, *here, *results)
    assert done.code == 0, done.err
    top1 = json.loads((run / 'validation.json').read_text())['top1']
    assert worker('hub', 'push', run, f'alice/imported-{wrap}').code == 0
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
