"""Parameters on several ranks and their twins in one process, their gradients, and whether they are still the same."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from meshes import FROZEN, SMALL, STACKED, Layout, Shapes, coordinates, cut, here_of, shards, spread_out
from torch import Tensor
from torch.nn import Parameter

from thalweg.kernels import eightbit

if TYPE_CHECKING:
    from torch.optim import Optimizer

Params = dict[str, Parameter]
Gradients = dict[str, Any]
Shard = tuple[int, ...]
Lacking = Callable[[int, str, list[Shard]], Collection[Shard]]
"""Of a step, a parameter's name and all its shards: those that have no gradient; one that is whole has it."""
UNDIVIDED: Layout = dict.fromkeys(SMALL)


def values(seed: int, shapes: Shapes, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Random tensors, the same on all ranks."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for name, shape in shapes.items()
    }


def parameters(layout: Layout, shapes: Shapes = SMALL, dtype: torch.dtype = torch.float64) -> Params:
    """The same values however they are spread; one is frozen, and stacked layers differ in their norms."""
    start = values(1000, shapes, dtype)
    start[STACKED] *= torch.logspace(-1, 1, shapes[STACKED][0], dtype=dtype)[:, None, None]
    return {name: Parameter(spread_out(t, layout[name]), requires_grad=name != FROZEN) for name, t in start.items()}


def none(step: int, name: str, every: list[Shard]) -> Collection[Shard]:
    return ()


def _one(step: int, name: str, every: list[Shard]) -> Collection[Shard]:
    return [random.Random(f"{step} {name}").choice(every)] if len(every) > 1 else ()


def _some(step: int, name: str, every: list[Shard]) -> Collection[Shard]:
    chance = random.Random(f"{step} {name}")
    return chance.sample(every, chance.randrange(len(every)))


def _all_at_times(step: int, name: str, every: list[Shard]) -> Collection[Shard]:
    return every if random.Random(f"{step} {name}").random() < 0.3 else ()


def _all_of_one_rank(step: int, name: str, every: list[Shard]) -> Collection[Shard]:
    return every[-1:] if len(every) > 1 else ()


def _all_but_the_last(step: int, name: str, every: list[Shard]) -> Collection[Shard]:
    """Which is empty where there are fewer rows than ranks."""
    return every[:-1]


def _all_before_step_3(step: int, name: str, every: list[Shard]) -> Collection[Shard]:
    return every if step < 3 and name in ("weight", "bias") else ()


def _all_but_at_step_3(step: int, name: str, every: list[Shard]) -> Collection[Shard]:
    return every if step != 3 else ()


LACKING: dict[str, Lacking] = {
    "missing on one": _one,
    "missing on some": _some,
    "missing on all at times": _all_at_times,
    "missing on the same rank": _all_of_one_rank,
    "missing but for a rank": _all_but_the_last,
    "missing at first": _all_before_step_3,
    "missing but once": _all_but_at_step_3,
}
ON_SOME_RANKS = ("missing on one", "missing on some", "missing on the same rank", "missing but for a rank")
"""Those of them in which a parameter has a gradient on some ranks alone."""


def gradients(
    step: int, params: Params, layout: Layout, lacking: Lacking = none, bad: Mapping[str, Collection[Shard]] = {}
) -> tuple[Gradients, Gradients]:
    """Those of one process, with zeros where a shard lacks its own, and what this rank has of them.

    Args:
        step: its number.
        params: the parameters, on this rank.
        layout: how they are spread.
        lacking: which shards lack their gradient.
        bad: in which shards of a parameter the last number is NaN.
    """
    whole: Gradients = {FROZEN: None}
    here: Gradients = {FROZEN: None}
    shapes = {name: tuple(p.shape) for name, p in params.items()}
    for name, g in values(step, shapes, params[FROZEN].dtype).items():
        if name == FROZEN:
            continue
        of_ranks = shards(layout[name])
        every = sorted(set(of_ranks.values()))
        missing = set(lacking(step, name, every))
        for at, shard in of_ranks.items():
            part = cut(g, layout[name], at)
            if shard in missing:
                part.zero_()
            elif shard in bad.get(name, ()) and part.numel():
                part[(-1,) * part.ndim] = float("nan")
        whole[name] = None if missing == set(every) else g
        here[name] = None if of_ranks[coordinates(layout[name])] in missing else spread_out(g, layout[name])
    return whole, here


def step(optimizer: Optimizer, params: Params, grads: Gradients) -> str:
    """What it says of gradients that are not finite, if it raises; nothing else may become of the gradients."""
    for name, p in params.items():
        p.grad = grads[name]
    said = ""
    try:
        optimizer.step()
    except RuntimeError as error:
        if "infinity" not in str(error):
            raise
        said = str(error)
    for name, p in params.items():
        assert p.grad is grads[name]
    return said


def stored(x: Any) -> Tensor:
    """The numbers of a tensor of state, in 8 bits or not."""
    return eightbit.read(x) if eightbit.is_8bit(x) else x


def assert_close(what: str, actual: Tensor, expected: Tensor, tolerance: float = 0.0) -> None:
    """Nowhere farther apart; and of one shape and dtype."""
    got, wanted = ((tuple(t.shape), t.dtype) for t in (actual, expected))
    assert got == wanted, f"{what}: {got}, expected {wanted}"
    gap = (actual - expected).abs()[~((actual == expected) | (actual.isnan() & expected.isnan()))]
    assert gap.numel() == 0 or gap.max() <= tolerance, f"{what}: off by {gap.max():.3g}, more than {tolerance:.3g}"


def size(x: Tensor) -> float:
    """The largest magnitude of its numbers."""
    return float(x.abs().nan_to_num().max()) if x.numel() else 0.0


def assert_same(
    when: str,
    several: tuple[Optimizer, Params],
    one: tuple[Optimizer, Params],
    layout: Layout,
    tolerance: float = 0.0,
    instead: Params | None = None,
    *,
    exact_state: bool = False,
) -> None:
    """This rank has its cut of the parameters and of the state of one process.

    Args:
        when: for the message.
        several: the optimizer and the parameters of this rank.
        one: those of one process.
        layout: how the first are spread.
        tolerance: of a number, relative to the largest one of its tensor.
        instead: parameters, spread as the first, that take the place of those of one process.
        exact_state: whether it is not of the state.
    """
    for name, p in several[1].items():
        q = one[1][name]
        actual, expected = {"": p, **several[0].state.get(p, {})}, {"": q, **one[0].state.get(q, {})}
        assert actual.keys() == expected.keys(), f"state of {name} {when}: {list(actual)}, expected {list(expected)}"
        for key, x in expected.items():
            if here_of(actual[key]).numel():
                assert eightbit.is_8bit(actual[key]) == eightbit.is_8bit(x), f"{key} of {name} {when} in 8 bits"
            x = stored(here_of(x))
            here = here_of(instead[name]) if key == "" and instead else cut(x, None if key == "step" else layout[name])
            found = stored(here_of(actual[key]))
            limit = 0.0 if key and exact_state else tolerance * size(x)
            assert_close(f"{key} of {name} {when}".lstrip(), found, here, limit)
