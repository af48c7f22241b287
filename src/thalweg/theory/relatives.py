"""Methods that are E at some α and β1, exactly: each gives the setting and its source.

Each is tested against the other side's own code. Around plain SGD two of them need another learning rate or start,
which their documentation says.
"""

from __future__ import annotations

from typing import NamedTuple

from thalweg.arguments import check_beta, check_finite, check_nonnegative, check_positive, reject


class Setting(NamedTuple):
    """α and β1 of E, as :class:`thalweg.E` takes them: ``E(optimizer, *setting)``."""

    alpha: float
    beta: float


def quasi_hyperbolic(nu: float, momentum: float) -> Setting:
    """QHM with weight ν of the average: E(SGD) without momentum, at the same learning rate.

    QHM's update (1-ν) g + ν b, with b the EMA of the gradient at its momentum, is E's g + c (g - b_{k-1}) at c = -ν β1.

    Source: Ma and Yarats, arXiv 1810.06801.

    Args:
        nu: ν with ν · momentum in (-1, 1). QHM takes it from [0, 1]; α > 0 is a negative ν.
        momentum: QHM's momentum in (0, 1), which becomes β1.

    Raises:
        ValueError: an argument outside its range, named with its value.

    >>> quasi_hyperbolic(nu=0.5, momentum=0.5)
    Setting(alpha=-0.5, beta=0.5)
    """
    _check_open(momentum)
    check_finite("nu", nu)
    if abs(nu) * momentum >= 1.0:
        reject("nu", nu, f"a number in (-{1 / momentum:g}, {1 / momentum:g}), as |nu| < 1/momentum")
    return Setting(-nu * momentum / (1.0 - momentum), momentum)


def nesterov_instead_of_momentum(momentum: float) -> Setting:
    """Nesterov's SGD of torch, as E around SGD without momentum: with ``lr / (1 - momentum)`` in place of ``lr``.

    Here c = -β1²: QHM at ν = β1 (arXiv 1810.06801, section 4).

    Args:
        momentum: that of ``SGD(nesterov=True)``, in (0, 1).

    Raises:
        ValueError: ``momentum`` outside its range.

    >>> nesterov_instead_of_momentum(0.5)
    Setting(alpha=-0.5, beta=0.5)
    """
    _check_open(momentum)
    return quasi_hyperbolic(momentum, momentum)


def nesterov_in_front_of_momentum(momentum: float) -> Setting:
    """Nesterov's SGD of torch, as E around ``SGD(momentum=momentum)`` at the same learning rate: α = μ, β1 = 0.

    Args:
        momentum: that of the base, in [0, 1).

    Raises:
        ValueError: ``momentum`` outside its range.

    >>> nesterov_in_front_of_momentum(0.9)
    Setting(alpha=0.9, beta=0.0)
    """
    check_beta("momentum", momentum)
    return Setting(momentum, 0.0)


def adams_bashforth() -> Setting:
    """The two-step Adams-Bashforth integrator of the gradient flow θ' = -∇L: E(SGD) without momentum.

    θ ← θ - η (3/2 g_k - 1/2 g_{k-1}): errors of order η², where gradient descent (Euler) has η. S is 0, and the stable
    range half that of gradient descent. The slides' default for small batches, α = 0.5 and β1 = 0.01, is close to it.

    Source: Hairer, Nørsett and Wanner, Solving Ordinary Differential Equations I, section III.1.

    >>> adams_bashforth()
    Setting(alpha=0.5, beta=0.0)
    """
    return Setting(0.5, 0.0)


def mars(gamma: float, momentum: float) -> Setting:
    """MARS in its approximate form and without its clip to norm 1: E around AdamW with the same betas.

    Its corrected gradient is g + γ β/(1-β) (g - g_{k-1}).

    Source: Yuan et al., arXiv 2411.10438, MARS-approx.

    Args:
        gamma: γ ≥ 0, with γ β/(1-β) < 1.
        momentum: β in [0, 1), MARS's ``betas[0]``.

    Raises:
        ValueError: an argument outside its range, named with its value.

    >>> round(mars(gamma=0.025, momentum=0.95).alpha, 3)
    0.475
    """
    check_nonnegative("gamma", gamma)
    check_beta("momentum", momentum)
    alpha = gamma * momentum / (1.0 - momentum)
    if alpha >= 1.0:
        limit = (1.0 - momentum) / momentum
        reject("gamma", gamma, f"a number in [0, {limit:g}), as gamma < (1 - momentum)/momentum")
    return Setting(alpha, 0.0)


def pid(derivative: float, momentum: float) -> Setting:
    """The PID optimizer without its integral: E(SGD) without momentum, with E's b started at the first gradient.

    The D of a PID controller, filtered by the momentum: α its weight, β1 its filter.

    Source: An et al., A PID Controller Approach for Stochastic Optimization of Deep Networks, CVPR 2018.

    Args:
        derivative: the weight of the D, with derivative · (1 - momentum) in (-1, 1).
        momentum: in [0, 1).

    Raises:
        ValueError: an argument outside its range, named with its value.

    >>> pid(derivative=5.0, momentum=0.9)
    Setting(alpha=5.0, beta=0.9)
    """
    check_beta("momentum", momentum)
    check_finite("derivative", derivative)
    if abs(derivative) * (1.0 - momentum) >= 1.0:
        limit = 1.0 / (1.0 - momentum)
        reject("derivative", derivative, f"a number in (-{limit:g}, {limit:g}), as |derivative| < 1/(1 - momentum)")
    return Setting(derivative, momentum)


def look_ahead_offset(ema: float, lr: float, alpha: float) -> float:
    """Where plain SGD is, seen from the iterate of E(SGD) without momentum: y_k - θ_k = η α b_{k-1}.

    At constant η the y_k are plain SGD, y_{k+1} = y_k - η g_k, with gradients taken at θ_k: by |α| averaged steps ahead
    of y along its own way (α > 0), or behind (α < 0). So E adds no drift, only this displacement.

    Args:
        ema: b_{k-1}, E's buffer ``explore_ema`` before step k; a number, or an array or tensor of any shape.
        lr: learning rate η.
        alpha: α of E.

    Returns:
        What to add to θ_k; of the shape of ``ema``.

    >>> look_ahead_offset(ema=2.0, lr=0.5, alpha=-5.0)
    -5.0
    """
    return lr * alpha * ema


def _check_open(momentum: float) -> None:
    check_positive("momentum", momentum, below=1.0)
