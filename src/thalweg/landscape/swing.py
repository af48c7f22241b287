r"""Sharpness over the last steps of an optimizer: what decides whether its swings grow, where one place does not.

An instability takes steps to grow, and takes part in the loss of all the places that it passes. Where θ and the
optimizer's rates hardly change in these steps, as with SGD and Adam, :func:`preconditioned_sharpness` of the last is
enough. LAMB's steps have the length that η gives them, and at a large η neighbouring places have Hessians, and steps
trust ratios, that differ by factors.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from thalweg.arguments import check_integer, reject
from thalweg.evaluation import undisturbed
from thalweg.landscape.derivatives import Curvature, check_whole, moved_to
from thalweg.landscape.eigen import Eigenpairs, largest
from thalweg.landscape.preconditioned import (
    PreconditionedSharpness,
    Setting,
    check_diagonal,
    limit_of,
    momentum_of,
    rates,
)
from thalweg.landscape.samples import Loss
from thalweg.landscape.vectors import empty_like, flat


class Step(NamedTuple):
    """Where a step began, and its rates ηD, of each parameter."""

    places: list[Tensor]
    rates: list[Tensor]


class Swing:
    r"""The last steps of a live optimizer, and the sharpness over them.

    With ρ_t = ηD the rates of step t, u_t = θ_t - θ_{t+1} the step, and so u_t/ρ_t the momentum that it followed,

    .. math:: \bar ρ = \frac{\sum_t u_t^2/ρ_t}{\sum_t u_t^2/ρ_t^2}, \qquad \bar H = \frac1T \sum_t H(θ_t)

    are the rates at which momentum would have made these steps, in least squares and entry by entry, and the Hessian
    over them. :meth:`sharpness` is the largest eigenvalue of ρ̄^½ H̄ ρ̄^½. On a quadratic on which LAMB changes sign at
    every step it is exactly :func:`thalweg.theory.stability_limit`; in slower orbits what
    :func:`thalweg.theory.fixed_length_orbit` says.

    Args:
        optimizer: one that :func:`~thalweg.landscape.preconditioned_sharpness` takes. Watched from now on, by hooks on
            its steps, until :meth:`close`.
        steps: T, at least 2, an even number if iterates change sign. None: the horizon of the momentum, 1/(1-β2), at
            least 2: 10 for .9.

    The last T places and rates are kept, 2T times the memory of the parameters, and T products with a Hessian make one.

    Raises:
        ValueError: another optimizer, one of sharded parameters, or ``steps`` out of its range.

    >>> p = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> optimizer = torch.optim.SGD([p], lr=0.1)
    >>> swing = Swing(optimizer)
    >>> for _ in range(3):
    ...     optimizer.zero_grad()
    ...     (p.square() * torch.tensor([1.0, 4.0])).sum().backward()
    ...     optimizer.step()
    >>> swing.sharpness(lambda: (p.square() * torch.tensor([1.0, 4.0])).sum()).eta_lambda
    tensor([0.8000])
    """

    def __init__(self, optimizer: Optimizer, steps: int | None = None) -> None:
        check_diagonal(optimizer)
        check_whole(p for group in optimizer.param_groups for p in group["params"])
        if steps is None:
            longest = max(momentum_of(optimizer, group) for group in optimizer.param_groups)
            steps = max(2, round(1.0 / (1.0 - longest)))
        self.steps = check_integer("steps", steps, 2)
        self.optimizer = optimizer
        self.last: deque[Step] = deque(maxlen=self.steps)
        self.params: list[Tensor] = []
        self.settings: set[Setting] = set()
        self._before: dict[Tensor, Tensor] = {}
        self._hooks = [
            optimizer.register_step_pre_hook(self._begin),
            optimizer.register_step_post_hook(self._end),
        ]

    def close(self) -> None:
        """Stop watching. What was seen stays."""
        for hook in self._hooks:
            hook.remove()

    def _begin(self, *_: Any) -> None:
        self._before = {
            p: p.detach().clone() for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad
        }

    def _end(self, *_: Any) -> None:
        before = list(self._before)
        if all(p.grad is None for p in before):
            return
        with moved_to(before, flat(list(self._before.values()))):  # trust ratios are those of where the step began
            found = rates(self.optimizer)
        if len(found.params) != len(self.params) or any(p is not q for p, q in zip(found.params, self.params)):  # noqa: B905
            self.last.clear()  # a parameter that has joined has no step to average over
        self.params, self.settings = found.params, found.settings
        self.last.append(Step([self._before[p] for p in found.params], found.rates))
        self._before = {}

    @undisturbed()
    def sharpness(self, loss: Loss, k: int = 1, *, tolerance: float | None = None) -> PreconditionedSharpness:
        """The k largest eigenvalues of ρ̄^½ H̄ ρ̄^½, and the limit they are to be compared with.

        Args:
            loss: a closure or a :class:`~thalweg.landscape.FixedSample`; parameters are moved, and moved back.
            k: how many.
            tolerance: of the eigenvalues, as of :func:`~thalweg.landscape.hessian_eigenpairs`.

        Raises:
            ValueError: fewer than T steps were seen, or the loss is not finite at one of the places.
        """
        if len(self.last) < self.steps:
            reject("optimizer", f"one seen for {len(self.last)} steps", f"one seen for {self.steps} steps")
        params, like = self.params, empty_like(self.params)
        scale = flat(equivalent_rates(self.last, [p.detach() for p in params])).to(like).sqrt()

        def times(vector: Tensor) -> Tensor:
            total = torch.zeros_like(vector)
            for step in self.last:
                with moved_to(params, flat(step.places)):
                    total += Curvature(loss, params, scale=scale).times(vector.to(like))
            return total / len(self.last)

        values, vectors, products = largest(times, like, k, tolerance=tolerance)
        residuals = torch.stack([(times(v) - x * v).norm() for x, v in zip(values, vectors, strict=True)])
        errors = torch.full_like(values, math.nan)
        pairs = Eigenpairs(values.cpu(), vectors, residuals.cpu(), errors.cpu(), products + len(values))
        return PreconditionedSharpness(pairs.values, limit_of(self.settings), pairs)


def equivalent_rates(steps: Sequence[Step], end: Sequence[Tensor]) -> list[Tensor]:
    """Of each entry the rate at which momentum would have made these steps, in least squares; the last if none moved.

    Args:
        steps: one after the other, without a gap.
        end: where the last one led.
    """
    found = []
    for at, last in enumerate(end):
        places = [*(step.places[at] for step in steps), last]
        above = below = torch.zeros_like(last, dtype=torch.float64)
        for step, here, there in zip(steps, places, places[1:], strict=False):
            rate = step.rates[at].double()
            momentum = (here - there).double() / rate
            above, below = above + rate * momentum.square(), below + momentum.square()
        found.append(torch.where(below > 0.0, above / below, steps[-1].rates[at].double()).to(last))
    return found
