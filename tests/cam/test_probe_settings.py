"""What the probing of a head switches off meanwhile, and puts back."""

import torch
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
