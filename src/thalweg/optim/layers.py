"""From parameter groups to layers: gradients judged, state allocated, steps counted."""

from __future__ import annotations

import math
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

from thalweg import equations as eq
from thalweg.kernels import Hyper, Layer, compute_dtype, cpp, eightbit, is_abstract, local
from thalweg.kernels.addresses import look as addresses_of
from thalweg.kernels.checks import BUFFERS, check_state, refuse_step
from thalweg.kernels.norms import fast_norms, is_exact, norms
from thalweg.kernels.pieces import PIECE
from thalweg.kernels.plan import choose
from thalweg.kernels.rounding import EXP_AVG_SQ, stored_as

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping
    from types import ModuleType

    from torch.optim import Optimizer

    from thalweg.kernels.overwriting import Footprint

Given: TypeAlias = "tuple[int, Tensor, Tensor, tuple[int, ...] | None]"
"""A parameter's number in its group, itself, its gradient, and the addresses of both and its state (None: not yet)."""


@contextmanager
def only(optimizer: Optimizer, groups: list[dict[str, Any]]) -> Iterator[None]:
    """Inside, these are the optimizer's groups."""
    everything = optimizer.param_groups
    if groups is not everything:
        optimizer.param_groups = groups
    try:
        yield
    finally:
        if groups is not everything:
            optimizer.param_groups = everything


def is_sharded(t: Tensor) -> bool:
    """Whether a tensor is a DTensor; by its mesh, as importing the class takes half a second."""
    return hasattr(t, "device_mesh")


def all_finite(gradients: Iterable[Tensor], *, may_read: bool = False, fused: bool = False) -> Tensor:
    """Whether no gradient has an infinity, a NaN or an entry whose square would overflow, about 5e18 in float32.

    Sharded gradients are judged whole, so that all ranks agree. Where it ``may_read`` numbers on the host, gradients on
    the CPU are judged by a kernel of their own if ``fused``, else by their sums of squares first, which is faster.

    Returns:
        A 0-d boolean tensor on the device of the first gradient.
    """
    gradients = list(gradients)
    if may_read and fused:
        within = cpp.all_within(gradients, _limit)
        if within is not None:
            return torch.tensor(within)
    elif may_read and _surely_finite(gradients):
        return torch.ones((), dtype=torch.bool)
    shards = [local(g) for g in gradients]
    verdicts = [
        (norms <= _limit(norms.dtype)).all().to(gradients[0].device)
        for norms in _largest([g for g in shards if g.numel() > 0])
    ]
    nothing = torch.ones((), dtype=torch.bool, device=gradients[0].device if gradients else None)
    finite = torch.stack(verdicts).all() if verdicts else nothing
    meshes = dict.fromkeys(cast("Any", g).device_mesh for g in gradients if is_sharded(g))
    if not meshes:
        return finite
    # The verdicts are reduced, not the magnitudes: a maximum over ranks may lose a NaN.
    verdict = finite.to(gradients[0].device, torch.int32)
    for mesh in meshes:
        for group in mesh.get_all_groups():
            torch.distributed.all_reduce(verdict, torch.distributed.ReduceOp.MIN, group=group)
    return verdict.bool()


def _largest(tensors: list[Tensor]) -> list[Tensor]:
    """The magnitudes of the largest entries of the tensors, or NaN; a vector for those of one device and dtype."""
    if torch.compiler.is_compiling() or not all(t.device.type == "cpu" and t.dtype.is_floating_point for t in tensors):
        return [
            torch.stack(torch._foreach_norm(some, math.inf, dtype=None if dtype.is_complex else compute_dtype(dtype)))
            for (_, dtype, _), some in _alike(tensors).items()
        ]
    # On the CPU a hundred times faster than that norm.
    return [torch.stack(torch.aminmax(t)).abs().to(compute_dtype(t.dtype)) for t in tensors]


def _alike(tensors: Iterable[Tensor]) -> dict[tuple[Any, ...], list[Tensor]]:
    """The tensors of one device, dtype and mesh."""
    found: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
    for t in tensors:
        found[t.device, t.dtype, getattr(t, "device_mesh", None)].append(t)
    return found


def _limit(dtype: torch.dtype) -> float:
    """The largest gradient whose h, up to 3 times as large, has a square."""
    return float(torch.finfo(compute_dtype(dtype)).max ** 0.5 / 4.0)


def _surely_finite(gradients: list[Tensor]) -> bool:
    """Whether the sums of squares, which a CPU computes several times faster than the maxima, show it already."""
    if torch.compiler.is_compiling() or any(is_sharded(g) or not _is_plain(g) for g in gradients):
        return False
    small = [g for g in gradients if g.numel() < PIECE // 8]
    norms = torch._foreach_norm(small) if small else ()
    squares = [torch.dot(g.view(-1), g.view(-1)) for g in gradients if g.numel() >= PIECE // 8]
    limit = _limit(torch.float32)
    return all(norm.item() <= limit for norm in norms) and all(square.item() <= limit**2 for square in squares)


def _is_plain(g: Tensor) -> bool:
    return g.device.type == "cpu" and g.dtype in (torch.float32, torch.float64) and g.is_contiguous()


def refuse_nonfinite(gradients: Iterable[Tensor]) -> None:
    """Raise ``RuntimeError`` for the first gradient that is not :func:`all_finite`."""
    for g in gradients:
        if not all_finite([g]):
            raise RuntimeError(
                f"a gradient of shape {tuple(g.shape)} has an infinity, a NaN or an entry whose square overflows; "
                "nothing has changed"
            )


def global_norm(gradients: Iterable[Tensor], *, may_read: bool = False) -> Tensor:
    """The 2-norm of all gradients together, over all shards, whatever the size of their entries.

    Where it ``may_read`` numbers on the host, it is several times faster for gradients on the CPU.
    """
    groups = _alike(torch.view_as_real(g.resolve_conj()) if g.is_complex() else g for g in gradients)
    if not groups:
        return torch.zeros(())
    if may_read and all(device.type == "cpu" and mesh is None for device, _, mesh in groups):
        total: Tensor = torch.linalg.vector_norm(torch.cat([fast_norms(some) for some in groups.values()]))
        if is_exact(total, torch.float32):
            return total
    device = next(iter(groups))[0]
    found = [cast("Any", norms(some)) for some in groups.values()]
    return eq.norm(torch.cat([(n.full_tensor() if is_sharded(n) else n).to(device) for n in found]))


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
    go: Tensor | None
    rounding_step: int
    counts: list[Tensor]
    buckets: list[tuple[ModuleType, list[Layer]]]


def plan(
    group: dict[str, Any],
    given: list[Given],
    states: dict[Tensor, Any],
    hyper: Hyper,
    go: Tensor | None,
    *,
    overwritable: Collection[Tensor] = (),
    rounds: bool = False,
) -> Plan:
    """The group's parameters that are given a gradient, by device and how each tensor is stored; nothing changes.

    ``go`` is what the step counts for, if that is decided on the device; ``overwritable`` are the parameters whose
    gradient's memory is scratch, if the group says so; ``rounds`` is whether something is rounded stochastically. The
    layers have the number of the step that is to come.

    Raises:
        ImportError, RuntimeError: kernels that the group asks for cannot be had.
    """
    found: dict[tuple[Any, ...], list[Layer]] = defaultdict(list)
    on_device = group["capturable"] or go is not None or any(map(is_abstract, group["params"][:1]))
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
        layer = Layer(  # by position, as this is much of a step of many small layers
            param,
            grad,
            step if on_device else count,
            m,
            v,
            b,
            None if norm_dims is None else _norm_dims(p, norm_dims),
            _seed(rounding_step, index) if rounding_step else 0,
            0,
            bool(overwritable) and p in overwritable and not is_sharded(p),
            addresses,
        )
        types = (type(m), type(v), type(b))  # those of 8-bit state look like float32
        found[p.device, param.dtype, m.dtype, v.dtype, None if b is None else b.dtype, types].append(layer)
    buckets = [(choose(group, bucket[0].param.device, bucket, hyper), bucket) for bucket in found.values()]
    return Plan(group, hyper, go, rounding_step, counts, buckets)


def count(plan: Plan) -> None:
    """Count the step that is planned."""
    if plan.rounding_step:
        plan.group["rounding_step"] = plan.rounding_step
    by_device: dict[torch.device, list[Tensor]] = defaultdict(list)
    for step in plan.counts:
        by_device[step.device].append(step)
    for device, counts in by_device.items():
        if plan.go is None and device.type != "cpu":
            torch._foreach_add_(counts, 1)  # CUDA's takes no tensor from the host
        else:  # on the CPU, a number would become a tensor once for each; without alpha, a tensor would be read
            torch._foreach_add_(counts, torch.ones(()) if plan.go is None else plan.go.to(device), alpha=1)


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
