r"""Gradient estimation without backpropagation, to go in front of any optimizer and of E.

Simultaneous perturbation (SPSA, Spall 1992) with z of independent entries of mean 0 and variance 1:

.. math:: \hat g = \frac{ℓ(θ + εz) - ℓ(θ - εz)}{2ε}\, z, \qquad E[\hat g] = ∇ℓ(θ) + O(ε^2)

Two evaluations of the loss a sample, whatever the number of parameters; the variance grows with it. z is never stored:
it is drawn again from its seed each time it is needed (MeZO, arXiv 2305.17333).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from thalweg.arguments import check_choice, check_integer, check_positive, reject
from thalweg.evaluation import fresh_casts, seed_generators, undisturbed
from thalweg.kernels import compute_dtype

DISTRIBUTIONS = ("rademacher", "normal")


@torch.no_grad()
@undisturbed()
def spsa(
    loss: Callable[[], Any],
    params: Iterable[Tensor],
    *,
    seed: int,
    eps: float = 1e-3,
    samples: int = 1,
    distribution: str = "rademacher",
) -> Tensor:
    """Add an SPSA estimate of the gradient to ``p.grad``, as ``backward`` would add the gradient.

    The parameters are moved to θ ± εz in place, and are again what they were, bit for bit, when it is over, also if the
    loss raises. Where their dtype has no numbers so close to θ, in bfloat16 where |θ| > 128 ε, they move by |θ| 2⁻⁷,
    one or two of its steps; the estimate is made with the distance that each entry has moved after rounding.

    All evaluations draw the same random numbers, one mask of dropout, which ``seed`` and torch's own seed decide.
    Buffers, such as the statistics of batch norm, and the states of torch's generators are afterwards what they were:
    whoever trains batch norm by estimates alone has to let its statistics see the data in passes of their own.

    Memory: no graph; a copy of the parameters while the loss is evaluated, which is given back before ``p.grad`` is
    made; and the noise and two temporaries of one parameter at a time.

    Args:
        loss: evaluates the loss at the present parameters; called 2 ``samples`` times, without grad, within autocast if
            the call is. For an unbiased difference it must use the same mini-batch in each call.
        params: real parameters; those that do not require grad are left alone.
        seed: of z, in [0, 2⁴⁷); give a new one at each step (the step count), and the same one on all ranks.
        eps: ε > 0, the distance at which the loss is looked at, or more where the dtype needs it.
        samples: estimates to average, at most 65536.
        distribution: of z's entries: "rademacher" (±1, the least variance) or "normal".

    Returns:
        The mean of all evaluations, an estimate of the loss, 0-d. Under data parallelism each rank estimates from its
        own data: average ``p.grad`` over ranks as for any gradient.

    Raises:
        ValueError: an argument out of range, or a complex parameter.

    >>> p = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    >>> value = spsa(lambda: (p * torch.tensor([3.0, 0.0])).sum(), [p], seed=0)  # slope (3, 0)
    >>> round(value.item(), 6), round(p.grad[0].item(), 6)
    (3.0, 3.0)
    """
    check_positive("eps", eps)
    seed = check_integer("seed", seed, 0, 1 << 47)
    samples = check_integer("samples", samples, 1, (1 << 16) + 1)
    check_choice("distribution", distribution, DISTRIBUTIONS)
    moved = list(dict.fromkeys(p for p in params if p.requires_grad))
    for p in moved:
        if p.is_complex():
            reject("params", f"one of dtype {p.dtype}", "real")

    drawn = _mixed(seed ^ torch.initial_seed())

    def evaluate() -> Tensor:
        seed_generators(drawn)
        with fresh_casts():  # A copy: a loss may be written to the same memory each time.
            return torch.as_tensor(loss()).to(torch.float64, copy=True).reshape(())

    values: list[tuple[Tensor, Tensor]] = []
    originals = [p.detach().clone() for p in moved]
    try:
        for sample in range(samples):
            ends = []
            for side in (1.0, -1.0):
                noise = _noise(moved, seed, sample, distribution)
                for p, original, z in zip(moved, originals, noise, strict=True):
                    p.copy_(_moved(original, z, side * eps))
                ends.append(evaluate())
            values.append((ends[0], ends[1]))
    finally:
        for p, original in zip(moved, originals, strict=True):
            p.copy_(original)
        originals.clear()

    for sample, (above, below) in enumerate(values):
        slope = (above - below) / samples
        for p, z in zip(moved, _noise(moved, seed, sample, distribution), strict=True):
            _add(p, _weight(p, z, eps, distribution), slope)
    return torch.stack([end for pair in values for end in pair]).mean()


def _add(p: Tensor, weight: Tensor, slope: Tensor) -> None:
    """Add slope · weight, which is written over, to the gradient."""
    estimate = weight.mul_(slope.to(device=p.device, dtype=weight.dtype)).to(p.dtype)
    p.grad = estimate if p.grad is None else p.grad.add_(estimate)


def _moved(theta: Tensor, z: Tensor, distance: float) -> Tensor:
    """θ + distance · z in the dtype of θ, by the :func:`_reach` of each entry at least."""
    shift = _reach(theta, abs(distance)).mul_(z)
    return (shift.neg_() if distance < 0.0 else shift).add_(theta).to(theta.dtype)


def _reach(theta: Tensor, eps: float) -> Tensor:
    """ε, or if more |θ| times the dtype's relative precision, which is at least the step to the next number."""
    limits = torch.finfo(theta.dtype)
    least = max(eps, limits.smallest_normal * limits.eps)
    return theta.abs().to(compute_dtype(theta.dtype)).mul_(limits.eps).clamp_(min=least)


def _weight(theta: Tensor, z: Tensor, eps: float, distribution: str) -> Tensor:
    """What the difference of the losses is multiplied with: a mean of 1 with the distance moved, of 0 with any other.

    With signs alone the distance is known but for z's sign. With normal z it is 2 reach z in the mean, rounding to
    nearest included: on an even grid whose steps are no wider than the reach, E[z round(z)] is 1 to 8 digits.
    """
    if distribution == "normal":
        return _reach(theta, eps).mul_(2.0).reciprocal_().mul_(z)
    above, below = (_moved(theta, z, side).to(compute_dtype(theta.dtype)) for side in (eps, -eps))
    return above.sub_(below).reciprocal_()


def _noise(params: list[Tensor], seed: int, sample: int, distribution: str) -> Iterable[Tensor]:
    """z of each parameter in turn, the same at every call."""
    generators: dict[torch.device, torch.Generator] = {}
    for p in params:
        if p.device not in generators:
            generators[p.device] = torch.Generator(p.device).manual_seed(_mixed((seed << 16) + sample))
        z = torch.empty_like(p)
        if distribution == "normal":
            yield z.normal_(generator=generators[p.device])
        else:
            yield z.bernoulli_(0.5, generator=generators[p.device]).mul_(2.0).sub_(1.0)


def _mixed(seed: int) -> int:
    """32 bits in which all 63 have a part: torch's generator on the CPU leaves out all but the lowest 32."""
    return (seed * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF) >> 32
