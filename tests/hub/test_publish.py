"""Publishing with the genuine client: what stands on the Hub afterwards, and that a fault leaves nothing half-done."""

import csv
import io
import json
import shutil
from urllib.request import Request, urlopen

import pytest
import safetensors.torch
import timm
import torch
import yaml
from hub_server import UPLOAD_REQUESTS
from huggingface_hub import ModelCard
from PIL import Image
from running import NARROW, arguments, contents, result

from timm_hnc.files.manifest import write_manifest
from timm_hnc.hub.portable import data_name, is_hub_name, portable, portable_options, portable_result

PARTS = {'model.safetensors', 'config.json', 'README.md', 'args.yaml', 'summary.csv', 'result.json', 'cams.png'}

# what a push to a branch sends
REQUESTS = [each for each in [*UPLOAD_REQUESTS, ('POST', '/branch/')] if each[1] != '/api/validate-yaml']


def test_one_commit_holds_everything(server, worker, run):
    before = contents(run)
    done = worker('push', run, 'alice/everything', '--baseline', run)
    assert done.code == 0, done.err
    [commit, first] = server.commits('alice/everything', 'main')
    assert done.out.strip() == f'{server.url}/alice/everything/commit/{commit.sha}'
    files = server.files('alice/everything')
    assert set(files) - {'.gitattributes'} == PARTS
    assert not set(first.tree) & PARTS
    assert contents(run) == before, 'the run folder is as it was'
    best = (run / 'model_best' / 'model.safetensors').read_bytes()
    assert files['model.safetensors'] == best
    config = json.loads(files['config.json'])
    own = json.loads((run / 'model_best' / 'config.json').read_text())
    for name in ('license', 'tag'):  # of timm's weights, with which this run did not begin
        own['pretrained_cfg'].pop(name)
    assert {name: config[name] for name in own if name != 'hnc'} == {n: v for n, v in own.items() if n != 'hnc'}
    assert 'license' not in ModelCard(files['README.md'].decode()).data.to_dict()
    hnc = config['hnc']
    assert (hnc['variant'], hnc['weight'], hnc['topk'], hnc['criterion']) == ('mse', 0.0007, 2, 'ce')
    assert hnc['versions'] == result(run)['versions']
    assert hnc['dataset'] == arguments(run)['data_dir'].rsplit('/', 1)[-1]
    assert files['summary.csv'] == (run / 'summary.csv').read_bytes()
    assert Image.open(io.BytesIO(files['cams.png'])).size == Image.open(run / 'cams' / 'best.png').size
    assert json.loads(files['result.json'])['final'] == result(run)['final']


def test_no_path_of_the_machine_and_no_token_is_published(server, worker, run):
    assert worker('push', run, 'alice/paths').code == 0
    options = arguments(run)
    for name, content in server.files('alice/paths').items():
        assert b'hf_good' not in content
        if not name.endswith(('.png', '.safetensors')):
            assert str(run.parent).encode() not in content, name
            assert options['data_dir'].encode() not in content, name
    published = yaml.safe_load(server.files('alice/paths')['args.yaml'])
    assert {name for name in published if options[name] != published[name]} == {'data_dir', 'output'}
    of_the_hub = {'push_to_hub', 'hub_every', 'hub_private', 'hub_revision', 'hub_licence', 'baseline'}
    assert set(options) - set(published) == of_the_hub


def test_the_card(server, worker, run):
    assert worker('push', run, 'alice/card', '--baseline', run, '--licence', 'mit').code == 0
    text = server.files('alice/card')['README.md'].decode()
    asked = json.dumps({'repoType': 'model', 'content': text}).encode()
    request = Request(f'{server.url}/api/validate-yaml', asked, {'Content-Type': 'application/json'})
    assert not json.loads(urlopen(request).read()).get('errors'), 'metadata that the Hub takes'
    card = ModelCard(text)
    assert card.data.library_name == 'timm'
    assert card.data.license == 'mit'
    assert {'image-classification', 'timm', 'class-activation-map', 'hnc'} <= set(card.data.tags)
    final = result(run)['final']
    found = {each.metric_name: each.metric_value for each in card.data.eval_results}
    assert found == pytest.approx({'top-1 accuracy': final['top1'], 'top-5 accuracy': final['top5']}, abs=1e-3)
    assert '| | baseline | this model |' in text
    row = next(line for line in text.splitlines() if line.startswith('| top-1, %'))
    assert [float(cell) for cell in row.split('|')[2:4]] == pytest.approx([final['top1']] * 2, abs=0.01)
    assert 'eccv' in text.lower()
    assert '(cams.png)' in text
    assert result(run)['command'].split()[0] in text


def test_code_of_the_card_runs_as_it_stands(server, worker, workers, run, tmp_path):
    assert worker('push', run, 'alice/code').code == 0
    blocks = ModelCard(server.files('alice/code')['README.md'].decode()).text.split('```python\n')[1:]
    with workers.start(tmp_path) as stranger:
        first, second = (stranger('python', block.split('```')[0]) for block in blocks)
    assert (first.code, second.code) == (0, 0), (first, second)
    lines = first.out.splitlines()
    assert len(lines) == 3
    assert {line.split(':')[0] for line in lines} == {'blue', 'green', 'red'}
    assert sum(float(line.split(': ')[1]) for line in lines) == pytest.approx(1, abs=0.02)
    assert second.out.startswith('torch.Size([1, 3, ')


@pytest.fixture
def published(server, worker, run):
    """A repository with an earlier commit."""
    server.put_repo('alice/net', {'README.md': b'old', 'model.safetensors': b'old'})
    return server.commits('alice/net', 'main')[0].sha


def weights_of(run):
    return (run / 'model_best' / 'model.safetensors').read_bytes()


def changed(run, folder, number):
    """A copy of a run with other weights: the Hub takes no file twice."""
    copy = shutil.copytree(run, folder / f'run-{number}', symlinks=True)
    path = (copy / 'model_best').resolve() / 'model.safetensors'
    weights = safetensors.torch.load_file(path)
    weights['fc.bias'] += number
    safetensors.torch.save_file(weights, path, metadata={'format': 'pt'})
    write_manifest(path.parents[1])
    return copy


@pytest.mark.parametrize(('method', 'path'), REQUESTS)
def test_a_fault_for_ever_leaves_the_old_commit(server, worker, run, published, tmp_path, method, path):
    options = ['--revision', 'next'] if path == '/branch/' else []
    # a repository that is there need not be made: the client goes on after a 403
    for number, how in enumerate((503, 'cut', *([] if path == '/api/repos/create' else [403]))):
        other = changed(run, tmp_path, number + 0.001 * REQUESTS.index((method, path)) + 0.5)
        server.fail(method, path, how, times=None)
        done = worker('push', other, 'alice/net', *options)
        server.heal()
        if done.code == 0 and path.endswith('/verify'):
            # the file had arrived: the second attempt needs no upload, and nobody verifies one
            published = server.commits('alice/net', 'main')[0].sha
            assert server.files('alice/net')['model.safetensors'] == weights_of(other)
            continue
        assert done.code == 1, how
        line = done.err.strip().splitlines()[-1]
        assert ': error: not published: ' in line
        assert 'alice/net' in line
        assert 'Traceback' not in done.err
        assert ('(403)' in line) == (how == 403)
        assert server.commits('alice/net', 'main')[0].sha == published
        assert server.files('alice/net')['model.safetensors'] != weights_of(other)


@pytest.mark.parametrize(('method', 'path'), REQUESTS)
@pytest.mark.parametrize('how', [503, 'cut', 'cut-answer'])
def test_a_fault_that_passes_is_overcome_with_one_commit(server, worker, run, tmp_path, method, path, how):
    options = ['--revision', 'next'] if path == '/branch/' else []
    name = f'alice/{method}-{path.strip("/").replace("/", "-")}-{how}'.replace('--', '-')
    number = 10 + REQUESTS.index((method, path)) + len(str(how)) / 16
    server.fail(method, path, how, times=1)
    done = worker('push', changed(run, tmp_path, number), name, *options)
    assert done.code == 0, done.err
    assert len(server.commits(name, 'next' if options else 'main')) == 2
    assert set(server.files(name, 'next' if options else 'main')) >= PARTS


def test_a_pull_request_is_opened_once(server, worker, run, published):
    server.fail('POST', '/commit/', 'cut-answer', times=1)
    done = worker('push', run, 'alice/net', '--create-pr')
    assert done.code == 1
    assert 'refs/pr/1' in server.refs('alice/net')
    assert 'refs/pr/2' not in server.refs('alice/net')
    assert server.commits('alice/net', 'main')[0].sha == published
    done = worker('push', run, 'alice/net', '--create-pr')
    assert done.code == 0
    assert set(server.files('alice/net', 'refs/pr/2')) >= PARTS
    done = worker('push', run, 'alice/net', '--create-pr', '--revision', 'next')
    assert (done.code, '--revision: not together with --create-pr' in done.err) == (2, True)


@pytest.mark.parametrize(
    ('token', 'name', 'code', 'message'),
    [
        (None, 'alice/net', 2, "no token to publish 'alice/net': log in with `hf auth login`, or set HF_TOKEN"),
        ('hf_wrong', 'alice/net', 1, "the Hub does not know the token (401) that was sent for 'alice/net'"),
        ('hf_read', 'alice/net', 1, "the token has no right to write to 'alice/net' (403)"),
        ('hf_other', 'alice/net', 1, "the token has no right to write to 'alice/net' (403)"),
        ('hf_good', 'alice', 2, "'alice' is no name for a repository of the Hub"),
        ('hf_good', 'alice/a b', 2, "'alice/a b' is no name for a repository of the Hub"),
        ('hf_good', 'alice/x..y', 2, 'is no name for a repository of the Hub'),
    ],
)
def test_who_may_publish(server, somebody, run, published, token, name, code, message):
    somebody.become(token)
    done = somebody('push', run, name)
    assert done.code == code
    assert message in done.err
    assert 'hf_' not in done.err
    assert server.commits('alice/net', 'main')[0].sha == published


def test_runs_that_cannot_be_published(server, worker, run, tmp_path):
    broken = shutil.copytree(run, tmp_path / 'broken', symlinks=True)
    weights = (broken / 'model_best').resolve() / 'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:1000])
    (tmp_path / 'empty').mkdir()
    start = len(server.requests)
    for path, message in (
        (broken, "model.safetensors' is damaged"),
        (tmp_path / 'empty', 'no run folder with weights'),
    ):
        done = worker('push', path, 'alice/never')
        assert done.code == 1
        assert message in done.err
    assert len(server.requests) == start, 'nothing was asked of the Hub'
    assert not server.has('alice/never')


def test_a_model_from_python(server, worker):
    done = worker(
        'python',
        """
import json, timm, timm_hnc, torch
torch.manual_seed(5)
model = timm_hnc.create_model('cifar_resnet20', num_classes=4).eval()
x = torch.randn(1, 3, 32, 32)
url = timm_hnc.push_to_hub(model, 'lab/net', private=True, class_names=list('abcd'), figures={'top1': 71.5})
found = [url, x.flatten().tolist(), model(x).tolist()]
""",
    )
    assert done.code == 0, (done.found, done.err)
    url, x, logits = done.found
    assert url.startswith(f'{server.url}/lab/net/commit/')
    files = server.files('lab/net')
    assert set(files) - {'.gitattributes'} == {'README.md', 'config.json', 'model.safetensors'}
    assert 'import timm_hnc' in files['README.md'].decode().split('```python')[1], 'an architecture of ours'
    again = worker(
        'python',
        f"""
import timm_hnc, torch
model = timm_hnc.create_model('hf-hub:lab/net').eval()
found = [model.class_names, torch.equal(model(torch.tensor({x}).view(1, 3, 32, 32)), torch.tensor({logits}))]
""",
    )
    assert again.found == [['a', 'b', 'c', 'd'], True], again


def test_weights_that_do_not_reload_are_not_published(server, worker):
    done = worker(
        'python',
        """
import timm, timm_hnc, torch
model = timm.create_model('test_resnet', num_classes=3).eval()
model.fc.register_forward_hook(lambda module, inputs, output: output + 1)  # what no state dict holds
timm_hnc.push_to_hub(model, 'alice/hooked')
""",
    )
    assert 'other logits than the model when they are loaded again' in str(done.found)
    assert not server.has('alice/hooked')


@pytest.mark.parametrize(
    ('options', 'name'),
    [
        ({'dataset': 'torch/cifar100', 'data_dir': '/d'}, 'cifar100'),
        ({'dataset': 'hfds/uoft-cs/cifar100'}, 'uoft-cs/cifar100'),
        ({'dataset': 'hfds/../data/voc2007'}, 'voc2007'),
        ({'dataset': '', 'data_dir': '/somewhere/birds/'}, 'birds'),
        ({'dataset': 'hnc/digits', 'data_dir': None}, 'digits'),
        ({}, ''),
    ],
)
def test_names_of_data(options, name):
    assert data_name(options) == name


def test_a_folder_here_is_no_data_set_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_name('hfds/data/voc2007')
    (tmp_path / 'data' / 'voc2007').mkdir(parents=True)
    assert not is_hub_name('hfds/data/voc2007')
    assert data_name({'dataset': 'hfds/data/voc2007'}) == 'voc2007'


@pytest.mark.parametrize(
    ('word', 'expected'),
    [
        ('train.py', 'train.py'),
        ('--lr', '--lr'),
        ('0.1', '0.1'),
        ('8/255', '8/255'),
        ('user/name', 'user/name'),
        ('hf-hub:user/name', 'hf-hub:user/name'),
        ('hfds/user/name', 'hfds/user/name'),
        ('data/cifar', 'data/cifar'),
        ('/home/me/data', 'data'),
        ('~/data/', 'data'),
        ('--output=/o/x', '--output=x'),
        ('teacher=/home/me/x.pth', 'teacher=x.pth'),
        ('../me/images', 'images'),
        ('runs/../../me/images', 'images'),
        ('hfds//home/me/set', 'hfds//set'),
        ('hfds/../me/set', 'hfds//set'),
        ('local-dir:/home/me/out/model_best', 'local-dir:model_best'),
        ('file:///home/me/x', 'x'),
        (r'C:\Users\me\data', 'data'),
        ('D:/secret/me', 'me'),
        (r'\\server\share\me', 'me'),
        ('-c/home/me/x.yaml', '-cx.yaml'),
        ('-c~/x.yaml', '-cx.yaml'),
        ('a=b,/home/me/x,c', 'a=b,x,c'),
        ('["../me/x", "~/y"]', '["x", "y"]'),
        ('{"file": "/home/me/w", "n": 1}', '{"file": "w", "n": 1}'),
    ],
)
def test_words_lose_folders(word, expected):
    assert portable(word) == expected


def test_paths_in_lists_and_mappings_lose_folders():
    options = {'model_kwargs': {'weights': '/home/me/w'}, 'save': ['/a/b', 3], 'lr': 0.1, 'push_to_hub': 'me/x'}
    assert portable_options(options) == {'model_kwargs': {'weights': 'w'}, 'save': ['b', 3], 'lr': 0.1}
    result = {'model': 'local-dir:/home/me/m', 'command': "train.py --output '/my place/x'", 'final': {'top1': 1.5}}
    expected = {'model': 'local-dir:m', 'command': 'train.py --output x', 'final': {'top1': 1.5}}
    assert portable_result(result) == expected


def test_epochs_stand_in_the_summary(server, worker, run):
    assert worker('push', run, 'alice/summary').code == 0
    rows = list(csv.DictReader(io.StringIO(server.files('alice/summary')['summary.csv'].decode())))
    assert len(rows) == result(run)['epochs']


def test_plain_timm_loads_bit_equal_logits(server, worker, workers, run, tmp_path):
    assert worker('push', run, 'alice/plain').code == 0
    code = """
import timm, torch
model = timm.create_model('hf-hub:alice/plain', pretrained=True).eval()
found = model(torch.linspace(-2, 2, 2 * 3 * 32 * 32).view(2, 3, 32, 32)).tolist()
"""
    with workers.start(tmp_path) as stranger:
        found = stranger('python', code).found
    own = timm.create_model('test_resnet', num_classes=3, **NARROW).eval()
    own.load_state_dict(safetensors.torch.load_file(run / 'model_best' / 'model.safetensors'))
    with torch.no_grad():
        expected = own(torch.linspace(-2, 2, 2 * 3 * 32 * 32).view(2, 3, 32, 32))
    assert torch.equal(torch.tensor(found), expected)
