"""Many parameters at a time with torch's multi-tensor operations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thalweg import equations as eq
from thalweg.backends import Hyper, Layer, Scales, compute_dtype, store


def step(layers: Sequence[Layer], hyper: Hyper, scales: Scales) -> None:
    """One step of ALTO on all layers, in place; they share device, dtypes and whether they have ``explore_ema``."""
    ms = [layer.exp_avg for layer in layers]
    vs = [layer.exp_avg_sq for layer in layers]
    dtype = compute_dtype(layers[0].param.dtype)

    thetas = [layer.param.to(dtype) for layer in layers]
    hs = [layer.grad.to(dtype) for layer in layers]  # the gradients themselves, if so typed: not to be written to
    if hyper.maximize:
        hs = list(torch._foreach_neg(hs))
    if scales.grad is not None:
        hs = list(torch._foreach_mul(hs, scales.grad))
    if scales.go is not None:  # a product with 0 would keep a NaN
        hs = [torch.where(scales.go > 0, h, 0.0) for h in hs]
    if layers[0].explore_ema is not None:
        bs = [layer.explore_ema for layer in layers if layer.explore_ema is not None]
        gs = hs
        hs = list(torch._foreach_lerp(_to(bs, dtype), gs, 1.0 + eq.gain(hyper.alpha, hyper.beta1)))
        _lerp_(bs, gs, 1.0 - hyper.beta1, scales.go)
    m_wide = _lerp_(ms, hs, 1.0 - hyper.beta2, scales.go)
    v_wide = _lerp_(vs, list(torch._foreach_mul(hs, hs)), 1.0 - hyper.beta3, scales.go)
    del hs

    denominators = _over(v_wide, [eq.bias_correction(hyper.beta3, layer.step) for layer in layers])
    torch._foreach_sqrt_(denominators)
    torch._foreach_add_(denominators, hyper.eps)
    rs = _over(m_wide, [eq.bias_correction(hyper.beta2, layer.step) for layer in layers])
    torch._foreach_div_(rs, denominators)
    del denominators, m_wide, v_wide
    if hyper.weight_decay != 0.0:
        torch._foreach_add_(rs, thetas, alpha=hyper.weight_decay)

    rate = hyper.lr if scales.go is None else hyper.lr * scales.go
    torch._foreach_mul_(
        rs, [rate * ratio for ratio in _ratios(layers, thetas, rs, hyper)] if hyper.trust_ratio else rate
    )
    if scales.go is not None:  # before the first real step m̂ and v̂ are 0/0
        rs = [torch.where(scales.go > 0, r, 0.0) for r in rs]
    torch._foreach_sub_(thetas, rs)
    for layer, theta in zip(layers, thetas, strict=True):
        if theta is not layer.param:
            store(layer, theta, hyper)


def _ratios(layers: Sequence[Layer], thetas: list[Tensor], rs: list[Tensor], hyper: Hyper) -> list[Tensor]:
    """The trust ratio of each layer; all whole layers' in one operation."""
    eps, clip = hyper.trust_eps, hyper.trust_clip
    if all(layer.norm_dims is None for layer in layers):
        norms = (torch.stack(torch._foreach_norm(tensors)) for tensors in (thetas, rs))
        return list(eq.trust_ratio(*norms, eps=eps, clip=clip).unbind())
    return [
        eq.trust_ratio(eq.norm(theta, layer.norm_dims), eq.norm(r, layer.norm_dims), eps=eps, clip=clip)
        for layer, theta, r in zip(layers, thetas, rs, strict=True)
    ]


def _to(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [t.to(dtype) for t in tensors]


def _lerp_(targets: list[Tensor], ends: list[Tensor], weight: float, go: Tensor | None) -> list[Tensor]:
    """Move the targets towards the ends, unless ``go`` is 0; return them before rounding to their dtype."""
    wide = _to(targets, ends[0].dtype)
    if go is None:
        torch._foreach_lerp_(wide, ends, weight)
    else:
        changes = torch._foreach_sub(ends, wide)
        torch._foreach_mul_(changes, weight * go)
        torch._foreach_add_(wide, changes)
    if targets[0].dtype != wide[0].dtype:
        torch._foreach_copy_(targets, wide)
    return wide


def _over(tensors: list[Tensor], corrections: list[eq.Scalar]) -> list[Tensor]:
    return list(torch._foreach_div(tensors, corrections))  # type: ignore[arg-type]
