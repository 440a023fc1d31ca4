"""torch.compile of what trains and of what is evaluated, where command line and launcher both have a say."""

import os
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import TorchDynamoPlugin, compile_regions_deepspeed
from accelerate.utils.other import has_repeated_blocks
from torch import nn

from timm_hnc.errors import UsageError


def agreed_compilation(backend: str | None, mode: str | None) -> tuple[str | None, str | None]:
    """Backend and mode that command line and launcher ask for together."""
    launcher = (os.environ.get('ACCELERATE_DYNAMO_BACKEND') or 'no').lower()
    launcher = '' if launcher == 'no' else launcher
    if not (backend or launcher):
        return None, mode
    launcher_mode = os.environ.get('ACCELERATE_DYNAMO_MODE') or None
    launcher_mode = None if launcher_mode == 'default' else launcher_mode  # which it exports unasked
    _check_agreement('--torchcompile', backend, launcher)
    _check_agreement('--torchcompile-mode', mode, launcher_mode)
    return backend or launcher, mode or launcher_mode


def _check_agreement(flag: str, value: str | None, launcher: str | None) -> None:
    if value and launcher and value.lower() != launcher.lower():
        raise UsageError(f'{flag} {value} contradicts the launcher, which says {launcher}.')


def check_compiler(backend: str | None, mode: str | None) -> None:
    """Refuse a backend or mode that torch.compile does not have."""
    if not backend:
        return
    if backend not in torch.compiler.list_backends(exclude_tags=()):
        usual = sorted({'aot_eager', 'eager', *torch.compiler.list_backends()})  # not those for torch's own tests
        raise UsageError(f'--torchcompile {backend}: expected one of {", ".join(usual)}.')
    modes = torch._inductor.list_mode_options() if backend == 'inductor' and mode else {}
    if modes and mode not in modes:
        raise UsageError(f'--torchcompile-mode {mode}: expected one of {", ".join(modes)}.')


def _compiled_regions(module: nn.Module, **options: Any) -> nn.Module:
    """The very module, its repeated blocks compiled in place; compiled whole where it has none.

    Accelerate's `compile_regions` makes copies, and a task that trains would not be the one whose settings change.
    """
    if not has_repeated_blocks(module):
        return torch.compile(module, **options)  # type: ignore[return-value]  # of a module it is one
    compile_regions_deepspeed(module, **options)
    return module


class Compilation:
    """Compiles modules as the options ask for it, each once; names and state dicts of the modules themselves stay."""

    def __init__(self, backend: str | None = None, mode: str | None = None) -> None:
        self.options: dict[str, Any] | None = None
        self._compile: Callable[..., Any] = torch.compile
        self._compiled: dict[nn.Module, nn.Module] = {}
        self._in_place: list[nn.Module] = []
        if backend:
            launcher = TorchDynamoPlugin(backend='no')
            self.options = {'backend': backend, 'mode': mode}
            # the launcher exports what it was not asked for: only what it switches on is a wish
            self.options |= {'fullgraph': launcher.fullgraph, 'dynamic': launcher.dynamic or None}
            if launcher.use_regional_compilation:
                self._compile = _compiled_regions

    def __call__(self, module: nn.Module) -> nn.Module:
        """The module compiled; the very module where nothing is to be compiled."""
        if self.options is None:
            return module
        if module not in self._compiled:
            plain = [each for each in module.modules() if each._compiled_call_impl is None]
            self._compiled[module] = self._compile(module, **self.options)
            self._in_place += [each for each in plain if each._compiled_call_impl is not None]
        return self._compiled[module]

    def __enter__(self) -> 'Compilation':
        return self

    def __exit__(self, *error: object) -> None:
        self.undo()

    def undo(self) -> None:
        """Leave modules as they were that are compiled in place."""
        for module in self._in_place:
            module._compiled_call_impl = None
