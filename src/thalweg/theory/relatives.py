"""Methods that are E at some α and β1, exactly: each gives the setting and its source.

Each is tested against the other side's own code. Those whose own numbers are α and β1 need no function:
``docs/what-e-does.md`` of the repository lists them all.
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
    check_positive("momentum", momentum, below=1.0)
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
    return quasi_hyperbolic(momentum, momentum)


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
