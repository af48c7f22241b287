"""Checks of numbers and choices: one error that names the argument, its value and what is allowed; without torch."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from fractions import Fraction
from numbers import Real
from typing import NoReturn

TINY = 2.0**-126  # the least normal number of float32


def reject(argument: str, value: object, allowed: str) -> NoReturn:
    """Raise the one kind of ``ValueError`` this package raises for a bad argument."""
    raise ValueError(f"{argument} must be {allowed}, got {value!r}")


def reject_name(argument: str, name: str, allowed: str, known: Iterable[str]) -> NoReturn:
    """Raise the ``ValueError`` of :func:`reject` for a name that is not known, with the nearest that is."""
    raise ValueError(f"{argument} must be {allowed}, got {name!r}{did_you_mean(name, known)}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest of the known names, as a question to put behind an error; empty where none is near.

    >>> did_you_mean("AdamW2", ["sgd", "adamw"]), did_you_mean("lion", ["sgd", "adamw"])
    ("; did you mean 'adamw'?", '')
    """
    plain = {_plain(one): one for one in known}
    near = get_close_matches(_plain(name), plain, n=1)
    return f"; did you mean {plain[near[0]]!r}?" if near else ""


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").lstrip("-")


def is_number(value: object) -> bool:
    """Whether value is a real number, NumPy's too; True, False, fractions and integers beyond all floats are not."""
    if not isinstance(value, Real) or isinstance(value, bool | Fraction):
        return False
    return not isinstance(value, int) or abs(value) <= sys.float_info.max


def as_integer(value: object) -> int | None:
    """An integer, NumPy's too, as Python's; None if the value is none. True and False are not integers here.

    >>> as_integer(3), as_integer(3.0), as_integer(True)
    (3, None, None)
    """
    try:
        return None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def check_integer(argument: str, value: object, low: int, end: int | None = None) -> int:
    """The value as Python's int, or ``ValueError`` unless it is an integer with low <= value < end.

    >>> check_integer("steps", 0, 1)
    Traceback (most recent call last):
    ValueError: steps must be an integer of at least 1, got 0
    """
    found = as_integer(value)
    if found is None or found < low or (end is not None and found >= end):
        reject(argument, value, f"an integer of at least {low}" if end is None else f"an integer in [{low}, {end})")
    return found


def check_finite(argument: str, value: object) -> None:
    """Raise ``ValueError`` unless -inf < value < inf."""
    if not (is_number(value) and math.isfinite(value)):  # type: ignore[arg-type]
        reject(argument, value, "a number in (-inf, inf)")


def check_nonnegative(argument: str, value: object) -> None:
    """Raise ``ValueError`` unless 0 <= value < inf.

    >>> check_nonnegative("lr", -1)
    Traceback (most recent call last):
    ValueError: lr must be a number in [0, inf), got -1
    """
    if not (is_number(value) and 0.0 <= value < math.inf):  # type: ignore[operator]
        reject(argument, value, "a number in [0, inf)")


def check_eps(argument: str, value: object) -> None:
    """Raise ``ValueError`` unless value is at least the smallest normal float32: a gradient of 0 gives 0/0 else."""
    if not (is_number(value) and TINY <= value < math.inf):  # type: ignore[operator]
        reject(argument, value, f"a number in [{TINY:.3g}, inf), as 0/0 is all there is of a gradient that is 0")


def check_clip(argument: str, clip: object) -> None:
    """Raise ``ValueError`` unless clip is None or a pair of numbers 0 <= lo <= hi."""
    pair = isinstance(clip, tuple) and len(clip) == 2 and all(map(is_number, clip))
    if clip is not None and not (pair and 0.0 <= clip[0] <= clip[1]):  # type: ignore[index]
        reject(argument, clip, "None or (lo, hi) with 0 <= lo <= hi")


def check_positive(argument: str, value: object, *, below: float = math.inf) -> None:
    """Raise ``ValueError`` unless 0 < value < ``below``."""
    if not (is_number(value) and 0.0 < value < below):  # type: ignore[operator]
        reject(argument, value, f"a number in (0, {below:g})")


def check_beta(argument: str, value: object) -> None:
    """Raise ``ValueError`` unless 0 <= value < 1."""
    if not (is_number(value) and 0.0 <= value < 1.0):  # type: ignore[operator]
        reject(argument, value, "a number in [0, 1)")


def check_exploration(alpha: object, beta: float, *, names: tuple[str, str] = ("alpha", "beta")) -> None:
    """Raise ``ValueError`` unless 0 <= β1 < 1 and |α| < 1/(1-β1), the paper's condition.

    >>> check_exploration(2.0, 0.5)
    Traceback (most recent call last):
    ValueError: alpha must be a number in (-2, 2), as |alpha| < 1/(1 - beta) with beta=0.5, got 2.0
    """
    a, b = names
    check_beta(b, beta)
    # Compared as a gain, |α|(1-β1) < 1: the quotient rounds.
    if not (is_number(alpha) and abs(alpha) * (1.0 - beta) < 1.0):  # type: ignore[arg-type]
        limit = 1.0 / (1.0 - beta)
        reject(a, alpha, f"a number in (-{limit:g}, {limit:g}), as |{a}| < 1/(1 - {b}) with {b}={beta:g}")


def check_bool(argument: str, value: object, *, none: bool = False) -> None:
    """Raise ``ValueError`` unless value is True or False (or None, where ``none``)."""
    if not (isinstance(value, bool) or (none and value is None)):
        reject(argument, value, "True, False or None" if none else "True or False")


def check_choice(argument: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless value is one of the allowed strings; of a string it names the nearest.

    >>> check_choice("nonfinite", "skp", ("skip", "raise"))
    Traceback (most recent call last):
    ValueError: nonfinite must be 'skip' or 'raise', got 'skp'; did you mean 'skip'?
    """
    if not isinstance(value, str):
        reject(argument, value, " or ".join(map(repr, allowed)))
    if value not in allowed:
        reject_name(argument, value, " or ".join(map(repr, allowed)), allowed)
