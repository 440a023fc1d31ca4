"""Files that are written whole or not at all, whatever names stand in them."""

import csv
import json
import os
import resource
import stat
from contextlib import contextmanager

import pytest

from timm_hnc.files.run_options import dump_yaml, load_yaml
from timm_hnc.files.tables import write_csv, write_json, write_table
from timm_hnc.files.whole import write_whole

NO_UTF8 = b'caf\xe9'.decode('utf-8', 'surrogateescape')  # as Python has a file name of these bytes


@contextmanager
def full_disk(largest):
    """No file may be larger than so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_was_there_stays_where_a_write_fails(tmp_path):
    path = tmp_path / 'args.yaml'
    path.write_text('lr: 1')
    with full_disk(100), pytest.raises(OSError, match='File too large'):
        write_whole(path, 'lr: 2\n' * 100)
    assert path.read_text() == 'lr: 1'
    assert list(tmp_path.iterdir()) == [path]
    write_whole(path, 'lr: 2\n' * 100)
    assert path.read_text() == 'lr: 2\n' * 100


def test_a_file_that_only_its_owner_reads_stays_so(tmp_path):
    path = tmp_path / 'args.yaml'
    path.touch(mode=0o600)
    write_whole(path, 'lr: 2')
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ('lr: 2', 0o600)


def test_tables_go_through_links_and_pipes(tmp_path):
    (tmp_path / 'there').mkdir()
    link = tmp_path / 'link.json'
    link.symlink_to('there/result.json')
    write_json(link, {'top1': float('nan')})
    assert link.is_symlink()
    assert (tmp_path / 'there' / 'result.json').read_text() == '{\n  "top1": null\n}\n'
    reading, writing = os.pipe()
    write_table(f'/dev/fd/{writing}', [{'b': 2}])
    os.close(writing)
    with open(reading) as pipe:
        assert pipe.read() == 'b\n2\n'


def test_names_that_are_no_utf8(tmp_path):
    write_csv(tmp_path / 'classes.csv', [{'class': NO_UTF8, 'share': 0.5}, {'class': 'thé'}])
    rows = list(csv.DictReader((tmp_path / 'classes.csv').open(encoding='utf-8', newline='')))
    assert [row['class'] for row in rows] == [r'caf\udce9', 'thé']
    assert load_yaml(dump_yaml({'data_dir': NO_UTF8, 'lr': 0.1})) == {'data_dir': NO_UTF8, 'lr': 0.1}


@pytest.mark.parametrize(('name', 'content'), [('rows.JSON', '[{"a": [1], "b": 2}]'), ('rows', 'b\r\n2\r\n')])
def test_the_name_says_the_format(tmp_path, name, content):
    write_table(tmp_path / name, [{'a': [1], 'b': 2}])
    written = (tmp_path / name).read_bytes().decode()
    assert written == content or json.loads(written) == json.loads(content)
