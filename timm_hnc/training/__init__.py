"""A run of train.py from its first epoch to its last."""
