"""Weights in timm's Hub format: saved, published to the Hugging Face Hub, and loaded from there."""
