"""timm-hnc cams, curves, losses: pictures of photographs, losses and runs, and what it refuses."""

import csv
import io
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import yaml
from faulty_images import ERRORS, faulty
from PIL import EpsImagePlugin, Image
from running import run_script

from timm_hnc import CamModel, save_pretrained
from timm_hnc.commands.command_line import run_command
from timm_hnc.commands.console import main
from timm_hnc.errors import DataError
from timm_hnc.files.run_curves import read_run
from timm_hnc.plots.curves import curve_panels, curve_rows, draw_curves, label_of, told_apart
from timm_hnc.plots.figures import new_figure
from timm_hnc.plots.loss_figure import example_maps, values_and_gradients
from timm_hnc.plots.panel import draw_panel
from timm_hnc.plots.photo_cams import Subject, names_of, photo_rows
from timm_hnc.plots.photos import find_photos, load_photo


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """Two folders of weights for three classes."""
    folders = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = timm.create_model('test_resnet', num_classes=3)
        folders.append(tmp_path_factory.mktemp('weights') / f'run-{seed}' / 'model_best')
        save_pretrained(model, folders[-1], ['ant', 'bee', 'cat'])
    return [folder.parent for folder in folders]


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / 'photos'
    folder.mkdir()
    for name in ('b.jpg', 'a.png'):
        Image.fromarray(rng.integers(0, 255, (70, 90, 3), dtype=np.uint8)).save(folder / name)
    (folder / 'notes.txt').write_text('no photo')
    return folder


def rows_of(files, subjects):
    return [row for _, row in photo_rows(files, subjects)]


def fails(capsys, *argv):
    capsys.readouterr()
    code = run_command(main, [str(word) for word in argv])
    error = capsys.readouterr().err.strip()
    assert 'Traceback' not in error
    assert len([line for line in error.splitlines() if ': error: ' in line]) == 1, error
    return code, error.partition(': error: ')[2]


def test_photos_of_two_models_share_their_scale(weights, photos, tmp_path):
    out = tmp_path / 'pictures' / 'cams.png'
    main(['cams', str(photos), '--checkpoint', str(weights[0]), '--against', str(weights[1]), '--out', str(out)])
    subjects = [
        Subject(
            CamModel(timm.create_model(f'local-dir:{folder / "model_best"}', pretrained=True)).eval(),
            folder.name,
            'abc',
        )
        for folder in (weights[1], weights[0])
    ]
    files = find_photos([photos])
    assert [file.name for file in files] == ['a.png', 'b.jpg']
    for subject in subjects:
        assert names_of(subject.model.model) == ['ant', 'bee', 'cat']
    named = [Subject(each.model, each.caption, ['ant', 'bee', 'cat']) for each in subjects]
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(draw_panel(rows_of(files, named), labelled=False)))
    main(['cams', str(photos), '--checkpoint', str(weights[1]), '--out', str(out)])
    rows = [replace(row, caption=file.name) for file, row in zip(files, rows_of(files, named[:1]), strict=True)]
    one = draw_panel(rows, labelled=False)
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(one)), 'of one model, rows have the names of photos'


def test_contrast_is_the_difference_of_the_logits(weights, photos, tmp_path, capsys):
    def values(*flags):
        out = ['--out', tmp_path / 'c.png', '--values', tmp_path / 'c.json']
        main([str(word) for word in ('cams', photos / 'a.png', '--checkpoint', weights[0], *flags, *out)])
        return json.loads((tmp_path / 'c.json').read_text())

    logits, contrast = ([row['mean'] for row in values(*flags)] for flags in ((), ('--contrast',)))
    assert contrast == pytest.approx([logits[0], *(logits[0] - each for each in logits[1:])], abs=1e-5)
    [first] = values('--topk', 0)
    assert first['mean'] == logits[0]
    assert first['peak'] == pytest.approx(np.max(first['map']) - np.mean(first['map']), abs=1e-5)
    code, line = fails(capsys, 'cams', photos / 'a.png', '--checkpoint', weights[0], '--contrast', '--topk', 0)
    assert code == 2
    assert '--contrast: needs --topk of 1 or more' in line


def test_another_classifier_than_the_weights_have_is_refused(weights, photos, capsys):
    argv = ('cams', photos / 'a.png', '--checkpoint', weights[0], '--gp', 'avg', '--num-classes', 7)
    code, line = fails(capsys, *argv)
    assert (code, f"'{weights[0]}' has " in line, 'classes, --num-classes says 7: leave it out.' in line) == (
        1,
        True,
        True,
    )


def test_weights_that_are_not_finite_are_told_in_a_line(photos, tmp_path, capsys):
    model = timm.create_model('test_resnet', num_classes=3)
    model.conv1[0].weight.data *= float('nan')
    save_pretrained(model, tmp_path / 'spoiled')
    code, line = fails(capsys, 'cams', photos / 'a.png', '--checkpoint', tmp_path / 'spoiled')
    assert (code, 'the logits of image 0 of the batch are not finite' in line) == (1, True), line


def test_it_is_a_command(weights, photos, tmp_path):
    done = run_script('-m', 'timm_hnc', 'cams', photos / 'a.png', '--checkpoint', weights[0], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == 'cams.png'
    assert (tmp_path / 'cams.png').is_file()


def test_wrong_use(weights, photos, tmp_path, capsys):
    photo, checkpoint = photos / 'a.png', ['--checkpoint', weights[0]]
    (tmp_path / 'names.txt').write_text('ant\nbee\n')
    (tmp_path / 'more.txt').write_text('names\nant\nbee\ncat\n')
    (tmp_path / 'blank.txt').write_text('\n  \n')
    (tmp_path / 'empty').mkdir()
    folder = weights[1] / 'model_best'
    for argv, code, message in (
        (['cams', photo], 2, 'no model: pass --checkpoint RUN, or --model NAME'),
        (['cams', tmp_path / 'none.jpg', *checkpoint], 1, "none.jpg' does not exist"),
        (['cams', tmp_path / 'empty', *checkpoint], 1, 'has no images'),
        (['cams', photos / 'notes.txt', *checkpoint], 1, "notes.txt' cannot be read: it is no image, or damaged"),
        (['cams', photo, *checkpoint, '--topk', 5], 2, '--topk 5: expected 0 to 4'),
        (['cams', photo, *checkpoint, '--class-names', tmp_path / 'names.txt'], 1, '2 class names for 3 classes'),
        (['cams', photo, *checkpoint, '--class-names', tmp_path / 'more.txt'], 1, '4 class names for 3 classes'),
        (['cams', photo, *checkpoint, '--class-names', tmp_path / 'no.txt'], 1, 'cannot be read'),
        (
            ['cams', photo, *checkpoint, '--class-names', tmp_path / 'blank.txt'],
            1,
            "blank.txt' is empty: expected a name",
        ),
        (
            ['cams', photo, *checkpoint, '--model', 'resnet18'],
            1,
            f"'{weights[0]}' is of the architecture 'test_resnet'",
        ),
        (
            ['cams', photo, *checkpoint, '--against', folder, '--model', 'resnet18'],
            1,
            f"--model resnet18: '{folder}' is",
        ),
        (['cams', photo, '--checkpoint', tmp_path / 'none'], 1, f"--checkpoint '{tmp_path / 'none'}' does not exist"),
        (['cams', photo, '--checkpoint', tmp_path / 'empty'], 1, "empty' is neither a run folder nor its model_best"),
        (['cams', photo, '--against', folder], 2, 'no model: pass --checkpoint RUN, or --model NAME'),
        (['cams', photo, '--model', 'resnet_none', '--pretrained'], 2, "'resnet_none' cannot be made"),
        (['cams', photo, '--model', 'test_vit', '--num-classes', 0], 2, '--num-classes 0: expected 1 or more'),
        (
            ['cams', photo, *checkpoint, '--out', tmp_path / 'a.what'],
            2,
            "a.what': expected a name that ends as a picture",
        ),
        (
            ['cams', photo, *checkpoint, '--out', tmp_path / 'a.psd'],
            2,
            "a.psd': expected a name that ends as a picture",
        ),
        (['losses', '--out', tmp_path / 'a.psd'], 2, "a.psd': expected a name that ends as a"),
        (['cams', photo, *checkpoint, '--use-ema'], 2, '--use-ema: does nothing without a weights file.'),
        (['cams', photo, *checkpoint, '--device', 'cuda:9'], 2, '--device cuda:9: this machine has cpu'),
        (['cams', f'{"a" * 300}.png', *checkpoint], 1, 'aaa.png'),
        (['cams', photo, '--checkpoint', 'a' * 300], 1, f"--checkpoint '{'a' * 300}'"),
        (['demo', weights[0], '--host', '.'], 2, '--host .: the page cannot be served there'),
        (['curves', tmp_path / 'empty'], 1, "empty' is no run folder of train.py"),
    ):
        found, line = fails(capsys, *argv)
        assert found == code, argv
        assert message in line, argv


def test_model_may_repeat_the_architecture_of_a_run_and_names_that_of_a_file(weights, photos, tmp_path):
    """--model is never left aside: with a weights file or alone it says what else is drawn."""
    torch.manual_seed(3)
    other = timm.create_model('test_efficientnet', num_classes=3).eval()
    torch.save(other.state_dict(), tmp_path / 'other.pth')

    def logits(*argv):
        out = ['--out', tmp_path / 'c.png', '--values', tmp_path / 'new' / 'c.json']
        main([str(word) for word in ('cams', photos / 'a.png', *argv, *out)])
        rows = json.loads((tmp_path / 'new' / 'c.json').read_text())
        found = {}
        for row in rows:
            found.setdefault(row['model'], {})[row['class']] = row['mean']
        return found

    [alone] = logits('--checkpoint', weights[0]).values()
    for name in ('test_resnet', 'test_resnet.r160_in1k'):
        assert logits('--checkpoint', weights[0], '--model', name) == {'': alone}
    file = ['--checkpoint', tmp_path / 'other.pth', '--model', 'test_efficientnet', '--num-classes', 3]
    both = logits('--against', weights[0], *file)
    assert both['run-0'] == alone
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=other))
    with torch.no_grad():
        [expected] = other(transform(load_photo(photos / 'a.png'))[None]).tolist()
    named = dict(zip('012', expected, strict=True))
    assert both['other.pth'] == pytest.approx(named, abs=1e-5)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in other.state_dict().items()}
    torch.save({'state_dict': other.state_dict(), 'state_dict_ema': zeros}, tmp_path / 'both.pth')
    file[1] = tmp_path / 'both.pth'
    [raw], [averaged] = logits(*file).values(), logits(*file, '--use-ema').values()
    assert raw == pytest.approx(named, abs=1e-5), 'as validate.py does'
    assert set(averaged.values()) == {0}
    against = logits('--against', weights[0], '--model', 'test_resnet', '--num-classes', 3)
    assert against['run-0'] == alone
    assert set(against) == {'run-0', 'test_resnet'}


def test_photos_that_cannot_be_read_are_skipped(weights, photos, tmp_path, capsys, caplog, faulty_format):
    for number, error in enumerate(ERRORS):
        path = photos / f'aa-{number}.png'
        path.write_bytes(faulty(error))
        with pytest.raises(DataError, match=rf"aa-{number}\.png' (cannot be read: it is no image|has too many pixels)"):
            load_photo(path)
    drawn = ['--checkpoint', str(weights[0]), '--out', str(tmp_path / 'c.png'), '--values', str(tmp_path / 'c.json')]
    main(['cams', str(photos), *drawn])
    shown = {row['photo'] for row in json.loads((tmp_path / 'c.json').read_text())}
    assert shown == {str(photos / name) for name in ('a.png', 'b.jpg')}
    *skipped, count = [record.getMessage() for record in caplog.records if record.name == 'timm_hnc.plots.photos']
    assert len(skipped) == len(ERRORS)
    assert (
        skipped[0] == f"Skipped: photo '{photos / 'aa-0.png'}' cannot be read: it is no image, or damaged (ValueError)."
    )
    assert count == f'{len(ERRORS)} of {len(ERRORS) + 2} photos skipped.'
    code, line = fails(capsys, 'cams', photos / 'aa-0.png', photos / 'aa-1.png', *drawn)
    assert (code, "aa-0.png' cannot be read" in line) == (1, True)


def photo_of(tmp_path, image, name, **options):
    image.save(tmp_path / name, **options)
    return np.asarray(load_photo(tmp_path / name)).astype(int)


def test_kinds_of_photos(tmp_path):
    ramp = np.tile(np.linspace(0, 255, 40, dtype=np.uint8), (30, 1))
    colour = Image.fromarray(np.stack([ramp, np.full_like(ramp, 90), 255 - ramp], -1))
    expected = np.asarray(colour).astype(int)
    assert np.array_equal(photo_of(tmp_path, colour, 'rgb.png'), expected)
    assert abs(photo_of(tmp_path, colour.convert('CMYK'), 'cmyk.jpg', quality=100) - expected).max() < 12
    grey = photo_of(tmp_path, Image.fromarray(ramp), 'grey.png')
    assert np.array_equal(grey, np.stack([ramp] * 3, -1))
    deep = photo_of(tmp_path, Image.fromarray(ramp.astype(np.uint16) * 257), 'deep.png')
    assert np.array_equal(deep, grey)
    holed = ramp.astype(np.float32)
    holed[0, 0] = np.nan
    floats = photo_of(tmp_path, Image.fromarray(holed), 'float.tif')
    assert abs(floats[1:, 1:].astype(int) - grey[1:, 1:] * (255 / ramp.max())).max() <= 1
    palette = photo_of(tmp_path, colour.quantize(64), 'palette.png')
    assert abs(palette - expected).mean() < 8
    seen = colour.convert('RGBA')
    seen.putalpha(0)
    assert (photo_of(tmp_path, seen, 'clear.png') == 255).all()
    frames = photo_of(tmp_path, colour, 'many.gif', save_all=True, append_images=[Image.new('RGB', (40, 30))])
    assert abs(frames - expected).mean() < 12
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    assert photo_of(tmp_path, colour, 'turned.jpg', exif=exif).shape == (40, 30, 3)
    assert photo_of(tmp_path, Image.new('RGB', (1, 1), 'red'), 'dot.png').tolist() == [[[255, 0, 0]]]


def test_too_many_pixels_and_very_many(tmp_path, monkeypatch):
    Image.new('L', (6000, 200)).save(tmp_path / 'wide.png')
    assert load_photo(tmp_path / 'wide.png').width == 4096
    Image.new('1', (20_000, 20_000)).save(tmp_path / 'huge.png')
    with pytest.raises(DataError, match=r"huge\.png' has too many pixels: make it smaller first"):
        load_photo(tmp_path / 'huge.png')
    content = (tmp_path / 'wide.png').read_bytes()
    (tmp_path / 'half.png').write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match='no image, or damaged'):
        load_photo(tmp_path / 'half.png')


def test_what_would_harm_the_machine(tmp_path, monkeypatch):
    """PostScript is a program, which Pillow lets another one run; of a strip a model makes gigabytes."""
    (tmp_path / 'x.jpg').write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n')
    monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', lambda *_: pytest.fail('it is run'))
    with Image.open(tmp_path / 'x.jpg') as image:
        assert image.format == 'EPS'
    with pytest.raises(DataError, match=r"x\.jpg' cannot be read: it is no image"):
        load_photo(tmp_path / 'x.jpg')
    Image.new('RGB', (1, 51)).save(tmp_path / 'strip.png')
    with pytest.raises(DataError, match=r"strip\.png' is more than 50 times as long as wide: cut it first"):
        load_photo(tmp_path / 'strip.png')


def test_maps_of_a_dot_are_drawn(weights, tmp_path):
    Image.new('RGB', (1, 1), 'red').save(tmp_path / 'dot.png')
    main(['cams', str(tmp_path / 'dot.png'), '--checkpoint', str(weights[0]), '--out', str(tmp_path / 'cams.png')])
    assert (tmp_path / 'cams.png').is_file()


@pytest.mark.parametrize('variant', ['mse', 'kd'])
def test_values_and_gradients_of_fig_3(variant):
    for map_ in example_maps().values():
        value, gradient = values_and_gradients(map_, variant)
        number = map_.numel()
        if variant == 'mse':  # Eq. 2 and Eq. 11
            expected, slope = map_.square().mean(), 2 * map_ / number
        else:  # Eq. 5 and Eq. 12
            softmax = map_.exp() / map_.exp().sum()
            expected, slope = -softmax.log().mean(), softmax - 1 / number
        torch.testing.assert_close(value.sum(), expected)
        torch.testing.assert_close(gradient, slope)


def write_run(folder, name, hnc='none', weight=None, epochs=3, top1=20, **options):
    (folder / name).mkdir(parents=True)
    args = {'model': 'm', 'epochs': epochs, 'hnc': hnc, 'hnc_weight': weight, **options}
    (folder / name / 'args.yaml').write_text(yaml.safe_dump(args))
    rows = [f'{epoch},{2 - epoch / 3},{1 - epoch / 5},{top1 + epoch}' for epoch in range(epochs)]
    (folder / name / 'summary.csv').write_text('\n'.join(['epoch,train_loss,eval_loss,eval_top1', *rows]) + '\n')
    return folder / name


def curves_of(folders):
    return draw_curves([read_run(folder) for folder in folders])


def test_curves(tmp_path):
    runs = [write_run(tmp_path, 'ce'), write_run(tmp_path, 'a', 'mse', 0.001), write_run(tmp_path, 'b', 'mse', 0.01)]
    picture = curves_of(runs)
    without = curves_of(runs[:2])
    assert picture.width > without.width, 'the panel of the weights'
    assert label_of(read_run(runs[1])) == 'a (mse, 0.001)'
    other = write_run(tmp_path, 'c', 'mse', 0.1, epochs=4)
    assert curves_of([runs[0], runs[1], other]).width == without.width, 'another training is no point of the curve'
    buffer = io.BytesIO()
    picture.save(buffer, 'PNG')
    assert np.asarray(picture).std() > 10


@pytest.mark.parametrize('length', [8, 150])
def test_names_of_many_runs_are_not_cut_off(tmp_path, length):
    runs = [write_run(tmp_path, f'{number}'.rjust(length, 'x'), top1=20 + number) for number in range(29)]
    legend = np.asarray(curves_of(runs))[-200:]
    assert (legend < 255).any()
    assert (legend[:, [0, -1]] == 255).all()


def lines_by_weight(folders):
    """The lines of accuracy by weight, by what the legend calls them; a title of the panel."""
    axis = new_figure(4, 4).subplots()
    curve_panels([read_run(folder) for folder in folders])['accuracy by the weight of HNC, %'](axis)
    handles, names = axis.get_legend_handles_labels()
    return {name: line.get_xydata().tolist() for name, line in zip(names, handles, strict=True)}, axis


def test_a_run_of_one_epoch_has_that_epoch(tmp_path):
    panels = curve_panels([read_run(write_run(tmp_path, os.fsdecode(b'one\xff'), epochs=1))])
    axis = new_figure(4, 3).subplots()
    panels['training loss'](axis)
    assert [tick for tick in axis.get_xticks() if 0.5 < tick < 1.5] == [1]
    assert [text.encode() for text in axis.get_legend_handles_labels()[1]] == [b'one?']


def test_lines_by_weight_join_one_setting_of_hnc(tmp_path):
    settings = [
        ('mse', {}),
        ('mse', {'hnc_topk': 10}),
        ('mse', {'hnc_reduction': 'mean'}),
        ('mse', {'hnc_alpha': 0.5}),
        ('mse', {'hnc_start_epoch': 2}),
        ('kd', {}),
    ]
    runs, expected = [write_run(tmp_path, 'ce', top1=8)], []
    for number, (variant, changes) in enumerate(settings):
        options = {'hnc_topk': 50, 'hnc_reduction': 'sum', 'hnc_alpha': 0.0, 'hnc_start_epoch': 0} | changes
        for weight in (0.1, 1, 0.01):  # as Python may give it, a whole number
            top1 = 10 * number + len(runs)
            runs.append(write_run(tmp_path, f'run-{len(runs)}', variant, weight, top1=top1, **options))
        top1 = [10 * number + 3 * number + place for place in (3, 1, 2)]
        expected.append([[weight, value + 2] for weight, value in zip((0.01, 0.1, 1), top1, strict=True)])
    lines, axis = lines_by_weight(runs)
    assert set(lines.pop('without HNC')[0]) & {10}, 'top-1 of the last epoch'
    assert list(lines.values()) == expected
    all_four = 'k = {}, alpha = {}, reduction = {}, start epoch = {}'.format
    assert list(lines) == [
        f'HNC_mse, {all_four(50, 0.0, "sum", 0)}',
        f'HNC_mse, {all_four(10, 0.0, "sum", 0)}',
        f'HNC_mse, {all_four(50, 0.0, "mean", 0)}',
        f'HNC_mse, {all_four(50, 0.5, "sum", 0)}',
        f'HNC_mse, {all_four(50, 0.0, "sum", 2)}',
        f'HNC_kd, {all_four(50, 0.0, "sum", 0)}',
    ]
    assert axis.get_title() == 'accuracy of the last epoch, %'
    assert list(lines_by_weight(runs[:7])[0]) == ['HNC_mse, k = 50', 'HNC_mse, k = 10', 'without HNC']


def test_seeds_are_one_point_and_another_training_is_none(tmp_path):
    def run(weight, seed, top1, **options):
        name = f'{weight}-{seed}-{"-".join(options)}'
        return write_run(tmp_path, name, 'none' if weight is None else 'mse', weight, seed=seed, top1=top1, **options)

    runs = [run(0.01, 0, 20), run(0.01, 1, 30), run(0.1, 0, 40), run(0.1, 1, 44), run(None, 0, 6), run(None, 1, 8)]
    runs += [run(0.01, 2, 90, smoothing=0.1), run(0.05, 0, 90, opt='adamw'), run(0.1, 0, 90, img_size=64)]
    runs += [run(0, 0, 10)]  # HNC that is only measured
    runs += [run(0.1, 3, float('nan'))]  # its last update was too large
    runs += [run(1.0, 0, 50, output='elsewhere', workers=8, filled_in=['hnc_weight'])]
    lines, axis = lines_by_weight(runs)
    assert lines.pop('HNC_mse') == [[0.01, 27], [0.1, 44], [1.0, 52]]
    assert {y for _, y in lines.pop('without HNC')} == {10}
    assert not lines
    [dots] = axis.collections
    assert dots.get_offsets().tolist() == [[0.01, 22], [0.01, 32], [0.1, 42], [0.1, 46]]
    assert axis.get_title() == 'accuracy of the last epoch, mean of seeds, %'


def test_runs_are_told_apart_by_their_names(tmp_path):
    names = [('a', 'w'), ('b', 'w'), ('b', 'w (2)'), ('b', '_u'), ('b', '$x$')]
    runs = told_apart([read_run(write_run(tmp_path / place, name)) for place, name in names])
    assert [run.name for run in runs] == ['w (1)', 'w (3)', 'w (2)', '_u', '$x$']
    assert list(dict.fromkeys(row['run'] for row in curve_rows(runs))) == [run.name for run in runs]
    axis = new_figure(4, 4).subplots()
    curve_panels(runs)['training loss'](axis)
    texts = [text.get_text() for text in axis.legend().get_texts()]
    assert texts == ['w (1)', 'w (3)', 'w (2)', ' _u', r'\$x\$']


def test_runs_that_cannot_be_drawn(tmp_path):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'args.yaml').write_text('model: m')
    for summary in ('', 'epoch,train_loss\n', 'a,b\n1,2\n', 'epoch,train_loss\n0,what\n'):
        (tmp_path / 'run' / 'summary.csv').write_text(summary)
        with pytest.raises(DataError, match=r"run' (is no run folder|has no complete epoch)"):
            curves_of([tmp_path / 'run'])
    (tmp_path / 'run' / 'summary.csv').unlink()
    with pytest.raises(DataError, match=r"run' has no summary.csv: no epoch is complete, or it was imported"):
        curves_of([tmp_path / 'run'])


def test_probabilities_of_several_labels_are_sigmoids(weights, photos, tmp_path):
    named = ('--topk', 2, '--out', tmp_path / 'c.png', '--values', tmp_path / 'c.json')

    def probabilities(run, *more):
        main([str(word) for word in ('cams', photos / 'a.png', '--checkpoint', run, *more, *named)])
        return {row['class']: row['probability'] for row in values()}

    def values():
        return json.loads((tmp_path / 'c.json').read_text())

    model = timm.create_model(f'local-dir:{weights[0] / "model_best"}', pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    with torch.no_grad():
        [logits] = model(transform(load_photo(photos / 'a.png'))[None])
    sigmoids, softmax = (
        dict(zip(['ant', 'bee', 'cat'], x.tolist(), strict=True)) for x in (logits.sigmoid(), logits.softmax(0))
    )
    run = shutil.copytree(weights[0], tmp_path / 'run')
    assert probabilities(run) == pytest.approx(softmax, abs=1e-5)
    assert probabilities(run, '--task', 'multilabel') == pytest.approx(sigmoids, abs=1e-5)
    (run / 'args.yaml').write_text('task: multilabel\n')
    assert probabilities(run) == probabilities(run / 'model_best') == pytest.approx(sigmoids, abs=1e-5)
    main([str(word) for word in ('cams', photos / 'a.png', '--model', f'local-dir:{run / "model_best"}', *named)])
    assert {row['class']: row['probability'] for row in values()} == probabilities(run)
    epoch = run / 'checkpoints' / 'epoch-0'
    shutil.copytree(run / 'model_best', epoch / 'model')
    assert probabilities(epoch) == probabilities(run)
    (tmp_path / 'best').symlink_to(epoch / 'model')
    assert probabilities(tmp_path / 'best') == probabilities(run), 'in the run that the link leads to'
    names = ['--class-names', tmp_path / 'names.txt']
    (tmp_path / 'names.txt').write_text('ant\nbee\ncat\n')
    file = epoch / 'model' / 'model.safetensors'
    architecture = ['--model', 'test_resnet', '--num-classes', 3]
    assert probabilities(file, *architecture, *names) == pytest.approx(sigmoids, abs=1e-5)


def test_photographs_have_the_mode_of_the_runs_images(weights, photos, tmp_path):
    run = shutil.copytree(weights[0], tmp_path / 'run')
    (run / 'args.yaml').write_text('input_img_mode: YCbCr\n')
    out = ('--out', tmp_path / 'c.png', '--values', tmp_path / 'c.json')
    main([str(word) for word in ('cams', photos / 'a.png', '--checkpoint', run, '--topk', 2, *out)])
    found = {row['class']: row['mean'] for row in json.loads((tmp_path / 'c.json').read_text())}
    model = timm.create_model(f'local-dir:{run / "model_best"}', pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    with torch.no_grad():
        [logits] = model(transform(Image.open(photos / 'a.png').convert('YCbCr'))[None])
    assert found == pytest.approx(dict(zip(['ant', 'bee', 'cat'], logits.tolist(), strict=True)), abs=1e-5)


def test_names_of_classes_by_their_numbers(weights, tmp_path):
    """timm's configs may have them so."""
    folder = shutil.copytree(weights[0] / 'model_best', tmp_path / 'weights')
    config = json.loads((folder / 'config.json').read_text())
    config['label_names'] = {'0': 'ant', '1': 'bee', '2': 'cat'}
    (folder / 'config.json').write_text(json.dumps(config))
    model = timm.create_model(f'local-dir:{folder}', pretrained=True)
    assert names_of(model) == CamModel(model).class_names == ['ant', 'bee', 'cat']


def test_values_of_curves_and_losses(tmp_path):
    run = write_run(tmp_path, 'a', 'mse', 0.001)
    out = ['--out', str(tmp_path / 'x.png'), '--values', str(tmp_path / 'x.csv')]
    main(['curves', str(run), *out])
    with (tmp_path / 'x.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert [(row['run'], row['epoch'], row['eval_top1']) for row in rows] == [
        ('a', f'{e}.0', f'{20.0 + e}') for e in range(3)
    ]
    main(['losses', *out])
    with (tmp_path / 'x.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 49
    # the loss of the flat parts is small, that of the peak large
    peak = max(
        (row for row in rows if (row['map'], row['variant']) == ('peak', 'mse')), key=lambda row: float(row['loss'])
    )
    assert (peak['row'], peak['column'], float(peak['value'])) == ('3', '3', 6.0)
    assert float(peak['gradient']) == pytest.approx(2 * 6 / 49)
