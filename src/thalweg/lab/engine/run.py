"""One run in its folder: begun, resumed, or already complete."""

from __future__ import annotations

import json
import math
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from thalweg.lab import signals, tasks
from thalweg.lab.engine import variables
from thalweg.lab.engine.execution import Execution
from thalweg.lab.engine.loop import Training
from thalweg.lab.failures import Failed, blame_task, peer_failure
from thalweg.lab.ranks import agreement, notices
from thalweg.lab.saved import checkpoint
from thalweg.records import files as records
from thalweg.records.errors import UserError
from thalweg.records.files import Damaged
from thalweg.records.reading import read_run

if TYPE_CHECKING:
    from pathlib import Path

    from thalweg.lab.engine.spec import RunSpec

WRITE_SECONDS = 2.0  # between two writes of the metrics of a run under way
OnEvent = Callable[[Training, str], None]


@dataclass(frozen=True, slots=True)
class Place:
    """What a run is to a comparison: a trial of a study, or a fresh seed. It does not decide what the run computes.

    ``search`` names the search that a round follows from, by its trials and tuning seeds: ``"8x2"``.
    """

    kind: str = "seed"
    study: int = 0
    round: int = 0
    number: int = 0
    point: dict[str, float] = field(default_factory=dict)
    search: str = ""


def stored(folder: Path, spec: RunSpec, place: Place | None = None) -> dict[str, Any] | None:
    """The result of this very run, or None: it is not complete, or a record of it is damaged.

    The whole of ``spec.json`` is compared, not its hash alone, and where ``place`` is given that too: what the reader
    would take for another run is no record of this one.
    """
    if not (folder / "result.json").exists():
        return None
    try:
        kept = records.read_json(folder / "spec.json")
        found = kept.pop("place", None)
        if kept != json.loads(json.dumps(spec.as_dict())) or (place is not None and found != asdict(place)):
            return None
        read_run(folder)  # as the report will read it
        return records.read_json(folder / "result.json")
    except Damaged:
        return None


def train(
    spec: RunSpec,
    folder: Path,
    place: Place | None = None,
    *,
    execution: Execution | None = None,
    on_event: OnEvent = lambda training, event: None,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> dict[str, Any]:
    """Train as ``spec`` says, record in ``folder``, and return the result, or the one that is there already.

    An unfinished run of the same spec resumes from its checkpoint, and whatever is raised before its first new step
    leaves the folder as it was. All ranks of a distributed run call this, with one folder or each with its own; the
    first one writes.

    Args:
        spec: what to train.
        folder: the run's own folder.
        place: what the run is to a comparison.
        execution: how to carry it out.
        on_event: told of each "step", "observation", "evaluation" and "checkpoint"; may raise :class:`Stopped`.
        say: told, on the first rank, of a checkpoint that cannot be used.

    Returns:
        The content of ``result.json``: see :mod:`thalweg.records`.

    Raises:
        TaskFault: the task's code raised; there is no result.
        UserError: the run cannot begin or resume, or the folder cannot be written.
        Terminated: a signal ended it (:mod:`thalweg.lab.signals`); there is a checkpoint.
    """
    execution = execution or Execution()
    variables.check(spec.precision)
    notices.together()
    try:
        if (found := _agreed(spec, folder, place)) is not None:
            return found
        return _trained(spec, _Writer(spec, folder, place or Place(), execution.observer), execution, on_event, say)
    except RuntimeError as error:
        if (lost := peer_failure(error)) is not None:
            raise lost from error
        raise


def _agreed(spec: RunSpec, folder: Path, place: Place | None) -> dict[str, Any] | None:
    """The complete run that the first rank finds, or None; all ranks are to train the same."""
    found = agreement.gather((spec.hash, stored(folder, spec, place), str(folder)))
    hashes = [one[0] for one in found]
    if len(set(hashes)) > 1:
        raise UserError(
            f"the processes were given different runs ({', '.join(hashes)}): options, code, data and --init-from "
            "must be the same for all"
        )
    result = found[0][1]
    if result is None and (rank := next((k for k, one in enumerate(found) if one[1] is not None), None)) is not None:
        raise UserError(
            f"process {rank} finds this run complete in {found[rank][2]}, the first process does not in {found[0][2]}: "
            "copy the folder there, or choose another with --out"
        )
    return result


def _trained(
    spec: RunSpec, writer: _Writer, execution: Execution, on_event: OnEvent, say: Callable[[str], None]
) -> dict[str, Any]:
    before = agreement.gather(((writer.folder / checkpoint.NAME).exists(), platform.node()))
    unfinished, hosts = any(found for found, _ in before), [host for _, host in before]
    try:
        training = Training(spec, writer.folder, execution)
    except Failed as failed:
        if unfinished:
            raise _cannot_resume(writer.folder, failed) from failed
        return writer.end(_failed(failed, None))
    with signals.deferred():
        try:
            reached = training.restore(say)
        except Failed as failed:
            raise _cannot_resume(writer.folder, failed) from failed
        if execution.trackers:
            told = spec.as_dict() | spec.settings
            del told["settings"]
            config = {name: value for name, value in told.items() if value is not None}
            training.accelerator.init_trackers("thalweg", config=config)
        try:
            if execution.observer is not None:
                execution.observer.begin(training)
            with agreement.raise_on_all():
                if not reached:
                    writer.begin()
            with notices.told_to_all(hosts):
                training.run(lambda t, event: writer.on_event(t, event, on_event))
                result = _finished(training)
            with agreement.raise_on_all():
                writer.lines(training)
                writer.end(result)
            checkpoint.remove(writer.folder)  # that of another process than the first, if it has its own
            return result
        except Failed as failed:
            unmoved = reached and reached == training.step
            if unmoved and failed.kind not in ("diverged", "non-finite metric"):  # of what was trained before
                raise _cannot_resume(writer.folder, failed) from failed
            result = _failed(failed, training)
        finally:
            training.saving.close()
            if execution.trackers:
                for tracker in training.accelerator.trackers:  # end_training() would end the process group as well
                    tracker.finish()
        writer.lines(training)
        return writer.end(result)


def _cannot_resume(folder: Path, failed: Failed) -> UserError:
    """What to say of a run that raised before its first new step; its folder is as it was."""
    return UserError(
        f"cannot resume from {folder / checkpoint.NAME} ({failed.kind}: {failed.reason}): checkpoint and records are "
        "unchanged; remove that folder to start over"
    )


class _Writer:
    """The records of a run; of a distributed one only the first rank's are written."""

    def __init__(self, spec: RunSpec, folder: Path, place: Place, observer: Any = None) -> None:
        self.spec, self.folder, self.place = spec, folder, place
        self.observer = None if observer is None else observer.name
        state = agreement.processes()
        self.first_rank, self.processes = state.is_main_process, state.num_processes
        self.written, self.begun = 0.0, False

    def begin(self) -> None:
        """Write what is known before a run's first step here; nothing if that is done."""
        if self.begun or not self.first_rank:
            return
        self.begun = True
        with records.writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            damaged = self.folder / "result.json"
            if damaged.exists():  # of this run, whose folder it is, and unreadable: kept under another name
                damaged.replace(self.folder / "result.json.damaged")
            records.write_json(self.folder / "spec.json", {**self.spec.as_dict(), "place": asdict(self.place)})
            where = {**records.environment(), "processes": str(self.processes)}
            records.write_json(self.folder / "environment.json", where)

    def on_event(self, training: Training, event: str, on_event: OnEvent) -> None:
        self.begin()
        if event in ("evaluation", "observation"):
            if training.execution.trackers:
                line = training.history[-1] if event == "evaluation" else training.observations[-1]
                room = "" if event == "evaluation" else f"{self.observer}/"
                told = {room + key: x for key, x in line.items() if key != "step" and records.finite(x) is not None}
                training.accelerator.log(told, step=line["step"])
            if time.monotonic() - self.written > WRITE_SECONDS and training.step < self.spec.steps:
                self.lines(training)
        on_event(training, event)

    def lines(self, training: Training) -> None:
        if self.first_rank:
            with records.writing(self.folder):
                records.write_lines(self.folder / "metrics.jsonl", training.history)
                if self.observer is not None:
                    records.write_lines(self.folder / f"{self.observer}.jsonl", training.observations)
            self.written = time.monotonic()

    def end(self, result: dict[str, Any]) -> dict[str, Any]:
        self.begin()
        if self.first_rank:
            with records.writing(self.folder):
                for name in ("metrics", self.observer):
                    if name is not None and not (self.folder / f"{name}.jsonl").exists():
                        records.write_lines(self.folder / f"{name}.jsonl", [])
                records.write_json(self.folder / "result.json", result)
                checkpoint.remove(self.folder)
        return result


def _finished(training: Training) -> dict[str, Any]:
    spec, history = training.spec, training.history
    task = training.task
    if not math.isfinite(history[-1]["validation"]):
        raise _unscored("validation", history[-1]["validation"], history[-1]["loss"])
    budget = tasks.target_of(task, spec.batch_size, spec.steps)
    reached = next(
        (line for line in history if budget is not None and task.metric.reached(line["validation"], budget)), None
    )
    result = {
        "status": "finished",
        "failure": None,
        "reason": None,
        "validation": history[-1]["validation"],
        "seconds": training.seconds,
        "steps_to_target": reached and reached["step"],
        "seconds_to_target": reached and reached["seconds"],
    }
    if spec.test:
        with blame_task(spec.task, "its score on the test set"):
            scores = training.scores("test")
            result["test"] = float(task.combine(scores))
            more = {name: float(value) for name, value in task.more(scores).items()}
        if not math.isfinite(result["test"]):
            raise _unscored("test", result["test"], history[-1]["loss"])
        result["test_metrics"] = {name: value for name, value in more.items() if math.isfinite(value)}  # not 0 / 0
    if training.execution.save_model is not None:
        with records.writing(training.execution.save_model):
            training.save_model(training.execution.save_model)
    return result


def _unscored(split: str, value: float, loss: float) -> Failed:
    return Failed("non-finite metric", f"the metric is {value} on the {split} set at the end, the loss {loss:.4g}")


def _failed(failed: Failed, training: Training | None) -> dict[str, Any]:
    return {
        "status": "failed",
        "failure": failed.kind,
        "reason": failed.reason,
        "validation": None,
        "seconds": training.seconds if training else 0.0,
        "steps_to_target": None,
        "seconds_to_target": None,
    }


def record_crash(spec: RunSpec, folder: Path, place: Place, reason: str) -> dict[str, Any]:
    """Record that the run took its process down with it."""
    writer = _Writer(spec, folder, place)
    return writer.end(_failed(Failed("crashed", reason), None))
