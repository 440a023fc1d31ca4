"""Losses on class activation maps."""

from timm_hnc.losses.auto_weight import AutoWeight
from timm_hnc.losses.hnc import HNCLoss, hnc_loss

__all__ = ['AutoWeight', 'HNCLoss', 'hnc_loss']
