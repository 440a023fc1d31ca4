"""Adversarial attacks on images."""
