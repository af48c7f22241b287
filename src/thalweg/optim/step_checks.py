"""The one door to a step: all that ALTO, Lamb, and E with Adam in one pass rely on, checked before it begins."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from thalweg.kernels import UNWALKABLE, dispatch, is_abstract
from thalweg.kernels.addresses import checked_memory
from thalweg.kernels.checks import check_parameter
from thalweg.optim.flat_shards import check_new
from thalweg.optim.layers import Lacking, Stepped, wanted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from thalweg.kernels.footprint import Footprint


class Checked(NamedTuple):
    """What a step may rely on: the parameters of each group that have a gradient, and what lacks some of its state."""

    stepped: list[list[Stepped]]
    lacking: list[Lacking]


def check_step(
    optimizer: Any,
    states: Mapping[Any, dict[str, Any]],
    footprint: Footprint,
    placed: Mapping[Tensor, Tensor] = MappingProxyType({}),
) -> Checked:
    """Check a step of ALTO or Lamb, ``placed`` having the gradients that were misplaced; nothing changes.

    Raises:
        ValueError: an option is out of range, as a schedule may have written anything into a group.
        ImportError, RuntimeError: kernels that a group asks for are not available.
        ValueError, TypeError, RuntimeError: as :func:`check_lacking` and :func:`check_gradients`.
    """
    groups = optimizer.param_groups
    for group in groups:
        optimizer._check(group, may_wait=False)
    for group in groups:
        for p in group["params"][:1]:
            if not is_abstract(p):
                dispatch.choose(wanted(group), p.device)
    stepped = check_gradients(groups, states, footprint, type(optimizer).__name__, placed)
    if torch.compiler.is_compiling():  # looked at here, Dynamo would take the state for what it is before
        return Checked(stepped, [])
    lacking = optimizer._lacking(groups)
    check_lacking(optimizer, lacking)
    return Checked(stepped, lacking)


def check_lacking(optimizer: Any, lacking: Iterable[Lacking]) -> None:
    """Raise unless the parameters that lack some of their state are such that the optimizer can step them.

    Raises:
        ValueError, TypeError: a parameter that the optimizer cannot step, or a piece of a flat buffer.
    """
    if not torch.compiler.is_compiling():
        for p, group, _ in lacking:
            check_parameter(p, type(optimizer).__name__)
            check_new(optimizer, p, group)


def check_gradients(
    groups: list[dict[str, Any]],
    states: Mapping[Any, dict[str, Any]],
    footprint: Footprint,
    optimizer: str,
    placed: Mapping[Tensor, Tensor] = MappingProxyType({}),
) -> list[list[Stepped]]:
    """The parameters of each group that have a gradient, located in memory; nothing changes.

    Raises:
        ValueError, TypeError, RuntimeError: a gradient, a parameter or its state is not what a step takes for granted.
    """
    if torch.compiler.is_compiling():  # torch's operations check for themselves
        return [_unlocated(group, first) for group, first in _placed(groups)]
    return _located(groups, states, footprint, optimizer, placed)


def _unlocated(group: dict[str, Any], first: int) -> list[Stepped]:
    return [(i, p, p.grad, {}, UNWALKABLE) for i, p in _numbered(group, first) if p.grad is not None]


def _located(
    groups: list[dict[str, Any]],
    states: Mapping[Any, dict[str, Any]],
    footprint: Footprint,
    optimizer: str,
    placed: Mapping[Tensor, Tensor],
) -> list[list[Stepped]]:
    everything: list[list[Stepped]] = []
    written: list[int] = []
    nothing: dict[str, Any] = {}
    for group, first in _placed(groups):
        stepped: list[Stepped] = []
        for index, p in _numbered(group, first):
            grad = p.grad
            if grad is None:
                continue
            if placed:
                grad = placed.get(p, grad)
            state = states.get(p, nothing)
            memory = checked_memory(p, grad, state, optimizer)
            stepped.append((index, p, grad, state, memory))
            if memory is not None and memory.slices:
                written += (memory.param, memory.exp_avg, memory.exp_avg_sq, memory.explore_ema, id(state.get("step")))
            else:
                written += (id(p), *map(id, state.values()))
        everything.append(stepped)
    footprint.check(written, ((p, states.get(p, nothing)) for stepped in everything for _, p, *_ in stepped), optimizer)
    return everything


def _placed(groups: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], int]]:
    """Each group, and the place of its first parameter among those of all."""
    first = 0
    for group in groups:
        yield group, first
        first += len(group["params"])


def _numbered(group: dict[str, Any], first: int) -> Iterable[tuple[int, Tensor]]:
    return enumerate(group["params"], group.get("first_index", first))
