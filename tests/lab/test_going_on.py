"""Runs that are killed, stopped, damaged, and go on."""

import errno
import io
import os
import pickle
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lines import ADAMW, LINE, content, kept, saved
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner, load, save

from thalweg.lab.engine import Execution, Place, RunSpec, Stopped, placement, stored, train
from thalweg.lab.saved import checkpoint, resuming
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


def test_state_lies_in_memory_as_before(tmp_path):
    """SOAP's bases are transposed matrices: read as rows, a product with them is another in its last bits."""
    strides = {}

    def on_event(training, event):
        for key, state in training.inner().state_dict()["state"].items():
            found = [basis.stride() for basis in state["Q"] if isinstance(basis, torch.Tensor)]
            strides.setdefault(key, found)
            assert found == strides[key], (training.step, event, key)
        if (training.step, event) == (3, "step") and not (tmp_path / "again").exists():
            (tmp_path / "again").touch()
            raise Killed

    settings = {"lr": 0.01, "weight_decay": 0.0, "momentum": 0.9, "beta2": 0.99}
    spec, execution = RunSpec("small_tasks:Moody", 16, 5, "soap", settings), Execution(checkpoint_seconds=0.0)
    with pytest.raises(Killed):
        train(spec, tmp_path / "run", execution=execution, on_event=on_event)
    train(spec, tmp_path / "run", execution=execution, on_event=on_event)
    assert (1, 8) in strides[0]


@pytest.mark.parametrize("call", ["fsync", "replace", "rename"])
def test_a_run_killed_in_every_write_ends_as_if_nothing_had_happened(call, finished, monkeypatch, tmp_path):
    """In that of a checkpoint, which goes on beside training, it is an error that the run is told of."""
    execution = Execution(checkpoint_seconds=0.0)
    owner = os if call == "fsync" else Path
    original, count, stop_at = getattr(owner, call), [0], [0]

    def killed(*arguments):
        count[0] += 1
        if count[0] == stop_at[0]:
            raise Killed("here")
        return original(*arguments)

    monkeypatch.setattr(owner, call, killed)
    while not (tmp_path / "result.json").exists():
        stop_at[0] += 1
        count[0] = 0
        try:
            train(LINE, tmp_path, Place("seed", number=3), execution=execution)
        except Killed:
            pass
        except UserError as error:
            if "(here)" not in str(error):
                raise
    assert stop_at[0] > 4
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


def test_the_scale_of_float16_goes_on(monkeypatch, tmp_path):
    """With torch's scaler for the CPU, on which Accelerate itself refuses fp16."""
    made, scales = placement.accelerator_of, {"whole": [], "killed": []}

    def with_scaler(*arguments):
        accelerator = made(*arguments)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
        return accelerator

    def scaled(name, kill):
        def on_event(training, event):
            if event == "step":
                scales[name].append(training.accelerator.scaler.get_scale())
            if kill and (training.step, event) == (5, "step"):
                training.save()
                raise Stopped

        return on_event

    monkeypatch.setattr(placement, "accelerator_of", with_scaler)
    train(LINE, tmp_path / "whole", on_event=scaled("whole", False))
    with pytest.raises(Stopped):
        train(LINE, tmp_path / "killed", on_event=scaled("killed", True))
    train(LINE, tmp_path / "killed", on_event=scaled("killed", False))
    assert scales["killed"] == scales["whole"] == [1024.0 * 2 ** (step // 3) for step in range(1, 13)]
    assert kept(tmp_path / "killed") == kept(tmp_path / "whole")


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil-was-here",)


def stopped_at(step, folder, spec=LINE, model=None, **options):
    """A run with a checkpoint of this step and no more, of another model if one is given."""

    def stop(training, event):
        if (training.step, event) == (step, "step"):
            training.model = model or training.model
            training.save()
            raise Stopped

    with pytest.raises(Stopped):
        train(spec, folder, Place("seed", number=3), on_event=stop, **options)
    return content(folder)


def checkpoints(folder):
    """The folders of the checkpoints in a run's folder, the first steps first."""
    return sorted((folder / checkpoint.NAME).iterdir())


def written_with(path, run, **others):
    """A checkpoint in which these bytes are in the place of what is no tensor."""
    shutil.rmtree(path)
    tensors = {checkpoint.RUN: torch.frombuffer(bytearray(run), dtype=torch.uint8), **others}
    save(tensors, checkpoint_id=path, planner=DefaultSavePlanner(flatten_state_dict=False), no_dist=True)


def bytes_of(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def flipped(path, place, bit=0):
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def flipped_in_a_weight(path):
    data = (path / "__0_0.distcp").read_bytes()
    tensors = {"model/0.weight": torch.empty(8, 3)}
    load(tensors, checkpoint_id=path, planner=DefaultLoadPlanner(flatten_state_dict=False), no_dist=True)
    flipped(path / "__0_0.distcp", data.index(tensors["model/0.weight"].numpy().tobytes()) + 9)


def of_another_run(path):
    folder = path.parents[1]
    shutil.rmtree(folder)
    stopped_at(4, folder, replace(LINE, seed=6))
    for one in folder.glob("*.json*"):
        one.unlink()


DAMAGES = {
    "code": (
        lambda path: (path / ".metadata").write_bytes(pickle.dumps(Evil())),
        "cannot be read: posix.system has no",
    ),
    "code in bytes": (lambda path: written_with(path, bytes_of({"step": Evil()})), "cannot be read: Weights only load"),
    "code for a tensor": (
        lambda path: written_with(path, b"1", model=Evil()),
        "cannot be read: torch.distributed.check",
    ),
    "text": (lambda path: (path / ".metadata").write_text("lr: 0.1"), "cannot be read: "),
    "nothing": (lambda path: (path / ".metadata").write_bytes(b""), "cannot be read: Ran out of input; kept"),
    "another object": (
        lambda path: (path / ".metadata").write_bytes(pickle.dumps({})),
        "cannot be read: .metadata is of",
    ),
    "half": (lambda path: os.truncate(path / "__0_0.distcp", 999), "lacks __0_0.distcp, or a part of that; kept"),
    "no file": (lambda path: (path / "__0_0.distcp").unlink(), "lacks __0_0.distcp, or a part of that; kept"),
    "a bit": (flipped_in_a_weight, "cannot be read: __0_0.distcp is damaged; kept"),
    "a list": (lambda path: written_with(path, bytes_of([1])), "cannot be read: list indices must be"),
    "another run's": (of_another_run, f"is of another run ({replace(LINE, seed=6).hash}, this is {LINE.hash})"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_checkpoint_that_cannot_be_used_is_said_and_kept_beside(what, finished, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder, said, (damage, problem) = tmp_path / "run", [], DAMAGES[what]
    stopped_at(4, folder)
    damage(checkpoints(folder)[0])
    (path,) = checkpoints(folder)
    before = content(path)
    train(LINE, folder, Place("seed", number=3), say=said.append)
    (line,) = said
    aside = checkpoint.OTHER if what == "another run's" else checkpoint.DAMAGED
    assert line.startswith(f"{path} is not used: it {problem}")
    assert line.endswith(f"; kept in {aside}, training begins at step 0")
    assert content(folder / aside / path.name) == before
    shutil.rmtree(folder / aside)
    assert kept(folder) == kept(finished[0])
    assert not (tmp_path / "evil-was-here").exists()


@pytest.mark.parametrize("what", ["half", "a bit"])
def test_a_run_goes_on_from_the_checkpoint_before_one_that_is_damaged(what, finished, tmp_path):
    said, steps = [], []
    stopped_at(7, tmp_path, execution=Execution(checkpoint_seconds=0.0))
    assert saved(tmp_path)[-3:] == [6, 7, 7]
    for path in checkpoints(tmp_path)[-2:]:
        DAMAGES[what][0](path)
    train(
        LINE,
        tmp_path,
        Place("seed", number=3),
        on_event=lambda t, event: steps.append(t.step) if event == "step" else None,
        say=said.append,
    )
    assert steps == list(range(7, 13))
    assert [line.rpartition(", ")[2] for line in said] == ["training resumes at step 6"] * 2
    shutil.rmtree(tmp_path / checkpoint.DAMAGED)
    assert kept(tmp_path) == kept(finished[0])


def test_one_that_a_kill_cut_short_is_passed_over(finished, tmp_path):
    stopped_at(7, tmp_path, execution=Execution(checkpoint_seconds=0.0))
    before, *last = checkpoints(tmp_path)[-3:]
    for path in last:
        (path / ".metadata").unlink()
    said, steps = [], []

    def on_event(training, event):
        steps.append(training.step)
        if training.step == 10 and event == "step":
            assert saved(tmp_path)[:2] == [8, 9]  # and perhaps 10, which is being written
            assert not before.exists()
            assert not any(path.exists() for path in last)

    train(
        LINE,
        tmp_path,
        Place("seed", number=3),
        execution=Execution(checkpoint_seconds=0.0),
        on_event=on_event,
        say=said.append,
    )
    assert (steps[0], said) == (7, [])
    assert kept(tmp_path) == kept(finished[0])
    shutil.rmtree(tmp_path)
    stopped_at(4, tmp_path)
    (checkpoints(tmp_path)[0] / ".metadata").unlink()
    train(LINE, tmp_path, Place("seed", number=3), say=said.append)
    assert said == [f"no checkpoint in {tmp_path / checkpoint.NAME} is complete: training begins at step 0"]
    assert kept(tmp_path) == kept(finished[0])


def test_whatever_bit_of_its_metadata_is_wrong_a_checkpoint_is_read_as_it_was_or_not_at_all(tmp_path):
    from thalweg.lab.engine import Training

    stopped_at(4, tmp_path)
    path = checkpoints(tmp_path)[0] / ".metadata"
    data = path.read_bytes()
    training = Training(LINE, tmp_path, Execution())
    model, optimizer = training.bare(), training.inner()

    def read():
        return resuming.Folder(tmp_path, LINE.hash).newest(model, optimizer)

    _, tensors = read()
    refused = 0
    for place in random.Random(0).sample(range(len(data)), 150):
        path.write_bytes(data)
        flipped(path, place, place % 8)
        found = read()
        refused += found is None
        assert found is None or all(found[1][name].equal(value) for name, value in tensors.items()), place
    assert refused > 50


def test_one_in_a_single_file_of_an_older_version_is_said_and_kept_beside(finished, tmp_path):
    (tmp_path / checkpoint.OLD).write_bytes(b"of before")
    said = []
    train(LINE, tmp_path, Place("seed", number=3), say=said.append)
    assert said == [
        f"{tmp_path / checkpoint.OLD} is not used: it is of an older version; kept as checkpoint.pt.other, "
        "training begins at step 0"
    ]
    (tmp_path / "checkpoint.pt.other").unlink()
    assert kept(tmp_path) == kept(finished[0])


def test_what_is_raised_before_the_first_new_step_leaves_checkpoint_and_records_as_they_were(
    finished, monkeypatch, tmp_path
):
    """In the optimizer's construction, its loading, the model's, and the step itself; then the run goes on."""
    before = stopped_at(4, tmp_path)
    error = re.escape(f"cannot resume from {tmp_path / checkpoint.NAME} (")
    again = re.escape("): checkpoint and records are unchanged; remove that folder to start over")

    def refuse(*_, **__):
        raise ValueError("not today")

    def memory(*_, **__):
        raise torch.OutOfMemoryError

    for name, raises in (("__init__", refuse), ("load_state_dict", refuse), ("step", refuse), ("step", memory)):
        with monkeypatch.context() as patched:
            patched.setattr(torch.optim.AdamW, name, raises)
            with pytest.raises(UserError, match=f"{error}(refused: ValueError: not today|out of memory: .*){again}"):
                train(LINE, tmp_path, Place("seed", number=3))
        assert content(tmp_path) == before
    with monkeypatch.context() as patched:
        patched.setattr(torch, "load", memory)
        with pytest.raises(UserError, match=f"{error}out of memory: .*{again}"):
            train(LINE, tmp_path, Place("seed", number=3))
    assert content(tmp_path) == before
    other = stopped_at(4, tmp_path / "other", model=torch.nn.Sequential(torch.nn.Linear(4, 8)))
    with pytest.raises(UserError, match=r"cannot resume from .*refused: RuntimeError: .*size mismatch for 0.weight"):
        train(LINE, tmp_path / "other", Place("seed", number=3))
    assert content(tmp_path / "other") == other
    shutil.rmtree(tmp_path / "other")
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


@pytest.mark.parametrize("name", ["spec.json", "metrics.jsonl", "result.json", "__0_0.distcp", ".metadata.tmp"])
def test_a_full_disk_is_one_line_that_names_the_file_and_the_older_one_stays(name, finished, monkeypatch, tmp_path):
    before, fsync, descriptors = stopped_at(4, tmp_path), os.fsync, []

    def full(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.name.removeprefix(".").startswith(f"{name.removeprefix('.')}"):
            descriptors.append(path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(UserError) as raised:
            train(LINE, tmp_path, Place("seed", number=3), execution=Execution(checkpoint_seconds=0.0))
    (path,) = descriptors
    path = tmp_path / name if path.parent == tmp_path else path.parent
    assert str(raised.value) == (
        f"cannot write to {path} (No space left on device): free some space, and run the same command again"
    )
    if path.parent.name == checkpoint.NAME:
        assert not path.exists()
        assert saved(tmp_path) == [4]
        assert before.items() - content(tmp_path).items() <= {("metrics.jsonl", before["metrics.jsonl"])}
    else:
        assert content(tmp_path).get(name) == before.get(name)
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
