"""What the probing of a head switches off meanwhile, and puts back."""

import operator

import pytest
import torch
from running import run_script
from unknown_models import Tiny

from timm_hnc import CamModel


class Watched(Tiny):
    """Notes the settings that its head is run with."""

    seen = ()

    def forward_head(self, x, pre_logits: bool = False):
        type(self).seen += (settings(),)
        return super().forward_head(x, pre_logits)


def settings():
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn
    return matmul, cudnn.allow_tf32, cudnn.enabled, cudnn.benchmark, torch.is_autocast_cache_enabled()


@pytest.mark.parametrize('part', ['cuda.matmul', 'cudnn.conv', 'mkldnn.matmul'])
def test_torchs_newer_settings_of_precision(part, tmp_path):
    """With those, torch refuses to read the older ones."""
    if not hasattr(operator.attrgetter(part)(torch.backends), 'fp32_precision'):
        pytest.skip('torch 2.9 has them')
    path = tmp_path / 'wrap.py'
    path.write_text(f"""
import operator, timm, torch
part = operator.attrgetter('{part}')(torch.backends)
part.fp32_precision = 'tf32' if part.fp32_precision != 'tf32' else 'ieee'
before = part.fp32_precision
try:
    torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
except RuntimeError:
    pass
else:
    raise SystemExit('torch reads both')
from timm_hnc import CamModel
assert CamModel(timm.create_model('test_resnet')).kind
assert part.fp32_precision == before
""")
    done = run_script(path)
    assert done.returncode == 0, done.stderr


def test_numbers_are_compared_in_full_precision_and_no_cast_is_kept():
    Watched.seen = ()
    precision, flags = torch.get_float32_matmul_precision(), torch.backends.cudnn.flags
    try:
        torch.set_float32_matmul_precision('high')
        with flags(enabled=True, benchmark=True, allow_tf32=True), torch.autocast('cpu', torch.bfloat16):
            before = settings()
            assert before == ('high', True, True, True, True)
            CamModel(Watched())
            assert settings() == before
    finally:
        torch.set_float32_matmul_precision(precision)
    assert Watched.seen
    assert {(matmul, tf32, enabled, kept) for matmul, tf32, enabled, _, kept in Watched.seen} == {
        ('highest', False, True, False)
    }
