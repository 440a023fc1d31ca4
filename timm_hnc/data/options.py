"""Which data, with which labels, and how it is loaded."""

from dataclasses import dataclass
from typing import Literal

from timm.data.readers.targets import check_target_format, parse_target_keys

from timm_hnc.errors import UsageError
from timm_hnc.options import check_range


@dataclass(frozen=True)
class DataOptions:
    """Where images and labels come from.

    Args:
        data_dir: data folder.
        dataset: type/name of the data set; a folder of images if empty.
        dataset_download: download the data set, where its type allows it.
        class_map: file that maps class names to indices.
        input_img_mode: PIL mode that images are converted to.
        input_key: field of the data set that holds the image.
        holdout: keep this share of the training split for validation.
        dataset_trust_remote_code: run code that comes with the Hub's data set.
    """

    data_dir: str | None = None
    dataset: str = ''
    dataset_download: bool = False
    class_map: str = ''
    input_img_mode: str | None = None
    input_key: str | None = None
    holdout: float = 0.0
    dataset_trust_remote_code: bool = False

    def __post_init__(self) -> None:
        check_range(self, 'holdout', low=0, below=1)
        if self.holdout and self.is_streamed:
            raise UsageError(f'--holdout {self.holdout:g}: {self.dataset} is streamed, its images have no index.')

    @property
    def is_streamed(self) -> bool:
        """Whether the data set is read from front to back, not by index."""
        return self.dataset.lower().startswith(('hfids/', 'wds/', 'tfds/'))

    def check_named(self, way_out: str = '') -> None:
        """Refuse options that name no data; `way_out` is what else would."""
        if not (self.data_dir or self.dataset):
            raise UsageError(f'no data: pass --data-dir DIR, or --dataset NAME{way_out}.')


@dataclass(frozen=True)
class TaskOptions:
    """One label an image, or several.

    Args:
        task: one label an image, or several.
        target_key: field that holds the label; a,b,c for one binary field a class.
        target_format: several labels: class indices, or one value a class.
        multilabel_threshold: probability from which F1 counts a label.
    """

    task: Literal['classification', 'multilabel'] = 'classification'
    target_key: str | None = None
    target_format: Literal['indices', 'multihot'] | None = None
    multilabel_threshold: float = 0.5

    def __post_init__(self) -> None:
        check_range(self, 'multilabel_threshold', above=0, below=1)
        try:
            target_keys = parse_target_keys(self.target_key)
            check_target_format(self.target_format, target_keys)
        except ValueError as error:
            raise UsageError(f'--target-key {self.target_key}: {error}') from error
        if not self.multi_label and self.target_format is not None:
            raise UsageError(f'--target-format {self.target_format}: for --task multilabel only.')
        if not self.multi_label and target_keys:
            raise UsageError(f'--target-key {self.target_key}: several fields are for --task multilabel only.')

    @property
    def multi_label(self) -> bool:
        """Whether an image has several labels."""
        return self.task == 'multilabel'


@dataclass(frozen=True)
class LoaderOptions:
    """How images are loaded, and the seed.

    Args:
        workers: processes that load data.
        worker_timeout: end the run where a loading process gives nothing for so long; 0: never.
        pin_mem: pin host memory.
        no_prefetcher: load without timm's prefetcher.
        seed: random seed.
    """

    workers: int = 4
    worker_timeout: float = 600
    pin_mem: bool = False
    no_prefetcher: bool = False
    seed: int = 42

    def __post_init__(self) -> None:
        check_range(self, 'workers', 'worker_timeout', low=0)
        check_range(self, 'seed', low=0, below=2**32)
