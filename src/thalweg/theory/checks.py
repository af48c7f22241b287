"""Checks of arguments, with the texts of :mod:`thalweg.optim.hyperparameters` but without torch."""

from __future__ import annotations

import math
from numbers import Real
from typing import NoReturn


def reject(argument: str, value: object, allowed: str) -> NoReturn:
    """Raise the one kind of ``ValueError`` this package raises for a bad argument."""
    raise ValueError(f"{argument} must be {allowed}, got {value!r}")


def check_finite(argument: str, value: object) -> None:
    """Raise ``ValueError`` unless -inf < value < inf."""
    if not (_is_number(value) and math.isfinite(value)):  # type: ignore[arg-type]
        reject(argument, value, "a number in (-inf, inf)")


def check_nonnegative(argument: str, value: object) -> None:
    """Raise ``ValueError`` unless 0 <= value < inf.

    >>> check_nonnegative("eta_lambda", -1)
    Traceback (most recent call last):
    ValueError: eta_lambda must be a number in [0, inf), got -1
    """
    if not (_is_number(value) and 0.0 <= value < math.inf):  # type: ignore[operator]
        reject(argument, value, "a number in [0, inf)")


def check_positive(argument: str, value: object, *, below: float = math.inf) -> None:
    """Raise ``ValueError`` unless 0 < value < ``below``."""
    if not (_is_number(value) and 0.0 < value < below):  # type: ignore[operator]
        reject(argument, value, f"a number in (0, {below:g})")


def check_beta(argument: str, value: object) -> None:
    """Raise ``ValueError`` unless 0 <= value < 1."""
    if not (_is_number(value) and 0.0 <= value < 1.0):  # type: ignore[operator]
        reject(argument, value, "a number in [0, 1)")


def check_bool(argument: str, value: object) -> None:
    """Raise ``ValueError`` unless value is True or False."""
    if not isinstance(value, bool):
        reject(argument, value, "True or False")


def check_exploration(alpha: float, beta: float) -> None:
    """Raise ``ValueError`` unless 0 <= β1 < 1 and |α| < 1/(1-β1).

    >>> check_exploration(2.0, 0.5)
    Traceback (most recent call last):
    ValueError: alpha must be a number in (-2, 2), as |alpha| < 1/(1 - beta) with beta=0.5, got 2.0
    """
    check_beta("beta", beta)
    if not (_is_number(alpha) and abs(alpha) * (1.0 - beta) < 1.0):
        limit = 1.0 / (1.0 - beta)
        reject("alpha", alpha, f"a number in (-{limit:g}, {limit:g}), as |alpha| < 1/(1 - beta) with beta={beta:g}")


def check_filter(alpha: float, beta: float, momentum: float, nesterov: bool) -> None:
    """Raise ``ValueError`` for the first of these that is out of range."""
    check_exploration(alpha, beta)
    check_beta("momentum", momentum)
    check_bool("nesterov", nesterov)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
