"""Optimizer state and the temporary memory of a step, counted, not sampled.

On the CPU every allocation and release of torch's allocator is recorded, that of compiled kernels included, and added
up; on CUDA the allocator keeps the maximum itself. What bypasses torch's allocators is not seen.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile, record_function

from thalweg.bench.candidates import Candidate, LeftOutError, Weights, fresh_gradients, make_gradients

if TYPE_CHECKING:
    from collections.abc import Iterator

    from thalweg.bench.shapes import Model

SETTLING, COUNTED = 2, 2  # steps between the first and those that count, and how many count
MARK = "thalweg: step "


@dataclass(frozen=True)
class Traced:
    """Of one call, beyond what was allocated as it began: the most there was, and what was left at its end."""

    peak: int
    kept: int


def trace(act: Callable[[], Any], before: Callable[[], Any], times: int, device: torch.device) -> list[Traced]:
    """Call ``act`` so many times, each after ``before``, and count what it allocates on the device."""
    return (_trace_cuda if device.type == "cuda" else _trace_cpu)(act, before, times)


def _trace_cuda(act: Callable[[], Any], before: Callable[[], Any], times: int) -> list[Traced]:
    found = []
    for _ in range(times):
        before()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        act()
        torch.cuda.synchronize()
        found.append(Traced(torch.cuda.max_memory_allocated() - start, torch.cuda.memory_allocated() - start))
    return found


def _trace_cpu(act: Callable[[], Any], before: Callable[[], Any], times: int) -> list[Traced]:
    # One trace over all calls: the profiler knows the size of a block it sees released only if it saw it allocated.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it reports its own start and stop
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        for k in range(times):
            before()
            with record_function(f"{MARK}{k}"):
                act()
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    spans = {e.name(): (e.start_ns(), e.end_ns()) for e in events if e.name().startswith(MARK)}
    return [_peak(changes, *spans[f"{MARK}{k}"]) for k in range(times)]


def _peak(changes: Iterable[tuple[int, int]], start: int, end: int) -> Traced:
    peak = now = 0
    for when, size in changes:
        if start <= when <= end:
            now += size
            peak = max(peak, now)
    return Traced(peak, now)


def state_bytes(optimizer: Any, elsewhere: Iterable[Tensor] = ()) -> int:
    """The memory that an optimizer's state occupies, each storage once, those of the tensors ``elsewhere`` excepted."""
    excepted = {_storage(inner)[0] for tensor in elsewhere for inner in _inner(tensor)}
    return sum(size for key, size in dict(map(_storage, _tensors(optimizer, set()))).items() if key not in excepted)


def _storage(tensor: Tensor) -> tuple[tuple[str, int], int]:
    storage = tensor.untyped_storage()
    return (str(tensor.device), storage.data_ptr()), storage.nbytes()


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """The plain tensors in an optimizer's state, and in that of the optimizers that it wraps."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield from _inner(value)
    elif isinstance(value, Optimizer):
        yield from _tensors(value.state, seen)
        for held in vars(value).values():
            if isinstance(held, Optimizer):
                yield from _tensors(held, seen)
    elif isinstance(value, dict):
        for held in value.values():
            yield from _tensors(held, seen)
    elif isinstance(value, list | tuple):
        for held in value:
            yield from _tensors(held, seen)


def _inner(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor itself, or those that a wrapper subclass is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _inner(getattr(tensor, name))


class MemoryBenchmark:
    """The memory of each candidate on the shapes of one model, one candidate after the other.

    Args:
        model: the shapes.
        candidates: who takes part.
        device: where.
        dtype: of parameters and gradients.
        advance: called with each candidate.
    """

    def __init__(
        self,
        model: Model,
        candidates: Sequence[Candidate],
        device: torch.device,
        dtype: torch.dtype,
        advance: Callable[[str], None] = lambda doing: None,
    ) -> None:
        self.model, self.waiting, self.device, self.dtype, self.advance = model, candidates, device, dtype, advance
        self.found: dict[str, dict[str, Any]] = {}
        self.left_out: dict[str, str] = {}

    def run(self) -> None:
        """Count everything; after an interruption, what is complete is there."""
        for candidate in self.waiting:
            try:
                self.found[candidate.name] = self._count(candidate)
            except LeftOutError as error:
                self.left_out[candidate.name] = str(error)
            self.advance(f"{self.model.name}: {candidate.name}")

    def _count(self, candidate: Candidate) -> dict[str, Any]:
        candidate.load()
        weights = Weights.of(self.model, self.device, self.dtype)
        source = make_gradients(weights)
        gradients = [g.clone() for g in source]
        optimizer: Any = None

        def step() -> None:
            nonlocal optimizer
            if optimizer is None:
                optimizer = candidate.start(weights)
            candidate.attempt(optimizer.step)

        def before() -> None:
            fresh_gradients(weights, gradients, source)

        traced = trace(step, before, 1 + SETTLING + COUNTED, self.device)
        first, counted = traced[0], traced[-COUNTED:]
        before()  # so that no state is taken for a gradient that the optimizer has put there itself
        state = state_bytes(optimizer, [*weights.all(), *gradients])
        scratch = max(0, sum(t.kept for t in traced) - state)  # kept from step to step, yet no state
        peak, n = scratch + max(t.peak for t in counted), self.model.parameters
        return {
            "says": candidate.says,
            "ours": candidate.ours,
            "state_bytes": state,
            "state_bytes_per_parameter": state / n,
            "first_step_kept_bytes": first.kept,
            "peak_temporary_bytes": peak,
            "peak_temporary_bytes_per_parameter": peak / n,
            "peak_temporary_of_largest_parameter": peak / (self.model.largest * self.dtype.itemsize),
        }

    def record(self) -> dict[str, Any] | None:
        """What has been counted; None if nothing has."""
        if not self.found:
            return None
        return {
            "model": self.model.name,
            "says": self.model.says,
            "tensors": len(self.model.shapes),
            "parameters": self.model.parameters,
            "largest_parameter": self.model.largest,
            "contenders": self.found,
            "left_out": self.left_out,
        }
