"""Everything that decides a run."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from thalweg.arguments import did_you_mean
from thalweg.lab import records, tasks
from thalweg.lab.engine.augment import AUGMENTATIONS
from thalweg.lab.engine.schedules import LR_RULES, SCHEDULES
from thalweg.lab.engine.source import code_hash
from thalweg.lab.errors import UserError


@dataclass(frozen=True, slots=True)
class RunSpec:
    """Everything that decides a run; equal specs have equal hashes, and only then is a record used again.

    ``batch_size`` is the global one, on however many processes and in however many parts. ``settings`` are what the
    contender's ``build`` gets. ``test`` asks for the test metric at the end, which tuning never sees. ``lr_rule``
    scales the learning rate from ``lr_base`` examples a batch to ``batch_size``. ``code`` and ``data`` are the hashes
    of what trains and of what it trains on: see :func:`~thalweg.lab.engine.source.code_hash` and
    :func:`~thalweg.lab.tasks.data_hash`. ``init`` is the hash of the weights that it starts from, "" where the task's
    ``model()`` and ``seed`` decide them.

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
    schedule: str = "cosine"
    warmup: float = 0.05
    lr_rule: str = "none"
    lr_base: int = 256
    clip: float | None = None
    label_smoothing: float = 0.0
    augment: str | None = None
    precision: str = "no"
    evaluations: int = 20
    code: str = ""
    data: str = ""
    init: str = ""

    def __post_init__(self) -> None:
        def check(ok: bool, name: str, wanted: str, near: str = "") -> None:
            if not ok:
                raise UserError(f"{name} must be {wanted}, got {getattr(self, name)!r}{near}")

        def choose(name: str, known: Collection[str]) -> None:
            value, none = getattr(self, name), "None or " if name == "augment" else ""
            near = did_you_mean(str(value), known)
            check(value in known or (value is None and none != ""), name, f"{none}one of {', '.join(known)}", near)

        check(1 <= self.batch_size <= 2**31, "batch_size", f"an integer from 1 to {2**31}")
        check(1 <= self.steps <= 10**9, "steps", f"an integer from 1 to {10**9}")
        check(0 <= self.seed < 2**32, "seed", f"an integer from 0 to {2**32 - 1}")
        choose("schedule", SCHEDULES)
        check(0.0 <= self.warmup < 1.0, "warmup", "a share of the steps in [0, 1)")
        choose("lr_rule", LR_RULES)
        check(self.lr_base >= 1, "lr_base", "an integer of at least 1")
        check(self.clip is None or 0.0 < self.clip < math.inf, "clip", "None or a number greater than 0")
        check(0.0 <= self.label_smoothing < 1.0, "label_smoothing", "in [0, 1)")
        choose("augment", AUGMENTATIONS)
        choose("precision", ("no", "bf16", "fp16"))
        check(1 <= self.evaluations <= 10_000, "evaluations", "an integer from 1 to 10000")

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
        return {"format": records.FORMAT, "hash": self.hash, **self._values()}

    def _values(self) -> dict[str, Any]:
        """All fields; ``init`` only where it says something, as runs of before it have none."""
        return {key: value for key, value in asdict(self).items() if key != "init" or value}

    @property
    def hash(self) -> str:
        """12 hexadecimal digits of SHA-256 over everything."""
        text = json.dumps({"format": records.FORMAT, **self._values()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def stamped(self) -> RunSpec:
        """With the hashes of the code and the data that are here."""
        return replace(self, code=code_hash(self.task, self.optimizer), data=tasks.data_hash(self.task))

    @classmethod
    def of(cls, values: dict[str, Any]) -> RunSpec:
        """The spec that :meth:`as_dict` wrote.

        Raises:
            ValueError: it is of another format, lacks something, or has something unknown.
        """
        known = {one.name for one in fields(cls)}
        own = {key: value for key, value in values.items() if key not in ("format", "hash", "place")}
        if values.get("format") != records.FORMAT or set(own) | {"init"} != known:
            raise ValueError(f"not a spec of format {records.FORMAT}")
        return cls(**own)
