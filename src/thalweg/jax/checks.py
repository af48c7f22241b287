"""Checks of hyperparameters of which some may be arrays, traced or schedules.

Numbers and arrays are judged early and by value, arrays in all their entries. What has no value yet passes: an array
that is traced (``optax.inject_hyperparams``, ``jax.vmap``), and a schedule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from thalweg import arguments

if TYPE_CHECKING:
    from collections.abc import Callable


def check_each(check: Callable[[str, object], None], argument: str, value: object) -> None:
    """Check a number, or each entry of an array, with a check of :mod:`thalweg.arguments`; a traced one passes.

    >>> check_each(arguments.check_beta, "b1", np.array([0.9, 1.0]))
    Traceback (most recent call last):
    ValueError: b1 must be a number in [0, 1), got 1.0
    """
    if not isinstance(value, jax.core.Tracer):
        for entry in _entries(value).flat:
            check(argument, entry)


def _entries(value: Any) -> np.ndarray:
    """The entries of an array of real numbers, in double precision; anything else as the one entry there is."""
    if isinstance(value, jax.Array | np.ndarray) and any(
        jax.numpy.issubdtype(value.dtype, kind) for kind in (np.integer, np.floating)
    ):
        return np.asarray(value, np.float64).astype(object)
    entry = np.empty((), object)
    entry[()] = value
    return entry


def plain(value: Any) -> Any:
    """A scalar of NumPy as Python's, in the arithmetic of which its dtype would take part; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def check_nonnegative(argument: str, value: object, *, schedule: bool = False) -> None:
    """Raise ``ValueError`` unless 0 <= value < inf; where ``schedule``, a function of the step may stand for it.

    >>> check_nonnegative("learning_rate", -1)
    Traceback (most recent call last):
    ValueError: learning_rate must be a number in [0, inf), got -1
    """
    if not (schedule and callable(value)):
        check_each(arguments.check_nonnegative, argument, value)


def check_exploration(alpha: object, beta: object) -> None:
    """Raise ``ValueError`` unless 0 <= β1 < 1 and |α| < 1/(1-β1), the paper's condition; α may be a schedule.

    >>> check_exploration(2.0, 0.5)
    Traceback (most recent call last):
    ValueError: alpha must be a number in (-2, 2), as |alpha| < 1/(1 - beta) with beta=0.5, got 2.0
    """
    check_each(arguments.check_beta, "beta", beta)
    if callable(alpha) or isinstance(alpha, jax.core.Tracer):
        return
    if isinstance(beta, jax.core.Tracer):
        check_each(arguments.check_finite, "alpha", alpha)
        return
    for one_alpha, one_beta in np.broadcast(_entries(alpha), _entries(beta)):
        arguments.check_exploration(one_alpha, one_beta)


def check_clip(argument: str, clip: object) -> tuple[float, float] | None:
    """``clip`` as None or a pair of numbers 0 <= lo <= hi, from a list of any kind; ``ValueError`` if it is neither.

    >>> check_clip("trust_clip", [0, 10.0])
    (0, 10.0)
    """
    pair = as_tuple(clip)
    arguments.check_clip(argument, pair)
    return None if pair is None else (plain(pair[0]), plain(pair[1]))


def as_tuple(value: object) -> Any:
    """A list, NumPy's and OmegaConf's too, as a tuple; anything else as it is."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return tuple(value.tolist())
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes | tuple) else value
