"""From parameter groups to layers: looked at, their state allocated, a step planned and counted."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from thalweg.kernels import Hyper, Layer, compute_dtype, eightbit, is_abstract
from thalweg.kernels.addresses import look as addresses_of
from thalweg.kernels.addresses import slices
from thalweg.kernels.checks import BUFFERS, check_parameter, check_state, refuse_step
from thalweg.kernels.plan import assign
from thalweg.kernels.rounding import EXP_AVG_SQ, stored_as
from thalweg.optim.flat_shards import check_new
from thalweg.sharding import is_sharded, local

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from types import ModuleType

    from thalweg.kernels.overwriting import Footprint

Given: TypeAlias = "tuple[int, Tensor, Tensor, tuple[int, ...] | None]"
"""A parameter's number in its group, itself, its gradient, and the addresses of both and its state (None: not yet)."""


def add_state(optimizer: Any, lacking: list[tuple[Tensor, dict[str, Any], tuple[str, ...]]]) -> None:
    """Allocate the state that parameters, each with its group and the names of its buffers, lack; all or none.

    Raises:
        ValueError, TypeError: a parameter that the optimizer cannot step.
    """
    if not torch.compiler.is_compiling():
        for p, group, _ in lacking:
            check_parameter(p, type(optimizer).__name__)
            check_new(optimizer, p, group)
    for p, group, names in lacking:
        init_state(p, group, optimizer.state[p], names)


def init_state(p: Tensor, group: dict[str, Any], state: dict[str, Any], names: Iterable[str]) -> None:
    """Allocate what ``state`` lacks of the step count and of the named buffers, as zeros: all of it, or b.

    Raises:
        ValueError: it has the step count or a moment, and not the others.
    """
    if not state.keys().isdisjoint(("step", *BUFFERS)):
        check_state(p, state)
    if "step" not in state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=step_device(p, group))
    for name in names:
        if name not in state:
            dtype = stored_as(group["state_dtype"], name) or compute_dtype(p.dtype)
            if isinstance(dtype, str):
                state[name] = eightbit.zeros(p, signed=name != EXP_AVG_SQ)
                continue
            dtype = dtype.to_complex() if p.is_complex() and not dtype.is_complex else dtype
            state[name] = torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)


def step_device(p: Tensor, group: dict[str, Any]) -> torch.device:
    """Where ``step`` lives: a step that the device may skip is counted there."""
    return p.device if group["capturable"] or group["nonfinite"] == "skip" else torch.device("cpu")


def as_step(step: Any, p: Tensor, group: dict[str, Any]) -> Tensor:
    """A saved count of steps, a number in old checkpoints, in the form in which it is counted on."""
    count = step.reshape(()) if isinstance(step, Tensor) else torch.tensor(float(step), device="cpu")
    return count.to(step_device(p, group), torch.float32, copy=True)


def without_b(states: Mapping[Tensor, dict[str, Any]]) -> dict[Tensor, dict[str, Any]]:
    """The state of each parameter without b, where that is of E around the optimizer and not its own to move."""
    return {p: {name: x for name, x in state.items() if name != "explore_ema"} for p, state in states.items()}


def look(
    groups: list[dict[str, Any]], states: Mapping[Any, dict[str, Any]], footprint: Footprint, optimizer: str
) -> list[list[Given]]:
    """The parameters of each group that have a gradient, with it and their addresses; nothing changes.

    Raises:
        ValueError, TypeError, RuntimeError: a gradient, a parameter or its state is not what a step takes for granted.
    """
    if torch.compiler.is_compiling():  # torch's operations look themselves
        return [_unseen(group, first) for group, first in _placed(groups)]
    return _seen(groups, states, footprint, optimizer)


def _unseen(group: dict[str, Any], first: int) -> list[Given]:
    return [(i, p, p.grad, ()) for i, p in _numbered(group, first) if p.grad is not None]


def _seen(
    groups: list[dict[str, Any]], states: Mapping[Any, dict[str, Any]], footprint: Footprint, optimizer: str
) -> list[list[Given]]:
    everything: list[list[Given]] = []
    written: list[int] = []
    nothing: dict[str, Any] = {}
    for group, first in _placed(groups):
        found: list[Given] = []
        for index, p in _numbered(group, first):
            grad = p.grad
            if grad is None:
                continue
            state = states.get(p, nothing)
            addresses = addresses_of(p, grad, state, optimizer)
            found.append((index, p, grad, addresses))
            if addresses:
                written += (addresses[0], addresses[2], addresses[3], addresses[4], id(state.get("step")))
            else:
                written += (id(p), *map(id, state.values()))
        everything.append(found)
    footprint.check(written, ((p, states.get(p, nothing)) for found in everything for _, p, *_ in found), optimizer)
    return everything


def _placed(groups: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], int]]:
    """Each group, and the place of its first parameter among those of all."""
    first = 0
    for group in groups:
        yield group, first
        first += len(group["params"])


def _numbered(group: dict[str, Any], first: int) -> Iterable[tuple[int, Tensor]]:
    return enumerate(group["params"], group.get("first_index", first))


class Plan(NamedTuple):
    """What a step of a group is to do: layers in buckets, each with what steps it, and counts, yet to be moved on."""

    group: dict[str, Any]
    hyper: Hyper
    proceed: Tensor | None
    rounding_step: int
    counts: list[Tensor]
    buckets: list[tuple[ModuleType, list[Layer]]]


def plan(
    group: dict[str, Any],
    given: list[Given],
    states: dict[Tensor, Any],
    hyper: Hyper,
    proceed: Tensor | None,
    *,
    rounds: bool = False,
    by_shard: bool = False,
) -> Plan:
    """The group's parameters that are given a gradient, by device and how each tensor is stored; nothing changes.

    ``proceed`` is what the step counts for, if that is decided on the device; ``rounds`` is whether something is
    rounded stochastically; ``by_shard`` is whether every rank steps its shards by itself, as no norm needs the others.
    The layers have the number of the step that is to come.

    Raises:
        ImportError, RuntimeError: kernels that the group asks for cannot be had.
    """
    found: dict[tuple[Any, ...], list[Layer]] = defaultdict(list)
    on_device = group["capturable"] or proceed is not None or any(map(is_abstract, group["params"][:1]))
    norm_dims = group["norm_dims"]
    rounding_step = group.get("rounding_step", 0) + 1 if rounds else 0
    counts = []
    for index, p, grad, addresses in given:
        state = states[p]
        param, step, m, v, b = p, state["step"], state["exp_avg"], state["exp_avg_sq"], state.get("explore_ema")
        counts.append(step)
        if not on_device:
            count = step.item() + 1.0
            if not 1.0 <= count < math.inf:
                refuse_step(step, p)
        if b is not None and addresses and not addresses[4]:
            addresses = None  # b is there since the rest was looked at
        if p.is_complex():
            if grad.is_conj():
                grad, addresses = grad.resolve_conj(), None
            param, grad, m, v = map(torch.view_as_real, (param, grad, m, v))
            b = None if b is None else torch.view_as_real(b)
        if by_shard and is_sharded(p):
            param, grad, m, v = map(local, (param, grad, m, v))
            b = None if b is None else local(b)
            addresses = None
        dims = None if norm_dims is None else _norm_dims(p, norm_dims)
        layer = Layer(  # by position, as this is much of a step of many small layers
            param,
            grad,
            step if on_device else count,
            m,
            v,
            b,
            dims,
            _seed(rounding_step, index) if rounding_step else 0,
            0,
            addresses,
            0 if addresses is None else slices(param, addresses, dims, hyper),
        )
        types = (type(m), type(v), type(b))  # those of 8-bit state look like float32
        found[p.device, param.dtype, m.dtype, v.dtype, None if b is None else b.dtype, types].append(layer)
    buckets = [part for bucket in found.values() for part in assign(group, bucket, hyper)]
    return Plan(group, hyper, proceed, rounding_step, counts, buckets)


def count(plan: Plan) -> None:
    """Count the step that is planned."""
    if plan.rounding_step:
        plan.group["rounding_step"] = plan.rounding_step
    by_device: dict[torch.device, list[Tensor]] = defaultdict(list)
    for step in plan.counts:
        by_device[step.device].append(step)
    for device, counts in by_device.items():
        if plan.proceed is None and device.type != "cpu":
            torch._foreach_add_(counts, 1)  # CUDA's takes no tensor from the host
        else:  # on the CPU, a number would become a tensor once for each; without alpha, a tensor would be read
            torch._foreach_add_(counts, _one() if plan.proceed is None else plan.proceed.to(device), alpha=1)


def _one() -> Tensor:
    return torch.ones((), dtype=torch.float32, device="cpu")


def _seed(step: int, index: int) -> int:
    """32 bits for each step and parameter, far from those of all others; in 64 bits, which a compiled step has."""
    return (step * 0x85EBCA6B + index * 0xC2B2AE35) & 0xFFFFFFFF


def _norm_dims(p: Tensor, dims: tuple[int, ...]) -> tuple[int, ...] | None:
    """The axes counted from the front, with that of the real and imaginary parts, which a norm takes together.

    None if they are all there are.
    """
    if len(dims) == p.ndim:
        return None
    return (*(d % p.ndim for d in dims), *((p.ndim,) if p.is_complex() else ()))
