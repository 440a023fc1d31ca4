import argparse
import errno
import os
import signal
import sys
import time

import pytest
import torch
from flat_options import config
from running import run_script
from timm.utils import ParseKwargs
from torch.utils.data import DataLoader, Dataset

from timm_hnc.commands.command_line import ended_like_ctrl_c, one_line, run_command
from timm_hnc.commands.options.parsing import (
    HelpFormatter,
    KeyValues,
    given_on_command_line,
    load_config,
    parse_options,
    refuse,
)
from timm_hnc.errors import DataError, UsageError
from timm_hnc.launcher import command_line
from timm_hnc.options import check_choice, check_range


@pytest.fixture
def ignored_by_none():
    """SIGTERM and SIGHUP as a terminal leaves them, also where the tests run under nohup."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_what_must_not_be_left_goes_when_the_process_is_ended(number, tmp_path, capsys, ignored_by_none):
    def command(argv):
        with ended_like_ctrl_c():
            try:
                os.kill(os.getpid(), number)
                time.sleep(5)
            finally:
                (tmp_path / 'gone').touch()

    assert run_command(command) == 130
    assert (tmp_path / 'gone').exists()
    assert capsys.readouterr().err.endswith(': interrupted\n')
    assert signal.getsignal(number) == signal.SIG_DFL


def test_what_nohup_ignores_stays_ignored(ignored_by_none):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with ended_like_ctrl_c():
        os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.parametrize(
    ('argv', 'typed'),
    [
        (['/usr/bin/timm-hnc', 'train', '-b', '8'], ['timm-hnc', 'train', '-b', '8']),
        (['timm_hnc/__main__.py', 'train', '-b', '8'], ['python', '-m', 'timm_hnc', 'train', '-b', '8']),
        (['timm_hnc/__main__.py'], ['python', '-m', 'timm_hnc']),
        (['a/train.py', '-b', '8'], ['train.py', '-b', '8']),
    ],
)
def test_what_was_typed(argv, typed, monkeypatch):
    monkeypatch.setattr(sys, 'argv', argv)
    assert command_line() == typed


@pytest.fixture
def parser():
    parser = argparse.ArgumentParser(prog='tool.py')
    parser.add_argument('-c', '--config', default='')
    parser.add_argument('data', nargs='?')
    parser.add_argument('--lr', type=float)
    parser.add_argument('--epochs', '--ep', type=int, default=300)
    parser.add_argument('--name', type=str, default='run')
    parser.add_argument('--policy', type=str)
    parser.add_argument('--folder')
    parser.add_argument('--amp', action='store_true')
    parser.add_argument('--order', choices=('constant', 'progressive'), default='constant')
    parser.add_argument('--input-size', type=int, nargs=3)
    parser.add_argument('--mean', type=float, nargs='+')
    parser.add_argument('--tags', type=str, nargs='+', default=[])
    parser.add_argument('--milestones', type=int, nargs='+', default=[90, 180])
    parser.add_argument('--compile', type=str, nargs='?', const='inductor')
    parser.add_argument('--model-kwargs', nargs='*', default={}, action=KeyValues)
    return parser


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('lr: 3e-4', {'lr': 3e-4}),  # text in YAML 1.1
        ('lr: 1', {'lr': 1.0}),
        ('lr: null', {'lr': None}),
        ('epochs: "10"', {'epochs': 10}),
        ('epochs: 3.0', {'epochs': 3}),
        ('name: 2024', {'name': '2024'}),
        ('name: null', {'name': ''}),
        ('policy: null', {'policy': None}),
        ('folder: /data', {'folder': '/data'}),
        ('amp: yes', {'amp': True}),
        ('order: progressive', {'order': 'progressive'}),
        ('input_size: [3, 32, 32]', {'input_size': [3, 32, 32]}),
        ('mean: ["0.5", 0.4, 1]', {'mean': [0.5, 0.4, 1.0]}),
        ('tags: []', {'tags': []}),
        ('compile: inductor', {'compile': 'inductor'}),
        ('data: /images', {'data': '/images'}),
        ('model_kwargs: {depth: 3, act: relu}', {'model_kwargs': {'depth': 3, 'act': 'relu'}}),
    ],
)
def test_config_values_are_converted_like_those_of_the_command_line(parser, tmp_path, text, expected):
    (tmp_path / 'c.yaml').write_text(text)
    values = load_config(parser, tmp_path / 'c.yaml')
    assert values == expected
    assert {key: type(value) for key, value in values.items()} == {key: type(value) for key, value in expected.items()}


@pytest.mark.parametrize(
    ('text', 'fragments'),
    [
        ('epoch: 1', ["'epoch'", "did you mean 'epochs'"]),
        ('ordering_scheme: 1', ["'ordering_scheme'", "did you mean 'order'"]),
        ('input-size: [3, 8, 8]', ["'input-size'", "did you mean 'input_size'"]),
        ('zzzzzz: 1', ["'zzzzzz'", 'no option has a similar name']),
        ('help: true', ["'help'"]),
        ('1: 2', ["'1'"]),
        ('lr: fast', ["lr = 'fast'", 'a number']),
        ('lr: true', ['lr = True', 'a number']),
        ('lr: [0.1]', ['lr = [0.1]', 'a number']),
        ('epochs: 1.5', ['epochs = 1.5', 'an integer']),
        ('epochs: null', ['epochs = None', 'an integer']),
        ('epochs: true', ['epochs = True', 'an integer']),
        ('amp: 1', ['amp = 1', 'true or false']),
        ('amp: "yes"', ["amp = 'yes'", 'true or false']),
        ('amp: null', ['amp = None', 'true or false']),
        ('name: false', ['name = False', 'text']),
        ('name: 2024-01-01', ['name = ', 'text']),
        ('order: nope', ["order = 'nope'", 'one of constant, progressive']),
        ('order: null', ['order = None', 'one of constant, progressive']),
        ('input_size: 224', ['input_size = 224', 'a list of 3 integers']),
        ('input_size: [224, 224]', ['input_size = [224, 224]', 'a list of 3 integers']),
        ('mean: 0.5', ['mean = 0.5', 'a list of numbers']),
        ('mean: []', ['mean = []', 'a list of numbers']),
        ('milestones: [1, x]', ["milestones = [1, 'x']", 'a list of integers']),
        ('milestones: [1, null]', ['milestones = [1, None]', 'a list of integers']),
        ('milestones: []', ['milestones = []', 'a list of integers']),
        ('tags: one', ["tags = 'one'", 'a list of texts']),
        ('model_kwargs: [a=1]', ["model_kwargs = ['a=1']", 'a mapping']),
        ('model_kwargs: {1: 2}', ['model_kwargs = {1: 2}', 'a mapping']),
        ('model_kwargs: null', ['model_kwargs = None', 'a mapping']),
        ('- lr', ['expected a mapping']),
        ('', ['expected a mapping']),
        ('lr: [1', ['not a YAML file']),
        ('experiment: 2025-02-30', ['not a YAML file']),
        ('!!python/object:os.system {}', ['not a YAML file']),
    ],
)
def test_config_is_refused_with_file_key_value_and_expectation(parser, tmp_path, text, fragments):
    path = tmp_path / 'bad.yaml'
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        load_config(parser, path)
    for fragment in [str(path), *fragments]:
        assert fragment in str(error.value)
    assert '\n' not in str(error.value)


def test_config_that_cannot_be_read_is_refused(parser, tmp_path):
    with pytest.raises(UsageError, match=r'missing\.yaml'):
        load_config(parser, tmp_path / 'missing.yaml')
    with pytest.raises(UsageError, match='cannot be read'):
        load_config(parser, tmp_path)
    (tmp_path / 'binary.yaml').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(UsageError, match='cannot be read'):
        load_config(parser, tmp_path / 'binary.yaml')


@pytest.mark.parametrize(
    'argv',
    [
        [],
        ['/data', '--lr', '1e-3', '--amp', '--input-size', '3', '32', '32', '--tags', 'a', 'b'],
        ['--compile', '--mean', '0.5', '--model-kwargs', 'depth=3', 'name=x', '--folder', 'f'],
    ],
)
def test_dumped_options_load_again_to_the_same_values(parser, tmp_path, argv):
    args, _ = parse_options(parser, argv)
    again, _ = parse_options(parser, ['-c', config(tmp_path, **vars(args))])
    assert {**vars(again), 'config': ''} == vars(args)


def test_the_command_line_wins_over_the_config_and_both_are_explicit(parser, tmp_path):
    path = config(tmp_path, lr=0.5, epochs=10, amp=True, config='older.yaml', data='/data')
    args, explicit = parse_options(parser, ['--config', path, '--lr', '0.1', '--input-size', '1', '2', '3'])
    assert (args.lr, args.epochs, args.amp, args.data, args.config) == (0.1, 10, True, '/data', path)
    assert explicit == frozenset({'config', 'lr', 'epochs', 'amp', 'data', 'input_size'})
    assert isinstance(explicit, frozenset)
    assert set(vars(args)) == {action.dest for action in parser._actions} - {'help'}
    assert parser.parse_args([]).lr is None, 'the parser keeps its defaults'
    assert parse_options(parser, ['/other', '-c', path])[0].data == '/other'


@pytest.mark.parametrize(
    ('argv', 'explicit'),
    [
        ([], set()),
        (['--ep', '300'], {'epochs'}),  # an alias, and the default's own value
        (['--epo', '3', '--inp', '1', '2', '3'], {'epochs', 'input_size'}),  # abbreviations
        (['--lr=0.1', 'folder'], {'lr', 'data'}),
        (['--amp', '--compile', '--model-kwargs'], {'amp', 'compile', 'model_kwargs'}),
        (['--name', '--epochs'], SystemExit),
    ],
)
def test_explicit_options_are_those_that_argparse_itself_stores(parser, argv, explicit):
    if explicit is SystemExit:
        with pytest.raises(SystemExit):
            given_on_command_line(parser, argv)
    else:
        assert parse_options(parser, argv)[1] == explicit
        assert given_on_command_line(parser, argv).keys() == explicit


def test_a_parser_without_config_option(tmp_path):
    parser = argparse.ArgumentParser()
    parser.add_argument('--lr', type=float)
    assert parse_options(parser, ['--lr', '1']) == (argparse.Namespace(lr=1.0), {'lr'})


def test_key_values_agree_with_timm_and_refuse_a_word_without_equals_sign(parser, capsys):
    reference = argparse.ArgumentParser()
    reference.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs)
    argv = ['--model-kwargs', 'depth=3', 'act=relu', 'eps=1e-3', 'size=(1, 2)', 'text=a=b', '']
    assert parser.parse_args(argv).model_kwargs == reference.parse_args(argv).model_kwargs
    with pytest.raises(SystemExit):
        parser.parse_args(['--model-kwargs', 'depth'])
    assert "--model-kwargs: 'depth': expected name=value" in capsys.readouterr().err


def test_help_shows_only_defaults_that_say_something():
    parser = argparse.ArgumentParser(formatter_class=HelpFormatter)
    for flag, default in (('--a', None), ('--b', ''), ('--c', 0), ('--d', [1, 2]), ('--e', []), ('--f', 'x')):
        parser.add_argument(flag, default=default, help='help')
    parser.add_argument('--g', action='store_true', help='help')
    lines = [line.split('help')[1] for line in parser.format_help().splitlines() if line.startswith('  --')]
    assert lines == ['', '', ' (default: 0)', ' (default: [1, 2])', '', ' (default: x)', '']


def test_refused_options_give_their_advice_only_when_changed(parser, tmp_path):
    refused = {'epochs': 'use --steps.', 'amp': 'set by the launcher.'}
    for argv in ([], ['--epochs', '300'], ['-c', config(tmp_path, amp=False, epochs=300)]):
        refuse(parser, *parse_options(parser, argv), refused)
    with pytest.raises(UsageError, match=r'^--epochs: use --steps\.$'):
        refuse(parser, *parse_options(parser, ['--ep', '3']), refused)
    with pytest.raises(UsageError, match=r'^--amp: set by the launcher\.$'):
        refuse(parser, *parse_options(parser, ['-c', config(tmp_path, amp=True)]), refused)


def test_requirements_name_flag_value_and_bounds():
    args = argparse.Namespace(batch_size=0, rates=[0.1, float('nan')], mode='x', none=None)
    check_range(args, 'none', low=1)
    check_choice(args, 'none', (None, 'a'))
    with pytest.raises(UsageError, match=r'^--batch-size 0: expected 1 or more\.$'):
        check_range(args, 'batch_size', low=1)
    with pytest.raises(UsageError, match=r'^--batch-size 0: expected 1 or more and 3 or less and less than 2\.$'):
        check_range(args, 'batch_size', low=1, high=3, below=2)
    with pytest.raises(UsageError, match=r'^--rates nan: expected a finite number\.$'):
        check_range(args, 'rates')
    with pytest.raises(UsageError, match=r"^--mode 'x': expected one of a, b\.$"):
        check_choice(args, 'mode', (None, '', 'a', 'b'))


def raising(error):
    def command(argv):
        raise error

    return command


@pytest.mark.parametrize(
    ('error', 'code', 'line'),
    [
        (UsageError('--lr -1: expected 0 or more.'), 2, 'train.py: error: --lr -1: expected 0 or more.'),
        (DataError('no images\n  in /data'), 1, 'train.py: error: no images in /data'),
        (KeyboardInterrupt(), 130, 'train.py: interrupted'),
        (DataError(), 1, 'train.py: error: DataError'),
        (
            PermissionError(errno.EACCES, os.strerror(errno.EACCES), 'a/b'),
            1,
            "train.py: error: [Errno 13] Permission denied: 'a/b'",
        ),
        (
            torch.OutOfMemoryError('CUDA out of memory.\n Tried to allocate 2 GiB.'),
            1,
            'train.py: error: CUDA out of memory. Tried to allocate 2 GiB. A smaller batch or image needs less.',
        ),
    ],
)
def test_errors_become_one_line_and_an_exit_code_on_rank_0(monkeypatch, capsys, error, code, line):
    monkeypatch.setattr(sys, 'argv', ['/somewhere/train.py'])
    # the launcher ends the others with the first; one that it does not end met the error alone
    waits = []
    monkeypatch.setattr(time, 'sleep', waits.append)
    elsewhere = '' if code == 130 else f'[rank 1] {line}\n'
    for rank, expected in (('', line + '\n'), ('0', line + '\n'), ('1', elsewhere)):
        monkeypatch.setenv('RANK', rank)
        assert run_command(raising(error), ['--x']) == code
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == ('', expected)
    assert waits == ([] if code == 130 else [5])
    monkeypatch.delenv('RANK')
    assert run_command(raising(error)) == code
    assert capsys.readouterr().err == line + '\n'


def test_commands_end_with_their_own_code_and_other_errors_pass():
    seen = []
    assert run_command(seen.append, ['a']) == 0
    assert seen == [['a']]
    assert run_command(lambda argv: 3) == 3
    with pytest.raises(SystemExit):
        run_command(raising(SystemExit(2)))
    with pytest.raises(ZeroDivisionError):
        run_command(raising(ZeroDivisionError()))
    with pytest.raises(FileNotFoundError):  # one that nobody has looked for is our mistake
        run_command(raising(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), 'a/b')))


class BrokenImages(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        try:
            raise OSError('truncated file')
        except OSError as error:
            raise DataError(f'image {index * 0}.png\ncannot be read') from error


def test_one_line_finds_the_message_of_an_error_in_a_loading_process():
    with pytest.raises(DataError) as error:
        next(iter(DataLoader(BrokenImages(), num_workers=1)))
    assert 'Original Traceback' in str(error.value)
    assert one_line(error.value) == 'image 0.png cannot be read'
    assert one_line(DataError('Caught a cold')) == 'Caught a cold'
    assert one_line(torch.OutOfMemoryError('a\nb')) == 'a b'


def test_a_process_ends_with_the_exit_code(tmp_path):
    (tmp_path / 'train.py').write_text(
        'import sys; from timm_hnc.commands.command_line import run_command; from timm_hnc.errors import UsageError\n'
        'def main(argv): raise UsageError("--x 1: no.")\n'
        'sys.exit(run_command(main))'
    )
    result = run_script(tmp_path / 'train.py')
    assert (result.returncode, result.stdout, result.stderr) == (2, '', 'train.py: error: --x 1: no.\n')
