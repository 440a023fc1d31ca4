"""The report page against figures computed another way, and in a real browser."""

import csv
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from browser import open_page
from image_data import CLASSES
from running import SMALL, WITH_REPORT, result, train, validate
from timm.data import create_transform, resolve_data_config
from torch.nn.functional import cross_entropy, softmax
from torchvision.datasets import ImageFolder

from timm_hnc import CamModel, ClassMaps
from timm_hnc.commands.command_line import run_command
from timm_hnc.commands.console import main
from timm_hnc.errors import DataError
from timm_hnc.evaluation.confusions import ConfusionPass
from timm_hnc.evaluation.map_pass import WatchedMaps
from timm_hnc.report.examples import ExamplePass, read_examples
from timm_hnc.report.figure_table import figure_table
from timm_hnc.report.page import write_report
from timm_hnc.report.run_files import attack_lines, read_run_files


@pytest.fixture(scope='module')
def runs(images, tmp_path_factory):
    """Two runs with their reports: without and with HNC."""
    output = tmp_path_factory.mktemp('runs')
    argv = ['--data-dir', images, *WITH_REPORT, '--epochs', '2', '--output', output]
    return [
        train(*argv, '--experiment', 'plain'),
        train(*argv, '--experiment', 'flat', '--hnc', 'mse', '--hnc-weight', '0.1', '--hnc-topk', '2'),
    ]


@pytest.fixture(scope='module')
def outputs(runs, images):
    """Logits, maps and targets of the first run's best weights, made with plain timm on all images at once."""
    model = timm.create_model(f'local-dir:{runs[0] / "model_best"}', pretrained=True).eval()
    transform = create_transform(**resolve_data_config({}, model=model))
    data = ImageFolder(images / 'validation', transform)
    inputs, targets = (torch.stack([torch.as_tensor(sample[part]) for sample in data]) for part in range(2))
    with torch.no_grad():
        features = model.forward_features(inputs)
        maps = torch.einsum('bchw,oc->bohw', features, model.fc.weight) + model.fc.bias[:, None, None]
        return model(inputs), maps, targets


def read(folder, name):
    content = json.loads((folder / 'report' / f'{name}.json').read_text())
    with (folder / 'report' / f'{name}.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    for row, entry in zip(rows, content if isinstance(content, list) else [content], strict=True):
        assert {k: str(v) for k, v in entry.items()} == row, 'CSV and JSON say the same'
    return content


def test_best_and_worst_images(runs, outputs):
    logits, maps, targets = outputs
    losses = cross_entropy(logits, targets, reduction='none')
    order = losses.argsort().tolist()
    kept = read_examples(runs[0] / 'report')
    for end, expected in (('best', order[:4]), ('worst', order[:-5:-1])):
        assert [example.sample for example in kept[end]] == expected
        for example in kept[end]:
            number = example.sample
            assert example.loss == pytest.approx(losses[number].item(), rel=1e-4)
            ranked = [o for o in logits[number].argsort(descending=True).tolist() if o != targets[number]]
            cells = [example.row.positive, *example.row.negatives]
            for cell, index in zip(cells, [targets[number].item(), *ranked], strict=True):
                assert cell.name == CLASSES[index]
                assert cell.probability == pytest.approx(softmax(logits[number], 0)[index].item(), abs=1e-5)
                torch.testing.assert_close(cell.map, maps[number, index], atol=1e-3, rtol=1e-3)
    with (runs[0] / 'report' / 'examples.csv').open(newline='') as file:
        assert len(list(csv.DictReader(file))) == 2 * 4 * 3


def test_confusions(runs, outputs):
    logits, maps, targets = outputs
    expected = {}
    for row in range(len(targets)):
        present = targets[row].item()
        absent = max((o for o in range(3) if o != present), key=lambda o: logits[row, o].item())
        sums = expected.setdefault((CLASSES[present], CLASSES[absent]), np.zeros(3))
        map_ = maps[row, absent]
        sums += (1, (logits[row, absent] > logits[row, present]).item(), (map_.max() - map_.mean()).item())
    rows = read(runs[0], 'confusions')
    assert {(row['present'], row['absent']) for row in rows} == set(expected)
    for row in rows:
        count, confused, peak = expected[row['present'], row['absent']]
        assert (row['images'], row['confused']) == (count, confused)
        assert row['peak'] == pytest.approx(peak / count, rel=1e-3)
    totals = [row['images'] * row['peak'] for row in rows]
    assert totals == sorted(totals, reverse=True)


def test_figures_and_robustness_are_those_of_validate(runs, capsys):
    eps = ['1/255', '2/255', '4/255', '8/255']
    argv = ['--checkpoint', runs[1], '--workers', '0', '--device', 'cpu', '-b', '7']
    found = validate(capsys, *argv, '--cam-metrics', '--attack', 'fgsm', '--attack-eps', *eps)
    figures = read(runs[1], 'figures')
    assert len(figures) == 10
    assert figures['cam_topk'] == 10
    for name, value in figures.items():
        assert value == pytest.approx(found[name], abs=1e-3), name
    rows = read(runs[1], 'robustness')
    assert [row['eps'] for row in rows] == pytest.approx([0, 1 / 255, 2 / 255, 4 / 255, 8 / 255])
    assert all((row['images'], row['space']) == (25, 'pixel') for row in rows)
    assert rows[0]['top1'] == pytest.approx(found['top1'], abs=1e-3)
    for row in rows[1:]:
        assert row['top1'] == pytest.approx(found[f'fgsm_{row["eps"]:g}_top1'], abs=1e-3)


def test_figures_of_validate_come_into_the_report(runs, capsys, tmp_path):
    run = shutil.copytree(runs[0], tmp_path / 'run', symlinks=True)
    argv = ['--checkpoint', run, '--workers', '0', '--device', 'cpu', '--cam-curves', '3']
    attack = ['--attack', 'fgsm', 'pgd', '--attack-eps', '0.05', '0.1', '--attack-space', 'normalized']
    file = ['--results-file', run / 'validation.json']
    found = validate(capsys, *argv, *attack, *file)
    assert (found['attack_space'], found['attack_loss']) == ('normalized', 'ce')
    files = read_run_files(run)
    assert files.figures['cam_deletion_area'] == found['cam_deletion_area']
    assert {row['space'] for row in files.robustness} == {'normalized', 'pixel'}, "the run's own are there as well"
    measured = [row for row in files.robustness if row['space'] == 'normalized']
    keys = [(row['attack'], row['eps'], row['space'], row['top1']) for row in measured]
    assert keys == [
        (attack, eps, 'normalized', found[f'{attack}_{eps:g}_top1'] if eps else found['top1'])
        for attack in ('fgsm', 'pgd')
        for eps in (0.0, 0.05, 0.1)
    ]
    page = write_and_read([run], tmp_path)
    # FGSM was measured twice, in each space on other images
    told = re.findall(r'eps in ([^;<"]+); (\d+|all)', page)
    assert sorted(told) == [('pixels of [0, 1]', '25'), *[('units of the normalised input', 'all')] * 2]
    assert 'deletion area' in page
    assert page.count('10 steps; eps in units') == 1


def test_attacks_of_other_steps_or_images_have_panels_of_their_own(runs, tmp_path):
    folders = [shutil.copytree(runs[0], tmp_path / name, symlinks=True) for name in ('short', 'long', 'not')]
    final = json.loads((runs[0] / 'result.json').read_text())['final']
    for folder, steps in zip(folders, (10, 100), strict=False):
        figures = {'attack_steps': steps, 'attack_restarts': steps // 20, 'pgd_0.5_top1': 1.0, 'fgsm_0.5_top1': 2.0}
        (folder / 'validation.json').write_text(json.dumps({'top1': final['top1'], **figures}))
    titles = re.findall('alt="(top-1 under [^"]+)"', write_and_read(folders, tmp_path))
    starts = [title.removesuffix(', eps in pixels of [0, 1]').removeprefix('top-1 under ') for title in titles]
    assert starts == ['FGSM', 'FGSM, 25 images', 'PGD (10 steps)', 'PGD (100 steps, 5 starts)']


def test_figures_of_other_images_stay_out(runs, tmp_path, caplog):
    run = shutil.copytree(runs[0], tmp_path / 'run', symlinks=True)
    top1 = json.loads((run / 'result.json').read_text())['final']['top1']
    for there, used in ((top1 + 0.5, True), (top1 - 2, False)):
        figures = {'top1': there, 'cam_negative_peak': 99.0, 'fgsm_0.5_top1': 1.0}
        (run / 'validation.json').write_text(json.dumps(figures))
        files = read_run_files(run)
        assert (files.figures.get('cam_negative_peak') == 99) == used
        assert any(row['eps'] == 0.5 for row in files.robustness) == used
        assert ("validation.json' is left out: top1 is" in caplog.text) != used


def test_figures_that_cannot_be_read_stay_out(runs, tmp_path, caplog):
    run = shutil.copytree(runs[0], tmp_path / 'run', symlinks=True)
    figures = read_run_files(run).figures
    (run / 'validation.json').write_text('top1,top5\n1,2\n')
    assert read_run_files(run).figures == figures
    assert "validation.json' cannot be read: Expecting value" in caplog.text


def test_attacks_on_different_losses_are_told_apart(runs, tmp_path, without_curves):
    run = shutil.copytree(runs[0], tmp_path / 'run', symlinks=True)
    of_the_run = attack_lines(read_run_files(run))
    final = json.loads((run / 'result.json').read_text())['final']
    figures = {'top1': final['top1'], 'attack_loss': 'train', 'fgsm_0.5_top1': 1.0}
    (run / 'validation.json').write_text(json.dumps(figures))
    points = [(0.0, final['top1']), (0.5, 1.0)]
    assert attack_lines(read_run_files(run)) == {('fgsm', 'pixel', 'train', '', ''): points, **of_the_run}
    page = write_and_read([run], tmp_path)
    assert page.count('<h3>run: FGSM on the loss of the training</h3>') == page.count('<h3>run: FGSM</h3>') == 1


def test_figures_of_other_numbers_of_absent_classes_are_not_compared():
    absent, present = (f'maps of {which} classes: peak above the mean' for which in ('absent', 'present'))
    first = {'top1': 50.0, 'cam_topk': 10, 'cam_negative_peak': 3.0, 'cam_positive_peak': 4.0}
    second = {'top1': 60.0, 'cam_topk': 10, 'cam_negative_peak': 1.5, 'cam_positive_peak': 6.0}
    unmeasured = {'top1': 55.0}
    alike = {row.name: row for row in figure_table([first, second, unmeasured])}
    assert (alike[absent].differences, alike[absent].best) == (['', '-1.50', ''], [False, True, False])
    other = {row.name: row for row in figure_table([first, second | {'cam_topk': 2}, unmeasured])}
    assert alike.pop('top-1, %') == other.pop('top-1, %')
    assert alike[present] == other[present]
    marked = other[f'{absent} (of 10 and 2 classes an image: not comparable, see --cam-topk)']
    assert marked.texts == ['3.00', '1.50', '']
    assert (marked.differences, marked.best) == (['', '', ''], [False] * 3)
    curves = [{'cam_deletion_area': 0.5, 'cam_curve_steps': steps} for steps in (4, 28)]
    (row,) = figure_table(curves)
    assert row.name == 'deletion area (of 4 and 28 steps: not comparable, see --cam-curves)'


def test_a_run_measured_with_another_topk_is_marked_on_the_page(runs, capsys, tmp_path, without_curves):
    run = shutil.copytree(runs[1], tmp_path / 'one', symlinks=True)
    argv = ['--checkpoint', run, '--workers', '0', '--device', 'cpu', '--cam-metrics', '--cam-topk', '1']
    found = validate(capsys, *argv, '--results-file', run / 'validation.json', '--results-format', 'json')
    figures = read_run_files(run).figures
    assert (figures['cam_topk'], figures['cam_negative_peak']) == (1, found['cam_negative_peak'])
    marks = [
        write_and_read(each, tmp_path).count('(of 10 and 1 classes an image: not comparable, see --cam-topk)')
        for each in ([runs[0], run], [run], runs)
    ]
    assert marks == [3, 0, 0]


@pytest.fixture
def without_curves(monkeypatch):
    """Drawing them takes half a second a page: as without matplotlib."""
    monkeypatch.setattr('timm_hnc.report.page.find_spec', lambda name: None)


def write_and_read(folders, tmp_path):
    write_report(folders, tmp_path / 'page.html')
    return (tmp_path / 'page.html').read_text()


@pytest.fixture(scope='module')
def page(runs, tmp_path_factory):
    """The page of both runs, in a folder that was not there, beside its values."""
    folder = tmp_path_factory.mktemp('page') / 'a'
    values = [str(folder.parent / f'v.{ending}') for ending in ('csv', 'json')]
    main(['report', *map(str, runs), '--out', str(folder / 'page.html'), '--values', *values])
    return folder / 'page.html'


@pytest.mark.parametrize('width', [400, 1200])
def test_the_page_in_a_browser(page, browser, width):
    browser.get_log('performance')
    open_page(browser, page, width)
    assert browser.get_log('browser') == []
    asked = [json.loads(entry['message'])['message'] for entry in browser.get_log('performance')]
    urls = [each['params']['request']['url'] for each in asked if each['method'] == 'Network.requestWillBeSent']
    # a new browser may still ask for chrome:// pages of its own
    assert not [url for url in urls if url.startswith(('http', 'ws', 'ftp'))], 'nothing comes from the network'
    assert any(url.startswith('file:') for url in urls)
    pictures = browser.execute_script(
        'return [...document.images].map(i => [i.complete, i.naturalWidth, i.getBoundingClientRect().width, i.alt])'
    )
    # 4 curves, the attack, and 8 images with 3 maps each of both runs
    assert len(pictures) == 4 + 1 + 2 * 8 * 4
    assert all(complete and natural and shown >= 100 and alt for complete, natural, shown, alt in pictures)
    assert browser.execute_script('return document.documentElement.scrollWidth') <= width
    sizes = browser.execute_script(
        'return [...document.querySelectorAll("p,td,th,dd,figcaption,pre")]'
        '.map(e => parseFloat(getComputedStyle(e).fontSize))'
    )
    assert min(sizes) >= 12, 'readable letters'
    cut = browser.execute_script(
        'return [...document.querySelectorAll("p,dd,figcaption,h1,h2,h3,pre")].filter('
        'e => e.getBoundingClientRect().right > innerWidth + 1 || e.scrollWidth > e.clientWidth + 1).length'
    )
    assert cut == 0, 'no text beyond the edge'


def test_the_table_of_two_runs(runs, page, browser):
    open_page(browser, page, 1000)
    cells = browser.execute_script(
        'return [...document.querySelectorAll("#figures tbody tr")].map('
        'row => [...row.children].map(cell => [cell.firstChild.textContent.trim(), cell.classList.contains("best")]))'
    )
    table = {name: values for (name, _), *values in cells}
    plain, flat = (json.loads((run / 'report' / 'figures.json').read_text()) for run in runs)
    for name, key, low_is_good in (
        ('top-1, %', 'top1', False),
        ('validation loss', 'loss', True),
        ('maps of absent classes: peak above the mean', 'cam_negative_peak', True),
    ):
        assert [float(text) for text, _ in table[name]] == pytest.approx([plain[key], flat[key]], abs=0.006)
        best = min(plain[key], flat[key]) if low_is_good else max(plain[key], flat[key])
        assert [mark for _, mark in table[name]] == [plain[key] == best, flat[key] == best]
    values = json.loads((page.parents[1] / 'v.json').read_text())
    assert values == [{'run': 'plain', **plain}, {'run': 'flat', **flat}]


def test_several_labels(multi_label, tmp_path, without_curves):
    run = train(*multi_label, *WITH_REPORT, '--output', tmp_path, '--experiment', 'run')
    files = read_run_files(run)
    assert files.metric == 'map'
    assert files.robustness[0]['map'] == pytest.approx(result(run)['final']['map'], abs=1e-3)
    assert len(files.examples['best']) == 4
    assert 'mAP, %' in (run / 'report.html').read_text()


def test_a_model_without_maps_and_a_run_without_report(images, tmp_path, without_curves):
    argv = ['--data-dir', images, '--output', tmp_path]
    # a maximum in front of the classifier has no exact maps
    run = train(*argv, *WITH_REPORT, '--gp', 'max', '--experiment', 'max')
    assert not (run / 'report' / 'examples.json').exists()
    assert set(read(run, 'figures')) == {'loss', 'top1', 'top5'}
    assert len(read(run, 'robustness')) == 5
    bare = train(*argv, *SMALL, '--experiment', 'bare')
    assert not (bare / 'report.html').exists()
    page = write_and_read([run, bare], tmp_path)
    assert 'Final figures' in page
    assert 'Images and their class activation maps' not in page


def test_without_matplotlib(runs, tmp_path, without_curves):
    page = write_and_read(runs, tmp_path)
    assert 'pip install &#34;timm_hnc[plots]&#34;' in page or 'pip install "timm_hnc[plots]"' in page


def test_names_that_are_code_stay_text(runs, tmp_path, without_curves):
    run = shutil.copytree(runs[0], tmp_path / '<b>run', symlinks=True)
    path = run / 'report' / 'confusions.json'
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([{**rows[0], 'present': '<script>alert(1)</script>'}]))
    page = write_and_read([run], tmp_path)
    assert '<script>' not in page
    assert '<b>' not in page


@pytest.mark.parametrize(
    ('file', 'content', 'message'),
    [
        ('report/figures.json', '[1]', 'is not what this version of timm_hnc writes there'),
        ('report/robustness.json', '{"a": 1}', 'is not what this version of timm_hnc writes there'),
        ('report/examples.json', '[{"end": "best"}]', 'examples.json'),
        ('report/confusions.json', '{', 'cannot be read'),
        ('result.json', 'no json', 'cannot be read'),
        ('summary.csv', '', 'has no complete epoch'),
        ('args.yaml', '- a', 'has no options'),
        ('report/best-1.png', 'no image', 'examples.json'),
    ],
)
def test_damaged_runs(runs, tmp_path, file, content, message):
    run = shutil.copytree(runs[0], tmp_path / 'run', symlinks=True)
    (run / file).write_text(content)
    with pytest.raises(DataError, match=message):
        write_report([run], tmp_path / 'page.html')


def test_wrong_use(runs, tmp_path, capsys, without_curves):
    (tmp_path / 'empty').mkdir()
    for argv, code, message in (
        (['report', tmp_path / 'empty'], 1, "empty' is no run folder of train.py: there is no args.yaml in it."),
        (['report', runs[0], '--out', runs[0]], 2, 'cannot be written'),
        (['report', runs[0], '--values', 'a.txt'], 2, "--values 'a.txt': expected a name that ends in .csv or .json"),
    ):
        assert run_command(main, [str(word) for word in argv]) == code
        error = capsys.readouterr().err
        assert message in error
        assert 'Traceback' not in error


def test_examples_and_confusions_leave_padding_out():
    torch.manual_seed(3)
    examples = ExamplePass(lambda x: x, 'abc', False, iter(range(100)), count=2)
    confusions = ConfusionPass(list('abc'))
    model, losses = SimpleNamespace(), []
    watched = WatchedMaps(model, [examples, confusions], limit=5)
    count = watched.before(lambda output, target: (output, target))
    for size in (3, 4, 1):
        maps = ClassMaps(torch.randn(size, 4, 2), torch.randn(3, 2), None, (2, 2))
        target = torch.randint(3, (size,))
        model.class_maps = lambda x, maps=maps: maps
        count(watched(torch.rand(size, 3, 8, 8)), target)
        losses += cross_entropy(maps.logits, target, reduction='none').tolist()
    order = sorted(range(5), key=lambda number: losses[number])
    assert [example.sample for example in examples.kept['best']] == order[:2]
    assert [example.sample for example in examples.kept['worst']] == order[:-3:-1]
    assert sum(row['images'] for row in confusions.rows(9)) == 5


def test_model_for_pictures_only_is_not_measured_map_by_map(images, tmp_path, without_curves):
    """A map of such a model costs a backward pass: the report shows those of its examples alone."""
    size = ['--img-size', '32', '--model-kwargs', 'img_size=32', 'depth=2']
    model = ['--model', 'test_vit', '--num-classes', '3', *size, '--workers', '0', '--device', 'cpu']
    assert not CamModel(timm.create_model('test_vit', num_classes=3)).kind.trainable
    argv = ['--data-dir', images, *model, '-b', '8', '--epochs', '1', '--cam-images', '0']
    run = train(*argv, '--output', tmp_path, '--experiment', 'run')
    assert len(read_examples(run / 'report')['worst']) == 4
    assert set(read(run, 'figures')) == {'loss', 'top1', 'top5'}
    assert read(run, 'confusions') == []


@pytest.mark.parametrize(
    ('name', 'change'),
    [
        ('result.json', {'versions': ['x']}),
        ('report/confusions.json', [{'of': 'a'}]),
        ('report/robustness.json', [{'attack': 'fgsm', 'space': 'pixel', 'top1': 1.0}]),
        ('report/robustness.json', [{'attack': 'fgsm', 'space': 'pixel', 'eps': None, 'top1': 1.0}]),
    ],
)
def test_run_folders_of_another_version_in_one_line(runs, tmp_path, without_curves, name, change):
    run = shutil.copytree(runs[1], tmp_path / 'run', symlinks=True)
    content = json.loads((run / name).read_text())
    (run / name).write_text(json.dumps(content | change if isinstance(content, dict) else change))
    with pytest.raises(DataError, match='not of this version of timm_hnc') as error:
        write_report([run], tmp_path / 'report.html')
    assert '\n' not in str(error.value)


def test_options_of_another_version_in_one_line(runs, tmp_path, capsys):
    run = shutil.copytree(runs[1], tmp_path / 'run', symlinks=True)
    (run / 'args.yaml').write_text((run / 'args.yaml').read_text().replace('hnc_weight: 0.1', 'hnc_weight: much'))
    for command in ('report', 'curves'):
        code = run_command(main, [command, str(run), '--out', str(tmp_path / f'{command}.svg')])
        error = capsys.readouterr().err
        assert 'Traceback' not in error
        assert code == 0 or error.count(': error: ') == 1
