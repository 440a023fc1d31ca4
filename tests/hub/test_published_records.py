"""What is published belongs together, says what is true, and is refused where it would not."""

import csv
import io
import json
import re
import shutil
import threading

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image

from timm_hnc.errors import DataError
from timm_hnc.hub.bundle import bundle_run
from timm_hnc.hub.card import CardFacts, render_card
from timm_hnc.training.outputs.publishing import Publisher
from timm_hnc.training.setup.output_options import HubOptions

RUN = ['--model', 'test_resnet', '--num-classes', '3', '--img-size', '32', '-b', '8', '--workers', '0']
RUN += ['--device', 'cpu']


def train(worker, images, folder, name, *argv):
    done = worker('train', '--data-dir', images, *RUN, '--output', folder, '--experiment', name, *argv)
    assert done.code == 0, done.err[-2000:]
    return done


def figures_agree(files):
    """result.json and card say what summary.csv has of the weights in the same commit."""
    rows = list(csv.DictReader(io.StringIO(files['summary.csv'].decode())))
    result = json.loads(files['result.json'])
    row = next(row for row in rows if f'epoch-{row["epoch"]}' == result['best_checkpoint'])
    assert result['final']['top1'] == pytest.approx(float(row['eval_top1']), abs=1e-3)
    assert result['epochs'] == int(rows[-1]['epoch']) + 1
    assert 'torch' in result['versions']
    found = {each.metric_name: each.metric_value for each in ModelCard(files['README.md'].decode()).data.eval_results}
    assert found['top-1 accuracy'] == pytest.approx(float(row['eval_top1']), abs=1e-3)
    assert '## Training\n\n```\n' in files['README.md'].decode(), 'the command line'


def test_every_commit_of_a_run_belongs_together(server, worker, images, tmp_path):
    options = ['--push-to-hub', 'alice/every', '--no-report', '--cam-images', '2', '--hub-every']
    train(worker, images, tmp_path, 'run', '--epochs', '2', *options, '1')
    # the run goes on after its end: what it then publishes is not what its first end said; the epoch after four more
    # is not evaluated, the next one is
    argv = ['--epochs', '7', '--val-interval', '3', '--resume', 'auto']
    train(worker, images, tmp_path, 'run', *argv, *options, '4')
    commits = server.commits('alice/every', 'main')
    titles = [commit.title for commit in commits if commit.title.startswith('Add model')]
    assert titles.count('Add model') >= 1
    assert {'Add model of epoch 0', 'Add model of epoch 5'} <= set(titles)
    for commit in commits:
        if commit.title.startswith('Add model'):
            figures_agree(server.files('alice/every', commit.sha))


def test_a_slow_hub_does_not_hold_training_up(run, monkeypatch, caplog):
    goes_on, published = threading.Event(), []

    def slow(folder, repo_id, commit_message, **options):
        assert (folder / 'model.safetensors').is_file()
        assert goes_on.wait(30)
        published.append(commit_message)
        return 'address'

    monkeypatch.setattr('timm_hnc.training.outputs.publishing.publish_folder', slow)
    publisher = Publisher(HubOptions(push_to_hub='alice/slow'), run)
    for epoch in (0, 1):
        publisher.publish_so_far(f'epoch {epoch}', {'final': {'top1': 1.0}}, with_picture=False)
    assert published == []
    assert "'epoch 1' is not published: the upload before it still goes on." in caplog.text
    threading.Timer(0.3, goes_on.set).start()
    publisher.publish('end')
    assert published == ['epoch 0', 'end']


def test_a_hub_that_fails_in_the_background_costs_nothing(run, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise DataError('not published: the Hub is down.')

    monkeypatch.setattr('timm_hnc.training.outputs.publishing.publish_folder', fail)
    publisher = Publisher(HubOptions(push_to_hub='alice/down'), run)
    publisher.publish_so_far('epoch 0', {}, with_picture=False)
    publisher.publish('end')
    assert caplog.text.count('to publish it later: timm-hnc push') == 2


def test_no_request_stands_in_the_log(server, worker, images, tmp_path):
    done = train(worker, images, tmp_path, 'run', '--epochs', '1', '--push-to-hub', 'alice/quiet', '--no-report')
    assert 'lfs-storage' not in done.err
    assert 'HTTP Request' not in done.err


def test_a_public_repository_does_not_become_private_unasked(server, worker, run):
    assert worker('push', run, 'alice/open').code == 0
    commits = len(server.commits('alice/open', 'main'))
    done = worker('push', run, 'alice/open', '--private')
    assert done.code == 1
    assert "'alice/open' exists already and is public." in done.err
    assert len(server.commits('alice/open', 'main')) == commits
    assert worker('push', run, 'alice/closed', '--private').code == 0
    assert worker('push', run, 'alice/closed', '--private', '--commit-message', '').code == 0


def test_a_baseline_that_is_none(worker, run, tmp_path):
    for baseline in (tmp_path, run / 'args.yaml', tmp_path / 'nowhere'):
        done = worker('push', run, 'alice/compared', '--baseline', baseline)
        assert done.code == 1
        assert f"--baseline '{baseline}' is no run folder with figures." in done.err


def test_records_of_another_model_go(server, worker, run):
    assert worker('push', run, 'alice/reused').code == 0
    assert {'args.yaml', 'summary.csv', 'result.json', 'cams.png'} <= set(server.files('alice/reused'))
    code = """
import timm, timm_hnc
model = timm.create_model('test_resnet', num_classes=2)
timm_hnc.push_to_hub(model, 'alice/reused', class_names={1: 'b', 0: 'a'})
"""
    done = worker('python', code)
    assert done.code == 0, done.err
    files = server.files('alice/reused')
    assert set(files) - {'.gitattributes'} == {'README.md', 'config.json', 'model.safetensors'}
    assert json.loads(files['config.json'])['label_names'] == ['a', 'b']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ("model, class_names=['a', 'b']", 'class_names: 2 given for 3 classes'),
        ('model, class_names=[]', 'class_names: 0 given for 3 classes'),
        ("model, class_names='abc'", 'expected a text for every class'),
        ("model, class_names=['a', 'b', 3]", 'expected a text for every class'),
        ("model, figures={'top1': '73'}", "figures: top1 is '73', expected a finite number"),
        ("model, figures={'top1': float('nan')}", 'figures: top1 is nan'),
        ('torch.nn.ReLU()', "the model is a ReLU, none of timm's"),
        ("model, revision='next', create_pr=True", 'revision: not together with create_pr'),
    ],
)
def test_models_that_cannot_be_published(server, worker, arguments, message):
    model, _, options = arguments.partition(', ')
    code = f"""
import timm, timm_hnc, torch
model = timm.create_model('test_resnet', num_classes=3)
try:
    timm_hnc.push_to_hub({model}, 'alice/none', {options})
except timm_hnc.errors.UsageError as error:
    found = str(error)
"""
    done = worker('python', code)
    assert done.code == 0, done.err
    assert message in done.found
    assert not server.has('alice/none')


def changed_copy(run, folder, name, content):
    copy = shutil.copytree(run, folder / 'copy', symlinks=True)
    path = copy / name
    path.resolve().write_text(content)
    for manifest in copy.rglob('manifest.json'):
        manifest.unlink()
    return copy


@pytest.mark.parametrize(
    ('name', 'content'),
    [
        ('model_best/config.json', '{'),
        ('model_best/config.json', '[]'),
        ('result.json', '[]'),
        ('result.json', '{"command": "train.py --output \'x"}'),
        ('args.yaml', '[1]'),
    ],
)
def test_damaged_records_in_one_line(server, worker, run, tmp_path, name, content):
    done = worker('push', changed_copy(run, tmp_path, name, content), 'alice/damaged')
    assert done.code == 1
    assert done.err.count(': error: ') == 1
    assert not server.has('alice/damaged')


def test_a_result_without_figures_is_no_traceback(server, worker, run, tmp_path):
    (tmp_path / 'x').mkdir()
    assert worker('push', changed_copy(run, tmp_path / 'x', 'result.json', '{"final": 3}'), 'alice/odd').code == 0


def test_cards_say_what_the_model_can(server, worker, tmp_path):
    code = """
import timm, timm_hnc
for name, options in {'max': {'global_pool': 'max'}, 'four': {'in_chans': 4}}.items():
    timm_hnc.push_to_hub(timm.create_model('test_resnet', num_classes=3, **options), f'alice/card-{name}')
"""
    assert worker('python', code).code == 0
    without = ModelCard(server.files('alice/card-max')['README.md'].decode())
    assert timm.create_model('test_resnet').pretrained_cfg['license'], "timm's, of weights that these are not"
    assert 'license' not in json.loads(server.files('alice/card-max')['config.json'])['pretrained_cfg']
    assert 'class-activation-map' not in without.data.tags
    assert 'create_model' in without.text
    assert 'timm_hnc.create_model' not in without.text
    four = ModelCard(server.files('alice/card-four')['README.md'].decode()).text
    for block in four.split('```python\n')[1:]:
        done = worker('python', block.split('```')[0])
        assert done.code == 0, done.err


def test_the_licence_of_the_weights_that_a_run_began_with(server, worker, images, run, tmp_path):
    base = ['python', "import timm, timm_hnc\nmodel = timm.create_model('test_resnet', num_classes=3)\n"
            "timm_hnc.push_to_hub(model, 'alice/base', licence='cc-by-nc-4.0')"]  # fmt: skip
    assert worker(*base).code == 0
    options = ['--epochs', '1', '--no-report', '--cam-images', '0', '--push-to-hub']
    train(worker, images, tmp_path, 'tuned', '--model', 'hf-hub:alice/base', *options, 'alice/tuned')
    train(worker, images, tmp_path, 'older', '--model', 'hf_hub:alice/base', *options, 'alice/older')
    train(worker, images, tmp_path, 'own', *options, 'alice/own', '--hub-licence', 'mit')
    for name, licence in (*((name, 'cc-by-nc-4.0') for name in ('base', 'tuned', 'older')), ('own', 'mit')):
        files = server.files(f'alice/{name}')
        assert ModelCard(files['README.md'].decode()).data.license == licence, name
        assert json.loads(files['config.json'])['pretrained_cfg']['license'] == licence, name


def test_weights_of_a_file_have_no_licence_of_timms(worker, images, tmp_path):
    torch.save(timm.create_model('test_resnet', num_classes=3).state_dict(), tmp_path / 'weights.pth')
    weights = ['--pretrained', '--pretrained-path', tmp_path / 'weights.pth']
    train(worker, images, tmp_path, 'tuned', '--epochs', '1', '--no-report', '--cam-images', '0', *weights)
    bundle_run(tmp_path / 'tuned', tmp_path / 'bundle', 'alice/tuned')
    assert ModelCard((tmp_path / 'bundle' / 'README.md').read_text()).data.license is None


def test_a_card_loads_the_branch_that_it_is_on_and_says_how_the_maps_were_flattened(run, tmp_path):
    bundle_run(run, tmp_path / 'bundle', 'alice/branched', revision='v2')
    card = (tmp_path / 'bundle' / 'README.md').read_text()
    assert card.count("'hf-hub:alice/branched@v2'") == 2
    assert card.count("hf_hub_download('alice/branched', 'cams.png', revision='v2')") == 2
    assert "'hf-hub:alice/branched'" not in card
    hnc = {'variant': 'mse', 'weight': 0.5, 'topk': 9, 'alpha': 2.0, 'reduction': 'mean'}
    config = {'architecture': 'test_resnet', 'num_classes': 3, 'hnc': hnc}
    card = render_card(CardFacts('alice/a', config))
    assert '(`mse`, weight 0.5, top 9 negatives, mean over them, alpha 2)' in card
    assert '- Criterion: not recorded\n' in card


def test_a_card_says_what_a_classifier_is_whose_loss_changed_the_scores():
    config = {'architecture': 'test_resnet', 'num_classes': 3, 'hnc': {'variant': 'none', 'criterion': 'aam'}}
    assert re.search(r'^- Criterion: aam; .*other probabilities', render_card(CardFacts('alice/a', config)), re.M)


def test_a_folder_of_parquet_files_is_no_data_set_of_the_hub(server, worker, run, tmp_path):
    copy = changed_copy(
        run, tmp_path, 'args.yaml', f'{{model: test_resnet, dataset: "hfds/{tmp_path}/mlset", loss: ce}}'
    )
    assert worker('push', copy, 'alice/local').code == 0
    card = ModelCard(server.files('alice/local')['README.md'].decode())
    assert card.data.datasets is None
    assert 'mlset' in card.text


def test_a_picture_is_one(server, worker, run):
    assert worker('push', run, 'alice/picture').code == 0
    assert Image.open(io.BytesIO(server.files('alice/picture')['cams.png'])).width > 300
