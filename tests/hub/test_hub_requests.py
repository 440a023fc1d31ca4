"""The test Hub under requests that the client would not send, or would not show."""

import http.client
import json
import random

import pytest
from hub_server import HubServer, client_environment


@pytest.fixture
def server(tmp_path):
    with HubServer(tmp_path / 'hub') as server:
        yield server


def raw(server, method, path, body=None, token=None, **headers):
    """A request as it stands, past what the client would refuse to send."""
    connection = http.client.HTTPConnection(server.url.removeprefix('http://'), timeout=10)
    headers = {name.replace('_', '-'): value for name, value in headers.items()}
    headers |= {'Authorization': f'Bearer {token}'} if token else {}
    connection.request(method, path, body, headers, encode_chunked='Transfer-Encoding' in headers)
    response = connection.getresponse()
    data = response.read()
    connection.close()
    return response.status, dict(response.headers), data


def test_parts_of_a_file(server):
    data = random.Random(0).randbytes(1000)
    server.put_repo('alice/parts', {'a.bin': data})
    path = '/alice/parts/resolve/main/a.bin'
    for wanted, part in [('0-0', data[:1]), ('10-19', data[10:20]), ('990-', data[990:]), ('-5', data[-5:])]:
        status, headers, found = raw(server, 'GET', path, Range=f'bytes={wanted}')
        assert (status, found, headers['Content-Length']) == (206, part, str(len(part)))
    assert headers['Content-Range'] == 'bytes 995-999/1000'
    assert raw(server, 'GET', path, Range='bytes=1000-')[0] == 416
    status, headers, found = raw(server, 'HEAD', path)
    assert (status, found, headers['Content-Length'], headers['X-Linked-Size']) == (200, b'', '1000', '1000')


def test_nothing_leads_out_of_the_folder(server):
    repository = server.put_repo('alice/safe', {'a.txt': b'a'})
    outside = [
        '/alice/safe/resolve/main/../repository.json',
        '/alice/safe/resolve/main/%2e%2e%2frepository.json',
        '/..%2f..%2fetc/x/resolve/main/passwd',
        '/../../etc/resolve/main/passwd',
        '/alice/safe/resolve/..%2f..%2frepository/a.txt',
        '/api/models/alice/%2e%2e',
    ]
    for path in outside:
        assert raw(server, 'GET', path, token='hf_good')[0] == 404, path
    before = {path for path in repository.folder.parent.parent.rglob('*') if path.name != 'repository.json'}
    for name in ('../x', '/x', 'a/../../x', '.git/config', ''):
        lines = [('header', {'summary': 's'}), ('file', {'path': name, 'content': 'eA==', 'encoding': 'base64'})]
        body = '\n'.join(json.dumps({'key': key, 'value': value}) for key, value in lines)
        assert raw(server, 'POST', '/api/models/alice/safe/commit/main', body, token='hf_good')[0] == 400
    assert raw(server, 'PUT', f'/lfs-storage/alice/safe/{"0" * 64}', b'x')[0] == 403
    assert {path for path in repository.folder.parent.parent.rglob('*') if path.name != 'repository.json'} == before
    for name in ('../x', 'alice', 'alice/../x', 'alice/a--b', 'alice/x.', 'a/b/c'):
        with pytest.raises(ValueError, match='namespace/name'):
            server.put_repo(name, {})


def test_a_route_that_is_missing_is_named(server):
    status, headers, data = raw(server, 'POST', '/api/spaces/alice/x/restart')
    assert (status, headers['Content-Type'].split(';')[0]) == (404, 'application/json')
    assert 'no route POST /api/spaces/alice/x/restart' in json.loads(data)['error']


def test_an_upload_in_chunks_of_unknown_length_arrives_whole(server):
    server.put_repo('alice/chunks', {})
    data = random.Random(0).randbytes(100_000)
    lines = [('header', {'summary': 's'}), ('file', {'path': 'a', 'content': data.hex()})]
    body = '\n'.join(json.dumps({'key': key, 'value': value}) for key, value in lines).encode()
    pieces = iter([body[:7], body[7:50_000], body[50_000:]])
    path = '/api/models/alice/chunks/commit/main'
    assert raw(server, 'POST', path, pieces, token='hf_good', Transfer_Encoding='chunked')[0] == 200
    assert server.files('alice/chunks') == {'a': data.hex().encode()}


def test_the_server_starts_and_stops_at_once_and_its_folder_outlives_it(tmp_path, monkeypatch):
    with HubServer(tmp_path) as first:
        first.put_repo('alice/kept', {'a.txt': b'a'}, private=True)
        assert raw(first, 'GET', '/api/models/alice/kept', token='hf_good')[0] == 200
    with pytest.raises(ConnectionError):
        raw(first, 'GET', '/api/models/alice/kept')
    with HubServer(tmp_path) as second:
        assert second.files('alice/kept') == {'a.txt': b'a'}
        second.put_repo('alice/kept', {'b.txt': b'b'}, private=True)
        assert [set(commit.tree) for commit in second.commits('alice/kept')] == [{'b.txt'}, {'a.txt'}]
        assert raw(second, 'GET', '/api/models/alice/kept')[0] == 404
        with pytest.raises(ValueError, match='cut-body'):
            second.fail('GET', '/', 'burn')
        for name in ('HF_HUB_OFFLINE', 'HF_TOKEN', 'HF_HUB_CACHE', 'HUGGING_FACE_HUB_TOKEN', 'TRANSFORMERS_OFFLINE'):
            monkeypatch.setenv(name, '1')
        found = client_environment(second, tmp_path / 'home')
        assert {name for name in found if name.startswith(('HF_', 'HUGGING', 'TRANSF'))} == {
            *('HF_ENDPOINT', 'HF_HOME', 'HF_HUB_DISABLE_XET'),
            *('HF_HUB_DISABLE_TELEMETRY', 'HF_HUB_DISABLE_PROGRESS_BARS'),
        }
