"""Runs on the Hugging Face Hub: what is published of one, its card, and runs made of others' checkpoints."""
