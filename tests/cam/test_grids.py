import pytest
import torch
from torch.nn import functional

from timm_hnc.cam.grids import resize_positions, token_grid
from timm_hnc.cam.heads.position_search import token_branch


@pytest.mark.parametrize('rounding', ['exact', 'down', 'up'])
@pytest.mark.parametrize('patch', [8, 14, 32])
def test_token_grids_of_any_image_size(patch, rounding):
    """Patches that cover the image, whole ones only or one more at the edge."""
    for height in range(patch, 9 * patch, 5):
        for width in range(patch, 9 * patch, 7):
            size = (height - height % patch, width - width % patch) if rounding == 'exact' else (height, width)
            grid = tuple(-(-side // patch) if rounding == 'up' else side // patch for side in size)
            tokens = grid[0] * grid[1]
            assert token_grid(tokens, size, (patch, patch)) == grid, size


@pytest.mark.parametrize(('size', 'grid'), [((94, 195), (2, 6)), ((136, 63), (4, 1)), ((224, 223), (7, 6))])
def test_token_grids_that_the_aspect_alone_would_get_wrong(size, grid):
    assert token_grid(grid[0] * grid[1], size, (32.0, 32.0)) == grid


def test_tokens_that_form_no_grid():
    with pytest.raises(ValueError, match='50 tokens of an image of 224 x 224 pixels form no grid'):
        token_grid(50, (224, 224))
    assert token_branch(None, 50, (224, 224)).prefix == 1
    assert token_branch(None, 201, (224, 224)).prefix == 5
    with pytest.raises(ValueError, match='form no grid'):
        token_branch(None, 399, (224, 224))  # 19 x 20 = 380 are 19 fewer


@pytest.mark.parametrize('target', [(6, 8), (1, 1), (5, 7), (3, 4), (12, 2)])
def test_resized_positions_keep_their_mean(target):
    positions = torch.randn(3 * 4, 2, 5, dtype=torch.float64)
    resized = resize_positions(positions, (3, 4), target)
    assert resized.shape == (target[0] * target[1], 2, 5)
    torch.testing.assert_close(resized.mean(0), positions.mean(0))


def test_whole_cells_are_averaged_and_repeated():
    """Where sizes divide, the same as pooling and as the nearest neighbour."""
    maps = torch.randn(1, 2, 6, 8, dtype=torch.float64)
    positions = maps.flatten(2)[0].T
    pooled = functional.avg_pool2d(maps, 2).flatten(2)[0].T
    torch.testing.assert_close(resize_positions(positions, (6, 8), (3, 4)), pooled)
    repeated = functional.interpolate(maps, scale_factor=2).flatten(2)[0].T
    torch.testing.assert_close(resize_positions(positions, (6, 8), (12, 16)), repeated)
