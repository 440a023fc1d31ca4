"""timm's training tasks for losses on class maps, and with HNC and others beside them (Eq. 7, Eq. 9 of the paper)."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from timm.task import ClassificationTask, MultiLabelClassificationTask
from timm.task.task import TrainingTask
from timm.utils import unwrap_model
from torch import Tensor, nn

from timm_hnc.cam import CamModel, ClassMaps
from timm_hnc.cam.heads.probe import check_trainable
from timm_hnc.cam.negatives import negative_classes
from timm_hnc.cam.object_masks import ObjectMasks
from timm_hnc.distillation import Student
from timm_hnc.losses import HNCLoss
from timm_hnc.losses.auto_weight import AutoWeight
from timm_hnc.losses.base import Loss, at_least, wide_indices
from timm_hnc.losses.hnc import DEFAULT_WEIGHTS
from timm_hnc.losses.maps.base import MapLoss
from timm_hnc.losses.plain_classifier import check_classifier

_logger = logging.getLogger(__name__)
_OF_THE_TASK = ('loss', 'output', 'criterion', 'hnc', 'hnc_weight', 'kd_loss', 'task_loss')


class ClassMapTask(ClassificationTask):
    """Single-label classification: a criterion that may look at class maps, and the losses on maps beside it.

    Args:
        cam_model: the model to train.
        criterion: a `Loss` with whatever it needs, or a function of logits and target;
            timm's `create_classification_loss(**criterion_kwargs)` if None.
        criterion_kwargs: for that function.
        device: of the task's tensors.
        dtype: of the task's tensors.
        verbose: log the losses in use.
        map_losses: losses on class maps and their weights, by the names under which they are logged.
        target_floor: the value that smoothing gives to absent classes in dense targets; by default from
            criterion_kwargs: smoothing / n with soft targets (smoothing / 2 for several labels), else 0.
        distil: makes timm's distillation task of a student and the criterion; its loss takes the criterion's place.

    Raises:
        TypeError: the model is no CamModel.
        ValueError: the model's class maps cannot be trained on, the criterion does not go with it, or a weight is
            negative or not finite.
    """

    def __init__(
        self,
        cam_model: CamModel,
        criterion: nn.Module | Callable[[Tensor, Tensor], Tensor] | None = None,
        criterion_kwargs: dict[str, Any] | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
        map_losses: Mapping[str, tuple[MapLoss, float]] | None = None,
        target_floor: float | None = None,
        distil: Callable[..., TrainingTask] | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(cam_model, CamModel):
            task, wrapper = type(self).__name__, type(cam_model).__name__
            if isinstance(unwrap_model(cam_model), CamModel):
                raise TypeError(
                    f'the model is a {wrapper} of a CamModel: wrap the task, {wrapper}({task}(model, ...)).'
                )
            raise TypeError(f'the model is a {wrapper}: wrap it, {task}(CamModel(model), ...).')
        check_trainable(cam_model.model, cam_model.head)
        if isinstance(criterion, Loss):
            check_classifier(cam_model, criterion)
        super().__init__(cam_model, criterion, criterion_kwargs, device=device, dtype=dtype, verbose=verbose, **kwargs)
        map_losses = map_losses or {}
        taken = [name for name in map_losses if name in _OF_THE_TASK]
        if taken:
            raise ValueError(f"map_losses: '{taken[0]}' is the name of another part of the result, choose another.")
        self.map_weights = {name: at_least(0, **{name: weight}) for name, (_, weight) in map_losses.items()}
        self.map_losses = nn.ModuleDict({name: map_loss for name, (map_loss, _) in map_losses.items()})
        if target_floor is None:
            given, classes = criterion_kwargs or {}, 2 if self.multi_label else cam_model.num_classes
            target_floor = given.get('smoothing', 0.0) / classes if given.get('soft_targets') else 0.0
        self.target_floor = target_floor
        self._saw_targets = False
        self.distillation: TrainingTask | None = None
        if distil is not None:
            self.student = Student(cam_model)
            self.distillation = distil(student=self.student, criterion=self.criterion)

    def prepare_distributed(self, *args: Any, **kwargs: Any) -> Any:
        """As timm's.

        Raises:
            ValueError: there is a teacher, or a criterion that learns, neither of which is in what would be wrapped.
        """
        parameters = self.criterion.parameters() if isinstance(self.criterion, nn.Module) else ()
        learns = any(parameter.requires_grad for parameter in parameters)
        if learns or self.distillation is not None:
            what = 'criterion that learns' if learns else 'teacher'
            raise ValueError(f'a task with a {what} is wrapped whole: DistributedDataParallel(task).')
        return super().prepare_distributed(*args, **kwargs)

    def forward(self, input: Tensor, target: Tensor, masks: ObjectMasks | None = None) -> dict[str, Tensor]:
        """Forward pass and losses.

        Args:
            input: (B, C, H, W) images, or a NaFlex batch.
            target: (B,) class indices, or (B, n) values, one a class.
            masks: where the objects are, for `map_losses` that need it.

        Returns:
            'loss' to train on, 'output' (B, n) logits, and where losses on maps are beside the criterion, for logging:
            'criterion', 'hnc' and the 'hnc_weight' that follows from gradients, and those of `map_losses` by name.
        """
        batch_size = len(target)
        images, target = self.views(input, target)
        criterion, plain, of_teacher = self.criterion_and_maps(images, target)
        loss, parts = self.with_hnc(criterion, plain, target)
        loss, of_maps = self.with_map_losses(loss, plain, target, images, masks)
        # torch 2.7 compiles no |=
        parts = {'criterion': criterion.detach(), **parts, **of_maps} if parts or of_maps else {}
        # a view would have FSDP warn
        output = plain.logits if len(plain.logits) == batch_size else plain.logits[:batch_size]
        return {'loss': loss, 'output': output, **parts, **of_teacher}

    def views(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """A batch and its targets, and behind it its mirror images where a loss needs two views."""
        if self.multi_label and (target.ndim != 2 or not target.is_floating_point()):
            raise ValueError(
                'several labels need dense float targets (batch, classes), got '
                f'{str(target.dtype).removeprefix("torch.")} of shape {tuple(target.shape)}.'
            )
        target = wide_indices(target)
        if not torch.compiler.is_compiling():
            self.look_at_targets(target)
        if 'two_views' not in [getattr(each, 'needs', None) for each in (self.criterion, *self.map_losses.values())]:
            return input, target
        return torch.cat([input, input.flip(-1)]), target.repeat(2, *[1] * (target.ndim - 1))

    @property
    def looks_at_absent_classes(self) -> bool:
        """Whether a loss beside the criterion may be of the maps of absent classes."""
        return bool(self.map_losses)

    def look_at_targets(self, target: Tensor) -> None:
        """Warn of a first batch that was smoothed, where `target_floor` does not say so.

        The task does it by itself, but not where it is compiled.
        """
        if target.ndim != 2 or self._saw_targets or not self.looks_at_absent_classes:
            return
        self._saw_targets, num_classes = True, target.shape[1]
        if (target < 1).any() and not negative_classes(target, num_classes, self.target_floor).any():
            classes = 2 if self.multi_label else num_classes
            _logger.warning(
                f'All images of the first batch have targets above {self.target_floor:g} for all classes, so that none '
                'is absent, and losses on maps of absent classes do nothing: give targets that are not smoothed, or '
                f'target_floor, the value that smoothing gives to absent classes (smoothing / {classes}).'
            )

    def criterion_and_maps(self, images: Tensor, target: Tensor) -> tuple[Tensor, ClassMaps, dict[str, Tensor]]:
        """The criterion of these views, the class maps of the classifier that is exported, and a teacher's parts."""
        if self.distillation is not None:
            found = self.distillation(images, target)
            parts = {name: value.detach() for name, value in found.items() if name not in ('loss', 'output')}
            return found['loss'], self.student.take_class_maps(), parts
        class_maps = self.trainable_module(images, return_class_maps=True)
        loss = self.criterion if isinstance(self.criterion, Loss) else None
        if loss is None or loss.needs == 'logits':
            return self.criterion(class_maps.logits, target), class_maps, {}
        of_batch = target[: len(target) // 2] if loss.needs == 'two_views' else target
        return loss(class_maps, of_batch), loss.as_plain(class_maps), {}

    def with_hnc(self, loss: Tensor, class_maps: ClassMaps, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """A loss with HNC added to it, and what is logged of HNC: none here."""
        return loss, {}

    def with_map_losses(
        self, loss: Tensor, class_maps: ClassMaps, target: Tensor, images: Tensor, masks: ObjectMasks | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A loss with those on class maps added to it, and the value of each, for logging."""
        parts = {}
        if masks is not None and len(masks.classes) < len(target):
            masks = masks.with_mirrored()
        for name, map_loss in self.map_losses.items():
            value = map_loss(class_maps, target, self.target_floor, images, masks)
            loss, parts[name] = loss + self.map_weights[name] * value, value.detach()
        return loss, parts

    def compile(  # type: ignore[override]  # timm's tasks give nn.Module's name to this
        self, backend: str = 'inductor', mode: str | None = None, **compile_kwargs: Any
    ) -> nn.Module:
        """Compile what trains, the model with its class maps, and the plain model that is evaluated, both in place.

        With `distil` the student's pass is another, which this does not compile: `torch.compile(task)` does.

        Args:
            backend: of torch.compile.
            mode: of torch.compile.
            compile_kwargs: further options of torch.compile.

        Returns:
            The plain timm model.
        """
        cam_model = unwrap_model(self.trainable_module)
        for module in (cam_model, cam_model.model):
            module.compile(backend=backend, mode=mode, **compile_kwargs)
        return cam_model.model

    def compile_ema(
        self, backend: str = 'inductor', mode: str | None = None, **compile_kwargs: Any
    ) -> nn.Module | None:
        """Compile the plain model of the moving average in place, and return it; None where there is none."""
        model = self.get_eval_model(ema=True)
        if model is not None:
            model.compile(backend=backend, mode=mode, **compile_kwargs)
        return model

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """The plain timm model, so that checkpoints load where timm_hnc is not installed."""
        module = super().get_eval_model(module, ema)
        model = unwrap_model(module) if module is not None else None
        return model.model if isinstance(model, CamModel) else module


class HNCTask(ClassMapTask):
    """Single-label classification: criterion + hnc_weight * HNC (Eq. 7), and other losses on maps beside them.

    Args:
        cam_model: the model to train.
        criterion: as `ClassMapTask`.
        criterion_kwargs: for timm's criterion. With `soft_targets` its `smoothing` tells the task which value mixup and
            cutmix give to absent classes.
        hnc: the HNC loss.
        hnc_weight: its weight (lambda); 0.0065 for kd and 0.0007 for the others if None. An `AutoWeight` follows from
            the gradients of training batches; it needs a criterion on logits.
        device: of the task's tensors.
        dtype: of the task's tensors.
        verbose: log the losses in use.
        **kwargs: `map_losses`, `target_floor` and `distil`, as `ClassMapTask`.

    Attributes:
        hnc_joins: whether HNC is added to the loss; its value is returned either way.

    Raises:
        TypeError: the model is no CamModel, or the weight is a text.
        ValueError: the model's class maps cannot be trained on, the weight is negative or not finite, or timm refuses
            the criterion.

    Example:
        >>> task = HNCTask(CamModel(timm.create_model('resnet18')), hnc=HNCLoss('mse', topk=100), hnc_weight=0.0007)
        >>> task(torch.randn(2, 3, 224, 224), torch.tensor([7, 3]))['loss'].backward()
    """

    def __init__(
        self,
        cam_model: CamModel,
        criterion: nn.Module | Callable[[Tensor, Tensor], Tensor] | None = None,
        criterion_kwargs: dict[str, Any] | None = None,
        hnc: HNCLoss | None = None,
        hnc_weight: float | AutoWeight | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
        **kwargs: Any,
    ) -> None:
        hnc = hnc if hnc is not None else HNCLoss()
        if not isinstance(hnc, nn.Module):
            raise TypeError(f"hnc = {hnc!r}: expected the loss, such as HNCLoss('mse').")
        hnc_weight = DEFAULT_WEIGHTS[hnc.variant] if hnc_weight is None else hnc_weight
        if isinstance(hnc_weight, AutoWeight):
            if isinstance(criterion, Loss) and criterion.needs != 'logits':
                raise ValueError(f'{type(criterion).__name__} is no function of logits: AutoWeight needs one.')
            hnc_weight.to(device)
        elif isinstance(hnc_weight, str):
            raise TypeError(f'hnc_weight = {hnc_weight!r}: expected a number, or an AutoWeight.')
        else:
            at_least(0, hnc_weight=hnc_weight)
        super().__init__(cam_model, criterion, criterion_kwargs, device=device, dtype=dtype, verbose=verbose, **kwargs)
        self.hnc = hnc
        self.hnc_weight = hnc_weight
        self.hnc_joins = True
        self._saw_maps = False

    @property
    def looks_at_absent_classes(self) -> bool:
        """HNC does."""
        return True

    def with_hnc(self, loss: Tensor, class_maps: ClassMaps, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """A loss with HNC added to it where HNC joins, the value of HNC, and its weight if that is not fixed."""
        if not self._saw_maps and not torch.compiler.is_compiling():
            self._look_at_maps(class_maps)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.hnc_joins):
            hnc = self.hnc(class_maps, target, self.target_floor)
        parts = {'hnc': hnc.detach()}
        weight: float | AutoWeight | Tensor = self.hnc_weight
        if isinstance(weight, AutoWeight):
            value = weight.value
            if self.training and torch.is_grad_enabled() and self.hnc_joins:
                value = weight.follow(self.criterion, self.hnc, class_maps, target, self.target_floor)
            weight = parts['hnc_weight'] = value.to(hnc.dtype)
        return loss + weight * hnc if self.hnc_joins else loss, parts

    def _look_at_maps(self, class_maps: ClassMaps) -> None:
        """Warn of first maps that are flat as they are, where HNC only flattens."""
        self._saw_maps = True
        variant = getattr(self.hnc, 'variant', '')
        if variant in ('kd', 'var') and getattr(class_maps, 'grid', None) == (1, 1):
            _logger.warning(
                f'HNC ({variant}) does nothing: the maps of the first batch are a single cell, and flat as they are. '
                'Give larger images, or a network of a smaller stride (output_stride=8 where it takes that).'
            )


class ClassMapMultiLabelTask(ClassMapTask, MultiLabelClassificationTask):
    """Several labels an image: a criterion that may look at class maps, BCE by default.

    Takes what `ClassMapTask` takes, and `threshold`, the probability from which the evaluator's F1 counts a label.
    Targets are dense floats of shape (B, n).
    """


class HNCMultiLabelTask(HNCTask, MultiLabelClassificationTask):
    """Several labels an image: criterion (BCE by default) + hnc_weight * HNC (Eq. 9).

    Takes what `HNCTask` takes, and `threshold`, the probability from which the evaluator's F1 counts a label.
    Targets are dense floats of shape (B, n).
    """
