"""train.py from end to end: the run folder, and what each kind of data and each option makes of it."""

import importlib.metadata
import json
import shlex

import pytest
import timm
import torch
from PIL import Image
from running import (
    NARROW,
    ROOT,
    SMALL,
    arguments,
    best_weights,
    checkpoints,
    contents,
    equal_tensors,
    result,
    result_of,
    run_script,
    summary,
    train,
    training_state,
    validate,
)
from timm.models import load_state_dict

import timm_hnc
from timm_hnc.commands.options.train_flags import build_parser
from timm_hnc.errors import UsageError


def run(tmp_path, images, *argv, name='run'):
    return train('--data-dir', images, *SMALL, '--output', tmp_path, '--experiment', name, *argv)


def test_a_run_folder_holds_what_the_contract_says(images, tmp_path, monkeypatch, capsys):
    def version(name, original=importlib.metadata.version):
        assert name != 'timm_hnc', 'a clone that is not installed has no metadata'
        return original(name)

    monkeypatch.setattr(importlib.metadata, 'version', version)
    monkeypatch.setattr('timm_hnc.training.outputs.results.version', version)
    folder = run(tmp_path, images, *shlex.split('--epochs 3 --hnc mse --lr 0.1 --warmup-epochs 0 --cam-images 8'))
    assert {path.name for path in folder.iterdir()} == {
        *('args.yaml', 'summary.csv', 'checkpoints', 'last', 'model_best', 'cams', 'result.json')
    }
    assert checkpoints(folder) == {'epoch-0', 'epoch-1', 'epoch-2'}
    rows = summary(folder)
    assert list(rows[0]) == [
        *('epoch', 'train_loss', 'train_criterion', 'train_hnc', 'eval_loss', 'eval_top1', 'eval_top5', 'lr')
    ]
    assert [row['epoch'] for row in rows] == [0, 1, 2]
    for row in rows:
        assert row['train_loss'] == pytest.approx(row['train_criterion'] + 0.0007 * row['train_hnc'], rel=1e-6)

    assert (folder / 'last').readlink().as_posix() == 'checkpoints/epoch-2'
    best = max(rows, key=lambda row: row['eval_top1'])
    assert (folder / 'model_best').readlink().as_posix() == f'checkpoints/epoch-{best["epoch"]:.0f}/model'
    assert {path.name for path in (folder / 'model_best').iterdir()} == {'config.json', 'model.safetensors'}

    figures = result(folder)
    assert set(figures) == {
        *('model', 'best_checkpoint', 'best_metric', 'final', 'train', 'epochs', 'seconds'),
        *('skipped_images', 'skipped_updates'),
        *('versions', 'device', 'num_processes', 'precision', 'command'),
    }
    assert figures['final'] == pytest.approx({name: best[f'eval_{name}'] for name in ('loss', 'top1', 'top5')})
    assert figures['best_metric'] == {'top1': best['eval_top1']}
    assert (figures['device'], figures['num_processes'], figures['skipped_images']) == ('cpu', 1, 0)
    assert figures['versions']['timm'] == timm.__version__
    assert figures['versions']['timm_hnc'] == timm_hnc.__version__
    assert json.loads(capsys.readouterr().out.partition('--result\n')[2]) == figures

    picture = Image.open(folder / 'cams' / 'best.png')
    assert picture.width > 300
    assert len(picture.convert('RGB').resize((64, 64)).getcolors(64 * 64)) > 100
    config = json.loads((folder / 'model_best' / 'config.json').read_text())
    assert config['label_names'] == ['blue', 'green', 'red']
    assert config['hnc'] == {'variant': 'mse', 'weight': 0.0007, 'topk': 100, 'alpha': 0.0, 'reduction': 'sum'}
    assert set(arguments(folder)) == set(vars(build_parser().parse_args([])))


def test_model_best_is_a_model_of_plain_timm(images, tmp_path):
    folder = run(tmp_path, images, '--hnc', 'kd', '--epochs', 2)
    code = (
        'import sys, json, timm, torch\n'
        'for name in [name for name in sys.modules if name.startswith("timm_hnc")]:\n'
        '    sys.modules[name] = None\n'
        'model = timm.create_model(f"local-dir:{sys.argv[1]}", pretrained=True).eval()\n'
        'x = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)\n'
        'print("--result"); print(json.dumps({"logits": model(x).tolist(), "cfg": model.pretrained_cfg}))'
    )
    (tmp_path / 'plain.py').write_text(code)
    found = result_of(run_script(tmp_path / 'plain.py', folder / 'model_best', cwd=tmp_path))
    model = timm.create_model('test_resnet', num_classes=3, **NARROW)
    state = torch.load(folder / 'model_best' / '..' / 'training_state.pt', weights_only=True)
    model.load_state_dict(state['model'])
    x = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    assert torch.allclose(torch.tensor(found['logits']), model.eval()(x), atol=1e-5)
    assert found['cfg']['input_size'] == [3, 32, 32]
    assert found['cfg']['num_classes'] == 3


def test_args_yaml_repeats_the_run(images, tmp_path, monkeypatch):
    options = '--epochs 2 --mixup 0.3 --reprob 0.3 --aa rand-m5-mstd0.5 --hnc mse --drop 0.1 --opt adamw'
    first = run(tmp_path, images, *shlex.split(options))
    second = train('-c', first / 'args.yaml', '--output', tmp_path, '--experiment', 'other')
    assert (first / 'summary.csv').read_text() == (second / 'summary.csv').read_text()
    assert equal_tensors(best_weights(first), best_weights(second))
    changed = {key for key, value in arguments(first).items() if value != arguments(second)[key]}
    assert changed == {'experiment', 'config'}


DATA = {
    'folder': lambda get: ['--data-dir', get('images')],
    'positional folder': lambda get: [get('images')],
    'torch': lambda get: ['--dataset', 'torch/image_folder', '--data-dir', get('images')],
    'tar': lambda get: ['--data-dir', get('tar_files') / 'train.tar'],
    'wds': lambda get: ['--dataset', 'wds/squares', '--data-dir', get('shards')],
    'hfds': lambda get: get('parquet'),
    'hfids': lambda get: [
        *('--dataset', get('parquet')[1].replace('hfds/', 'hfids/'), *get('parquet')[2:]),
        *('--train-num-samples', 59, '--val-num-samples', 25),
    ],
}


@pytest.mark.parametrize(
    ('kind', 'workers'),
    [
        *[('folder', 2), ('positional folder', 0), ('torch', 0), ('tar', 2), ('hfds', 0)],
        *[('wds', 0), ('wds', 2), ('hfids', 0), ('hfids', 1)],  # one file, one worker
    ],
)
def test_every_kind_of_data_trains_and_is_evaluated_alike(kind, workers, request, tmp_path, images, capsys):
    options = [*DATA[kind](request.getfixturevalue), *SMALL, '--workers', workers, '--epochs', 2, '--cam-images', 1]
    folder = train(*options, '--output', tmp_path, '--experiment', 'run')
    figures = result(folder)
    assert len(summary(folder)) == 2
    assert (folder / 'cams' / 'best.png').is_file()
    assert figures['skipped_images'] == 0
    # the same weights on the same images, read from a folder and one by one
    root = images / 'train' if kind == 'tar' else images
    again = validate(capsys, root, '--checkpoint', folder, '--workers', 0, '--device', 'cpu', '-b', 1)
    assert figures['final'] == pytest.approx({name: again[name] for name in ('loss', 'top1', 'top5')}, abs=1e-4)


def test_a_weight_that_follows_settles_behind_the_warmup_and_is_published(images, tmp_path, caplog):
    options = ['--hnc', 'mse', '--hnc-weight', 'auto:0.5', '--epochs', 3, '--warmup-epochs', 1, '--lr', 0.05]
    folder = run(tmp_path, images, *options)
    weights = [row['train_hnc_weight'] for row in summary(folder)]
    assert len(set(weights)) == 3
    config = json.loads((folder / 'last' / 'model' / 'config.json').read_text())
    assert config['hnc']['weight'] == pytest.approx(weights[-1], rel=1e-6)
    assert arguments(folder)['hnc_weight'] == 'auto:0.5'
    lines = [each for each in caplog.messages if each.startswith('Weight of HNC: ')]
    assert [line.rpartition(', ')[2] for line in lines] == ['following.', 'settled.', 'settled.'], (
        'epoch 1 is the first after the warm-up'
    )
    assert f'{config["hnc"]["weight"]:.4g}' in lines[-1]


def test_a_stream_of_several_labels(multi_label, tmp_path, capsys):
    words = [word.replace('hfds/', 'hfids/') for word in multi_label]
    counts = ['--train-num-samples', 20, '--val-num-samples', 8]
    folder = train(*words, *SMALL, *counts, '--output', tmp_path, '--experiment', 'run')
    found = validate(capsys, *words, '--checkpoint', folder, '--workers', 0, '--device', 'cpu', '--num-samples', 8)
    assert found['map'] == pytest.approx(result(folder)['final']['map'], abs=1e-4)


def test_options_that_do_nothing_here_are_told(images, tmp_path, caplog):
    argv = [
        '--epoch-repeats',
        3,
        '--save-epochs',
        9,
        '--worker-seeding',
        'part',
        '--output',
        tmp_path,
        '--experiment',
        'run',
    ]
    train('--data-dir', images, *SMALL, *argv)
    told = ' '.join(record.getMessage() for record in caplog.records if record.levelname == 'WARNING')
    assert '--epoch-repeats 3: does nothing with data that are no stream' in told
    assert '--worker-seeding part: does nothing' in told
    assert '--save-epochs 9: the run ends after epoch 1.' in told


@pytest.mark.parametrize('task', ['images', 'multi_label'])
@pytest.mark.parametrize('hnc', ['none', 'mse', 'kd'])
def test_every_loss_on_one_label_and_on_several(task, hnc, request, tmp_path):
    data = request.getfixturevalue(task)
    data = data if isinstance(data, list) else ['--data-dir', data]
    folder = train(*data, *SMALL, '--hnc', hnc, '--cam-images', 1, '--output', tmp_path, '--experiment', 'run')
    [row] = summary(folder)
    metrics = ['loss', 'top1', 'top5']
    if task != 'images':
        table_4 = ['c_p', 'c_r', 'c_f1', 'o_p', 'o_r', 'o_f1']
        metrics = ['loss', 'map', 'micro_f1', 'macro_f1', 'sample_f1', *table_4, *(f'{name}_top3' for name in table_4)]
    parts = ['loss'] if hnc == 'none' else ['loss', 'criterion', 'hnc']
    names = ['epoch', *(f'train_{name}' for name in parts), *(f'eval_{name}' for name in metrics), 'lr']
    assert list(row) == names
    assert list(result(folder)['best_metric']) == ['top1' if task == 'images' else 'map']
    assert (folder / 'cams' / 'best.png').is_file()
    if hnc != 'none':
        weight = {'mse': 0.0007, 'kd': 0.0065}[hnc]
        assert row['train_hnc'] > 0
        assert row['train_loss'] == pytest.approx(row['train_criterion'] + weight * row['train_hnc'], rel=1e-6)


def test_losses_on_maps_are_added_to_the_criterion(images, tmp_path):
    folder = run(tmp_path, images, '--map-loss', 'separability=0.5', 'consistency', '--hnc', 'mse', '--lr', 0.05)
    [row] = summary(folder)
    parts = [f'train_{name}' for name in ('loss', 'criterion', 'hnc', 'separability', 'consistency')]
    assert list(row)[1:6] == parts
    loss, criterion, hnc, separability, consistency = (row[part] for part in parts)
    assert 0 < separability < 1
    assert consistency > 0
    expected = criterion + 0.0007 * hnc + 0.5 * separability + 0.6 * consistency
    assert loss == pytest.approx(expected, rel=1e-6)
    assert arguments(folder)['map_loss'] == ['separability=0.5', 'consistency=0.6']
    # without HNC, on a model whose maps are for pictures only
    argv = ['--data-dir', images, *SMALL, '--model', 'test_vit', '--model-kwargs', '--map-loss', 'separability']
    with pytest.raises(UsageError, match="--map-loss separability: no trainable class maps for 'test_vit'"):
        train(*argv)


OPTIONS = [
    '--mixup 0.4 --cutmix 1.0 --smoothing 0.1 --synchronize-step --pin-mem --hnc mse',
    '--mixup 0.4 --cutmix 1.0 --smoothing 0.1 --no-prefetcher --no-ddp-bb --dist-bn broadcast --hnc kd',
    '--cutmix-minmax 0.2 0.8 --mixup-mode elem --mixup-off-epoch 1 --sched step --decay-epochs 1 --warmup-epochs 0'
    ' --epochs 2 --min-lr 1e-4',
    '--reprob 0.5 --remode const --recount 2 --clip-grad 1.0 --train-crop-mode pad --hflip 0',
    '--reprob 0.5 --no-prefetcher --clip-grad 0.1 --clip-mode value --save-images --log-interval 3',
    '--aa rand-m9-mstd0.5-inc1 --vflip 0.5 --color-jitter-prob 0.5 --grayscale-prob 0.2 --gaussian-blur-prob 0.2',
    '--aa original --train-crop-mode rkrc --channels-last --hnc kd --drop 0.2 --drop-path 0.1',
    '--no-aug --clip-grad 0.02 --clip-mode agc --opt lookahead_adamw --gp max',
    '--train-crop-mode rkrr --model-ema --model-ema-decay 0.5 --model-ema-warmup',
    '--bce-loss --bce-target-thresh 0.2 --bce-sum --grad-checkpointing --fast-norm',
    '--loss poly --poly-epsilon 0.5 --hnc mse --amp --amp-dtype bfloat16',
    '--aug-splits 3 --jsd-loss --split-bn --aa augmix-m5-w4-d2 --resplit --reprob 0.3',
    '--aug-splits 2 --split-bn --hnc mse',
    '--grad-accum-steps 3 --hnc mse --model-ema --model-ema-force-cpu',
    '--model-dtype bfloat16 --train-interpolation bilinear -vb 5',
    '--layer-decay 0.7 --opt adamw --lr-base-scale sqrt --sched wsd --epochs 3 --decay-epochs 1 --warmup-epochs 1',
    '--opt adahessian',
    '--opt lamb --opt-betas 0.8 0.99 --opt-eps 1e-6 --sched-on-updates --epochs 2 --warmup-epochs 1 --in-chans 1',
    '--sched plateau --patience-epochs 0 --epochs 3 --warmup-epochs 0',
    '--train-img-sizes 24 32 --train-batch-sizes 10 6 --variable-batch-loss-scale linear --sched cosine'
    ' --cooldown-epochs 1 --warmup-prefix --warmup-epochs 1 --epochs 2',
    '--train-img-sizes 24 32 --train-crop-mode pad --hnc mse',
    '--epoch-repeats 2 --use-multi-epochs-loader --workers 1 --worker-seeding part --epochs 2',
    '--head-init-scale 0.1 --head-init-bias 0.5 --model test_efficientnet --model-kwargs --bn-momentum 0.2',
    '--input-size 3 32 48 --mean 0.5 --std 0.25 --crop-pct 0.9 --interpolation bicubic',
]


@pytest.mark.parametrize('options', OPTIONS)
def test_options_of_timms_script_train(options, images, tmp_path):
    words = shlex.split(options)
    small = list(SMALL)
    if '--input-size' in words:  # timm refuses another size beside it
        at = small.index('--img-size')
        del small[at : at + 2]
    output = ('--output', tmp_path, '--experiment', 'run')
    folder = train('--data-dir', images, *small, *words, *output)
    rows = summary(folder)
    assert rows
    assert result(folder)['final']['loss'] < 3
    model = timm.create_model(f'local-dir:{folder / "model_best"}', pretrained=True)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    before = timm.create_model(
        arguments(folder)['model'], num_classes=3, **arguments(folder)['model_kwargs']
    ).state_dict()
    assert model.state_dict().keys() == before.keys()


def test_multilabel_targets_as_vectors_with_mixup(multi_label, tmp_path):
    vectors = ['vector' if word == 'labels' else word for word in multi_label]
    options = ['--target-format', 'multihot', '--mixup', 0.5, '--smoothing', 0.1, '--hnc', 'mse', '--loss', 'asl']
    folder = train(*vectors, *SMALL, *options, '--output', tmp_path, '--experiment', 'run')
    plain = train(*multi_label, *SMALL, *options[2:], '--output', tmp_path, '--experiment', 'plain')
    assert summary(folder) == summary(plain)
    assert arguments(plain)['eval_metric'] == 'map'


def test_random_choices_follow_from_the_seed(images, tmp_path):
    rows = [
        summary(run(tmp_path, images, '--aa', 'rand-m9', '--seed', seed, '--workers', 2, name=f'{number}'))
        for number, seed in enumerate((1, 1, 2))
    ]
    assert rows[0] == rows[1] != rows[2]


def test_the_largest_seed_trains(images, tmp_path):
    argv = ('--data-dir', images, *SMALL, '--seed', 2**32 - 1, '--output', tmp_path, '--experiment', 'run')
    assert result(train(*argv))['epochs'] == 1


def test_model_best_holds_the_moving_average_where_that_scored(images, tmp_path):
    folder = run(tmp_path, images, '--model-ema', '--model-ema-decay', 0.9, '--lr', 0.1, '--epochs', 2)
    state = torch.load((folder / 'model_best').resolve().parent / 'training_state.pt', weights_only=True)
    assert equal_tensors(best_weights(folder), state['model_ema'])
    assert not equal_tensors(state['model'], state['model_ema'])
    cpu = run(tmp_path, images, '--model-ema', '--model-ema-force-cpu', '--epochs', 1, name='cpu')
    assert equal_tensors(best_weights(cpu), training_state(cpu)['model'])
    kept = (cpu / 'last').resolve() / 'training_state.pt'
    averaged = load_state_dict(str(kept), use_ema=True, weights_only=True)
    assert equal_tensors(averaged, training_state(cpu)['model_ema']), 'by timm'
    assert not equal_tensors(averaged, training_state(cpu)['model'])


def test_only_the_best_and_the_milestones_are_kept(images, tmp_path):
    options = '--epochs 6 --lr 0.05 --checkpoint-hist 2 --save-epochs 1 3'
    folder = run(tmp_path, images, *shlex.split(options))
    rows = sorted(summary(folder), key=lambda row: -row['eval_top1'])
    best = {f'epoch-{row["epoch"]:.0f}' for row in rows[:2]}
    assert checkpoints(folder) == best | {'epoch-0', 'epoch-2', 'epoch-5'}
    for name in checkpoints(folder):
        assert set(contents(folder / 'checkpoints' / name)) == {
            *('model/config.json', 'model/model.safetensors', 'training_state.pt', 'state.json', 'manifest.json')
        }
    state = json.loads((folder / 'last' / 'state.json').read_text())
    assert (state['completed_epochs'], state['num_updates']) == (6, 6 * 7)
    assert state['milestones'] == ['epoch-0', 'epoch-2']


def test_val_interval_evaluates_and_saves_every_so_many_epochs_and_the_last(images, tmp_path):
    folder = run(tmp_path, images, '--epochs', 5, '--val-interval', 2)
    assert [row['epoch'] for row in summary(folder)] == [1, 3, 4]
    assert checkpoints(folder) == {'epoch-1', 'epoch-3', 'epoch-4'}


def test_stop_epoch_ends_early_on_the_same_schedule(images, tmp_path):
    whole = run(tmp_path, images, '--epochs', 4, name='whole')
    stopped = run(tmp_path, images, '--epochs', 4, '--stop-epoch', 2, name='stopped')
    assert summary(stopped) == summary(whole)[:2]
    assert result(stopped)['epochs'] == 2


def test_the_evaluation_is_logged_as_often_as_the_training(images, tmp_path, caplog):
    run(tmp_path, images, '--log-interval', 2)  # 7 updates, and twice 4 batches of 25 images
    lines = [each for each in caplog.messages if each.startswith(('Train: ', 'Evaluated '))]
    assert [line.split(':')[0] for line in lines].count('Train') == 4
    images_seen = [int(line.split()[1]) for line in lines if line.startswith('Evaluated')]
    assert images_seen == [16, 25, 16, 25]


def test_without_a_validation_split_the_training_loss_ranks(images, tmp_path):
    folder = run(
        tmp_path, images, *shlex.split("--val-split '' --epochs 3 --lr 0.05 --checkpoint-hist 1 --cam-images 8")
    )
    rows = summary(folder)
    assert list(rows[0]) == ['epoch', 'train_loss', 'lr']
    best = min(rows, key=lambda row: row['train_loss'])
    figures = result(folder)
    assert figures['best_checkpoint'] == f'epoch-{best["epoch"]:.0f}'
    assert (figures['best_metric'], figures['final']) == ({'loss': best['train_loss']}, None)
    assert not (folder / 'cams').exists()


def test_eval_metric_loss_ranks_downwards(images, tmp_path):
    folder = run(tmp_path, images, '--eval-metric', 'loss', '--epochs', 3, '--lr', 0.05)
    best = min(summary(folder), key=lambda row: row['eval_loss'])
    assert result(folder)['best_metric'] == {'loss': pytest.approx(best['eval_loss'])}
    assert result(folder)['best_checkpoint'] == f'epoch-{best["epoch"]:.0f}'


def test_tensorboard_gets_every_figure_of_the_summary(images, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run(tmp_path, images, '--log-tensorboard', '--epochs', 2, '--hnc', 'mse')
    [file] = (folder / 'timm_hnc').glob('events.out.tfevents.*')
    events = EventAccumulator(str(file))
    events.Reload()
    for name in ('train_loss', 'train_hnc', 'eval_top1', 'lr'):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        expected = [(row['epoch'], row[name]) for row in summary(folder)]
        assert found == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected]


def test_cam_images_says_how_many_are_drawn(images, tmp_path):
    few = Image.open(run(tmp_path, images, '--cam-images', 2, name='few') / 'cams' / 'best.png')
    many = Image.open(run(tmp_path, images, '--cam-images', 6, name='many') / 'cams' / 'best.png')
    assert many.height > 2 * few.height
    assert many.width == few.width
    assert not (run(tmp_path, images, '--cam-images', 0, name='none') / 'cams').exists()


def test_a_model_without_class_maps_trains_without_hnc_and_without_pictures(images, tmp_path, caplog):
    as_by_default = SMALL[: SMALL.index('--cam-images')]
    folder = train('--data-dir', images, *as_by_default, '--gp', 'max', '--output', tmp_path, '--experiment', 'run')
    assert result(folder)['epochs'] == 1
    assert not (folder / 'cams').exists()
    assert any('No CAM pictures' in record.getMessage() for record in caplog.records)


def test_a_run_without_experiment_gets_a_folder_of_its_own(images, tmp_path):
    train('--data-dir', images, *SMALL, '--output', tmp_path)
    [folder] = tmp_path.iterdir()
    assert folder.name.endswith('-test_resnet')
    assert result(folder)['epochs'] == 1


def test_train_py_is_a_command(images, tmp_path):
    command = [ROOT / 'train.py', '--data-dir', images, *SMALL, '--hnc', 'mse', '--output', 'out', '--experiment', 'a']
    process = run_script(*command, imported='torch', cwd=tmp_path)
    assert result_of(process) == result(tmp_path / 'out' / 'a')
    assert 'No accelerator here' not in process.stderr, '--device cpu asks for it'
    assert 'Warning' not in process.stderr
    assert result(tmp_path / 'out' / 'a')['command'].startswith('train.py --data-dir')


def test_label_noise_is_in_the_training_labels_alone(images, tmp_path):
    """All labels wrong by one class: what is learned is the next class, and validation says so."""
    options = ['--epochs', 6, '--lr', 0.1, '--warmup-epochs', 0, '--smoothing', 0, '--no-aug']
    *_, noisy = summary(run(tmp_path, images, *options, '--label-noise', 'asymmetric:1', name='noisy'))
    assert noisy['train_loss'] < 0.5
    assert noisy['eval_top1'] < 20
