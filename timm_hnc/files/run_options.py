"""The options of a run, as its folder keeps them."""

from pathlib import Path
from typing import Any

import yaml
from yaml.loader import SafeLoader

from timm_hnc.errors import DataError

# libyaml's is ten times as fast, but not in every build of PyYAML
_LOADER = getattr(yaml, 'CSafeLoader', SafeLoader)

OF_THE_HUB = ('push_to_hub', 'hub_every', 'hub_private', 'hub_revision', 'hub_licence', 'baseline')
# options by which runs are not told apart
NOT_COMPARED = frozenset(
    {
        # they change neither weights nor figures
        *('config', 'output', 'experiment', 'resume', 'stop_epoch', 'allow_world_size_change'),
        *('dataset_download', 'dataset_trust_remote_code', 'worker_timeout', 'pin_mem', 'validation_batch_size'),
        *('checkpoint_hist', 'checkpoint_interval', 'recovery_interval', 'save_epochs'),
        *('log_interval', 'save_images', 'cam_images', 'no_report', 'synchronize_step', 'device_modules'),
        *('log_tensorboard', 'log_wandb', 'wandb_project', 'wandb_tags', 'wandb_resume_id'),
        *OF_THE_HUB,
        # they stand in others once those are resolved: data_dir, loss, loss_pos_weight, drop_path, lr; or are told as
        # facts of a run, as its device is
        *('data', 'bce_loss', 'jsd_loss', 'bce_pos_weight', 'drop_connect', 'device'),
        *('lr_base', 'lr_base_size', 'lr_base_scale'),
        *('filled_in', 'scaled_lr'),  # what is filled in is compared by its value
        *('no_resume_opt', 'start_epoch'),  # of one resume, and of no other
    }
)


def load_yaml(text: str) -> Any:
    """What a YAML text of plain values says."""
    try:
        return yaml.load(text, _LOADER)
    except yaml.YAMLError:  # libyaml's has no word for the bytes of a name that is no UTF-8
        return yaml.load(text, SafeLoader)


def dump_yaml(values: dict[str, Any]) -> str:
    """A YAML text of plain values, a line each, sorted by name."""
    return yaml.safe_dump(values, default_flow_style=False)


def find_run(path: Path) -> Path | None:
    """The run folder that a path is or lies in, as its model_best and the weights of its checkpoints do; else None."""
    path = path.absolute()
    # RUN/checkpoints/epoch-0/model/model.safetensors has four folders
    folders = (path, path.parent, *list(path.resolve().parents)[:4])
    return next((folder for folder in folders if (folder / 'args.yaml').is_file()), None)


def options_of_run(path: str | None) -> dict[str, Any]:
    """args.yaml of the run folder that a path is or lies in, local-dir: before it or not; empty of anything else."""
    path = (path or '').removeprefix('local-dir:')
    run = find_run(Path(path)) if path and Path(path).exists() else None
    return read_options(run) if run else {}


def read_options(folder: Path) -> dict[str, Any]:
    """args.yaml of a run folder."""
    if not (folder / 'args.yaml').is_file():
        raise DataError(f"'{folder}' is no run folder of train.py: there is no args.yaml in it.")
    try:
        options = load_yaml((folder / 'args.yaml').read_text(encoding='utf-8'))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"'{folder / 'args.yaml'}' cannot be read: {error}") from error
    if not isinstance(options, dict):
        raise DataError(f"'{folder}' is no run folder of train.py: its args.yaml has no options.")
    return options
