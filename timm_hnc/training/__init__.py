"""What train.py does: options, building, the training loop, checkpoints and tracking."""
