"""What timm's loaders lack: images that cannot be read, random numbers that repeat, signals, memory."""
