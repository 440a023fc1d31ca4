"""What tests of command lines share."""

from running import clean_process

__all__ = ['clean_process']
