"""Every recipe parses, alone and with each form of HNC, and its model can be made; the paper's schedules are kept."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs

from timm_hnc.commands.options.train_options import parse_train_options
from timm_hnc.losses.factory import create_loss
from timm_hnc.options import flattened
from timm_hnc.training.setup.model_checks import check_class_maps
from timm_hnc.training.setup.models import check_model_name, create_model

FOLDER = Path(__file__).parents[1] / 'hparams'
RECIPES = sorted(FOLDER.glob('*.yaml'))
# learning rates that the paper states, by epoch
SCHEDULES = {
    'cifar100': {0: 0.1, 83: 0.1, 84: 0.01, 121: 0.01, 122: 0.001, 163: 0.001},
    'imagenet': {0: 0.1, 29: 0.1, 30: 0.01, 59: 0.01, 60: 1e-3, 89: 1e-3, 90: 1e-4, 119: 1e-4},
    'coco': {0: 1e-3, 5: 1e-3, 6: 1e-4, 7: 1e-4, 8: 1e-5, 9: 1e-5},
    'cub200': {0: 1e-3, 49: 1e-3, 50: 1e-4},
}
LENGTHS = {'cifar100': 164, 'imagenet': 120, 'coco': 14}
# what the code says where the paper is silent: GuoleiSun/HNC_loss, commit 5d44b504e68a7bcbecd59a738b8816f233d93dfa
# (imagenet/), and hguosc/visual_attention_consistency, commit 7c5b0dcfc444d7e6cecadd793b799b4a7ef9da7d
# (tmp/ms-coco-fs288); neither names a licence
OF_THE_CODE = {
    'imagenet': {
        **{'hflip': 0.0, 'color_jitter': 0.0, 'train_interpolation': 'bilinear', 'crop_pct': 0.875, 'momentum': 0.9},
        **{'weight_decay': 1e-4, 'opt': 'momentum', 'model_kwargs': {'zero_init_last': False}},
    },
    'coco': {
        **{'train_crop_mode': 'squash', 'crop_mode': 'squash', 'crop_pct': 1.0, 'color_jitter': 0.0, 'momentum': 0.9},
        **{'weight_decay': 5e-4, 'opt': 'momentum', 'batch_size': 24, 'eval_metric': 'map'},
        'loss_kwargs': {'reduction': 'sum'},
    },
}
DECAY_EVERYTHING = ['imagenet', 'coco']


def options(recipe, *argv):
    return SimpleNamespace(**flattened(parse_train_options(['-c', str(recipe), *argv])[0]))


def test_there_are_recipes_for_the_paper_and_for_a_start():
    assert {recipe.stem for recipe in RECIPES} >= {
        'quickstart',
        'cifar100',
        'cifar100_fast',
        'imagenet',
        'coco',
        'cub200',
        'voc2007',
    }


@pytest.mark.parametrize('recipe', RECIPES, ids=lambda recipe: recipe.stem)
def test_recipe_parses_and_builds_its_model(recipe):
    options, *_ = parse_train_options(['-c', str(recipe)])
    options = options.changed(pretrained=False)
    check_model_name(options.model.model)
    check_class_maps(options)
    with torch.device('meta'):
        assert create_model(options.model, options.input).num_classes == options.input.num_classes


@pytest.mark.parametrize('hnc', ['none', 'mse', 'kd'])
@pytest.mark.parametrize('recipe', RECIPES, ids=lambda recipe: recipe.stem)
def test_the_command_line_chooses_the_form_of_hnc(recipe, hnc):
    assert options(recipe, '--hnc', hnc).hnc == hnc


@pytest.mark.parametrize(('variant', 'weight'), [('mse', 0.0007), ('kd', 0.0065)])
def test_imagenet_has_the_weights_of_the_authors_code(variant, weight):
    args = options(FOLDER / 'imagenet.yaml', '--hnc', variant)
    assert (args.hnc_weight, args.hnc_topk, args.hnc_reduction) == (weight, 100, 'sum')


@pytest.mark.parametrize('name', OF_THE_CODE)
def test_settings_are_those_of_the_code_where_the_paper_is_silent(name):
    args = vars(options(FOLDER / f'{name}.yaml'))
    assert {setting: args[setting] for setting in OF_THE_CODE[name]} == OF_THE_CODE[name]


@pytest.mark.parametrize('recipe', RECIPES, ids=lambda recipe: recipe.stem)
@pytest.mark.parametrize('more', ['', 'filter_bias_and_bn=False', 'filter_bias_and_bn=True'])
def test_biases_and_norms_are_decayed_where_the_code_does(recipe, more):
    """In timm's flag: of the recipe's own, and chosen on the command line."""
    args = options(recipe, *(['--opt-kwargs', more] if more else []))
    model = timm.create_model('test_resnet')
    optimizer = create_optimizer_v2(model, **optimizer_kwargs(cfg=args), **args.opt_kwargs)
    everything = more.endswith('False') if more else recipe.stem in DECAY_EVERYTHING
    for group in optimizer.param_groups:
        vectors = {parameter.ndim == 1 for parameter in group['params']}
        assert everything or len(vectors) == 1
        assert group['weight_decay'] == (args.weight_decay if everything or vectors == {False} else 0)


def test_the_summed_loss_goes_with_attention_consistency_too():
    args = options(FOLDER / 'coco.yaml', '--loss', 'attention-consistency')
    loss = create_loss(
        *(args.loss,),
        num_classes=3,
        num_features=2,
        class_counts=torch.ones(3),
        num_samples=9,
        multi_label=True,
        **args.loss_kwargs,
    )
    assert (loss.weight, loss.reduction, loss.criterion.reduction) == (0.6, 'sum', 'sum')


@pytest.mark.parametrize('name', SCHEDULES)
def test_learning_rates_are_those_of_the_paper(name):
    args = options(FOLDER / f'{name}.yaml')
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.lr)
    scheduler, epochs = create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=10)
    assert epochs == LENGTHS.get(name, epochs)
    rates = []
    for epoch in range(epochs):
        rates.append(optimizer.param_groups[0]['lr'])
        scheduler.step(epoch + 1)
    assert {epoch: rates[epoch] for epoch in SCHEDULES[name]} == pytest.approx(SCHEDULES[name])
