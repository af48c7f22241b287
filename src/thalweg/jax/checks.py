"""Checks of hyperparameters of which some may be arrays, traced or schedules.

Numbers and arrays are judged early and by value, arrays in all their entries. What has no value yet passes: an array
that is traced (``optax.inject_hyperparams``, ``jax.vmap``), and a schedule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from thalweg.arguments import is_number, reject

if TYPE_CHECKING:
    from collections.abc import Callable


def check_number(argument: str, value: object, allowed: str, holds: Callable[[float], bool]) -> None:
    """Raise ``ValueError`` unless ``holds`` for a number, for each entry of an array, or who knows of a traced one."""
    if not isinstance(value, jax.core.Tracer):
        known = _numbers(value)
        if known is None or not all(map(holds, known.flat)):
            reject(argument, value, allowed)


def _numbers(value: Any) -> np.ndarray | None:
    """A number or an array of real numbers in float64; None for anything else."""
    if is_number(value):
        return np.asarray(float(value))
    array = isinstance(value, jax.Array | np.ndarray)
    real = array and any(jax.numpy.issubdtype(value.dtype, kind) for kind in (np.integer, np.floating))
    return np.asarray(value, np.float64) if real else None


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
        check_number(argument, value, "a number in [0, inf)", lambda x: 0.0 <= x < math.inf)


def check_eps(argument: str, value: object) -> None:
    """Raise ``ValueError`` unless value is at least the smallest normal float32: a gradient of 0 gives 0/0 else."""
    tiny = float(np.finfo(np.float32).tiny)
    allowed = f"a number in [{tiny:.3g}, inf), as 0/0 is all there is of a gradient that is 0"
    check_number(argument, value, allowed, lambda x: tiny <= x < math.inf)


def check_beta(argument: str, value: object) -> None:
    """Raise ``ValueError`` unless 0 <= value < 1."""
    check_number(argument, value, "a number in [0, 1)", lambda x: 0.0 <= x < 1.0)


def check_exploration(alpha: object, beta: object, *, names: tuple[str, str]) -> None:
    """Raise ``ValueError`` unless 0 <= β1 < 1 and |α| < 1/(1-β1), the paper's condition.

    >>> check_exploration(2.0, 0.5, names=("alpha", "beta"))
    Traceback (most recent call last):
    ValueError: alpha must be a number in (-2, 2), as |alpha| < 1/(1 - beta) with beta=0.5, got 2.0
    """
    a, b = names
    check_beta(b, beta)
    if callable(alpha):
        return
    if not is_number(beta):
        allowed = f"a number with |{a}| < 1/(1 - {b})"
        check_number(a, alpha, allowed, math.isfinite)
        if any(isinstance(x, jax.core.Tracer) for x in (alpha, beta)):
            return
        known_alpha, known_beta = _numbers(alpha), _numbers(beta)
        if not np.all(np.abs(known_alpha) * (1.0 - known_beta) < 1.0):  # type: ignore[operator,arg-type]
            reject(a, alpha, allowed)
        return
    known = float(beta)  # type: ignore[arg-type]
    limit = 1.0 / (1.0 - known)
    allowed = f"a number in (-{limit:g}, {limit:g}), as |{a}| < 1/(1 - {b}) with {b}={known:g}"
    check_number(a, alpha, allowed, lambda x: abs(x) * (1.0 - known) < 1.0)


def check_clip(argument: str, clip: object) -> tuple[float, float] | None:
    """``clip`` as None or a pair of numbers 0 <= lo <= hi, from a list of any kind; ``ValueError`` if it is neither.

    >>> check_clip("trust_clip", [0, 10.0])
    (0, 10.0)
    """
    if clip is None:
        return None
    clip = as_tuple(clip)
    pair = isinstance(clip, tuple) and len(clip) == 2 and all(map(is_number, clip))
    if not pair or not 0.0 <= clip[0] <= clip[1]:  # type: ignore[index]
        reject(argument, clip, "None or (lo, hi) with 0 <= lo <= hi")
    lo, hi = map(plain, clip)  # type: ignore[call-overload]
    return lo, hi


def as_tuple(value: object) -> Any:
    """A list, NumPy's and OmegaConf's too, as a tuple; anything else as it is."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return tuple(value.tolist())
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes | tuple) else value
