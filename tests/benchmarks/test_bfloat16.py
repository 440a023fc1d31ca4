"""Convolutions of bfloat16 in float32 are those of exact arithmetic, rounded."""

import pytest
import torch
from running import run_script
from scripts import FOLDER, load_script
from torch.nn import functional

bfloat16 = load_script('bfloat16')
conv2d = bfloat16.conv2d


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ('groups', 'bias', 'how'),
    [(1, True, {'stride': 2, 'padding': 1}), (8, False, {'padding': (1, 0)}), (1, False, {'dilation': 2})],
)
def test_the_exact_result_is_rounded_once(groups, bias, how, layout, monkeypatch):
    monkeypatch.setattr(bfloat16, 'UNGROUPED_ARE_FAST', False)
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 8, 9, 7), (16, 8 // groups, 3, 3), *([(16,)] if bias else [])]
    drawn = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    found, exact = ([each.to(kind).requires_grad_() for each in drawn] for kind in (torch.float32, torch.float64))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        output = conv2d(found[0].to(memory_format=layout), *found[1:], groups=groups, **how)
    expected = functional.conv2d(*exact, groups=groups, **how)
    pull = torch.randn(output.shape, generator=generator).bfloat16()
    output.backward(pull)
    expected.backward(pull.double())
    assert output.dtype == torch.bfloat16
    for ours, true in zip(
        [output, *(each.grad for each in found)], [expected, *(each.grad for each in exact)], strict=True
    ):
        # half of the last of 8 digits, and what float32 loses where large products cancel
        torch.testing.assert_close(ours.double(), true, rtol=2**-8, atol=1e-5 * true.abs().max().item())


@pytest.mark.parametrize('fast', [False, True])
@pytest.mark.parametrize('groups', [1, 4])
def test_convolutions_that_are_fast_stay_torchs(fast, groups, monkeypatch):
    monkeypatch.setattr(bfloat16, 'UNGROUPED_ARE_FAST', fast)
    weight = torch.randn(4, 4 // groups, 3, 3, requires_grad=True)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        output = conv2d(torch.randn(1, 4, 8, 8), weight, groups=groups)
    assert ('_Conv2dBackward' in type(output.grad_fn).__name__) == (groups > 1 or not fast)


def test_without_autocast_it_is_torchs():
    images, weight = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)
    assert torch.equal(conv2d(images, weight, padding='same'), functional.conv2d(images, weight, padding='same'))


def test_a_script_runs_with_it(tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(
        'import sys, torch\n'
        'with torch.autocast("cpu", dtype=torch.bfloat16):\n'
        '    out = torch.nn.Conv2d(4, 4, 3, groups=4)(torch.randn(1, 4, 8, 8))\n'
        'print(sys.argv[1:], out.dtype, type(out.grad_fn).__name__)\n'
    )
    done = run_script(FOLDER / 'bfloat16.py', script, '--a', 'b', imported='torch')
    assert done.stdout == "['--a', 'b'] torch.bfloat16 _Conv2dBackward\n", done.stderr
