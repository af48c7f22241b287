"""From parameters to layers: their state allocated, a step of a group planned and counted."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from thalweg import equations as eq
from thalweg.arguments import is_number
from thalweg.kernels import UNWALKABLE, Hyper, Layer, Memory, Scales, Wanted, compute_dtype, eightbit, is_abstract
from thalweg.kernels.addresses import in_slices
from thalweg.kernels.checks import BUFFERS, PLAIN, check_state, refuse_step
from thalweg.kernels.dispatch import assign
from thalweg.kernels.rounding import EXP_AVG_SQ, stored_as
from thalweg.optim.hyperparameters import DECAYED
from thalweg.sharding import is_sharded, local, zeros_like
from thalweg.sharding.places import place_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import ModuleType


Stepped: TypeAlias = "tuple[int, Tensor, Tensor, Mapping[str, Any], Memory | None]"
"""A parameter that is to be stepped: its number among those of all groups, itself, its gradient, its state, and where
they are.

There is one for each parameter and step, and a plain tuple is made in a third of the time of a named one. The memory is
None while the parameter has no state; that, or an empty state, is then to be looked up anew.
"""


class Lacking(NamedTuple):
    """A parameter that lacks some of its state, with its group and the names of the buffers it is to have."""

    param: Tensor
    group: dict[str, Any]
    buffers: tuple[str, ...]


def wanted(group: dict[str, Any]) -> Wanted:
    """What a group of ALTO or Lamb asks of those who execute its step."""
    return Wanted(group["fused"], group["foreach"], group["capturable"], group["norm_dims"])


def adapts(group: dict[str, Any]) -> bool:
    """Whether a group's layers are adapted to their norms."""
    if group["trust_ratio"] == DECAYED:
        return is_number(group["weight_decay"]) and group["weight_decay"] > 0.0
    return bool(group["trust_ratio"])


def init_state(p: Tensor, group: dict[str, Any], state: dict[str, Any], names: Iterable[str]) -> None:
    """Allocate what ``state`` lacks of the step count and of the named buffers, as zeros: all of it, or b alone.

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
            state[name] = zeros_like(p, dtype)


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


class GroupPlan(NamedTuple):
    """What a step of a group is to do: layers in buckets, each with the backend that steps it, and counts to raise.

    ``halves`` are buckets of layers whose norms reach over ranks, and which ranks these are; with ``late``, the first
    half of their step changes nothing.
    """

    group: dict[str, Any]
    hyper: Hyper
    proceed: Tensor | None
    rounding_step: int
    counts: list[Tensor]
    buckets: list[tuple[ModuleType, list[Layer]]]
    halves: list[tuple[ModuleType, list[Layer], Any]]
    late: bool


def plan_group(
    group: dict[str, Any],
    stepped: list[Stepped],
    states: dict[Tensor, Any],
    hyper: Hyper,
    wanted: Wanted,
    proceed: Tensor | None,
    *,
    rounds: bool = False,
    places: Mapping[Tensor, Any] = {},
    slots: Mapping[Tensor, int] = {},
    late: bool = False,
) -> GroupPlan:
    """A step of those of a group's parameters that have a gradient; nothing changes yet.

    Buckets differ in device and in how tensors are stored. The layers have the number of the step that is to come, and
    of what is sharded, the shards.

    Args:
        group: the group.
        stepped: its parameters that have a gradient.
        states: the state of each.
        hyper: the group's hyperparameters.
        wanted: what the group asks of backends.
        proceed: 1 or 0 for a step that is taken or skipped, if that is decided on the device.
        rounds: whether something is rounded stochastically.
        places: over which ranks the squares of a layer are to be summed, for those whose norms reach over ranks.
        slots: where, among those that are summed together.
        late: whether the first half of their step is to change nothing, and the step is not counted before it.

    Raises:
        ImportError, RuntimeError: kernels that the group asks for are not available.
    """
    found: dict[tuple[Any, ...], list[Layer]] = defaultdict(list)
    on_device = wanted.capturable or proceed is not None or any(map(is_abstract, group["params"][:1]))
    norm_dims = wanted.norm_dims
    rounding_step = group.get("rounding_step", 0) + 1 if rounds else 0
    counts = []
    for index, p, grad, state, memory in stepped:
        if memory is None or not state:
            state = states[p]
        param, step, m, v, b = p, state["step"], state["exp_avg"], state["exp_avg_sq"], state.get("explore_ema")
        counts.append(step)
        if not on_device:
            count = step.item() + 1.0
            if not 1.0 <= count < math.inf:
                refuse_step(step, p)
        if b is not None and memory is not None and not memory.explore_ema and memory.slices:
            memory = None  # b was allocated after the rest was located
        place = cut = None
        if type(p) not in PLAIN and is_sharded(p):
            param, grad, m, v = map(local, (param, grad, m, v))
            b = None if b is None else local(b)
            if rounding_step:
                place = place_of(p)
                memory = UNWALKABLE if isinstance(place, Tensor) else memory
            cut = places.get(p) if hyper.trust_ratio else None
        dtype = param.dtype
        if dtype.is_complex:
            if grad.is_conj():
                grad, memory = grad.resolve_conj(), None
            param, grad, m, v = map(torch.view_as_real, (param, grad, m, v))
            b = None if b is None else torch.view_as_real(b)
        dims = None if norm_dims is None else _norm_dims(p, norm_dims)
        if dims is not None and memory is not None:
            memory = in_slices(memory, param, dims, hyper)
        if on_device:
            count = step + 1.0 if late else step
        if dims is None and cut is None and not rounding_step:
            layer = Layer(param, grad, count, m, v, b, memory)
        else:
            seed = _seed(rounding_step, index) if rounding_step else 0
            slot = None if cut is None else slots[p]
            layer = Layer(param, grad, count, m, v, b, memory, dims, seed, place=place, slot=slot)
        of_b = None if b is None else b.dtype
        key = cut, p.device, param.dtype, m.dtype, v.dtype, of_b, type(m), type(v), type(b)  # 8-bit looks like float32
        found[key].append(layer)
    buckets, halves = [], []
    for (cut, *_), bucket in found.items():
        if cut is None:
            buckets += assign(wanted, bucket, hyper)
        else:
            parts = assign(wanted, bucket, replace(hyper, late=late))
            halves += [(backend, part, cut) for backend, part in parts]
    return GroupPlan(group, hyper, proceed, rounding_step, counts, buckets, halves, late)


def scales_of(plan: GroupPlan, bucket: list[Layer], total_norm: Tensor | None) -> Scales:
    """What is decided on the device of a bucket's layers, by the global gradient norm if that is bounded."""
    param = bucket[0].param
    scale = None
    if total_norm is not None and (bound := plan.group["max_grad_norm"]) is not None:
        scale = eq.clip_coefficient(total_norm, bound).to(param.device, compute_dtype(param.dtype))
    return Scales(scale, None if plan.proceed is None else plan.proceed.to(param.device))


def count_step(plan: GroupPlan) -> None:
    """Count the step that is planned."""
    if plan.rounding_step:
        plan.group["rounding_step"] = plan.rounding_step
    by_device: dict[torch.device, list[Tensor]] = defaultdict(list)
    for step in plan.counts:
        if not step.is_cpu:
            by_device[step.device].append(step)
    if on_host := [step for step in plan.counts if step.is_cpu]:
        by_device[torch.device("cpu")] = on_host
    for device, counts in by_device.items():
        if plan.proceed is None and device.type != "cpu":
            torch._foreach_add_(counts, 1)  # CUDA's takes no tensor from the host
        else:  # on the CPU, a number would become a tensor once for each; without alpha, a tensor would be read
            one = torch.ones((), dtype=torch.float32, device="cpu") if plan.proceed is None else plan.proceed.to(device)
            torch._foreach_add_(counts, one, alpha=1)


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
