"""Sharpness as a live optimizer sees it: the curvature in the coordinates in which its steps are plain momentum.

Near a minimum an optimizer with diagonal scaling makes the steps of momentum in other coordinates: with D its diagonal,
θ ← θ - ηD m. There the Hessian is (ηD)^½ H (ηD)^½, and its largest eigenvalue is the ηλ that
:func:`thalweg.theory.stability_limit` bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from thalweg import equations as eq
from thalweg.arguments import reject
from thalweg.kernels.rounding import wide
from thalweg.landscape.derivatives import check_whole
from thalweg.landscape.eigen import Eigenpairs, hessian_eigenpairs
from thalweg.landscape.samples import Loss
from thalweg.landscape.vectors import flat
from thalweg.optim.adaptor import E
from thalweg.optim.alto import ALTO
from thalweg.optim.exploration import ALPHA, BETA
from thalweg.optim.lamb import Lamb
from thalweg.theory import stability_limit

Group: TypeAlias = dict[str, Any]
Diagonal: TypeAlias = Callable[[Tensor, dict[str, Any], Group], "Tensor | float"]
Setting: TypeAlias = tuple[float, float, float, bool]
"""α, β1, momentum, and whether it is Nesterov's: what the stability limit depends on."""


@dataclass(frozen=True, slots=True)
class Rates:
    """The diagonal ηD of an optimizer's next step.

    Attributes:
        params: the parameters that have state (or, of SGD, a gradient).
        rates: ηD for each of them, in its shape; η that of momentum written as an average.
        settings: of all groups.
    """

    params: list[Tensor]
    rates: list[Tensor]
    settings: set[Setting]


@dataclass(frozen=True, slots=True)
class PreconditionedSharpness:
    """Sharpness in an optimizer's own coordinates.

    Attributes:
        eta_lambda: the k largest eigenvalues of (ηD)^½ H (ηD)^½, descending, η that of momentum as an average.
        limit: ``stability_limit(alpha, beta, momentum=...)`` of the optimizer, what the largest is to be compared with;
            None if groups differ in α, β1 or momentum.
        pairs: the eigenvectors, in the coordinates u of θ = (ηD)^½ u, and error bars.
    """

    eta_lambda: Tensor
    limit: float | None
    pairs: Eigenpairs

    @property
    def share(self) -> float:
        """Of the limit: about 1 at the edge of stability."""
        if self.limit is None:
            raise ValueError("alpha, beta and momentum must be the same in all groups for one limit; see eta_lambda")
        return self.eta_lambda[0].item() / self.limit


def preconditioned_sharpness(
    loss: Loss,
    optimizer: Optimizer,
    k: int = 1,
    *,
    tolerance: float | None = None,
    errors: bool = True,
) -> PreconditionedSharpness:
    """The k largest eigenvalues of (ηD)^½ H (ηD)^½, with D from the optimizer's state as it is now.

    D is 1 for SGD; 1/(√v + ε) for RMSprop; 1/((1-β^t)(√v̂ + ε)) for Adam and AdamW, v̂ corrected for bias (arXiv
    2207.14484); the same times each layer's trust ratio φ(‖θ‖)/(‖r‖ + ε2 φ(‖θ‖)) for LAMB and ALTO, r from the state.
    With E in front D is the base's.

    What it is compared with: the largest with ``stability_limit(α, β1, momentum=β2)``, in full batch or with large
    batches; β2 is ``betas[0]`` of Adam, LAMB and ALTO, ``momentum`` of SGD and RMSprop, whose momentum is a sum, so
    that η = lr/(1-β2) there. That limit is for a D and H that stand still: √v̂ changes slowly, over 1/(1-β3) steps, but
    LAMB's trust ratio within one, as ‖r‖ does, and at its η of .01 so does H: see
    :class:`~thalweg.landscape.Swing`. Weight decay is not in H: add Adam's coupled one to the loss.

    Args:
        loss: a closure or a :class:`~thalweg.landscape.FixedSample`.
        optimizer: SGD, RMSprop, Adam, AdamW, Lamb or ALTO, or E around one of the first four.
        k: how many.
        tolerance: of the eigenvalues, as of :func:`~thalweg.landscape.hessian_eigenpairs`.
        errors: whether to spend a pass over the sample on standard errors.

    Raises:
        ValueError: another optimizer, one without state yet, or one of sharded parameters.
    """
    found = rates(optimizer)
    scale = flat(found.rates).sqrt()
    pairs = hessian_eigenpairs(loss, found.params, k, scale=scale, tolerance=tolerance, errors=errors)
    return PreconditionedSharpness(pairs.values, limit_of(found.settings), pairs)


def limit_of(settings: set[Setting]) -> float | None:
    """The stability limit of all groups; None if it is not the same setting in all."""
    if len(settings) != 1:
        return None
    ((alpha, beta, momentum, nesterov),) = settings
    return stability_limit(alpha, beta, momentum=momentum, nesterov=nesterov)


def has_diagonal(optimizer: Optimizer) -> bool:
    """Whether the diagonal of an optimizer is known."""
    return type(optimizer.base if isinstance(optimizer, E) else optimizer) in _DIAGONALS


def check_diagonal(optimizer: Optimizer) -> None:
    """Raise ``ValueError`` if the diagonal of an optimizer is not known."""
    if not has_diagonal(optimizer):
        base = optimizer.base if isinstance(optimizer, E) else optimizer
        names = " or ".join(one.__name__ for one in _DIAGONALS)
        reject("optimizer", type(base).__name__, f"{names}, or E around one of these")


def momentum_of(optimizer: Optimizer, group: Group) -> float:
    """The momentum of a group, as an average."""
    return _momentum(optimizer.base if isinstance(optimizer, E) else optimizer, group)[1]


@torch.no_grad()
def rates(optimizer: Optimizer) -> Rates:
    """The diagonal ηD of an optimizer, and what its stability limit depends on.

    Raises:
        ValueError: an optimizer without a known diagonal, one that ascends, one that has made no step yet, or one of
            sharded parameters.
    """
    check_diagonal(optimizer)
    base = optimizer.base if isinstance(optimizer, E) else optimizer
    check_whole(p for group in base.param_groups for p in group["params"])
    params, found, settings = [], [], set()
    for group in base.param_groups:
        if group.get("maximize"):
            reject("optimizer", "one with maximize=True", "one that descends")
        eta, momentum, nesterov = _momentum(base, group)
        here = [p for p in group["params"] if p.requires_grad and (type(base) is SGD or _stepped(base.state.get(p)))]
        for p in here:
            diagonal = eta * _DIAGONALS[type(base)](p, base.state.get(p, {}), group)
            params.append(p)
            found.append(torch.as_tensor(diagonal).to(p).expand_as(p))
        if here:
            settings.add((*exploration(optimizer, group), momentum, nesterov))
    if not params:
        reject("optimizer", f"{type(base).__name__} without state", "one that has made a step")
    return Rates(params, found, settings)


def exploration(optimizer: Optimizer, group: Group) -> tuple[float, float]:
    """α and β1 of a group, 0 without E."""
    if isinstance(optimizer, E):
        return float(group[ALPHA]), float(group[BETA])
    return (float(group["alpha"]), float(group["beta"])) if isinstance(optimizer, ALTO) else (0.0, 0.0)


def is_adapted(group: Group) -> bool:
    """Whether the layers of a group of LAMB's have a trust ratio."""
    choice = group["trust_ratio"]
    return bool(group["weight_decay"] > 0.0 if choice == "decayed" else choice)


def trust_ratio(p: Tensor, m: Tensor, v: Tensor, step: float, group: Group) -> Tensor:
    """LAMB's trust ratio of a layer whose moments are m and v at a step; 0-d, or in a shape that broadcasts."""
    theta, decay = p.detach().to(m.dtype), group["weight_decay"]
    second, third = corrections(group, step)
    r = eq.direction(m, v, correction2=second, correction3=third, eps=group["eps"])
    if group["decoupled_decay"]:
        theta = theta * (1.0 - float(group["lr"]) * decay)
    else:
        r = r + decay * theta
    norms = (eq.norm(x, group["norm_dims"]) for x in (theta, r))
    return eq.trust_ratio(*norms, eps=group["trust_eps"], clip=group["trust_clip"], ratio_clip=group["ratio_clip"])


def corrections(group: Group, step: float) -> tuple[float, float]:
    """1 - β^k of both moments at a step, or 1 and 1 without bias correction."""
    if not group.get("bias_correction", True):
        return 1.0, 1.0
    first, second = (float(eq.bias_correction(float(beta), step)) for beta in group["betas"])
    return first, second


def _stepped(state: dict[str, Any] | None) -> bool:
    return bool(state) and float(state["step"]) > 0.0  # type: ignore[index]


def _momentum(base: Optimizer, group: Group) -> tuple[float, float, bool]:
    """η of momentum as an average, momentum, and whether it is Nesterov's."""
    lr = float(group["lr"])
    if isinstance(base, SGD | RMSprop):
        momentum = float(group["momentum"])
        fresh = 1.0 - float(group.get("dampening", 0.0)) if momentum else 1.0
        return lr * fresh / (1.0 - momentum), momentum, bool(group.get("nesterov", False))
    return lr, float(group["betas"][0]), False


def _plain(p: Tensor, state: dict[str, Any], group: Group) -> float:
    return 1.0


def _rmsprop(p: Tensor, state: dict[str, Any], group: Group) -> Tensor:
    square = state["square_avg"] - state["grad_avg"].square() if group["centered"] else state["square_avg"]
    diagonal: Tensor = 1.0 / (square.sqrt() + group["eps"])
    return diagonal


def _adam(p: Tensor, state: dict[str, Any], group: Group) -> Tensor:
    v = wide(state["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"], torch.float64)
    first, second = corrections(group, float(state["step"]))
    diagonal: Tensor = 1.0 / (first * ((v / second).sqrt() + group["eps"]))
    return diagonal


def _lamb(p: Tensor, state: dict[str, Any], group: Group) -> Tensor:
    diagonal = _adam(p, state, group)
    if not is_adapted(group):
        return diagonal
    m, v = (wide(state[name], torch.float64) for name in ("exp_avg", "exp_avg_sq"))
    return trust_ratio(p, m, v, float(state["step"]), group) * diagonal


_DIAGONALS: dict[type[Optimizer], Diagonal] = {
    SGD: _plain,
    RMSprop: _rmsprop,
    Adam: _adam,
    AdamW: _adam,
    Lamb: _lamb,
    ALTO: _lamb,
}
