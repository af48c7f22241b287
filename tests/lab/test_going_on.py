"""Runs that are killed, stopped, damaged, and go on."""

import errno
import io
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from lines import ADAMW, LINE, kept

from thalweg.lab.engine import (
    Execution,
    Place,
    RunSpec,
    Stopped,
    checkpoint,
    stored,
    train,
)
from thalweg.records import files as records
from thalweg.records.errors import UserError


class Killed(BaseException):
    """As sudden as a kill: nothing of ours catches it."""


@pytest.mark.parametrize("optimizer", ["alto", "soap", "schedule-free", "ema-nesterov", "e-muon"])
def test_a_run_killed_at_every_event_ends_as_if_nothing_had_happened(optimizer, tmp_path):
    from thalweg.lab.contenders import contender, defaults

    settings = defaults(contender(optimizer), 16)
    spec = RunSpec("small_tasks:Moody", 16, 8, optimizer, settings, test=True, evaluations=2)
    execution = Execution(checkpoint_seconds=0.0)
    train(spec, tmp_path / "whole", execution=execution)
    kills = 0
    while not (tmp_path / "killed" / "result.json").exists():
        left = [kills % 3 + 1]

        def on_event(training, event, left=left):
            left[0] -= event != "evaluation"
            if left[0] == 0:
                raise Killed

        try:
            train(spec, tmp_path / "killed", execution=execution, on_event=on_event)
        except Killed:
            kills += 1
            torch.rand(7)  # the generators are not where they were
        assert kills < 60
    assert kills >= 6
    assert kept(tmp_path / "killed") == kept(tmp_path / "whole")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_run_killed_in_every_write_ends_as_if_nothing_had_happened(call, finished, monkeypatch, tmp_path):
    execution = Execution(checkpoint_seconds=0.0)
    owner = os if call == "fsync" else Path
    original, count, stop_at = getattr(owner, call), [0], [0]

    def killed(*arguments):
        count[0] += 1
        if count[0] == stop_at[0]:
            raise Killed
        return original(*arguments)

    monkeypatch.setattr(owner, call, killed)
    while not (tmp_path / "result.json").exists():
        stop_at[0] += 1
        count[0] = 0
        try:
            train(LINE, tmp_path, Place("seed", number=3), execution=execution)
        except Killed:
            continue
    assert stop_at[0] > 5
    assert kept(tmp_path) == kept(finished[0])


def test_a_stopped_run_leaves_no_result_and_goes_on(finished, tmp_path):
    def stop(training, event):
        if training.step == 4:
            training.seconds += 100.0
            training.save()
            raise Stopped

    with pytest.raises(Stopped):
        train(LINE, tmp_path, Place("seed", number=3), on_event=stop)
    assert not (tmp_path / "result.json").exists()
    steps = []
    result = train(
        LINE,
        tmp_path,
        Place("seed", number=3),
        on_event=lambda t, event: steps.append(t.step) if event == "step" else None,
    )
    assert steps == list(range(5, 13))
    assert result["seconds"] > 100.0  # those of before count
    assert kept(tmp_path) == kept(finished[0])


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil-was-here",)


def stopped_at(step, folder, spec=LINE, **options):
    """A run with a checkpoint of this step and no more."""

    def stop(training, event):
        if (training.step, event) == (step, "step"):
            training.save()
            raise Stopped

    with pytest.raises(Stopped):
        train(spec, folder, Place("seed", number=3), on_event=stop, **options)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def changed(folder, **values):
    state = torch.load(folder / checkpoint.NAME, weights_only=True)
    torch.save({**state, **values}, folder / checkpoint.NAME)


CODE = "it is no checkpoint, or holds more than tensors, numbers and text; kept"


@pytest.mark.parametrize(
    ("what", "problem", "aside"),
    [
        ("code", CODE, "damaged"),
        ("rubbish", CODE, "damaged"),
        ("text", CODE, "damaged"),
        ("nothing", "it cannot be read: EOFError; kept", "damaged"),
        ("half", "it cannot be read: ", "damaged"),
        ("folder", "it cannot be read: not a file; kept", "damaged"),
        ("a list", "it cannot be read: list indices must be", "damaged"),
        ("another run's", f"it is of another run (other, this is {LINE.hash})", "other"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_said_and_kept_beside(
    what, problem, aside, finished, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    stopped_at(4, folder)
    path = folder / checkpoint.NAME
    content = {"rubbish": b"\0" * 99, "text": b"lr: 0.1", "nothing": b""}
    content["half"] = path.read_bytes()[: path.stat().st_size // 2]
    if what in content:
        path.write_bytes(content[what])
    elif what == "folder":
        path.unlink()
        path.mkdir()
    elif what == "a list":
        torch.save([1], path)
    elif what == "code":
        torch.save({"spec": LINE.hash, "step": Evil()}, path)
    else:
        changed(folder, spec="other")
    before = path.read_bytes() if path.is_file() else None
    said = []
    train(LINE, folder, Place("seed", number=3), say=said.append)
    (line,) = said
    assert line.startswith(f"{path} is not used: {problem}")
    assert line.endswith(f"; kept as checkpoint.pt.{aside}, training begins at step 0")
    beside = folder / f"checkpoint.pt.{aside}"
    assert before is None or beside.read_bytes() == before
    beside.unlink() if beside.is_file() else beside.rmdir()
    assert kept(folder) == kept(finished[0])
    assert not (tmp_path / "evil-was-here").exists()


def test_what_is_raised_before_the_first_new_step_leaves_checkpoint_and_records_as_they_were(
    finished, monkeypatch, tmp_path
):
    """In the optimizer's construction, its loading, the model's, and the step itself; then the run goes on."""
    before = stopped_at(4, tmp_path)
    error = re.escape(f"cannot resume from {tmp_path / checkpoint.NAME} (")
    again = re.escape("): checkpoint and records are unchanged; remove that file to start over")

    def refuse(*_, **__):
        raise ValueError("not today")

    def memory(*_, **__):
        raise torch.OutOfMemoryError

    for name, raises in (("__init__", refuse), ("load_state_dict", refuse), ("step", refuse), ("step", memory)):
        with monkeypatch.context() as patched:
            patched.setattr(torch.optim.AdamW, name, raises)
            with pytest.raises(UserError, match=f"{error}(refused: ValueError: not today|out of memory: .*){again}"):
                train(LINE, tmp_path, Place("seed", number=3))
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    whole = torch.load(tmp_path / checkpoint.NAME, weights_only=True)["model"]
    changed(tmp_path, model={**whole, "0.weight": torch.zeros(8, 4)})
    other = (tmp_path / checkpoint.NAME).read_bytes()
    with pytest.raises(UserError, match=f"{error}refused: RuntimeError: .*size mismatch for 0.weight.*{again}"):
        train(LINE, tmp_path, Place("seed", number=3))
    assert (tmp_path / checkpoint.NAME).read_bytes() == other
    (tmp_path / checkpoint.NAME).write_bytes(before[checkpoint.NAME])
    train(LINE, tmp_path, Place("seed", number=3))
    assert kept(tmp_path) == kept(finished[0])


def test_a_run_that_fails_after_its_first_new_step_is_a_failure(monkeypatch, tmp_path):
    stopped_at(4, tmp_path)
    step, taken = torch.optim.AdamW.step, []

    def second_raises(optimizer, *arguments, **options):
        taken.append(1)
        if len(taken) == 2:
            raise ValueError("no more")
        return step(optimizer, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", second_raises)
    result = train(LINE, tmp_path, Place("seed", number=3))
    assert (result["failure"], result["reason"]) == ("refused", "ValueError: no more")
    assert not (tmp_path / checkpoint.NAME).exists()


@pytest.mark.parametrize("name", ["checkpoint.pt", "spec.json", "metrics.jsonl", "result.json"])
def test_a_full_disk_is_one_line_that_names_the_file_and_the_older_one_stays(name, finished, monkeypatch, tmp_path):
    before, fsync, descriptors = stopped_at(4, tmp_path), os.fsync, []

    def full(descriptor):
        if Path(f"/proc/self/fd/{descriptor}").readlink().name.startswith(f".{name}."):
            descriptors.append(descriptor)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(UserError) as raised:
            train(LINE, tmp_path, Place("seed", number=3), execution=Execution(checkpoint_seconds=0.0))
    said = (
        f"cannot write to {tmp_path / name} (No space left on device): free some space, and run the same command again"
    )
    assert (str(raised.value), len(descriptors)) == (said, 1)
    kept_whole = before.get(name)
    assert (tmp_path / name).read_bytes() == kept_whole if kept_whole is not None else not (tmp_path / name).exists()
    assert not list(tmp_path.glob(".*"))
    train(LINE, tmp_path, Place("seed", number=3))
    assert kept(tmp_path) == kept(finished[0])


@pytest.mark.parametrize("text", ["{", '{"status": 1}', '{"status": "finished", "failure": null, "validation": null}'])
@pytest.mark.parametrize("name", ["result.json", "spec.json", "metrics.jsonl"])
def test_a_damaged_record_is_kept_beside_and_the_run_made_again(name, text, finished, tmp_path):
    train(LINE, tmp_path, Place("seed", number=3))
    (tmp_path / name).write_text(text)
    train(LINE, tmp_path, Place("seed", number=3))
    assert kept(tmp_path)[:2] == kept(finished[0])[:2]
    assert (tmp_path / "result.json.damaged").exists()


@pytest.mark.parametrize("changed", ["seed", "settings", "place", "clip"])
def test_a_spec_changed_under_its_hash_is_no_record_of_the_run(changed, finished, tmp_path):
    place = Place("seed", number=3)
    train(LINE, tmp_path, place)
    spec = records.read_json(tmp_path / "spec.json")
    odd = {"seed": 6, "settings": {**ADAMW, "lr": 0.5}, "place": {**spec["place"], "number": 4}, "clip": 1.0}
    records.write_json(tmp_path / "spec.json", {**spec, changed: odd[changed]})
    assert stored(tmp_path, LINE, place) is None
    train(LINE, tmp_path, place)
    assert records.read_json(tmp_path / "spec.json") == spec
    assert stored(tmp_path, LINE, place) == records.read_json(tmp_path / "result.json")


def test_a_checkpoint_holds_every_generator_that_a_task_may_draw_from():
    def draw():
        return [
            *torch.rand(3).tolist(),
            *np.random.rand(3),
            np.random.standard_normal(),
            random.random(),
            random.gauss(),
        ]

    draw()  # an odd number of normal ones: half of a pair is left
    states = checkpoint.generators()
    later = draw()
    assert draw() != later
    buffer = io.BytesIO()
    torch.save(states, buffer)
    buffer.seek(0)
    checkpoint.set_generators(torch.load(buffer, weights_only=True))
    assert draw() == later
