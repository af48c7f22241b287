"""One parameter at a time, straight from the equations: for reading, and the oracle of the faster backends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thalweg import equations as eq
from thalweg.backends import Hyper, Layer, compute_dtype

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def step(layers: Sequence[Layer], hyper: Hyper, grad_scale: Tensor | None) -> None:
    """One step of ALTO on each layer, in place; ``grad_scale`` multiplies every gradient."""
    for layer in layers:
        dtype = compute_dtype(layer.param.dtype)
        theta, g = layer.param.to(dtype), layer.grad.to(dtype)
        if hyper.maximize:
            g = -g
        if grad_scale is not None:
            g = g * grad_scale

        h = g
        if layer.explore_ema is not None:
            h, b = eq.explore(g, layer.explore_ema.to(dtype), alpha=hyper.alpha, beta=hyper.beta1)
            layer.explore_ema.copy_(b)
        m, v = eq.moments(h, layer.exp_avg.to(dtype), layer.exp_avg_sq.to(dtype), beta2=hyper.beta2, beta3=hyper.beta3)
        layer.exp_avg.copy_(m)
        layer.exp_avg_sq.copy_(v)

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
            rate = rate * eq.trust_ratio(eq.norm(theta), eq.norm(r), eps=hyper.trust_eps, clip=hyper.trust_clip)
        layer.param.copy_(theta - rate * r)
