"""How options are read: values, lists, a configuration file; errors say what may be given, and what was.

Each command is a function of one dataclass, a field an option with its documentation, default and check, read by
Cyclopts from the command line or from a YAML file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cyclopts import Parameter, Token
from cyclopts.config import Dict

from thalweg.records.errors import UserError

MOST = 10_000  # trials, seeds, studies, evaluations
MOST_JOBS = 256
LARGEST = 2**31  # of a batch
ABSENT = ("", "~", "null", "Null", "NULL")
"""What YAML writes for a value that is not given."""
flag = Parameter(negative=(), show_default=False)
"""An option without a value and without its opposite."""


def whole(low: int, high: int | None = None) -> Parameter:
    """An integer from ``low`` to ``high``, or without end."""

    def read(_: Any, tokens: Sequence[Token]) -> int:
        return _integer(tokens[0].value, low, high)

    return Parameter(converter=read, n_tokens=1, allow_leading_hyphen=True)


def wholes(option: str, low: int, high: int) -> Parameter:
    """One or more integers, after each other or with commas."""

    def read(_: Any, tokens: Sequence[Token]) -> tuple[int, ...]:
        texts = [text for token in tokens for text in token.value.split(",")]
        try:
            return tuple(dict.fromkeys(_integer(text, low, high) for text in texts))
        except ValueError as error:
            raise UserError(f"{option} {error}") from None

    return Parameter(converter=read, consume_multiple=True, negative=(), allow_leading_hyphen=True, show_default=False)


def _integer(text: str, low: int, high: int | None) -> int:
    allowed = f"of at least {low}" if high is None else f"from {low} to {high}"
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if not low <= value <= (value if high is None else high):
        raise ValueError(f"must be an integer {allowed}, got {text!r}")
    return value


def at_least(low: float) -> Parameter:
    """A finite number from ``low``."""

    def read(_: Any, tokens: Sequence[Token]) -> float:
        text = tokens[0].value
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value < math.inf:
            raise ValueError(f"must be a number of at least {low:g}, got {text!r}")
        return value

    return Parameter(converter=read, n_tokens=1, allow_leading_hyphen=True)


def names(option: str) -> Parameter:
    """Names separated by commas, each once."""

    def read(_: Any, tokens: Sequence[Token]) -> tuple[str, ...]:
        text = ",".join(token.value for token in tokens)
        found = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
        if text and not found:
            raise UserError(f"{option} must be names separated by commas, got {text!r}")
        return found

    return Parameter(converter=read, negative=(), n_tokens=1, show_default=lambda value: ",".join(value) or None)


several = Parameter(consume_multiple=True, negative=(), show_default=False)


def settings(pairs: Sequence[str], option: str = "--set") -> dict[str, float]:
    """The numbers of ``NAME=NUMBER`` pairs.

    Raises:
        UserError: a pair that is none, or a number that is not finite.
    """
    found: dict[str, float] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (name.strip() and equals and math.isfinite(value)):
            raise UserError(f"{option} must be NAME=NUMBER, got {pair!r}")
        found[name.strip()] = value
    return found


def configured(arguments: list[str]) -> list[Any]:
    """What the files after ``--config`` in a command line say, as Cyclopts takes it.

    Raises:
        UserError: a file that cannot be read, or does not hold options with values.
    """
    found = []
    for at, text in enumerate(arguments):
        option, equals, path = text.partition("=")
        if option == "--config" and (equals or at + 1 < len(arguments)):
            found.append(Dict(_read(Path(path or arguments[at + 1])), source=path or arguments[at + 1],
                              use_commands_as_keys=False))  # fmt: skip
    return found


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.load(path.read_text("utf-8"), Loader=yaml.BaseLoader)  # texts, as they would be typed
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"--config: cannot read {path} ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(found, dict):
        raise UserError(f"--config: {path} must hold options with values")
    return {key.lstrip("-"): _typed(value) for key, value in found.items() if value not in ABSENT}


def _typed(value: Any) -> Any:
    """A value as it would be typed: of a mapping, NAME=VALUE each."""
    return [f"{name}={item}" for name, item in value.items()] if isinstance(value, dict) else value
