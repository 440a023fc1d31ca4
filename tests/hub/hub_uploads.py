"""What the test Hub answers to requests that make and fill repositories."""

import base64
import binascii
import hashlib
import json
import re
import secrets
from typing import Any

import yaml
from hub_protocol import FRONT_MATTER, Answer, Call, HubError, route
from hub_storage import Blob, Repository, lfs_blob

LFS_ENDINGS = ('.safetensors', '.bin', '.pth', '.pt', '.png', '.jpg', '.zip', '.npz', '.tar', '.gz')
LFS_SIZE = 10 * 2**20


@route('POST', '/api/validate-yaml')
def validate_yaml(call: Call) -> Answer:
    errors, warnings = check_card(call.json()['content'])
    body = {'errors': [{'message': text} for text in errors], 'warnings': [{'message': text} for text in warnings]}
    return Answer(body | ({'error': 'Invalid metadata'} if errors else {}), 400 if errors else 200)


@route('POST', '/api/repos/create')
def create_repository(call: Call) -> Answer:
    account, wanted = call.author(), call.json()
    repo_id = f'{wanted.get("organization") or account.name}/{wanted["name"]}'
    namespace = repo_id.partition('/')[0]
    if wanted.get('type') not in (None, 'model', 'space'):
        raise HubError(400, 'The test Hub has models and Spaces only')
    if wanted.get('type') == 'space':
        if wanted.get('sdk') not in ('gradio', 'docker', 'static'):
            raise HubError(400, 'A Space needs an SDK')
        repo_id = f'spaces/{repo_id}'
    if not account.owns(namespace):
        raise HubError(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
    if not call.hub.storage.allowed(repo_id):
        raise HubError(400, f'Invalid repo name: {repo_id}')
    url = f'{call.hub.url}/{repo_id}'
    with call.hub.storage.lock:
        if call.hub.storage.find(repo_id):
            raise HubError(409, 'You already created this model repo', url=url)
        private = bool(wanted.get('private')) or wanted.get('visibility') == 'private'
        attributes = ''.join(f'*{ending} filter=lfs diff=lfs merge=lfs -text\n' for ending in LFS_ENDINGS)
        call.hub.storage.create(repo_id, {'.gitattributes': attributes.encode()}, set(), private=private)
    return Answer({'url': url, 'name': repo_id, 'id': repo_id})


@route('DELETE', '/api/repos/delete')
def delete_repository(call: Call) -> Answer:
    account, wanted = call.account(), call.json()
    repository = call.repository(f'{wanted.get("organization") or account.name}/{wanted["name"]}', write=True)
    call.hub.storage.delete(repository)
    return Answer()


@route('POST', '/api/models/{repo}/preupload/{revision}')
def preupload(call: Call, repo: str, revision: str) -> Answer:
    repository = call.repository(repo, write='create_pr' not in call.query)
    call.author()
    tree = call.commit(repository, revision).tree
    files = []
    for file in call.json()['files']:
        path = file['path']
        mode = 'lfs' if path.endswith(LFS_ENDINGS) or file['size'] > LFS_SIZE else 'regular'
        oid = tree[path].etag if path in tree else None
        files.append({'path': path, 'uploadMode': mode, 'shouldIgnore': False, 'oid': oid})
    return Answer({'files': files, 'commitOid': repository.find_commit(revision).sha})


@route('POST', '/{repo}.git/info/lfs/objects/batch')
def lfs_batch(call: Call, repo: str) -> Answer:
    wanted = call.json()
    repository = call.repository(repo, write='ref' in wanted)
    call.author()
    objects = []
    for item in wanted['objects']:
        found = {'oid': item['oid'], 'size': item['size']}
        if not repository.has_blob(item['oid']):
            ticket = secrets.token_hex(8)
            call.hub.tickets[ticket] = item['oid']
            upload = f'{call.hub.url}/lfs-storage/{repo}/{item["oid"]}?ticket={ticket}'
            verify = f'{call.hub.url}/{repo}.git/info/lfs/objects/verify'
            found |= {'authenticated': True, 'actions': {'upload': {'href': upload}, 'verify': {'href': verify}}}
        objects.append(found)
    return Answer({'transfer': 'basic', 'objects': objects})


@route('PUT', '/lfs-storage/{repo}/{oid}')
def lfs_upload(call: Call, repo: str, oid: str) -> Answer:
    """Like the Hub's storage, this knows no users: whoever has the address that the batch gave may write."""
    repository = call.hub.storage.find(repo)
    if repository is None or call.hub.tickets.get(call.query.get('ticket')) != oid:
        raise HubError(403, 'Request has expired')
    if hashlib.sha256(call.body).hexdigest() != oid:
        raise HubError(400, 'The content does not have the sha256 that was announced')
    repository.add_blob(call.body)
    return Answer(b'', headers={'ETag': f'"{oid}"'})


@route('POST', '/{repo}.git/info/lfs/objects/verify')
def lfs_verify(call: Call, repo: str) -> Answer:
    wanted = call.json()
    call.author()
    path = call.repository(repo).blob_path(wanted['oid'])
    if not path.is_file() or path.stat().st_size != wanted['size']:
        raise HubError(404, 'The object was not uploaded')
    return Answer({'oid': wanted['oid'], 'size': wanted['size']})


@route('POST', '/api/models/{repo}/commit/{revision}')
def commit(call: Call, repo: str, revision: str) -> Answer:
    """Every line is checked before anything changes; the branch moves in one step."""
    create_pr = call.query.get('create_pr') == '1'
    repository = call.repository(repo, write=not create_pr)
    account = call.author()
    try:
        lines = [json.loads(line) for line in call.body.splitlines() if line.strip()]
        header = next(line['value'] for line in lines if line['key'] == 'header')
    except (ValueError, KeyError, StopIteration):
        raise HubError(400, 'The body is not a commit in NDJSON') from None
    if not header.get('summary'):
        raise HubError(400, 'The commit has no summary')
    with call.hub.storage.lock:
        parent = call.commit(repository, revision)
        ref = repository.find_ref(revision)
        if header.get('parentCommit') and not parent.sha.startswith(header['parentCommit']):
            raise HubError(412, 'A commit has happened since. Please refresh and try again.')
        if ref is None or ref.startswith('refs/tags/'):
            raise HubError(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        tree = new_tree(repository, parent.tree, lines)
        if create_pr:
            number = 1 + sum(name.startswith('refs/pr/') for name in repository.refs)
            ref = f'refs/pr/{number}'
        message = header.get('description', '')
        made = repository.add_commit(ref, parent.sha, tree, header['summary'], message, account.name)
    url = f'{call.hub.url}/{repo}'
    result = {'success': True, 'commitOid': made.sha, 'commitUrl': f'{url}/commit/{made.sha}', 'hookOutput': ''}
    return Answer(result | ({'pullRequestUrl': f'{url}/discussions/{number}'} if create_pr else {}))


def new_tree(repository: Repository, old: dict[str, Blob], lines: list[dict]) -> dict[str, Blob]:
    """The tree after the operations of a commit."""
    tree = dict(old)
    for line in lines:
        key, value = line['key'], line['value']
        if key == 'header':
            continue
        path = value['path']
        if not path or path.startswith('/') or {'', '.', '..', '.git'} & set(path.rstrip('/').split('/')):
            raise HubError(400, f'Invalid path: {path}')
        if key == 'file':
            tree[path] = repository.add_blob(decoded(value))
        elif key == 'lfsFile':
            if not re.fullmatch('[0-9a-f]{64}', value['oid']) or not repository.has_blob(value['oid']):
                raise HubError(400, f'{path}: an LFS pointer pointed to a file that does not exist')
            tree[path] = lfs_blob(value['oid'], repository.blob_path(value['oid']).stat().st_size)
        elif key in ('deletedFile', 'deletedFolder'):
            gone = [name for name in tree if name == path or name.startswith(path.rstrip('/') + '/')]
            if not gone or (key == 'deletedFile' and path not in tree):
                raise HubError(404, f"A file with this name doesn't exist: {path}", 'EntryNotFound')
            for name in gone:
                del tree[name]
        else:
            raise HubError(400, f'The test Hub does not know the operation {key!r}')
    return tree


def decoded(value: dict[str, str]) -> bytes:
    if value.get('encoding') != 'base64':
        return value['content'].encode()
    try:
        return base64.b64decode(value['content'], validate=True)
    except binascii.Error:
        raise HubError(400, f'{value["path"]}: the content is not base64') from None


def check_card(text: str) -> tuple[list[str], list[str]]:
    """What is wrong with a README's metadata: errors, which refuse it, and warnings."""
    match = FRONT_MATTER.match(text)
    if match is None:
        return [], ['empty or missing yaml metadata in repo card']
    try:
        metadata = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [f'The metadata is not YAML: {error}'], []
    if not isinstance(metadata, dict):
        return ['"metadata" must be of type object'], []
    errors = [f'"{key}" must be a string' for key in ('library_name', 'pipeline_tag') if _wrong(metadata, key, str)]
    for key in ('license', 'datasets', 'tags', 'metrics', 'language', 'base_model'):
        values = metadata.get(key, [])
        if not all(isinstance(value, str) and value for value in (values if isinstance(values, list) else [values])):
            errors.append(f'"{key}" must be a string or a list of strings')
    models = metadata.get('model-index', [])
    if not isinstance(models, list):
        return [*errors, '"model-index" must be an array'], []
    return errors + [text for model in models for text in _check_results(model)], []


def _check_results(model: Any) -> list[str]:
    """The fields that the Hub demands of an entry of model-index."""
    try:
        wrong = [key for key in ('name',) if not isinstance(model[key], str)]
        for result in model['results']:
            wrong += [f'results.task.{key}' for key in ('type',) if _wrong(result['task'], key, str, needed=True)]
            wrong += [f'results.dataset.{key}' for key in ('type', 'name') if _wrong(result['dataset'], key, str, True)]
            for metric in result['metrics']:
                wrong += [f'results.metrics.{key}' for key in ('type',) if _wrong(metric, key, str, needed=True)]
                wrong += ['results.metrics.value'] if metric['value'] is None else []
    except (KeyError, TypeError, AttributeError) as error:
        return [f'"model-index" lacks or has a wrong {error}']
    return [f'"model-index[].{key}" is required and must be a string' for key in wrong]


def _wrong(values: dict[str, Any], key: str, kind: type, needed: bool = False) -> bool:
    return not isinstance(values.get(key, None if needed else kind()), kind)
