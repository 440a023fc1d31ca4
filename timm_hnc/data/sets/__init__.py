"""Data sets of the paper, read from the files that their authors publish."""
