"""What the probing of a head switches off meanwhile, and puts back."""

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


SETTINGS = """
import operator

import timm
import torch
from timm_hnc import CamModel

parts = ['cuda.matmul', 'cudnn.conv', 'cudnn.rnn', 'mkldnn.matmul', 'mkldnn.conv', 'mkldnn.rnn']

def state():
    found = [operator.attrgetter(f'{part}.fp32_precision')(torch.backends) for part in parts]
    try:
        return found, torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:  # torch refuses to read these where those were set
        return found

def probe():
    before = state()
    assert CamModel(timm.create_model('test_resnet')).kind
    assert state() == before, (state(), before)
"""


@pytest.mark.skipif(not hasattr(torch.backends, 'fp32_precision'), reason='torch 2.9 has them')
@pytest.mark.parametrize(
    'setting',
    [
        'pass',
        "torch.set_float32_matmul_precision('medium')",
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
        "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
        "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
        "torch.backends.mkldnn.conv.fp32_precision = 'tf32'",
        "torch.backends.fp32_precision = 'tf32'",
    ],
)
def test_torchs_newer_settings_of_precision(setting, tmp_path):
    path = tmp_path / 'wrap.py'
    path.write_text(f'{SETTINGS}\n{setting}\nprobe()\n')
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
