"""Runs that are killed, stopped, damaged, and go on."""

import os
import pickle

import pytest
import torch
from lines import ADAMW, LINE, kept

from thalweg import records
from thalweg.lab.engine import (
    How,
    Place,
    RunSpec,
    Stopped,
    checkpoint,
    stored,
    train,
)


class Killed(BaseException):
    """As sudden as a kill: nothing of ours catches it."""


@pytest.mark.parametrize("optimizer", ["alto", "soap", "schedule-free", "ema-nesterov", "e-muon"])
def test_a_run_killed_at_every_event_ends_as_if_nothing_had_happened(optimizer, tmp_path):
    from thalweg.lab.contenders import contender, defaults

    settings = defaults(contender(optimizer), 16)
    spec = RunSpec("small_tasks:Moody", 16, 8, optimizer, settings, test=True, evaluations=2)
    how = How(checkpoint_seconds=0.0)
    train(spec, tmp_path / "whole", how=how)
    kills = 0
    while not (tmp_path / "killed" / "result.json").exists():
        left = [kills % 3 + 1]

        def heard(training, event, left=left):
            left[0] -= event != "evaluation"
            if left[0] == 0:
                raise Killed

        try:
            train(spec, tmp_path / "killed", how=how, heard=heard)
        except Killed:
            kills += 1
            torch.rand(7)  # the generators are not where they were
        assert kills < 60
    assert kills >= 6
    assert kept(tmp_path / "killed") == kept(tmp_path / "whole")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_run_killed_in_every_write_ends_as_if_nothing_had_happened(call, finished, monkeypatch, tmp_path):
    from pathlib import Path

    how = How(checkpoint_seconds=0.0)
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
            train(LINE, tmp_path, Place("seed", number=3), how=how)
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
        train(LINE, tmp_path, Place("seed", number=3), heard=stop)
    assert not (tmp_path / "result.json").exists()
    steps = []
    result = train(
        LINE,
        tmp_path,
        Place("seed", number=3),
        heard=lambda t, event: steps.append(t.step) if event == "step" else None,
    )
    assert steps == list(range(5, 13))
    assert result["seconds"] > 100.0  # those of before count
    assert kept(tmp_path) == kept(finished[0])


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil-was-here",)


@pytest.mark.parametrize("what", ["code", "rubbish", "nothing", "another run's"])
def test_a_checkpoint_that_is_not_ours_is_not_loaded(what, finished, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    content = {"code": pickle.dumps({"spec": LINE.hash, "step": Evil()}), "rubbish": b"\0" * 99, "nothing": b""}
    if what == "another run's":
        torch.save({"spec": "other"}, folder / checkpoint.NAME)
    else:
        (folder / checkpoint.NAME).write_bytes(content[what])
    train(LINE, folder, Place("seed", number=3))
    assert kept(folder) == kept(finished[0])
    assert not (tmp_path / "evil-was-here").exists()


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
