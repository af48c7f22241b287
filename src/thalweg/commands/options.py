"""How options are read: numbers, names, folders; errors say what may be given, and what was.

Each command is a function of one dataclass, a field an option with its documentation, default and check. Cyclopts reads
them, from the command line and from a file (:mod:`thalweg.commands.option_file`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter, Token

from thalweg.arguments import did_you_mean
from thalweg.records.errors import UserError
from thalweg.records.regimen import MESH_AXES

if TYPE_CHECKING:
    from thalweg.sharding.plan import Mesh

MOST = 10_000  # trials, seeds, studies, evaluations
MOST_JOBS = 256
LARGEST = 2**31  # of a batch
YES, NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def whole(low: int, high: int | None = None) -> Parameter:
    """An integer from ``low`` to ``high``, or without end."""
    return _value(lambda text: _integer(text, low, high))


def wholes(option: str, low: int, high: int) -> Parameter:
    """One or more integers, after each other or with commas."""

    def read(_: Any, tokens: Sequence[Token]) -> tuple[int, ...]:
        texts = [text for token in tokens for text in token.value.split(",")]
        try:
            return tuple(dict.fromkeys(_integer(text, low, high) for text in texts))
        except ValueError as error:
            raise UserError(f"{option} {error}") from None

    return Parameter(converter=read, consume_multiple=True, negative=(), show_default=False)


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

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value < math.inf:
            raise ValueError(f"must be a number of at least {low:g}, got {text!r}")
        return value

    return _value(number)


def above_zero() -> Parameter:
    """A finite number above 0."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0.0 < value < math.inf:
            raise ValueError(f"must be a number above 0, got {text!r}")
        return value

    return _value(number)


def _value(of: Callable[[str], Any]) -> Parameter:
    return Parameter(converter=lambda _, tokens: of(tokens[0].value), n_tokens=1)


def names(option: str) -> Parameter:
    """Names separated by commas, each once."""

    def read(_: Any, tokens: Sequence[Token]) -> tuple[str, ...]:
        text = ",".join(token.value for token in tokens)
        found = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
        if tokens and not found:
            raise UserError(f"{option} must be names separated by commas, got {text!r}")
        return found

    return Parameter(converter=read, negative=(), n_tokens=1, show_default=lambda value: ",".join(value) or None)


def _path(kind: str) -> Parameter:
    def path(text: str) -> Path:
        if not text:
            raise ValueError(f"must be the name of a {kind}, got ''")
        return Path(text)

    return _value(path)


def _switched(_: Any, tokens: Sequence[Token]) -> bool:
    """Of a file; on the command line the option's name says all."""
    text = tokens[0].value
    if text.lower() not in (*YES, *NO):
        raise ValueError(f"must be true or false, got {text!r}")
    return (text.lower() in YES) != (tokens[0].keyword or "").startswith("[no-")


file, folder = _path("file"), _path("folder")
switch = Parameter(converter=_switched)
flag = Parameter(converter=_switched, negative=(), show_default=False)
"""A switch that is off unless it is given."""
several = Parameter(consume_multiple=True, negative=(), show_default=False)


def assignments(pairs: Iterable[str], option: str) -> dict[str, float]:
    """Texts NAME=NUMBER, after each other or with commas, as a dictionary.

    Raises:
        UserError: a text that is none, a number that is not finite, a name that is given twice.
    """
    found: dict[str, float] = {}
    for pair in (one for text in pairs for one in text.split(",")):
        name, _, text = (part.strip() for part in pair.partition("="))
        try:
            value = float(text)
        except ValueError:
            name = ""
        if not name:
            raise UserError(f"{option} must be NAME=NUMBER, got {pair!r}")
        if not math.isfinite(value):
            raise UserError(f"{option}: {name} must be a finite number, got {text!r}")
        if name in found:
            raise UserError(f"{option} must give {name} once, got {found[name]:g} and {text}")
        found[name] = value
    return found


def mesh(given: Iterable[str]) -> Mesh:
    """The mesh of ``--mesh``; 1 along axes that are not named.

    Raises:
        UserError: an axis that there is not, or a size that none can have.
    """
    from thalweg.sharding.plan import Mesh

    sizes: dict[str, Any] = {
        name: int(ranks) if ranks.is_integer() else ranks for name, ranks in assignments(given, "--mesh").items()
    }
    for name in sizes.keys() - {*MESH_AXES}:
        got = f"got {name}={sizes[name]}{did_you_mean(name, MESH_AXES)}"
        raise UserError(f"--mesh must name data, shard, tensor or expert, {got}")
    try:
        return Mesh(**sizes)
    except ValueError as error:
        raise UserError(f"--{error}") from None


UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def memory_size(text: str | None, option: str) -> int | None:
    """A text such as 80GB in bytes; None for None.

    Raises:
        UserError: it is no number above 0 with a unit.
    """
    if text is None:
        return None
    read = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]+)\s*", text)
    unit = {name.lower(): size for name, size in UNITS.items()}.get(read[2].lower()) if read else None
    if read is None or unit is None or not float(read[1]) > 0.0:
        raise UserError(f"{option} must be a number above 0 and one of {', '.join(UNITS)}, such as 80GB, got {text!r}")
    return int(float(read[1]) * unit)
