"""Carry out a recipe in a folder of its own: claimed, resumed and recorded as any comparison is.

A folder of recipes holds for each one ``NAME/recipe.toml`` (what was asked for), ``NAME/reproduce.json`` (``scale``,
``command``, and the ``seconds`` spent so far) and what the comparison or measurement records.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from thalweg.lab import tasks
from thalweg.lab.contenders import contender, defaults
from thalweg.lab.engine import Execution
from thalweg.lab.ranks import agreement
from thalweg.lab.search import comparison, together
from thalweg.lab.search.plan import ComparisonPlan
from thalweg.lab.search.work import Assignment, open_tickets
from thalweg.records import files as records
from thalweg.sharding.plan import Mesh
from thalweg.studies.measured import measuring
from thalweg.studies.measurements import work as measurement
from thalweg.studies.recipe import CARRIED

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from thalweg.lab.search.cells import PlannedCell
    from thalweg.studies.recipe import Comparison, Recipe

EVERY = 10.0  # seconds between two writes of the time spent
Watched = Callable[[list["PlannedCell"]], "AbstractContextManager[Callable[[str, Any], None]]"]


def resolved(recipe: Recipe) -> Recipe:
    """The recipe, each optimizer checked and named with its given settings: ``lamb`` as ``lamb:lr=5``.

    Raises:
        UserError: no such optimizer, or one that has no such setting.
    """
    scales = {
        name: replace(scale, comparisons=tuple(map(_resolved, scale.comparisons)))
        for name, scale in recipe.scales.items()
    }
    return replace(recipe, scales=scales)


def _resolved(one: Comparison) -> Comparison:
    return replace(one, optimizers=tuple(dict.fromkeys(_named(name, one.given) for name in one.optimizers)), given={})


def _named(optimizer: str, given: dict[str, Any]) -> str:
    """The contender with those of the given settings that it has and does not give itself."""
    own = defaults(contender(optimizer), 1).keys() - contender(optimizer).fixed.keys()
    own -= {pair.partition("=")[0] for pair in optimizer.split(":")[1:]}
    pairs = [
        f"{key}={'|'.join(f'{one:g}' for one in (value if isinstance(value, list) else [value]))}"
        for key, value in given.items()
        if key in own
    ]
    return ":".join([optimizer, *pairs])


def execution_of(one: Comparison) -> Execution:
    """How its runs are carried out.

    Raises:
        UserError: of the options one would be ignored.
    """
    values = {name: getattr(one, name) for name in CARRIED}
    return Execution(**values | {"mesh": Mesh(**one.mesh) if one.mesh else None})


def cells_of(one: Comparison, root: Path) -> list[PlannedCell]:
    """The cells of a table of a recipe.

    Raises:
        UserError: its data are not there, or a value that no run can have.
    """
    _, splits = tasks.load(one.task)
    plan = ComparisonPlan(
        tasks=(one.task,), batch_sizes=(one.batch_size,), optimizers=one.optimizers, trials=one.trials,
        studies=one.studies, seeds=one.seeds, steps=one.length(len(splits.train)), regimen=one.regimen,
        tuning_seeds=one.tuning_seeds,
    )  # fmt: skip
    cells, _ = plan.cells(root)
    return cells


def reproduce(
    recipe: Recipe,
    text: str,
    scale: str,
    root: Path,
    *,
    command: str = "",
    jobs: int = 1,
    storage: str | None = None,
    watched: Watched = lambda cells: nullcontext(lambda what, value: None),
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Run what is not there yet of a recipe, in ``root``.

    Args:
        recipe: what to do.
        text: the TOML it was read from, kept beside the records.
        scale: "lab" or "paper", one that it has.
        root: the recipe's own folder.
        command: what was typed, for the records.
        jobs: processes at a time; under ``torchrun`` all of its processes work on one run at a time instead.
        storage: where runs are claimed, as ``thalweg compare --storage``.
        watched: gives, for the cells, a context in which somebody listens to the workers.
        say: told in words what is done.

    Raises:
        UserError: its data are missing, or the folder cannot be written.
        TaskFault: the code of a task raised.
    """
    recipe = resolved(recipe)
    wanted = recipe.scales[scale]
    first = os.environ.get("RANK", "0") == "0"
    with records.writing(root):
        root.mkdir(parents=True, exist_ok=True)
        if first:
            records.write_bytes(root / "recipe.toml", text.encode())
    with _clocked(root / "reproduce.json", scale, command) if first else nullcontext(lambda: None) as tick:
        if wanted.measure:
            measurement.run(measuring(wanted.measure), wanted.options, root, say)
            return

        def planned() -> list[tuple[Execution, PlannedCell]]:
            return [(execution_of(one), cell) for one in wanted.comparisons for cell in cells_of(one, root)]

        cells = agreement.in_turn(planned) if together.launched() else planned()
        for _, cell in cells:
            if first:
                cell.record(root, command)
        for execution, group in groupby(cells, key=lambda pair: pair[0]):
            own = [cell for _, cell in group]
            threads = max(1, (os.cpu_count() or 1) // jobs)
            assignment = Assignment(root, own, storage, threads, execution)
            open_tickets(assignment)  # or a clear error now
            with watched(own) as on_message:

                def forward(what: str, value: Any, on_message: Callable[[str, Any], None] = on_message) -> None:
                    tick()
                    on_message(what, value)

                if together.launched():
                    together.work_together(assignment, forward)
                else:
                    comparison.run(assignment, jobs, forward)
        if not together.launched():
            say("timing steps, interleaved")
            for execution, group in groupby(cells, key=lambda pair: pair[0]):
                own = [cell for _, cell in group]
                comparison.run(Assignment(root, own, storage, os.cpu_count() or 1, execution), 1, timing=True)


@contextmanager
def _clocked(path: Path, scale: str, command: str) -> Iterator[Callable[[], None]]:
    """Add the seconds within to those on record: at the end, however it ends, and now and then when called."""
    try:
        before = float(records.read_json(path)["seconds"]) if path.exists() else 0.0
    except (records.Damaged, KeyError, TypeError, ValueError):
        before = 0.0
    started = written = time.monotonic()

    def write() -> None:
        nonlocal written
        written = time.monotonic()
        spent = round(before + written - started, 1)
        records.write_json(path, {"scale": scale, "command": command, "seconds": spent})

    write()
    try:
        yield lambda: write() if time.monotonic() - written > EVERY else None
    finally:
        write()
