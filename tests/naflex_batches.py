"""NaFlex models and batches that are small enough for tests."""

import timm
import torch
from small_models import NUM_CLASSES, perturb
from timm.data.naflex_transforms import patchify_image

TINY = {'embed_dim': 32, 'num_heads': 2, 'depth': 2}
# average pool with a norm behind it, with registers; the same without a norm; attention pool with a register, and alone
MODELS = {
    'gap': ('naflexvit_base_patch16_gap', {}),
    'gap without norm': ('naflexvit_base_patch16_gap', {'fc_norm': False}),
    'map': ('naflexvit_base_patch16_map', {}),
    'siglip': ('naflexvit_base_patch16_siglip', {}),
    'factorized': ('naflexvit_base_patch16_parfac_gap', {}),
    'class token': ('vit_tiny_patch16_224', {'use_naflex': True, 'global_pool': 'avg'}),
}
GRIDS = ((2, 3), (4, 4), (1, 5), (3, 2))


def naflex_model(kind: str = 'gap', seed: int = 0, **kwargs):
    name, options = MODELS[kind]
    torch.manual_seed(seed)
    return perturb(timm.create_model(name, num_classes=NUM_CLASSES, **TINY, **options, **kwargs)).eval()


def naflex_images(grids=GRIDS, seed=1):
    """Images (3, H, W) of these grids of 16 x 16 pixels, in float64."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 16 * h, 16 * w, generator=generator, dtype=torch.float64) for h, w in grids]


def naflex_batch(images, length: int | None = None, padding: float = 0.0) -> dict[str, torch.Tensor]:
    """A batch as timm's collator makes it, in the type of the images, with so many patches an image."""
    parts = [patchify_image(image, (16, 16)) for image in images]
    length = length or max(len(patches) for patches, _, _ in parts)
    batch = {
        'patches': torch.full((len(parts), length, 16 * 16 * 3), padding, dtype=images[0].dtype),
        'patch_coord': torch.zeros(len(parts), length, 2, dtype=torch.int64),
        'patch_valid': torch.zeros(len(parts), length, dtype=torch.bool),
    }
    for index, part in enumerate(parts):
        for tensor, values in zip(batch.values(), part, strict=True):
            tensor[index, : len(values)] = values
    return batch
