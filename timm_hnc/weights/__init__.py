"""Weights in timm's format: saved, opened and loaded."""
