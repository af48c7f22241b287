"""One parameter at a time, straight from the equations: for reading, and the oracle of the faster backends."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thalweg import equations as eq
from thalweg.backends import Hyper, Layer, Scales, compute_dtype, store


def step(layers: Sequence[Layer], hyper: Hyper, scales: Scales) -> None:
    """One step of ALTO on each layer, in place."""
    for layer in layers:
        dtype = compute_dtype(layer.param.dtype)
        theta, g = layer.param.to(dtype), layer.grad.to(dtype)
        if hyper.maximize:
            g = -g
        if scales.grad is not None:
            g = g * scales.grad

        h, b = g, None
        if layer.explore_ema is not None:
            h, b = eq.explore(g, layer.explore_ema.to(dtype), alpha=hyper.alpha, beta=hyper.beta1)
        m, v = eq.moments(h, layer.exp_avg.to(dtype), layer.exp_avg_sq.to(dtype), beta2=hyper.beta2, beta3=hyper.beta3)
        r = eq.direction(
            m,
            v,
            correction2=eq.bias_correction(hyper.beta2, layer.step),
            correction3=eq.bias_correction(hyper.beta3, layer.step),
            eps=hyper.eps,
        )
        if hyper.weight_decay != 0.0:
            r = r + hyper.weight_decay * theta
        rate = hyper.lr
        if hyper.trust_ratio:
            theta_norm, r_norm = (eq.norm(x, layer.norm_dims) for x in (theta, r))
            rate = rate * eq.trust_ratio(theta_norm, r_norm, eps=hyper.trust_eps, clip=hyper.trust_clip)

        _write(layer.exp_avg, m, scales.go)
        _write(layer.exp_avg_sq, v, scales.go)
        if layer.explore_ema is not None and b is not None:
            _write(layer.explore_ema, b, scales.go)
        moved = theta - rate * r
        store(layer, moved if scales.go is None else torch.where(scales.go > 0, moved, theta), hyper)


def _write(target: Tensor, value: Tensor, go: Tensor | None) -> None:
    target.copy_(value if go is None else torch.where(go > 0, value, target))
