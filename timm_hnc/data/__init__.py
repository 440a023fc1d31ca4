"""Data sets, their checks, and what timm's data pipeline lacks for the paper's experiments."""
