"""What cannot work ends with one line, the right exit code and no harm."""

import shutil

import pytest
import timm
import torch
import yaml
from faulty_images import faulty
from image_data import write_folder, write_shards
from running import ROOT, SMALL, contents, failure, result, run_script, train


@pytest.fixture
def fails(tmp_path, capsys):
    """Runs train.py on options that fail: its exit code and message. No checkpoint may be left behind."""

    def run(*argv, folder=tmp_path / 'output'):
        name = f'run-{len(list(folder.iterdir())) if folder.is_dir() else 0}'
        code, message = failure(capsys, 'train', *SMALL, '--output', folder, '--experiment', name, *argv)
        assert not (folder / name / 'checkpoints').exists()
        return code, message

    return run


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        ('--hnc mse --hnc-topk 0', '--hnc-topk 0: expected 1 or more.'),
        ('--label-noise symmetric:1.5', '--label-noise symmetric:1.5: label noise at rate 1.5: expected a probability'),
        (
            '--checkpoint-interval soon',
            '--checkpoint-interval soon: expected updates, such as 500, or minutes',
        ),
        ('--checkpoint-interval -5', '--checkpoint-interval -5: expected updates'),
        ('--checkpoint-interval nanm', '--checkpoint-interval nanm: expected updates'),
        (
            '--checkpoint-interval 5 --recovery-interval 5',
            '--checkpoint-interval: not together with --recovery-interval',
        ),
        ('--worker-timeout -1', '--worker-timeout -1.0: expected 0 or more'),
        ('--interpolation sharp', "--interpolation 'sharp': expected one of nearest"),
        ('--train-interpolation sharp', "--train-interpolation 'sharp': expected one of random"),
        ('--color-jitter nan', 'images cannot be loaded with these options: brightness values should be between'),
        ('--scale 0.5', '--scale 0.5: expected the smallest and the largest.'),
        ('--ratio 2 1', '--ratio 2.0 1.0: expected the smallest and the largest.'),
        ('--in-chans 5', 'images of mode L have 1 channels, the model has 5: see --input-img-mode.'),
        ('--input-img-mode HSVX', '--input-img-mode HSVX: Pillow knows no such mode'),
        ('--data-in-memory', '--data-in-memory: needs --train-crop-mode pad.'),
        ('--data-in-memory --train-crop-mode pad', '--color-jitter: not together with --data-in-memory'),
        ('--data-in-memory --train-crop-mode pad --color-jitter 0 --aa rand-m5', '--aa: not together with'),
        ('--drop-block 1e9', '--drop-block 1000000000.0: expected 0 or more and 1 or less.'),
        ('--lr 1e39', '--lr 1e+39: expected 0 or more and less than 1e+30'),
        ('--label-noise pairs:0.1', "--label-noise pairs:0.1: label noise 'pairs' is unknown"),
        ('--label-noise asymmetric:0.1 --task multilabel', 'for --task classification only'),
        ('--holdout 1', '--holdout 1.0: expected'),
        ('--label-noise asymmetric:0.1 --dataset wds/x', 'wds/x is streamed, its images have no index'),
        ('--loss softmax', 'loss'),
        ('--model resnet5O', "--model 'resnet5O' is no model of timm's. Near: resnet5"),
        ('--model nowhere:resnet18', '--model'),
        ('--model test_vit --hnc mse --model-kwargs', "--hnc mse: no trainable class maps for 'test_vit'"),
        ('--gp catavgmax --cam-images 4', '--cam-images: no exact class maps'),
        ('--model-kwargs drop_rate=0.1', '--model-kwargs drop_rate: has a flag of its own, --drop.'),
        ('--model-kwargs nothing=3', "timm cannot make 'test_resnet' with these options"),
        (
            '--model dla46_c --model-kwargs --grad-checkpointing',
            "--grad-checkpointing: 'dla46_c' has none, leave it out.",
        ),
        ('--bn-momentum 0.1', "timm cannot make 'test_resnet' with these options"),
        (
            '--model test_vit --img-size 40 --model-kwargs',
            "--model 'test_vit': images of 3 x 40 x 40 do not pass: Input height (40) should be divisible by",
        ),
        ('--sched step --decay-epochs 0', '--decay-epochs 0.0: expected more than 0.'),
        (
            '--epochs 2 --cooldown-epochs 2 --lr-cycle-mul 0.5 --warmup-epochs 0',
            '--sched cosine: ',
        ),
        ('--sched step --decay-rate 10 --decay-epochs 0.5 --epochs 300', '--sched step: '),
        ('--lr-cycle-limit 0', '--lr-cycle-limit 0: expected 1 or more.'),
        ('--start-epoch 5 --epochs 3', '--start-epoch 5: the run ends after 3 epochs.'),
        ('--model-dtype float16 --model-ema', '--model-ema: not together with --model-dtype float16'),
        ('--opt adamw --opt-betas 0.9', '--opt-betas 0.9: expected 2 or more.'),
        ('--cutmix-minmax 0.2 0.21', '--cutmix-minmax 0.2 0.21: leaves no whole number to draw of'),
        ('--opt-kwargs nothing=3', '--opt sgd cannot be made with these options'),
        (
            '--dataset hnc/letters',
            "--dataset 'hnc/letters' is unknown: timm_hnc has hnc/digits, hnc/decoy-digits, hnc/cub200, "
            'hnc/tiny-imagenet, hnc/coco.',
        ),
        ('--dataset hnc/digits --num-classes 10 --train-split test', "no split 'test': use train or validation"),
        ('--aug-splits 3 --no-prefetcher', '--aug-splits 3: not together with --no-prefetcher'),
        ('--device cudaa:7', "--device 'cudaa:7': expected a device of torch's, such as cpu, cuda or cuda:1."),
        ('--device cuda:x --data-dir nowhere', "--device 'cuda:x': expected a device of torch's"),
        ('--model test_vit --model-kwargs --gp=', 'images of 3 x 32 x 32 do not pass: the output is 1 x 5 x 3, not a'),
        ('--sync-bn', '--sync-bn: PyTorch synchronises batch statistics on accelerators only'),
    ],
)
def test_wrong_usage_has_exit_code_2(fails, images, capsys, argv, message):
    if argv.startswith('--loss'):
        # argparse itself knows the losses
        with pytest.raises(SystemExit) as stop:
            train('--data-dir', images, *SMALL, *argv.split())
        assert stop.value.code == 2
        assert "argument --loss: invalid choice: 'softmax'" in capsys.readouterr().err
        return
    code, line = fails('--data-dir', images, *argv.split())
    assert code == 2
    assert message in line


def test_a_data_set_of_no_known_kind(fails):
    code, line = fails('--dataset', 'nope/x')
    assert code == 2
    assert "--dataset 'nope/x': expected a name that begins with torch, hfds, hfids, wds, tfds or hnc." in line


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'epoch': 3}, "unknown key 'epoch', did you mean 'epochs'?"),
        ({'epochs': 'many'}, "epochs = 'many': expected an integer"),
        ({'hnc_topk': 1.5}, 'hnc_topk = 1.5: expected an integer'),
        ({'hnc': 'mae'}, "hnc = 'mae': expected one of none, mse, kd"),
        ({'amp': 'yes please'}, "amp = 'yes please': expected true or false"),
        ({'model_kwargs': 3}, 'model_kwargs = 3: expected a mapping'),
        ({'hnc': 'mse', 'hnc_weight': -0.5}, '--hnc-weight -0.5: expected 0 or more.'),
    ],
)
def test_a_wrong_config_file_has_exit_code_2(fails, images, tmp_path, values, message):
    (tmp_path / 'recipe.yaml').write_text(yaml.safe_dump(values))
    code, line = fails('--data-dir', images, '-c', tmp_path / 'recipe.yaml')
    assert code == 2
    assert message in line


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        ('--loss focal --loss-kwargs gamma=-1', "--loss 'focal': gamma = -1: expected a finite number of 0 or more."),
        ('--loss focal --loss-kwargs delta=1', "--loss 'focal' has no option 'delta': expected one of gamma."),
        ('--loss a-softmax --loss-kwargs margin=half', "--loss 'a-softmax': "),
        ('--loss-kwargs gamma=2', '--loss-kwargs: for --loss focal, '),
        ('--loss lmc --task multilabel', '--loss lmc: for --task classification only.'),
        ('--loss weighted-sigmoid', '--loss weighted-sigmoid: for --task multilabel only.'),
        ('--loss attention-consistency --mixup 0.2', '--loss attention-consistency: not together with --mixup'),
        ('--loss center --smoothing 0.1', '--smoothing 0.1: --loss center takes none.'),
        ('--loss cb-focal --dataset wds/x', 'wds/x is streamed, its classes cannot be counted: give --class-stats.'),
        (
            '--loss cb-focal --class-stats nowhere.json',
            '--class-stats nowhere.json: [Errno 2] No such file',
        ),
        ('--loss guided-complement --num-classes 2', "--loss 'guided-complement' needs 3 classes or more, got 2."),
        ('--loss focal --loss-lr 0.1', '--loss-lr 0.1: --loss focal learns nothing of its own.'),
        ('--loss lmc --model convnext_atto --model-kwargs', "'convnext_atto' has a head of kind C"),
        ('--loss center --model test_vit --model-kwargs', '--loss center: no trainable class maps'),
    ],
)
def test_losses_that_do_not_go_with_the_rest(fails, images, argv, message):
    code, line = fails('--data-dir', images, *argv.split())
    assert code == 2
    assert message in line


@pytest.mark.parametrize('loss', ['cb-focal', 'weighted-sigmoid --task multilabel', 'db --task multilabel'])
def test_counts_of_other_classes_are_told_before_the_data_is_looked_for(fails, tmp_path, loss):
    stats = tmp_path / 'stats.json'
    stats.write_text('{"pos_counts": [5, 5, 5, 5], "num_samples": 20}')
    code, line = fails('--data-dir', tmp_path / 'nowhere', '--loss', *loss.split(), '--class-stats', stats)
    assert code == 2
    assert line == f'--class-stats {stats}: 4 values for --num-classes 3.'


def test_no_data_named(fails, tmp_path):
    message = 'no data: pass --data-dir DIR, or --dataset NAME'
    assert fails() == (2, f'{message}.')
    of_a_run = f', or the options of a run: -c {tmp_path}/args.yaml --resume {tmp_path}.'
    (tmp_path / 'args.yaml').touch()
    assert fails('--resume', tmp_path) == (2, message + of_a_run)


def test_missing_and_empty_data(fails, images, tmp_path, parquet):
    code, line = fails('--data-dir', tmp_path / 'nowhere')
    assert (code, line) == (1, f"data folder '{tmp_path / 'nowhere'}' does not exist: see --data-dir.")
    (tmp_path / 'empty').mkdir()
    code, line = fails('--data-dir', tmp_path / 'empty')
    assert code == 1
    assert 'Found 0 images' in line
    shutil.copytree(images / 'train', tmp_path / 'half' / 'train')
    code, line = fails('--data-dir', tmp_path / 'half')
    assert code == 1
    assert "no folder for the split 'validation' but has train" in line
    code, line = fails('--dataset', f'hfds/{tmp_path / "nowhere"}', '--data-dir', tmp_path / 'cache')
    assert (code, f"data set 'hfds/{tmp_path / 'nowhere'}'" in line) == (1, True), line
    code, line = fails(*parquet, '--val-split', 'test')
    assert code == 1
    assert "split 'test'" in line


def test_a_label_outside_the_range(fails, images, shards, tar_files):
    for data in (['--data-dir', images], ['--data-dir', tar_files / 'train.tar']):
        code, line = fails(*data, '--num-classes', 2)
        assert code == 1
        assert "labels outside the model's range 0 to 1, such as 2: set --num-classes" in line
    for workers in (0, 1):
        code, line = fails('--dataset', 'wds/x', '--data-dir', shards, '--num-classes', 2, '--workers', workers)
        assert code == 1
        assert 'a target is class 2, outside the range 0 to 1: set --num-classes to the classes of the data' in line


@pytest.mark.parametrize('workers', [0, 1])
def test_targets_that_do_not_fit_the_task(fails, images, multi_label, workers):
    code, line = fails('--data-dir', images, '--task', 'multilabel', '--workers', workers)
    assert code == 1
    assert 'one class index: for a single label pass --task classification' in line
    code, line = fails(*multi_label[:-2], '--workers', workers)
    assert code == 1
    assert 'not one class index: for several labels pass --task multilabel' in line
    code, line = fails(*multi_label, '--num-classes', 2, '--workers', workers)
    assert code == 1
    assert 'See --target-key, --target-format and --num-classes' in line


def test_columns_that_are_not_there(fails, parquet):
    code, line = fails(*parquet, '--input-key', 'img')
    assert code == 1
    assert "no column 'img' but image, label, name: see --input-key" in line
    code, line = fails(*parquet, '--target-key', 'fine_label')
    assert code == 1
    assert 'see --target-key' in line


def test_fewer_images_than_a_batch(fails, images):
    code, line = fails('--data-dir', images, '-b', 64)
    assert code == 1
    assert '59 training images do not fill one batch of 64 a process: set a lower --batch-size' in line


def test_a_batch_that_leaves_batch_normalization_one_value(fails, images):
    code, line = fails('--data-dir', images, '-b', 1, '--img-size', 8)
    assert code == 2
    assert 'a batch of 1 leaves a batch normalization layer one value a channel' in line


IN_MEMORY = ['--data-in-memory', '--train-crop-mode', 'pad', '--color-jitter', 0]


@pytest.mark.parametrize('more', [['--workers', 1], IN_MEMORY], ids=['workers', 'in memory'])
def test_images_that_cannot_be_decoded_are_skipped_and_counted(tmp_path, faulty_format, more):
    data = write_folder(tmp_path / 'images')
    files = sorted((data / 'train').rglob('*.png')), sorted((data / 'validation').rglob('*.png'))
    files[0][0].write_bytes(faulty('ValueError'))
    files[0][30].write_bytes(files[0][30].read_bytes()[:200])
    files[1][0].write_bytes(faulty('SyntaxError'))
    folder = train(
        *('--data-dir', data, *SMALL, '-b', 59, '--epochs', 2, *more),
        *('--cam-images', 1, '--output', tmp_path, '--experiment', 'run'),
    )
    # two epochs of training images; validation after both, and of the best; in memory each is read once
    read = 2 + 1 if more is IN_MEMORY else 2 * 2 + 3
    assert result(folder)['skipped_images'] == read + 1, 'one of the pictures'
    assert (folder / 'cams' / 'best.png').is_file()


@pytest.mark.parametrize(('split', 'workers'), [('train', 0), ('train', 1), ('validation', 0), ('validation', 1)])
def test_nothing_but_images_that_cannot_be_decoded(fails, tmp_path, split, workers):
    data = write_folder(tmp_path / 'images')
    for file in (data / split).rglob('*.png'):
        file.write_bytes(b'no image')
    code, line = fails('--data-dir', data, '--workers', workers)
    assert code == 1
    assert 'the data cannot be read' in line
    assert 'Failed to load' in line


def test_nothing_but_streamed_images_that_cannot_be_decoded(fails, tmp_path):
    code, line = fails('--dataset', 'wds/x', '--data-dir', write_shards(tmp_path / 'shards', damaged=True))
    assert code == 1
    assert 'no training image could be used in epoch 0' in line


def test_weights_of_another_architecture(fails, images, tmp_path):
    weights = tmp_path / 'other.pth'
    torch.save(timm.create_model('test_efficientnet', num_classes=3).state_dict(), weights)
    for flag in ('--initial-checkpoint', '--pretrained-path'):
        code, line = fails('--data-dir', images, flag, weights)
        assert code == 1
        assert f"weights '{weights}' do not load into 'test_resnet'" in line
        code, line = fails('--data-dir', images, flag, tmp_path / 'nowhere.pth')
        assert (code, line) == (1, f"{flag} '{tmp_path / 'nowhere.pth'}' does not exist.")
    for damaged in (tmp_path / 'damaged.pth', tmp_path / 'damaged.safetensors'):
        damaged.write_bytes(b'nothing')
        code, line = fails('--data-dir', images, '--initial-checkpoint', damaged)
        assert code == 1
        assert f"weights '{damaged}' do not load" in line


def test_weights_that_are_not_there(fails, images, monkeypatch, tmp_path):
    code, line = fails('--data-dir', images, '--model', f'local-dir:{tmp_path / "nowhere"}')
    assert (code, line) == (1, f"'{tmp_path / 'nowhere'}' holds no config.json.")


def test_an_output_folder_that_cannot_be_written(fails, images, tmp_path):
    file = tmp_path / 'file'
    file.write_text('in the way')
    code, line = fails('--data-dir', images, folder=file)
    assert code == 1
    assert f"run folder '{file / 'run-0'}' cannot be written" in line
    assert 'See --output.' in line
    code, line = fails('--data-dir', images, '--experiment', 'x/../../file', folder=tmp_path / 'output')
    assert code == 1
    assert file.read_text() == 'in the way'


def test_a_loss_that_is_not_finite_stops_the_run(fails, images, tmp_path, capsys):
    argv = ['--data-dir', images, '--lr', 1e29, '--warmup-epochs', 0, '--epochs', 3, '--grad-accum-steps', 3]
    code, line = fails(*argv)
    assert code == 1
    assert ' is not finite in epoch 0, batch' in line
    assert 'Lower --lr or --hnc-weight, or set --clip-grad;' in line


def test_a_loss_that_is_not_finite_leaves_earlier_checkpoints_whole(images, tmp_path, capsys):
    argv = ['--data-dir', images, *SMALL, '--epochs', 2, '--output', tmp_path, '--experiment', 'run']
    folder = train(*argv, '--stop-epoch', 1)
    before = contents(folder / 'checkpoints')
    code, line = failure(capsys, 'train', *argv, '--lr', 1e29, '--resume', 'auto')
    assert code == 1
    assert 'is not finite in epoch 1' in line
    assert contents(folder / 'checkpoints') == before
    assert (folder / 'last').readlink().name == 'epoch-0'
    assert (folder / 'model_best' / 'model.safetensors').is_file()


def test_a_checkpoint_that_cannot_be_written_leaves_earlier_ones_whole(images, tmp_path, capsys, monkeypatch):
    argv = ['--data-dir', images, *SMALL, '--epochs', 2, '--output', tmp_path, '--experiment', 'run']
    folder = train(*argv, '--stop-epoch', 1)
    before = contents(folder / 'checkpoints')

    def no_space(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('timm_hnc.weights.saving.safetensors.torch.save_file', no_space)
    code, line = failure(capsys, 'train', *argv, '--resume', 'auto')
    assert code == 1
    assert 'No space left on device' in line
    assert 'earlier ones are whole' in line
    after = contents(folder / 'checkpoints')
    assert {name: after[name] for name in before} == before
    assert (folder / 'last').readlink().name == 'epoch-0'
    monkeypatch.undo()
    assert result(train(*argv, '--resume', 'auto'))['epochs'] == 2


@pytest.mark.parametrize(
    ('argv', 'package', 'command'),
    [
        (['--log-tensorboard'], 'tensorboard', 'pip install "timm_hnc[track]"'),
        (['--log-wandb'], 'wandb', 'pip install wandb'),
        (['--dataset', 'hfds/x'], 'datasets', 'pip install "timm_hnc[data]"'),
        (['--dataset', 'wds/x'], 'webdataset', 'pip install "timm_hnc[data]"'),
        (['--dataset', 'tfds/x'], 'tensorflow_datasets', 'pip install tensorflow tensorflow-datasets'),
        (['--dataset', 'hnc/digits', '--num-classes', 10], 'scikit-learn', 'pip install "timm_hnc[quickstart]"'),
    ],
)
def test_a_missing_package_is_named_with_its_command(fails, images, monkeypatch, argv, package, command):
    for module in ('training.setup.environment', 'data.datasets', 'data.sets.digits'):
        monkeypatch.setattr(f'timm_hnc.{module}.find_spec', lambda name: None)
    code, line = fails('--data-dir', images, *argv)
    assert code == 2
    assert f'needs the package {package}' in line or f'needs {package}' in line
    assert command in line


@pytest.mark.parametrize('flag', ['--kd-model-name', '--initial-checkpoint', '--experiment', '--resume'])
def test_names_that_are_too_long_for_a_file(fails, images, flag):
    code, line = fails('--data-dir', images, *SMALL, flag, 300 * 'x')
    assert (code, 'File name too long' in line) == (1, True)


def test_a_process_ends_with_the_code_and_one_line(tmp_path):
    process = run_script(ROOT / 'train.py', '--data-dir', tmp_path / 'nowhere', *SMALL, cwd=tmp_path)
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1] == (
        f"train.py: error: data folder '{tmp_path / 'nowhere'}' does not exist: see --data-dir."
    )
    assert 'Traceback' not in process.stderr
    assert process.stdout == ''
