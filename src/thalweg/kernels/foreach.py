"""Many parameters at a time with torch's multi-tensor operations, its fused Adam among them.

Adam's direction is what that kernel adds to a parameter at learning rate -1; here the parameter is r, which holds λθ.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from thalweg import equations as eq
from thalweg.kernels import Hyper, Layer, Scales, compute_dtype
from thalweg.kernels.norms import norm_of, norms, norms_over, rows_of, squares
from thalweg.kernels.pieces import Scratch, flat, piece_size, pieces
from thalweg.kernels.rounding import EXP_AVG, EXP_AVG_SQ, EXPLORE_EMA, PARAM, store, wide
from thalweg.torch_private import fused_adam_

Begun: TypeAlias = tuple[list[Layer], list[Tensor] | None]
"""Layers of which the first half of a step is done, with their r."""


def step(layers: Sequence[Layer], hyper: Hyper, scales: Scales, scratch: Scratch) -> None:
    """One step of ALTO on all layers, in place; they share device, dtypes and whether they have ``explore_ema``.

    Small layers are taken together up to :func:`~thalweg.kernels.pieces.piece_size`; the temporaries, two in float32,
    have that size. A larger layer, on CPU from an eighth of that on, is taken alone and in pieces of that size, with
    one temporary of the layer's own, from ``scratch``. What is computed for a layer does not depend on the others.
    """
    device = layers[0].param.device
    size = piece_size(device)
    large = size // 8 if device.type == "cpu" else size
    for layer in layers:
        if layer.param.numel() >= large:
            _step_one(layer, hyper, scales, scratch)
    for group in _groups([layer for layer in layers if layer.param.numel() < large], size):
        _step_several(group, hyper, scales, scratch)


def begin(layers: Sequence[Layer], hyper: Hyper, scales: Scales, scratch: Scratch, sums: Tensor) -> list[Begun]:
    """The first half of :func:`step` for layers whose norms reach over ranks: their squares here, to ``sums``.

    r of all layers is kept, unless the second half is to move the state as well and computes it again.
    """
    begun = []
    for group in _groups([layer for layer in layers if layer.param.numel() > 0], piece_size(layers[0].param.device)):
        thetas = [wide(layer.param, compute_dtype(layer.param.dtype)) for layer in group]
        rs = list(torch._foreach_mul(thetas, hyper.decay_in_r))
        _direct([_copied(layer) for layer in group] if hyper.late else group, rs, hyper, scales, scratch)
        for i, tensors in enumerate((thetas, rs)):
            places = [rows_of(sums, layer)[:, i] for layer in group]
            parts = places[0].shape[-1]
            if all(layer.norm_dims is None for layer in group):
                found = list(squares(norms(tensors, on_host=_on_host(group[0])), parts).chunk(len(group)))
            else:
                found = [squares(_norm(x, layer).flatten(), parts) for x, layer in zip(tensors, group, strict=True)]
            torch._foreach_copy_(places, found)
        begun.append((group, None if hyper.late else rs))
    return begun


def finish(begun: list[Begun], hyper: Hyper, scales: Scales, scratch: Scratch, sums: Tensor) -> None:
    """The second half, ``sums`` being those of all ranks."""
    rate = hyper.lr if scales.proceed is None else hyper.lr * scales.proceed
    for group, kept in begun:
        thetas = [wide(layer.param, compute_dtype(layer.param.dtype)) for layer in group]
        rs = list(torch._foreach_mul(thetas, hyper.decay_in_r)) if kept is None else kept
        if kept is None:
            _direct(group, rs, hyper, scales, scratch)
        found = [norm_of(rows_of(sums, layer)).unbind(-1) for layer in group]
        theta_norms, r_norms = (torch.cat(column) for column in zip(*found, strict=True))
        ratios = hyper.trust_ratio_of(theta_norms, r_norms).to(rs[0].dtype)
        of_layers = torch.split(rate * ratios, [len(rows) for rows, _ in found])
        torch._foreach_mul_(rs, [_spread(x, layer) for x, layer in zip(of_layers, group, strict=True)])
        _move(thetas, rs, hyper, scales)
        _store(group, PARAM, thetas, hyper)


def _copied(layer: Layer) -> Layer:
    b = layer.explore_ema
    return layer._replace(
        exp_avg=layer.exp_avg.clone(),
        exp_avg_sq=layer.exp_avg_sq.clone(),
        explore_ema=None if b is None else b.clone(),
    )


def _spread(x: Tensor, layer: Layer) -> Tensor:
    """A number for each of the layers stacked in one parameter, in a shape that broadcasts."""
    if layer.norm_dims is None:
        return x.reshape(())
    return x.view([1 if axis in layer.norm_dims else n for axis, n in enumerate(layer.param.shape)])


def takes(layer: Layer) -> bool:
    """Whether the layer's tensors have one layout: torch's fused kernel walks their memory and does not see strides."""
    tensors = [
        t for t in (layer.param, layer.grad, layer.exp_avg, layer.exp_avg_sq, layer.explore_ema) if t is not None
    ]
    return all(t.is_contiguous() for t in tensors) or flat(tensors) is not None


def _groups(layers: Sequence[Layer], size: int) -> Iterator[list[Layer]]:
    """The layers in lists of at most ``size`` elements or of one layer."""
    group: list[Layer] = []
    total = 0
    for layer in layers:
        total += layer.param.numel()
        if group and total > size:
            yield group
            group, total = [], layer.param.numel()
        group.append(layer)
    if group:
        yield group


def _step_several(layers: list[Layer], hyper: Hyper, scales: Scales, scratch: Scratch) -> None:
    thetas = [wide(layer.param, compute_dtype(layer.param.dtype)) for layer in layers]
    rs = list(torch._foreach_mul(thetas, hyper.decay_in_r))
    _direct(layers, rs, hyper, scales, scratch)
    rate = hyper.lr if scales.proceed is None else hyper.lr * scales.proceed
    if hyper.trust_ratio:
        torch._foreach_mul_(rs, _rates(layers, thetas, rs, hyper, rate))
    else:
        torch._foreach_mul_(rs, rate)
    _move(thetas, rs, hyper, scales)
    _store(layers, PARAM, thetas, hyper)


def _step_one(layer: Layer, hyper: Hyper, scales: Scales, scratch: Scratch) -> None:
    r = scratch.like(layer.param, compute_dtype(layer.param.dtype), "r")
    on_host = _on_host(layer)
    found: list[Tensor] = []
    for piece, r_piece in pieces(layer, r):
        theta = wide(piece.param, r.dtype)
        torch.mul(theta, hyper.decay_in_r, out=r_piece)
        _direct([piece], [r_piece], hyper, scales, scratch)
        if hyper.trust_ratio and layer.norm_dims is None:
            found.append(norms([theta, r_piece], on_host=on_host))
    rate = hyper.lr if scales.proceed is None else hyper.lr * scales.proceed
    if hyper.trust_ratio:
        if layer.norm_dims is None:
            theta_norm, r_norm = (found[0] if len(found) == 1 else eq.norm(torch.stack(found), (0,))[0]).unbind()
        else:
            theta_norm, r_norm = (norms_over(x, layer.norm_dims) for x in (wide(layer.param, r.dtype), r))
        ratio = hyper.trust_ratio_of(theta_norm, r_norm)
        rate = rate * ratio.to(r.dtype)  # not in place: the learning rate may be a tensor of the user's
    if isinstance(rate, Tensor) and not (on_host and rate.ndim == 0):
        r.mul_(rate)
        rate = 1.0
    for piece, r_piece in pieces(layer, r):
        theta = wide(piece.param, r.dtype)
        if hyper.decoupled_decay:
            theta.mul_(_remaining(hyper, scales))
        theta.sub_(r_piece, alpha=float(rate))
        _store([piece], PARAM, [theta], hyper)


def _direct(layers: Sequence[Layer], rs: list[Tensor], hyper: Hyper, scales: Scales, scratch: Scratch) -> None:
    """Move the moving averages of the layers, and add Adam's direction to r."""
    dtype = rs[0].dtype
    hs = [wide(layer.grad, dtype) for layer in layers]  # the gradients themselves, if so typed: not to be written to
    if hyper.maximize:
        hs = list(torch._foreach_neg(hs))
    if scales.grad is not None:
        hs = list(torch._foreach_mul(hs, scales.grad))
    if scales.proceed is not None:  # a product with 0 would keep a NaN
        hs = [torch.where(scales.proceed > 0, h, 0.0) for h in hs]
    if layers[0].explore_ema is not None:
        bs = [wide(layer.explore_ema, dtype) for layer in layers if layer.explore_ema is not None]
        gs, weight = hs, -eq.gain(hyper.alpha, hyper.beta1)
        if len(bs) == 1:
            hs = [torch.lerp(gs[0], bs[0], weight, out=scratch.like(bs[0], dtype, "h"))]
        else:
            hs = list(torch._foreach_lerp(gs, bs, weight))
        if scales.proceed is not None:  # towards itself, b stays where it is
            gs = [torch.where(scales.proceed > 0, g, b) for g, b in zip(gs, bs, strict=True)]
        torch._foreach_lerp_(bs, gs, 1.0 - hyper.beta1)
        _store(layers, EXPLORE_EMA, bs, hyper)
        del bs

    ms = [wide(layer.exp_avg, dtype) for layer in layers]
    vs = [wide(layer.exp_avg_sq, dtype) for layer in layers]
    fused_adam_(
        rs,
        hs,
        ms,
        vs,
        [],
        [_count(layer.step, rs[0].device) for layer in layers] if hyper.bias_correction else _endless(layers),
        lr=-1.0,
        beta1=hyper.beta2,
        beta2=hyper.beta3,
        weight_decay=0.0,
        eps=hyper.eps,
        amsgrad=False,
        maximize=False,
        found_inf=None if scales.proceed is None else 1.0 - scales.proceed,
    )
    _store(layers, EXP_AVG, ms, hyper)
    _store(layers, EXP_AVG_SQ, vs, hyper)


def _move(thetas: list[Tensor], changes: list[Tensor], hyper: Hyper, scales: Scales) -> None:
    if hyper.decoupled_decay:
        torch._foreach_mul_(thetas, _remaining(hyper, scales))
    torch._foreach_sub_(thetas, changes)


def _remaining(hyper: Hyper, scales: Scales) -> eq.Scalar:
    """What decoupled decay leaves of θ: all of it in a step that is skipped."""
    if scales.proceed is None:
        return hyper.remaining
    return 1.0 - (1.0 - hyper.remaining) * scales.proceed


def _count(step: eq.Scalar, device: torch.device) -> Tensor:
    return step if isinstance(step, Tensor) else _counted(step, device)


def _endless(layers: Sequence[Layer]) -> list[Tensor]:
    """Numbers of steps at which nothing is left of a bias to correct; not kept, as they may be fake."""
    return [torch.full((), math.inf, dtype=torch.float32, device=layers[0].param.device)] * len(layers)


@functools.lru_cache(maxsize=16)
def _counted(step: float, device: torch.device) -> Tensor:
    """One tensor for all layers that have made as many steps; which is never written to."""
    return torch.full((), step, dtype=torch.float32, device=device)  # torch.tensor would wait for a device


def _store(layers: Sequence[Layer], name: str, values: list[Tensor], hyper: Hyper) -> None:
    for layer, value in zip(layers, values, strict=True):
        if value is not getattr(layer, name):
            store(layer, name, value, hyper)


def _rates(
    layers: Sequence[Layer], thetas: list[Tensor], rs: list[Tensor], hyper: Hyper, rate: eq.Scalar
) -> list[Tensor]:
    """``rate`` times the trust ratio of each layer; all whole layers' in one operation."""
    dtype = rs[0].dtype
    if all(layer.norm_dims is None for layer in layers):
        found = (norms(tensors, on_host=_on_host(layers[0])) for tensors in (thetas, rs))
        return list((rate * hyper.trust_ratio_of(*found).to(dtype)).unbind())
    return [
        rate * hyper.trust_ratio_of(_norm(theta, layer), _norm(r, layer)).to(dtype)
        for layer, theta, r in zip(layers, thetas, rs, strict=True)
    ]


def _on_host(layer: Layer) -> bool:
    """Whether a number costs nothing to read."""
    return layer.param.is_cpu and not isinstance(layer.step, Tensor)


def _norm(x: Tensor, layer: Layer) -> Tensor:
    """As for a layer among those that are one norm each."""
    return norms([x], on_host=_on_host(layer))[0] if layer.norm_dims is None else eq.norm(x, layer.norm_dims)
