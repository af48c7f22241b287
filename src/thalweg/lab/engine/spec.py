"""Everything that decides a run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from thalweg.lab import tasks
from thalweg.lab.engine.source import code_hash
from thalweg.records import files as records
from thalweg.records.regimen import REGIMEN, Regimen, check

LATER = {"init", "streaming"}
"""Fields that are stored only where they say something."""


@dataclass(frozen=True, slots=True)
class RunSpec(Regimen):
    """Everything that decides a run; equal specs have equal hashes, and only then is a record used again.

    ``batch_size`` is the global one, on however many processes and in however many parts. ``settings`` are what the
    contender's ``build`` gets. ``test`` asks for the test metric at the end, which tuning never sees. ``lr_rule``
    scales the learning rate from ``lr_base`` examples a batch to ``batch_size``. ``code`` and ``data`` are the hashes
    of what trains and of what it trains on: see :func:`~thalweg.lab.engine.source.code_hash` and
    :func:`~thalweg.lab.tasks.data_hash`. ``init`` is the hash of the weights that it starts from, "" where the task's
    ``model()`` and ``seed`` decide them. With ``streaming`` the training data are read in the order of their
    files, and the number of processes decides as well which of them a step takes.

    Raises:
        UserError: a value that no run can have.
    """

    task: str
    batch_size: int
    steps: int
    optimizer: str
    settings: dict[str, float] = field(hash=False)
    seed: int = 0
    test: bool = False
    code: str = ""
    data: str = ""
    init: str = ""
    streaming: bool = False

    def __post_init__(self) -> None:
        Regimen.__post_init__(self)
        check(self, 1 <= self.batch_size <= 2**31, "batch_size", f"an integer from 1 to {2**31}")
        check(self, 1 <= self.steps <= 10**9, "steps", f"an integer from 1 to {10**9}")
        check(self, 0 <= self.seed < 2**32, "seed", f"an integer from 0 to {2**32 - 1}")

    def evaluated(self, step: int) -> bool:
        """Whether there is an evaluation after this step: ``evaluations`` of them, evenly, the last at the end.

        Of fewer steps than that, each has one.

        >>> spec = RunSpec("digits", 64, 39, "sgd", {}, evaluations=20)
        >>> sum(spec.evaluated(step) for step in range(1, 40)), spec.evaluated(39)
        (20, True)
        """
        return step * self.evaluations // self.steps > (step - 1) * self.evaluations // self.steps

    def as_dict(self) -> dict[str, Any]:
        """Plain data, with the version of the format and the hash."""
        found = self._values()
        for name in (*REGIMEN, "code", "data"):  # last, and in this order
            found[name] = found.pop(name)
        return {"format": records.FORMAT, "hash": self.hash, **found}

    def _values(self) -> dict[str, Any]:
        """All fields; those of :data:`LATER` only where they say something, as runs of before have none."""
        return {key: value for key, value in asdict(self).items() if key not in LATER or value}

    @property
    def hash(self) -> str:
        """12 hexadecimal digits of SHA-256 over everything."""
        text = json.dumps({"format": records.FORMAT, **self._values()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def stamped(self) -> RunSpec:
        """With the hashes of the code and the data that are here."""
        return replace(self, code=code_hash(self.task, self.optimizer), data=self._data_hash())

    def _data_hash(self) -> str:
        return tasks.data_hash(self.task, True) if self.streaming else tasks.data_hash(self.task)

    @classmethod
    def of(cls, values: dict[str, Any]) -> RunSpec:
        """The spec that :meth:`as_dict` wrote.

        Raises:
            ValueError: it is of another format, lacks something, or has something unknown.
        """
        known = {one.name for one in fields(cls)}
        own = {key: value for key, value in values.items() if key not in ("format", "hash", "place")}
        if values.get("format") != records.FORMAT or set(own) | LATER != known:
            raise ValueError(f"not a spec of format {records.FORMAT}")
        return cls(**own)
