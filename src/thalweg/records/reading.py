"""From the files of a folder to :class:`~thalweg.records.results.Results`.

Nothing is trained here and no task or optimizer is imported: a folder can be read on a machine that has neither.
Records that cannot be read are left out and named in ``Results.problems``.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from thalweg.records.files import Damaged, Fields, read_json, read_lines
from thalweg.records.metric import Metric
from thalweg.records.results import (
    FAILURES,
    JUDGED,
    Axis,
    Cell,
    Evaluation,
    Results,
    Run,
    Table,
    Trial,
    search_name,
)

if TYPE_CHECKING:
    from pathlib import Path

MOST = 100_000  # of anything that is counted


def read(root: Path) -> Results:
    """All that is stored in a folder; empty if nothing is."""
    problems: list[str] = []
    tables: dict[tuple[str, int, int], list[tuple[Table, Cell]]] = {}
    commands: list[str] = []
    for path in sorted(root.glob("runs/*/*/*/*/cell.json")):
        try:
            fields = Fields(path, read_json(path))
            cell, table = _cell(fields, problems), _heading(fields)
            commands.append(fields.text("command", optional=True))
        except Damaged as damaged:
            problems.append(str(damaged))
        else:
            tables.setdefault((table.task, table.batch_size, table.steps), []).append((table, cell))
    return Results(
        root=root,
        tables=tuple(replace(own[0][0], cells=tuple(cell for _, cell in own)) for _, own in sorted(tables.items())),
        problems=tuple(problems),
        commands=tuple(dict.fromkeys(filter(None, commands))),
    )


def metric_of(fields: Fields) -> Metric:
    """The metric whose fields these are."""
    goal = fields.text("goal")
    if goal not in ("max", "min"):
        raise Damaged(fields.path, f"goal should be 'max' or 'min', got {goal!r:.60}")
    low, high, resolution = fields.maybe("low"), fields.maybe("high"), fields.maybe("resolution") or 0.0
    if resolution < 0.0:
        raise Damaged(fields.path, f"resolution should be at least 0, got {resolution}")
    return Metric(
        name=fields.text("name"),
        goal=goal,
        unit=fields.text("unit", optional=True),
        log=fields.values.get("log") is True,
        low=-math.inf if low is None else low,
        high=math.inf if high is None else high,
        resolution=resolution,
    )


def _heading(fields: Fields) -> Table:
    """The table that a cell says it is of, without cells."""
    return Table(
        task=fields.text("task"),
        title=fields.text("title"),
        metric=metric_of(fields.object("metric")),
        batch_size=fields.count("batch_size", 1),
        steps=fields.count("steps", 1),
        budget=fields.text("budget"),
        target=fields.maybe("target"),
        train_examples=fields.count("train_examples"),
        chance=fields.maybe("chance"),
        cells=(),
    )


def _cell(fields: Fields, problems: list[str]) -> Cell:
    folder = fields.path.parent
    wanted = {**fields.object("recipe").values, "code": fields.text("code"), "data": fields.text("data")}
    runs, older = [], 0
    for path in sorted([*folder.glob("study-*/*trial-*/result.json"), *folder.glob("seed-*/result.json")]):
        try:
            run = read_run(path.parent)
        except Damaged as damaged:
            problems.append(str(damaged))
            continue
        if all(run.spec.get(key) == value for key, value in wanted.items()):
            runs.append(run)
        else:
            older += 1
    cell = Cell(
        folder=folder,
        optimizer=fields.text("optimizer"),
        space=tuple(_axis(Fields(fields.path, one)) for one in _objects(fields, "space")),
        planned_trials=fields.count("trials", 0, MOST),
        planned_studies=fields.count("studies", 0, MOST),
        planned_seeds=fields.count("seeds", 0, MOST),
        trials=(),
        seeds=(),
        left_out=fields.text("left_out", optional=True) or None,
        seconds_per_step=_timing(folder, fields, problems),
        older=older,
        code=fields.text("code"),
        regimen=fields.object("recipe").values,
        metric=metric_of(fields.object("metric")),
        looks=fields.count("looks", 1, MOST) if "looks" in fields.values else 1,
        **_searched(fields),
    )
    cell = replace(cell, trials=_trials(runs, cell))
    chosen = cell.chosen
    if chosen is None:
        return cell
    fresh = [run for run in runs if run.kind == "seed" and run.settings == chosen.settings]
    return replace(cell, seeds=tuple(sorted(fresh, key=lambda run: run.number)))


def _searched(fields: Fields) -> dict[str, Any]:
    """How trials are made and judged; older cells do not say it: one seed each, its last evaluation, no such rounds."""
    if "tuning_seeds" not in fields.values:
        return {}
    if (how := fields.text("judged")) not in JUDGED:
        raise Damaged(fields.path, f"judged should be one of {', '.join(JUDGED)}, got {how!r:.60}")
    return {
        "tuning_seeds": fields.count("tuning_seeds", 1, MOST),
        "judged": how,
        "rounds": fields.count("rounds", 0, MOST),
    }


def _trials(runs: list[Run], cell: Cell) -> tuple[Trial, ...]:
    """The trials whose runs are all there; of rounds, those that follow from this very search."""
    tuned = sorted(
        (run for run in runs if run.kind == "trial"), key=lambda run: (run.study, run.round, run.number, run.seed)
    )
    if cell.judged == "last":
        return tuple(Trial.of([run], cell.metric, "last") for run in tuned)
    search = search_name(cell.planned_trials, cell.tuning_seeds)
    found: dict[tuple[int, int, int], list[Run]] = {}
    for run in tuned:
        if not run.round or run.spec["place"].get("search") == search:
            found.setdefault((run.study, run.round, run.number), []).append(run)
    return tuple(Trial.of(own, cell.metric, cell.judged) for own in found.values() if len(own) == cell.tuning_seeds)


def _objects(fields: Fields, name: str) -> list[dict[str, Any]]:
    found = fields.values.get(name)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise Damaged(fields.path, f"{name} should be a list of objects, got {found!r:.60}")
    return found


def _axis(fields: Fields) -> Axis:
    values = fields.values.get("values", [])
    if not isinstance(values, list) or not all(isinstance(value, float) and math.isfinite(value) for value in values):
        raise Damaged(fields.path, f"values should be a list of numbers, got {values!r:.60}")
    low, high, log = fields.number("low"), fields.number("high"), fields.values.get("log") is True
    axis = Axis(fields.text("name"), low, high, log, tuple(values))
    if not axis.low < axis.high or (axis.log and axis.low <= 0):
        raise Damaged(fields.path, f"{axis.name} has no range from {axis.low} to {axis.high}")
    return axis


def read_run(folder: Path) -> Run:
    """The complete run in a folder.

    Raises:
        Damaged: a record of it is not there or not what it should be.
    """
    spec = Fields(folder / "spec.json", read_json(folder / "spec.json"))
    place = spec.object("place")
    kind = place.text("kind")
    if kind not in ("trial", "seed"):
        raise Damaged(spec.path, f"kind should be 'trial' or 'seed', got {kind!r:.60}")
    environment = Fields(folder / "environment.json", {"all": read_json(folder / "environment.json")})
    result = Fields(folder / "result.json", read_json(folder / "result.json"))
    status, failure = result.text("status"), result.text("failure", optional=True) or None
    if (status, failure is None) not in (("finished", True), ("failed", False)):
        raise Damaged(result.path, f"status {status!r:.60} does not match failure {failure!r:.60}")
    if failure is not None and failure not in FAILURES:
        raise Damaged(result.path, f"failure should be one of {', '.join(FAILURES)}, got {failure!r:.60}")
    steps = spec.count("steps", 1)
    at = result.values.get("steps_to_target")
    return Run(
        folder=folder,
        kind=kind,
        study=place.count("study", 0, MOST),
        round=place.count("round", 0, MOST),
        number=place.count("number", 0, MOST),
        seed=spec.count("seed"),
        point=place.numbers("point"),
        settings=spec.numbers("settings"),
        failure=failure,
        reason=result.text("reason", optional=True) or None,
        validation=result.number("validation") if failure is None else None,
        test=result.maybe("test") if failure is None else None,
        seconds=result.maybe("seconds") or 0.0,
        steps_to_target=None if at is None else result.count("steps_to_target", 0, steps),
        seconds_to_target=result.maybe("seconds_to_target"),
        spec=spec.values,
        environment=environment.texts("all"),
        history=_history(folder / "metrics.jsonl"),
        test_metrics=result.numbers("test_metrics") if "test_metrics" in result.values else {},
    )


def _history(path: Path) -> tuple[Evaluation, ...]:
    found: list[Evaluation] = []
    for line in read_lines(path):
        fields = Fields(path, line)

        def number(name: str, fields: Fields = fields) -> float:
            value = fields.maybe(name)
            return math.nan if value is None else value

        one = Evaluation(
            fields.count("step"), fields.count("examples"), number("seconds"), number("loss"), number("validation"),
            number("lr"),
        )  # fmt: skip
        if found and one.step <= found[-1].step:
            raise Damaged(path, f"step {one.step} follows step {found[-1].step}")
        found.append(one)
    return tuple(found)


def _timing(folder: Path, fields: Fields, problems: list[str]) -> tuple[float, ...]:
    path = folder.parent.parent / "timing" / f"{folder.name}.json"
    if not path.exists():
        return ()
    try:
        return read_timing(path, fields.text("optimizer"))
    except Damaged as damaged:
        problems.append(str(damaged))
        return ()


def read_timing(path: Path, optimizer: str) -> tuple[float, ...]:
    """The seconds of an optimizer's steps in the timing of a table; none if it was not timed.

    Raises:
        Damaged: the file is not there or not what it should be.
    """
    found = Fields(path, read_json(path)).object("seconds").values.get(optimizer, [])
    if not isinstance(found, list):
        raise Damaged(path, "seconds should be lists of numbers")
    one = Fields(path, {str(i): value for i, value in enumerate(found)})
    return tuple(one.number(name) for name in one.values)
