"""A server on this machine that speaks the Hugging Face Hub's protocol, for tests with the genuine client.

    with HubServer(tmp_path / 'hub') as server:
        server.put_repo('alice/net', {'config.json': b'{}'})
        server.fail('POST', '/commit/', 503)
        environment = client_environment(server, tmp_path / 'home', token='hf_good')
        subprocess.run([sys.executable, '-c', script], env=environment)
        assert server.files('alice/net') == {'config.json': b'{}'}

The client reads HF_ENDPOINT when it is imported: it runs in a process of its own. Repositories lie on disk
(hub_storage), what is answered is in hub_uploads and hub_reads, who may do what in hub_protocol.
"""

import json
import os
import socket
import socketserver
import struct
import sys
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import hub_reads  # noqa: F401 - importing it registers its routes
import hub_uploads
from hub_protocol import Account, Answer, Call, HubError, answer
from hub_storage import Commit, Repository, Storage

ACCOUNTS = {
    'hf_good': Account('alice', orgs=('lab',)),
    'hf_read': Account('alice', orgs=('lab',), write=False),
    'hf_other': Account('bob'),
}
# what create_repo, upload_folder and the like send to publish a README.md and weights, in this order
UPLOAD_REQUESTS = [
    ('POST', '/api/repos/create'),
    ('POST', '/api/validate-yaml'),
    ('POST', '/preupload/'),
    ('POST', '/info/lfs/objects/batch'),
    ('PUT', '/lfs-storage/'),
    ('POST', '/info/lfs/objects/verify'),
    ('POST', '/commit/'),
]
FAULTS = ('cut', 'cut-upload', 'cut-body', 'cut-answer')


class Request(NamedTuple):
    """A request that came in. `status` is 0 where the connection was cut before a status was sent."""

    method: str
    path: str
    status: int
    authorization: str | None


class Fault:
    """A rule that spoils requests."""

    def __init__(self, method: str | None, path: str, how: int | str, times: int | None):
        self.method, self.path, self.how, self.times = method, path, how, times

    def strikes(self, method: str, path: str) -> bool:
        if self.times == 0 or self.method not in (None, method) or self.path not in path:
            return False
        self.times = None if self.times is None else self.times - 1
        return True


class HubServer:
    """The server, its repositories, what was asked of it, and what goes wrong.

    Args:
        folder: where repositories lie; a new server on the same folder has them again.
        accounts: token -> Account. By default hf_good is alice (who is in the organisation lab), hf_read a token of
            hers that only reads, hf_other is bob.
        port: 0 takes a free one.
    """

    def __init__(self, folder: str | Path, accounts: dict[str, Account] | None = None, port: int = 0):
        self.storage = Storage(Path(folder))
        self.accounts = ACCOUNTS if accounts is None else accounts
        self.requests: list[Request] = []
        self.tickets: dict[str, str] = {}
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._http = _Http(('127.0.0.1', port), _Handler)
        self._http.hub = self
        self.url = f'http://127.0.0.1:{self._http.server_address[1]}'
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> 'HubServer':
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close the port and all open connections: from now on nobody answers."""
        self._http.shutdown()
        self._http.server_close()
        self._http.close_connections()
        self._thread.join()

    def put_repo(self, repo_id: str, files: dict[str, bytes], private: bool = False, gated: bool = False) -> Repository:
        """Make a repository with just these files, past all rights; of one that is there, the next commit."""
        lfs = {path for path in files if path.endswith(hub_uploads.LFS_ENDINGS)}
        return self.storage.create(repo_id, files, lfs, private=private, gated=gated)

    def files(self, repo_id: str, revision: str = 'main') -> dict[str, bytes]:
        """The contents of a branch, tag, refs/pr/N or commit. KeyError where there is none."""
        return self._repository(repo_id).contents(revision)

    def commits(self, repo_id: str, revision: str = 'main') -> list[Commit]:
        """A revision's commits, the newest first."""
        return list(self._repository(repo_id).history(revision))

    def refs(self, repo_id: str) -> dict[str, str]:
        """Full ref names and their commits."""
        return self._repository(repo_id).refs

    def has(self, repo_id: str) -> bool:
        return self.storage.find(repo_id) is not None

    def _repository(self, repo_id: str) -> Repository:
        repository = self.storage.find(repo_id)
        if repository is None:
            raise KeyError(f'no repository {repo_id!r}')
        return repository

    def fail(self, method: str | None, path: str, how: int | str, times: int | None = 1) -> None:
        """Spoil the next requests whose method is this (None: any) and whose path holds a text.

        Args:
            how: a status to answer with nothing done; 'cut': the request is read, nothing is done, the connection is
                closed; 'cut-upload': only half of the request is read; 'cut-answer': all is done, nothing is
                answered; 'cut-body': all is done, the headers and half of the body are answered (where an answer has
                no body, nothing is).
            times: how many requests; None: all, until heal().
        """
        if how not in FAULTS and not (isinstance(how, int) and 400 <= how < 600):
            raise ValueError(f'{how!r} is none of {FAULTS} and no status from 400')
        with self._lock:
            self._faults.append(Fault(method, path, how, times))

    def heal(self) -> None:
        """Forget all faults."""
        with self._lock:
            self._faults.clear()

    def fault(self, method: str, path: str) -> int | str | None:
        """What goes wrong with this request, counted as done."""
        with self._lock:
            return next((fault.how for fault in self._faults if fault.strikes(method, path)), None)

    def record(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)


class _Http(ThreadingHTTPServer):
    """Threads that do not outlive the process, a start that asks no name server, connections that can be closed."""

    daemon_threads = True
    request_queue_size = 64
    hub: HubServer

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]
        self.open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        for connection in list(self.open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news; anything else is a mistake of this server, and is shown."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Http

    def log_message(self, *args: object) -> None:
        pass

    def answer(self) -> None:
        hub = self.server.hub
        how = hub.fault(self.command, self.path)
        status = 0
        try:
            if how == 'cut-upload':
                self.rfile.read(int(self.headers.get('Content-Length', 0)) // 2)
                self.reset()
                return
            body = self.body()
            if how == 'cut':
                self.close_connection = True
                return
            if isinstance(how, int):
                reply = HubError(how, f'The test Hub was told to fail with {how}').answer
            else:
                url = urlsplit(self.path)
                reply = answer(Call(hub, self.command, url.path, dict(parse_qsl(url.query)), self.headers, body))
            if how == 'cut-answer' or (how == 'cut-body' and (self.command == 'HEAD' or not reply.body)):
                self.close_connection = True
                return
            status = reply.status
            hub.record(Request(self.command, self.path, status, self.headers.get('Authorization')))
            self.send(reply, half=how == 'cut-body')
        finally:
            if not status:
                hub.record(Request(self.command, self.path, status, self.headers.get('Authorization')))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = answer

    def body(self) -> bytes:
        if 'chunked' not in self.headers.get('Transfer-Encoding', ''):
            return self.read(int(self.headers.get('Content-Length', 0)))
        parts = []
        while size := int(self.rfile.readline().partition(b';')[0], 16):
            parts.append(self.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b''.join(parts)

    def read(self, size: int) -> bytes:
        data = self.rfile.read(size)
        if len(data) < size:
            raise ConnectionError('the client went away in the middle of a request')
        return data

    def send(self, reply: Answer, half: bool) -> None:
        data, headers = reply.body, {'X-Request-Id': uuid.uuid4().hex, **reply.headers}
        if not isinstance(data, bytes):
            data = json.dumps(data).encode()
            headers['Content-Type'] = 'application/json; charset=utf-8'
        self.send_response(reply.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(data[: len(data) // 2] if half else data)
        self.wfile.flush()
        self.close_connection = self.close_connection or half

    def reset(self) -> None:
        """Close so that the client, which is still sending, notices."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        self.close_connection = True


def client_environment(
    server: HubServer, home: str | Path, token: str | None = None, start: dict[str, str] | None = None
) -> dict[str, str]:
    """The environment of a process whose client talks to this server and knows nothing of the user's own.

    Args:
        home: the folder of the client's cache; a fresh one is an empty cache.
        token: without one the process is nobody.
        start: what to take over, apart from all that is the client's; by default this process's environment.
    """
    own = ('HF_', 'HUGGINGFACE', 'HUGGING_FACE', 'TRANSFORMERS_OFFLINE')
    start = dict(os.environ) if start is None else start
    kept = {name: value for name, value in start.items() if not name.startswith(own)}
    hosts = '127.0.0.1,localhost'
    ours = {
        **{'HF_ENDPOINT': server.url, 'HF_HOME': str(home), 'NO_PROXY': hosts, 'no_proxy': hosts},
        **{'HF_HUB_DISABLE_XET': '1', 'HF_HUB_DISABLE_TELEMETRY': '1', 'HF_HUB_DISABLE_PROGRESS_BARS': '1'},
        **{'OMP_NUM_THREADS': '1'},
    }
    return kept | ours | ({'HF_TOKEN': token} if token else {})
