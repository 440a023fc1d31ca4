"""FGSM and PGD: against another library, by their promises, and through validate.py."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from attacked_network import EPS, LABELS, STEP, STEPS, Network, images
from running import MODEL, NARROW, SMALL, failure, train, validate
from safetensors.torch import load_file
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader, TensorDataset

import timm_hnc
from timm_hnc import CamModel, HNCLoss, hnc_loss, save_pretrained
from timm_hnc.attacks.attacks import Attack, attack, cross_entropy, normalized, sample_losses, with_hnc
from timm_hnc.commands.options.validate_options import fraction
from timm_hnc.errors import DataError
from timm_hnc.evaluation.robustness import AttackOptions, threat_of
from timm_hnc.evaluation.sources import Source

REFERENCE = load_file(Path(__file__).parent / 'torchattacks_reference.safetensors')
PGD = Attack('pgd', EPS, STEPS, STEP, random_start=False)


@pytest.fixture
def classifier():
    return normalized(Network())


@pytest.mark.parametrize('how', [Attack('fgsm', EPS), PGD], ids=lambda how: how.name)
def test_images_are_those_of_torchattacks(classifier, how):
    torch.testing.assert_close(attack(classifier, images(), LABELS, how), REFERENCE[how.name], rtol=0, atol=1e-7)


def test_images_that_were_made_in_inference_mode(classifier):
    with torch.inference_mode():
        found = attack(classifier, images(), LABELS.clone(), Attack('fgsm', EPS), scale=1)
    torch.testing.assert_close(found, REFERENCE['fgsm'], rtol=0, atol=1e-7)


@pytest.mark.parametrize('scale', [1.0, torch.tensor([0.2, 0.25, 0.3]).view(1, 3, 1, 1)], ids=['pixel', 'normalized'])
@pytest.mark.parametrize('how', [Attack('fgsm', 0.1), Attack('pgd', 0.1), Attack('pgd', 0.1, restarts=3)])
def test_promises(classifier, how, scale):
    classifier.train()
    classifier.model.layers[0].weight.requires_grad_(False)
    before = images()
    after = attack(classifier, before, LABELS, how, scale=scale, generator=torch.Generator().manual_seed(1))
    assert ((after - before).abs() <= 0.1 * torch.as_tensor(scale) + 1e-6).all()
    assert after.min() >= 0
    assert after.max() <= 1
    assert not after.requires_grad
    assert torch.equal(before, images())
    assert classifier.training
    assert all(parameter.grad is None for parameter in classifier.parameters())
    assert [p.requires_grad for p in classifier.parameters()][:2] == [False, True]
    worse = cross_entropy(classifier, after, LABELS) - cross_entropy(classifier, before, LABELS)
    assert (worse > 0).all()


def test_more_restarts_are_never_weaker(classifier):
    losses = []
    for restarts in (1, 4):
        how = Attack('pgd', 0.1, steps=2, restarts=restarts)
        found = attack(classifier, images(), LABELS, how, generator=torch.Generator().manual_seed(3))
        losses.append(cross_entropy(classifier, found, LABELS))
    assert (losses[1] >= losses[0]).all()
    assert (losses[1] > losses[0]).any()


def test_of_several_starts_one_that_is_answered_wrongly_comes_first():
    class Bright(torch.nn.Module):
        def forward(self, images):
            mean = images.flatten(1).mean(1)
            return torch.stack([torch.full_like(mean, 0.5), mean], 1)

    def darkness(model, images, target):
        return -images.flatten(1).mean(1)

    starts = [Attack('pgd', 0.1, steps=1, step_size=1e-6, restarts=restarts) for restarts in (1, 12)]
    one, twelve = (
        attack(Bright(), torch.full((8, 1, 1, 1), 0.5), torch.zeros(8).long(), each, darkness)[:, 0, 0, 0]
        for each in starts
    )
    assert (one > 0.5).any()
    assert (one < 0.5).any()
    assert (twelve > 0.5).all(), 'the brightest are wrong, the darkest have the highest loss'


@pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])
@pytest.mark.parametrize('wrap', [lambda model: model, CamModel], ids=['plain', 'CamModel'])
def test_wrappers_take_the_mode_and_leave_the_statistics(wrap, training):
    """A mode set by hand, as of a frozen norm, is left too; neither an attack nor a wrapper moves a running mean."""
    model = timm.create_model('test_resnet', num_classes=5).train(training)
    if training:
        model.bn1.eval()
    modes = [module.training for module in model.modules()]
    wrapped = wrap(model)
    classifier = normalized(wrapped)
    assert (wrapped.training, classifier.training) == (training, training)
    assert [module.training for module in model.modules()] == modes
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for how in (Attack('fgsm', EPS), Attack('pgd', EPS, steps=2, restarts=2)):
        attack(classifier, torch.rand(4, 3, 48, 48), LABELS[:4], how)
    assert [module.training for module in model.modules()] == modes
    if not training:
        classifier(torch.rand(4, 3, 48, 48))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize('target', [LABELS, torch.eye(5)[LABELS]], ids=['one label', 'label sets'])
def test_float64_stays_float64(target):
    """Logits that differ by less than float32 can tell have losses that differ, and the attack sees it."""
    logits = torch.zeros(6, 5, dtype=torch.float64).scatter(1, LABELS[:, None], 1.0)
    losses = [sample_losses(each, target) for each in (logits, logits + 1e-12 * torch.arange(5) ** 2)]
    assert losses[0].dtype == torch.float64
    assert (losses[0] != losses[1]).all()
    assert sample_losses(logits.bfloat16(), target).dtype == torch.float32
    classifier = normalized(Network().double())
    for how in (Attack('fgsm', EPS), Attack('pgd', EPS, steps=2, restarts=2)):
        assert attack(classifier, images().double(), target, how).dtype == torch.float64


def test_nothing_is_done_within_eps_0(classifier):
    for name in ('fgsm', 'pgd'):
        assert torch.equal(attack(classifier, images(), LABELS, Attack(name, 0.0)), images())


def test_label_sets(classifier):
    sets = torch.eye(5)[LABELS] + torch.eye(5)[(LABELS + 1) % 5]
    found = attack(classifier, images(), sets, PGD)
    assert (cross_entropy(classifier, found, sets) > cross_entropy(classifier, images(), sets)).all()


def test_the_training_loss_is_eq_7():
    import timm

    torch.manual_seed(0)
    model = CamModel(timm.create_model('test_resnet', num_classes=5)).eval()
    classifier = normalized(model)
    pictures = torch.rand(4, 3, 48, 48)
    hnc = HNCLoss('kd', topk=2)
    value = with_hnc(hnc, 0.5)(classifier, pictures, LABELS[:4]).sum() / 4
    maps = model.class_maps(classifier.normalize(pictures))
    expected = torch.nn.functional.cross_entropy(maps.logits, LABELS[:4]) + 0.5 * hnc_loss(maps, LABELS[:4], 'kd', 2)
    torch.testing.assert_close(value, expected)


def test_normalisation_is_inside(classifier):
    inputs = (images() - torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)) / torch.tensor([0.2, 0.25, 0.3]).view(
        1, 3, 1, 1
    )
    torch.testing.assert_close(classifier(images()), classifier.model(inputs))
    torch.testing.assert_close(classifier.restore(inputs), images())


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ('make', 'channels', 'mean', 'std'),
    [
        (lambda: timm.create_model('test_resnet', num_classes=5, in_chans=1), 1, 0.5, 0.5),
        (lambda: timm.create_model('resnet10t', num_classes=5, in_chans=1), 1, 0.449, 0.226),  # of the colours' means
        (lambda: CamModel(torchvision.models.squeezenet1_1(num_classes=5)), 3, *IMAGENET),
        (lambda: torchvision.models.squeezenet1_1(num_classes=5), 3, *IMAGENET),
    ],
)
def test_models_of_other_images(make, channels, mean, std):
    model = make().eval()
    x = torch.rand(2, channels, 64, 64)
    mean, std = (torch.as_tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    torch.testing.assert_close(normalized(model)(x), model((x - mean) / std), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(normalized(ModelEmaV3(model)).mean, mean.expand(1, channels, 1, 1))
    found = attack(normalized(model), x, LABELS[:2].int(), Attack('fgsm', 0.1))
    torch.testing.assert_close(found, attack(normalized(model), x, LABELS[:2], Attack('fgsm', 0.1)))


def test_what_cannot_be_attacked(classifier):
    with pytest.raises(ValueError, match=r'images with values from -1 to 1: expected \[0, 1\]'):
        attack(classifier, images() * 2 - 1, LABELS, PGD)
    with pytest.raises(ValueError, match='the loss has no gradient with respect to the images'):
        attack(classifier, images(), LABELS, PGD, loss=lambda model, x, y: model(x.detach()).sum(1))
    with pytest.raises(ValueError, match=r'eps = 8: expected 0 to 1'):
        attack(classifier, images(), LABELS, Attack('fgsm', 8))
    for wrong in ({'eps': -0.1}, {'eps': float('inf')}, {'eps': 0.1, 'steps': 0}, {'eps': 0.1, 'step_size': 0.0}):
        with pytest.raises(ValueError, match='expected'):
            Attack('pgd', **wrong)


def test_fractions():
    assert fraction('8/255') == 8 / 255
    assert fraction('0.05') == 0.05
    with pytest.raises(ValueError, match='8/0'):
        fraction('8/0')


@pytest.fixture(scope='module')
def run(images, tmp_path_factory):
    root = tmp_path_factory.mktemp('attacked')
    options = [*SMALL, '--epochs', 2, '--lr', 0.02, '--hnc', 'mse', '--output', root]
    return train('--data-dir', images, *options, '--experiment', 'run')


HERE = ['--workers', '0', '--device', 'cpu', '-b', '7']


def test_figures_beside_those_of_clean_images(run, capsys):
    attacks = ['--attack', 'fgsm', 'pgd', '--attack-eps', '0', '8/255', '--attack-steps', 3]
    figures = validate(capsys, '--checkpoint', run, *HERE, *attacks)
    for name in ('fgsm', 'pgd'):
        assert figures[f'{name}_0_top1'] == figures['top1']
        assert figures[f'{name}_0.0313725_loss'] > figures['loss']
    normalized_units = validate(
        *(capsys, '--checkpoint', run, *HERE, '--attack', 'fgsm', '--attack-eps', '8/255'),
        *('--attack-space', 'normalized', '--attack-loss', 'train'),
    )
    # one unit of the normalised input is less than one of a pixel
    assert figures['loss'] < normalized_units['fgsm_0.0313725_loss'] < figures['fgsm_0.0313725_loss']


def test_wrong_attacks(run, images, tmp_path, capsys):
    for argv, message in (
        ('--attack fgsm --attack-eps 1.5', '--attack-eps 1.5: expected 0 or more and 1 or less'),
        ('--attack fgsm --attack-eps -0.1', '--attack-eps -0.1: expected 0 or more'),
        ('--attack pgd --attack-step-size 0', '--attack-step-size 0.0: expected more than 0.'),
        ('--attack pgd --attack-steps 0', '--attack-steps 0: expected 1 or more.'),
        ('--attack fgsm --attack-steps 3', '--attack-steps 3: does nothing without --attack pgd.'),
        ('--attack-space normalized', '--attack-space normalized: does nothing without --attack fgsm or --attack pgd.'),
        ('--attack pgd --attack-loss train --torchcompile', '--attack-loss train: not together with --torchcompile'),
        ('--attack pgd --metrics-avg micro', '--attack: not together with'),
    ):
        code, line = failure(capsys, 'validate', '--checkpoint', run, *HERE, *argv.split())
        assert (code, message in line) == (2, True), line
    weights = shutil.copy(run / 'model_best' / 'model.safetensors', tmp_path / 'plain.safetensors')
    argv = [*MODEL, '--checkpoint', weights, '--data-dir', images, *HERE, '--attack', 'fgsm', '--attack-loss', 'train']
    assert failure(capsys, 'validate', *argv) == (
        1,
        "--attack-loss train: 'test_resnet' does not say how it was trained; pass a run folder.",
    )


def test_a_model_without_a_gradient_is_refused_in_a_line(run, capsys, monkeypatch):
    forward = timm.models.ResNet.forward
    monkeypatch.setattr(timm.models.ResNet, 'forward', lambda self, x: forward(self, x).detach())
    code, line = failure(capsys, 'validate', '--checkpoint', run, '--attack', 'fgsm', '--workers', '0', '-b', '8')
    assert code == 2
    assert '--attack: the loss has no gradient with respect to the images: there is nothing to attack along' in line


def test_a_model_without_class_maps_is_attacked_along_a_loss_that_needs_none(images, tmp_path, capsys):
    model = timm.create_model('test_resnet', num_classes=3, global_pool='max', **NARROW)
    save_pretrained(model, tmp_path)
    argv = ['--checkpoint', tmp_path, images, *HERE, '--img-size', '32', '--attack', 'fgsm', '--attack-eps', '8/255']
    along_training = validate(capsys, *argv, '--attack-loss', 'train')
    assert along_training == validate(capsys, *argv) | {'attack_loss': 'train'}
    save_pretrained(model, tmp_path, hnc={'variant': 'mse', 'weight': 0.5, 'topk': 2})
    code, line = failure(capsys, 'validate', *argv, '--attack-loss', 'train')
    assert (code, '--attack-loss train: no exact class maps for' in line) == (2, True), line


def test_confident_models_in_float16_are_attacked_as_in_float32(images, tmp_path, capsys):
    model = timm.create_model('test_resnet', num_classes=3, **NARROW)
    torch.nn.init.normal_(model.fc.weight, std=200, generator=torch.Generator().manual_seed(0))
    save_pretrained(model, tmp_path)
    argv = ['--checkpoint', tmp_path, images, *HERE, '--img-size', '32', '--attack', 'fgsm', '--attack-eps', '8/255']
    full, half = (validate(capsys, *argv, '--model-dtype', dtype) for dtype in ('float32', 'float16'))
    assert full['top1'] > full['fgsm_0.0313725_top1'] + 10
    assert abs(half['fgsm_0.0313725_top1'] - full['fgsm_0.0313725_top1']) <= 8


def test_restarts_are_compared_in_whole_batches_where_images_do_not_mix(monkeypatch):
    model, sizes = timm.create_model('test_resnet', num_classes=3, **NARROW), []
    model.conv1.register_forward_hook(lambda module, given, out: sizes.append(len(out)))
    loader = DataLoader(TensorDataset(torch.rand(8, 3, 32, 32), torch.arange(8) % 3), batch_size=4)
    timm_hnc.evaluate(model, loader, device='cpu', attack=['pgd'], attack_steps=1, attack_restarts=2)
    assert set(sizes) == {4}


def test_images_that_were_normalised_otherwise_are_told(caplog):
    model = timm.create_model('test_resnet', num_classes=3, **NARROW)
    images = (torch.rand(4, 3, 32, 32) - 0.5) / 0.1
    for std in (0.1, 0.5):
        timm_hnc.evaluate(
            model,
            DataLoader(TensorDataset(images, torch.arange(4) % 3)),
            device='cpu',
            attack=['fgsm'],
            mean=[0.5],
            std=[std],
        )
        assert ('give the mean and std that they were normalised with' in caplog.text) == (std == 0.5)


@pytest.mark.parametrize('name', ['fgsm', 'pgd'])
def test_images_without_a_gradient_are_told(name, caplog):
    convolution, classifier = torch.nn.Conv2d(3, 2, 3, 2, 1), torch.nn.Linear(2, 2)
    torch.nn.init.constant_(convolution.weight, 1 / 27)
    torch.nn.init.constant_(convolution.bias, -0.5)
    pool = torch.nn.AdaptiveAvgPool2d(1)
    model = torch.nn.Sequential(convolution, torch.nn.ReLU(), pool, torch.nn.Flatten(), classifier)
    images = torch.full((6, 3, 8, 8), 0.7)
    images[:4] = 0.3  # where relu is flat
    loader = DataLoader(TensorDataset(images, torch.ones(6).long()), batch_size=4)
    timm_hnc.evaluate(
        model, loader, device='cpu', attack=[name], attack_eps=[0.01], mean=[0.0], std=[1.0], num_classes=2
    )
    assert f'{name}_0.01: no gradient at 4 of 6 images' in caplog.text


@pytest.mark.parametrize(
    ('block', 'weight'),
    [
        ('none', None),
        ({'variant': 'none', 'weight': None, 'topk': None, 'reproduced_by': 'timm_hnc'}, None),  # of a published run
        ({'variant': 'mse', 'weight': 0.5, 'topk': 2}, 0.5),  # of an imported checkpoint
        ({'variant': 'kd', 'weight': 0.5, 'topk': 2, 'alpha': 0.0, 'reduction': 'mean'}, 0.5),
        ({'variant': 'mse', 'weight': None, 'topk': 2}, 'weight and top-k of HNC are missing'),
    ],
)
def test_the_loss_of_training_is_what_the_weights_say(tmp_path, block, weight):
    config = {'architecture': 'test_resnet'} | ({} if block == 'none' else {'hnc': block})
    (tmp_path / 'config.json').write_text(json.dumps(config))
    options, source = AttackOptions(attack=['fgsm'], attack_loss='train'), Source(f'local-dir:{tmp_path}')
    if isinstance(weight, str):
        with pytest.raises(DataError, match=weight):
            threat_of(options, source, 0)
        return
    model = CamModel(timm.create_model('test_resnet', num_classes=3)).eval()
    pixels, labels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2])
    classifier = normalized(model)
    found = threat_of(options, source, 0).loss(classifier, pixels, labels)
    pixels = classifier.normalize(pixels)
    expected = torch.nn.functional.cross_entropy(model(pixels), labels, reduction='none')
    if weight:
        reduction = block.get('reduction', 'sum')
        term = hnc_loss(model.class_maps(pixels), labels, block['variant'], topk=2, reduction=reduction)
        expected = expected + weight * term
    torch.testing.assert_close(found, expected)
