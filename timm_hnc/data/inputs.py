"""Which images a model takes: its arguments and its preprocessing, by timm's rules for its scripts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from types import SimpleNamespace
from typing import Any

from timm.data import resolve_input_data_config
from timm.models import resolve_model_input_args

from timm_hnc.cam.heads.hooked_head import is_of_timm
from timm_hnc.cam.heads.probe import name_of
from timm_hnc.data.transforms import INTERPOLATIONS
from timm_hnc.errors import UsageError, first_lines
from timm_hnc.options import check_choice, check_range, flag_of

CROP_PCT = {'low': 0.1, 'high': 2}  # timm's own are 0.8 to 1.15


@dataclass(frozen=True)
class InputOptions:
    """What a model is fed, and its head.

    Args:
        num_classes: number of classes, the model's own if left out.
        gp: global pooling: avg, max, avgmax, catavgmax, fast, ...
        img_size: height and width of the input.
        in_chans: channels of the input.
        input_size: channels, height and width of the input.
        crop_pct: share of the resized image that the center crop keeps.
        crop_mode: how it is cropped: squash, border or center.
        mean: mean that images are normalised with.
        std: standard deviation that images are normalised with.
        interpolation: how images are resized.
        model_kwargs: further model arguments.
    """

    num_classes: int | None = None
    gp: str | None = None
    img_size: int | None = None
    in_chans: int | None = None
    input_size: Sequence[int] | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    interpolation: str = ''
    model_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_range(self, 'img_size', 'in_chans', 'input_size', 'num_classes', low=1)
        check_choice(self, 'interpolation', ('', *INTERPOLATIONS))
        check_range(self, 'crop_pct', **CROP_PCT)
        check_choice(self, 'crop_mode', (None, '', 'squash', 'border', 'center'))
        check_range(self, 'mean', 'std')
        channels = self._channels()
        for name in ('mean', 'std'):
            values = getattr(self, name)
            if values is not None and len(values) not in (1, channels):
                raise UsageError(
                    f'{flag_of(name)}: {len(values)} values for {channels} channels, expected 1 or {channels}.'
                )
        if self.std is not None and min(self.std) <= 0:
            raise UsageError(f'--std {min(self.std)}: expected more than 0.')

    def _channels(self) -> int:
        if not self.input_size:
            return self.in_chans or 3
        channels = self.input_size[0]
        if self.in_chans not in (None, channels):
            size = ' '.join(map(str, self.input_size))
            raise UsageError(f'--in-chans {self.in_chans}: --input-size {size} has {channels}.')
        return channels


def model_arguments(name: str, options: InputOptions, **arguments: Any) -> dict[str, Any]:
    """Arguments for `timm.create_model`, with the image size and channels that were asked for.

    Args:
        name: of the model, as timm takes it.
        options: a model of fixed size is made for the size that they name; of one that takes any, the size is a matter
            of preprocessing.
        **arguments: further ones; None leaves one out.
    """
    asked = {key: getattr(options, key) for key in ('in_chans', 'img_size', 'input_size')}
    try:
        return resolve_model_input_args(name, asked, **arguments)
    except (ValueError, TypeError) as error:
        raise UsageError(f"'{name}' cannot be made with these options: {first_lines(error)}") from error


def input_config(model: Any, options: InputOptions, **arguments: Any) -> dict[str, Any]:
    """Input size, mean, std, interpolation and crop; `arguments` are for timm's `resolve_input_data_config`."""
    told: Any = model
    if not is_of_timm(model):  # which the options describe
        told = SimpleNamespace(pretrained_cfg={'input_size': tuple(options.input_size or (3, 224, 224))})
    try:
        return resolve_input_data_config(told, asdict(options), **arguments)
    except ValueError as error:
        raise UsageError(f"'{name_of(model)}' does not take such images: {first_lines(error)}") from error
