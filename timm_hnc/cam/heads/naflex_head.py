"""Class maps of NaFlex batches: the head is followed over tokens that are padded to one number."""

import inspect
from typing import Any

import torch
from torch import Tensor

from timm_hnc.cam.following.layout import Live
from timm_hnc.cam.following.positions import PositionTracker
from timm_hnc.cam.following.tracking import Lost
from timm_hnc.cam.heads.base import TimmModel
from timm_hnc.cam.naflex_maps import NaFlexBatch, NaFlexMaps
from timm_hnc.cam.number_types import at_least_float32

_NEEDED = ('patches', 'patch_coord', 'patch_valid')


def takes_naflex(model: Any) -> bool:
    """Whether a model takes the batches of timm's NaFlex loader."""
    return 'patch_coord' in _inputs(model)


def has_naflex_maps(model: Any) -> bool:
    """Whether its features and its head are of the form that class maps of such batches are made of."""
    return set(_NEEDED) <= _inputs(model)


def _inputs(model: Any) -> set[str]:
    """What features are made of, by name; nothing of a model that does not say how large its patches are."""
    return set(inspect.signature(model.forward_features).parameters) if hasattr(model, 'get_patch_size') else set()


def naflex_class_maps(model: TimmModel, batch: NaFlexBatch) -> NaFlexMaps:
    """Logits and maps of a NaFlex batch, in one forward pass.

    Raises:
        ValueError: the model takes no such batch, the batch lacks something, or the head has no trainable maps.
    """
    name = type(model).__name__
    if not has_naflex_maps(model):
        raise ValueError(f'{name} has no class maps of NaFlex batches: choose one of naflexvit_*.')
    missing = [key for key in _NEEDED if batch.get(key) is None]
    if missing:
        raise ValueError(f'the NaFlex batch has no {missing[0]}: expected {", ".join(_NEEDED)}.')
    features = model.forward_features(**{key: batch[key] for key in _NEEDED})
    return _followed(model, features['patches'], features['patch_valid'], batch['patch_coord'])


@torch.compiler.disable
def _followed(model: TimmModel, tokens: Tensor, valid: Tensor, coordinates: Tensor) -> NaFlexMaps:
    """Run the head and follow its tokens.

    To the head padding is a position like others, one that adds nothing: the mean over all of them is the logit. A
    patch that has no part in the logits shows what every position has of its own (biases), and what the others have
    more is spread over the patches alone.
    """
    prefix = model.num_prefix_tokens
    tokens = torch.cat([tokens, tokens.new_zeros(len(tokens), 1, tokens.shape[2])], 1)
    padded = torch.cat([valid, valid.new_zeros(len(valid), 1)], 1)
    length = padded.shape[1]
    tracker = PositionTracker()
    tracker.start(tokens, Live((1,), (length, 1), prefix))
    with tracker:
        logits = model.forward_head(patches=tokens, patch_valid=padded)
    maps = tracker.class_maps(logits)
    if isinstance(maps, Lost):
        raise ValueError(
            f'no class maps of NaFlex batches: the head of {type(model).__name__} has no average or attention pool '
            f'({maps.reason}): see --gp.'
        )
    every, nothing = maps.positions[:, :-1], maps.positions[:, -1:]
    difference = at_least_float32(every - nothing)
    share = valid.sum(1).to(difference.dtype) / length
    positions = nothing + (difference * share[:, None, None]).to(nothing.dtype)
    whole = valid.shape == coordinates.shape[:2]  # no patch was dropped
    return NaFlexMaps(
        positions=positions,
        weight=maps.weight,
        bias=maps.bias,
        grid=(length - 1, 1),
        logits=logits,
        valid=valid,
        coordinates=coordinates if whole else None,
    )
