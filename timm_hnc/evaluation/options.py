"""All options of a validation pass: groups that check themselves, and what they ask of each other."""

from dataclasses import dataclass, field
from importlib.util import find_spec

from timm_hnc.data.inputs import InputOptions
from timm_hnc.data.naflex import KEPT_SHAPE, NaFlexOptions
from timm_hnc.data.options import DataOptions, LoaderOptions, TaskOptions
from timm_hnc.errors import UsageError
from timm_hnc.evaluation.labels import LabelOptions
from timm_hnc.evaluation.map_pass import MapOptions
from timm_hnc.evaluation.robustness import AttackOptions
from timm_hnc.evaluation.sources import SourceOptions
from timm_hnc.options import check_range, flag_of
from timm_hnc.runtime.device import DeviceOptions


@dataclass(frozen=True)
class EvaluationOptions:
    """What is evaluated, and how.

    Args:
        split: split of the data set.
        num_samples: number of samples, for data sets that do not know it.
        batch_size: images in a batch, on each device.
        use_train_size: evaluate at the training size.
        crop_border_pixels: pixels cut off each border.
        tf_preprocessing: TensorFlow's preprocessing.
        test_pool: pool at test time over larger inputs.
        retry: try smaller batches when memory runs out, in one process.
        log_freq: batches between log lines.
    """

    split: str = 'validation'
    num_samples: int | None = None
    batch_size: int = 256
    use_train_size: bool = False
    crop_border_pixels: int | None = None
    tf_preprocessing: bool = False
    test_pool: bool = False
    retry: bool = False
    log_freq: int = 10

    def __post_init__(self) -> None:
        check_range(self, 'batch_size', 'log_freq', 'num_samples', low=1)
        check_range(self, 'crop_border_pixels', low=0)
        if self.tf_preprocessing and find_spec('tensorflow') is None:
            raise UsageError('--tf-preprocessing needs the package tensorflow.')


@dataclass(frozen=True)
class ValidateOptions:
    """What is evaluated, on what and how: a group a subject, all with the defaults of timm's validate.py.

    Args:
        data: where images and labels come from.
        task: one label an image, or several.
        model: which, and its weights.
        input: its images and its head.
        naflex: images of any shape and size.
        evaluation: which split, in which batches.
        attacks: on the images.
        maps: what is measured on class activation maps.
        loader: how images are loaded, and the seed.
        device: device, number formats and compilation.
        labels: other labels, and other figures.

    Raises:
        UsageError: options contradict each other.
    """

    data: DataOptions = field(default_factory=DataOptions)
    task: TaskOptions = field(default_factory=TaskOptions)
    model: SourceOptions = field(default_factory=SourceOptions)
    input: InputOptions = field(default_factory=InputOptions)
    naflex: NaFlexOptions = field(default_factory=NaFlexOptions)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    attacks: AttackOptions = field(default_factory=AttackOptions)
    maps: MapOptions = field(default_factory=MapOptions)
    loader: LoaderOptions = field(default_factory=LoaderOptions)
    device: DeviceOptions = field(default_factory=DeviceOptions)
    labels: LabelOptions = field(default_factory=LabelOptions)

    def __post_init__(self) -> None:
        compiled, labels = self.device.torchcompile, self.labels
        self.naflex.refuse_beside(KEPT_SHAPE, img_size=self.input.img_size, input_size=self.input.input_size)
        self.naflex.refuse_beside(
            'whose images differ in shape: evaluate with --img-size in its place',
            attack=self.attacks.attack,
            cam_boxes=self.maps.cam_boxes,
            cam_curves=self.maps.cam_curves,
            test_pool=self.evaluation.test_pool,
            tf_preprocessing=self.evaluation.tf_preprocessing,
            crop_border_pixels=self.evaluation.crop_border_pixels,
        )
        if self.attacks.attack and (labels.valid_labels or labels.real_labels or labels.metrics_avg):
            raise UsageError('--attack: not together with --valid-labels, --real-labels or --metrics-avg.')
        if self.attacks.attack and self.attacks.attack_loss == 'train' and compiled:
            raise UsageError('--attack-loss train: not together with --torchcompile.')
        if self.maps.first and (compiled or self.evaluation.test_pool):
            other = '--torchcompile' if compiled else '--test-pool'
            raise UsageError(f'{flag_of(self.maps.first)}: not together with {other}.')
        if self.maps.first and labels.valid_labels:
            raise UsageError(
                f'{flag_of(self.maps.first)}: not together with --valid-labels, the maps are of all classes.'
            )
        if self.maps.cam_boxes and self.evaluation.tf_preprocessing:
            raise UsageError(
                '--cam-boxes: not together with --tf-preprocessing, through which boxes cannot be followed.'
            )
        if self.maps.cam_boxes and self.data.is_streamed:
            raise UsageError(f'--cam-boxes: {self.data.dataset} is streamed, its images have no index.')
        for name in ('metrics_avg', 'real_labels', 'valid_labels') if self.task.multi_label else ():
            if getattr(labels, name):
                raise UsageError(
                    f'{flag_of(name)} {getattr(labels, name)}: for --task classification only; --task multilabel '
                    'reports mAP and the micro, macro and sample F1.'
                )
