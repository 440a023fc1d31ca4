"""benchmarks/guidance.py: its figures of a run, and its table."""

import pytest
import torch
from running import train
from scripts import load_script
from tables.plan import Cell
from tables.runs import Plan
from timm import create_model
from timm.data import create_transform

from timm_hnc.data.datasets import create_dataset
from timm_hnc.data.sets.decoy_digits import PLACES

script = load_script('guidance')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    plan = Plan(tmp_path_factory.mktemp('decoy'), (*script.NETWORK, *script.DATA, *script.RECIPE))
    [run] = plan.runs([Cell('ce', '', 'ce', ())], 1)
    command = [word for word in run.command('train')[1:] if word != '--amp']  # bfloat16 is slow where a CPU has none
    train(*command, '--epochs', 1, '--val-interval', 1, '--img-size', 24)
    return run


def test_figures_are_those_of_plain_timm(run):
    figures = script.figures(run)
    model = create_model(f'local-dir:{run.folder / "model_best"}', pretrained=True).eval()
    dataset = create_dataset('hnc/decoy-digits', None, 'validation', 10, input_img_mode='L')
    dataset.transform = create_transform((1, 24, 24), mean=(0.5,), std=(0.5,), crop_pct=1.0)
    right, elsewhere, shares = [], [], []
    images, targets = (list(part) for part in zip(*dataset, strict=True))
    with torch.no_grad():
        of_all = model.forward_features(torch.stack(images))
        found = model.forward_head(of_all).argmax(1).tolist()
        for index, (features, target) in enumerate(zip(of_all, targets, strict=True)):
            right.append(found[index] == target)
            elsewhere.append(dataset.reader.places[index] != target)
            positive = (torch.einsum('dhw,d->hw', features, model.fc.weight[target]) + model.fc.bias[target]).relu()
            # 24 pixels are 6 cells: the box, from 8 to 16, is cells 2 and 3
            shares.append(positive[2:4, 2:4].sum() / positive.sum() if positive.sum() > 0 else torch.tensor(0.0))
    assert figures['anywhere'] == pytest.approx(100 * sum(right) / len(right))
    wrong_place = [each for each, other in zip(right, elsewhere, strict=True) if other]
    assert figures['contradicting'] == pytest.approx(100 * sum(wrong_place) / len(wrong_place))
    assert figures['energy'] == pytest.approx(100 * torch.stack(shares).mean().item(), rel=1e-4)
    assert 0 <= figures['without'] <= 100


def test_the_table_compares_pairs_of_seeds():
    figures = {'contradicting': 1.0, 'without': 2.0, 'energy': 3.0}
    found = {
        'ce': {seed: {'anywhere': 50.0 + seed, **figures} for seed in range(3)},
        'outside+mse': {seed: {'anywhere': 60.0 + 2 * seed, **figures} for seed in range(3)},
        'mse': {},
    }
    lines = script.table(found).splitlines()
    assert lines[0].startswith(f'{len(PLACES)} places')
    assert '| ce | 51.0 ± 1.0 | 1.0 ± 0.0 | 2.0 ± 0.0 | 3.0 ± 0.0 |  | 3 |' in lines
    assert '| outside+mse | 62.0 ± 2.0 | 1.0 ± 0.0 | 2.0 ± 0.0 | 3.0 ± 0.0 | +11.0 (+8.5 to +13.5) | 3 |' in lines
    assert '| mse | - | - | - | - |  | 0 |' in lines
