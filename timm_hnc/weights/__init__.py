"""Weights in timm's format: saved, loaded, brought to other classifiers."""
