"""Runs on two processes that are stopped, disagree, are refused, and go on."""

import os
import platform
import signal
import sys
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE, Popen

import pytest
import torch
from launching import on_ranks
from lines import ADAMW, saved
from safetensors.torch import load_file

import thalweg
from thalweg.commands import main as cli
from thalweg.lab.engine import Execution, RunSpec, train
from thalweg.lab.saved import checkpoint, weights
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
@pytest.mark.parametrize("how", ["refused", "fault", "begun", "killed"])
def test_an_error_of_one_process_is_said_by_all_and_names_it(how, tmp_path):
    on_ranks(2, [str(HERE / "on_two_ranks_parted.py"), how, str(tmp_path)], 100.0)
    if how == "refused":
        said = records.read_json(tmp_path / "one" / "result.json")
        assert said["reason"] == f"ValueError: no further (process 1 of 2 on {platform.node()})"
    else:
        assert not list(tmp_path.glob("one/result.json"))
    if how == "killed":
        on_ranks(2, [str(HERE / "on_two_ranks_parted.py"), "resumed", str(tmp_path)], 100.0)


@pytest.mark.slow
def test_what_two_processes_save_any_number_of_them_reads(tmp_path):
    script = str(HERE / "on_other_numbers_of_ranks.py")
    on_ranks(2, [script, "save", str(tmp_path)])
    for ranks in (1, 3, 4):
        on_ranks(ranks, [script, "read", str(tmp_path)])


@pytest.mark.slow
def test_torchrun_is_ended_and_interrupted_and_one_process_goes_on(tmp_path, capsys):
    command = ["train", "small_tasks:Slow", "--batch-size", "16", "--optimizer", "e-adamw", "--sharding", "fsdp2"]
    command += ["--steps", "100", "--evaluations", "50", "--checkpoint-seconds", "9999", "--workers", "1"]
    command += ["--track", "none", "--out", str(tmp_path / "run")]
    step = 0
    for number, says in ((signal.SIGTERM, "ended by SIGTERM"), (signal.SIGINT, "interrupted")):
        process = Popen([*TWO, "-m", "thalweg", *command], env=environment(), stdout=PIPE, stderr=PIPE, text=True)
        line = ""
        while not line.startswith("step ") and process.poll() is None:
            line = process.stdout.readline()
        assert int(line.split()[1].split("/")[0]) > step
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert errors.count(f"{says}; completed work is stored, and the same command resumes") == 1, errors
        assert step < saved(tmp_path / "run")[-1] < 100
        step = saved(tmp_path / "run")[-1]
    assert not list(tmp_path.glob("run/result.json"))
    cli.main(command)
    steps = [int(line.split()[1].split("/")[0]) for line in capsys.readouterr().out.splitlines() if line[:5] == "step "]
    assert (min(steps) > step, steps[-1]) == (True, 100)
