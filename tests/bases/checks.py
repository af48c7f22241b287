"""What E keeps around a base, one function for each column of the table: it returns, or fails with what is wrong."""

from __future__ import annotations

import dataclasses
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
from driving import ALPHA, BETA, STEPS, drive, gradients, make, seed_everything, shifts, start, take_step, wrap
from support import assert_moved, assert_near, assert_same, clone_params, through_a_file
from torch.nn import Parameter

from thalweg.optim import one_pass

if TYPE_CHECKING:
    from collections.abc import Callable

    from catalogue import Base
    from driving import Rows
    from torch import Tensor
    from torch.optim import Optimizer


def buffers(optimizer: Optimizer) -> list[Tensor]:
    return [s["explore_ema"] for s in optimizer.state.values() if isinstance(s, dict) and "explore_ema" in s]


def untouched_at_zero(base: Base, **overrides: Any) -> None:
    """At α = 0 the parameters are the base's own, bit for bit, and no buffer is allocated."""
    rows = gradients(base)
    params, expected = start(base), start(base)
    optimizer = wrap(base, params, 0.0, 0.5, **overrides)
    drive(base, optimizer, params, rows)
    drive(base, make(base, expected, **overrides), expected, rows)
    assert_moved(params, start(base))
    assert_same(params, expected)
    assert buffers(optimizer) == []


def exact(base: Base, **overrides: Any) -> None:
    """E around the base is the base fed with the paper's g', bit for bit, and that is not the base fed with g.

    Where one kernel does both, up to rounding.
    """
    rows = gradients(base)
    params, expected, plain = start(base), start(base), start(base)
    optimizer = wrap(base, params, **overrides)
    drive(base, optimizer, params, rows)
    drive(base, make(base, expected, **overrides), expected, rows, shifts(rows))
    drive(base, make(base, plain, **overrides), plain, rows)
    assert all(p.isfinite().all() for p in params)
    assert not all(torch.equal(p, q) for p, q in zip(params, plain, strict=True)), "g' made no difference"
    if one_pass.split(optimizer.base)[0]:
        assert base.cls in ("Adam", "AdamW")
        assert "foreach" not in overrides
        assert_near(params, expected, 1e-6)
    else:
        assert_same(params, expected)
    assert len(buffers(optimizer)) == len(params)
    for p, row in zip(params, zip(*rows, strict=True), strict=True):
        ema = torch.zeros_like(p)
        for g in row:
            ema = BETA * ema + (1 - BETA) * g
        assert torch.equal(optimizer.state[p]["explore_ema"], ema)


def resumed(
    base: Base, build: Callable[..., Optimizer], shifted: Rows | None = None
) -> tuple[tuple[Optimizer, list[Parameter]], tuple[Optimizer, list[Parameter]]]:
    """After half the steps saved to a file and loaded into fresh objects, and the same without a stop."""
    rows, half = gradients(base), STEPS // 2
    first, rest = (None, None) if shifted is None else (shifted[:half], shifted[half:])
    params = start(base)
    optimizer = build(base, params)
    drive(base, optimizer, params, rows[:half], first)
    saved = through_a_file(optimizer.state_dict())
    others = clone_params(params)
    fresh = build(base, others)
    fresh.load_state_dict(saved)
    drive(base, optimizer, params, rows[half:], rest, first=half)
    drive(base, fresh, others, rows[half:], rest, first=half)
    return (fresh, others), (optimizer, params)


def resumes(base: Base) -> None:
    """It goes on from a file as if it had never stopped, or where the base alone rounds, as the base alone does."""
    (fresh, others), (optimizer, params) = resumed(base, wrap)
    assert_same(buffers(fresh), buffers(optimizer))
    if base.rounds_on_load:
        (_, by_hand), _ = resumed(base, make, shifts(gradients(base)))
        assert_same(others, by_hand)
        assert_near(others, params, 1e-6)
    else:
        assert_same(others, params)


def base_fails_to_resume(base: Base) -> None:
    """The base alone cannot be loaded from a file without executing code."""
    with pytest.raises(pickle.UnpicklingError, match=base.fails_to_resume):
        resumed(base, make)


def trains(base: Base) -> None:
    """On a least-squares problem the loss goes down, and stays finite, at the paper's small-batch α and β1."""
    generator = torch.Generator().manual_seed(7)
    params = [Parameter(torch.randn(shape, generator=generator)) for shape in base.shapes]
    maps = [torch.eye(p.numel()) + 0.1 * torch.randn(p.numel(), p.numel(), generator=generator) for p in params]
    before = clone_params(params)

    def loss_at(points: list[Parameter]) -> Tensor:
        return sum((m @ p.flatten() - 1.0).square().mean() for m, p in zip(maps, points, strict=True))

    def closure() -> Tensor:
        for p in params:
            p.grad = None
        loss = loss_at(params)
        loss.backward(create_graph=base.create_graph)
        return loss.detach()

    optimizer = wrap(base, params, 0.5, 0.01, **base.train)
    for k in range(base.train_steps):
        seed_everything(k)
        take_step(base, optimizer, closure)
    if base.modes:
        optimizer.eval()
    assert_moved(params, before)
    first, last = loss_at(before).item(), loss_at(params).item()
    assert last < first, f"the loss went from {first:.4g} to {last:.4g}"


def compiled(base: Base, alpha: float = ALPHA, *, first: bool = True, **overrides: Any) -> None:
    """A compiled step of E is the compiled step of the base fed with g', and leaves the gradient to the caller.

    Without ``first``, the step that makes the state is not compiled, as in training that begins to be, and compiling
    takes little more than half as long.
    """
    base = dataclasses.replace(base, shapes=base.shapes[:2])
    params, expected, eager = start(base), start(base), start(base)
    optimizer = wrap(base, params, alpha, **overrides)
    torch._dynamo.reset()
    plain = [o.step for o in (optimizer, make(base, expected, **overrides))]
    steps = [torch.compile(step, backend="eager") for step in plain]
    rows = gradients(base)
    drive(base, wrap(base, eager, alpha, **overrides), eager, rows)
    for k, (row, by_hand) in enumerate(zip(rows, shifts(rows, alpha), strict=True)):
        for p, q, g, s in zip(params, expected, row, by_hand, strict=True):
            p.grad, q.grad = g.clone(), g + s
        own = [p.grad for p in params]
        for step in steps if k or first else plain:
            step()
        assert all(p.grad is g for p, g in zip(params, own, strict=True))
        assert_same(own, row)
    torch._dynamo.reset()
    assert_same(params, expected)
    assert_near(params, eager, 1e-5)  # compiled, torch's Adam corrects its bias in another order
    assert len(buffers(optimizer)) == (len(params) if alpha else 0)


# The columns of the table, and how each is checked.
COLUMNS: dict[str, Callable[[Base], None]] = {
    "α = 0": untouched_at_zero,
    "exact g′": exact,
    "trains": trains,
    "resumes": lambda base: base_fails_to_resume(base) if base.fails_to_resume else resumes(base),
    "foreach": lambda base: [exact(base, foreach=foreach) for foreach in (False, True)],
    "fused": lambda base: exact(base, fused=True),
    "compiled": compiled,
}


def claim(base: Base, column: str) -> str:
    """What the table says of a base if its check passes."""
    if column in ("foreach", "fused", "compiled") and not getattr(base, column):
        return "–"
    if column in ("exact g′", "fused"):
        form = {"fused": True} if column == "fused" else {}
        return "≈" if one_pass.split(wrap(base, start(base), **form).base)[0] else "✓"
    if column == "resumes" and base.fails_to_resume:
        return "base"
    return "≈" if column == "resumes" and base.rounds_on_load else "✓"
