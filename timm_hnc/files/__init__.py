"""Files that a run keeps: options, figures, digests."""
