"""State and temporaries, against optimizers and functions whose memory is known to the byte."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from thalweg.bench.candidates import CANDIDATES, Candidate, Weights
from thalweg.bench.memory import MemoryBenchmark, Traced, state_bytes, trace
from thalweg.bench.shapes import TINY, Model

CPU = torch.device("cpu")
MATRICES = Model("matrices", "two of them", ((100, 50), (30, 20)))
STEPS = 4 * len(MATRICES.shapes)  # the count of steps, a float32 for each tensor
SCALARS = 8 * STEPS


def traced(act, times=1):
    return trace(act, lambda: None, times, CPU)


def counted(name, model=MATRICES):
    benchmark = MemoryBenchmark(model, [CANDIDATES[name]], CPU, torch.float32)
    benchmark.run()
    return benchmark.record()["contenders"][name]


def floats(n):
    return torch.empty(n, dtype=torch.float32)


def test_the_peak_is_of_what_is_held_at_once():
    def act():
        a = floats(100)
        b = floats(200)
        del a
        c = floats(50)
        del b, c
        floats(70)

    assert traced(act) == [Traced(peak=4 * 300, kept=0)]


def test_what_is_kept_counts_and_stays():
    held = []

    def act():
        held.append(floats(100))
        floats(20)

    assert traced(act, times=3) == [Traced(peak=4 * 120, kept=4 * 100)] * 3


def test_releasing_what_an_earlier_call_left_makes_room():
    held = [None]

    def act():
        held[0] = None
        held[0] = floats(100)

    assert traced(act, times=3) == [Traced(400, 400), Traced(0, 0), Traced(0, 0)]


def test_replacing_needs_both_for_a_moment():
    held = [None]

    def act():
        held[0] = floats(100)

    assert traced(act, times=2) == [Traced(400, 400), Traced(400, 0)]


def test_what_happens_before_a_call_is_not_the_calls():
    held = []
    assert trace(lambda: floats(10), lambda: held.append(floats(1000)), 2, CPU) == [Traced(40, 0)] * 2


def test_temporaries_inside_an_operation_count():
    a, b = torch.ones(64, 32), torch.ones(32, 16)
    assert traced(lambda: (a @ b).sum().item()) == [Traced(peak=4 * (64 * 16 + 1), kept=0)]


@pytest.mark.parametrize(
    ("name", "buffers"),
    [("adamw-fused", 2), ("adamw-single", 2), ("lamb", 2), ("alto", 3), ("e-adamw-fused", 3), ("authors-e-adamw", 4)],
)
def test_state_in_bytes(name, buffers):
    found = counted(name)
    assert found["state_bytes"] == 4 * buffers * MATRICES.parameters + STEPS
    assert found["state_bytes_per_parameter"] == found["state_bytes"] / MATRICES.parameters


@pytest.mark.parametrize("name", ["adamw-fused", "adamw-single"])
def test_what_the_first_step_leaves_is_the_state(name):
    found = counted(name)
    assert found["first_step_kept_bytes"] == found["state_bytes"]


def test_a_step_of_fused_adamw_has_no_temporaries_but_scalars():
    assert counted("adamw-fused")["peak_temporary_bytes"] < SCALARS


def test_a_step_of_foreach_adamw_has_a_temporary_for_each_parameter():
    """The square roots of all second moments at once."""
    found = counted("adamw-foreach")
    peak = found["peak_temporary_bytes"]
    assert 0 <= peak - 4 * MATRICES.parameters < SCALARS
    assert found["peak_temporary_bytes_per_parameter"] == peak / MATRICES.parameters
    assert found["peak_temporary_of_largest_parameter"] == peak / (4 * MATRICES.largest)


class Hoarder(torch.optim.SGD):
    """Keeps what it needs in a step for the next one, and not in its state."""

    def step(self, closure=None):
        if not hasattr(self, "scratch"):
            self.scratch = torch.empty(5000)
        return super().step()


def test_scratch_memory_that_is_kept_is_no_state_but_counts():
    hoarder = Candidate("hoarder", "", lambda weights: Hoarder(weights.all(), lr=0.1, foreach=False))
    benchmark = MemoryBenchmark(MATRICES, [hoarder], torch.device("cpu"), torch.float32)
    benchmark.run()
    assert benchmark.found["hoarder"]["state_bytes"] == 0
    assert 0 <= benchmark.found["hoarder"]["peak_temporary_bytes"] - 4 * 5000 < SCALARS


class Wrapped(torch.Tensor):
    """A quantised tensor of two parts, as torchao has them."""

    def __new__(cls, codes, scale):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes, scale):
        self.codes, self.scale = codes, scale

    def __tensor_flatten__(self):
        return ["codes", "scale"], None

    __torch_function__ = torch._C._disabled_torch_function_impl
    __torch_dispatch__ = None


class Holder(Optimizer):
    """An optimizer with a given state."""

    held: ClassVar = {}

    def __init__(self, params, **state):
        super().__init__(params, {})
        self.state[self.param_groups[0]["params"][0]] = state

    def step(self):
        pass


def parameter():
    return nn.Parameter(torch.zeros(8))


def test_a_wrapper_subclass_weighs_what_its_parts_do():
    wrapped = Wrapped(torch.zeros(256, dtype=torch.uint8), torch.zeros(2))
    assert state_bytes(Holder([parameter()], moment=wrapped)) == 256 + 8


def test_state_is_found_wherever_it_is_nested():
    assert state_bytes(Holder([parameter()], inner={0: {"m": [torch.zeros(3), (torch.zeros(2),)]}})) == 20


def test_a_storage_counts_once_and_as_a_whole():
    flat = torch.zeros(100)
    assert state_bytes(Holder([parameter()], m=flat[:10], v=flat[10:20])) == 400


def test_a_parameter_or_gradient_in_the_state_is_not_state():
    p, g = parameter(), torch.zeros(8)
    assert state_bytes(Holder([p], p=p.data, g=g, m=torch.zeros(8)), [p, g]) == 32


def test_the_state_of_a_wrapped_optimizer_counts():
    p = parameter()
    outer = Holder([p], b=torch.zeros(8))
    outer.base = Holder([p], m=torch.zeros(8))
    outer.base.around = outer
    assert state_bytes(outer) == 64


def refuses(error, ours):
    def build(weights):
        raise error

    return Candidate("one", "one", build, ours=ours)


@pytest.mark.parametrize("error", [ValueError("no"), ImportError("no"), NotImplementedError("no")])
def test_who_refuses_is_listed_with_the_reason(error):
    benchmark = MemoryBenchmark(TINY, [refuses(error, ours=True), CANDIDATES["adamw-fused"]], CPU, torch.float32)
    benchmark.run()
    record = benchmark.record()
    assert list(record["contenders"]) == ["adamw-fused"]
    assert record["left_out"] == {"one": f"{type(error).__name__}: no"}


def test_a_bug_of_ours_is_no_refusal_and_one_of_theirs_is():
    with pytest.raises(RuntimeError, match="a bug"):
        MemoryBenchmark(TINY, [refuses(RuntimeError("a bug"), ours=True)], CPU, torch.float32).run()
    benchmark = MemoryBenchmark(TINY, [refuses(RuntimeError("a  bug\nof theirs"), ours=False)], CPU, torch.float32)
    benchmark.run()
    assert benchmark.left_out == {"one": "RuntimeError: a bug of theirs"}
    assert benchmark.record() is None


def test_weights_are_the_same_for_all():
    a, b = (Weights.of(TINY, CPU, torch.bfloat16) for _ in range(2))
    assert [tuple(p.shape) for p in a.all()] == list(TINY.shapes)
    assert all(torch.equal(p, q) and p is not q for p, q in zip(a.all(), b.all(), strict=True))
    assert {p.dtype for p in a.all()} == {torch.bfloat16}
