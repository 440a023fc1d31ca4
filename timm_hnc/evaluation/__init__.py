"""What validate.py does: figures of a model over a data set, on clean and on attacked images."""

from timm_hnc.attacks.attacks import Attack, attack, normalized

__all__ = ['Attack', 'attack', 'normalized']
