"""Images of any shape and size, as NaFlex models take them: each a grid of patches of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from timm.data import create_transform
from timm.data.naflex_dataset import NaFlexCollator
from torch import Tensor

from timm_hnc.cam.heads.naflex_head import takes_naflex
from timm_hnc.cam.heads.probe import name_of
from timm_hnc.cam.naflex_maps import NaFlexBatch
from timm_hnc.errors import UsageError
from timm_hnc.options import check_range, given

KEPT_SHAPE = 'where images keep their shape: give the number of their patches, --naflex-max-seq-len'
"""Why one size of all images does not go with it."""


@dataclass(frozen=True)
class NaFlexOptions:
    """Images of any shape and size.

    Args:
        naflex_loader: keep the shape of images, each a grid of patches of its own; for naflexvit_* models.
        naflex_max_seq_len: patches of an image that is evaluated, at most.
        naflex_patchify_channels_first: the numbers of a patch come channel by channel.
    """

    naflex_loader: bool = False
    naflex_max_seq_len: int = 576
    naflex_patchify_channels_first: bool = False

    def __post_init__(self) -> None:
        check_range(self, 'naflex_max_seq_len', low=1)

    @classmethod
    def of_run(cls, options: Mapping[str, Any]) -> 'NaFlexOptions':
        """Those of a run's args.yaml."""
        return cls(**{each.name: options[each.name] for each in fields(cls) if each.name in options})

    def refuse_beside(self, why: str, **options: Any) -> None:
        """Refuse options that do not go with images of several shapes, by name, and say why and what to do."""
        for name, value in options.items():
            if self.naflex_loader and value:
                raise UsageError(f'{given(name, value)}: not together with --naflex-loader, {why}.')

    def patches(self, model: Any) -> 'Patches | None':
        """How images become patches of this model; None without --naflex-loader."""
        if not self.naflex_loader:
            return None
        if not takes_naflex(model):
            raise UsageError(
                f"--naflex-loader: '{name_of(model)}' takes images of one size only: choose one of naflexvit_*, or "
                'leave the flag out.'
            )
        first = self.naflex_patchify_channels_first
        own = getattr(getattr(model, 'embeds', None), 'channels_last', None)
        if own is first:
            advice = 'leave it out' if first else 'give it'
            order = 'with channels last' if own else 'channel by channel'
            raise UsageError(
                f"--naflex-patchify-channels-first: '{name_of(model)}' reads patches {order}: {advice}, or see "
                '--model-kwargs patchify_channels_last.'
            )
        height, width = model.get_patch_size()
        return Patches((height, width), self.naflex_max_seq_len, not first)


@dataclass(frozen=True)
class TrainNaFlexOptions(NaFlexOptions):
    """Images of any shape and size, also while training: what `NaFlexOptions` has, and more.

    Args:
        naflex_train_seq_lens: patches of a training image, at most; one of them is drawn a batch, and with fewer
            patches a batch has more images.
        naflex_patch_sizes: side of patches in pixels, one of them drawn a batch; the model's own if left out.
        naflex_patch_size_probs: weight of each of them.
        naflex_loss_scale: by batch size.
    """

    naflex_train_seq_lens: Sequence[int] = (128, 256, 576, 784, 1024)
    naflex_patch_sizes: Sequence[int] | None = None
    naflex_patch_size_probs: Sequence[float] | None = None
    naflex_loss_scale: Literal['none', 'sqrt', 'linear'] = 'linear'

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 'naflex_train_seq_lens', 'naflex_patch_sizes', low=1)
        check_range(self, 'naflex_patch_size_probs', low=0)
        probabilities, count = self.naflex_patch_size_probs, len(self.naflex_patch_sizes or ())
        if probabilities is not None and len(probabilities) != count:
            raise UsageError(
                f'--naflex-patch-size-probs: {len(probabilities)} values for {count} --naflex-patch-sizes.'
            )
        if probabilities is not None and not sum(probabilities) > 0:
            raise UsageError('--naflex-patch-size-probs: expected one above 0.')

    def patches(self, model: Any) -> 'Patches | None':
        """See `NaFlexOptions.patches`."""
        patches, sizes = super().patches(model), self.naflex_patch_sizes or ()
        others = [size for size in sizes if patches is not None and (size, size) != patches.size]
        if others and not getattr(getattr(model, 'embeds', None), 'enable_patch_interpolator', False):
            raise UsageError(
                f"--naflex-patch-sizes {others[0]}: '{name_of(model)}' takes patches of one size: see --model-kwargs "
                'enable_patch_interpolator=True.'
            )
        return patches


@dataclass(frozen=True)
class Patches:
    """How images become patches of a model, and images again.

    Args:
        size: (height, width) of a patch in pixels.
        max_seq_len: patches of an image that is evaluated, at most.
        channels_last: order of the numbers of a patch; else they come channel by channel.
    """

    size: tuple[int, int]
    max_seq_len: int
    channels_last: bool

    def transform(self, **config: Any) -> Any:
        """Timm's validation transform of an image to its patches; config as of timm's `create_transform`."""
        own: dict[str, Any] = {
            'patch_size': self.size,
            'max_seq_len': self.max_seq_len,
            'patchify_channels_last': self.channels_last,
        }
        return create_transform(**config, naflex=True, patchify=True, **own)

    def batch(self, samples: Sequence[Sequence[Any]]) -> tuple[dict[str, Any], Tensor]:
        """A NaFlex batch of samples of a data set, (patches, target) each, and its targets."""
        return NaFlexCollator(self.max_seq_len)([tuple(sample) for sample in samples])

    def normalized(self, batch: NaFlexBatch, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
        """A batch of pixels from 0 to 255 as the model takes it."""
        pixels = self._pixels(batch['patches'], len(mean)) / 255
        shift, scale = (torch.tensor(values).to(pixels) for values in (mean, std))
        pixels = (pixels - shift) / scale
        return {**batch, 'patches': (pixels if self.channels_last else pixels.transpose(2, 3)).flatten(2)}

    def images(self, batch: NaFlexBatch, channels: int) -> list[Tensor]:
        """(C, H, W) of every image of a batch: its patches put together."""
        return [
            self._joined(pixels[valid], coordinates[valid])
            for pixels, valid, coordinates in zip(
                self._pixels(batch['patches'], channels), batch['patch_valid'], batch['patch_coord'], strict=True
            )
        ]

    def _pixels(self, patches: Tensor, channels: int) -> Tensor:
        """(B, L, pixels of a patch, channels)."""
        flat = patches.flatten(2)
        if self.channels_last:
            return flat.unflatten(2, (-1, channels))
        return flat.unflatten(2, (channels, -1)).transpose(2, 3)

    def _joined(self, pixels: Tensor, coordinates: Tensor) -> Tensor:
        rows, columns = (coordinates.amax(0) + 1).tolist()
        height, width = self.size
        grid = pixels.new_zeros(rows, columns, height * width, pixels.shape[-1])
        grid[coordinates[:, 0], coordinates[:, 1]] = pixels
        cells = grid.unflatten(2, (height, width))  # (rows, columns, height, width, channels)
        return cells.permute(4, 0, 2, 1, 3).reshape(-1, rows * height, columns * width)
