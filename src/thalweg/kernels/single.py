"""One parameter at a time, straight from the equations: for reading, and the oracle of the faster backends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from thalweg import equations as eq
from thalweg.kernels import Hyper, Layer, Scales, compute_dtype, eightbit
from thalweg.kernels.norms import norm_of, norms_over, rows_of, squares
from thalweg.kernels.pieces import Scratch, pieces
from thalweg.kernels.rounding import EXP_AVG, EXP_AVG_SQ, EXPLORE_EMA, PARAM, store, wide
from thalweg.torch_private import outside_graphs

Begun: TypeAlias = tuple[Layer, Tensor | None]
"""A layer of which the first half of a step is done, with its r."""


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
            rate = rate * hyper.trust_ratio_of(theta_norm, r_norm).to(dtype)
        r.mul_(rate)
        for piece, change in pieces(layer, r):
            _write(piece, PARAM, _decayed(wide(piece.param, dtype), hyper) - change, hyper, scales)


def begin(layers: Sequence[Layer], hyper: Hyper, scales: Scales, scratch: Scratch, sums: Tensor) -> list[Begun]:
    """The first half of :func:`step` for layers whose norms reach over ranks: their squares here, to ``sums``.

    r of all layers is kept, unless the second half is to move the state as well and computes it again.
    """
    begun: list[Begun] = []
    for layer in layers:
        if layer.param.numel() == 0:
            continue
        theta = wide(layer.param, compute_dtype(layer.param.dtype))
        r = _advance(layer, theta, hyper, scales, keep=not hyper.late)
        place = rows_of(sums, layer)
        for i, x in enumerate((theta, r)):
            place[:, i] = squares(eq.norm(x, layer.norm_dims).flatten(), place.shape[-1])
        begun.append((layer, None if hyper.late else r))
    return begun


def finish(begun: list[Begun], hyper: Hyper, scales: Scales, scratch: Scratch, sums: Tensor) -> None:
    """The second half, ``sums`` being those of all ranks."""
    for layer, kept in begun:
        theta = wide(layer.param, compute_dtype(layer.param.dtype))
        r = _advance(layer, theta, hyper, scales) if kept is None else kept
        theta_norm, r_norm = norm_of(rows_of(sums, layer)).unbind(-1)
        ratio = hyper.trust_ratio_of(theta_norm, r_norm).to(r.dtype)
        dims = range(r.ndim) if layer.norm_dims is None else layer.norm_dims
        rate = hyper.lr * ratio.view([1 if axis in dims else n for axis, n in enumerate(r.shape)])
        _write(layer, PARAM, _decayed(theta, hyper) - rate * r, hyper, scales)


_step_outside = outside_graphs(step)  # which cannot trace what is written to torchao's tensors


def _advance(layer: Layer, theta: Tensor, hyper: Hyper, scales: Scales, *, keep: bool = True) -> Tensor:
    """The layer's r; its moving averages are moved, if they are to ``keep`` that."""
    g = wide(layer.grad, theta.dtype)
    if hyper.maximize:
        g = -g
    if scales.grad is not None:
        g = g * scales.grad
    h = g
    if layer.explore_ema is not None:
        h, b = eq.explore(g, wide(layer.explore_ema, g.dtype), alpha=hyper.alpha, beta=hyper.beta1)
        if keep:
            _write(layer, EXPLORE_EMA, b, hyper, scales)
    m, v = (wide(t, g.dtype) for t in (layer.exp_avg, layer.exp_avg_sq))
    m, v = eq.moments(h, m, v, beta2=hyper.beta2, beta3=hyper.beta3)
    if keep:
        _write(layer, EXP_AVG, m, hyper, scales)
        _write(layer, EXP_AVG_SQ, v, hyper, scales)
    correction2, correction3 = hyper.corrections(layer.step)
    r = eq.direction(m, v, correction2=correction2, correction3=correction3, eps=hyper.eps)
    return r + hyper.decay_in_r * theta if hyper.decay_in_r != 0.0 else r


def _decayed(theta: Tensor, hyper: Hyper) -> Tensor:
    return theta * hyper.remaining if hyper.decoupled_decay else theta


def _write(layer: Layer, name: str, value: Tensor, hyper: Hyper, scales: Scales) -> None:
    target: Tensor = getattr(layer, name)
    if scales.proceed is not None:
        value = torch.where(scales.proceed > 0, value, wide(target, value.dtype))
    store(layer, name, value, hyper)
