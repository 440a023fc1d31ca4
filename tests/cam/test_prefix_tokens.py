"""Tokens in front of the positions that are means over them: what each position gives to them, function by function."""

import pytest
import torch
from torch.nn import functional

from timm_hnc.cam.following.layout import Live
from timm_hnc.cam.following.mean_of_parts import Parts
from timm_hnc.cam.following.positions import PositionTracker
from timm_hnc.cam.following.tracking import Lost

GENERATOR = torch.Generator().manual_seed(0)


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=GENERATOR)


TOKENS, SQUARE, PLACES, SCALES, WEIGHT = random(2, 6, 4), random(2, 6, 4), random(7, 4), random(1, 7, 4), random(4, 4)
# each is applied to tokens (B, 1 + 6, 4) and, with the places of the first token alone, to what positions give to it
LINEAR = {
    'add': lambda t, places: t + places,
    'add to': lambda t, places: torch.add(places, t, alpha=0.5),
    'add in place': lambda t, places: t.clone().add_(places),
    'subtract from': lambda t, places: places - t,
    'multiply': lambda t, places: t * places,
    'divide': lambda t, places: 3 * t / places,
    'layer': lambda t, places: functional.linear(t, WEIGHT) + places,
    'residual': lambda t, places: t + functional.linear(t + places, WEIGHT),
    'other type': lambda t, places: (t.float() * places.float()).to(t.dtype),
}
DETACHED = {
    'activation': lambda t: functional.gelu(t),
    'layer norm': lambda t: functional.layer_norm(t, (4,)),
    'rms norm': lambda t: functional.rms_norm(t, (4,)),
}
LOST = {
    'square by hand': lambda t: t * t,
    'divisor': lambda t: 1.0 / t,
    'maximum': lambda t: t - t.amax(-1, keepdim=True),
    'norm over all tokens': lambda t: functional.layer_norm(t, (7, 4)),
}


def followed(function):
    """The companion of the first token of what a function makes of tokens behind their own mean, and that token."""
    tracker, tokens = PositionTracker(), TOKENS.clone()
    tracker.start(tokens, Live((1,), (2, 3)))
    with tracker:
        made = function(torch.cat([tokens.mean(1, keepdim=True), tokens], 1))
        token = made[:, 0]
    return tracker.companion(token), token


@pytest.mark.parametrize('function', LINEAR.values(), ids=LINEAR)
def test_linear_functions(function):
    companion, token = followed(lambda t: function(t, PLACES))
    assert isinstance(companion, Parts)
    expected = torch.stack([function(TOKENS[:, index, None], PLACES[:1])[:, 0] for index in range(6)])
    torch.testing.assert_close(companion.values, expected)
    torch.testing.assert_close(companion.values.mean(0), token)


@pytest.mark.parametrize('function', DETACHED.values(), ids=DETACHED)
def test_detached_functions(function):
    companion, token = followed(function)
    torch.testing.assert_close(companion.values.mean(0), token)
    assert companion.values.std(0).min() > 0


@pytest.mark.parametrize('function', LOST.values(), ids=LOST)
def test_what_is_not_linear_is_not_followed(function):
    assert isinstance(followed(function)[0], Lost)


def test_several_tokens_and_their_pool():
    """A constant, a mean and a layer of the mean in front; the mean over all tokens has the shares of all of them."""
    tracker, tokens = PositionTracker(), TOKENS.clone()
    tracker.start(tokens, Live((1,), (2, 3)))
    with tracker:
        mean = tokens.mean(1, keepdim=True)
        all_tokens = torch.cat([PLACES[:1].expand(2, 1, 4), mean, functional.linear(mean, WEIGHT), tokens], 1)
        pooled = (all_tokens * 2).mean(1)
    expected = torch.stack([PLACES[0] + row + row @ WEIGHT.T + 6 * row for row in TOKENS.unbind(1)]) * 2 / 9
    torch.testing.assert_close(tracker.companion(pooled).values, expected)
    torch.testing.assert_close(expected.mean(0), pooled)
