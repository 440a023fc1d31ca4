"""Adversarial attacks on images."""

from timm_hnc.attacks.attacks import Attack, attack, normalized

__all__ = ['Attack', 'attack', 'normalized']
