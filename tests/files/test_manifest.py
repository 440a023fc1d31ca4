"""Every change of a folder's files is seen."""

import json
import random

import pytest

from timm_hnc.errors import DataError
from timm_hnc.files.manifest import MANIFEST, check_manifest, write_manifest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'model').mkdir()
    (tmp_path / 'model' / 'weights').write_bytes(bytes(range(256)) * 8)
    (tmp_path / 'state.json').write_text('{"epoch": 3}')
    (tmp_path / 'empty').touch()
    write_manifest(tmp_path)
    check_manifest(tmp_path)
    return tmp_path


def damaged(folder) -> str:
    with pytest.raises(DataError) as error:
        check_manifest(folder)
    return str(error.value)


@pytest.mark.parametrize('name', ['model/weights', 'state.json', MANIFEST])
def test_any_byte(folder, name):
    content = (folder / name).read_bytes()
    for at in random.Random(0).sample(range(len(content)), min(64, len(content))):
        (folder / name).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert f"{name}' is damaged" in damaged(folder)
    (folder / name).write_bytes(content)
    check_manifest(folder)


@pytest.mark.parametrize('name', ['model/weights', 'state.json', 'empty', MANIFEST])
def test_other_lengths_and_no_file(folder, name):
    content = (folder / name).read_bytes()
    for other in (content[: len(content) // 2], b'', content + b'\0'):
        if other != content:
            (folder / name).write_bytes(other)
            assert name in damaged(folder)
    (folder / name).unlink()
    assert f"{name}' is missing" in damaged(folder)


@pytest.mark.parametrize('text', ['', '[]', '{}', '{"files": {}}', '{"files": 3, "sha256": 4}', '\0'])
def test_a_manifest_of_something_else(folder, text):
    (folder / MANIFEST).write_text(text)
    assert damaged(folder) == f"'{folder / MANIFEST}' is damaged."


def test_a_manifest_that_was_altered(folder):
    """A file and its line, changed together by hand."""
    content = json.loads((folder / MANIFEST).read_text())
    del content['files']['state.json']
    (folder / MANIFEST).write_text(json.dumps(content))
    assert 'is damaged' in damaged(folder)


def test_a_part(folder):
    (folder / 'state.json').write_text('')
    check_manifest(folder, 'model')
    (folder / 'model' / 'weights').write_text('')
    with pytest.raises(DataError, match='weights'):
        check_manifest(folder, 'model')
