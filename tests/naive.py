"""The paper's algorithms as its slides print them, for one tensor in float64: the oracle.

Written from the slides, with both buffers of E, sharing nothing with the package. One object holds one tensor; its
``step`` takes the gradient and moves ``theta``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class NaiveE:
    """a_k = β1 a_{k-1} + (1-β1)(g_k - g_{k-1}),  g'_k = g_k + α a_k,  a_0 = g_0 = 0."""

    def __init__(self, alpha: float, beta: float) -> None:
        self.alpha, self.beta = alpha, beta
        self.a: Tensor | float = 0.0
        self.previous: Tensor | float = 0.0

    def __call__(self, g: Tensor) -> Tensor:
        self.a = self.beta * self.a + (1 - self.beta) * (g - self.previous)
        self.previous = g.clone()
        return g + self.alpha * self.a


class NaiveSGD:
    """SGD with weight decay and momentum as torch defines them: the first buffer is the gradient itself."""

    def __init__(
        self,
        theta: Tensor,
        *,
        lr: float,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        self.theta = theta.detach().clone()
        self.lr, self.momentum, self.dampening = lr, momentum, dampening
        self.nesterov, self.weight_decay = nesterov, weight_decay
        self.buffer: Tensor | None = None

    def step(self, g: Tensor) -> None:
        g = g + self.weight_decay * self.theta
        if self.momentum:
            self.buffer = g if self.buffer is None else self.momentum * self.buffer + (1 - self.dampening) * g
            g = g + self.momentum * self.buffer if self.nesterov else self.buffer
        self.theta = self.theta - self.lr * g


class NaiveAdam:
    """Adam (Kingma & Ba): weight decay is part of the gradient."""

    decoupled = False

    def __init__(
        self, theta: Tensor, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0
    ) -> None:
        self.theta = theta.detach().clone()
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.m, self.v = torch.zeros_like(theta), torch.zeros_like(theta)
        self.k = 0

    corrected = True

    def direction(self, g: Tensor) -> Tensor:
        beta2, beta3 = self.betas
        self.k += 1
        self.m = beta2 * self.m + (1 - beta2) * g
        self.v = beta3 * self.v + (1 - beta3) * g**2
        m_hat = self.m / (1 - beta2**self.k) if self.corrected else self.m
        v_hat = self.v / (1 - beta3**self.k) if self.corrected else self.v
        return m_hat / (v_hat.sqrt() + self.eps)

    def step(self, g: Tensor) -> None:
        if not self.decoupled:
            self.theta = self.theta - self.lr * self.direction(g + self.weight_decay * self.theta)
        else:
            self.theta = self.theta - self.lr * (self.direction(g) + self.weight_decay * self.theta)


class NaiveAdamW(NaiveAdam):
    """AdamW (Loshchilov & Hutter): weight decay beside Adam's direction."""

    decoupled = True


class NaiveLamb(NaiveAdam):
    """Lines 4 to 9 of the slides' ALTO; φ is the identity, and where ‖θ‖ = 0 the ratio is 1."""

    def __init__(self, theta: Tensor, *, trust_eps: float, **adam: object) -> None:
        super().__init__(theta, **adam)
        self.trust_eps = trust_eps

    def step(self, g: Tensor) -> None:
        r = self.direction(g) + self.weight_decay * self.theta
        phi = self.theta.square().sum().sqrt()
        r_norm = r.square().sum().sqrt()
        if phi == 0:
            self.theta = self.theta - self.lr * r
        elif r_norm > 0:
            self.theta = self.theta - self.lr * r * phi / (r_norm + self.trust_eps * phi)


class NaiveOtherLamb(NaiveLamb):
    """What other libraries' LAMBs do otherwise: no bias correction, decay before the step, a clamp of the ratio."""

    def __init__(
        self,
        theta: Tensor,
        *,
        bias_correction: bool = True,
        decoupled_decay: bool = False,
        ratio_clip: tuple[float, float] | None = None,
        **lamb: object,
    ) -> None:
        super().__init__(theta, **lamb)
        self.corrected, self.decay_before, self.ratio_clip = bias_correction, decoupled_decay, ratio_clip

    def step(self, g: Tensor) -> None:
        if self.decay_before:
            self.theta = self.theta * (1 - self.lr * self.weight_decay)
            r = self.direction(g)
        else:
            r = self.direction(g) + self.weight_decay * self.theta
        phi, r_norm = self.theta.square().sum().sqrt(), r.square().sum().sqrt()
        ratio = 1.0
        if phi > 0 and r_norm > 0:
            ratio = float(phi / (r_norm + self.trust_eps * phi))
            if self.ratio_clip is not None:
                ratio = min(max(ratio, self.ratio_clip[0]), self.ratio_clip[1])
        self.theta = self.theta - self.lr * ratio * r


class WithE:
    """E in front of one of the above; with :class:`NaiveLamb` that is ALTO."""

    def __init__(
        self, rule: Callable[[Tensor], NaiveSGD | NaiveAdam], theta: Tensor, alpha: float, beta: float
    ) -> None:
        self.rule = rule(theta)
        self.e = NaiveE(alpha, beta)

    @property
    def theta(self) -> Tensor:
        return self.rule.theta

    def step(self, g: Tensor) -> None:
        self.rule.step(self.e(g))
