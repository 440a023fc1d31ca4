"""Small models of every kind of head, with nothing left at its initial value (fresh norms and biases hide errors)."""

import copy
import csv
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import timm
import torch
from timm.models import build_model_with_cfg
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.hgnet import HighPerfGpuNet
from timm.models.metaformer import Attention, LayerNorm2dNoBias, LayerNormNoBias, MetaFormer, SepConv
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.vgg import VGG
from timm.models.volo import VOLO
from torch import Tensor, nn

from timm_hnc import CamModel
from timm_hnc.cam.heads.probe import MapHead, probe_head

NUM_CLASSES = 7
_HEADS: dict[str, MapHead] = {}
ATTENTION = {'embed_dim': 32, 'num_heads': 2, 'depth': 2}
PATCH_MEAN = {'global_pool': 'avg', 'fc_norm': False}
CROSSVIT = {'embed_dim': (16, 32), 'depth': ((1, 1, 0), (1, 2, 0)), 'num_heads': (2, 2)}
COAT = {'embed_dims': (24, 32, 32, 32), 'serial_depths': (1, 1, 1, 1), 'parallel_depth': 2}
FEW_STAGES = {
    **{'stem_type': 'v2', 'stem_chs': [8, 8], 'stage1': [8, 8, 16, 1, False, False, 3, 2]},
    **{'stage2': [16, 8, 24, 1, True, False, 3, 2], 'stage3': [24, 8, 32, 1, True, True, 5, 2]},
    'stage4': [32, 16, 48, 1, True, True, 5, 2],
}
FEW_BLOCKS = decode_arch_def(
    [[block] for block in ('ds_r1_k3_s2_e1_c16_se0.25', *['ir_r1_k5_s2_e2_c24_se0.25'] * 3, 'cn_r1_k1_s1_c48')]
)


@dataclass(frozen=True)
class SmallModel:
    """How to make a model, the images it takes and the maps it should give."""

    name: str
    kind: str
    image: tuple[int, int]
    grid: tuple[int, int]
    kwargs: dict[str, Any] = field(default_factory=dict)
    network: type[nn.Module] | None = None  # built with other stages than listed, where the listed name has them fixed

    def make(self, seed: int = 0, **kwargs: Any) -> nn.Module:
        """The perturbed timm model, in evaluation mode."""
        torch.manual_seed(seed)
        options = copy.deepcopy({'num_classes': NUM_CLASSES, **self.kwargs, **kwargs})  # timm takes lists apart
        if self.network is None:
            model = timm.create_model(self.name, **options)
        else:
            model = build_model_with_cfg(self.network, self.name, pretrained=False, **options)
        return perturb(model).eval()

    def cam_model(self, **kwargs: Any) -> CamModel:
        """The same around a new model each time; the head is probed once, which takes longer than a forward pass."""
        model, options = self.make(**kwargs), repr((self, kwargs))
        if options not in _HEADS:
            _HEADS[options] = probe_head(model)
        with mock.patch('timm_hnc.cam.model.probe_head', return_value=_HEADS[options]):
            return CamModel(model)

    def images(self, batch: int = 3, seed: int = 1) -> Tensor:
        """Random normalised images."""
        return torch.randn(batch, 3, *self.image, generator=torch.Generator().manual_seed(seed))


MODELS = {
    'resnet': SmallModel('test_resnet', 'A1', (64, 96), (2, 3)),
    'efficientnet': SmallModel('test_efficientnet', 'A1', (96, 64), (3, 2), {'drop_path_rate': 0.2}),
    'starnet': SmallModel('starnet_s050', 'A1', (64, 96), (2, 3)),
    'resnetv2': SmallModel(
        'resnetv2_18', 'A2', (64, 96), (2, 3), {'layers': (1,) * 4, 'channels': (16, 16, 32, 32), 'stem_chs': 16}
    ),
    'dla': SmallModel('dla46x_c', 'A2', (64, 96), (2, 3)),
    'swin': SmallModel(
        'swin_tiny_patch4_window7_224',
        'A3',
        (64, 96),
        (8, 12),
        {
            'img_size': (64, 96),
            'embed_dim': 24,
            'depths': (1, 2),
            'num_heads': (2, 4),
            'window_size': 4,
            'drop_path_rate': 0.2,
        },
    ),
    'twins': SmallModel(
        'twins_svt_small',
        'A4',
        (64, 96),
        (2, 3),
        {'embed_dims': (16, 16, 32, 32), 'depths': (1, 1, 1, 1), 'num_heads': (1, 1, 2, 2)},
    ),
    'relpos': SmallModel(
        'vit_relpos_small_patch16_rpn_224', 'A4', (64, 96), (4, 6), {'img_size': (64, 96), **ATTENTION}
    ),
    'vit': SmallModel(
        'vit_tiny_patch16_224',
        'A4',
        (64, 96),
        (4, 6),
        {'img_size': (64, 96), 'class_token': False, **ATTENTION, **PATCH_MEAN},
    ),
    'vit_reg4': SmallModel(
        'vit_tiny_patch16_224',
        'A5',
        (64, 96),
        (4, 6),
        {'img_size': (64, 96), 'reg_tokens': 4, 'drop_path_rate': 0.2, **ATTENTION, **PATCH_MEAN},
    ),
    'eva': SmallModel(
        'eva02_tiny_patch14_224',
        'A5',
        (56, 84),
        (4, 6),
        {'img_size': (56, 84), 'global_pool': 'avg', 'use_fc_norm': False, **ATTENTION},
    ),
    'efficientformer': SmallModel(
        'efficientformer_l1', 'A6', (224, 224), (7, 7), {'embed_dims': (8, 8, 16, 16), 'depths': (1, 1, 1, 2)}
    ),
    'swiftformer': SmallModel(
        'swiftformer_xs', 'A6', (64, 96), (2, 3), {'layers': (1, 1, 1, 1), 'embed_dims': (16, 24, 32, 40)}
    ),
}
# one model of every way in which features become positions, where all of them would take too long
REPRESENTATIVES = ('resnet', 'resnetv2', 'swin', 'twins', 'vit_reg4', 'swiftformer')


# one model of every kind of head whose non-linear parts are detached
DETACHED_MODELS = {
    'levit': SmallModel('levit_128s', 'B', (224, 224), (4, 4), {'depth': (1, 1, 1)}),
    'repvit': SmallModel('repvit_m0_9', 'B', (64, 96), (2, 3), {'embed_dim': (16, 16, 24, 64), 'depth': (1, 1, 1, 1)}),
    'convnext': SmallModel('test_convnext', 'C', (64, 96), (2, 3), {'drop_path_rate': 0.2, 'depths': (1, 1, 1, 1)}),
    'convnext_rms': SmallModel(
        'convnext_zepto_rms', 'C', (64, 96), (2, 3), {'dims': (16, 24, 32, 40), 'depths': (1, 1, 1, 1)}
    ),
    'vit_fc_norm': SmallModel(
        'test_vit', 'C', (64, 96), (4, 6), {'img_size': (64, 96), 'global_pool': 'avg', **ATTENTION}
    ),
    'davit': SmallModel(
        'davit_tiny',
        'C',
        (64, 96),
        (2, 3),
        {'embed_dims': (16, 16, 32, 32), 'num_heads': (1, 1, 2, 2), 'depths': (1, 1, 1, 1)},
    ),
    'mobilenetv3': SmallModel(
        'mobilenetv3_small_050',
        'D',
        (64, 96),
        (2, 3),
        {'block_args': FEW_BLOCKS, 'num_features': 64, 'act_layer': nn.Hardswish},
        MobileNetV3,
    ),
    'hgnet': SmallModel(
        'hgnetv2_b0',
        'D',
        (64, 96),
        (2, 3),
        {'model_cfg': FEW_STAGES, 'head_hidden_size': 64, 'use_lab': True},
        HighPerfGpuNet,
    ),
    'mambaout': SmallModel('test_mambaout', 'D', (64, 96), (2, 3)),
    'metaformer': SmallModel(
        'caformer_s18',
        'D',
        (64, 96),
        (2, 3),
        {
            'depths': (1, 1, 1, 1),
            'dims': (16, 24, 32, 64),
            'token_mixers': [SepConv, SepConv, Attention, Attention],
            'norm_layers': [LayerNorm2dNoBias] * 2 + [LayerNormNoBias] * 2,
        },
        MetaFormer,
    ),
    'efficientvit': SmallModel(
        'efficientvit_b0',
        'E',
        (64, 96),
        (2, 3),
        {'widths': (4, 8, 16, 32, 64), 'depths': (1, 1, 1, 1, 1), 'head_widths': (64, 80)},
    ),
    'vgg': SmallModel(
        'vgg11',
        'E',
        (224, 224),
        (7, 7),
        {'model_cfg': [8, 'M', 8, 'M', 16, 'M', 16, 'M', 32, 'M'], 'mlp_ratio': 0.02},
        VGG,
    ),
    'vit_map': SmallModel('test_vit3', 'F', (64, 96), (4, 6), {'img_size': (64, 96), **ATTENTION}),
    'siglip': SmallModel('vit_base_patch16_siglip_224', 'F', (64, 96), (4, 6), {'img_size': (64, 96), **ATTENTION}),
    'efficientvim': SmallModel(
        'efficientvim_m1', 'H', (128, 192), (2, 3), {'embed_dim': (24, 32, 40), 'depths': (1, 1, 1)}
    ),
    'crossvit': SmallModel('crossvit_9_240', 'H', (240, 240), (20, 20), {'global_pool': 'avg', **CROSSVIT}),
    'coat': SmallModel('coat_mini', 'H', (64, 96), (8, 12), {'img_size': (64, 96), 'global_pool': 'avg', **COAT}),
}
# class-token models as they are listed
TAIL_MODELS = {
    'vit': SmallModel('test_vit', 'G', (64, 96), (4, 6), {'img_size': (64, 96), **ATTENTION}),
    'deit_distilled': SmallModel(
        'deit_tiny_distilled_patch16_224', 'G', (64, 96), (4, 6), {'img_size': (64, 96), **ATTENTION}
    ),
    'eva': SmallModel(
        'eva02_tiny_patch14_224', 'G', (56, 84), (4, 6), {'img_size': (56, 84), 'global_pool': 'token', **ATTENTION}
    ),
    'cait': SmallModel('cait_xxs24_224', 'G', (64, 96), (4, 6), {'img_size': (64, 96), **ATTENTION}),
    'xcit': SmallModel('xcit_nano_12_p16_224', 'G', (64, 96), (4, 6), ATTENTION),
    'convit': SmallModel(
        'convit_tiny', 'G', (64, 64), (4, 4), {'img_size': 64, 'embed_dim': 36, 'num_heads': 4, 'depth': 2}
    ),
    'tnt': SmallModel(
        'tnt_s_legacy_patch16_224',
        'G',
        (64, 96),
        (4, 6),
        {'img_size': (64, 96), 'embed_dim': 48, 'num_heads_outer': 2, 'depth': 2},
    ),
    'pit': SmallModel(
        'pit_ti_224', 'G', (224, 224), (7, 7), {'base_dims': (8, 8, 8), 'depth': (1, 2, 1), 'heads': (1, 2, 4)}
    ),
    'coat_lite': SmallModel(
        'coat_lite_tiny',
        'G',
        (64, 96),
        (2, 3),
        {'img_size': (64, 96), 'embed_dims': (16, 24, 32, 40), 'serial_depths': (1, 1, 1, 2)},
    ),
    'volo': SmallModel(
        'volo_d1_224',
        'H',
        (64, 64),
        (4, 4),
        {'img_size': 64, 'layers': (1, 1, 1, 1), 'embed_dims': (24, 48, 48, 48), 'num_heads': (2, 4, 4, 4)},
        VOLO,
    ),
    'crossvit': SmallModel('crossvit_9_240', 'H', (240, 240), (20, 20), CROSSVIT),
    'coat': SmallModel('coat_mini', 'H', (64, 96), (8, 12), {'img_size': (64, 96), **COAT}),
}


@torch.no_grad()
def perturb(model: nn.Module, seed: int = 2) -> nn.Module:
    """Move every norm, bias and running statistic away from its initial value, and give the classifier real weights."""
    generator = torch.Generator().manual_seed(seed)

    def noise(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator).to(tensor)

    for name, tensor in model.named_parameters():
        if tensor.ndim <= 1:
            tensor += 0.2 * noise(tensor)
        elif name.rsplit('.', 1)[-1] not in ('weight', 'w'):
            tensor += 0.02 * noise(tensor)
    for name, tensor in model.named_buffers():
        if name.endswith('running_mean'):
            tensor += 0.2 * noise(tensor)
        elif name.endswith('running_var'):
            tensor *= 1 + 0.5 * noise(tensor).tanh()
    classifiers = model.get_classifier()
    for layer in classifiers if isinstance(classifiers, (tuple, list)) else (classifiers,):
        for tensor in layer.parameters() if layer is not None else ():
            tensor.copy_(noise(tensor))
    return model


def heads_table() -> dict[str, str]:
    """The kind of head of every name of timm 1.0.31, as listed (measured outside this project)."""
    with (Path(__file__).parent / 'cam' / 'timm_heads.csv').open() as file:
        return {row['name']: row['kind'] for row in csv.DictReader(file)}


def make_on_meta(name: str, **kwargs: Any) -> nn.Module:
    """A timm model without weights."""
    with torch.device('meta'), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return timm.create_model(name, **kwargs)
