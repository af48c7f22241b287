r"""The mathematics: pure functions of tensors, readable beside the paper.

Source: "Exploring Landscapes for Better Minima along Valleys", NeurIPS 2025, arXiv 2510.27153.

The paper's adaptor keeps two buffers, the previous gradient and the EMA of gradient differences,

.. math:: a_k = β_1 a_{k-1} + (1-β_1)(g_k - g_{k-1}), \qquad g'_k = g_k + α a_k.

One is enough. With :math:`b` the EMA of the gradient itself and :math:`a_0 = b_0 = g_0 = 0`, linearity gives
:math:`a_k = b_k - b_{k-1} = (1-β_1)(g_k - b_{k-1})`, hence

.. math:: g'_k = g_k + c\,(g_k - b_{k-1}), \qquad c = α(1-β_1).

The paper's constraint :math:`|α| < 1/(1-β_1)` reads :math:`|c| < 1`.

Every function works on tensors of one parameter, in their own dtype (float32 or float64), allocates its results and
modifies nothing. ``Scalar`` arguments are Python numbers or 0-d tensors.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor

Scalar: TypeAlias = "float | Tensor"


def gain(alpha: float, beta: float) -> float:
    """The gain c = α(1-β1) of the adaptor E.

    >>> gain(alpha=0.5, beta=0.5)
    0.25
    """
    return alpha * (1.0 - beta)


def explore(g: Tensor, b: Tensor, *, alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    """E, the adaptor: what the original optimizer sees, and the next EMA of the gradient.

    h_k = g_k + c (g_k - b_{k-1}) with c = α(1-β1), and b_k = β1 b_{k-1} + (1-β1) g_k: two points on the line from
    b_{k-1} through g_k, the first beyond the gradient (c > 0, exploit) or short of it (c < 0, explore).

    Args:
        g: gradient g_k, any shape.
        b: EMA of the gradient b_{k-1}, the shape of ``g``.
        alpha: scaling factor α.
        beta: persistence factor β1.

    Returns:
        ``(h_k, b_k)``.

    >>> h, b = explore(torch.tensor(1.0), torch.tensor(0.0), alpha=0.5, beta=0.5)
    >>> h.item(), b.item()
    (1.25, 0.5)
    """
    # From g, not from b: 1 + c would round a small c in float32.
    return torch.lerp(g, b, -gain(alpha, beta)), torch.lerp(b, g, 1.0 - beta)


def moments(h: Tensor, m: Tensor, v: Tensor, *, beta2: float, beta3: float) -> tuple[Tensor, Tensor]:
    """First and second moments: m_k = β2 m_{k-1} + (1-β2) h_k and v_k = β3 v_{k-1} + (1-β3) h_k²."""
    return torch.lerp(m, h, 1.0 - beta2), torch.lerp(v, h * h, 1.0 - beta3)


def bias_correction(beta: float, step: Scalar) -> Scalar:
    """1 - β^k, the weight that an EMA from zero has gathered after k ≥ 1 steps.

    On a 0-d float32 ``step`` the textbook form loses five digits at β = 0.999; ``expm1`` loses none.

    >>> bias_correction(0.5, 2)
    0.75
    """
    if isinstance(step, Tensor):
        return torch.ones_like(step) if beta == 0.0 else -torch.expm1(step * math.log(beta))
    return float(1.0 - beta**step)


def direction(m: Tensor, v: Tensor, *, correction2: Scalar, correction3: Scalar, eps: float) -> Tensor:
    """Adam's direction m̂ / (√v̂ + ε1) with m̂ = m / (1-β2^k) and v̂ = v / (1-β3^k)."""
    return (m / correction2) / ((v / correction3).sqrt() + eps)


def trust_ratio(
    theta_norm: Tensor,
    r_norm: Tensor,
    *,
    eps: float,
    clip: tuple[float, float] | None,
    ratio_clip: tuple[float, float] | None = None,
) -> Tensor:
    """LAMB's ratio φ(‖θ‖) / (‖r‖ + ε2 φ(‖θ‖)), elementwise over layers, clamped to ``ratio_clip = (lo, hi)``.

    φ is the identity, or clamps to ``clip = (lo, hi)``. Where φ(‖θ‖) = 0 (a zero-initialised layer) the ratio is 1, or
    the layer would never move; where ‖r‖ = 0 it is 1 too, and r = 0 moves nothing. Neither of these is clamped.

    >>> trust_ratio(torch.tensor([2.0, 0.0]), torch.tensor([4.0, 4.0]), eps=0.0, clip=None)
    tensor([0.5000, 1.0000])
    """
    phi = theta_norm if clip is None else theta_norm.clamp(*clip)
    ratio = phi / (r_norm + eps * phi)
    if ratio_clip is not None:
        ratio = ratio.clamp(*ratio_clip)
    found: Tensor = torch.where((phi > 0) & (r_norm > 0), ratio, torch.ones_like(phi))
    return found


def norm(x: Tensor, dims: tuple[int, ...] | None = None) -> Tensor:
    """The 2-norm of a layer, 0-d; or over ``dims`` alone, of each layer stacked in x, in a shape that broadcasts.

    In float64, as the squares of 1e25 and 1e-25 are beyond float32; what float64 cannot square either is divided by its
    1-norm first.

    >>> norm(torch.tensor([[3.0, 4.0], [6.0, 8.0]]), dims=(1,))
    tensor([[ 5.],
            [10.]], dtype=torch.float64)
    """
    keep = dims is not None
    if x.dtype != torch.float64 and x.device.type != "mps":  # which has no float64
        wide: Tensor = torch.linalg.vector_norm(x, dim=dims, keepdim=keep, dtype=torch.float64)
        return wide
    total = torch.linalg.vector_norm(x, 1, dim=dims, keepdim=keep)
    scale = torch.where((total > 0) & (total < math.inf), total, 1.0)
    scaled: Tensor = scale * torch.linalg.vector_norm(x / scale, dim=dims, keepdim=keep)
    return scaled


def clip_coefficient(total_norm: Tensor, max_norm: float) -> Tensor:
    """min(1, max_norm / (‖g‖ + 1e-6)): the factor of :func:`torch.nn.utils.clip_grad_norm_`, as a 0-d tensor.

    >>> clip_coefficient(torch.tensor(0.5), 1.0)
    tensor(1.)
    """
    return (max_norm / (total_norm + 1e-6)).clamp(max=1.0)
