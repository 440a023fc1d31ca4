"""Losses on class maps that stand beside any criterion."""
