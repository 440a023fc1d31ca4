"""Losses on class activation maps."""

from timm_hnc.losses.hnc import HNCLoss, hnc_loss

__all__ = ['HNCLoss', 'hnc_loss']
