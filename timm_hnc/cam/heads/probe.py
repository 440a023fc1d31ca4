"""Finding out what class maps a model can give, and refusing those that would not be exact."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import timm
import torch
from timm.models import get_model_input_config, is_model
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from timm_hnc.cam.class_maps import ClassMaps
from timm_hnc.cam.following.operations import tensors_in
from timm_hnc.cam.following.tracking import Lost
from timm_hnc.cam.heads.any_model import find_hooked_head
from timm_hnc.cam.heads.base import Head, TimmModel, agree, forward_of
from timm_hnc.cam.heads.detached_head import KINDS, Branch, DetachedHead, detached_class_maps, followed_calls
from timm_hnc.cam.heads.detached_tail import DetachedTail
from timm_hnc.cam.heads.hooked_head import HookedHead, Place, is_of_timm
from timm_hnc.cam.heads.model_copies import evaluating, exact_numbers, full_copy, meta_copy
from timm_hnc.cam.heads.plain import plain_head
from timm_hnc.cam.heads.position_search import BATCH, branches, find_tail, widths_of
from timm_hnc.cam.heads.refusal import ERRORS, Refused, other_number
from timm_hnc.errors import UsageError, first_lines

MapHead = Head | DetachedHead | DetachedTail | HookedHead
LARGER = 4  # times the image size, where the model's own makes a single position
ANOTHER_PLACE = "name a module nearer to the logits with features='...', or features_input='...'"
_NAMED = "name the module whose output has positions with features='...'"
ELSE = 'choose a model with an average pool in front of its classifier, such as resnet50'


class UnsupportedHead(UsageError):
    """The maps of this model would not explain its logits; the message says why and what to do."""


@dataclass(frozen=True)
class Features:
    """What a model makes of two images of its own size.

    Args:
        model: the copy that they were made with.
        images: (2, C, H, W).
        features: what its forward_features() returned.
        larger: the images are larger than the model's own size.
    """

    model: TimmModel
    images: Tensor
    features: Any
    larger: bool = False

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images."""
        return self.images.shape[-2], self.images.shape[-1]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of every one of the features."""
        each = self.features if isinstance(self.features, (list, tuple)) else [self.features]
        return [tuple(tensor.shape) for tensor in each]


def probe_head(model: TimmModel, place: Place | None = None, image_size: tuple[int, int] | None = None) -> MapHead:
    """Find out how a model's logits come of positions.

    Nothing of the model is changed, no image is needed, and a timm model on the meta device will do. Hooks of the model
    are called with what is tried out, as they may be part of what it does.

    Args:
        model: of timm, or any other image classifier.
        place: of the features; where timm says they are, or else looked for, if None.
        image_size: (height, width) of the images of a model that is none of timm's; tried out if None.

    Raises:
        UnsupportedHead: the model has no exact class maps, as far as this goes.
    """
    try:
        if isinstance(model, torch.jit.ScriptModule):
            raise Refused('TorchScript does not let us look into its modules', 'give the model that it was made of')
        if hasattr(model, '_orig_mod'):
            raise Refused('it is compiled, and its modules show nothing', 'wrap the model, and compile the wrapper')
        # a head may draw; and what the caller has switched on or off changes nothing of what is found
        drawn_on = sorted({parameter.device.index for parameter in model.parameters() if parameter.is_cuda})
        with exact_numbers(), torch.random.fork_rng(devices=drawn_on), torch.inference_mode(False):
            if place is None and is_of_timm(model):
                return _find(model)
            head = find_hooked_head(model, place, image_size)
            if is_of_timm(model) and head.num_classes is not None:
                _check_number_of_classes(model, head.num_classes)
            return head
    except Refused as refused:
        if not all(_is_finite(parameter) for parameter in model.parameters()):
            raise UnsupportedHead(
                f"no class maps for '{name_of(model)}': its weights hold NaN or infinity. Way out: load other weights."
            ) from None
        way_out = refused.way_out or (ANOTHER_PLACE if place or not is_of_timm(model) else way_out_of(model) or ELSE)
        raise UnsupportedHead(
            f"no exact class maps for '{name_of(model)}': {refused.reason}. Way out: {way_out}"
            + ('; without HNC and pictures it trains as it is.' if is_of_timm(model) else '.')
        ) from None


def _is_finite(parameter: Tensor) -> bool:
    return parameter.is_meta or is_lazy(parameter) or bool(parameter.isfinite().all())


def check_trainable(model: TimmModel, head: MapHead) -> None:
    """Refuse to train on maps that are for pictures only.

    Raises:
        UnsupportedHead: with the model's name, what was found and what to do.
    """
    if not head.trainable:
        tried = way_out_of(model)
        way_out = f'{tried}; its class-token weights then need fine-tuning' if tried else ELSE
        raise UnsupportedHead(
            f"no trainable class maps for '{name_of(model)}': its patch tokens do not enter the logits behind the last "
            f'attention, its maps are for pictures and evaluation. Way out: {way_out}; without HNC it trains as it is.'
        )


def name_of(model: TimmModel) -> str:
    """The architecture's name in timm, or the class."""
    return (getattr(model, 'pretrained_cfg', None) or {}).get('architecture') or type(model).__name__


def way_out_of(model: TimmModel) -> str | None:
    """The option that gives this architecture trainable maps, tried out; None if there is none."""
    name, pool = name_of(model), getattr(model, 'global_pool', None)
    if not is_model(name) or 'avg' in (pool, getattr(pool, 'pool_type', None)):
        return None
    try:
        with torch.device('meta'):
            other = timm.create_model(name, num_classes=2, global_pool='avg')
        if not _find(other).trainable:
            return None
    except (*ERRORS, Refused):
        return None
    return "create it with global_pool='avg' (--gp avg)"


def _find(model: TimmModel) -> MapHead:
    if not hasattr(model, 'get_classifier'):
        raise Refused('it has no get_classifier()', f'use an image classifier of timm, or {_NAMED}')
    if next(model.parameters(), None) is None:
        raise Refused('it has no weights', 'use an image classifier of timm')
    if not hasattr(model, 'num_classes'):
        raise Refused('it has no num_classes', f'set it to the number of its classes, or {_NAMED}')
    if not model.num_classes:
        raise Refused('it has no classifier', 'create it with num_classes=N (--num-classes N)')
    if forward_of(model) is not type(model).forward:
        raise Refused(
            'its forward() was replaced, by a patch or by accelerator.prepare()',
            'wrap the model before, accelerator.prepare(CamModel(model)), or take it out again, '
            f'accelerator.unwrap_model(model, keep_fp32_wrapper=False), or {_NAMED}',
        )
    found = _features(model, get_model_input_config(model)['input_size'])
    with suppress(*ERRORS), torch.no_grad():  # a head that fails is refused where it is followed
        _check_number_of_classes(model, found.model.forward_head(found.features).shape[-1])
    with suppress(ValueError, Refused):
        return _plain(model, found)
    try:
        return _detached_head(model, found)
    except Refused:
        with suppress(*ERRORS):
            tail = find_tail(found.model, found.images)
            if tail is not None:
                return tail
        raise


def _check_number_of_classes(model: TimmModel, count: int) -> None:
    """Refuse a classifier that somebody put there by hand, where what is saved would tell of another."""
    told = getattr(model, 'num_classes', count)
    if count != told:
        raise Refused(
            other_number(told, count),
            f'set model.num_classes = {count}; model.reset_classifier({count}) makes both',
        )


def _features(model: TimmModel, input_size: tuple[int, int, int]) -> Features:
    """Features of two images, of a copy without data if that will do."""
    parameter = next(model.parameters())
    candidates: list[tuple[Callable[[], TimmModel], torch.device]] = [(lambda: meta_copy(model), torch.device('meta'))]
    if parameter.device.type != 'meta':  # some models make tensors of their own, which meta tensors cannot meet
        candidates.append((lambda: full_copy(model), parameter.device))
    reason = ''
    for make, device in candidates:
        images = torch.zeros(BATCH, *input_size, device=device, dtype=parameter.dtype)
        copied = make().eval()
        try:
            with torch.no_grad():
                features = copied.forward_features(images)
        except ERRORS as error:
            reason = f'its forward_features() failed ({first_lines(error, 120)})'
            continue
        each = features if isinstance(features, (list, tuple)) else [features]
        if all(isinstance(tensor, Tensor) and tensor.ndim in (3, 4) for tensor in each):
            return Features(copied, images, features)
        reason = 'its features are no map and no row of tokens'
        break
    raise Refused(reason)


def _plain(model: TimmModel, found: Features) -> MapHead:
    if len(found.shapes) > 1:
        raise ValueError('it has several branches')
    head = plain_head(model, found.shapes[0], found.image_size)
    _check_plain_in_training(head, found)
    return head


def _check_plain_in_training(head: Head, found: Features) -> None:
    """Refuse as plain what is more than a pool and the classifier in training, or not because of its weights alone."""
    place = Branch({'NCHW': (2, 3), 'NHWC': (1, 2), 'NLC': (1,)}[head.layout], head.num_prefix_tokens, head.cell)
    _refuse_other_forward(found, [place])
    _refuse_other_forward(found, [place], training=True)
    maps, parts = _followed(found, [place], training=True)
    layers = [found.model.get_submodule(name) for name in head.classifiers]
    own = any(maps.weight is layer.weight or maps.weight._base is layer.weight for layer in layers)
    if parts or not (own or len(layers) > 1) or maps.positions.shape[2] != layers[0].weight.shape[1]:
        raise ValueError('its head is more than a mean in front of its linear layer')


def _followed(found: Features, places: Sequence[Branch | None], training: bool = False) -> tuple[ClassMaps, set[str]]:
    """Maps of the copy's features, and what lies between features and logits."""
    mode = ' in training' if training else ''
    found.model.train(training)
    try:
        with torch.enable_grad():  # what switches it off in the head would cut the maps off from the gradient
            maps, parts = detached_class_maps(found.model, found.features, places, found.image_size)
    except ERRORS as error:
        raise Refused(f'its forward_head() failed{mode} ({first_lines(error, 120)})') from error
    finally:
        found.model.eval()
    if isinstance(maps, Lost):
        raise Refused(f'its head cannot be followed{mode} ({maps.reason})')
    return maps, parts


def _detached_head(model: TimmModel, found: Features) -> MapHead:
    try:
        places = _with_place(found, branches(model, found.shapes, found.image_size))
        sizes = [
            place.live(torch.empty(shape, device='meta'), found.image_size).num_positions
            for place, shape in zip(places, found.shapes, strict=True)
            if place
        ]
    except ERRORS as error:
        way_out = None if widths_of(model) else 'set its num_features to the number of channels of its features'
        raise Refused(f'its features have no positions ({first_lines(error, 120)})', way_out) from error
    if max(sizes, default=1) == 1:
        return _detached_head_of_larger_images(model, found)
    _, parts = _followed(found, places)
    _followed(found, places, training=True)
    _refuse_other_forward(found, places)
    _refuse_other_forward(found, places, training=True)
    _refuse_synchronised_statistics(found)
    kind = 'H' if len(places) > 1 else next((kind for part, kind in KINDS.items() if part in parts), 'A')
    head = DetachedHead(kind, tuple(places))
    _check_values(model, head, found)
    return head


def _refuse_other_forward(found: Features, places: Sequence[Branch | None], training: bool = False) -> None:
    """A forward() that does more to images or features than forward_features() and forward_head() has other logits."""
    model, features, mode = found.model, found.features, ' in training' if training else ''
    entered: list[Tensor] = []

    def forward_features(*args: Any, **kwargs: Any) -> Any:
        entered.extend(tensors_in(args, kwargs)[:1])
        return features

    owner: TimmModel = getattr(model.forward_features, '__self__', model)  # the one inside a wrapper that hands it on
    owner.forward_features = forward_features
    model.train(training)
    try:
        with torch.enable_grad():
            whole = followed_calls(lambda: model(found.images), features, places, found.image_size)
            head = followed_calls(lambda: model.forward_head(features), features, places, found.image_size)
    except ERRORS as error:
        raise Refused(f'its forward() failed{mode} ({first_lines(error, 120)})') from error
    finally:
        model.eval()
        del owner.forward_features
    if not entered:
        raise Refused(f'its forward(){mode} goes around its forward_features()', _NAMED)
    if [id(x) for x in entered] != [id(found.images)]:
        raise Refused(f'its forward(){mode} does more to images than its forward_features()', _NAMED)
    if whole != head:
        raise Refused(f'its forward(){mode} does more than its forward_head()', _NAMED)


def _detached_head_of_larger_images(model: TimmModel, found: Features) -> MapHead:
    channels, (height, width) = found.images.shape[1], found.image_size
    if found.larger:
        raise Refused('its head sees no positions')
    try:
        larger = _features(model, (channels, LARGER * height, LARGER * width))
    except Refused as refused:
        raise Refused('its head sees a single position on images of its size') from refused
    return _detached_head(model, replace(larger, larger=True))


def _with_place(found: Features, places: Sequence[Branch]) -> list[Branch | None]:
    """Of several features only those that grow with the image have their place in it; the others are states."""
    if len(places) == 1:
        return list(places)
    larger = torch.zeros(BATCH, found.images.shape[1], *(2 * side for side in found.image_size)).to(found.images)
    try:
        with torch.no_grad():
            others = found.model.forward_features(larger)
    except ERRORS:  # a model of one image size
        return list(places)
    grow = [tuple(tensor.shape) != shape for shape, tensor in zip(found.shapes, others, strict=True)]
    if not any(grow):  # a model that resizes its images
        return list(places)
    return [place if grows else None for place, grows in zip(places, grow, strict=True)]


def _refuse_synchronised_statistics(found: Features) -> None:
    """What several processes compute together cannot be detached here."""
    called: list[nn.Module] = []
    handles = [
        module.register_forward_pre_hook(lambda module, _: called.append(module))
        for module in found.model.modules()
        if isinstance(module, nn.SyncBatchNorm)
    ]
    if not handles:
        return
    with torch.no_grad():
        found.model.forward_head(found.features)
    if called:
        raise Refused('its head synchronises batch statistics between processes', 'leave out --sync-bn')


def _check_values(model: TimmModel, head: DetachedHead, found: Features) -> None:
    """Refuse maps whose mean is not the logit, on random features and the model's own weights."""
    parameter = next(model.parameters())
    if parameter.device.type == 'meta':
        return
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(shape, generator=generator, device='cpu').to(parameter) for shape in found.shapes]
    given = features if len(features) > 1 else features[0]
    with evaluating(model), torch.no_grad():
        try:
            maps, _ = detached_class_maps(model, given, head.branches, found.image_size)
        except ERRORS:  # some heads use what forward_features() has kept
            maps, _ = _maps_behind_a_pass(model, given, head, found)
        if isinstance(maps, Lost) or not agree(maps.logits, maps.maps(None).mean((2, 3))):
            raise Refused('its logits are not the means of its maps')


def _maps_behind_a_pass(
    model: TimmModel, features: Any, head: DetachedHead, found: Features
) -> tuple[ClassMaps | Lost, set[str]]:
    """Maps of features, of a copy that has run."""
    copied = full_copy(model)
    try:
        copied.forward_features(torch.zeros(found.images.shape).to(next(model.parameters())))
        return detached_class_maps(copied, features, head.branches, found.image_size)
    except ERRORS as error:
        raise Refused(f'its forward_head() failed ({first_lines(error, 120)})') from error
