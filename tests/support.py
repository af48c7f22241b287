"""Parameters, gradients and comparisons that the tests share."""

from __future__ import annotations

import copy
import heapq
import io
import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Parameter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch.optim import Optimizer

SHAPES: tuple[tuple[int, ...], ...] = ((3, 4), (5,), (), (2, 3, 1, 2))
MATRICES: tuple[tuple[int, ...], ...] = ((3, 4), (5, 2))
LARGE: tuple[tuple[int, ...], ...] = ((32_771,), (513, 513))
LARGE_MATRICES: tuple[tuple[int, ...], ...] = ((65, 505), (2051, 129))
"""Just above what the kernels share out among threads, and what torch's operations take as a piece."""
WAYS: dict[str, dict[str, Any]] = {"single": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
"""How ALTO and Lamb step on the CPU."""
E_WAYS: dict[str, dict[str, Any]] = {**WAYS, "by default": {}}
"""How E and its base step; around Adam the last two are one pass."""


def pairwise(rows: Iterable[tuple[Any, ...]], key: Callable[[Any], object] = repr) -> list[tuple[Any, ...]]:
    """Some of the rows, in their order, in which every two values that meet in a row still meet in one.

    Greedy: always the row, the first of several, with the most pairs that are not covered yet. Values are told apart
    by ``key``. Give it ``itertools.product`` of what a test is parametrized over, less what cannot be combined.
    """
    rows = list(rows)
    open_pairs = [set(itertools.combinations(enumerate(map(key, row)), min(2, len(row)))) for row in rows]
    queue = [(-len(pairs), i) for i, pairs in enumerate(open_pairs)]
    heapq.heapify(queue)
    covered: set[Any] = set()
    chosen = []
    while queue:
        count, i = heapq.heappop(queue)
        open_pairs[i] -= covered
        if len(open_pairs[i]) < -count:  # fewer than when it was queued
            heapq.heappush(queue, (-len(open_pairs[i]), i))
        elif open_pairs[i]:
            covered |= open_pairs[i]
            chosen.append(i)
    return [rows[i] for i in sorted(chosen)]


def random_tensors(shapes: Iterable[tuple[int, ...]], dtype: torch.dtype, seed: int) -> list[Tensor]:
    """The same numbers for every dtype, but for their rounding."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return [torch.randn(shape, generator=generator, dtype=wide).to(dtype) for shape in shapes]


def make_params(
    shapes: Iterable[tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float64, seed: int = 0
) -> list[Parameter]:
    return [Parameter(t) for t in random_tensors(shapes, dtype, seed)]


def make_grads(params: Sequence[Tensor], steps: int, seed: int = 1) -> list[list[Tensor]]:
    """One gradient for each parameter and step."""
    return [random_tensors([p.shape for p in params], params[0].dtype, seed * 1000 + k) for k in range(steps)]


def clone_params(params: Iterable[Tensor]) -> list[Parameter]:
    return [Parameter(p.detach().clone()) for p in params]


def take_steps(optimizer: Optimizer, params: Sequence[Tensor], grads: Iterable[Sequence[Tensor | None]]) -> None:
    """One step for each list of gradients; None leaves the parameter without one."""
    for row in grads:
        for p, g in zip(params, row, strict=True):
            p.grad = None if g is None else g.clone()
        optimizer.step()


def hooked(base: Optimizer) -> Optimizer:
    """With a hook on its step."""
    base.register_step_pre_hook(lambda *_: None)
    return base


def scheduled(base: Optimizer) -> Optimizer:
    """With a scheduler, which puts another step in the place of its own."""
    torch.optim.lr_scheduler.LinearLR(base)
    return base


def assert_same(actual: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    """Bit for bit, dtype and shape included."""
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.dtype == e.dtype, f"tensor {i}: {a.dtype}, expected {e.dtype}"
        assert torch.equal(a, e), f"tensor {i}: differs by {(a - e).abs().max()}"


def assert_near(actual: Iterable[Tensor], expected: Iterable[Tensor], tolerance: float) -> None:
    """Of each tensor: the largest difference is at most ``tolerance`` times its largest entry."""
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape, f"tensor {i}: {tuple(a.shape)}, expected {tuple(e.shape)}"
        wide = torch.complex128 if e.is_complex() else torch.float64
        a, e = a.detach().to(wide), e.detach().to(wide)
        error, scale = (a - e).abs().max().item(), e.abs().max().item()
        assert error <= tolerance * scale, f"tensor {i}: off by {error:.3g} at a scale of {scale:.3g}"


def assert_moved(after: Iterable[Tensor], before: Iterable[Tensor]) -> None:
    for i, (a, b) in enumerate(zip(after, before, strict=True)):
        assert not torch.equal(a, b), f"tensor {i} has not moved"


def state_of(optimizer: Optimizer) -> dict[tuple[int, str], Any]:
    """A copy of all state, keyed by the position of its parameter and its name."""
    saved = optimizer.state_dict()["state"]
    return {(i, key): copy.deepcopy(value) for i, state in saved.items() for key, value in state.items()}


def assert_same_state(actual: Optimizer, expected: Optimizer | dict[tuple[int, str], Any]) -> None:
    a = state_of(actual)
    e = expected if isinstance(expected, dict) else state_of(expected)
    assert a.keys() == e.keys()
    for key, value in e.items():
        if isinstance(value, Tensor):
            assert a[key].dtype == value.dtype, f"{key}: {a[key].dtype}, expected {value.dtype}"
            assert torch.equal(a[key], value), f"{key} differs"
        else:
            assert a[key] == value, f"{key}: {a[key]}, expected {value}"


def through_a_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Saved, and loaded without executing anything."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
