"""What forward and backward hold beside parameters and gradients, found by torch's own operations without memory."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor

from thalweg.lab import tasks
from thalweg.lab.engine import blocks, data, placement
from thalweg.torch_private import FakeTensorMode, TorchDispatchMode

if TYPE_CHECKING:
    from torch import nn


class _Held(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the storages that came to be inside, now and at most; ``before`` are those of which views are made."""

    def __init__(self, before: list[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.before, self.known = before, set(map(id, before))
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for one in _tensors(found):
            storage = one.untyped_storage()
            if id(storage) not in self.known:
                self.known.add(id(storage))
                self.now += storage.nbytes()
                weakref.finalize(storage, self._lose, id(storage), storage.nbytes())
        self.most = max(self.most, self.now)
        return found

    def _lose(self, storage: int, size: int) -> None:
        self.known.discard(storage)
        self.now -= size


@functools.cache
def activations(name: str, examples: int, precision: str, *, again: bool = False, scored: bool = False) -> int:
    """The most bytes, beside parameters and their gradients, while so many examples go forward and backward together.

    As on one CPU, without compiling: a GPU's kernels may hold more or less.

    Args:
        name: of the task.
        examples: how many.
        precision: a run's.
        again: whether blocks are computed again in backward.
        scored: they only go forward, and are scored.
    """
    task, narrow = tasks.find(name), placement.NARROW.get(precision)
    inputs, targets = task.example()

    def batch(x: Tensor) -> Tensor:
        return torch.zeros((examples, *x.shape[1:]), dtype=x.dtype)

    with FakeTensorMode(), torch.set_grad_enabled(not scored):
        model: nn.Module = task.skeleton().train(not scored)
        if again:
            blocks.recompute(model)
        for p in model.parameters():
            p.register_post_accumulate_grad_hook(_forget)  # type: ignore[no-untyped-call]
        given = {key: batch(x) for key, x in inputs.items()} if isinstance(inputs, Mapping) else batch(inputs)
        wanted = batch(targets)
        held = _Held([x.untyped_storage() for x in (*model.parameters(), *model.buffers())])
        with held:
            forward = torch.autocast("cpu", narrow, enabled=narrow is not None)(functools.partial(data.apply, model))
            run = convert_outputs_to_fp32(forward)
            if scored:
                output = run(given)
                with suppress(Exception):  # of a score that needs numbers; the model holds more
                    task.score(output, wanted)
            else:
                loss = task.loss(run(given), wanted)
                torch.autograd.backward(loss)
    return held.most


def _forget(p: Tensor) -> None:
    """A gradient that is complete, which the plan of a step counts."""
    p.grad = None


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
