"""Checks of hyperparameters: one error that names the argument, the value and the allowed range."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, NoReturn

from torch import Tensor


def reject(argument: str, value: object, allowed: str) -> NoReturn:
    """Raise the one kind of ``ValueError`` this package raises for a bad hyperparameter."""
    raise ValueError(f"{argument} must be {allowed}, got {value!r}")


def check_nonnegative(argument: str, value: object) -> None:
    """Raise ``ValueError`` unless 0 <= value < inf; a one-element tensor counts as its value.

    >>> check_nonnegative("lr", -1)
    Traceback (most recent call last):
    ValueError: lr must be a number in [0, inf), got -1
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if not (is_number(value) and 0.0 <= float(value) < math.inf):  # type: ignore[arg-type]
        reject(argument, value, "a number in [0, inf)")


def check_beta(argument: str, value: object) -> None:
    """Raise ``ValueError`` unless 0 <= value < 1."""
    if not (is_number(value) and 0.0 <= float(value) < 1.0):  # type: ignore[arg-type]
        reject(argument, value, "a number in [0, 1)")


def check_betas(betas: Any, count: int) -> tuple[float, ...]:
    """``betas`` as a tuple of ``count`` numbers in [0, 1), or ``ValueError``."""
    if not isinstance(betas, tuple | list) or len(betas) != count:
        reject("betas", betas, f"{count} numbers in [0, 1)")
    for i, beta in enumerate(betas):
        check_beta(f"betas[{i}]", beta)
    return tuple(betas)


def check_exploration(alpha: object, beta: float, *, names: tuple[str, str]) -> None:
    """Raise ``ValueError`` unless |α| < 1/(1-β1), the paper's condition; ``beta`` has been checked.

    >>> check_exploration(2.0, 0.5, names=("alpha", "beta"))
    Traceback (most recent call last):
    ValueError: alpha must be a number in (-2, 2), as |alpha| < 1/(1 - beta) with beta=0.5, got 2.0
    """
    limit = 1.0 / (1.0 - beta)
    # Compared as a gain, |α|(1-β1) < 1: the quotient rounds.
    if not (is_number(alpha) and abs(float(alpha)) * (1.0 - beta) < 1.0):  # type: ignore[arg-type]
        a, b = names
        reject(a, alpha, f"a number in (-{limit:g}, {limit:g}), as |{a}| < 1/(1 - {b}) with {b}={beta:g}")


def check_bool(argument: str, value: object, *, none: bool = False) -> None:
    """Raise ``ValueError`` unless value is True or False (or None, where ``none``)."""
    if not (isinstance(value, bool) or (none and value is None)):
        reject(argument, value, "True, False or None" if none else "True or False")


def is_number(value: object) -> bool:
    """Whether value is a real number; True and False are not."""
    return isinstance(value, Real) and not isinstance(value, bool)
