"""What a recipe is: an experiment at two scales, in one TOML file, with the claims that it tests."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Collection
from dataclasses import MISSING, dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from thalweg.arguments import as_integer, check_choice, did_you_mean, is_number
from thalweg.records.errors import UserError
from thalweg.records.regimen import MESH_AXES, REGIMEN, RESHARDS, SHARDINGS
from thalweg.studies.paper import Number

_RECIPES = files("thalweg.studies") / "recipes"
SCALES = ("lab", "paper")
CARRIED = ("micro_batch", "sharding", "mesh", "reshard", "activation_checkpointing", "compile")
MEASURES = ("test", "training loss", "steps to target")


@dataclass(frozen=True, slots=True)
class Comparison:
    """One table of a scale: a task at a batch size and a length, and who is compared on it.

    ``optimizers`` are contenders' names; ``given`` says settings of those that have them, which
    :func:`~thalweg.studies.resolved.resolved` writes into the names.
    ``epochs`` or ``steps`` says how long; ``trials`` a study, from ``tuning_seeds`` each, ``studies`` and ``seeds`` how
    much; ``regimen`` what of :class:`~thalweg.records.regimen.Regimen` differs from its defaults. ``micro_batch`` and
    what :data:`CARRIED` names besides say how a run is carried out, which decides nothing of it; ``devices``, for how
    many that is meant where no mesh says it.
    """

    task: str
    batch_size: int
    optimizers: tuple[str, ...]
    epochs: float | None = None
    steps: int | None = None
    trials: int = 6
    studies: int = 1
    seeds: int = 3
    tuning_seeds: int = 2
    regimen: dict[str, Any] = field(default_factory=dict)
    micro_batch: int | None = None
    sharding: str = "ddp"
    mesh: dict[str, Any] = field(default_factory=dict)
    reshard: str = "each"
    activation_checkpointing: bool = False
    compile: bool = False
    devices: int | None = None
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
    ``tasks`` (all, if empty) and whose batch size is within ``batch_sizes`` (both ends) count. ``margin`` is the least
    difference that matters, in the unit of ``measure``; None for the recipe's. ``paper`` selects the printed numbers;
    ``paper_a`` and ``paper_b`` are the optimizers' names there.
    """

    says: str
    a: str
    b: str
    measure: str = "test"
    tasks: tuple[str, ...] = ()
    batch_sizes: tuple[int, int] = (1, 2**31)
    margin: float | None = None
    paper: dict[str, str] = field(default_factory=dict)
    paper_a: str = ""
    paper_b: str = ""


@dataclass(frozen=True, slots=True)
class Scale:
    """One scale of a recipe: tables to compare, or a measurement of its own, a module, with options.

    ``minutes`` is about how long a measurement takes on two cores.
    """

    about: str = ""
    comparisons: tuple[Comparison, ...] = ()
    measure: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    minutes: float = 0.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """An experiment: what it is, its scales, the claims that it tests, the printed numbers that stand beside.

    ``margin`` is the least difference of the test metric that matters, in its unit; None for the metric's own.
    """

    name: str
    title: str
    scales: dict[str, Scale]
    source: str = ""
    about: str = ""
    margin: float | None = None
    claims: tuple[Claim, ...] = ()
    beside: tuple[dict[str, str], ...] = ()


COMPARED = (*(one.name for one in fields(Comparison) if one.name != "regimen"), *REGIMEN)
"""The keys of a table to compare."""
Made = TypeVar("Made", Recipe, Scale, Comparison, Claim)


def folder() -> str:
    """Where the recipes of the package are."""
    return str(_RECIPES)


def names() -> list[str]:
    """The recipes of the package, in alphabetical order."""
    return sorted(one.name[:-5] for one in _RECIPES.iterdir() if one.name.endswith(".toml"))


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
    where = "the file"
    _check_table(where, values, ("title", "source", "about", "margin", "claims", "beside", *SCALES))
    scales = {scale: _scale(scale, values[scale]) for scale in SCALES if scale in values}
    if not scales:
        raise ValueError(f"needs a scale: [{'] or ['.join(SCALES)}]")
    made = {
        "name": name,
        "scales": scales,
        "claims": tuple(map(_claim, _tables(where, values, "claims"))),
        "beside": tuple(map(_selection, _tables(where, values, "beside"))),
    }
    return _built(Recipe, where, values | made)


def _scale(name: str, values: dict[str, Any]) -> Scale:
    where = f"[{name}]"
    if isinstance(values, dict) and "measure" in values:
        _check_table(where, values, ("about", "measure", "options", "minutes"))
        return _built(Scale, where, values)
    _check_table(where, values, ("about", "tables", *COMPARED))
    shared = {key: value for key, value in values.items() if key not in ("about", "tables")}
    tables = _tables(where, values, "tables")
    if not tables:
        raise ValueError(f"{where} needs tables")
    comparisons = tuple(_comparison(f"[[{name}.tables]]", shared, one) for one in tables)
    return _built(Scale, where, values | {"comparisons": comparisons})


def _comparison(where: str, shared: dict[str, Any], own: dict[str, Any]) -> Comparison:
    _check_table(where, own, COMPARED)
    values = shared | own
    if ("epochs" in values) == ("steps" in values):
        raise ValueError(f"{where} needs epochs or steps, and not both")
    found = _built(Comparison, where, values | {"regimen": {key: values[key] for key in REGIMEN if key in values}})
    check_choice(f"sharding of {where}", found.sharding, SHARDINGS)
    check_choice(f"reshard of {where}", found.reshard, RESHARDS)
    _check_table(f"mesh of {where}", found.mesh, MESH_AXES)
    for axis, size in found.mesh.items():
        if (as_integer(size) or 0) < 1:
            raise ValueError(f"{axis} of the mesh of {where} must be an integer of at least 1, got {size!r:.60}")
    ranks = math.prod(found.mesh.values()) if found.mesh else None
    if None not in (ranks, found.devices) and ranks != found.devices:
        raise ValueError(f"devices of {where} must be those of its mesh, {ranks}, got {found.devices}")
    return found


def _claim(values: dict[str, Any]) -> Claim:
    where = "[[claims]]"
    _check_table(where, values, [one.name for one in fields(Claim)])
    found = _built(Claim, where, values | {"paper": _selection(values.get("paper", {}))})
    check_choice(f"measure of {where}", found.measure, MEASURES)
    return found


def _selection(values: dict[str, Any]) -> dict[str, str]:
    _check_table("what selects printed numbers", values, [one.name for one in fields(Number)])
    return {key: str(value) for key, value in values.items()}


def _tables(where: str, values: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = values.get(key, [])
    if not isinstance(found, list):
        raise ValueError(f"{key} of {where} must be tables, got {found!r:.60}")
    return found


def _check_table(where: str, values: object, allowed: Collection[str]) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be a table, got {values!r:.60}")
    if unknown := sorted(set(values) - set(allowed)):
        near = "".join(did_you_mean(key, allowed) for key in unknown)
        raise ValueError(f"{where} has no {', '.join(unknown)}; it may have {', '.join(sorted(allowed))}{near}")


KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "str": ("a text", lambda given: isinstance(given, str)),
    "int": ("an integer of at least 1", lambda given: (as_integer(given) or 0) >= 1),
    "float": ("a number greater than 0", lambda given: is_number(given) and 0.0 < given < math.inf),
    "tuple[str, ...]": ("a list of one or more texts", lambda given: _is_list(given, str) and bool(given)),
    "tuple[int, int]": ("[least, most], two integers", lambda given: _is_list(given, int) and len(given) == 2),
    "bool": ("true or false", lambda given: isinstance(given, bool)),
    "dict[str, Any]": ("a table", lambda given: isinstance(given, dict)),
}
"""By the type of a field what a file may give for it, in words, and whether it did. Other types are made above."""


def _is_list(given: object, of: type) -> bool:
    return isinstance(given, list) and all(isinstance(one, of) for one in given)


def _built(cls: type[Made], where: str, values: dict[str, Any]) -> Made:
    """A dataclass whose fields are the values of their names, checked by :data:`KINDS`; other values are left out."""
    found: dict[str, Any] = {}
    for one in fields(cls):
        if one.name in values:
            value = values[one.name]
            allowed, is_right = KINDS.get(str(one.type).removesuffix(" | None"), ("", lambda given: True))
            if not is_right(value):
                raise ValueError(f"{one.name} of {where} must be {allowed}, got {value!r:.60}")
            found[one.name] = tuple(value) if isinstance(value, list) else value
        elif one.default is MISSING and one.default_factory is MISSING:
            raise ValueError(f"{where} needs {one.name}")
    return cls(**found)
