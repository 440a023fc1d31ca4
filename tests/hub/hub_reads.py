"""What the test Hub answers to requests that read: accounts, descriptions, trees, refs and files."""

import re
from typing import Any
from urllib.parse import parse_qs

import yaml
from hub_protocol import FRONT_MATTER, Answer, Call, HubError, route
from hub_storage import MAIN, Blob, Commit, Repository


@route('GET', '/api/whoami-v2')
def whoami(call: Call) -> Answer:
    account = call.account()
    orgs = [{'type': 'org', 'name': name, 'fullname': name, 'roleInOrg': 'write'} for name in account.orgs]
    token = {'displayName': 'test', 'role': 'write' if account.write else 'read'}
    return Answer(
        {
            **{'type': 'user', 'id': account.name, 'name': account.name, 'fullname': account.name, 'orgs': orgs},
            'auth': {'type': 'access_token', 'accessToken': token},
        }
    )


@route('GET', '/api/agent-harnesses')
def agent_harnesses(call: Call) -> Answer:
    return Answer({'standardEnvVars': [], 'harnesses': {}})


@route('GET', '/api/models/{repo}/auth-check')
def auth_check(call: Call, repo: str) -> Answer:
    check_gate(call, call.repository(repo))
    return Answer()


@route('GET', '/api/models/{repo}')
def model_info(call: Call, repo: str) -> Answer:
    return revision_info(call, repo, 'main')


@route('GET', '/api/models/{repo}/revision/{revision}')
def revision_info(call: Call, repo: str, revision: str) -> Answer:
    repository = call.repository(repo)
    commit = call.commit(repository, revision)
    settings, card = repository.settings, card_data(repository, commit)
    siblings: list[dict[str, Any]] = [{'rfilename': path} for path in commit.tree]
    if call.query.get('blobs') == 'true':
        for sibling, blob in zip(siblings, commit.tree.values(), strict=True):
            sibling |= {'size': blob.size, 'blobId': blob.oid}
            if blob.lfs:
                sibling['lfs'] = {'sha256': blob.sha256, 'size': blob.size, 'pointerSize': 130}
    tags = card.get('tags', [])
    library = card.get('library_name')
    info = {
        **{'_id': repo, 'id': repo, 'modelId': repo, 'author': repository.namespace, 'sha': commit.sha},
        **{'private': settings['private'], 'gated': 'auto' if settings['gated'] else False, 'disabled': False},
        **{'downloads': 0, 'likes': 0, 'lastModified': commit.date, 'createdAt': commit.date},
        **{'tags': ([library] if library else []) + tags, 'library_name': library, 'siblings': siblings},
        **{'pipeline_tag': card.get('pipeline_tag'), 'cardData': card},
    }
    return Answer({key: value for key, value in info.items() if value is not None})


def card_data(repository: Repository, commit: Commit) -> dict[str, Any]:
    """The metadata of README.md; the Hub reads it from the commit that is asked for."""
    if 'README.md' not in commit.tree:
        return {}
    text = repository.blob_path(commit.tree['README.md'].sha256).read_text('utf-8', errors='replace')
    match = FRONT_MATTER.match(text)
    try:
        data = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError:
        data = {}
    return data if isinstance(data, dict) else {}


def file_entry(path: str, blob: Blob) -> dict[str, Any]:
    entry = {'type': 'file', 'oid': blob.oid, 'size': blob.size, 'path': path}
    lfs = {'lfs': {'oid': blob.sha256, 'size': blob.size, 'pointerSize': 130}}
    return entry | (lfs if blob.lfs else {})


def folder_entry(path: str) -> dict[str, Any]:
    return {'type': 'directory', 'oid': '0' * 40, 'size': 0, 'path': path}


def folders(tree: dict[str, Blob]) -> set[str]:
    """Every folder that holds a file, at any depth."""
    parts = [path.split('/') for path in tree]
    return {'/'.join(names[:depth]) for names in parts for depth in range(1, len(names))}


@route('GET', '/api/models/{repo}/tree/{revision}')
def tree_of_root(call: Call, repo: str, revision: str) -> Answer:
    return tree_of_folder(call, repo, revision, '')


@route('GET', '/api/models/{repo}/tree/{revision}/{path}')
def tree_of_folder(call: Call, repo: str, revision: str, path: str) -> Answer:
    tree = call.commit(call.repository(repo), revision).tree
    if path and path not in folders(tree):
        raise HubError(404, f'{path} does not exist on "{revision}"', 'EntryNotFound')
    recursive = call.query.get('recursive', 'false').lower() in ('true', '1')
    entries = [folder_entry(name) for name in sorted(folders(tree))] + [file_entry(*item) for item in tree.items()]
    start = f'{path}/' if path else ''
    inside = [entry for entry in entries if entry['path'].startswith(start)]
    return Answer([entry for entry in inside if recursive or '/' not in entry['path'].removeprefix(start)])


@route('POST', '/api/models/{repo}/paths-info/{revision}')
def paths_info(call: Call, repo: str, revision: str) -> Answer:
    is_json = 'json' in call.headers.get('Content-Type', '')
    paths = (call.json() if is_json else parse_qs(call.body.decode())).get('paths', [])
    tree = call.commit(call.repository(repo), revision).tree
    found = [file_entry(path, tree[path]) for path in paths if path in tree]
    return Answer(found + [folder_entry(path) for path in paths if path.rstrip('/') in folders(tree)])


@route('GET', '/api/models/{repo}/commits/{revision}')
def commits(call: Call, repo: str, revision: str) -> Answer:
    repository = call.repository(repo)
    call.commit(repository, revision)
    names = {'id': 'sha', 'title': 'title', 'message': 'message', 'date': 'date'}
    return Answer(
        [
            {key: getattr(commit, name) for key, name in names.items()} | {'authors': [{'user': commit.author}]}
            for commit in repository.history(revision)
        ]
    )


@route('GET', '/api/models/{repo}/refs')
def refs(call: Call, repo: str) -> Answer:
    groups: dict[str, list[dict[str, str]]] = {'branches': [], 'tags': [], 'converts': []}
    if 'include_prs' in call.query:
        groups['pullRequests'] = []
    kinds = {'refs/heads/': 'branches', 'refs/tags/': 'tags', 'refs/pr/': 'pullRequests'}
    for ref, sha in call.repository(repo).refs.items():
        start = next(start for start in kinds if ref.startswith(start))
        name = ref if start == 'refs/pr/' else ref.removeprefix(start)
        groups.get(kinds[start], []).append({'name': name, 'ref': ref, 'targetCommit': sha})
    return Answer(groups)


@route('POST', '/api/models/{repo}/branch/{revision}')
def create_branch(call: Call, repo: str, revision: str) -> Answer:
    wanted = call.json() if call.body else {}
    return create_ref(call, repo, f'refs/heads/{revision}', wanted.get('startingPoint') or 'main')


@route('POST', '/api/models/{repo}/tag/{revision}')
def create_tag(call: Call, repo: str, revision: str) -> Answer:
    return create_ref(call, repo, f'refs/tags/{call.json()["tag"]}', revision)


def create_ref(call: Call, repo: str, ref: str, start: str) -> Answer:
    repository = call.repository(repo, write=True)
    name = ref.split('/', 2)[2]
    if not re.fullmatch(r'[A-Za-z0-9_][A-Za-z0-9_./-]*', name) or name.startswith('refs/') or '..' in name:
        raise HubError(400, f'Invalid reference for a branch: {name}')
    with call.hub.storage.lock:
        if ref in repository.refs:
            raise HubError(409, f'Reference already exists: {name}')
        repository.change(refs={ref: call.commit(repository, start).sha})
    return Answer()


@route('DELETE', '/api/models/{repo}/branch/{revision}')
def delete_branch(call: Call, repo: str, revision: str) -> Answer:
    repository = call.repository(repo, write=True)
    ref = f'refs/heads/{revision}'
    if ref == MAIN:
        raise HubError(403, 'The main branch cannot be deleted')
    if ref not in repository.refs:
        raise HubError(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
    repository.change(refs={ref: None})
    return Answer()


@route('GET', '/{repo}/resolve/{revision}/{path}')
def resolve(call: Call, repo: str, revision: str, path: str) -> Answer:
    """A file. The Hub sends LFS files from elsewhere; here they come from the same place, with the same headers."""
    repository = call.repository(repo)
    check_gate(call, repository)
    commit = call.commit(repository, revision)
    headers = {'X-Repo-Commit': commit.sha, 'Accept-Ranges': 'bytes'}
    blob = commit.tree.get(path)
    if blob is None:
        error = HubError(404, 'Entry not found', 'EntryNotFound')
        error.answer.headers |= headers
        raise error
    headers |= {'ETag': f'"{blob.etag}"', 'Content-Type': 'application/octet-stream'}
    if blob.lfs:
        headers |= {'X-Linked-Etag': f'"{blob.sha256}"', 'X-Linked-Size': str(blob.size)}
    return ranged(call, repository.blob_path(blob.sha256).read_bytes(), headers)


def ranged(call: Call, data: bytes, headers: dict[str, str]) -> Answer:
    """The whole content, or the part that a Range header asks for."""
    match = re.fullmatch(r'bytes=(\d*)-(\d*)', call.headers.get('Range', ''))
    if match is None or not any(match.groups()):
        return Answer(data, 200, headers)
    first, last = match.groups()
    start = int(first) if first else max(len(data) - int(last), 0)
    stop = min(int(last) + 1 if first and last else len(data), len(data))
    if start >= stop:
        error = HubError(416, 'Range not satisfiable')
        error.answer.headers |= headers | {'Content-Range': f'bytes */{len(data)}', 'Content-Type': 'application/json'}
        raise error
    return Answer(data[start:stop], 206, headers | {'Content-Range': f'bytes {start}-{stop - 1}/{len(data)}'})


def check_gate(call: Call, repository: Repository) -> None:
    """Refuse whoever was not let into a gated repository: its files are closed, its description is open."""
    account = call.account(needed=False)
    if repository.settings['gated'] and not (account and account.owns(repository.namespace)):
        text = f'Access to model {repository.repo_id} is restricted and you are not in the authorized list.'
        raise HubError(403 if account else 401, text, 'GatedRepo')
