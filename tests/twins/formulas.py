"""The LAMBs whose kernels need CUDA, as their sources say, in NumPy: apex 6424da3, DeepSpeed 0.19.8, oneflow 0.9.0."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from regimes import LR, Arrays


def norm(x: np.ndarray) -> float:
    return float(np.sqrt((x * x).sum()))


def moments(grads: list[Arrays], betas: tuple[float, float], clip: float | None = None) -> Iterator[tuple[int, list]]:
    """(k, (m, v) of each parameter) at each step; gradients are divided by max(1, global norm / clip)."""
    kept = [(np.zeros_like(g), np.zeros_like(g)) for g in grads[0]]
    for k, row in enumerate(grads, 1):
        scale = 1.0 if clip is None else max(1.0, np.sqrt(sum(norm(g) ** 2 for g in row)) / clip)
        kept = [
            (betas[0] * m + (1 - betas[0]) * g / scale, betas[1] * v + (1 - betas[1]) * (g / scale) ** 2)
            for (m, v), g in zip(kept, row, strict=True)
        ]
        yield k, kept


def apex(
    start: Arrays,
    grads: list[Arrays],
    *,
    bias_correction: bool = True,
    eps: float = 1e-6,
    weight_decay: float = 0.01,
    max_grad_norm: float = 1.0,
    use_nvlamb: bool = False,
) -> Iterator[Arrays]:
    params = start
    for k, kept in moments(grads, (0.9, 0.999), max_grad_norm):
        c1, c2 = (1 - 0.9**k, 1 - 0.999**k) if bias_correction else (1.0, 1.0)
        moved = []
        for p, (m, v) in zip(params, kept, strict=True):
            r = (m / c1) / (np.sqrt(v / c2) + eps) + weight_decay * p
            adapts = (use_nvlamb or weight_decay != 0.0) and norm(p) != 0.0 and norm(r) != 0.0
            moved.append(p - LR * (norm(p) / norm(r) if adapts else 1.0) * r)
        params = moved
        yield params


def deepspeed(
    start: Arrays,
    grads: list[Arrays],
    *,
    bias_correction: bool = True,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    max_coeff: float = 10.0,
    min_coeff: float = 0.01,
) -> Iterator[Arrays]:
    params = start
    for k, kept in moments(grads, (0.9, 0.999)):
        rate = LR * np.sqrt(1 - 0.999**k) / (1 - 0.9**k) if bias_correction else LR
        moved = []
        for p, (m, v) in zip(params, kept, strict=True):
            r = m / (np.sqrt(v) + eps) + weight_decay * p
            ratio = min(max(norm(p) / norm(r), min_coeff), max_coeff) if norm(p) != 0.0 and norm(r) != 0.0 else 1.0
            moved.append(p - rate * ratio * r)
        params = moved
        yield params


def oneflow(
    start: Arrays,
    grads: list[Arrays],
    *,
    do_bias_correction: bool = True,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Iterator[Arrays]:
    params = start
    for k, kept in moments(grads, (0.9, 0.999)):
        c1, c2 = (1 - 0.9**k, 1 - 0.999**k) if do_bias_correction else (1.0, 1.0)
        moved = []
        for p, (m, v) in zip(params, kept, strict=True):
            u = (m / c1) / (np.sqrt(v / c2) + eps)
            ratio = norm(p) / norm(u) if norm(p) != 0.0 and norm(u) != 0.0 else 1.0
            moved.append(p - LR * ratio * (u + weight_decay * p))
        params = moved
        yield params
