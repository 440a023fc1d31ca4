import inspect
import json
from pathlib import Path

import pytest
import torch
from flag_table import check_flag, read_flags
from flat_options import config, parse_train_options
from timm.loss import LOSS_TYPES, create_classification_loss

from timm_hnc.commands.options import train_options
from timm_hnc.commands.options.train_flags import build_parser
from timm_hnc.errors import UsageError
from timm_hnc.options import flattened
from timm_hnc.training.setup.objective.criterion import timm_criterion_kwargs
from timm_hnc.training.setup.objective.loss_options import HNCOptions, LossOptions
from timm_hnc.training.setup.options import TrainOptions

FLAGS = read_flags(Path(__file__).parent / 'timm_train_flags.csv')


def options_of(argv):
    return train_options.parse_train_options(argv)[0]


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.delenv('WORLD_SIZE', raising=False)


@pytest.fixture
def stats(tmp_path):
    path = tmp_path / 'stats.json'
    path.write_text(json.dumps({'pos_counts': [2, 4, 1], 'num_samples': 8}))
    return str(path)


@pytest.mark.parametrize('row', FLAGS, ids=lambda row: row['flags'])
def test_every_flag_of_timm_is_there_with_its_meaning(row):
    check_flag(build_parser(), row)


def test_a_compile_flag_without_backend_means_inductor():
    assert build_parser().parse_args(['--torchcompile']).torchcompile == 'inductor'


def test_help_shows_our_options_and_hides_those_only_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_train_options(['--help'])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert '--hnc-weight' in text
    assert not any(word in text for word in ('fuser', 'torchscript', 'local_rank', '==SUPPRESS==', '%('))


def test_defaults_pass_and_are_timms_and_ours():
    args, explicit = parse_train_options([])
    assert explicit == frozenset()
    plain = vars(build_parser().parse_args([]))
    assert vars(args) == {name: plain[name] for name in vars(args)} | {'filled_in': FOLLOWING}
    assert (args.hnc, args.hnc_weight, args.hnc_topk, args.hnc_alpha) == ('none', None, 100, 0.0)
    assert (args.hnc_reduction, args.cam_images, args.log_tensorboard) == ('sum', 8, False)
    assert (args.task, args.target_format, args.multilabel_threshold, args.loss) == ('classification', None, 0.5, None)


def test_loss_defaults_are_those_of_timms_factory():
    signature = inspect.signature(create_classification_loss).parameters
    args = build_parser().parse_args([])
    for name in (
        'asl_gamma_pos',
        'asl_gamma_neg',
        'asl_clip',
        'asl_reduction',
        'poly_epsilon',
        'poly_gamma',
        'poly_alpha',
    ):
        assert getattr(args, name) == signature[name].default
    assert (args.twoway_tp, args.twoway_tn) == (signature['twoway_tp'].default, signature['twoway_tn'].default)


FOLLOWING = ['eval_metric', 'hnc_weight', 'smoothing', 'val_split']


@pytest.mark.parametrize(
    ('first', 'then', 'expected'),
    [
        ('--hnc mse', '--hnc kd', {'hnc_weight': 0.0065}),
        ('--hnc mse --hnc-weight 0.0007', '--hnc kd', {'hnc_weight': 0.0007}),
        ('--hnc mse', '--hnc kd --hnc-weight 0.0007', {'hnc_weight': 0.0007}),
        ('--hnc mse', '--hnc none', {'hnc_weight': None}),
        ('--hnc none', '--hnc var', {'hnc_weight': 0.0007}),
        ('', '--loss focal', {'smoothing': 0.0}),
        ('--smoothing 0.1', '--loss focal', {'smoothing': 0.1}),
        ('--loss focal', '--loss ce', {'smoothing': 0.1}),
        ('', '--task multilabel', {'smoothing': 0.0, 'eval_metric': 'map'}),
        ('--eval-metric loss', '--task multilabel', {'eval_metric': 'loss'}),
        ('--holdout 0.1', '--holdout 0', {'val_split': 'validation'}),
    ],
)
def test_what_follows_from_another_option_follows_it_again(first, then, expected, tmp_path):
    run = options_of(first.split())
    again, _ = parse_train_options(['-c', config(tmp_path, **flattened(run)), *then.split()])
    assert {name: getattr(again, name) for name in expected} == expected
    third, _ = parse_train_options(['-c', config(tmp_path, **vars(again))])
    assert third == again, 'args.yaml repeats the run'
    words = then.replace('--', '').replace('-', '_').split()
    kinds = {'holdout': float, 'hnc_weight': float}
    values = {name: kinds.get(name, str)(value) for name, value in zip(words[::2], words[1::2], strict=True)}
    other = flattened(run.changed(**values))
    assert {name: other[name] for name in expected} == expected


def test_groups_made_one_by_one_follow_too():
    options = TrainOptions(hnc=HNCOptions('mse'), loss=LossOptions(smoothing=0.3))
    other = options.changed(hnc='kd', loss='focal')
    assert (other.hnc.hnc_weight, other.loss.smoothing) == (0.0065, 0.3)


@pytest.mark.parametrize(
    ('argv', 'summed'),
    [
        ('', False),
        ('--bce-sum', True),
        ('--loss asl', True),
        ('--loss asl --asl-reduction mean', False),
        ('--loss poly', False),
        ('--loss weighted-sigmoid', False),
        ('--loss weighted-sigmoid --loss-kwargs reduction=sum', True),
        ('--loss attention-consistency', True),
    ],
)
def test_criteria_of_several_labels_that_are_a_sum_over_the_classes(argv, summed):
    options = options_of(['--task', 'multilabel', *argv.split()]).loss
    assert options.sums_over_classes == summed
    logits, target = torch.randn(4, 5), torch.randint(0, 2, (4, 5)).float()

    more = options.loss_kwargs | ({'multi_label': True} if options.loss == 'attention-consistency' else {})

    def loss(classes):
        repeated = [each.repeat(1, classes // 5) for each in (logits, target)]
        if options.kind is None:
            return create_classification_loss(multi_label=True, **timm_criterion_kwargs(options))(*repeated)
        criterion = options.kind(class_counts=torch.full((classes,), 2), num_samples=4, **more)
        return getattr(criterion, 'criterion', criterion)(*repeated)

    torch.testing.assert_close(loss(10), loss(5) * (2 if summed else 1))


def test_another_value_written_into_args_yaml_counts(tmp_path):
    run = flattened(options_of(['--hnc', 'mse']))
    again, explicit = parse_train_options(['-c', config(tmp_path, **run | {'hnc_weight': 0.01}), '--hnc', 'kd'])
    assert again.hnc_weight == 0.01
    assert 'hnc_weight' in explicit


def test_args_yaml_of_before_gives_all_its_values(tmp_path):
    run = flattened(options_of(['--hnc', 'mse']))
    del run['filled_in']
    assert parse_train_options(['-c', config(tmp_path, **run), '--hnc', 'kd'])[0].hnc_weight == 0.0007


TIMM_COMMANDS = {
    'randaugment': '/data/imagenet --model efficientnet_b2 -b 128 --sched step --epochs 450 --decay-epochs 2.4 '
    '--decay-rate .97 --opt rmsproptf --opt-eps .001 -j 8 --warmup-lr 1e-6 --weight-decay 1e-5 --drop 0.3 '
    '--drop-path 0.2 --model-ema --model-ema-decay 0.9999 --aa rand-m9-mstd0.5 --remode pixel --reprob 0.2 --amp '
    '--lr .016',
    'bce': '/data/imagenet --model resnet50 --bce-loss --bce-target-thresh 0.2 --mixup 0.1 --cutmix 1.0 --smoothing 0 '
    '--opt lamb --lr 5e-3 --weight-decay 0.01 -b 256 --drop-path 0.05 --aa rand-m7-mstd0.5-inc1 --amp --crop-pct 0.95',
    'deit': '--data-dir /data --model vit_base_patch16_224 --opt adamw --lr-base 1e-3 --lr-base-size 512 --layer-decay '
    '0.75 --mixup .8 --cutmix 1. --sched-on-updates --grad-accum-steps 4 --clip-grad 1 --model-kwargs init_values=1e-5 '
    'dynamic_img_size=True --amp --amp-dtype bfloat16 --torchcompile --warmup-epochs 20 --min-lr 1e-6',
    'jsd': '/data --model resnet50 --aug-splits 3 --split-bn --jsd-loss --aa augmix-m5-w4-d2 --resplit',
    'sizes': '/data --train-img-sizes 128 160 224 --train-batch-sizes 256 192 128 --train-size-schedule progressive '
    '--variable-batch-loss-scale sqrt --train-steps-per-epoch 500',
    'hub': '--dataset hfds/timm/mini-imagenet --num-classes 100 --in-chans 1 --input-size 1 64 64 --mean .5 --std .25 '
    '--sched wsd --decay-epochs .2 --lr-decay-fn linear --resume auto --experiment x --save-epochs 10 20 '
    '--opt lookahead_adam --lr 1e-3 --dr .5 -vb 64',
    'multilabel': '--task multilabel --dataset hfds/x --target-key labels --num-classes 6 --loss asl --mixup 0.4 '
    '--smoothing 0.1 --eval-metric macro_f1 --model-ema',
    'milestones': '/data --sched multistep --decay-milestones 100 150 --clip-mode agc --clip-grad .01 --val-split "" '
    '--no-aug --use-multi-epochs-loader --no-prefetcher',
}


@pytest.mark.parametrize('command', TIMM_COMMANDS.values(), ids=TIMM_COMMANDS.keys())
def test_command_lines_written_for_timm_pass_and_come_back_from_args_yaml(command, tmp_path):
    argv = [word.strip('"') for word in command.split()]
    args, explicit = parse_train_options(argv)
    plain = vars(build_parser().parse_args(argv))
    filled_in = {'data_dir', 'smoothing', 'eval_metric', 'loss', 'loss_pos_weight', 'grad_accum_steps', 'filled_in'}
    assert {key: value for key, value in vars(args).items() if plain[key] != value}.keys() <= filled_in
    assert explicit
    again, _ = parse_train_options(['-c', config(tmp_path, **vars(args))])
    assert vars(again) == vars(args)


def test_null_switches_off_what_it_does_for_timm(tmp_path):
    options, explicit = parse_train_options(['-c', config(tmp_path, color_jitter=None, smoothing=None)])
    assert (options.color_jitter, options.smoothing) == (0.0, 0.0)
    assert {'color_jitter', 'smoothing'} <= explicit


def test_args_yaml_of_timm_passes_with_its_defaults_of_unsupported_options(tmp_path):
    values = vars(build_parser().parse_args(['/data', '--lr', '0.1']))
    args, _ = parse_train_options(['-c', config(tmp_path, **values)])
    assert (args.lr, args.data_dir, args.hnc) == (0.1, '/data', 'none')


@pytest.mark.parametrize(
    ('argv', 'expected'),
    [
        (['/data'], {'data_dir': '/data'}),
        (['/data', '--data-dir', '/other'], {'data_dir': '/other'}),
        (['--hnc', 'mse'], {'hnc_weight': 0.0007}),
        (['--hnc', 'kd'], {'hnc_weight': 0.0065}),
        (['--hnc', 'var'], {'hnc_weight': 0.0007}),
        (['--hnc', 'logit'], {'hnc_weight': 0.0007}),
        (['--hnc', 'kd', '--hnc-weight', 'auto'], {'hnc_weight': 'auto:0.03'}),
        (['--hnc', 'kd', '--hnc-weight', 'auto:2'], {'hnc_weight': 'auto:2'}),
        (['--hnc', 'kd', '--hnc-weight', '0'], {'hnc_weight': 0.0}),
        (['--map-loss', 'separability', 'consistency=0.25'], {'map_loss': ['separability=1', 'consistency=0.25']}),
        (['--map-loss'], {'map_loss': []}),
        (['--bce-loss'], {'loss': 'bce'}),
        (['--bce-loss', '--loss', 'bce'], {'loss': 'bce'}),
        (['--jsd-loss', '--aug-splits', '3'], {'loss': 'jsd'}),
        (['--bce-loss', '--bce-pos-weight', '2'], {'loss_pos_weight': '2.0'}),
        (['--task', 'multilabel'], {'smoothing': 0.0, 'eval_metric': 'map', 'loss': None}),
        (['--task', 'multilabel', '--smoothing', '0.1'], {'smoothing': 0.1}),
        (['--task', 'multilabel', '--eval-metric', 'micro_f1'], {'eval_metric': 'micro_f1'}),
        (['--grad-accum-steps', '0'], {'grad_accum_steps': 1}),
        (['--smoothing', '0'], {'smoothing': 0.0}),
    ],
)
def test_options_that_depend_on_others_are_filled_in(argv, expected):
    args, _ = parse_train_options(argv)
    assert {key: getattr(args, key) for key in expected} == expected


@pytest.mark.parametrize(
    ('of_the_file', 'argv', 'expected'),
    [
        ({'data': 'a', 'data_dir': 'a'}, ['b'], {'data_dir': 'b'}),
        ({'data': 'a', 'data_dir': 'a'}, ['b', '--data-dir', 'c'], {'data_dir': 'c'}),
        ({'data': 'a', 'data_dir': 'a'}, ['--data-dir', 'c'], {'data_dir': 'c'}),
        ({'data': 'a'}, [], {'data_dir': 'a'}),
        ({'bce_loss': True, 'loss': 'bce'}, ['--loss', 'ce'], {'loss': 'ce'}),
        ({'loss': 'focal'}, ['--bce-loss'], {'loss': 'bce'}),
        ({'bce_loss': True, 'aug_splits': 3}, ['--jsd-loss'], {'loss': 'jsd'}),
        ({'drop_path': 0.1}, ['--drop-connect', '0.3'], {'drop_path': 0.3}),
        ({'loss': 'bce', 'loss_pos_weight': '2.0'}, ['--bce-pos-weight', '3'], {'loss_pos_weight': '3.0'}),
        (
            {'bce_loss': True, 'bce_pos_weight': 2.0, 'loss_pos_weight': '2.0'},
            ['--loss-pos-weight', '3'],
            {'loss': 'bce', 'loss_pos_weight': '3'},
        ),
    ],
)
def test_the_command_line_wins_over_older_spellings_of_a_file(of_the_file, argv, expected, tmp_path):
    args, _ = parse_train_options(['-c', config(tmp_path, **of_the_file), *argv])
    assert {key: getattr(args, key) for key in expected} == expected


def test_hnc_of_a_recipe_can_be_switched_off_on_the_command_line(tmp_path):
    recipe = config(tmp_path, hnc='mse', hnc_weight=0.001, hnc_topk=10)
    args, explicit = parse_train_options(['-c', recipe, '--hnc', 'none'])
    assert (args.hnc, args.hnc_weight, args.hnc_topk) == ('none', None, 100)
    assert 'hnc_weight' not in explicit
    with pytest.raises(UsageError, match='--hnc-topk 5: does nothing'):
        parse_train_options(['-c', recipe, '--hnc', 'none', '--hnc-topk', '5'])
    with pytest.raises(UsageError, match='does nothing without --hnc'):
        parse_train_options(['-c', config(tmp_path, hnc='none', hnc_weight=0.001)])


@pytest.mark.parametrize(
    ('argv', 'advice'),
    [
        (['--torchscript'], '--torchscript: use --torchcompile'),
        (['--torchcompile', '--torchscript'], '--torchscript: use --torchcompile'),
        (['--fuser', 'te'], '--fuser: use --torchcompile'),
        (['--local_rank', '1'], '--local_rank: leave it out'),
    ],
)
def test_unsupported_options_say_what_to_use(argv, advice):
    with pytest.raises(UsageError) as error:
        parse_train_options(argv)
    assert advice in str(error.value)


MULTILABEL = ['--task', 'multilabel']
REFUSED = [
    ('--lr-cycle-mul 0', '--lr-cycle-mul 0.0: expected more than 0.'),
    ('--lr-noise 0 1 --lr-noise-pct 0', '--lr-noise-pct 0.0: expected more than 0.'),
    ('--tta 2', '--tta 2: no loader makes copies of an image'),
    (
        '--naflex-loader --img-size 32',
        '--img-size 32: not together with --naflex-loader, where images keep their shape',
    ),
    ('--naflex-loader --input-size 3 32 32', '--input-size 3 32 32: not together with --naflex-loader'),
    ('--naflex-loader --train-img-sizes 32 64', '--train-img-sizes 32 64: not together with --naflex-loader'),
    ('--naflex-loader --dataset wds/x', '--dataset wds/x: not together with --naflex-loader'),
    ('--naflex-loader --aug-splits 2', '--aug-splits 2: not together with --naflex-loader'),
    ('--naflex-loader --train-crop-mode pad', '--train-crop-mode pad: not together with --naflex-loader'),
    ('--naflex-loader --use-multi-epochs-loader', '--use-multi-epochs-loader: not together with --naflex-loader'),
    ('--naflex-loader --cutmix-minmax 0.2 0.8', '--cutmix-minmax 0.2 0.8: not together with --naflex-loader'),
    ('--naflex-loader --mixup 1 --mixup-mode elem', '--mixup-mode elem: not together with --naflex-loader'),
    ('--naflex-loader --kd-model-name resnet18', '--kd-model-name resnet18: not together with --naflex-loader'),
    ('--naflex-loader --map-loss consistency', '--map-loss consistency: not together with --naflex-loader'),
    ('--naflex-loader --map-loss energy --boxes-dir x', '--map-loss energy: not together with --naflex-loader'),
    ('--naflex-loader --loss attention-consistency', '--loss attention-consistency: not together with --naflex-loader'),
    ('--naflex-loader --save-images', '--save-images: not together with --naflex-loader'),
    ('--naflex-train-seq-lens 0', '--naflex-train-seq-lens 0: expected 1 or more'),
    ('--naflex-train-seq-lens 64 -1', '--naflex-train-seq-lens -1: expected 1 or more'),
    ('--naflex-max-seq-len 0', '--naflex-max-seq-len 0: expected 1 or more'),
    ('--naflex-patch-sizes 0', '--naflex-patch-sizes 0: expected 1 or more'),
    (
        '--naflex-patch-sizes 8 16 --naflex-patch-size-probs 1',
        '--naflex-patch-size-probs: 1 values for 2 --naflex-patch',
    ),
    ('--naflex-patch-sizes 8 --naflex-patch-size-probs 0', '--naflex-patch-size-probs: expected one above 0'),
    ('--naflex-patch-sizes 8 --naflex-patch-size-probs -1', '--naflex-patch-size-probs -1.0: expected 0 or more'),
    ('--hnc mse --hnc-topk 0', '--hnc-topk 0: expected 1 or more'),
    ('--hnc mse --hnc-weight -1', '--hnc-weight -1.0: expected 0 or more'),
    ('--hnc mse --hnc-weight nan', '--hnc-weight nan'),
    ('--hnc kd --hnc-weight inf', '--hnc-weight inf'),
    ('--hnc mse --hnc-alpha nan', '--hnc-alpha nan: expected a finite number'),
    ('--hnc-weight 0.001', '--hnc-weight 0.001: does nothing without --hnc.'),
    ('--loss focal --bce-sum', "--bce-sum: does nothing without a loss of timm's in place of --loss focal."),
    ('--loss focal --loss-class-weight inv_freq', '--loss-class-weight inv_freq: does nothing without'),
    ('--loss focal --asl-clip 0.1', '--asl-clip 0.1: does nothing without'),
    ('--loss focal --class-stats x.json', '--class-stats x.json: does nothing without a loss in place of --loss focal'),
    (
        '--hnc mse --hnc-weight auto:0',
        '--hnc-weight auto:0: expected a number, auto, auto:SHARE or follow:SHARE',
    ),
    ('--hnc mse --hnc-weight auto:x', '--hnc-weight auto:x: expected a number, auto'),
    ('--hnc mse --hnc-weight auto:-1', '--hnc-weight auto:-1: expected'),
    ('--hnc mse --hnc-weight auto:', '--hnc-weight auto:: expected'),
    ('--hnc kd --hnc-alpha 1', '--hnc-alpha 1: does nothing with --hnc kd'),
    ('--hnc mse --hnc-weight auto:nan', '--hnc-weight auto:nan: expected'),
    ('--hnc mse --hnc-weight follow:0', '--hnc-weight follow:0: expected'),
    ('--hnc mse --hnc-weight automatic', '--hnc-weight automatic: expected a number, auto'),
    ('--hnc-weight auto', '--hnc-weight auto:0.03: does nothing without --hnc.'),
    ('--hnc mse --hnc-weight auto --loss center', '--hnc-weight auto:0.03: --loss center is no function of logits'),
    (
        '--map-loss overlap',
        '--map-loss overlap: expected one of energy, outside, target-maps, separability, consistency, teacher.',
    ),
    ('--map-loss separability=x', '--map-loss separability=x: expected a weight of 0 or more behind the =.'),
    ('--map-loss separability=', '--map-loss separability=: expected a weight'),
    ('--map-loss separability=-1', '--map-loss separability=-1: expected a weight'),
    ('--map-loss separability=nan', '--map-loss separability=nan: expected a weight'),
    ('--map-loss consistency consistency=2', '--map-loss consistency=2: consistency is given twice.'),
    ('--map-loss consistency --aug-splits 2', '--map-loss consistency: not together with --aug-splits.'),
    ('--loss attention-consistency --aug-splits 2', '--loss attention-consistency: not together with --aug-splits.'),
    ('--map-loss consistency --resplit --split-bn', '--map-loss consistency: not together with --split-bn.'),
    (
        '--mixup 1 --mixup-mode half --data-in-memory --train-crop-mode pad --color-jitter 0',
        '--mixup-mode half: not together with --data-in-memory',
    ),
    ('--hnc-topk 5', '--hnc-topk 5: does nothing'),
    ('--hnc-start-epoch 5', '--hnc-start-epoch 5: does nothing'),
    ('--hnc mse --hnc-start-epoch -1', '--hnc-start-epoch -1: expected 0 or more'),
    ('--hnc-alpha 1', '--hnc-alpha 1.0: does nothing'),
    ('--hnc-reduction mean', '--hnc-reduction mean: does nothing'),
    ('--smoothing 1', '--smoothing 1.0: expected 0 or more and less than 1'),
    ('--smoothing -0.1', '--smoothing -0.1'),
    ('--smoothing nan', '--smoothing nan'),
    ('-b 0', '--batch-size 0: expected 1 or more'),
    ('-vb 0', '--validation-batch-size 0'),
    ('-b 7 --mixup 0.2', '--batch-size 7: --mixup and --cutmix mix pairs'),
    ('-b 7 --cutmix-minmax 0.2 0.8', '--batch-size 7'),
    ('--cutmix 1 --train-img-sizes 32 64 --train-batch-sizes 8 7', '--train-batch-sizes 7: --mixup'),
    ('--cutmix-minmax 0.2', '--cutmix-minmax: 1 values, expected 2'),
    ('--cutmix-minmax 0.8 0.2', '--cutmix-minmax 0.8 0.2: expected the smallest and the largest'),
    ('--cutmix-minmax 0.5 2', '--cutmix-minmax 0.5 2.0: expected the smallest and the largest'),
    ('--mixup -1', '--mixup -1.0'),
    ('--mixup 1 --mixup-prob 2', '--mixup-prob 2.0: expected 0 or more and 1 or less'),
    ('--mixup-mode all', "--mixup-mode 'all': expected one of batch, pair, elem"),
    ('--epochs 0', '--epochs 0: expected 1 or more'),
    ('--stop-epoch 0', '--stop-epoch 0'),
    ('--start-epoch -1', '--start-epoch -1'),
    ('--save-epochs 3 0', '--save-epochs 0'),
    ('--lr -0.1', '--lr -0.1: expected 0 or more'),
    ('--lr nan', '--lr nan'),
    ('--lr inf', '--lr inf'),
    ('--weight-decay -1', '--weight-decay -1.0'),
    ('--clip-grad nan', '--clip-grad nan'),
    ('--lr-base-size 0', '--lr-base-size 0'),
    ('--lr-base-scale cubic', "--lr-base-scale 'cubic': expected one of linear, sqrt"),
    ('-j -1', '--workers -1: expected 0 or more'),
    ('--seed -1', '--seed -1: expected 0 or more'),
    ('--amp-dtype fp16', "--amp-dtype 'fp16': expected one of float16, bfloat16"),
    ('--model-dtype half', "--model-dtype 'half': expected one of float32, float16, bfloat16, float64"),
    ('--amp --model-dtype bfloat16', '--model-dtype bfloat16: --amp needs a float32 model'),
    ('--amp --model-dtype float64', '--model-dtype float64: --amp needs a float32 model'),
    ('--clip-mode max', "--clip-mode 'max': expected one of norm, value, agc"),
    ('--train-crop-mode center', "--train-crop-mode 'center': expected one of rrc, rkrc, rkrr, pad"),
    ('--worker-seeding none', "--worker-seeding 'none': expected one of all, part"),
    ('--remode black', "--remode 'black'"),
    ('--dist-bn mean', "--dist-bn 'mean': expected one of broadcast, reduce"),
    ('--sched sine', "--sched sine: Unknown scheduler 'sine'. Expected one of cosine"),
    ('--sched wsd --epochs 10 --decay-epochs 20', '--sched wsd: wsd schedule requires'),
    ('--sched wsd --decay-epochs .2 --lr-decay-fn bump', 'Invalid decay_fn (bump)'),
    ('--sched plateau --sched-on-updates', '--sched-on-updates: not together with --sched plateau'),
    ('--sched multistep --decay-milestones 9 3', 'expected increasing epochs'),
    ('--lr-noise .1 .2 .3', '--lr-noise: 3 values, expected 1 or 2'),
    ('--opt adamwx', "--opt adamwx: timm knows no optimizer 'adamwx'"),
    ('--jsd-loss', '--loss jsd: needs --aug-splits of 2 or more, got 0'),
    ('--aug-splits 1', '--aug-splits 1: expected 0, or 2 and more'),
    ('--aug-splits -2', '--aug-splits -2'),
    ('--aug-splits 2 --mixup 0.1', '--aug-splits 2: not together with --mixup'),
    ('--aug-splits 2 --train-img-sizes 32 64', '--aug-splits 2: not together with --train-img-sizes'),
    ('--mixup .2 --mixup-off-epoch 3 --use-multi-epochs-loader', 'not together with --mixup-off-epoch'),
    ('--task multilabel --aug-splits 2', '--aug-splits 2: for --task classification only'),
    ('--split-bn', '--split-bn: needs --aug-splits'),
    ('--aug-repeats 3', '--aug-repeats 3: for several processes only'),
    ('--jsd-loss --bce-loss', '--jsd-loss: contradicts the loss bce'),
    ('--bce-loss --loss asl', '--bce-loss: contradicts the loss asl'),
    ('--bce-loss --bce-pos-weight 2 --loss-pos-weight 3', '--bce-pos-weight 2.0: contradicts --loss-pos-weight 3'),
    ('--bce-pos-weight 2', '--loss ce with --task classification: Class and positive weights'),
    ('--bce-sum', '--loss ce with --task classification: BCE target threshold'),
    ('--loss zlpr', "--loss zlpr with --task classification: Loss type 'zlpr' requires multi-label targets"),
    ('--task multilabel --loss ce', "--loss ce with --task multilabel: Loss type 'ce' does not support"),
    ('--task multilabel --loss twoway --mixup .5', '--loss twoway with --task multilabel: Loss type'),
    ('--task multilabel --loss zlpr --smoothing .1', '--loss zlpr'),
    ('--task multilabel --loss zlpr --loss-pos-weight 2', 'Class and positive weights'),
    ('--task multilabel --loss twoway --twoway-tp 0', '--twoway-tp 0.0: expected more than 0'),
    ('--task multilabel --loss poly --poly-alpha 2', '--poly-alpha 2.0: expected 0 or more and 1 or less'),
    ('--loss poly --poly-gamma 2', 'Poly gamma and alpha only apply'),
    ('--loss asl --cutmix 1', 'Single-label ASL requires class index targets'),
    ('--loss asl --asl-clip nan', '--asl-clip nan'),
    ('--task multilabel --loss db', '--loss db: needs --class-stats'),
    ('--loss bce --class-stats missing.json', '--class-stats missing.json: '),
    ('--loss bce --loss-class-weight missing.json', '--loss-class-weight missing.json: could not convert'),
    ('--loss bce --loss-pos-weight neg_pos', '--loss-pos-weight neg_pos: Class weight method'),
    ('--loss bce --loss-pos-weight -1', '--loss-pos-weight -1: Loss weights must be finite'),
    ('--loss bce --loss-class-weight 1,2,3 --num-classes 6', '--loss-class-weight 1,2,3: 3 values for --num-classes 6'),
    ('--target-format multihot', '--target-format multihot: for --task multilabel only'),
    ('--target-key a,b', '--target-key a,b: several fields are for --task multilabel only'),
    ('--task multilabel --target-key a,a', 'must list unique'),
    ('--task multilabel --target-key a,b --target-format multihot', '--target-key a,b: Multi-field target keys'),
    ('--multilabel-threshold 1', '--multilabel-threshold 1.0: expected more than 0 and less than 1'),
    ('--eval-metric map', '--eval-metric map: expected one of loss, top1, top5'),
    ('--task multilabel --eval-metric top1', '--eval-metric top1: expected one of loss, map, micro_f1'),
    ('--resume auto', '--resume auto: needs --experiment'),
    ('--wandb-resume-id x', '--wandb-resume-id x: needs --resume'),
    ('--mean 0.5 0.5', '--mean: 2 values for 3 channels, expected 1 or 3'),
    ('--in-chans 1 --std 1 1 1', '--std: 3 values for 1 channels'),
    ('--mean nan', '--mean nan'),
    ('--std 0', '--std 0.0: expected more than 0'),
    ('--input-size 3 0 32', '--input-size 0: expected 1 or more'),
    ('--input-size 1 32 32 --in-chans 3', '--in-chans 3: --input-size 1 32 32 has 1'),
    ('--img-size 0', '--img-size 0'),
    ('--num-classes 0', '--num-classes 0: expected 1 or more'),
    ('--crop-pct -1', '--crop-pct -1.0'),
    ('--cam-images -1', '--cam-images -1: expected 0 or more'),
    ('--checkpoint-hist 0', '--checkpoint-hist 0'),
    ('--val-interval 0', '--val-interval 0'),
    ('--log-interval 0', '--log-interval 0'),
    ('--recovery-interval -1', '--recovery-interval -1'),
    ('--model-ema-decay 2', '--model-ema-decay 2.0'),
    ('--use-multi-epochs-loader --train-img-sizes 32 64', '--use-multi-epochs-loader: not together'),
    ('--train-img-sizes 32 0', '--train-img-sizes 0'),
    ('--train-img-sizes 32 64 --train-batch-sizes 8', '--train-batch-sizes: 1 values for 2 --train-img-sizes'),
    ('--train-size-probs 1', '--train-size-probs: 1 values for 0 --train-img-sizes'),
    ('--train-img-sizes 32 64 --train-size-probs 0 0', '--train-size-probs: expected one above 0'),
    ('--train-size-schedule progressive', 'progressive: needs 2 or more --train-img-sizes'),
    ('--train-batches-per-epoch 0', '--train-batches-per-epoch 0'),
]


@pytest.mark.parametrize(('command', 'fragment'), REFUSED, ids=[command for command, _ in REFUSED])
def test_options_that_cannot_work_are_refused_in_one_line(command, fragment):
    with pytest.raises(UsageError) as error:
        parse_train_options(command.split())
    assert fragment in str(error.value)
    assert '\n' not in str(error.value)
    assert '..' not in str(error.value)


def test_options_for_several_processes(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert parse_train_options(['--aug-repeats', '3'])[0].aug_repeats == 3
    with pytest.raises(UsageError, match='--split-bn: not together with --sync-bn'):
        parse_train_options(['--split-bn', '--resplit', '--sync-bn'])


@pytest.mark.parametrize('name', ['--loss', '--task', '--hnc'])
def test_unknown_names_are_refused_by_argparse_with_the_known_ones(name, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_train_options([name, 'nope'])
    assert stop.value.code == 2
    forms = ('none', 'mse', 'kd', 'var', 'logit')
    known = {'--loss': LOSS_TYPES, '--task': ('classification', 'multilabel'), '--hnc': forms}[name]
    line = capsys.readouterr().err
    assert all(word in line for word in known)


def test_class_statistics_become_weights_and_counts(stats):
    base = [*MULTILABEL, '--class-stats', stats, '--num-classes', '3']
    kwargs = timm_criterion_kwargs(options_of([*base, '--loss', 'db']).loss)
    assert (kwargs['class_counts'].tolist(), kwargs['num_samples']) == ([2, 4, 1], 8)
    weights = ['--loss-pos-weight', 'neg_pos', '--loss-weight-power', '0.5', '--loss-class-weight', 'inv_freq']
    kwargs = timm_criterion_kwargs(options_of([*base, *weights]).loss)
    torch.testing.assert_close(kwargs['pos_weight'], torch.tensor([3.0, 1.0, 7.0]).sqrt())
    frequency = torch.tensor([4.0, 2.0, 8.0]).sqrt()
    torch.testing.assert_close(kwargs['class_weight'], frequency / frequency.mean())
    for wrong in (['--loss-pos-weight', 'inv_freq'], ['--loss', 'db', '--num-classes', '4']):
        with pytest.raises(UsageError, match=r'inv_freq|3 values for --num-classes 4'):
            parse_train_options([*base, *wrong])


@pytest.mark.parametrize(
    'content', ['', '[]', '{"pos_counts": [9], "num_samples": 2}', '{"pos_counts": [1], "num_samples": []}']
)
def test_unusable_class_statistics_are_refused_by_name(tmp_path, content):
    path = tmp_path / 'bad.json'
    path.write_text(content)
    with pytest.raises(UsageError, match=r'--class-stats .*bad\.json: '):
        parse_train_options([*MULTILABEL, '--loss', 'db', '--class-stats', str(path)])


@pytest.mark.parametrize(
    ('command', 'criterion'),
    [
        ('--smoothing 0', 'CrossEntropyLoss'),
        ('', 'LabelSmoothingCrossEntropy'),
        ('--mixup 0.2', 'SoftTargetCrossEntropy'),
        ('--bce-loss --bce-sum --bce-target-thresh 0.2 --cutmix 1', 'BinaryCrossEntropy'),
        ('--jsd-loss --aug-splits 3', 'JsdCrossEntropy'),
        ('--loss asl', 'AsymmetricLossSingleLabel'),
        ('--loss poly', 'PolyCrossEntropy'),
        ('--task multilabel', 'BinaryCrossEntropy'),
        ('--task multilabel --loss asl --loss-pos-weight 2', 'AsymmetricLossMultiLabel'),
        ('--task multilabel --loss twoway', 'TwoWayLoss'),
    ],
)
def test_loss_arguments_make_timms_criterion(command, criterion):
    options = options_of(command.split())
    kwargs = timm_criterion_kwargs(options.loss, options.mixup.active, options.augmentation.aug_splits)
    loss = create_classification_loss(multi_label=options.task.multi_label, **kwargs)
    assert type(loss).__name__ == criterion


def test_mixup_is_active_with_any_of_its_three_switches():
    assert not options_of([]).mixup.active
    for argv in (['--mixup', '0.1'], ['--cutmix', '0.1'], ['--cutmix-minmax', '0.1', '0.5']):
        assert options_of(argv).mixup.active
