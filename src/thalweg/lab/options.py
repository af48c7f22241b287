"""Options of a command line whose errors say what may be given, and what was."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import typer

from thalweg.arguments import did_you_mean


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """A parser of integers from ``low`` to ``high``, or without end."""
    allowed = f"of at least {low}" if high is None else f"from {low} to {high}"

    def integer(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= (value if high is None else high):
            raise typer.BadParameter(f"must be an integer {allowed}, got {text!r}")
        return value

    return integer


def real(allowed: str, accepts: Callable[[float], bool]) -> Callable[[str], float]:
    """A parser of finite numbers that ``accepts`` says yes to; ``allowed`` says in words which these are."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and accepts(value)):
            raise typer.BadParameter(f"must be {allowed}, got {text!r}")
        return value

    return number


def at_least(low: float) -> Callable[[str], float]:
    """A parser of finite numbers from ``low``."""
    return real(f"a number of at least {low:g}", lambda value: value >= low)


def share(of: str) -> Callable[[str], float]:
    """A parser of numbers from 0 to below 1."""
    return real(f"{of} in [0, 1)", lambda value: 0.0 <= value < 1.0)


def one_of(*known: str) -> Callable[[str], str]:
    """A parser of a choice."""

    def choice(text: str) -> str:
        if text not in known:
            listed = f"{', '.join(known[:-1])} or {known[-1]}"
            raise typer.BadParameter(f"must be {listed}, got {text!r}{did_you_mean(text, known)}")
        return text

    return choice


def folder(text: str) -> Path:
    """A parser of a folder's name."""
    if not text:
        raise typer.BadParameter("must be the name of a folder, got ''")
    return Path(text)


def names(text: str, option: str) -> tuple[str, ...]:
    """Names separated by commas, each once; an empty text is none."""
    found = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if text and not found:
        raise typer.BadParameter(f"must be names separated by commas, got {text!r}", param_hint=option)
    return found


def assignments(pairs: Iterable[str], option: str) -> dict[str, float]:
    """Texts NAME=NUMBER, as a dictionary."""
    found: dict[str, float] = {}
    for pair in pairs:
        name, _, text = (part.strip() for part in pair.partition("="))
        try:
            value = float(text)
        except ValueError:
            name = ""
        if not name:
            raise typer.BadParameter(f"must be NAME=NUMBER, got {pair!r}", param_hint=option)
        if not math.isfinite(value):
            raise typer.BadParameter(f"{name} must be a finite number, got {text!r}", param_hint=option)
        if name in found:
            raise typer.BadParameter(f"must give {name} once, got {found[name]:g} and {text}", param_hint=option)
        found[name] = value
    return found
