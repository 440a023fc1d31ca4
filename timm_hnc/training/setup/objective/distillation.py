"""Learning from a teacher: timm's tasks of distillation, made of the options of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from timm.task import FeatureDistillationTask, LogitDistillationTask, TokenDistillationTask
from timm.task.distillation import DistillationTeacher
from timm.task.task import TrainingTask
from torch import Tensor, nn

from timm_hnc.cam import CamModel
from timm_hnc.cam.heads.hooked_head import HookedHead
from timm_hnc.cam.heads.model_copies import evaluating
from timm_hnc.cam.heads.probe import name_of
from timm_hnc.errors import UsageError, first_lines
from timm_hnc.options import check_choice, check_range


@dataclass(frozen=True)
class DistillationOptions:
    """A teacher, and what the model learns of it beside the labels.

    Args:
        kd_model_name: teacher: a run folder, or a name of pretrained weights as timm takes it.
        kd_distill_type: what is learned: its logits, its pooled features, or its logits by a classifier of their own.
        kd_loss_type: loss on logits; timm has kl alone.
        distill_loss_weight: weight of what the teacher says; 1, or what --task-loss-weight leaves of 1.
        task_loss_weight: weight of the criterion on labels; 1 if left out.
        kd_temperature: temperature of the softmax of student and teacher.
        kd_student_feature_dim: length of the student's pooled features, found if left out.
        kd_teacher_feature_dim: length of the teacher's, found if left out.
        kd_token_distill_type: token: by the teacher's probabilities, or by its predicted class.
    """

    kd_model_name: str | None = None
    kd_distill_type: Literal['logit', 'feature', 'token'] = 'logit'
    kd_loss_type: str = 'kl'
    distill_loss_weight: float | None = None
    task_loss_weight: float | None = None
    kd_temperature: float = 4.0
    kd_student_feature_dim: int | None = None
    kd_teacher_feature_dim: int | None = None
    kd_token_distill_type: Literal['soft', 'hard'] = 'soft'

    def __post_init__(self) -> None:
        if self.kd_model_name is not None:
            object.__setattr__(self, 'kd_model_name', str(self.kd_model_name))
        check_choice(self, 'kd_loss_type', ('kl',))
        check_range(self, 'distill_loss_weight', 'task_loss_weight', low=0)
        if self.on and self.distill_loss_weight is None and (self.task_loss_weight or 0) > 1:
            raise UsageError(
                f'--task-loss-weight {self.task_loss_weight}: what it leaves of 1 is the weight of the teacher; give '
                '--distill-loss-weight as well.'
            )
        check_range(self, 'kd_student_feature_dim', 'kd_teacher_feature_dim', low=1)
        check_range(self, 'kd_temperature', above=0)

    @property
    def on(self) -> bool:
        """Whether there is a teacher."""
        return bool(self.kd_model_name)


def check_student(options: DistillationOptions, model: Any, cam_model: CamModel | None = None) -> None:
    """Refuse a model that cannot learn in this way."""
    if not options.on:
        return
    flag = f'--kd-model-name {options.kd_model_name}'
    if not hasattr(model, 'pretrained_cfg'):
        raise UsageError(f"{flag}: '{name_of(model)}' has no pretrained_cfg, as models of timm.create_model have.")
    if cam_model is not None and isinstance(cam_model.head, HookedHead):
        raise UsageError(f'{flag}: not together with losses on the maps at {cam_model.head.place}.')
    if options.kd_distill_type == 'token' and not hasattr(model, 'set_distilled_training'):
        raise UsageError(
            f"--kd-distill-type token: '{name_of(model)}' has no classifier for the teacher; levit_128s, "
            'deit_tiny_distilled_patch16_224 and their like have one.'
        )


def create_distillation(
    options: DistillationOptions,
    teacher: nn.Module,
    data_config: dict[str, Any],
    student: nn.Module,
    device: torch.device,
    verbose: bool,
    dtype: torch.dtype | None = None,
    **criterion: Any,
) -> TrainingTask:
    """The task of timm's that the options name."""
    taught: Any = DistillationTeacher(teacher, device=device, dtype=dtype)
    weights = {name: getattr(options, name) for name in ('distill_loss_weight', 'task_loss_weight')}
    common = weights | criterion | {'device': device, 'dtype': dtype, 'verbose': verbose}
    try:
        task: Any = _create(options, student, taught, common)
    except (ValueError, RuntimeError) as error:
        raise UsageError(f'--kd-distill-type {options.kd_distill_type}: {first_lines(error)}') from error
    channels = data_config['input_size'][0]
    for name in ('mean', 'std'):  # of the run, where timm takes those of the student's published weights
        own = getattr(taught, f'{name}_kd')
        setattr(task, f'student_{name}', _of_channels(data_config[name], channels, own))
        setattr(taught, f'{name}_kd', _of_channels(own.flatten().tolist(), channels, own))
    alike = torch.equal(task.student_mean, taught.mean_kd) and torch.equal(task.student_std, taught.std_kd)
    # timm's own compares them at every step, which waits for the device
    taught.normalize_input = (lambda images, *_: images) if alike else partial(_normalised_anew, taught)
    if isinstance(task, FeatureDistillationTask):
        _check_lengths(task, student, teacher, data_config['input_size'])
    return task


def _normalised_anew(teacher: Any, images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Images that were normalised with the mean and std given, as the teacher wants them."""
    return (images * std + mean - teacher.mean_kd) / teacher.std_kd


def _of_channels(values: Sequence[float], channels: int, like: Tensor) -> Tensor:
    """(1, C, 1, 1) values; of another number of channels their mean, as timm's data config has it."""
    fitted = values if len(values) in (1, channels) else [sum(values) / len(values)]
    return torch.tensor(fitted, dtype=like.dtype, device=like.device).expand(channels).view(1, -1, 1, 1).clone()


@torch.no_grad()
def _check_lengths(
    task: FeatureDistillationTask, student: nn.Module, teacher: nn.Module, input_size: tuple[int, int, int]
) -> None:
    """See that the pooled features are as long as the projection between them, or as each other."""
    lengths = {}
    for name, model in (('student', getattr(student, 'cam_model', student)), ('teacher', teacher)):
        plain: Any = getattr(model, 'model', model) if isinstance(model, CamModel) else model
        with evaluating(plain):
            image = next(plain.parameters()).new_zeros(1, *input_size)
            lengths[name] = plain.forward_head(plain.forward_features(image), pre_logits=True).shape[-1]
    projection = task.trainable_module.projection
    between = (projection.in_features, projection.out_features) if projection else (lengths['student'],) * 2
    for (name, length), taken in zip(lengths.items(), between, strict=True):
        if length != taken:
            raise UsageError(f'--kd-{name}-feature-dim {taken}: the pooled features of the {name} have {length}.')


def _create(
    options: DistillationOptions, student: nn.Module, teacher: DistillationTeacher, common: dict[str, Any]
) -> TrainingTask:
    temperature = options.kd_temperature
    if options.kd_distill_type == 'logit':
        return LogitDistillationTask(
            student, teacher, loss_type=options.kd_loss_type, temperature=temperature, **common
        )
    if options.kd_distill_type == 'token':
        return TokenDistillationTask(
            student, teacher, distill_type=options.kd_token_distill_type, temperature=temperature, **common
        )
    lengths = {f'{name}_feature_dim': getattr(options, f'kd_{name}_feature_dim') for name in ('student', 'teacher')}
    return FeatureDistillationTask(student, teacher, **lengths, **common)
