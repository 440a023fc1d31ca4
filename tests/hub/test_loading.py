"""Models from the Hub: loading, fine-tuning, evaluating, and repositories that cannot be loaded."""

import io
import json
import socket

import pytest
import safetensors.torch
import timm
import torch
from running import ROOT, contents, result

from timm_hnc import create_model, save_pretrained
from timm_hnc.errors import DataError
from timm_hnc.weights.loading import check_config

QUICK = ['--epochs', '1', '--workers', '0', '--cam-images', '0', '--no-report', '--device', 'cpu']


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope='module')
def good(tmp_path_factory):
    """Files of a small model for three classes."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('good')
    save_pretrained(timm.create_model('test_resnet', num_classes=3), folder, ['blue', 'green', 'red'])
    return files_of(folder)


def with_config(good, **changes):
    config = json.loads(good['config.json'])
    inner = changes.pop('pretrained_cfg', {})
    return good | {
        'config.json': json.dumps(config | changes | {'pretrained_cfg': config['pretrained_cfg'] | inner}).encode()
    }


def test_train_push_load_validate_fine_tune_and_push_again(server, worker, images, tmp_path):
    data = ['--data-dir', images, '--img-size', '32', '--workers', '0', '--device', 'cpu', '-b', '8']
    out = ['--epochs', '2', '--output', tmp_path, '--push-to-hub', 'alice/squares', '--experiment']
    new = ['--model', 'test_resnet', '--num-classes', '3', '--hnc', 'mse', '--hnc-topk', '2', '--no-report']
    done = worker('train', *data, *new, *out, 'run')
    assert done.code == 0, done.err[-2000:]
    run = tmp_path / 'run'
    best = (run / 'model_best' / 'model.safetensors').read_bytes()
    assert server.files('alice/squares')['model.safetensors'] == best
    assert f'Published: {server.url}/alice/squares/commit/' in done.err
    assert 'hf_good' not in done.err + done.out
    assert not any(b'hf_good' in content for content in contents(run).values())

    found = worker('validate', '--model', 'hf-hub:alice/squares', *data)
    assert found.code == 0, found.err[-2000:]
    top1 = json.loads(found.out.rpartition('--result\n')[2])['top1']
    assert top1 == pytest.approx(result(run)['final']['top1'], abs=1e-3)

    [commit, *_] = server.commits('alice/squares', 'main')
    # with next to no learning rate the weights are those that it starts from, but for a classifier of its own size
    still = ['--lr', '1e-9', '--warmup-epochs', '0', '--opt', 'sgd', '--no-report', '--hub-revision', 'tuned']
    model = ['--model', f'hf-hub:alice/squares@{commit.sha}', '--num-classes', '4']
    done = worker('train', *data, *model, *still, *out, 'tuned')
    assert done.code == 0, done.err[-2000:]
    assert server.commits('alice/squares', 'main')[0].sha == commit.sha
    tuned = server.files('alice/squares', 'tuned')['model.safetensors']
    assert tuned == (tmp_path / 'tuned' / 'model_best' / 'model.safetensors').read_bytes()
    before, after = safetensors.torch.load(best), safetensors.torch.load(tuned)
    assert after['fc.weight'].shape[0] == 4
    torch.testing.assert_close(after['conv1.0.weight'], before['conv1.0.weight'])


# the Hub's client reads the variable when it is imported
OFFLINE = """
import importlib, os, huggingface_hub.constants
os.environ['HF_HUB_OFFLINE'] = '1'
importlib.reload(huggingface_hub.constants)
"""


def test_names_revisions_and_the_cache(server, workers, good, tmp_path):
    server.put_repo('alice/cached', good)
    code = "import timm_hnc\nfound = timm_hnc.create_model('hf-hub:alice/cached{}').class_names"
    with workers.start(tmp_path) as stranger:
        assert stranger('python', code.format('')).found == ['blue', 'green', 'red']
        sha = server.commits('alice/cached', 'main')[0].sha
        assert stranger('python', code.format(f'@{sha}')).found == ['blue', 'green', 'red']
        done = stranger('python', code.format('@nowhere'))
        assert done.found == "DataError: 'alice/cached@nowhere' has no such revision (branch, tag or commit)."
        asked = len(server.requests)
        assert stranger('python', OFFLINE).code == 0
        assert stranger('python', code.format('')).found == ['blue', 'green', 'red']
        done = stranger('python', "import timm_hnc\ntimm_hnc.create_model('hf-hub:alice/other')")
        assert done.found == "DataError: 'alice/other' is not in the cache, and HF_HUB_OFFLINE is set."
    assert len(server.requests) == asked


def test_two_processes_download_once(server, workers, good, images, tmp_path):
    server.put_repo('alice/shared', good)
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    group = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port), 'WORLD_SIZE': '2', 'LOCAL_WORLD_SIZE': '2'}
    argv = ['--model', 'hf-hub:alice/shared', '--data-dir', images, '--img-size', '32', '-b', '8', '--workers', '0']
    with (
        workers.start(tmp_path, **group, RANK='0', LOCAL_RANK='0') as first,
        workers.start(tmp_path, **group, RANK='1', LOCAL_RANK='1') as second,
    ):
        for each in (first, second):
            each.begin('validate', *argv, '--device', 'cpu')
        done = [each.end() for each in (first, second)]
    assert [each.code for each in done] == [0, 0], done
    assert ['--result' in each.out for each in done] == [True, False], 'one group'
    loads = [each for each in server.requests if 'alice/shared' in each.path and each.method == 'GET']
    assert sum(each.path.endswith('model.safetensors') for each in loads) == 1


def pickle_that_runs(path):
    class Bad:
        def __reduce__(self):
            return (open, (str(path), 'w'))

    file = io.BytesIO()
    torch.save({'fc.weight': Bad()}, file)
    return file.getvalue()


def test_repositories_that_cannot_be_loaded(server, worker, good, images, tmp_path):
    weights = safetensors.torch.load(good['model.safetensors'])
    other = {
        name: tensor.repeat(2, *[1] * (tensor.ndim - 1)) if tensor.ndim else tensor for name, tensor in weights.items()
    }
    harmless = io.BytesIO()
    torch.save(weights, harmless)
    proof = tmp_path / 'executed'
    without = {name: content for name, content in good.items() if name != 'model.safetensors'}
    cases = {
        'truncated': (
            good | {'model.safetensors': good['model.safetensors'][:5000]},
            "the weights of 'hf-hub:alice/truncated' do not load",
        ),
        'shapes': (good | {'model.safetensors': safetensors.torch.save(other)}, 'size mismatch'),
        'evil-pickle': (
            without | {'pytorch_model.bin': pickle_that_runs(proof)},
            "the weights of 'hf-hub:alice/evil-pickle' do not load",
        ),
        'no-weights': (without, "'alice/no-weights' is no repository of a timm model: it lacks a file"),
        'no-config': (
            {'model.safetensors': good['model.safetensors']},
            "'alice/no-config' is no repository of a timm model: it lacks a file",
        ),
        'no-json': (good | {'config.json': b'{'}, "the config.json of 'alice/no-json' cannot be read"),
        'no-dict': (good | {'config.json': b'[1]'}, 'is not of a timm model: it has no architecture'),
        'unknown': (
            with_config(good, architecture='resnet_of_tomorrow'),
            "names the architecture 'resnet_of_tomorrow', which timm",
        ),
        'escape': (with_config(good, pretrained_cfg={'file': '../../etc/passwd'}), 'points to a file elsewhere'),
        'escape2': (with_config(good, pretrained_cfg={'hf_hub_filename': '/etc/passwd'}), 'points to a file elsewhere'),
        'arguments': (
            with_config(good, model_args={'pretrained_strict': False}),
            "has the model_args 'pretrained_strict': not loaded",
        ),
    }
    for name, (files, message) in cases.items():
        server.put_repo(f'alice/{name}', files)
        done = worker('python', f"import timm_hnc\ntimm_hnc.create_model('hf-hub:alice/{name}')")
        assert str(done.found).startswith('DataError: '), (name, done)
        assert message in done.found, name
        assert '\n' not in done.found
        done = worker(
            'validate', '--model', f'hf-hub:alice/{name}', '--data-dir', images, '--workers', '0', '--device', 'cpu'
        )
        assert done.code in (1, 2), name
        assert 'Traceback' not in done.err
        assert len([line for line in done.err.splitlines() if ': error: ' in line]) == 1, (name, done.err)
    assert not proof.exists(), 'no pickle is executed'
    server.put_repo('alice/safe-pickle', without | {'pytorch_model.bin': harmless.getvalue()})
    done = worker('python', "import timm_hnc\nfound = timm_hnc.create_model('hf-hub:alice/safe-pickle').num_classes")
    assert done.found == 3, 'plain tensors in a pickle are what timm loads safely'


def test_doors_that_are_closed(server, worker, good, images):
    server.put_repo('bob/private', good, private=True)
    server.put_repo('bob/gated', good, gated=True)
    for name, message in (
        ('bob/private', "repository 'bob/private' does not exist, or is private and not yours"),
        ('bob/nothing', "repository 'bob/nothing' does not exist, or is private and not yours"),
        ('bob/gated', "'bob/gated' is gated: ask for access on its page"),
        ('a b/c', "'a b/c' is no name for a repository of the Hub"),
    ):
        for argv in (
            ('validate', '--model', f'hf-hub:{name}', '--data-dir', images, '--workers', '0', '--device', 'cpu'),
            ('train', '--model', f'hf-hub:{name}', '--data-dir', images, *QUICK),
        ):
            done = worker(*argv)
            assert done.code in (1, 2), (name, done.err)
            assert message in done.err, (name, done.err)
            assert 'Traceback' not in done.err


@pytest.mark.parametrize('how', [503, 403, 'cut'])
def test_a_hub_that_is_down(server, worker, good, how):
    server.put_repo(f'alice/down-{how}', good)
    server.fail('HEAD', f'alice/down-{how}', how, times=None)
    done = worker('python', f"import timm_hnc\ntimm_hnc.create_model('hf-hub:alice/down-{how}')")
    assert 'DataError: the Hub ' in done.found
    assert f"for 'alice/down-{how}' (" in done.found


def test_no_space_for_the_cache(server, workers, good, tmp_path):
    server.put_repo('alice/large', good)
    code = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
import timm_hnc
timm_hnc.create_model('hf-hub:alice/large')
"""
    with workers.start(tmp_path) as stranger:
        done = stranger('python', code)
    assert done.found == "DataError: no space left on disk for 'alice/large': see HF_HOME for where the cache lies."


def test_a_run_outlives_the_hub(server, worker, images, tmp_path):
    argv = ['--data-dir', images, '--model', 'test_resnet', '--num-classes', '3', '--img-size', '32', '-b', '8', *QUICK]
    argv += ['--epochs', '2', '--output', tmp_path, '--push-to-hub', 'alice/late', '--hub-every', '1']
    server.fail('POST', '/commit/', 503, times=None)
    done = worker('train', *argv, '--experiment', 'a run')
    server.heal()
    assert done.code == 0, done.err[-2000:]
    assert result(tmp_path / 'a run')['epochs'] == 2
    later = f"timm-hnc push '{tmp_path / 'a run'}' alice/late"
    assert done.err.count(later) == 2
    assert 'Traceback' not in done.err
    assert len(server.commits('alice/late', 'main')) == 1
    assert worker('push', tmp_path / 'a run', 'alice/late').code == 0
    assert len(server.commits('alice/late', 'main')) == 2
    # and with a Hub that works, a commit an epoch
    done = worker('train', *argv, '--experiment', 'another', '--push-to-hub', 'alice/each')
    assert [commit.title for commit in server.commits('alice/each', 'main')][:2] == [
        *('Add model', 'Add model of epoch 0'),
    ]


@pytest.mark.parametrize(
    ('token', 'argv', 'message'),
    [
        ('hf_wrong', ['--push-to-hub', 'alice/x'], 'the Hub does not know the token (401)'),
        ('hf_read', ['--push-to-hub', 'alice/x'], "the token of 'alice' has no right to write to 'alice/x'"),
        ('hf_other', ['--push-to-hub', 'alice/x'], "the token of 'bob' has no right to write to 'alice/x'"),
        ('hf_good', ['--push-to-hub', 'lab/seen', '--hub-private'], "--hub-private: 'lab/seen' exists already and is"),
        (None, ['--push-to-hub', 'alice/x'], "no token to publish 'alice/x'"),
        ('hf_good', ['--push-to-hub', 'x'], "'x' is no name for a repository of the Hub"),
        ('hf_good', ['--push-to-hub', 'alice/x', '--hub-every', '0'], '--hub-every 0: expected 1 or more'),
        ('hf_good', ['--hub-private'], '--hub-private: does nothing without --push-to-hub'),
        ('hf_good', ['--push-to-hub', 'alice/x', '--baseline', 'nowhere'], "--baseline 'nowhere' is no run folder"),
    ],
)
def test_what_cannot_be_published_is_refused_before_training(somebody, images, tmp_path, token, argv, message):
    somebody('python', "import huggingface_hub\nhuggingface_hub.create_repo('lab/seen', exist_ok=True)")
    somebody.become(token)
    done = somebody('train', '--data-dir', images, '--model', 'test_resnet', '--output', tmp_path / 'out', *argv)
    assert done.code in (1, 2)
    assert message in done.err
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('name', ['timm/resnet50.a1_in1k', 'timm/vit_base_patch16_224.augreg_in21k'])
def test_configs_as_timm_publishes_them_pass(name):
    architecture = name.split('/')[1].split('.')[0]
    cfg = timm.get_pretrained_cfg(architecture).to_dict()
    check_config({'architecture': architecture, 'num_classes': 1000, 'pretrained_cfg': cfg}, name)
    check_config({'architecture': architecture, **cfg, 'url': 'x', 'custom_load': False}, name)
    with pytest.raises(DataError, match='has no architecture'):
        check_config({'pretrained_cfg': cfg}, name)


def test_a_folder_without_config(worker, tmp_path):
    done = worker('cams', ROOT / 'benchmarks/results/quickstart_cams.png', '--model', f'local-dir:{tmp_path}')
    assert done.code == 1
    assert f"error: '{tmp_path}' holds no config.json" in done.err
    save_pretrained(timm.create_model('test_resnet'), tmp_path / 'model_best')
    done = worker('cams', ROOT / 'benchmarks/results/quickstart_cams.png', '--model', f'local-dir:{tmp_path}')
    assert f"holds no config.json: did you mean 'local-dir:{tmp_path / 'model_best'}'?" in done.err


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'pretrained_cfg': {'interpolation': 'foo'}}, "interpolation = 'foo': expected one of nearest"),
        ({'pretrained_cfg': {'crop_pct': 'x'}}, "crop_pct = 'x': expected a number above 0"),
        ({'pretrained_cfg': {'crop_pct': -1}}, 'crop_pct'),
        ({'pretrained_cfg': {'input_size': 'abc'}}, "input_size = 'abc': expected three whole numbers"),
        ({'pretrained_cfg': {'input_size': [3, 0, 5]}}, 'input_size'),
        ({'pretrained_cfg': {'input_size': [3, 10**9, 10**9]}}, 'input_size'),
        ({'pretrained_cfg': {'mean': ['a']}}, 'mean'),
        ({'pretrained_cfg': {'num_classes': '3'}}, "num_classes = '3': expected a whole number"),
        ({'pretrained_cfg': {'label_names': 5}}, "label_names = '5': expected names"),
        ({'model_args': {'bogus': 1}}, 'makes no model'),
    ],
)
def test_values_that_no_config_has(good, tmp_path, changes, message):
    for name, content in with_config(good, **changes).items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        create_model(f'local-dir:{tmp_path}')


def test_a_name_with_two_revisions():
    with pytest.raises(DataError, match=r"'a/b@c@d' is no name of the Hub's"):
        create_model('hf-hub:a/b@c@d')
