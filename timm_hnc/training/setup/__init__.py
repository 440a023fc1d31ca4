"""From options to the parts of a run: model, data, losses, optimizer."""
