"""The version: pyproject.toml reads it here, and a clone that is not installed knows it too."""

__version__ = '0.1.0'
