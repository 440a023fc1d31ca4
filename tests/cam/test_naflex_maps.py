"""Class maps of NaFlex batches: of every image as if it were alone, whatever it is padded with."""

import pytest
import timm
import torch
from map_checks import assert_same
from naflex_batches import GRIDS, MODELS, TINY, naflex_batch, naflex_images, naflex_model

from timm_hnc import CamModel, HNCLoss
from timm_hnc.cam.naflex_maps import NaFlexMaps
from timm_hnc.losses.auto_weight import criterion_norm
from timm_hnc.losses.center import CenterLoss
from timm_hnc.losses.hnc import VARIANTS, hnc_loss
from timm_hnc.losses.maps.separability import SeparabilityLoss

TARGET = torch.tensor([0, 3, 6, 2])
EXACT = {'rtol': 1e-12, 'atol': 1e-12}


def one_by_one(cam_model, images):
    """The maps of every image in a batch of its own, without padding."""
    return [cam_model.class_maps(naflex_batch([image])) for image in images]


@pytest.mark.parametrize('kind', MODELS)
def test_the_mean_over_an_images_own_patches_is_the_logit(kind):
    model = naflex_model(kind).double()
    cam_model, images = CamModel(model), naflex_images()
    batch = naflex_batch(images, length=20, padding=5.0)
    with torch.no_grad():
        maps = cam_model.class_maps(batch)
        torch.testing.assert_close(maps.logits, model(batch), **EXACT)
        for index, (image, grid) in enumerate(zip(images, GRIDS, strict=True)):
            own = maps.of_image(index)
            assert own.grid == grid
            torch.testing.assert_close(own.maps().mean((2, 3))[0], maps.logits[index], **EXACT)
            assert torch.equal(own.maps(), maps.of_image(index - len(images)).maps())
            # the image as an image, which timm cuts into the same patches
            alone = cam_model.class_maps(image[None])
            torch.testing.assert_close(own.maps(), alone.maps(), rtol=1e-9, atol=1e-9)
    assert isinstance(maps, NaFlexMaps)
    assert maps.num_positions.flatten().tolist() == [height * width for height, width in GRIDS]


@pytest.mark.parametrize('kind', ['gap', 'map', 'class token'])
@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('reduction', ['sum', 'mean'])
def test_hnc_of_a_padded_batch_is_the_mean_of_its_images_alone(kind, variant, reduction):
    model = naflex_model(kind).double().train()
    cam_model, images = CamModel(model), naflex_images()
    options = {'variant': variant, 'topk': 3, 'alpha': 0.2, 'reduction': reduction}
    whole = hnc_loss(cam_model.class_maps(naflex_batch(images, length=24, padding=7.0)), TARGET, **options)
    alone = torch.stack(
        [hnc_loss(maps, TARGET[index, None], **options) for index, maps in enumerate(one_by_one(cam_model, images))]
    ).mean()
    torch.testing.assert_close(whole, alone, **EXACT)
    # timm resizes position embeddings in float32, and so their gradients
    leaves = [parameter for name, parameter in model.named_parameters() if 'pos_embed' not in name]
    ours, theirs = (torch.autograd.grad(loss, leaves, allow_unused=True) for loss in (whole, alone))
    assert_same(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize('variant', VARIANTS)
def test_the_norms_that_weigh_hnc_are_those_of_the_images_alone(variant):
    cam_model, images = CamModel(naflex_model().double()), naflex_images()
    hnc, criterion = HNCLoss(variant, topk=2), torch.nn.CrossEntropyLoss(reduction='sum')
    whole = cam_model.class_maps(naflex_batch(images, length=18))
    alone = one_by_one(cam_model, images)
    # norms of gradients of a mean: the images' own, each a share of the batch
    norms = [hnc.norm(maps, TARGET[index, None]) for index, maps in enumerate(alone)]
    torch.testing.assert_close(hnc.norm(whole, TARGET), torch.stack(norms).norm() / len(images), **EXACT)
    norms = [criterion_norm(criterion, maps, TARGET[index, None]) for index, maps in enumerate(alone)]
    torch.testing.assert_close(criterion_norm(criterion, whole, TARGET), torch.stack(norms).norm(), **EXACT)


@pytest.mark.parametrize(
    'loss', [CenterLoss(num_classes=7, num_features=32), SeparabilityLoss()], ids=['center', 'separability']
)
def test_other_losses_see_every_image_as_if_it_were_alone(loss):
    cam_model, images = CamModel(naflex_model('gap without norm').double()), naflex_images()
    whole = loss.double()(cam_model.class_maps(naflex_batch(images, length=18, padding=3.0)), TARGET)
    alone = [loss(maps, TARGET[index, None]) for index, maps in enumerate(one_by_one(cam_model, images))]
    torch.testing.assert_close(whole, torch.stack(alone).mean(), **EXACT)


@pytest.mark.parametrize('kind', ['gap', 'map'])
def test_what_dropout_drew_is_in_the_maps(kind):
    model = naflex_model(kind, drop_rate=0.4, proj_drop_rate=0.2, drop_path_rate=0.2).double().train()
    maps = CamModel(model).class_maps(naflex_batch(naflex_images(), length=18))
    torch.testing.assert_close(maps.mean(maps.scores()), maps.logits, **EXACT)


def test_dropped_patches_have_no_place_but_a_part_in_the_loss():
    model = naflex_model(patch_drop_rate=0.5).double().train()
    maps = CamModel(model).class_maps(naflex_batch(naflex_images(), length=18))
    assert maps.positions.shape[1] == 9
    torch.testing.assert_close(maps.mean(maps.scores()), maps.logits, **EXACT)
    hnc_loss(maps, TARGET, 'kd', topk=2).backward()
    with pytest.raises(ValueError, match='patches were dropped: no map is whole'):
        maps.of_image(0)


def test_patches_may_come_in_any_order():
    model = naflex_model(pos_embed_use_grid_sample=True).double()  # other positions follow from the order
    cam_model, batch = CamModel(model), naflex_batch(naflex_images(), length=18)
    order = torch.randperm(18, generator=torch.Generator().manual_seed(0))
    shuffled = {name: tensor[:, order] for name, tensor in batch.items()}
    with torch.no_grad():
        maps, others = cam_model.class_maps(batch), cam_model.class_maps(shuffled)
    for index in range(len(GRIDS)):
        torch.testing.assert_close(maps.of_image(index).maps(), others.of_image(index).maps(), rtol=1e-9, atol=1e-9)


def test_in_bfloat16_the_mean_is_the_logit_but_for_rounding():
    cam_model, batch = CamModel(naflex_model()), naflex_batch([image.float() for image in naflex_images()], length=18)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        maps = cam_model.class_maps(batch)
    scores = maps.scores().float()
    assert (maps.mean(scores) - maps.logits.float()).abs().max() < 0.02 * scores.abs().max()


def test_what_has_no_maps_of_naflex_batches_says_so():
    batch = naflex_batch([image.float() for image in naflex_images()])
    with pytest.raises(ValueError, match=r'ResNet has no class maps of NaFlex batches: choose one of naflexvit_\*'):
        CamModel(timm.create_model('test_resnet')).class_maps(batch)
    tokens = timm.create_model('vit_tiny_patch16_224', use_naflex=True, **TINY)
    with pytest.raises(ValueError, match=r'has no average or attention pool .*: see --gp'):
        CamModel(tokens).class_maps(batch)
    cam_model = CamModel(naflex_model())
    with pytest.raises(ValueError, match='the NaFlex batch has no patch_valid: expected patches, patch_coord'):
        cam_model.class_maps({name: batch[name] for name in ('patches', 'patch_coord')})
    with pytest.raises(ValueError, match=r'grids of their own: of_image\(i\).maps'):
        cam_model.class_maps(batch).maps([0])
    broken = {**batch, 'patches': batch['patches'].clone()}
    broken['patches'][1, 0] = torch.nan
    with pytest.raises(ValueError, match='the logits of image 1 of the batch are not finite'):
        cam_model.class_maps(broken)
