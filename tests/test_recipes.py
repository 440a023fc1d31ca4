"""Every recipe parses, and its model can be made."""

from pathlib import Path

import pytest

from timm_hnc.training.models import check_class_maps, create_model
from timm_hnc.training.options import parse_train_options

RECIPES = sorted((Path(__file__).parents[1] / 'hparams').glob('*.yaml'))


def test_there_is_a_quickstart():
    assert 'quickstart' in [recipe.stem for recipe in RECIPES]


@pytest.mark.parametrize('recipe', RECIPES, ids=lambda recipe: recipe.stem)
def test_recipe_parses_and_builds_its_model(recipe):
    args, _ = parse_train_options(['-c', str(recipe)])
    if args.hnc != 'none':
        check_class_maps(args)
    assert create_model(args).num_classes == args.num_classes
