"""Options of what a run reports, beside its folder: trackers and the Hugging Face Hub."""

from collections.abc import Sequence
from dataclasses import dataclass

from timm_hnc.files.run_options import OF_THE_HUB
from timm_hnc.options import check_range, refuse_alone


@dataclass(frozen=True)
class TrackingOptions:
    """TensorBoard and Weights & Biases.

    Args:
        log_tensorboard: write TensorBoard events.
        log_wandb: log to Weights & Biases.
        wandb_project: project there.
        wandb_tags: tags there.
        wandb_resume_id: run there to go on with.
    """

    log_tensorboard: bool = False
    log_wandb: bool = False
    wandb_project: str | None = None
    wandb_tags: Sequence[str] = ()
    wandb_resume_id: str = ''


@dataclass(frozen=True)
class HubOptions:
    """Publishing to the Hugging Face Hub.

    Args:
        push_to_hub: publish the best weights at the end.
        hub_every: publish every so many epochs as well.
        hub_private: make the repository private.
        hub_revision: commit to this branch, made if it is missing.
        hub_licence: of the weights, as the Hub names it, such as apache-2.0.
        baseline: run folder whose figures stand beside on the model card.
    """

    push_to_hub: str | None = None
    hub_every: int | None = None
    hub_private: bool = False
    hub_revision: str | None = None
    hub_licence: str | None = None
    baseline: str | None = None

    def __post_init__(self) -> None:
        check_range(self, 'hub_every', low=1)
        if not self.push_to_hub:
            refuse_alone(self, '--push-to-hub USER/NAME', OF_THE_HUB)
