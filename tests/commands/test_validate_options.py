from dataclasses import replace
from pathlib import Path

import pytest
from flag_table import check_flag, read_flags
from flat_options import parse_validate_options

from timm_hnc.commands.options import validate_options
from timm_hnc.commands.options.validate_options import build_parser
from timm_hnc.errors import UsageError
from timm_hnc.runtime.device import agreed_device

FLAGS = read_flags(Path(__file__).parent / 'timm_validate_flags.csv')


@pytest.mark.parametrize('row', FLAGS, ids=lambda row: row['flags'])
def test_every_flag_of_timm_is_there_with_its_meaning(row):
    check_flag(build_parser(), row)


def test_there_is_no_config_option(capsys):
    with pytest.raises(SystemExit):
        parse_validate_options(['-c', 'x.yaml'])
    assert 'unrecognized arguments: -c' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('command', 'explicit'),
    [
        ('', set()),
        ('/data -m resnet50 --pretrained -b 64 --amp', {'data', 'model', 'pretrained', 'batch_size', 'amp'}),
        (
            '--checkpoint runs/x --use-ema --results-file r.json --results-format json --torchcompile --channels-last',
            {'checkpoint', 'use_ema', 'results_file', 'results_format', 'torchcompile', 'channels_last'},
        ),
        (
            '--task multilabel --target-key a,b --multilabel-threshold .3',
            {'task', 'target_key', 'multilabel_threshold'},
        ),
        (
            '--in-chans 1 --mean .5 --std .2 --crop-mode squash --crop-pct 1 --metrics-avg macro --num-gpu 1',
            {'in_chans', 'mean', 'std', 'crop_mode', 'crop_pct', 'metrics_avg', 'num_gpu'},
        ),
    ],
)
def test_command_lines_written_for_timm_pass_unchanged(command, explicit):
    args, given = parse_validate_options(command.split())
    plain = vars(build_parser().parse_args(command.split()))
    assert {key for key, value in vars(args).items() if plain[key] != value} <= {'data_dir'}
    assert given == explicit
    assert args.data_dir == plain['data']


def test_the_positional_folder_comes_first_as_in_timm():
    assert parse_validate_options(['/data', '--data-dir', '/other'])[0].data_dir == '/data'
    assert parse_validate_options(['--data-dir', '/other'])[0].data_dir == '/other'


@pytest.mark.parametrize(
    ('more', 'expected'),
    [
        ('', ('train', 0.1, 7)),
        ('--holdout .1', ('train', 0.1, 7)),
        ('--holdout .1 --seed 3', ('train', 0.1, 3)),
        ('--split train --holdout .1', ('train', 0.1, 7)),
        ('--split train', ('train', 0, 42)),
    ],
)
def test_a_holdout_is_drawn_with_the_seed_of_the_run(tmp_path, more, expected):
    """Another seed would validate on images that the run was trained on."""
    (tmp_path / 'args.yaml').write_text('{data_dir: /data, val_split: train, holdout: 0.1, seed: 7}')
    options, _ = parse_validate_options(['--checkpoint', str(tmp_path), *more.split()])
    assert (options.split, options.holdout, options.seed) == expected


def test_a_run_without_held_out_images_does_not_name_their_split(tmp_path):
    (tmp_path / 'args.yaml').write_text('{data_dir: /data, val_split: validation, holdout: 0, seed: 7}')
    with pytest.raises(UsageError, match=r'--holdout 0\.1: is of training images, name their split: --split train'):
        parse_validate_options(['--checkpoint', str(tmp_path), '--holdout', '.1'])


def test_another_seed_than_that_of_a_holdout_is_refused(tmp_path):
    (tmp_path / 'args.yaml').write_text('{data_dir: /data, val_split: train, holdout: 0.1, seed: 7}')
    with pytest.raises(UsageError, match="--seed: the run's held-out images are those of its own seed, 7"):
        parse_validate_options(['--checkpoint', str(tmp_path), '--seed', '3'])


@pytest.mark.parametrize(
    'place', ['', 'model_best', 'checkpoints/epoch-1', 'checkpoints/epoch-1/model/model.safetensors']
)
def test_weights_of_a_run_are_validated_on_its_data(tmp_path, place):
    (tmp_path / 'args.yaml').write_text('{data_dir: /data, val_split: test}')
    options, _ = parse_validate_options(['--checkpoint', str(tmp_path / place)])
    assert (options.data_dir, options.split) == ('/data', 'test')


@pytest.mark.parametrize('place', ['', 'weights.safetensors'])
def test_on_other_data_a_run_keeps_its_task_and_the_kind_of_its_images(tmp_path, place):
    (tmp_path / 'weights.safetensors').write_bytes(b'')
    (tmp_path / 'args.yaml').write_text(
        '{hnc: none, data_dir: /data, val_split: test, task: multilabel, input_img_mode: YCbCr, target_key: tags}'
    )
    options, _ = parse_validate_options(['--checkpoint', str(tmp_path / place), '--data-dir', '/other'])
    assert (options.task, options.input_img_mode) == ('multilabel', 'YCbCr')
    assert (options.data_dir, options.split, options.target_key) == ('/other', 'validation', None)


def test_a_stream_of_a_run_has_its_number_of_samples(tmp_path):
    (tmp_path / 'args.yaml').write_text('{dataset: hfids/x, val_split: test, val_num_samples: 12}')
    for more, expected in (('', 12), ('--num-samples 7', 7), ('--split train', None)):
        options, _ = parse_validate_options(['--checkpoint', str(tmp_path), *more.split()])
        assert options.num_samples == expected


REFUSED = [
    ('--torchscript', '--torchscript: use --torchcompile'),
    ('--fuser te', '--fuser: use --torchcompile'),
    ('--aot-autograd', '--aot-autograd: use --torchcompile'),
    ('--torchcompile --aot-autograd', '--aot-autograd: use --torchcompile'),
    ('--num-gpu 2', '--num-gpu: use accelerate launch'),
    ('--naflex-max-seq-len 0', '--naflex-max-seq-len 0: expected 1 or more'),
    (
        '--naflex-loader --img-size 32',
        '--img-size 32: not together with --naflex-loader, where images keep their shape',
    ),
    ('--naflex-loader --input-size 3 32 32', '--input-size 3 32 32: not together with --naflex-loader'),
    ('--naflex-loader --attack fgsm', '--attack fgsm: not together with --naflex-loader'),
    ('--naflex-loader --cam-boxes', '--cam-boxes: not together with --naflex-loader'),
    ('--naflex-loader --cam-curves 4', '--cam-curves 4: not together with --naflex-loader'),
    ('--naflex-loader --test-pool', '--test-pool: not together with --naflex-loader'),
    ('-b 0', '--batch-size 0: expected 1 or more'),
    ('-j -1', '--workers -1'),
    ('--log-freq 0', '--log-freq 0'),
    ('--num-samples 0', '--num-samples 0'),
    ('--crop-mode middle', "--crop-mode 'middle': expected one of squash, border, center"),
    ('--crop-border-pixels -1', '--crop-border-pixels -1'),
    ('--results-format xml', "--results-format 'xml': expected one of csv, json"),
    ('--amp-dtype half', "--amp-dtype 'half'"),
    ('--amp --model-dtype float16', '--model-dtype float16: --amp needs'),
    ('--mean .1 .2', '--mean: 2 values for 3 channels'),
    ('--input-size 3 -1 8', '--input-size -1'),
    ('--num-classes 0', '--num-classes 0'),
    ('--seed -1', '--seed -1'),
    ('--target-format indices', '--target-format indices: for --task multilabel only'),
    ('--multilabel-threshold 0', '--multilabel-threshold 0.0'),
    ('--task multilabel --metrics-avg micro', '--metrics-avg micro: for --task classification only'),
    ('--task multilabel --real-labels r.json', '--real-labels r.json: for --task classification only'),
    ('--cam-topk 3 --cam-boxes', '--cam-topk 3: does nothing without --cam-metrics.'),
    ('--attack-restarts 2', '--attack-restarts 2: does nothing without --attack fgsm or --attack pgd.'),
    ('--valid-labels v.txt --cam-metrics', '--cam-metrics: not together with --valid-labels'),
    ('--valid-labels v.txt --cam-boxes', '--cam-boxes: not together with --valid-labels'),
    ('--crop-pct 0', '--crop-pct 0.0: expected 0.1 or more and 2 or less'),
    ('--crop-pct 87', '--crop-pct 87.0: expected'),
    ('--task multilabel --valid-labels v.txt', '--valid-labels v.txt: for --task classification only'),
]


@pytest.mark.parametrize(('command', 'fragment'), REFUSED, ids=[command for command, _ in REFUSED])
def test_options_that_cannot_work_are_refused_in_one_line(command, fragment):
    with pytest.raises(UsageError) as error:
        parse_validate_options(command.split())
    assert fragment in str(error.value)
    assert '\n' not in str(error.value)


def test_the_launcher_may_compile(monkeypatch):
    def agreed(*argv):
        options, explicit, _ = validate_options.parse_validate_options(argv)
        return replace(options, device=agreed_device(options.device, explicit))

    with pytest.raises(UsageError, match=r'--torchcompile nothing: expected one of .*inductor'):
        agreed('--torchcompile', 'nothing')
    monkeypatch.setenv('ACCELERATE_DYNAMO_BACKEND', 'EAGER')
    assert agreed().device.torchcompile == 'eager'
    with pytest.raises(UsageError, match='--cam-metrics: not together with --torchcompile'):
        agreed('--cam-metrics')
    with pytest.raises(UsageError, match='--torchcompile inductor contradicts the launcher, which says eager'):
        agreed('--torchcompile')
