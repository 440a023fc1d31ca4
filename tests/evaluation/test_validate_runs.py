"""validate.py from end to end: what it evaluates, on which data, and where the figures go."""

import csv
import json
import shutil
from types import SimpleNamespace

import pytest
import safetensors.torch
import timm
import torch
from faulty_images import faulty
from image_data import CLASSES, MULTI_LABEL_COUNT, samples, write_folder, write_shards
from PIL import Image
from running import MODEL, NARROW, ROOT, SMALL, arguments, failure, result, result_of, run_script, train, validate
from sklearn.metrics import average_precision_score, precision_recall_fscore_support
from timm.data import ImageDataset, create_dataset, create_transform

import timm_hnc.commands.validate
from timm_hnc import save_pretrained
from timm_hnc.data.class_names import check_classes_of_model
from timm_hnc.data.holdout import split_off

HERE = ['--workers', '0', '--device', 'cpu', '-b', '7']
TRANSFORM = create_transform((3, 32, 32), interpolation='bilinear', mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=0.95)


def trained(root, *argv):
    """A run whose batch statistics have seen data, good enough to be right and wrong."""
    return train(
        *argv,
        *SMALL,
        '--epochs',
        2,
        '--lr',
        0.06,
        '--warmup-epochs',
        0,
        '--hnc',
        'mse',
        '--output',
        root,
        '--experiment',
        'run',
    )


@pytest.fixture(scope='module')
def run(images, tmp_path_factory):
    return trained(tmp_path_factory.mktemp('one-label'), '--data-dir', images)


@pytest.fixture(scope='module')
def multi_label_run(multi_label, tmp_path_factory):
    return trained(tmp_path_factory.mktemp('several-labels'), *multi_label)


@pytest.fixture(scope='module')
def weights(run, tmp_path_factory):
    """The run's best weights, as files that others would make."""
    folder = tmp_path_factory.mktemp('weights')
    state = safetensors.torch.load_file(run / 'model_best' / 'model.safetensors')
    torch.save(state, folder / 'plain.pth')
    torch.save({'state_dict': {f'module.{name}': tensor for name, tensor in state.items()}}, folder / 'timm.pth.tar')
    shutil.copy(run / 'model_best' / 'model.safetensors', folder / 'plain.safetensors')
    return folder


@pytest.fixture(scope='module')
def logits(run, images):
    """(25, 3) logits of the run's best weights on the validation images, and their targets."""
    model = timm.create_model(f'local-dir:{run / "model_best"}', pretrained=True).eval()
    dataset = ImageDataset(str(images / 'validation'), transform=TRANSFORM)
    inputs, targets = zip(*(dataset[index] for index in range(len(dataset))), strict=True)
    with torch.inference_mode():
        return model(torch.stack(inputs)), torch.tensor(targets)


def test_figures_are_those_computed_by_hand(run, logits, capsys):
    figures = validate(capsys, '--checkpoint', run, *HERE)
    output, target = logits
    assert figures['loss'] == pytest.approx(torch.nn.functional.cross_entropy(output, target).item(), rel=1e-5)
    assert figures['top1'] == pytest.approx(100 * (output.argmax(1) == target).double().mean().item(), abs=1e-4)
    assert (figures['top5'], figures['top5_err']) == (100, 0)
    assert figures['top1_err'] == pytest.approx(100 - figures['top1'])
    assert set(figures) == {
        *('model', 'loss', 'top1', 'top1_err', 'top5', 'top5_err', 'param_count', 'img_size', 'crop_pct'),
        *('interpolation', 'skipped_images'),
    }
    assert (figures['model'], figures['img_size'], figures['crop_pct']) == ('test_resnet', 32, 0.95)
    parameters = timm.create_model('test_resnet', num_classes=3, **NARROW).parameters()
    assert figures['param_count'] == round(sum(parameter.numel() for parameter in parameters) / 1e6, 2)


def test_every_way_to_name_the_weights_gives_the_figures_of_the_run(run, weights, images, capsys):
    expected = {name: pytest.approx(value, abs=1e-4) for name, value in result(run)['final'].items()}
    ways = [
        ['--checkpoint', run],
        ['--checkpoint', run / 'model_best', '--data-dir', images],
        ['--checkpoint', run / 'model_best' / 'model.safetensors'],
        ['--checkpoint', run / 'model_best' / 'model.safetensors', '--model', 'test_resnet', images],
        ['--checkpoint', run / 'checkpoints' / result(run)['best_checkpoint'], images],
        ['--checkpoint', weights / 'plain.pth', *MODEL, images],
        ['--checkpoint', weights / 'plain.safetensors', *MODEL, images],
        ['--checkpoint', weights / 'timm.pth.tar', *MODEL, images],
        ['--model', f'local-dir:{run / "model_best"}', images],
        ['--model', f'local-dir:{run / "model_best"}', '--pretrained', images],
    ]
    for way in ways:
        figures = validate(capsys, *way, *HERE)
        assert {name: figures[name] for name in expected} == expected, way


def test_other_data_than_the_run_s_own(run, images, shards, parquet, tar_files, capsys):
    expected = validate(capsys, '--checkpoint', run, *HERE)
    for data in (
        [images / 'validation'],
        ['--data-dir', images, '--split', 'validation'],
        ['--dataset', 'torch/image_folder', '--data-dir', images],
        ['--dataset', 'wds/x', '--data-dir', shards],
        [tar_files / 'validation.tar'],
        parquet,
    ):
        found = validate(capsys, '--checkpoint', run, *data, *HERE)
        assert found == {**expected, 'loss': pytest.approx(expected['loss'], rel=1e-5)}, data
    train_figures = validate(capsys, '--checkpoint', run, '--split', 'train', *HERE)
    assert train_figures['loss'] != expected['loss']


@pytest.mark.parametrize('options', ['-b 1', '-b 64 --workers 2', '--no-prefetcher', '--channels-last', '--amp'])
def test_figures_do_not_depend_on_how_they_are_computed(run, capsys, options):
    expected, found = result(run)['final'], validate(capsys, '--checkpoint', run, *HERE, *options.split())
    if options != '--amp':
        assert found['top1'] == pytest.approx(expected['top1'], abs=1e-4)
    assert found['loss'] == pytest.approx(expected['loss'], rel=0.02 if options == '--amp' else 1e-5)


def test_figures_come_in_the_order_of_timms_script(run, capsys):
    figures = validate(capsys, '--checkpoint', run, *HERE, '--cam-metrics')
    expected = ['model', 'top1', 'top1_err', 'top5', 'top5_err', 'param_count', 'img_size', 'crop_pct', 'interpolation']
    assert list(figures)[: len(expected)] == expected


def test_weights_of_other_shapes_are_told_with_their_way_out(weights, images, capsys):
    argv = ['--checkpoint', weights / 'plain.pth', *MODEL, images, *HERE]
    for more, told in ((['--num-classes', 4], True), (['--in-chans', 1], False)):
        code, line = failure(capsys, 'validate', *argv, *more)
        assert code == 1
        assert 'size mismatch' in line
        assert ('See --num-classes' in line) == told


def test_the_average_of_a_run_folder_is_told(run, capsys, caplog):
    validate(capsys, '--checkpoint', run, *HERE, '--use-ema')
    assert '--use-ema: does nothing' in caplog.text


def test_options_of_timms_script_run(run, images, capsys):
    for options in (
        '--use-train-size --test-pool --fast-norm --reparam',
        '--torchcompile eager --retry -b 5',  # 25 images: no second shape to compile for
        '--model-dtype bfloat16 --log-freq 1',
        '--crop-pct 1.0 --crop-mode squash --interpolation bicubic --crop-border-pixels 2',
        '--num-samples 10 --pin-mem --seed 3',
        '--use-ema --gp max',
    ):
        figures = validate(capsys, '--checkpoint', run, *HERE, *options.split())
        assert 0 < figures['loss'] < 10


def test_several_labels(multi_label_run, multi_label, capsys):
    figures = validate(capsys, '--checkpoint', multi_label_run, *HERE)
    assert list(figures)[:6] == ['model', 'loss', 'map', 'micro_f1', 'macro_f1', 'sample_f1']
    expected = result(multi_label_run)['final']
    assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-4)
    assert multi_label[-2:] == ['--task', 'multilabel'], 'which the run knows'
    again = validate(capsys, '--checkpoint', multi_label_run / 'model_best', *multi_label[:-2], *HERE)
    assert again == figures
    other = validate(capsys, '--checkpoint', multi_label_run, *HERE, '--multilabel-threshold', 0.99)
    assert other['map'] == figures['map']
    assert other['micro_f1'] != figures['micro_f1']


def test_map_is_that_of_scikit_learn(multi_label_run, capsys):
    figures = validate(capsys, '--checkpoint', multi_label_run, *HERE)
    options = arguments(multi_label_run)
    dataset = create_dataset(
        options['dataset'], root=options['data_dir'], split='validation', target_key='labels', transform=TRANSFORM
    )
    images, labels = zip(*(dataset[index] for index in range(MULTI_LABEL_COUNT['validation'])), strict=True)
    targets = torch.tensor([[float(label in some) for label in range(3)] for some in labels])
    model = timm.create_model(f'local-dir:{multi_label_run / "model_best"}', pretrained=True).eval()
    with torch.inference_mode():
        output = model(torch.stack(images))
    assert figures['map'] == pytest.approx(100 * average_precision_score(targets, output), abs=1e-3)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(output, targets).item()
    assert figures['loss'] == pytest.approx(loss, rel=1e-5)


def test_results_go_to_csv_and_json(run, tmp_path, capsys):
    for kind in ('csv', 'json'):
        path = tmp_path / f'results.{kind}'
        figures = validate(capsys, '--checkpoint', run, *HERE, '--results-file', path, '--results-format', kind)
        if kind == 'json':
            assert json.loads(path.read_text()) == figures
        else:
            [row] = csv.DictReader(path.open())
            assert row == {name: str(value) for name, value in figures.items()}


@pytest.mark.parametrize('average', ['micro', 'macro', 'weighted'])
def test_precision_and_recall_are_those_of_scikit_learn(run, logits, capsys, average):
    figures = validate(capsys, '--checkpoint', run, *HERE, '--metrics-avg', average)
    output, target = logits
    expected = precision_recall_fscore_support(target, output.argmax(1), average=average, zero_division=0)[:3]
    names = ('precision', 'recall', 'f1_score')
    found = [figures[f'{average}_{name}'] for name in names]
    assert found == [pytest.approx(100 * value, abs=1e-4) for value in expected]


def test_valid_labels_leave_the_other_classes_out(run, logits, tmp_path, capsys):
    (tmp_path / 'all.txt').write_text('0\n1\n2\n')
    everything = validate(capsys, '--checkpoint', run, *HERE, '--valid-labels', tmp_path / 'all.txt')
    for lines, expected in (
        ('', 'class indices from 0 to 2'),
        ('0\n3\n', 'class indices from 0 to 2'),
        ('0\n2\n', 'images are of class 2, and the file lists 2'),
        ('red\n', "class indices from 0 to 2, one a line (invalid literal for int() with base 10: 'red')."),
        ('\x89' * 5000, 'class indices from 0 to 2'),
    ):
        (tmp_path / 'wrong.txt').write_bytes(lines.encode('latin-1'))
        code, line = failure(capsys, 'validate', '--checkpoint', run, *HERE, '--valid-labels', tmp_path / 'wrong.txt')
        assert (code, expected in line, len(line) < 600) == (1, True, True), line
    assert everything == validate(capsys, '--checkpoint', run, *HERE)
    # the labels of the data count the classes that are left
    (tmp_path / 'two.txt').write_text('1\n2\n')
    data = write_folder(tmp_path / 'images')
    shutil.rmtree(data / 'validation' / CLASSES[0])
    figures = validate(capsys, '--checkpoint', run, data / 'validation', *HERE, '--valid-labels', tmp_path / 'two.txt')
    output, target = logits
    output, target = output[target > 0][:, 1:], target[target > 0] - 1
    assert figures['loss'] == pytest.approx(torch.nn.functional.cross_entropy(output, target).item(), rel=1e-5)
    assert figures['top1'] == pytest.approx(100 * (output.argmax(1) == target).double().mean().item(), abs=1e-4)


def test_reassessed_labels(tmp_path, capsys):
    # ImageNet's naming, where the number is the place in the list of reassessed labels
    data, tensors = tmp_path / 'validation', []
    for number, (_, label, content) in enumerate(samples('validation'), 1):
        path = data / CLASSES[label] / f'ILSVRC2012_val_{number:08d}.JPEG'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        tensors.append(TRANSFORM(Image.open(path)))
    model = timm.create_model('test_resnet', num_classes=6, **NARROW).eval()
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    with torch.inference_mode():
        predicted = model(torch.stack(tensors)).argmax(1).tolist()
    # what the model says is true, but for one image without any label and one where it is wrong
    real = [[label] for label in predicted]
    real[3], real[4] = [], [(predicted[4] + 1) % 6]
    (tmp_path / 'real.json').write_text(json.dumps(real))
    argv = ['--checkpoint', tmp_path / 'model.pth', *MODEL, '--num-classes', 6, data, *HERE]
    figures = validate(capsys, *argv, '--real-labels', tmp_path / 'real.json')
    assert figures['top1'] == pytest.approx(100 * 23 / 24, abs=1e-4)
    # what is right among the valid ones: those of one class that the model does not see are wrong
    (tmp_path / 'valid.txt').write_text('\n'.join(str(label) for label in range(1, 6)))
    with torch.inference_mode():
        among = (model(torch.stack(tensors))[:, 1:].argmax(1) + 1).tolist()
    figures = validate(capsys, *argv, '--real-labels', tmp_path / 'real.json', '--valid-labels', tmp_path / 'valid.txt')
    right = sum(label in labels for label, labels in zip(among, real, strict=True))
    assert figures['top1'] == pytest.approx(100 * right / 24, abs=1e-4)
    # of a part those of its own images: every other image is right
    (tmp_path / 'half.json').write_text(
        json.dumps([[(label + place % 2) % 6] for place, label in enumerate(predicted)])
    )
    _, part = split_off(predicted, 0.4, 42)
    figures = validate(
        capsys, *argv, '--real-labels', tmp_path / 'half.json', '--holdout', 0.4, '--split', 'validation'
    )
    assert figures['top1'] == pytest.approx(100 * (part.indices % 2 == 0).mean(), abs=1e-4)
    (tmp_path / 'few.json').write_text('[[0], [1]]')
    code, line = failure(capsys, 'validate', *argv, '--real-labels', tmp_path / 'few.json')
    assert (code, line.rpartition(': ')[2]) == (1, 'it has not one entry for each of the images.')
    for content, message in (('5', 'cannot be read'), (str([1] * 25), 'a list of classes each')):
        (tmp_path / 'odd.json').write_text(content)
        code, line = failure(capsys, 'validate', *argv, '--real-labels', tmp_path / 'odd.json')
        assert (code, message in line) == (1, True), line
    path.rename(path.with_suffix('.png'))
    code, line = failure(capsys, 'validate', *argv, '--real-labels', tmp_path / 'real.json')
    assert code == 1
    assert "--real-labels: images must have ImageNet's validation names" in line


def test_a_folder_of_weights_gives_a_row_each_best_first(weights, images, tmp_path, capsys):
    folder = tmp_path / 'several'
    folder.mkdir()
    state = torch.load(weights / 'plain.pth', weights_only=True)
    torch.save(state, folder / 'b.pth')
    torch.save({**state, 'fc.weight': torch.zeros_like(state['fc.weight'])}, folder / 'a.pth')
    torch.save({}, folder / 'c.pth')
    rows = validate(capsys, '--checkpoint', folder, *MODEL, images, *HERE, '--results-file', folder / 'r.csv')
    assert [row['checkpoint'] for row in rows] == [str(folder / 'b.pth'), str(folder / 'a.pth')]
    assert rows[0]['top1'] >= rows[1]['top1']
    assert [row['top1'] for row in csv.DictReader((folder / 'r.csv').open())] == [str(row['top1']) for row in rows]
    for name in 'ab':
        torch.save({}, folder / f'{name}.pth')
    code, lines = failure(capsys, 'validate', '--checkpoint', folder, *MODEL, images, *HERE)
    assert (code, lines) == (1, 'none of 3 models could be evaluated; why, is said above.')


def test_a_file_of_names_gives_a_row_each(run, images, tmp_path, capsys):
    names = [f'local-dir:{run / "checkpoints" / f"epoch-{epoch}" / "model"}' for epoch in range(2)]
    (tmp_path / 'models.txt').write_text('\n'.join([*names, f'local-dir:{tmp_path}', '']))
    rows = validate(capsys, '--model', tmp_path / 'models.txt', images, *HERE)
    assert len(rows) == 2
    assert {row['model'] for row in rows} == set(names)
    assert rows[0]['top1'] >= rows[1]['top1']


@pytest.mark.parametrize('end', [AssertionError('the height should be divisible by 16'), KeyboardInterrupt()])
def test_a_model_that_fails_leaves_the_others_their_figures(run, images, tmp_path, capsys, monkeypatch, end):
    names = [f'local-dir:{run / "model_best"}', f'local-dir:{run}', f'local-dir:{run / "model_best"}']
    (tmp_path / 'models.txt').write_text('\n'.join(names))
    validated = timm_hnc.commands.validate.validate

    def failing(options, source, *others):
        if source.model == names[1]:
            raise end
        return validated(options, source, *others)

    monkeypatch.setattr(timm_hnc.commands.validate, 'validate', failing)
    rows = validate(capsys, '--model', tmp_path / 'models.txt', images, *HERE)
    assert [row['model'] for row in rows] == names[:1] * (2 if isinstance(end, AssertionError) else 1)


def test_several_models_are_tried_in_smaller_batches(run, images, tmp_path, capsys, monkeypatch):
    measured, sizes = timm_hnc.evaluation.validation.measure, []

    def out_of_memory(model, data, options, *args):
        sizes.append(options.evaluation.batch_size)
        if sizes[-1] > 4:
            raise RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB')
        return measured(model, data, options, *args)

    monkeypatch.setattr(timm_hnc.evaluation.validation, 'measure', out_of_memory)
    (tmp_path / 'models.txt').write_text(f'local-dir:{run / "model_best"}\n' * 2)
    rows = validate(capsys, '--model', tmp_path / 'models.txt', images, *HERE, '-b', 8)
    assert len(rows) == 2
    assert sizes == [8, 6, 4] * 2


def test_calls_of_one_process_each_have_their_own_precision(run, capsys, monkeypatch):
    monkeypatch.setattr('running.forget_run', lambda: None)
    found = [
        validate(capsys, '--checkpoint', run, *HERE, *options)['loss']
        for options in ([], ['--amp', '--amp-dtype', 'bfloat16'], [])
    ]
    assert found[0] == found[2] != found[1]


def test_a_model_that_is_refused_leaves_the_others_their_figures(run, images, tmp_path, capsys):
    names = [f'local-dir:{run / "model_best"}', f'local-dir:{tmp_path}']
    save_pretrained(timm.create_model('test_resnet', num_classes=3, global_pool='max', **NARROW), tmp_path)
    (tmp_path / 'models.txt').write_text('\n'.join(names))
    (tmp_path / 'refused.txt').write_text('\n'.join(names[1:] * 2))
    argv = [images, *HERE, '--img-size', '32', '--cam-metrics']
    rows = validate(capsys, '--model', tmp_path / 'models.txt', *argv)
    assert [row['model'] for row in rows] == names[:1]
    code, line = failure(capsys, 'validate', '--model', tmp_path / 'refused.txt', *argv)
    assert (code, 'no class maps to measure' in line) == (2, True), line
    rows = ['--cam-classes-file', tmp_path / 'rows.csv']
    code, line = failure(capsys, 'validate', '--model', tmp_path / 'models.txt', *argv, *rows)
    assert (code, line) == (2, f'--cam-classes-file {tmp_path / "rows.csv"}: for one model, not 2.')


def test_validate_py_is_a_command(run, tmp_path):
    process = run_script(ROOT / 'validate.py', '--checkpoint', run, *HERE, cwd=tmp_path)
    figures = result_of(process)
    assert figures['loss'] == pytest.approx(result(run)['final']['loss'], rel=1e-5)
    assert 'Warning' not in process.stderr


@pytest.fixture
def fails(capsys):
    return lambda *argv: failure(capsys, 'validate', *HERE, *argv)


def test_wrong_usage_has_exit_code_2(fails, run, weights, images, tmp_path):
    for argv, message in (
        ([*MODEL], 'no data: pass --data-dir DIR, or --dataset NAME.'),
        (['--model', 'resnet5O', images], "--model 'resnet5O' is no model of timm's"),
        (['--model', 'nowhere:x', images], '--model'),
        (['--checkpoint', weights / 'plain.pth', '--model', 'resnet5O', images], 'needs its architecture'),
        (['--checkpoint', weights / 'plain.pth', images], 'a file of weights needs its architecture, see --model.'),
        (['--checkpoint', weights, images], 'a folder of weights needs its architecture, see --model.'),
        (
            ['--model', 'test_resnet', '--holdout', 0.1, images],
            '--holdout 0.1: is of training images, name their split',
        ),
        (['--checkpoint', run, '--results-file', tmp_path / 'no' / 'r.csv'], 'its folder does not exist.'),
        (['--checkpoint', run, '--results-file', tmp_path], 'it is a folder, expected a file.'),
        (['--model', run / 'model_best' / 'model.safetensors'], 'is no text file of names; weights: --checkpoint.'),
        (['--checkpoint', run, '--test-pool', '--img-size', 64], "--test-pool: 'test_resnet' does not say"),
        (['--checkpoint', run, '-b', 0], '--batch-size 0: expected 1 or more.'),
        (['--checkpoint', run, '--model-kwargs', 'nothing=3'], 'timm cannot make'),
    ):
        code, line = fails(*argv)
        assert code == 2, line
        assert message in line


def test_a_wrong_architecture_has_exit_code_1(fails, run, weights, images):
    code, line = fails('--checkpoint', run, '--model', 'resnet18')
    assert code == 1
    assert line == f"--checkpoint '{run}' is of the architecture 'test_resnet', not 'resnet18': leave --model out."
    for name in ('plain.pth', 'plain.safetensors'):
        code, line = fails('--checkpoint', weights / name, '--model', 'test_efficientnet', '--num-classes', 3, images)
        assert code == 1
        assert f"weights '{weights / name}' do not load into 'test_efficientnet'" in line


def test_another_number_of_classes_than_the_run_s_has_exit_code_1(fails, run, images):
    assert fails('--checkpoint', run, '--num-classes', 5) == (
        1,
        f"'{run}' has 3 classes, --num-classes says 5: leave it out.",
    )
    code, line = fails('--model', f'local-dir:{run}/model_best', '--num-classes', 5, images)
    assert (code, 'has 3 classes' in line) == (1, True)


def test_classes_in_another_order_have_exit_code_1(fails, run, images, tmp_path, capsys, caplog):
    names = sorted(path.name for path in (images / 'train').iterdir())
    (tmp_path / 'map.txt').write_text('\n'.join([names[0], names[2], names[1]]))
    code, line = fails('--checkpoint', run, images, '--class-map', tmp_path / 'map.txt')
    assert code == 1
    assert f"class '{names[2]}' is number 1 in the data but 2 in the model: give the --class-map that" in line
    # names that are their own indices are none
    check_classes_of_model(['0', '2', '2', '3'], SimpleNamespace(class_to_idx={'2': 1, '3': 0}))
    assert 'none in common' not in caplog.text
    check_classes_of_model(['ant', 'bee'], SimpleNamespace(class_to_idx={'cat': 0, 'dog': 1}))
    assert "classes such as 'cat', the weights such as 'ant', and none in common by name" in caplog.text
    (tmp_path / 'map.txt').write_text('\n'.join(names))
    assert validate(capsys, '--checkpoint', run, images, '--class-map', tmp_path / 'map.txt', *HERE)


def test_weights_that_are_missing_or_damaged_have_exit_code_1(fails, run, images, tmp_path):
    for data in ([images], []):
        code, line = fails('--checkpoint', tmp_path / 'nowhere', *data)
        assert (code, line) == (1, f"--checkpoint '{tmp_path / 'nowhere'}' does not exist.")
    (tmp_path / 'empty').mkdir()
    code, line = fails('--checkpoint', tmp_path / 'empty', images)
    assert code == 1
    assert 'neither a run folder nor its model_best, and holds no .pth files' in line
    for name in ('a.pth', 'a.safetensors'):
        (tmp_path / name).write_bytes(b'nothing')
        code, line = fails('--checkpoint', tmp_path / name, *MODEL, images)
        assert code == 1
        assert str(tmp_path / name) in line
    copy = tmp_path / 'run'
    shutil.copytree(run, copy, symlinks=True)
    (copy / 'model_best' / 'config.json').write_text('{')
    assert fails('--checkpoint', copy)[0] == 1
    (copy / 'args.yaml').write_text('a: [')
    code, line = fails('--checkpoint', copy)
    assert code == 1
    assert f"'{copy / 'args.yaml'}' cannot be read" in line
    (copy / 'args.yaml').write_text('[]')
    assert fails('--checkpoint', copy)[0] == 1
    code, line = fails('--model', f'local-dir:{tmp_path / "nowhere"}', images)
    assert code == 1


def test_data_that_does_not_fit_has_exit_code_1(fails, run, multi_label, tmp_path):
    for argv, message in (
        ([tmp_path / 'nowhere'], 'does not exist: see --data-dir'),
        ([tmp_path], 'Found 0 images'),
        (['--dataset', 'hnc/digits'], "labels outside the model's range 0 to 2, such as 9"),
        (multi_label[:-2], 'not one class index: for several labels pass --task multilabel'),
        (['--task', 'multilabel'], 'one class index: for a single label pass --task classification'),
    ):
        code, line = fails('--checkpoint', run, *argv)
        assert code == 1, line
        assert message in line


def test_images_that_cannot_be_decoded_are_counted(fails, run, tmp_path, capsys, faulty_format):
    data = write_folder(tmp_path / 'images')
    files = sorted((data / 'validation').rglob('*.png'))
    files[4].write_bytes(faulty('OverflowError'))
    assert validate(capsys, '--checkpoint', run, data, *HERE)['skipped_images'] == 1
    for file in files:
        file.write_bytes(b'no image')
    code, line = fails('--checkpoint', run, data)
    assert code == 1
    assert 'Failed to load' in line
    code, line = fails(
        '--checkpoint', run, '--dataset', 'wds/x', '--data-dir', write_shards(tmp_path / 's', damaged=True)
    )
    assert code == 1
    assert 'the validation set is empty: see --val-split (validate: --split) and --data-dir' in line


def test_a_run_with_a_holdout_validates_on_it_again(images, tmp_path, capsys):
    run = train(*('--data-dir', images, *SMALL, '--holdout', 0.3, '--output', tmp_path, '--experiment', 'run'))
    options = arguments(run)
    assert (options['val_split'], options['holdout']) == ('train', 0.3)
    figures = validate(capsys, '--checkpoint', run, *HERE)
    assert {name: figures[name] for name in ('top1', 'loss')} == pytest.approx(
        {name: result(run)['final'][name] for name in ('top1', 'loss')}, rel=1e-5
    )
    whole = validate(capsys, '--checkpoint', run, '--split', 'train', *HERE)
    assert whole['loss'] != figures['loss']
    again = validate(capsys, '--checkpoint', run, '--split', 'train', '--holdout', 0.3, '--seed', 42, *HERE)
    assert again['loss'] == figures['loss']
