"""What a run saves, and who may write it."""
