"""What tests of the page to try models on share."""

from browser import browser
from data_fixtures import images, multi_label
from running import clean_process

__all__ = ['browser', 'clean_process', 'images', 'multi_label']
