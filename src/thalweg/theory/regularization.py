r"""What a learning rate that is not small adds to the loss.

Descent in steps is not the gradient flow of the loss L. To second order in η, gradient descent with momentum β2 as an
EMA and E in front follows the gradient flow of another loss,

.. math:: L + \frac{η}{4}\,S\,‖∇L‖^2, \qquad S = \frac{1+β_2}{1-β_2} - 2α,

whatever β1, which only says how many steps that takes. A filter that passes the gradient on τ steps late adds 2τ to S:
the EMA is β2/(1-β2) steps late, E is -α. With S > 0 regions of small gradients, flat ones, are favoured, with S < 0
steep ones. At α = 0 and β2 = 0 this is the implicit gradient regularization of Barrett and Dherin (arXiv 2009.11162).
"""

from __future__ import annotations

from thalweg.arguments import check_beta, check_bool, check_finite


def implicit_regularization(alpha: float, *, momentum: float = 0.0, nesterov: bool = False) -> float:
    """S = (1+β2)/(1-β2) - 2α, the strength of the implicit penalty (η/4) S ‖∇L‖² on the gradient norm.

    It describes learning rates well below the stability limit, and steps after the averages have filled.

    Args:
        alpha: α of E; β1 does not matter, beyond |α| < 1/(1-β1).
        momentum: β2 in [0, 1), as an EMA: η is that of :func:`thalweg.theory.stability_limit`.
        nesterov: whether the base's momentum is Nesterov's, which takes 2 β2 off.

    Returns:
        S, without unit: 1 for gradient descent, 19 for momentum 0.9.

    Raises:
        ValueError: an argument outside its range, named with its value.

    >>> implicit_regularization(-5.0)
    11.0
    """
    check_finite("alpha", alpha)
    check_beta("momentum", momentum)
    check_bool("nesterov", nesterov)
    return (1.0 + momentum) / (1.0 - momentum) - 2.0 * momentum * nesterov - 2.0 * alpha
