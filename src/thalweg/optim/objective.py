r"""The objective that E gives a base which evaluates the closure itself, such as LBFGS or SAM.

Within one step such a base looks at several points θ, and compares losses and gradients between them. E changes the
gradient at the step's first point θ_k by :math:`s = α a_k = c\,(g_k - b_{k-1})`. What keeps the base's view consistent
is to hold s fixed for the whole step: :math:`g + s` is the gradient of

.. math:: \tilde ℓ(θ) = ℓ(θ) + s · (θ - θ_k),

the loss plus a linear term. So a line search sees a function and its true slope, curvature pairs within the step are
those of ℓ, since a linear term has no Hessian, and at θ_k the loss is ℓ itself. Between steps s changes, and with it
the pair that LBFGS forms across the boundary; its own test of curvature guards that one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from thalweg.evaluation import fresh_casts
from thalweg.kernels import compute_dtype
from thalweg.torch_private import version_of


class ShiftedObjective:
    r"""A closure for :math:`\tilde ℓ`: while it is open, ``p.grad`` holds g + s; closed, it is the closure's own again.

    The closure has been evaluated at θ_k once, and the first call at unchanged parameters returns that evaluation.

    Args:
        closure: the user's closure.
        loss: its value at θ_k.
        params: the parameters that are shifted; ``p.grad`` is the gradient at θ_k.
        shifts: s of each.
        watched: the parameters on which the loss depends.
    """

    def __init__(
        self,
        closure: Callable[[], Any],
        loss: Any,
        params: list[Tensor],
        shifts: list[Tensor],
        watched: list[Tensor],
    ) -> None:
        self.closure, self.params, self.shifts, self.watched = closure, params, shifts, watched
        self.start = [p.detach().clone() for p in params]
        self._shift(loss)

    def _shift(self, loss: Any) -> None:
        self.loss = loss
        self.gradients = [p.grad for p in self.params]
        for p, g, s in zip(self.params, self.gradients, self.shifts, strict=True):
            p.grad = s if g is None else g + s
        self.shown = [p.grad for p in self.watched]
        self.versions = self._versions()

    def _versions(self) -> list[int]:
        """Of the parameters and of the gradients shown for them: the base may have changed either in place."""
        return [version_of(t) for t in (*self.watched, *self.shown) if t is not None]

    def __call__(self) -> Any:
        r"""The loss of :math:`\tilde ℓ` at the present parameters, its gradient in ``p.grad``."""
        if self.versions == self._versions():
            for p, shown in zip(self.watched, self.shown, strict=True):
                p.grad = shown
            return self.loss
        self.close()
        with torch.enable_grad(), fresh_casts():  # the base has moved the parameters
            loss = self.closure()
        with torch.no_grad():
            for p, s, start in zip(self.params, self.shifts, self.start, strict=True):
                moved = (p - start).to(compute_dtype(p.dtype))
                loss = loss + torch.sum(moved * s.conj()).real
            self._shift(loss)
        return loss

    def close(self) -> None:
        """Give ``p.grad`` back."""
        for p, g in zip(self.params, self.gradients, strict=True):
            p.grad = g
