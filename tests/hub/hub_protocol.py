"""Requests to the test Hub: who asks, which route answers, and refusals in the Hub's own style."""

import json
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from hub_storage import Commit, Repository

_PARTS = {
    # a name without a namespace is a repository that is not found; of a Space it begins with spaces/
    'repo': '(?:spaces/)?[^/]+(?:/[^/]+)?',
    'revision': '[^/]+',
    'path': '.+',
    'oid': '[0-9a-f]{64}',
}
# the metadata at the head of a README.md
FRONT_MATTER = re.compile(r'---\r?\n(.*?)\r?\n---\r?(\n|$)', re.DOTALL)
ROUTES: list[tuple[str, re.Pattern, Callable]] = []


@dataclass(frozen=True)
class Account:
    """Whom a token belongs to. A token without `write` reads only."""

    name: str
    orgs: tuple[str, ...] = ()
    write: bool = True

    def owns(self, namespace: str) -> bool:
        return namespace in (self.name, *self.orgs)


@dataclass
class Answer:
    """Status, headers and body. A dict or list is sent as JSON."""

    body: Any = field(default_factory=dict)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class HubError(Exception):
    """A refusal in the Hub's style; `code` is what the client chooses its exception by."""

    def __init__(self, status: int, message: str, code: str = '', **extra: Any):
        super().__init__(message)
        headers = {'X-Error-Message': message} | ({'X-Error-Code': code} if code else {})
        self.answer = Answer({'error': message, **extra}, status, headers)


@dataclass
class Call:
    """A request that was read."""

    hub: Any
    method: str
    path: str
    query: dict[str, str]
    headers: Any
    body: bytes

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError:
            raise HubError(400, 'The body is not JSON') from None

    def account(self, needed: bool = True) -> Account | None:
        """Whose token came with the request; a token that nobody has is refused even where none is needed."""
        header = self.headers.get('Authorization')
        if header is None:
            if needed:
                raise HubError(401, 'Invalid username or password.')
            return None
        account = self.hub.accounts.get(header.removeprefix('Bearer '))
        if account is None:
            raise HubError(401, 'Invalid credentials in Authorization header')
        return account

    def author(self) -> Account:
        """The caller, who must be allowed to write something somewhere."""
        account = self.account()
        if not account.write:
            raise HubError(403, 'Forbidden: you must use a write token to upload to a repository')
        return account

    def repository(self, repo_id: str, write: bool = False) -> Repository:
        """A repository that the caller may read, or write."""
        account = self.account(needed=write)
        repository = self.hub.storage.find(repo_id)
        owns = repository and account and account.owns(repository.namespace)
        if repository is None or (repository.settings['private'] and not owns):
            raise HubError(404, 'Repository not found', 'RepoNotFound')
        if write and not owns:
            raise HubError(403, 'Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request')
        if write:
            self.author()
        return repository

    def commit(self, repository: Repository, revision: str) -> Commit:
        commit = repository.find_commit(revision)
        if commit is None:
            raise HubError(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        return commit


def route(method: str, template: str) -> Callable:
    """Register a function for a path; each {part} of it, unquoted, is an argument."""
    pattern = re.sub(r'\\{(\w+)\\}', lambda part: f'(?P<{part[1]}>{_PARTS[part[1]]})', re.escape(template))

    def register(function: Callable) -> Callable:
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


def answer(call: Call) -> Answer:
    """What the Hub says to a request."""
    try:
        for method, pattern, function in ROUTES:
            match = pattern.fullmatch(call.path.replace('/api/spaces/', '/api/models/spaces/', 1))
            if match and method == ('GET' if call.method == 'HEAD' else call.method):
                return function(call, **{name: unquote(value) for name, value in match.groupdict().items()})
        raise HubError(
            404, f'The test Hub has no route {call.method} {call.path}: add it to hub_uploads.py or hub_reads.py'
        )
    except HubError as error:
        return error.answer
    except Exception as error:
        traceback.print_exc()
        return HubError(500, f'A mistake in the test Hub: {error!r}').answer
