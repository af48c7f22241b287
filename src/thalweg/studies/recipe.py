"""What a recipe is: an experiment at two scales, in one TOML file, with the claims that it tests."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thalweg.arguments import did_you_mean
from thalweg.records.errors import UserError
from thalweg.records.regimen import REGIMEN, SHARDINGS
from thalweg.studies.paper import Number

if TYPE_CHECKING:
    from collections.abc import Collection

_RECIPES = files("thalweg.studies") / "recipes"
SCALES = ("lab", "paper")
MEASURES = ("test", "training loss", "steps to target")


@dataclass(frozen=True, slots=True)
class Comparison:
    """One table of a scale: a task at a batch size and a length, and who is compared on it.

    ``optimizers`` are contenders' names; ``given`` says settings of those that have them, which
    :func:`~thalweg.studies.resolved.resolved` writes into the names.
    ``epochs`` or ``steps`` says how long; ``trials`` a study, ``studies`` and ``seeds`` how much; ``regimen`` what of
    :class:`~thalweg.records.regimen.Regimen` differs from its defaults. ``micro_batch`` and ``sharding`` say how a run
    is carried out, which decides nothing of it.
    """

    task: str
    batch_size: int
    optimizers: tuple[str, ...]
    epochs: float | None = None
    steps: int | None = None
    trials: int = 6
    studies: int = 1
    seeds: int = 3
    regimen: dict[str, Any] = field(default_factory=dict)
    micro_batch: int | None = None
    sharding: str = "ddp"
    given: dict[str, Any] = field(default_factory=dict)

    def length(self, examples: int) -> int:
        """Its steps, on so many training examples: of each epoch the whole batches."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * (examples // self.batch_size)))


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence of the slides or the paper, and the comparison that tests it.

    ``a`` is said to be better than ``b`` (contenders of the lab scale) by ``measure``; only tables whose task is in
    ``tasks`` (all, if empty) and whose batch size is within ``batch_sizes`` (both ends) count. ``paper`` selects the
    printed numbers; ``paper_a`` and ``paper_b`` are the optimizers' names there.
    """

    says: str
    a: str
    b: str
    measure: str = "test"
    tasks: tuple[str, ...] = ()
    batch_sizes: tuple[int, int] = (1, 2**31)
    paper: dict[str, str] = field(default_factory=dict)
    paper_a: str = ""
    paper_b: str = ""


@dataclass(frozen=True, slots=True)
class Scale:
    """One scale of a recipe: tables to compare, or a measurement of its own, a module, with options.

    ``minutes`` is about how long a measurement takes on two cores.
    """

    about: str
    comparisons: tuple[Comparison, ...] = ()
    measure: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    minutes: float = 0.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """An experiment: what it is, its scales, the claims that it tests, the printed numbers that stand beside."""

    name: str
    title: str
    source: str
    about: str
    scales: dict[str, Scale]
    claims: tuple[Claim, ...] = ()
    beside: tuple[dict[str, str], ...] = ()


def folder() -> str:
    """Where the recipes of the package are."""
    return str(_RECIPES)


def names() -> list[str]:
    """The recipes of the package, in alphabetical order."""
    return sorted(
        one.name[:-5] for one in (files("thalweg.studies") / "recipes").iterdir() if one.name.endswith(".toml")
    )


def text_of(name: str) -> str:
    """The TOML of a recipe of the package."""
    return (_RECIPES / f"{name}.toml").read_text("utf-8")


def find(name: str) -> Recipe:
    """The recipe of this name, or in the file of this name, which ends in ``.toml``.

    Raises:
        UserError: there is none, or it is not what a recipe should be.
    """
    if name.endswith(".toml"):
        try:
            text, stem = Path(name).read_text("utf-8"), Path(name).stem
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read the recipe {name} ({error})") from None
    elif name in names():
        text, stem = text_of(name), name
    else:
        raise UserError(
            f"unknown recipe {name!r}: choose from {', '.join(names())}, or name a file FILE.toml"
            f"{did_you_mean(name, ('list', 'all', *names()))}"
        )
    return read_text(stem, text)


def read_text(name: str, text: str) -> Recipe:
    """The recipe of this name in a text of TOML.

    Raises:
        UserError: something is missing, unknown, or of another type; it says what.
    """
    try:
        return _parse(name, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"the recipe {name} is not valid TOML ({error})") from None
    except ValueError as error:
        raise UserError(f"the recipe {name}: {error}") from None


def _parse(name: str, values: dict[str, Any]) -> Recipe:
    _check_keys("a recipe", values, ("title", "source", "about", "claims", "beside", *SCALES))
    scales = {scale: _scale(scale, _value(values, scale, dict)) for scale in SCALES if scale in values}
    if not scales:
        raise ValueError(f"needs a scale: [{'] or ['.join(SCALES)}]")
    return Recipe(
        name=name,
        title=_value(values, "title", str),
        source=_value(values, "source", str, ""),
        about=_value(values, "about", str, "").strip(),
        scales=scales,
        claims=tuple(map(_claim, _value(values, "claims", list, []))),
        beside=tuple(map(_selection, _value(values, "beside", list, []))),
    )


def _scale(name: str, values: dict[str, Any]) -> Scale:
    about = _value(values, "about", str, "").strip()
    if "measure" in values:
        _check_keys(f"[{name}]", values, ("about", "measure", "options", "minutes"))
        minutes = _positive(values, "minutes") or 0.0
        return Scale(about, (), _value(values, "measure", str), _value(values, "options", dict, {}), minutes)
    tables = _value(values, "tables", list)
    shared = {key: value for key, value in values.items() if key not in ("about", "tables")}
    if not tables or not all(isinstance(one, dict) for one in tables):
        raise ValueError(f"[{name}] needs [[{name}.tables]]")
    return Scale(about, tuple(_comparison(f"[[{name}.tables]]", {**shared, **one}) for one in tables))


def _comparison(where: str, values: dict[str, Any]) -> Comparison:
    own = [one.name for one in dataclasses.fields(Comparison) if one.name != "regimen"]
    _check_keys(where, values, (*own, *REGIMEN))
    optimizers = _value(values, "optimizers", list)
    if not optimizers or not all(isinstance(one, str) for one in optimizers):
        raise ValueError(f'{where} needs optimizers = ["adamw", ...], got {optimizers!r:.60}')
    if ("epochs" in values) == ("steps" in values):
        raise ValueError(f"{where} needs epochs or steps, and not both")
    sharding = _value(values, "sharding", str, "ddp")
    if sharding not in SHARDINGS:
        near = did_you_mean(sharding, SHARDINGS)
        raise ValueError(f"{where}: sharding must be one of {', '.join(SHARDINGS)}, got {sharding!r}{near}")
    return Comparison(
        task=_value(values, "task", str),
        batch_size=_count(values, "batch_size"),
        optimizers=tuple(dict.fromkeys(optimizers)),
        epochs=_positive(values, "epochs"),
        steps=_count(values, "steps") if "steps" in values else None,
        trials=_count(values, "trials", 6),
        studies=_count(values, "studies", 1),
        seeds=_count(values, "seeds", 3),
        regimen={key: values[key] for key in REGIMEN if key in values},
        micro_batch=_count(values, "micro_batch") if "micro_batch" in values else None,
        sharding=sharding,
        given=_value(values, "given", dict, {}),
    )


def _claim(values: object) -> Claim:
    if not isinstance(values, dict):
        raise ValueError(f"[[claims]] must be tables, got {values!r:.60}")
    _check_keys("[[claims]]", values, [one.name for one in dataclasses.fields(Claim)])
    measure = _value(values, "measure", str, "test")
    if measure not in MEASURES:
        near = did_you_mean(measure, MEASURES)
        raise ValueError(f"[[claims]]: measure must be one of {', '.join(MEASURES)}, got {measure!r}{near}")
    sizes = _value(values, "batch_sizes", list, [1, 2**31])
    if len(sizes) != 2 or not all(isinstance(one, int) for one in sizes):
        raise ValueError(f"[[claims]]: batch_sizes must be [least, most], got {sizes!r:.60}")
    return Claim(
        says=_value(values, "says", str), a=_value(values, "a", str), b=_value(values, "b", str), measure=measure,
        tasks=tuple(_value(values, "tasks", list, [])), batch_sizes=(sizes[0], sizes[1]),
        paper=_selection(_value(values, "paper", dict, {})), paper_a=_value(values, "paper_a", str, ""),
        paper_b=_value(values, "paper_b", str, ""),
    )  # fmt: skip


def _selection(values: object) -> dict[str, str]:
    if not isinstance(values, dict):
        raise ValueError(f"what selects printed numbers must be a table, got {values!r:.60}")
    _check_keys("what selects printed numbers", values, [one.name for one in dataclasses.fields(Number)])
    return {key: str(value) for key, value in values.items()}


def _check_keys(where: str, values: dict[str, Any], allowed: Collection[str]) -> None:
    if unknown := sorted(set(values) - set(allowed)):
        near = "".join(did_you_mean(key, allowed) for key in unknown)
        raise ValueError(f"{where} has no {', '.join(unknown)}; it may have {', '.join(sorted(allowed))}{near}")


_REQUIRED = object()


def _value(values: dict[str, Any], key: str, kind: Any, otherwise: Any = _REQUIRED) -> Any:
    found = values.get(key, otherwise)
    if found is _REQUIRED:
        raise ValueError(f"needs {key}")
    if not isinstance(found, kind) or isinstance(found, bool):
        wanted = kind.__name__ if isinstance(kind, type) else "number"
        raise ValueError(f"{key} must be a {wanted}, got {found!r:.60}")
    return found


def _count(values: dict[str, Any], key: str, otherwise: Any = _REQUIRED) -> int:
    found: int = _value(values, key, int, otherwise)
    if found < 1:
        raise ValueError(f"{key} must be at least 1, got {found}")
    return found


def _positive(values: dict[str, Any], key: str) -> float | None:
    if key not in values:
        return None
    found = float(_value(values, key, (int, float)))
    if not found > 0.0:
        raise ValueError(f"{key} must be greater than 0, got {found}")
    return found
