"""What tests of train.py share."""

from data_fixtures import images, multi_label, parquet, shards, tar_files
from running import clean_process

__all__ = ['clean_process', 'images', 'multi_label', 'parquet', 'shards', 'tar_files']
