"""Many parameters at a time with torch's multi-tensor operations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from thalweg import equations as eq
from thalweg.backends import Hyper, Layer, compute_dtype

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def step(layers: Sequence[Layer], hyper: Hyper, grad_scale: Tensor | None) -> None:
    """One step of ALTO on all layers, in place; they share device, dtype and whether they have ``explore_ema``.

    ``grad_scale`` multiplies every gradient.
    """
    params = [layer.param for layer in layers]
    grads = [layer.grad for layer in layers]
    ms = [layer.exp_avg for layer in layers]
    vs = [layer.exp_avg_sq for layer in layers]
    dtype = compute_dtype(params[0].dtype)

    thetas = [p.to(dtype) for p in params]
    hs = [g.to(dtype) for g in grads]  # aliases of the gradients where the dtype is theirs: not to be written to
    if hyper.maximize:
        hs = list(torch._foreach_neg(hs))
    if grad_scale is not None:
        hs = list(torch._foreach_mul(hs, grad_scale))
    if layers[0].explore_ema is not None:
        bs = [layer.explore_ema for layer in layers if layer.explore_ema is not None]
        gs = hs
        hs = list(torch._foreach_lerp(_to(bs, dtype), gs, 1.0 + eq.gain(hyper.alpha, hyper.beta1)))
        _lerp_(bs, gs, 1.0 - hyper.beta1)
    m_wide = _lerp_(ms, hs, 1.0 - hyper.beta2)
    squares = torch._foreach_mul(hs, hs)
    v_wide = _to(vs, dtype)
    torch._foreach_mul_(v_wide, hyper.beta3)
    torch._foreach_add_(v_wide, squares, alpha=1.0 - hyper.beta3)
    _store(vs, v_wide)
    del hs, squares

    denominators = _over(v_wide, [eq.bias_correction(hyper.beta3, layer.step) for layer in layers])
    torch._foreach_sqrt_(denominators)
    torch._foreach_add_(denominators, hyper.eps)
    rs = _over(m_wide, [eq.bias_correction(hyper.beta2, layer.step) for layer in layers])
    torch._foreach_div_(rs, denominators)
    del denominators, m_wide, v_wide
    if hyper.weight_decay != 0.0:
        torch._foreach_add_(rs, thetas, alpha=hyper.weight_decay)

    if hyper.trust_ratio:
        ratios = eq.trust_ratio(
            torch.stack(torch._foreach_norm(thetas)),
            torch.stack(torch._foreach_norm(rs)),
            eps=hyper.trust_eps,
            clip=hyper.trust_clip,
        )
        torch._foreach_mul_(rs, list((ratios * hyper.lr).unbind()))
    else:
        torch._foreach_mul_(rs, hyper.lr)
    torch._foreach_sub_(thetas, rs)
    _store(params, thetas)


def _to(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [t.to(dtype) for t in tensors]


def _store(targets: list[Tensor], values: list[Tensor]) -> None:
    """Write back what was computed in a wider dtype; where the dtypes agree, the values are the targets."""
    if targets[0].dtype != values[0].dtype:
        torch._foreach_copy_(targets, values)


def _lerp_(targets: list[Tensor], ends: list[Tensor], weight: float) -> list[Tensor]:
    """The new targets, not rounded to their dtype."""
    wide = _to(targets, ends[0].dtype)
    torch._foreach_lerp_(wide, ends, weight)
    _store(targets, wide)
    return wide


def _over(tensors: list[Tensor], corrections: list[eq.Scalar]) -> list[Tensor]:
    return list(torch._foreach_div(tensors, corrections))  # type: ignore[arg-type]
