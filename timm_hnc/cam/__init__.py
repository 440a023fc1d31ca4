"""Images to class activation maps whose mean is the logit."""

from timm_hnc.cam.class_maps import ClassMaps
from timm_hnc.cam.model import CamModel
from timm_hnc.cam.naflex_maps import NaFlexMaps
from timm_hnc.cam.negatives import topk_negatives, topk_positives

__all__ = ['CamModel', 'ClassMaps', 'NaFlexMaps', 'topk_negatives', 'topk_positives']
