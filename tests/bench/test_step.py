"""The rounds, driven by candidates whose steps take as long as they are told to."""

from __future__ import annotations

import gc
from collections import Counter
from dataclasses import replace
from importlib import import_module

import pytest
import torch

from thalweg.bench import step
from thalweg.bench.candidates import CANDIDATES, Candidate, LeftOutError, Weights
from thalweg.bench.shapes import TINY
from thalweg.bench.statistics import Spread
from thalweg.bench.step import COPY, StepBenchmark, TimingSettings
from thalweg.records.errors import UserError

CPU = torch.device("cpu")


class Clock:
    """Time that passes only where a step says so."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class Scripted:
    """An optimizer whose steps last ``seconds[k]``, or raise it."""

    def __init__(self, name, seconds, clock, log):
        self.name, self.seconds, self.clock, self.log = name, iter(seconds), clock, log

    def step(self):
        self.log.append(self.name)
        seconds = next(self.seconds)
        if isinstance(seconds, BaseException):
            raise seconds
        self.clock.now += seconds


@pytest.fixture
def script(monkeypatch):
    """``rounds(warmup, rounds, a=[...], b=[...])``, the first being the reference."""
    monkeypatch.setattr(step, "COPY_BYTES", 2**10)
    clock = Clock()
    monkeypatch.setattr(step, "time", clock)
    monkeypatch.setattr(step, "cold_first_step", lambda candidate, *rest: 10.0 * len(candidate.name))

    def make(warmup, rounds, seed=0, **seconds):
        log = []

        def candidate(name):
            return Candidate(name, name, lambda weights: Scripted(name, seconds[name], clock, log))

        assert all(len(name) == 1 for name in seconds)  # so that a first step takes 10 seconds
        settings = TimingSettings(rounds, warmup, next(iter(seconds)), seed, CPU, torch.float32)
        made = StepBenchmark(TINY, [candidate(name) for name in reversed(seconds)], settings)
        made.log = log
        return made

    return make


def copies_take_some_time(rounds):
    """The copies of the scripted clock are instantaneous; a bandwidth needs a time."""
    for one in rounds.timed:
        one[COPY] = 0.5
    return rounds.record()


def test_the_record_is_of_the_timings(script):
    rounds = script(1, 3, a=[5.0, 2.0, 1.0, 2.0, 4.0], b=[60.0, 9.0, 3.0, 4.0, 20.0])
    rounds.run()
    record = copies_take_some_time(rounds)
    b = record["contenders"]["b"]
    assert b["seconds"] == [3.0, 4.0, 20.0]
    assert b["warmup_seconds"] == [9.0]
    assert b["first_step_seconds"] == 10.0
    assert Spread(**b["median_seconds"]) == Spread(4.0, 3.5, 12.0)
    assert Spread(**b["paired_ratio"]) == Spread(3.0, 2.5, 4.0)
    assert b["ratio_of_medians"]["median"] == 2.0
    assert b["mean_seconds_over_100_with_first"] == (10 + 9 + 27 + 95 * 4) / 100
    assert b["ratio_over_100_with_first"] == pytest.approx((10 + 9 + 27 + 95 * 4) / (10 + 2 + 7 + 95 * 2))
    assert (record["rounds"], record["left_out"]) == (3, {})
    assert record["copy"]["bytes_per_second"] == 2 * 2**10 / 0.5


def test_every_round_has_everyone_once_and_in_a_new_order(script):
    rounds = script(2, 20, **{name: [1.0] * 23 for name in "abcd"})
    rounds.run()
    assert rounds.log[:4] == ["a", "d", "c", "b"]  # the reference starts first
    orders = ["".join(rounds.log[i : i + 4]) for i in range(4, len(rounds.log), 4)]
    assert len(orders) == 22
    assert all(sorted(order) == list("abcd") for order in orders)
    assert len(Counter(orders)) > 8
    assert all(sum(order[0] == name for order in orders) >= 2 for name in "abcd")


def test_a_seed_fixes_the_order(script):
    logs = []
    for seed in (0, 0, 1):
        rounds = script(0, 10, seed=seed, **{name: [1.0] * 11 for name in "abcd"})
        rounds.run()
        logs.append(rounds.log)
    assert logs[0] == logs[1] != logs[2]


def test_an_interruption_leaves_the_complete_rounds(script):
    rounds = script(1, 5, a=[1.0] * 7, b=[2.0] * 4 + [KeyboardInterrupt()])
    enabled = gc.isenabled()
    with pytest.raises(KeyboardInterrupt):
        rounds.run()
    record = copies_take_some_time(rounds)
    assert record["rounds"] == 2
    assert [len(one["seconds"]) for one in record["contenders"].values()] == [2, 2]
    assert gc.isenabled() is enabled


@pytest.mark.parametrize("done", [0, 1])
def test_an_interruption_before_the_first_round_leaves_nothing(script, done):
    rounds = script(1, 5, a=[1.0] * 7, b=[2.0] * done + [KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        rounds.run()
    assert rounds.record() is None


def test_who_fails_at_the_first_step_is_listed(script):
    rounds = script(0, 2, a=[1.0] * 3, b=[ValueError("not on this machine")])
    rounds.run()
    record = copies_take_some_time(rounds)
    assert list(record["contenders"]) == ["a"]
    assert record["left_out"] == {"b": "ValueError: not on this machine"}


def test_who_fails_later_is_listed_and_out_of_all_rounds(script):
    rounds = script(0, 3, a=[1.0] * 4, b=[2.0, 2.0, RuntimeError("broken")])
    rounds.run()
    record = copies_take_some_time(rounds)
    assert list(record["contenders"]) == ["a"]
    assert record["rounds"] == 3
    assert record["left_out"] == {"b": "after its first step, RuntimeError: broken"}


def test_a_failure_of_ours_is_an_error_unless_it_may_be_anothers_inside():
    def fail(weights):
        raise RuntimeError("broken")

    ours = Candidate("a", "a", fail, ours=True)
    with pytest.raises(RuntimeError, match="broken"):
        ours.start(None)
    with pytest.raises(LeftOutError, match="broken"):
        replace(ours, around=True).start(None)
    with pytest.raises(LeftOutError, match="not here"):
        ours.attempt(lambda: import_module("not here"))


@pytest.mark.parametrize("at", [0, 2])
def test_without_the_reference_there_is_nothing_to_say(script, at):
    rounds = script(0, 3, a=[1.0] * at + [ImportError("no a")], b=[2.0] * 4)
    with pytest.raises(UserError, match=r"the reference a cannot run on tiny \(.*no a\): choose another --reference"):
        rounds.run()


def test_who_has_no_room_is_listed(script, monkeypatch):
    rounds = script(0, 1, a=[1.0] * 2, b=[1.0] * 2)
    free = iter([2**40, 2**10])
    monkeypatch.setattr(step, "free_bytes", lambda device: next(free))
    rounds.run()
    assert rounds.rounds.left_out == {
        "b": "not enough memory: up to 0.0 GiB needed, 0.0 free; choose fewer optimizers with --optimizers"
    }


def test_every_step_finds_the_same_gradients(script):
    """Whatever the others do to them: scale them in place, take them away, put something else there."""
    seen = {}

    class Spoils:
        def __init__(self, name, weights):
            self.name, self.weights = name, weights

        def step(self):
            grads = [p.grad.clone() for p in self.weights.all()]
            seen.setdefault(self.name, []).append(grads)
            for p in self.weights.all():
                p.grad.mul_(2)
                p.grad = None if self.name == "a" else torch.ones_like(p)

    rounds = script(1, 2, a=[], b=[])
    rounds.waiting = [Candidate(n, n, lambda weights, n=n: Spoils(n, weights)) for n in "ab"]
    rounds.run()
    every = [grads for name in "ab" for grads in seen[name]]
    assert len(every) == 8
    assert all(torch.equal(g, h) for grads in every for g, h in zip(grads, every[0], strict=True))
    assert sum(g.square().sum() for g in every[0]).sqrt() == pytest.approx(1.0, rel=0.1)


def test_no_collection_falls_into_a_step(script):
    enabled = []

    class Looks:
        def step(self):
            enabled.append(gc.isenabled())

    rounds = script(1, 2, a=[])
    rounds.waiting = [Candidate("a", "a", lambda weights: Looks())]
    rounds.run()
    assert enabled[1:] == [False] * 3
    assert gc.isenabled()


def test_bandwidth_counts_the_traffic_of_a_step(script):
    rounds = script(0, 3, a=[1.0] * 4)
    rounds.waiting = [Candidate("a", "a", rounds.waiting[0].build, traffic=48)]
    rounds.run()
    found = copies_take_some_time(rounds)["contenders"]["a"]["bandwidth"]
    assert found["bytes_per_second"] == 48 * TINY.parameters
    assert found["of_copy"] == pytest.approx(48 * TINY.parameters / (2 * 2**10 / 0.5))


def test_bandwidth_is_of_float32_alone(script):
    rounds = script(0, 1, a=[1.0] * 2)
    rounds.settings = TimingSettings(1, 0, "a", 0, CPU, torch.bfloat16)
    rounds.waiting = [Candidate("a", "a", rounds.waiting[0].build, traffic=48)]
    rounds.run()
    assert "bandwidth" not in copies_take_some_time(rounds)["contenders"]["a"]


def test_a_package_that_is_missing_is_a_reason():
    with pytest.raises(LeftOutError, match=r"^ModuleNotFoundError: No module named 'no_such_package'$"):
        Candidate("a", "a", lambda weights: None, module="no_such_package").load()


@pytest.mark.parametrize("name", ["alto", "lamb"])
def test_our_trust_ratios_are_those_of_each_expert(name):
    optimizer = CANDIDATES[name].start(Weights.of(TINY, CPU, torch.float32))
    assert [(len(g["params"]), g["norm_dims"]) for g in optimizer.param_groups] == [(4, None), (1, (-2, -1))]


def test_learning_rate_and_weight_decay_are_everybodys():
    for name in ("adamw-fused", "alto", "e-adamw", "authors-alto", "authors-e-adamw", "pytorch-optimizer-lamb"):
        optimizer = CANDIDATES[name].start(Weights.of(TINY, CPU, torch.float32))
        assert {(g["lr"], g["weight_decay"]) for g in optimizer.param_groups} == {(1e-4, 0.01)}
