"""Options of a command line whose errors say what may be given, and what was."""

from __future__ import annotations

import math
from collections.abc import Callable

import typer


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """A parser of integers from ``low`` to ``high``, or without end."""
    allowed = f"of at least {low}" if high is None else f"from {low} to {high}"

    def integer(text: str) -> int:
        try:
            value = int(str(text))  # a configuration file may say true or 2.5
        except ValueError:
            value = low - 1
        if not low <= value <= (value if high is None else high):
            raise typer.BadParameter(f"must be an integer {allowed}, got {text!r}")
        return value

    return integer


def at_least(low: float) -> Callable[[str], float]:
    """A parser of finite numbers from ``low``."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value < math.inf:
            raise typer.BadParameter(f"must be a number of at least {low:g}, got {text!r}")
        return value

    return number


def names(text: str, option: str) -> tuple[str, ...]:
    """Names separated by commas, each once; an empty text is none."""
    found = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if text and not found:
        raise typer.BadParameter(f"must be names separated by commas, got {text!r}", param_hint=option)
    return found
