"""What tests of train.py share."""

from data_fixtures import images, multi_label, options, parquet, shards, tar_files
from interruptions import at_update
from running import clean_process

__all__ = ['at_update', 'clean_process', 'images', 'multi_label', 'options', 'parquet', 'shards', 'tar_files']
