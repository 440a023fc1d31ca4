import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from timm_hnc.data.class_names import class_names
from timm_hnc.data.datasets import create_dataset
from timm_hnc.data.sets.digits import DigitsReader
from timm_hnc.errors import UsageError


def test_the_split_is_fixed_disjoint_and_complete():
    train, validation = DigitsReader('train'), DigitsReader('validation')
    assert (len(train), len(validation)) == (1437, 360)
    together = sorted([*train.indices, *validation.indices])
    assert together == list(range(1797))
    assert list(validation.indices[:3]) == [0, 5, 10]
    assert np.array_equal(DigitsReader('train').indices, train.indices)


@pytest.mark.parametrize('split', ['train', 'validation'])
def test_images_and_labels_are_those_of_scikit_learn(split):
    digits, reader = load_digits(), DigitsReader(split)
    for place in range(0, len(reader), 37):
        file, label = reader[place]
        index = int(reader.filename(place).removeprefix('digit-').removesuffix('.png'))
        pixels = np.asarray(Image.open(file), dtype=float)
        assert label == digits.target[index]
        # 17 shades of ink spread over 0 to 255: pixel-equal after undoing it
        assert np.array_equal(np.round(pixels * 16 / 255), digits.images[index])
        assert pixels.max() <= 255
    labels = [reader[place][1] for place in range(len(reader))]
    assert labels == [digits.target[index] for index in reader.indices]
    assert set(labels) == set(range(10))


def test_they_are_a_data_set_of_timms():
    dataset = create_dataset('hnc/digits', None, 'validation', num_classes=10, input_img_mode='L')
    image, target = dataset[1]
    assert (image.mode, image.size, target) == ('L', (8, 8), load_digits().target[5])
    assert create_dataset('hnc/digits', None, 'train', 10)[0][0].mode == 'RGB'
    assert class_names(dataset, 11) == [*'0123456789', '10']


def test_wrong_split_or_name_is_refused(monkeypatch):
    with pytest.raises(UsageError, match=r"no split 'test': use train or validation"):
        create_dataset('hnc/digits', None, 'test', num_classes=10)
    with pytest.raises(UsageError, match=r"'hnc/letters' is unknown"):
        create_dataset('hnc/letters', None, 'train', num_classes=10)
    monkeypatch.setattr('timm_hnc.data.sets.digits.find_spec', lambda name: None)
    with pytest.raises(UsageError, match=r'pip install "timm_hnc\[quickstart\]"'):
        create_dataset('hnc/digits', None, 'train', num_classes=10)
