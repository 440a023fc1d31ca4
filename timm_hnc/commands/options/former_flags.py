"""Options that some release of timm's train.py had and that its present one, and ours, has no more."""

from collections.abc import Mapping

# with what took their place; the releases of git tags v0.1.1 to v1.0.28, and 1.0.31
FORMER_FLAGS: Mapping[str, str] = {
    'amp_impl': '--amp-dtype',
    'aot_autograd': '--torchcompile',
    'apex_amp': '--amp',
    'bn_tf': '--bn-momentum and --bn-eps',
    'initial_batch_size': '--batch-size',
    'jsd': '--jsd-loss',
    'mixup_elem': '--mixup-mode elem',
    'native_amp': '--amp',
    'num_gpu': 'accelerate launch or torchrun',
    'validation_batch_size_multiplier': '--validation-batch-size',
}
