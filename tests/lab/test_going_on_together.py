"""Runs on two processes that are stopped, disagree, are refused, and go on."""

import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from launching import on_ranks
from lines import ADAMW, saved
from safetensors.torch import load_file

import thalweg
from thalweg.lab.engine import Execution, RunSpec, checkpoint, train, weights
from thalweg.records import files as records

ODD = RunSpec("small_tasks:Line", 15, 20, "adamw", ADAMW, seed=3, test=True)
TIED = replace(ODD, task="small_tasks:TiedLine")
HERE = Path(__file__).parent
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def environment():
    found = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {**found, "PYTHONPATH": os.pathsep.join([str(Path(thalweg.__file__).parents[1]), str(HERE)])}


def history(folder):
    lines = records.read_lines(folder / "metrics.jsonl")
    test = records.read_json(folder / "result.json")["test"]
    return [number for line in lines for number in (line["step"], line["loss"], line["validation"])] + [test]


@pytest.mark.slow
def test_two_processes_go_on_as_one_and_none_waits_for_the_other(tmp_path):
    on_ranks(2, [str(HERE / "on_two_ranks_going_on.py"), str(tmp_path)])
    train(ODD, tmp_path / "alone")
    same = [f"{name}-{sharding}" for name in ("parts", "raised", "signal") for sharding in ("ddp", "fsdp2")]
    same += [f"{name}-{sharding}-0" for name in ("own", "swapped") for sharding in ("ddp", "fsdp2")]
    same += [f"half-{sharding}" for sharding in ("ddp", "fsdp2")]
    for name in same:
        assert history(tmp_path / name) == pytest.approx(history(tmp_path / "alone"), rel=1e-4), name
    assert not list(tmp_path.glob(f"**/{checkpoint.OTHER}"))
    file = tmp_path / "alone.safetensors"
    train(TIED, tmp_path / "tied", execution=Execution(save_model=file))
    whole = load_file(file)
    assert set(whole) == {"0.weight", "0.bias", "2.bias", "3.weight", "3.bias"}
    train(replace(TIED, init=weights.hash_of(file)), tmp_path / "from", execution=Execution(init_from=file))
    for sharding in ("ddp", "fsdp2"):
        found = load_file(tmp_path / f"{sharding}.safetensors")
        assert set(found) == set(whole)
        for name, value in found.items():
            torch.testing.assert_close(value, whole[name], rtol=1e-3, atol=1e-5)
        assert history(tmp_path / f"from-{sharding}") == pytest.approx(history(tmp_path / "from"), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["refused", "fault", "killed"])
def test_an_error_of_one_process_is_said_by_all_and_names_it(how, tmp_path):
    on_ranks(2, [str(HERE / "on_two_ranks_parted.py"), how, str(tmp_path)], 100.0)
    if how == "refused":
        said = records.read_json(tmp_path / "one" / "result.json")
        assert said["reason"] == f"ValueError: no further (process 1 of 2 on {platform.node()})"
    else:
        assert not list(tmp_path.glob("one/result.json"))


@pytest.mark.slow
def test_what_two_processes_save_any_number_of_them_reads(tmp_path):
    script = str(HERE / "on_other_numbers_of_ranks.py")
    on_ranks(2, [script, "save", str(tmp_path)])
    for ranks in (1, 3, 4):
        on_ranks(ranks, [script, "read", str(tmp_path)])


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_and_the_same_command_goes_on(tmp_path):
    command = [*TWO, "-m", "thalweg", "train", "small_tasks:Slow", "--batch-size", "16", "--optimizer", "e-adamw"]
    command += ["--sharding", "fsdp2", "--steps", "100", "--evaluations", "50", "--checkpoint-seconds", "9999"]
    command += ["--workers", "1", "--track", "none", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120.0
    while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert errors.count("ended by SIGTERM; completed work is stored, and the same command resumes") == 1, errors
    (step,) = saved(tmp_path / "run")
    assert 0 < step < 100
    assert not list(tmp_path.glob("run/result.json"))
    said = on_ranks(2, command[len(TWO) :])
    assert "finished: " in said
    steps = [int(line.split()[1].split("/")[0]) for line in said.splitlines() if line.startswith("step ")]
    assert steps[0] > step
