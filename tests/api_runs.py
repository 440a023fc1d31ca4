"""What the tests of timm_hnc.train and timm_hnc.evaluate share: options of small runs, a model, a loader."""

import safetensors.torch
import timm
import torch
from running import NARROW
from timm.utils import random_seed
from torch.utils.data import DataLoader, TensorDataset

OPTIONS = {'img_size': 32, 'workers': 0, 'batch_size': 8, 'device': 'cpu', 'no_report': True, 'cam_images': 0}
SPLITS = ('train', 'validation')
HNC = {'hnc': 'mse', 'hnc_weight': 0.1, 'hnc_topk': 1, 'epochs': 2}


def new_model():
    random_seed(42, 0)  # as train.py seeds before it makes its model
    return timm.create_model('test_resnet', num_classes=3, **NARROW)


def loader_of(size=4, images=25):
    return DataLoader(TensorDataset(torch.randn(images, 3, 32, 32), torch.arange(images) % 3), batch_size=size)


def weights(folder):
    return safetensors.torch.load_file(folder / 'model_best' / 'model.safetensors')
