"""What tests of figures share."""

from data_fixtures import images, multi_label
from running import clean_process

__all__ = ['clean_process', 'images', 'multi_label']
