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

from thalweg.hyperparameters import check_choice, check_nonnegative, reject

DISTRIBUTIONS = ("rademacher", "normal")


@torch.no_grad()
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

    Memory: ``p.grad`` and the noise of one parameter at a time; no graph, no second copy of the parameters. These are
    moved to θ ± εz and back, in place, so they return to their values up to rounding: in float32 a few units in the
    last place, in bfloat16 more than small updates survive.

    Args:
        loss: evaluates the loss at the present parameters; called 2 ``samples`` times, without grad. For an unbiased
            difference it must use the same mini-batch and the same dropout in each call.
        params: real parameters; those that do not require grad are left alone.
        seed: of z, in [0, 2⁴⁷); give a new one at each step (the step count), and the same one on all ranks.
        eps: ε > 0.
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
    check_nonnegative("eps", eps)
    if eps == 0.0:
        reject("eps", eps, "a number in (0, inf)")
    _check_integer("seed", seed, 0, 1 << 47)
    _check_integer("samples", samples, 1, (1 << 16) + 1)
    check_choice("distribution", distribution, DISTRIBUTIONS)
    moved = [p for p in params if p.requires_grad]
    for p in moved:
        if p.is_complex():
            reject("params", f"one of dtype {p.dtype}", "real")

    def move(distance: float, sample: int) -> None:
        for p, z in zip(moved, _noise(moved, seed, sample, distribution), strict=True):
            p.add_(z, alpha=distance)

    def evaluate(distance: float, sample: int) -> Tensor:
        try:
            return torch.as_tensor(loss())
        except BaseException:  # an interruption too
            move(-distance, sample)
            raise

    total = torch.zeros((), dtype=torch.float64)
    for sample in range(samples):
        move(eps, sample)
        above = evaluate(eps, sample)
        move(-2.0 * eps, sample)
        below = evaluate(-eps, sample)
        move(eps, sample)
        slope = (above.double() - below.double()) / (2.0 * eps * samples)
        for p, z in zip(moved, _noise(moved, seed, sample, distribution), strict=True):
            estimate = z * slope.to(device=p.device, dtype=p.dtype)
            p.grad = estimate if p.grad is None else p.grad.add_(estimate)
        total = total.to(above.device) + (above.double() + below.double()) / (2.0 * samples)
    return total


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


def _check_integer(argument: str, value: object, low: int, end: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value < end:
        reject(argument, value, f"an integer in [{low}, {end})")
