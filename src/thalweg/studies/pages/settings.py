"""The records of a measurement, one for each setting that is finished, and what theory says of the setting."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from thalweg.records import files as records
from thalweg.theory import implicit_regularization, stability_limit

if TYPE_CHECKING:
    from pathlib import Path

Settings = dict[str, Any]
BETA2 = 0.9
"""The momentum, as an average, of every base that has one."""
MOMENTUM = {"gd": 0.0, "spsa": 0.0, "rmsprop": 0.0, "adagrad": 0.0, "momentum": BETA2, "adam": BETA2, "adamw": BETA2,
            "lamb": BETA2}  # fmt: skip


class Record(NamedTuple):
    """A finished setting: what was asked for and what was found."""

    settings: Settings
    found: dict[str, Any]

    @property
    def setting(self) -> str:
        """Its α and β1 as they are written in tables.

        >>> Record({"alpha": -5.0, "beta": 0.99}, {}).setting, Record({"alpha": 0.0}, {}).setting
        ('-5, .99', 'no E')
        """
        alpha, beta = self.settings["alpha"], self.settings.get("beta")
        return "no E" if alpha == 0.0 else re.sub(r"(?<!\d)0\.", ".", f"{alpha:g}, {beta:g}")

    @property
    def limit(self) -> float:
        """The stability limit of ηλ."""
        known = self.settings
        return stability_limit(known["alpha"], known["beta"], momentum=MOMENTUM[known["base"]])

    @property
    def strength(self) -> float:
        """S, of the implicit penalty on the gradient norm."""
        return implicit_regularization(self.settings["alpha"], momentum=MOMENTUM[self.settings["base"]])

    def has(self, **settings: Any) -> bool:
        """Whether its settings are these, among others."""
        return all(self.settings[name] == value for name, value in settings.items())


def name_of(settings: Settings) -> str:
    """The name of the record of these settings: some of them to read, and a hash of all.

    >>> name_of({"base": "adam", "alpha": -5.0, "steps": [1, 2]})
    'adam_-5_f5d5dcb3'
    """
    read = [f"{value:g}" if isinstance(value, float) else str(value) for value in settings.values() if _short(value)]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return "_".join([*read[:6], digest])


def _short(value: object) -> bool:
    return isinstance(value, (str, float, int)) and str(value).replace("-", "").replace(".", "").isalnum()


def finished(folder: Path) -> list[Record]:
    """The records that the last command asked for, in its order.

    Raises:
        Damaged: there is no plan.
        ValueError: some are not there yet.
    """
    names = records.read_json(folder / "plan.json").get("records", [])
    found = [one for name in names if (one := read(folder / "records" / f"{name}.json")) is not None]
    if not found or len(found) < len(names):
        raise ValueError(f"{len(found)} of its {len(names)} settings are done; run the same command again to continue")
    return found


def read(path: Path) -> Record | None:
    """The record in a file, or None: there is none, or it is damaged."""
    try:
        found = records.read_json(path)
        return Record(dict(found["settings"]), dict(found["found"]))
    except (records.Damaged, KeyError, TypeError, ValueError):
        return None
