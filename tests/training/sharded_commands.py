"""several_commands.py where accelerate launch asked for FSDP, on a CPU: Accelerate itself shards on accelerators alone.

python sharded_commands.py '[["train", "--model", ...], ...]'
"""

import os
import runpy
from pathlib import Path

import accelerate.accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

import timm_hnc.training.run
from timm_hnc.training.fit import fit

# what accelerate launch 1.15 exports for --use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP
# --fsdp_transformer_layer_cls_to_wrap InvertedResidual
LAUNCHER = {
    'ACCELERATE_USE_FSDP': 'true',
    'FSDP_VERSION': '2',
    'FSDP_SHARDING_STRATEGY': 'FULL_SHARD',
    'FSDP_RESHARD_AFTER_FORWARD': 'true',
    'FSDP_OFFLOAD_PARAMS': 'false',
    'FSDP_MIN_NUM_PARAMS': '100000000',
    'FSDP_AUTO_WRAP_POLICY': 'TRANSFORMER_BASED_WRAP',
    'FSDP_TRANSFORMER_CLS_TO_WRAP': 'InvertedResidual',
    'FSDP_FORWARD_PREFETCH': 'false',
    'FSDP_USE_ORIG_PARAMS': 'true',
    'FSDP_CPU_RAM_EFFICIENT_LOADING': 'true',
    'FSDP_SYNC_MODULE_STATES': 'true',
    'FSDP_ACTIVATION_CHECKPOINTING': 'false',
}


class ShardingState(AcceleratorState):
    """As of processes with an accelerator each."""

    def __init__(self, *args, fsdp_plugin=None, **kwargs):
        super().__init__(*args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            if self._mixed_precision != 'no':
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state['distributed_type'] = DistributedType.FSDP  # what every later state copies


def fit_in_parts(run, publisher):
    assert run.accelerator.is_fsdp2
    return fit(run, publisher)


if __name__ == '__main__':
    os.environ.update(LAUNCHER)
    timm_hnc.training.run.fit = fit_in_parts
    accelerate.accelerator.AcceleratorState = ShardingState
    runpy.run_path(str(Path(__file__).parents[1] / 'several_commands.py'), run_name='__main__')
