"""Following tensors through a network's own forward pass."""
