"""Evaluating a user's loss at points of our choosing, and leaving everything as it was found.

A loss is the user's code: in training mode it updates the statistics of batch norm and draws dropout's masks from
torch's generators, and within ``torch.autocast`` it casts the parameters once and keeps the result until the outermost
region ends. :func:`undisturbed` goes around an estimate as a whole, :func:`fresh_casts` around each evaluation in it.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from thalweg.torch_private import mps_generator


@contextmanager
def fresh_casts() -> Iterator[None]:
    """Inside, autocast casts the parameters as they are now; what it has cast inside is not used afterwards.

    Autocast recognises a parameter, not its values: after one was moved in place, it keeps using the old cast.
    """
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.clear_autocast_cache()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Afterwards torch's generators, on all devices, and the buffers of every module called inside are as before.

    A buffer that a module has replaced by one of another shape, such as a cache that has grown, is left as it is. A
    decorator too: ``@undisturbed()``.
    """
    # As bytes, which are no tensors: memory that is counted is for what depends on the size of a model.
    states = [(generator, bytearray(generator.get_state().tolist())) for generator in generators()]
    buffers = _Buffers()
    hooks = (
        register_module_forward_pre_hook(buffers.before_call),
        register_module_forward_hook(buffers.after_call, always_call=True),
    )
    try:
        with warnings.catch_warnings():  # hooks on all modules find compiled ones twice, which does no harm here
            warnings.filterwarnings("ignore", message=r"Using `torch\.compile\(module\)` when there are global hooks")
            yield
    finally:
        for hook in hooks:
            hook.remove()
        buffers.restore()
        for generator, state in states:
            generator.set_state(torch.frombuffer(state, dtype=torch.uint8))


def generators() -> list[torch.Generator]:
    """Torch's own generators: of the CPU, and of every accelerator that is in use."""
    found = [torch.default_generator]
    for backend in (torch.cuda, torch.xpu):
        if backend.is_initialized():
            found += backend.default_generators
    if torch.backends.mps.is_available():
        found.append(mps_generator())
    return found


def seed_generators(seed: int) -> None:
    """Seed all of :func:`generators`."""
    for generator in generators():
        generator.manual_seed(seed)


class _Buffers:
    """The buffers of the modules that are called in this thread, as they were before each one's first call."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._seen: set[nn.Module] = set()
        self._contents: dict[Tensor, Tensor] = {}
        self._calls: list[tuple[nn.Module, dict[str, Tensor]]] = []
        self._replaced: dict[tuple[nn.Module, str], tuple[Tensor, Tensor]] = {}

    def before_call(self, module: nn.Module, _args: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        if module not in self._seen:
            for one in module.modules():
                if one not in self._seen:
                    self._seen.add(one)
                    for buffer in _own(one).values():
                        self._contents.setdefault(buffer, buffer.detach().clone())
        self._calls.append((module, _own(module)))

    def after_call(self, module: nn.Module, _args: Any, _output: Any) -> None:
        if threading.get_ident() != self._thread or not any(module is one for one, _ in self._calls):
            return
        while (call := self._calls.pop())[0] is not module:  # calls that an exception has ended
            pass
        now = _own(module)
        for name, old in call[1].items():
            if name in now and now[name] is not old:
                first, _ = self._replaced.get((module, name), (old, old))
                self._replaced[module, name] = first, now[name]

    def restore(self) -> None:
        for buffer, content in self._contents.items():
            if buffer.shape == content.shape:
                # Past the version counter: a graph that the user still holds is as valid as before.
                buffer.data.copy_(content)
        for (module, name), (old, new) in self._replaced.items():
            # Unless it is another one by now, as after a functional call, which puts the module's own ones back itself.
            if _own(module).get(name) is new and _kind(new) == _kind(old):
                setattr(module, name, old)


def _kind(t: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return t.shape, t.dtype, t.device


def _own(module: nn.Module) -> dict[str, Tensor]:
    return {
        name: buffer
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False)
        if not buffer.is_inference()
    }
