"""Every recipe parses, alone and with each form of HNC, and its model can be made; the paper's schedules are kept."""

from pathlib import Path

import pytest
import torch
from timm.scheduler import create_scheduler_v2, scheduler_kwargs

from timm_hnc.training.models import check_class_maps, check_model_name, create_model
from timm_hnc.training.options import parse_train_options

FOLDER = Path(__file__).parents[1] / 'hparams'
RECIPES = sorted(FOLDER.glob('*.yaml'))
# learning rates that the paper states, by epoch
SCHEDULES = {
    'cifar100': {0: 0.1, 83: 0.1, 84: 0.01, 121: 0.01, 122: 0.001, 163: 0.001},
    'imagenet': {0: 0.1, 29: 0.1, 30: 0.01, 59: 0.01, 60: 1e-3, 89: 1e-3, 90: 1e-4, 119: 1e-4},
    'coco': {0: 1e-3, 5: 1e-3, 6: 1e-4, 7: 1e-4, 8: 1e-5, 9: 1e-5},
    'cub200': {0: 1e-3, 49: 1e-3, 50: 1e-4},
}
LENGTHS = {'cifar100': 164, 'imagenet': 120}


def options(recipe, *argv):
    return parse_train_options(['-c', str(recipe), *argv])[0]


def test_there_are_recipes_for_the_paper_and_for_a_start():
    assert {recipe.stem for recipe in RECIPES} >= {'quickstart', 'cifar100', 'imagenet', 'coco', 'cub200', 'voc2007'}


@pytest.mark.parametrize('recipe', RECIPES, ids=lambda recipe: recipe.stem)
def test_recipe_parses_and_builds_its_model(recipe):
    args = options(recipe)
    args.pretrained = False
    check_model_name(args.model)
    check_class_maps(args)
    with torch.device('meta'):
        assert create_model(args).num_classes == args.num_classes


@pytest.mark.parametrize('hnc', ['none', 'mse', 'kd'])
@pytest.mark.parametrize('recipe', RECIPES, ids=lambda recipe: recipe.stem)
def test_the_command_line_chooses_the_form_of_hnc(recipe, hnc):
    assert options(recipe, '--hnc', hnc).hnc == hnc


@pytest.mark.parametrize(('variant', 'weight'), [('mse', 0.0007), ('kd', 0.0065)])
def test_imagenet_has_the_weights_of_the_authors_code(variant, weight):
    args = options(FOLDER / 'imagenet.yaml', '--hnc', variant)
    assert (args.hnc_weight, args.hnc_topk, args.hnc_reduction) == (weight, 100, 'sum')


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
