"""What E does to one step of its base: g' in the place of each gradient g, then b moved on by g."""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from itertools import repeat
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.optim import SGD, Adagrad, Adam, AdamW

from thalweg import equations as eq
from thalweg.backends import compute_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor
    from torch.optim import Optimizer

ALPHA, BETA, EMA = "explore_alpha", "explore_beta", "explore_ema"


@contextmanager
def explored(base: Optimizer, go: Tensor | None = None) -> Iterator[None]:
    """Inside, ``p.grad`` is g'; on a clean exit b moves on. The gradient itself is never written to.

    ``go`` is what b moves on for, if that is decided on the device.
    """
    buckets = list(_buckets(base))
    grads = [(p, p.grad) for params, *_ in buckets for p in params]
    try:
        for params, group, foreach in buckets:
            for p, h in zip(params, _replacements(base, params, group, foreach), strict=True):
                p.grad = h
        yield
    finally:
        for p, g in grads:
            p.grad = g
    for params, group, foreach in buckets:
        _advance(base, params, [cast("Tensor", p.grad) for p in params], group[BETA], foreach, go)


def shifts(base: Optimizer) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each parameter that E adapts: itself, s = g' - g in the gradient's dtype, and b after this step."""
    found = []
    for params, group, _ in _buckets(base):
        for p in params:
            g = cast("Tensor", p.grad)
            b = base.state.get(p, {}).get(EMA)
            wide = g.to(compute_dtype(g.dtype)) if b is None else g.to(b.dtype)
            h, after = eq.explore(
                wide, torch.zeros_like(wide) if b is None else b, alpha=group[ALPHA], beta=group[BETA]
            )
            found.append((p, (h - wide).to(g.dtype), after))
    return found


def can_skip(base: Optimizer) -> bool:
    """Whether the base leaves its next step out by itself where its ``found_inf`` is 1, as torch's fused ones do.

    A subclass may do more than its kernel. And from a first step that it leaves out, SGD would keep a momentum that
    was never written.
    """
    return type(base) in (Adam, AdamW, SGD, Adagrad) and all(
        group["fused"] and (not group.get("momentum") or all(_has_momentum(base, p) for p in group["params"]))
        for group in base.param_groups
    )


def _has_momentum(base: Optimizer, p: Tensor) -> bool:
    return p.grad is None or base.state.get(p, {}).get("momentum_buffer") is not None


@contextmanager
def skipping(base: Any, go: Tensor | None) -> Iterator[None]:
    """Inside, a base that :func:`can_skip` does so unless ``go``, told as :class:`torch.amp.GradScaler` tells it."""
    if go is None:
        yield
        return
    base.found_inf = go.logical_not().float()
    try:
        yield
    finally:
        del base.found_inf


def _buckets(base: Optimizer) -> Iterator[tuple[list[Tensor], dict[str, Any], bool]]:
    """Parameters that have a gradient and an EMA or need one; in one bucket all have it, or none."""
    for group in base.param_groups:
        buckets: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
        for p in group["params"]:
            if p.grad is None:
                continue
            started = p in base.state and EMA in base.state[p]
            if started or group[ALPHA] != 0.0:
                buckets[p.device, p.grad.dtype, started].append(p)
        for (device, *_), params in buckets.items():
            foreach = group.get("foreach")
            yield params, group, device.type == "cuda" if foreach is None else bool(foreach)


def _replacements(base: Optimizer, params: list[Tensor], group: dict[str, Any], foreach: bool) -> list[Tensor]:
    """g' = g + c (g - b) of each parameter, in the gradient's dtype; b is 0 where it does not exist yet."""
    grads = [cast("Tensor", p.grad) for p in params]
    weight = 1.0 + eq.gain(group[ALPHA], group[BETA])
    if EMA in base.state.get(params[0], {}):
        emas = [base.state[p][EMA] for p in params]
        wide = [g.to(b.dtype) for g, b in zip(grads, emas, strict=True)]
        lerped = torch._foreach_lerp(emas, wide, weight) if foreach else map(torch.lerp, emas, wide, repeat(weight))
        replaced = [h.to(g.dtype) for h, g in zip(lerped, grads, strict=True)]
    else:
        replaced = [g * weight for g in grads]
    if group.get("fused"):
        replaced = [_laid_out_as(p, h) for p, h in zip(params, replaced, strict=True)]
    return [_with_graph_of(g, h) if g.requires_grad else h for g, h in zip(grads, replaced, strict=True)]


def _laid_out_as(p: Tensor, h: Tensor) -> Tensor:
    """h with the strides of p: torch's fused kernels for the CPU take them for granted, and do not look."""
    if h.stride() == p.stride():
        return h
    laid = torch.empty_like(p, dtype=h.dtype).copy_(h)
    if laid.stride() != p.stride():
        raise RuntimeError(
            f"a fused base needs parameters without gaps in memory, got one of shape {tuple(p.shape)} and strides "
            f"{p.stride()}: build it with fused=False"
        )
    return laid


def _with_graph_of(g: Tensor, h: Tensor) -> Tensor:
    """h as g plus a constant, for bases that differentiate the gradient: the Hessian stays that of the loss."""
    with torch.enable_grad():
        return g + (h - g).detach()


def _advance(
    base: Optimizer, params: list[Tensor], grads: list[Tensor], beta: float, foreach: bool, go: Tensor | None
) -> None:
    """b ← β1 b + (1-β1) g. A missing b starts here, after the base has made its own state for the parameter.

    Compiled, this is a graph of its own, with the gradients as its inputs: ``p.grad`` would be guarded by identity.
    """
    for p in params:
        if EMA not in base.state[p]:
            base.state[p][EMA] = torch.zeros_like(p, dtype=compute_dtype(p.dtype))
    emas = [base.state[p][EMA] for p in params]
    grads = [g.to(b.dtype) for g, b in zip(grads, emas, strict=True)]
    if go is not None:  # towards itself, b stays where it is
        grads = [torch.where(go.to(b.device), g, b) for g, b in zip(grads, emas, strict=True)]
    if foreach:
        torch._foreach_lerp_(emas, grads, 1.0 - beta)
    else:
        for b, g in zip(emas, grads, strict=True):
            b.lerp_(g, 1.0 - beta)
