"""timm-hnc push --space: what stands on the Hub, and that it serves the page with the weights from there."""

import json
import runpy
import socket
import time
from pathlib import Path
from unittest import mock
from urllib.request import urlopen

import pytest
from forks import Script
from hub_server import client_environment
from huggingface_hub import SpaceCard
from naflex_batches import naflex_model
from running import failure, subprocess_environment

import timm_hnc
from timm_hnc import CamModel
from timm_hnc.data.naflex import NaFlexOptions
from timm_hnc.hub.space import write_space

FILES = {'README.md', 'app.py', 'requirements.txt'}


@pytest.fixture(scope='module')
def pushed(server, worker, run):
    """The output of the command."""
    done = worker('push', run, 'alice/paged', '--space')
    assert done.code == 0, done.err
    return done.out


def test_a_space_is_published_beside_the_model(server, pushed):
    model, space = pushed.split()
    assert model.startswith(f'{server.url}/alice/paged/commit/')
    assert space.startswith(f'{server.url}/spaces/alice/paged/commit/')
    assert 'app.py' not in server.files('alice/paged')
    files = server.files('spaces/alice/paged')
    assert {name for name in files if '/' not in name} - {'.gitattributes'} == FILES
    card = SpaceCard(files['README.md'].decode())
    assert (card.data.sdk, card.data.app_file, card.data.models) == ('gradio', 'app.py', ['alice/paged'])
    needed = files['requirements.txt'].decode().split()
    assert any(line.startswith('timm>=') for line in needed)
    assert not any(line.startswith(('pytest', 'matplotlib')) for line in needed)
    assert {name for name in files if name.endswith('.safetensors')} == set(), 'weights by reference'


def test_it_serves_the_page_with_its_own_code_and_the_weights_of_the_hub(server, pushed, tmp_path):
    for name, content in server.files('spaces/alice/paged').items():
        path = tmp_path / 'space' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        port = listener.getsockname()[1]
    environment = client_environment(server, tmp_path / 'home', start=subprocess_environment())
    environment |= {'GRADIO_SERVER_PORT': str(port), 'PYTHONPATH': '', 'HF_HUB_OFFLINE': '0'}
    app = Script(['app.py'], environment, cwd=tmp_path / 'space', imported='torch')
    try:
        config = wait_for(f'http://127.0.0.1:{port}/config', app)
    finally:
        app.kill()
    assert config['title'] == 'paged'
    [label] = [each for each in config['components'] if each['type'] == 'label']
    assert label['props']['label'].startswith('paged: ')


def wait_for(address, process):
    for _ in range(600):
        try:
            return json.loads(urlopen(address, timeout=10).read())
        except OSError:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.1)
    raise AssertionError('the page is not served')


def test_a_space_of_a_naflex_run_sees_photographs_in_their_own_shape(tmp_path, monkeypatch):
    write_space(tmp_path, 'alice/wide', False, NaFlexOptions(naflex_loader=True, naflex_max_seq_len=64))
    model, shown = CamModel(naflex_model()), []
    monkeypatch.setattr('timm_hnc.weights.opening.open_model', lambda name: model)
    monkeypatch.setattr('timm_hnc.demo.page.build_page', lambda subjects: shown.extend(subjects) or mock.Mock())
    monkeypatch.setattr('timm_hnc.demo.page.show_page', lambda page: None)
    runpy.run_path(str(tmp_path / 'app.py'))
    [subject] = shown
    assert (subject.patches.max_seq_len, subject.patches.size) == (64, model.model.get_patch_size())


def test_photographs_are_converted_as_the_run_was_trained(tmp_path):
    write_space(tmp_path, 'alice/hues', True, mode='HSV')
    assert 'multi_label' not in (tmp_path / 'app.py').read_text()
    assert 'mode = "HSV"\n' in (tmp_path / 'app.py').read_text()


def test_code_that_is_gone_leaves_the_space(server, worker, run):
    own = {'notes.txt': b'of the owner', 'args.yaml': b'of the owner'}
    assert worker('push', run, 'alice/renewed', '--space').code == 0
    server.put_repo('spaces/alice/renewed', server.files('spaces/alice/renewed') | own | {'timm_hnc/old.py': b'old'})
    assert worker('push', run, 'alice/renewed', '--space').code == 0
    files = server.files('spaces/alice/renewed')
    assert 'timm_hnc/old.py' not in files
    assert files['notes.txt'] == files['args.yaml'] == b'of the owner'
    assert files['timm_hnc/__init__.py'] == Path(timm_hnc.__file__).read_bytes()


def test_a_private_model_gets_a_private_space(server, worker, run):
    assert worker('push', run, 'alice/hidden', '--space', '--private').code == 0
    assert server.storage.find('spaces/alice/hidden').settings['private']


def test_a_branch_is_what_the_space_loads(server, worker, run):
    assert worker('push', run, 'alice/branched', '--space', '--revision', 'v2').code == 0
    files = server.files('spaces/alice/branched')
    assert b'open_model("hf-hub:alice/branched@v2")' in files['app.py']


def test_a_clone_that_is_not_installed_publishes_nothing(monkeypatch, capsys):
    monkeypatch.setattr('timm_hnc.hub.space.PACKAGE', 'timm_hnc_that_nobody_installed')
    code, line = failure(capsys, 'push', 'nowhere', 'alice/paged', '--space')
    assert (code, line.partition(': ')[0]) == (2, '--space')


def test_a_space_of_weights_that_are_only_proposed_is_refused(worker, run):
    done = worker('push', run, 'alice/proposed', '--space', '--create-pr')
    assert done.code == 2
    assert 'error: --space: not together with --create-pr' in done.err
