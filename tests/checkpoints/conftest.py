"""What tests of what a run saves share."""

from data_fixtures import images, options
from running import clean_process

__all__ = ['clean_process', 'images', 'options']
