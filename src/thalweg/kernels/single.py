"""One parameter at a time, straight from the equations: for reading, and the oracle of the faster backends."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thalweg import equations as eq
from thalweg.kernels import Hyper, Layer, Scales, compute_dtype, eightbit
from thalweg.kernels.norms import norms_over
from thalweg.kernels.pieces import Scratch, pieces
from thalweg.kernels.rounding import EXP_AVG, EXP_AVG_SQ, EXPLORE_EMA, PARAM, store, wide
from thalweg.torch_private import outside_graphs


def step(layers: Sequence[Layer], hyper: Hyper, scales: Scales, scratch: Scratch) -> None:
    """One step of ALTO on each layer, in place: r of the whole layer, piece by piece, then the update.

    One temporary has the size of a layer, and comes from ``scratch``; the others have that of a piece. State in 8 bits
    is left out of a step that is being compiled.
    """
    if torch.compiler.is_compiling() and eightbit.any_8bit(layers[0]):
        _step_outside(layers, hyper, scales, scratch)
        return
    for layer in layers:
        dtype = compute_dtype(layer.param.dtype)
        r = scratch.like(layer.param, dtype, "r")
        norms: list[tuple[Tensor, Tensor]] = []
        for piece, r_piece in pieces(layer, r):
            theta = wide(piece.param, dtype)
            r_piece.copy_(_advance(piece, theta, hyper, scales))
            norms.append((eq.norm(theta), eq.norm(r_piece)))

        rate = hyper.lr
        if hyper.trust_ratio:
            if layer.norm_dims is None:
                theta_norm, r_norm = (eq.norm(torch.stack(parts)) for parts in zip(*norms, strict=True))
            else:
                theta_norm, r_norm = (norms_over(x, layer.norm_dims) for x in (wide(layer.param, dtype), r))
            ratio = eq.trust_ratio(theta_norm, r_norm, eps=hyper.trust_eps, clip=hyper.trust_clip)
            rate = rate * ratio.to(dtype)
        r.mul_(rate)
        for piece, change in pieces(layer, r):
            _write(piece, PARAM, wide(piece.param, dtype) - change, hyper, scales)


_step_outside = outside_graphs(step)  # which cannot trace what is written to torchao's tensors


def _advance(layer: Layer, theta: Tensor, hyper: Hyper, scales: Scales) -> Tensor:
    """Move the layer's moving averages, and return its r."""
    g = wide(layer.grad, theta.dtype)
    if hyper.maximize:
        g = -g
    if scales.grad is not None:
        g = g * scales.grad
    h = g
    if layer.explore_ema is not None:
        h, b = eq.explore(g, wide(layer.explore_ema, g.dtype), alpha=hyper.alpha, beta=hyper.beta1)
        _write(layer, EXPLORE_EMA, b, hyper, scales)
    m, v = (wide(t, g.dtype) for t in (layer.exp_avg, layer.exp_avg_sq))
    m, v = eq.moments(h, m, v, beta2=hyper.beta2, beta3=hyper.beta3)
    _write(layer, EXP_AVG, m, hyper, scales)
    _write(layer, EXP_AVG_SQ, v, hyper, scales)
    r = eq.direction(
        m,
        v,
        correction2=eq.bias_correction(hyper.beta2, layer.step),
        correction3=eq.bias_correction(hyper.beta3, layer.step),
        eps=hyper.eps,
    )
    return r + hyper.weight_decay * theta if hyper.weight_decay != 0.0 else r


def _write(layer: Layer, name: str, value: Tensor, hyper: Hyper, scales: Scales) -> None:
    target: Tensor = getattr(layer, name)
    if scales.proceed is not None:
        value = torch.where(scales.proceed > 0, value, wide(target, value.dtype))
    store(layer, name, value, hyper)
