"""The test Hub under the genuine client, which runs in a process of its own."""

import contextlib
import hashlib
import os
import random
import threading
import time

import pytest
import safetensors.torch
import timm
import torch
from forks import Script
from hub_client import Client
from hub_server import UPLOAD_REQUESTS, HubServer, client_environment

from timm_hnc import save_pretrained

CARD = '---\nlicense: mit\nlibrary_name: timm\ntags: [image-classification]\n---\n# A net\n'


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    with HubServer(tmp_path_factory.mktemp('hub')) as server:
        yield server


@pytest.fixture(scope='module')
def client(server, tmp_path_factory):
    with Client(client_environment(server, tmp_path_factory.mktemp('home'), token='hf_good')) as client:
        yield client


def write_run(folder, seed=0):
    files = {'README.md': CARD.encode() + b'%d' % seed, 'model.safetensors': random.Random(seed).randbytes(10**6)}
    files |= {
        'cam.png': random.Random(-seed).randbytes(3000),
        'logs/summary.csv': b'epoch,loss\n0,%d\n' % seed,
        'empty.txt': b'',
    }
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return files


def read_all(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def requests_since(server, start, text):
    return [request for request in server.requests[start:] if text in request.path]


def test_what_is_published_is_what_is_downloaded_and_kept_for_a_process_without_network(tmp_path):
    files = write_run(tmp_path / 'run')
    server = HubServer(tmp_path / 'hub')
    environment = client_environment(server, tmp_path / 'home', token='hf_good')
    with server, Client(environment) as client:
        assert client('create_repo', repo_id='alice/net') == f'{server.url}/alice/net'
        client('create_repo', repo_id='alice/net', exist_ok=True)
        assert client.problems('create_repo', repo_id='alice/net')[-1] == 409
        url = client('upload_folder', repo_id='alice/net', folder_path=tmp_path / 'run', commit_message='Epoch 3')
        published = server.files('alice/net')
        assert published.keys() - files.keys() == {'.gitattributes'}
        assert {path: published[path] for path in files} == files
        assert [commit.title for commit in server.commits('alice/net')] == ['Epoch 3', 'initial commit']
        assert str(url).endswith(server.commits('alice/net')[0].sha)
        # the client finds nothing to do only if the ids of all blobs are what it computes itself
        client('upload_folder', repo_id='alice/net', folder_path=tmp_path / 'run')
        assert len(server.commits('alice/net')) == 2
        snapshot = client('snapshot_download', repo_id='alice/net')
        assert {str(path): data for path, data in read_all(tmp_path / 'home').items() if '/snapshots/' in path} == {
            f'{os.path.relpath(snapshot, tmp_path / "home")}/{path}': data for path, data in published.items()
        }
    with Client(environment | {'HF_HUB_OFFLINE': '1'}) as offline:
        assert offline('snapshot_download', repo_id='alice/net') == snapshot
        weights = offline('hf_hub_download', repo_id='alice/net', filename='model.safetensors')
        assert weights == f'{snapshot}/model.safetensors'
        assert offline.problems('hf_hub_download', repo_id='alice/net', filename='x')[0] == 'LocalEntryNotFoundError'
    sent = {request.authorization for request in server.requests if request.path.startswith(('/api/models', '/alice'))}
    assert sent == {'Bearer hf_good'}
    uploads = [request for request in server.requests if request.method == 'PUT']
    assert [request.authorization for request in uploads] == [None, None]  # model.safetensors and cam.png


def test_branches_and_pull_requests_leave_main_alone(server, client, tmp_path):
    write_run(tmp_path)
    old = {'README.md': b'old', 'old.txt': b'1', 'folder/gone.txt': b'2'}
    server.put_repo('alice/refs', old)
    push = {'repo_id': 'alice/refs', 'folder_path': tmp_path}
    assert 'RevisionNotFoundError' in client.problems('upload_folder', **push, revision='v2')
    client('create_branch', repo_id='alice/refs', branch='v2')
    assert client.problems('create_branch', repo_id='alice/refs', branch='v2')[-1] == 409
    assert client.problems('create_branch', repo_id='alice/refs', branch='refs/pr/7')[-1] == 400
    branch = {'repo_id': 'alice/refs', 'branch': 'v3', 'revision': 'nowhere'}
    assert 'RevisionNotFoundError' in client.problems('create_branch', **branch)
    client('upload_folder', **push, revision='v2', delete_patterns='folder/*')
    client('upload_folder', **push, create_pr=True)
    assert server.files('alice/refs') == old
    assert server.files('alice/refs', 'v2').keys() == read_all(tmp_path).keys() | {'old.txt'}
    assert server.files('alice/refs', 'refs/pr/1') == old | read_all(tmp_path)
    refs = client('list_repo_refs', repo_id='alice/refs', include_pull_requests=True)
    assert [(ref['name'], ref['target_commit']) for ref in refs['branches'] + refs['pull_requests']] == [
        (name, server.commits('alice/refs', name)[0].sha) for name in ('main', 'v2', 'refs/pr/1')
    ]
    client('create_tag', repo_id='alice/refs', tag='v2.0', revision='v2')
    first = server.commits('alice/refs', 'v2')[-1].sha
    for revision in ('v2', 'refs/pr/1', 'v2.0', first):
        path = client('hf_hub_download', repo_id='alice/refs', filename='README.md', revision=revision)
        with open(path, 'rb') as file:
            assert file.read() == server.files('alice/refs', revision)['README.md']
    commits = client('list_repo_commits', repo_id='alice/refs', revision='v2')
    assert [commit['commit_id'] for commit in commits] == [c.sha for c in server.commits('alice/refs', 'v2')]


def test_a_commit_on_an_outdated_parent_or_of_a_missing_file_changes_nothing(server, client, tmp_path):
    files = write_run(tmp_path)
    first = server.put_repo('alice/stale', {'a.txt': b'1'}).refs['refs/heads/main']
    stale = {'repo_id': 'alice/stale', 'folder_path': tmp_path, 'parent_commit': first}
    client('upload_folder', **stale)
    (tmp_path / 'README.md').write_text(CARD + 'changed')
    assert client.problems('upload_folder', **stale)[-1] == 412
    assert 'EntryNotFoundError' in client.problems('delete_file', repo_id='alice/stale', path_in_repo='b.txt')
    assert server.files('alice/stale') == {'a.txt': b'1'} | files
    client('delete_file', repo_id='alice/stale', path_in_repo='a.txt')
    client('delete_folder', repo_id='alice/stale', path_in_repo='logs')
    assert server.files('alice/stale').keys() == files.keys() - {'logs/summary.csv'}


def test_who_may_do_what(server, client, tmp_path):
    write_run(tmp_path)
    for name in ('open', 'private', 'gated'):
        server.put_repo(f'alice/{name}', {'a.txt': b'a'}, private=name == 'private', gated=name == 'gated')
    file = {'filename': 'a.txt', 'force_download': False, 'local_dir': None}
    rows = [
        ('private', False, 'RepositoryNotFoundError', 404),
        ('private', 'hf_other', 'RepositoryNotFoundError', 404),
        ('missing', 'hf_good', 'RepositoryNotFoundError', 404),
        ('gated', 'hf_other', 'GatedRepoError', 403),
        ('gated', False, 'GatedRepoError', 401),
        ('open', 'hf_wrong', 'HfHubHTTPError', 401),
    ]
    for name, token, error, status in rows:
        found = client.problems('hf_hub_download', repo_id=f'alice/{name}', token=token, **file)
        assert (found[0], found[-1]) == (error, status), (name, token)
    assert client.problems('hf_hub_download', repo_id='missing', **file)[0] == 'RepositoryNotFoundError'
    for name, token in [('open', False), ('private', 'hf_read'), ('gated', 'hf_good')]:
        client('hf_hub_download', repo_id=f'alice/{name}', token=token, **file)
    assert client('model_info', repo_id='alice/gated', token='hf_other')['gated'] == 'auto'
    assert client.problems('whoami', token='hf_wrong')[-1] == 401
    assert client('whoami', token='hf_other')['name'] == 'bob'
    for repo_id, token, status in [
        ('bob/x', 'hf_good', 403),
        ('alice/x', 'hf_read', 403),
        ('alice/x', 'hf_wrong', 401),
        ('alice/x', False, 401),
    ]:
        assert client.problems('create_repo', repo_id=repo_id, token=token)[-1] == status
        assert not server.has(repo_id)
    client('create_repo', repo_id='lab/x', visibility='private')
    push = {'repo_id': 'alice/open', 'folder_path': tmp_path}
    for token, status in [('hf_other', 403), ('hf_read', 403), ('hf_wrong', 401), (False, 401)]:
        assert client.problems('upload_folder', **push, token=token)[-1] == status
    assert 'RepositoryNotFoundError' in client.problems('upload_folder', repo_id='alice/none', folder_path=tmp_path)
    client('upload_folder', **push, token='hf_other', create_pr=True)
    assert server.files('alice/open') == {'a.txt': b'a'}
    assert server.commits('alice/open', 'refs/pr/1')[0].author == 'bob'
    client('delete_repo', repo_id='lab/x')
    assert not server.has('lab/x')


def test_descriptions_of_a_repository(server, client, tmp_path):
    files = write_run(tmp_path)
    server.put_repo('alice/described', files)
    info = client('model_info', repo_id='alice/described', files_metadata=True)
    assert info['sha'] == server.refs('alice/described')['refs/heads/main']
    assert {item['rfilename']: item['size'] for item in info['siblings']} == {k: len(v) for k, v in files.items()}
    assert {'timm', 'image-classification'} <= set(info['tags'])
    assert info['card_data']['license'] == 'mit'
    tree = client('list_repo_tree', repo_id='alice/described', recursive=True)
    assert {item['path'] for item in tree} == files.keys() | {'logs'}
    weights = next(item for item in tree if item['path'] == 'model.safetensors')
    assert weights['lfs']['sha256'] == hashlib.sha256(files['model.safetensors']).hexdigest()
    assert {item['path'] for item in client('list_repo_tree', repo_id='alice/described')} == {
        path.partition('/')[0] for path in files
    }
    inside = client('list_repo_tree', repo_id='alice/described', path_in_repo='logs')
    assert [item['path'] for item in inside] == ['logs/summary.csv']
    paths = client('get_paths_info', repo_id='alice/described', paths=['logs', 'cam.png', 'none'])
    assert {item['path'] for item in paths} == {'logs', 'cam.png'}
    missing = {'repo_id': 'alice/described', 'filename': 'none.txt'}
    assert 'EntryNotFoundError' in client.problems('hf_hub_download', **missing)
    missing = {'repo_id': 'alice/described', 'filename': 'cam.png', 'revision': 'none'}
    assert 'RevisionNotFoundError' in client.problems('hf_hub_download', **missing)
    assert 'RevisionNotFoundError' in client.problems('snapshot_download', repo_id='alice/described', revision='none')


@pytest.mark.parametrize(
    ('card', 'message'),
    [
        ('---\nlicense: [\n---\n', 'not YAML'),
        ('---\ntags: 3\n---\n', '"tags"'),
        ('---\nmodel-index:\n- name: x\n  results:\n  - task: {type: t}\n    metrics: []\n---\n', 'dataset'),
        ('---\nmodel-index: [{name: x, results: [{task: {type: t}, dataset: {type: d}, metrics: []}]}]\n---\n', 'name'),
        ('# no metadata', None),
    ],
)
def test_the_metadata_of_a_card_is_checked_before_anything_is_sent(server, client, tmp_path, card, message):
    server.put_repo('alice/card', {'a.txt': b'a'})
    (tmp_path / 'README.md').write_text(card)
    found = client.ask('upload_folder', repo_id='alice/card', folder_path=tmp_path)
    if message:
        assert found['problems'][0] == 'ValueError'
        assert message in found['value']
        assert server.files('alice/card') == {'a.txt': b'a'}
    else:
        assert any('empty or missing yaml metadata' in text for text in found['warnings'])
        assert server.files('alice/card')['README.md'] == card.encode()


def test_a_download_that_breaks_off_goes_on_where_it_was(server, client):
    data = random.Random(1).randbytes(24 * 2**20)  # the client keeps what it has in steps of 10 MiB
    server.put_repo('alice/broken', {'model.safetensors': data})
    file = {'repo_id': 'alice/broken', 'filename': 'model.safetensors'}
    server.fail('GET', '/resolve/', 'cut-body', times=None)
    assert 'RemoteProtocolError' in client.problems('hf_hub_download', **file)
    assert len(requests_since(server, 0, '/alice/broken/resolve/')) == 1 + 6  # HEAD; GET and five more attempts
    server.heal()
    start = len(server.requests)
    server.fail('GET', '/resolve/', 'cut-body')
    with open(client('hf_hub_download', **file), 'rb') as weights:
        assert weights.read() == data
    assert [request.status for request in requests_since(server, start, '/resolve/')] == [200, 200, 206]


RETRIED = ('/preupload/', '/info/lfs/objects/batch', '/lfs-storage/', '/info/lfs/objects/verify')


@pytest.mark.parametrize('how', [503, 'cut', 'cut-upload', 'cut-body', 'cut-answer'])
def test_a_branch_holds_the_old_or_the_new_commit_whatever_breaks(server, client, tmp_path, how):
    repo_id, allowed = f'alice/faults-{how}', [write_run(tmp_path, seed=100)]
    server.put_repo(repo_id, allowed[0])
    with watched(server, repo_id) as seen:
        break_every_request(server, client, tmp_path, how, repo_id, allowed)
    assert len(seen) > 1
    assert seen <= {digest(files) for files in allowed}


@contextlib.contextmanager
def watched(server, repo_id):
    """What anybody who looks at any moment finds."""
    seen, stop = set(), threading.Event()

    def watch():
        while not stop.is_set():
            seen.add(digest(server.files(repo_id)))
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        stop.set()
        watcher.join()


def digest(files):
    found = hashlib.sha256()
    for path, content in sorted(files.items()):
        found.update(f'{path} {len(content)}\n'.encode())
        found.update(content)
    return found.hexdigest()


def break_every_request(server, client, tmp_path, how, repo_id, allowed):
    for seed, (method, path) in enumerate(UPLOAD_REQUESTS):
        old, new = allowed[-1], write_run(tmp_path, seed)
        allowed.append(new)
        server.fail(method, path, how, times=None)
        found = push(client, repo_id, tmp_path)
        assert found['problems'] is not None, (path, found)
        assert sorted(set(found['waits'])) == ([1, 2, 4, 8] if path in RETRIED else []), path
        done = path == '/commit/' and how in ('cut-body', 'cut-answer')
        assert server.files(repo_id) == (new if done else old), path
        server.heal()
        server.fail(method, path, how)
        again = push(client, repo_id, tmp_path)
        assert (again['problems'] is None) == (path in RETRIED or done), (path, again)
        server.heal()
        assert push(client, repo_id, tmp_path)['problems'] is None
        assert server.files(repo_id) == new


def push(client, repo_id, folder):
    found = client.ask('create_repo', repo_id=repo_id, exist_ok=True)
    return found if found['problems'] else client.ask('upload_folder', repo_id=repo_id, folder_path=folder)


def test_timm_alone_loads_what_save_pretrained_wrote(server, tmp_path):
    model = timm.create_model('test_resnet', num_classes=4).eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.1)
    save_pretrained(model, tmp_path / 'weights')
    save_pretrained(timm.create_model('test_resnet', num_classes=4), tmp_path / 'old')
    server.put_repo('alice/for-timm', read_all(tmp_path / 'old'))
    old = server.commits('alice/for-timm')[0].sha
    server.put_repo('alice/for-timm', read_all(tmp_path / 'weights'))
    images = torch.randn(2, 3, 64, 64)
    safetensors.torch.save_file({'images': images}, tmp_path / 'images.safetensors')
    script = f"""
import sys, safetensors.torch, timm, torch
torch.set_num_threads(1)
model = timm.create_model('hf-hub:alice/for-timm', pretrained=True).eval()
old = timm.create_model('hf-hub:alice/for-timm@{old}', pretrained=True)
images = safetensors.torch.load_file({str(tmp_path / 'images.safetensors')!r})['images']
tensors = dict(model.state_dict()) | {{'logits': model(images).detach()}}
tensors['old'] = old.get_classifier().weight.detach()
safetensors.torch.save_file(tensors, {str(tmp_path / 'found.safetensors')!r})
assert 'timm_hnc' not in sys.modules
"""
    (tmp_path / 'plain.py').write_text(script)
    plain = Script([str(tmp_path / 'plain.py')], client_environment(server, tmp_path / 'home'), imported='torch')
    errors = plain.communicate()[1]
    assert plain.returncode == 0, errors
    found = safetensors.torch.load_file(tmp_path / 'found.safetensors')
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        expected = dict(model.state_dict()) | {'logits': model(images)}
        expected['old'] = safetensors.torch.load_file(tmp_path / 'old' / 'model.safetensors')['fc.weight']
    torch.set_num_threads(threads)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
