"""Steps on shards: what a rank measures, what its parent makes of it, and both together in small worlds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import prod
from types import SimpleNamespace

import psutil
import pytest
import torch
from launching import Launched
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard

import thalweg
from thalweg.bench import sharded, world
from thalweg.bench.candidates import CANDIDATES, Candidate, fresh_gradients, make_gradients
from thalweg.bench.shapes import MODELS, TINY
from thalweg.bench.sharded import DiedError, ShardedBenchmark, WorldSettings, conversation
from thalweg.bench.statistics import Spread
from thalweg.bench.wire import Collectives, closed_form
from thalweg.bench.world import Task
from thalweg.commands import main as cli
from thalweg.records.errors import UserError

TASK = Task("tiny", 4, "fake", "float32", ["alto", "adamw-foreach"], "adamw-foreach", rounds=4, warmup=1)


@pytest.fixture
def four_ranks():
    world.join(TASK, 0, "")
    yield init_device_mesh("cpu", (4,))
    dist.destroy_process_group()


def told(task):
    found = []
    world.carry_out(task, found.append)
    return found


# What a rank measures


def test_a_rank_has_its_shards_alone(four_ranks):
    weights = world.sharded(TINY, four_ranks, torch.bfloat16)
    assert [tuple(p.shape) for p in weights.all()] == list(TINY.shapes)
    assert [tuple(p.to_local().shape) for p in weights.all()] == [(16, 32), (8,), (8, 32), (), (1, 8, 16)]
    assert {p.placements for p in weights.all()} == {(Shard(0),), (Replicate(),)}
    assert {p.dtype for p in weights.all()} == {torch.bfloat16}
    assert weights.plain[0].to_local().std().item() == pytest.approx(0.02, rel=0.1)


def test_what_rounds_tell(four_ranks):
    found = told(TASK)
    assert [list(one) for one in found] == [["ready", "collectives", "bytes", "closed_form"]] * 2 + [
        ["warmup", "left_out"],
        *[["round", "left_out"]] * 4,
    ]
    assert [one["ready"] for one in found[:2]] == ["adamw-foreach", "alto"]  # the reference starts first
    assert all(set(one["round"]) == {"alto", "adamw-foreach"} for one in found[3:])
    assert all(0.0 < cpu < 10.0 and 0.0 < wall < 10.0 for one in found[3:] for cpu, wall in one["round"].values())
    assert found[0]["bytes"] == 0
    assert found[0]["collectives"] == {}
    assert found[1]["bytes"] > 0
    assert found[1]["collectives"]


def test_who_is_slow_takes_part_in_some_rounds(four_ranks):
    found = told(replace(TASK, every={"alto": 3}))
    assert ["alto" in one["round"] for one in found[3:]] == [True, False, False, True]
    assert all("adamw-foreach" in one["round"] for one in found[3:])


def test_first_steps(four_ranks):
    (found,) = told(replace(TASK, optimizers=["e-adamw"], rounds=0))
    assert [len(seconds) for seconds in found["first"]] == [2, 2]


def test_muon_has_matrices_that_are_no_vocabulary(four_ranks):
    weights = world.sharded(replace(TINY, plain=((10_000, 4), *TINY.plain)), four_ranks, torch.float32)
    for name in ("muon", "e-muon"):
        muon, others = CANDIDATES[name].start(weights).optimizers
        shapes = [[tuple(p.shape) for g in one.param_groups for p in g["params"]] for one in (muon, others)]
        assert shapes == [[(64, 32), (32, 32)], [(10_000, 4), (32,), (), (4, 8, 16)]]
        assert {(g["lr"], g["weight_decay"]) for one in (muon, others) for g in one.param_groups} == {(1e-4, 0.01)}


class Refuses:
    """An optimizer that makes so many steps."""

    def __init__(self, steps):
        self.steps = steps

    def step(self):
        self.steps -= 1
        if self.steps < 0:
            raise ValueError("no more")


@pytest.mark.parametrize(
    ("steps", "why"), [(1, "ValueError: no more"), (4, "after its first step, ValueError: no more")]
)
def test_who_fails_is_told(four_ranks, monkeypatch, steps, why):
    refuses = Candidate("refuses", "refuses", lambda weights: Refuses(steps))
    monkeypatch.setitem(CANDIDATES, "refuses", refuses)
    found = told(replace(TASK, optimizers=["adamw-foreach", "refuses"]))
    assert found[-1]["left_out"] == {"refuses": why}
    assert set(found[-1]["round"]) == {"adamw-foreach"}
    with pytest.raises(UserError, match=rf"the reference refuses cannot run on tiny, 4 simulated ranks \({why}\)"):
        told(replace(TASK, optimizers=["refuses"], reference="refuses"))
    monkeypatch.setitem(CANDIDATES, "refuses", replace(refuses, build=lambda weights: Refuses(0)))
    assert told(replace(TASK, optimizers=["refuses"], rounds=0)) == [{"left_out": "ValueError: no more"}]


def test_collectives_are_counted(four_ranks):
    (x,) = world.sharded(replace(TINY, plain=((8, 3),), stacked=()), four_ranks, torch.float32).all()
    counted = Collectives()
    dist.all_reduce(torch.zeros(7))
    with counted:
        dist.all_reduce(torch.zeros(5, dtype=torch.float64))
        x.full_tensor()
        x.detach().sum().sqrt()  # as an operation on a DTensor makes it
        dist.barrier()
    assert counted.calls == {"allreduce": 1, "all_gather_into_tensor": 1, "all_reduce": 1, "barrier": 1}
    assert counted.bytes == 5 * 8 + 24 * 4 + 4 + 1


@pytest.mark.parametrize(
    ("optimizer", "calls", "adapted"),
    [
        (thalweg.ALTO, 2, True),
        (partial(thalweg.Lamb, nonfinite="propagate"), 1, True),
        (thalweg.EAdamW, 0, False),
        (partial(thalweg.EAdamW, nonfinite="skip"), 1, False),
    ],
)
def test_bytes_are_those_of_the_closed_form(four_ranks, optimizer, calls, adapted):
    weights = world.sharded(replace(TINY, plain=TINY.plain[:3]), four_ranks, torch.float32)  # a number cannot be cut
    groups = [{"params": weights.plain}, {"params": weights.stacked}]
    if adapted:
        groups[1]["norm_dims"] = (-2, -1)
    made = optimizer(groups)
    for _ in range(2):
        fresh_gradients(weights, make_gradients(weights), make_gradients(weights))
        counted = Collectives()
        with counted:
            made.step()
    assert counted.bytes == closed_form(made, 4)
    assert sum(counted.calls.values()) == calls
    assert (counted.bytes > 0) == (calls > 0)


def test_of_others_there_is_no_closed_form(four_ranks):
    weights = world.sharded(TINY, four_ranks, torch.float32)
    assert all(closed_form(CANDIDATES[name].start(weights), 4) is None for name in ("adamw-fused", "muon", "e-muon"))


# What its parent makes of it

SETTINGS = WorldSettings(4, "fake", "float32", rounds=12, warmup=1, reference="adamw-foreach", seed=0)
NAMES = ["alto", "adamw-foreach", "muon"]


def bench(settings=SETTINGS, names=NAMES):
    return ShardedBenchmark(TINY, [CANDIDATES[name] for name in names], settings)


@pytest.fixture
def script(monkeypatch):
    """``script(first, rounds)``: what worlds tell instead; returns the tasks that are given to them."""

    def make(first, rounds):
        tasks = []

        def tell(found):
            for one in found:
                if isinstance(one, BaseException):
                    raise one
                yield one

        @contextmanager
        def scripted(task):
            tasks.append(task)
            yield tell(rounds if task.rounds else [first[task.optimizers[0]]])

        monkeypatch.setattr(sharded, "conversation", scripted)
        return tasks

    return make


FIRST = {
    "adamw-foreach": {"first": [[3.0, 4.0], [1.0, 1.0]]},
    "alto": {"first": [[8.0, 9.0], [5.0, 6.0]]},
    "muon": {"first": [[300.0, 1.0], [200.0, 1.0]]},
}
READY = [
    {"ready": name, "collectives": {"allreduce": k}, "bytes": 8 * k, "closed_form": None}
    for k, name in enumerate(NAMES)
]


def timings(**names):
    return {"round": {name.replace("_", "-"): seconds for name, seconds in names.items()}, "left_out": {}}


ROUNDS = [
    {"warmup": {}, "left_out": {}},
    timings(adamw_foreach=[1.0, 2.0], alto=[2.0, 2.0], muon=[100.0, 200.0]),
    timings(adamw_foreach=[2.0, 2.0], alto=[8.0, 4.0]),
    timings(adamw_foreach=[4.0, 2.0], alto=[12.0, 6.0]),
]


def test_the_record_is_of_what_is_told(script):
    tasks = script(FIRST, [*READY, *ROUNDS])
    one, said = bench(), []
    one.telling(said.append).run()
    assert [task.optimizers for task in tasks[:3]] == [["adamw-foreach"], ["alto"], ["muon"]]
    assert (tasks[3].optimizers, tasks[3].every) == (["adamw-foreach", "alto", "muon"], {"muon": 10})
    record = one.record()
    assert (record["ranks"], record["backend"], record["rounds"], record["left_out"]) == (4, "fake", 3, {})
    alto = record["contenders"]["alto"]
    assert Spread(**alto["median_seconds"]) == Spread(8.0, 5.0, 10.0)
    assert Spread(**alto["paired_ratio"]) == Spread(3.0, 2.5, 3.5)
    assert alto["ratio_of_medians"]["median"] == 4.0
    assert Spread(**alto["median_wall_seconds"]) == Spread(4.0, 3.0, 5.0)
    assert Spread(**alto["paired_ratio_of_wall_seconds"]) == Spread(2.0, 1.5, 2.5)
    assert (alto["first_step_seconds"], alto["second_step_seconds"]) == (8.0, 5.0)
    assert (alto["collectives"], alto["bytes"]) == ({"allreduce": 0}, 0)
    assert (alto["seconds"], alto["wall_seconds"]) == ((2.0, 8.0, 12.0), (2.0, 4.0, 6.0))
    muon = record["contenders"]["muon"]
    assert (muon["rounds"], muon["paired_ratio"]["median"]) == ([0], 100.0)  # of the rounds that it took part in
    assert len(said) == 3 + 3 + 4


def test_parameters_on_rank_0(four_ranks):
    for model in (TINY, replace(MODELS["moe-narrow"], plain=MODELS["moe-narrow"].plain[:17], stacked=((6, 4, 2),))):
        local = sum(p.to_local().numel() for p in world.sharded(model, four_ranks, torch.float32).all())
        assert ShardedBenchmark(model, [], SETTINGS).local == local
    assert local < sum(map(prod, model.shapes)) / 3


def test_an_interruption_leaves_the_complete_rounds(script):
    script(FIRST, [*READY, *ROUNDS[:3], KeyboardInterrupt()])
    one = bench()
    with pytest.raises(KeyboardInterrupt):
        one.run()
    assert one.record()["rounds"] == 2


@pytest.mark.parametrize("rounds", [[KeyboardInterrupt()], [*READY, *ROUNDS[:1], KeyboardInterrupt()]])
def test_an_interruption_before_the_first_round_leaves_nothing(script, rounds):
    script(FIRST, rounds)
    one = bench()
    with pytest.raises(KeyboardInterrupt):
        one.run()
    assert one.record() is None


def test_who_is_left_out_is_listed(script):
    later = timings(adamw_foreach=[1.0, 1.0]) | {"left_out": {"alto": "after its first step, broken"}}
    tasks = script(FIRST | {"muon": {"left_out": "not here"}}, [READY[1], READY[0], *ROUNDS[1:3], later])
    one = bench()
    one.run()
    assert tasks[-1].optimizers == ["adamw-foreach", "alto"]
    record = one.record()
    assert record["left_out"] == {"muon": "not here", "alto": "after its first step, broken"}
    assert list(record["contenders"]) == ["adamw-foreach"]


def test_without_the_reference_there_is_nothing_to_say(script):
    why = r"the reference adamw-foreach cannot run on tiny, 4 simulated ranks \(broken\): choose another --reference"
    script(FIRST | {"adamw-foreach": {"left_out": "broken"}}, [])
    with pytest.raises(UserError, match=why):
        bench().run()
    script(FIRST, [{"error": "the reference is broken"}])
    with pytest.raises(UserError, match="the reference is broken"):
        bench().run()


def test_a_process_that_dies_of_anothers_optimizer_leaves_it_out(script, monkeypatch):
    script(FIRST, [*READY[:2], *ROUNDS])
    scripted = sharded.conversation

    @contextmanager
    def dies(task):
        if task.optimizers == [dying]:
            raise DiedError("of bad luck")
        with scripted(task) as told:
            yield told

    monkeypatch.setattr(sharded, "conversation", dies)
    dying = "muon"
    one = bench()
    one.run()
    assert one.left_out == {"muon": "of bad luck"}
    dying = "alto"
    with pytest.raises(RuntimeError, match="alto, tiny, 4 simulated ranks: of bad luck"):
        bench().run()


def test_memory_is_looked_at_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr(sharded, "free_bytes", lambda device: 10_000)
    why = r"not enough memory for tiny, 4 simulated ranks: up to .* GiB needed, 0.0 free; choose fewer optimizers with"
    with pytest.raises(UserError, match=why):
        bench().check_memory()
    monkeypatch.setattr(sharded, "free_bytes", lambda device: 905 * (20 + 3 * 16))
    bench().check_memory()
    with pytest.raises(UserError, match="tiny, 4 ranks"):
        bench(replace(SETTINGS, backend="gloo")).check_memory()


# Both together


class Forked(Launched):
    """In place of a ``Popen``: a fork that has torch loaded. How one starts, tests of other processes see."""

    def __init__(self, command, *, stdin, stdout, stderr, env, text, start_new_session):
        assert (stdin, text, start_new_session) == (subprocess.PIPE, True, True)
        read, given = os.pipe()
        told, write = os.pipe() if stdout == subprocess.PIPE else (None, os.open(os.devnull, os.O_WRONLY))
        super().__init__(command[1:], (read, write, stderr.fileno()), env)
        os.close(read)
        os.close(write)
        self.stdin, self.stdout = os.fdopen(given, "w"), None if told is None else os.fdopen(told)

    def kill(self):
        self.process.kill()


@pytest.fixture
def forked(monkeypatch):
    there = SimpleNamespace(Popen=Forked, PIPE=subprocess.PIPE, DEVNULL=subprocess.DEVNULL)
    monkeypatch.setattr(sharded, "subprocess", there)


def bench_sharded(folder, *arguments):
    cli.main(["bench", "sharded", "--shapes", "tiny", "--out", str(folder), *arguments])


def test_simulated_ranks_end_to_end(forked, tmp_path, capsys):
    who = ["--optimizers", "alto", "--reference", "adamw-fused"]
    bench_sharded(tmp_path, "--ranks", "4,8", *who, "--rounds", "2", "--warmup", "1", "--machine", "here")
    record = json.loads((tmp_path / "here-sharded.json").read_text())
    assert (tmp_path / "here-sharded.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert (record["kind"], record["interrupted"], record["environment"]["threads"]) == ("sharded", False, "1")
    assert record["arguments"] == {
        "shapes": ["tiny"],
        "optimizers": ["alto"],
        "dtype": "float32",
        "ranks": [4, 8],
        "backend": "fake",
        "reference": "adamw-fused",
        "rounds": 2,
        "warmup": 1,
        "seed": 0,
    }
    assert [(found["ranks"], found["parameters_on_rank_0"]) for found in record["models"]] == [(4, 905), (8, 517)]
    for found in record["models"]:
        assert {name: len(one["seconds"]) for name, one in found["contenders"].items()} == {
            "adamw-fused": 2,
            "alto": 2,
        }
        assert found["contenders"]["adamw-fused"]["paired_ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}
        assert found["contenders"]["adamw-fused"]["bytes"] == 0
        assert found["contenders"]["alto"]["bytes"] > 0
    printed = capsys.readouterr().out
    assert "8 simulated ranks, 517 on rank 0; 2 rounds, float32; × is over torch AdamW, fused" in printed


def test_two_ranks_of_gloo(forked, tmp_path, capsys):
    bench_sharded(tmp_path, "--backend", "gloo", "--optimizers", "alto", "--rounds", "2", "--warmup", "0")
    (found,) = json.loads((tmp_path / "sharded.json").read_text())["models"]
    assert (found["ranks"], found["backend"], found["parameters_on_rank_0"]) == (2, "gloo", 1809)
    assert {name: len(one["seconds"]) for name, one in found["contenders"].items()} == {
        "adamw-fused": 2,
        "alto": 2,
    }
    assert "2 ranks, gloo" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("backend", "script", "message"),
    [
        (
            "fake",
            "import os, sys; print('bad luck', file=sys.stderr, flush=True); os._exit(3)",
            "rank 0 .* 3: bad luck",
        ),
        ("fake", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "rank 0 ends with code -9: no message"),
        ("gloo", "import json; rank = json.loads(input())['rank']; exit(rank and 'gone')", "rank 1 .* code 1: gone"),
    ],
)
@pytest.mark.parametrize("early", [False, True])
def test_a_process_that_dies(monkeypatch, backend, script, message, early):
    """Before its task is written to it, too."""

    class Early(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            if "input" not in script:
                self.wait()

    if early:
        monkeypatch.setattr(subprocess, "Popen", Early)
    monkeypatch.setattr(sharded, "COMMAND", [sys.executable, "-c", script])
    with pytest.raises(DiedError, match=message), conversation(replace(TASK, backend=backend, ranks=2)) as told:
        list(told)


def test_what_others_print_is_not_taken_for_what_is_told(monkeypatch):
    monkeypatch.setattr(sharded, "COMMAND", [sys.executable, "-c", "print('compiling'); print('thalweg: {\"a\": 1}')"])
    with conversation(TASK) as told:
        assert list(told) == [{"a": 1}]


def test_on_leaving_no_process_is_left(monkeypatch):
    monkeypatch.setattr(sharded, "COMMAND", [sys.executable, "-c", "import time; print(); time.sleep(60)"])
    before = set(psutil.Process().children())
    with conversation(replace(TASK, backend="gloo", ranks=2)):
        begun = set(psutil.Process().children()) - before
        assert len(begun) == 2
        assert all(os.getpgid(process.pid) != os.getpgid(0) for process in begun)  # Ctrl-C is for the parent
    assert not any(process.is_running() for process in begun)


def test_a_killed_parent_leaves_no_process():
    child = (
        "import time; from thalweg.bench import world\n"
        "world.carry_out = lambda task, say: (say({'begun': 1}), time.sleep(60))\n"
        "world.main()\n"
    )
    text = (
        "import sys, time; from thalweg.bench import sharded\n"
        f"sharded.COMMAND = [sys.executable, '-c', {child!r}]\n"
        "with sharded.conversation(sharded.Task('tiny', 4, 'fake', 'float32', ['alto'], 'alto')) as told:\n"
        "    print(next(told), flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE)
    try:
        assert b"begun" in parent.stdout.readline()
        children = psutil.Process(parent.pid).children()
        assert len(children) == 1
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    assert psutil.wait_procs(children, timeout=20)[1] == []
