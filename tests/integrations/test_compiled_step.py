"""torch.compile of the step: the same step, compiled once, whatever the learning rate."""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings

import pytest
import torch
from support import assert_moved, assert_near, make_grads, make_params, take_steps
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from thalweg import ALTO, EAdamW, Lamb
from thalweg.kernels import eightbit

BUILDS = {
    "ALTO": functools.partial(ALTO, alpha=-5.0, betas=(0.8, 0.99), beta=0.9),
    "ALTO foreach": functools.partial(ALTO, alpha=0.5, betas=(0.8, 0.99), beta=0.9, foreach=True),
    "ALTO capturable, clipped": functools.partial(
        ALTO, alpha=0.5, betas=(0.8, 0.99), beta=0.9, capturable=True, max_grad_norm=0.1, trust_clip=(0.5, 2.0)
    ),
    "Lamb": Lamb,
    "Lamb, nonfinite propagates": functools.partial(Lamb, nonfinite="propagate"),
    "EAdamW": functools.partial(EAdamW, alpha=0.5, beta=0.25),
}
OURS_ALONE = [name for name in BUILDS if name != "EAdamW"]  # torch breaks the graph at its own optimizers' step
STEPS = 5
SHAPES = ((4, 3), (4, 3), (5,))


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    counters.clear()


def run(build, backend=None, after_step=lambda: None, number=False, **compile_options):
    """Weights and state after five steps, each with another learning rate; two parameters are of one shape."""
    params = make_params(SHAPES, torch.float32)
    optimizer = BUILDS[build](params, lr=0.0 if number else torch.tensor(0.0))
    step = optimizer.step if backend is None else torch.compile(optimizer.step, backend=backend, **compile_options)
    for k, grads in enumerate(make_grads(params, STEPS)):
        if number:
            optimizer.param_groups[0]["lr"] = 0.02 / (k + 1)
        else:
            optimizer.param_groups[0]["lr"].fill_(0.02 / (k + 1))
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        step()
        after_step()
    assert_moved(params, make_params(SHAPES, torch.float32))
    return params, [t for state in optimizer.state.values() for t in state.values()]


def assert_the_same_run(build, actual):
    for tensors, others in zip(actual, run(build), strict=True):
        assert_near(tensors, others, 1e-6)


# By inductor, which has the graph from aot_eager, which has it from eager: each compiles longer than the next.
BACKENDS = {
    "ALTO": "inductor",
    "ALTO foreach": "aot_eager",
    "ALTO capturable, clipped": "aot_eager",
    "Lamb": "eager",
    "Lamb, nonfinite propagates": "aot_eager",
    "EAdamW": "inductor",
}


@pytest.mark.parametrize(
    ("build", "by"),
    [pytest.param(*pair, marks=[pytest.mark.slow] if pair[1] == "inductor" else []) for pair in BACKENDS.items()],
)
def test_a_compiled_step_is_the_step_in_one_graph_and_is_not_compiled_again_after_the_second(build, by):
    """One graph where no optimizer of torch's is in it: with ``fullgraph`` any branch on data is an error."""
    backend = CompileCounterWithBackend(by)
    compiled = []
    fullgraph = build in OURS_ALONE
    actual = run(build, backend, after_step=lambda: compiled.append(backend.frame_count), fullgraph=fullgraph)
    assert compiled[0] > 0
    assert compiled[1:] == [compiled[1]] * (STEPS - 1)
    assert_the_same_run(build, actual)
    assert not (fullgraph and counters["graph_break"])


@contextlib.contextmanager
def silence(caplog):
    """What is done within says nothing, but what torch says of any optimizer of its own."""
    eightbit.torchao()  # which has something to say itself
    caplog.clear()
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)  # torch's own
        yield
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [line for line in said if "Profiler record function" not in line] == []


@pytest.mark.parametrize("build", ["ALTO", "Lamb", "EAdamW"])
def test_a_rate_that_is_a_number_is_compiled_again_once_at_most_without_a_word(build, caplog):
    """When it first changes; from then on it is an input of the graph."""
    backend = CompileCounterWithBackend("eager")
    compiled = []
    with silence(caplog):
        actual = run(build, backend, after_step=lambda: compiled.append(backend.frame_count), number=True)
    assert compiled[1:] == [compiled[1]] * (STEPS - 1)
    assert_the_same_run(build, actual)


OTHERS = {
    "ALTO foreach, in bfloat16": functools.partial(ALTO, foreach=True, state_dtype=torch.bfloat16),
    "ALTO in 8 bits": functools.partial(ALTO, state_dtype="8bit", max_grad_norm=1.0),
    "ALTO rounded": functools.partial(ALTO, stochastic_rounding=True, norm_dims=(1,), trust_clip=(0.1, 10.0)),
    "EAdamW, nonfinite raises": functools.partial(EAdamW, nonfinite="raise"),
}


@pytest.mark.parametrize("build", OTHERS)
def test_compiling_says_nothing_and_changes_nothing(build, caplog):
    dtype = torch.bfloat16 if build == "ALTO rounded" else torch.float32
    found = []
    for backend in (None, "eager"):
        params = make_params([(64, 64), (5, 3)], dtype)
        optimizer = OTHERS[build](params, lr=0.01)
        if backend is not None:
            optimizer.step = torch.compile(optimizer.step, backend=backend)
        with silence(caplog):
            take_steps(optimizer, params, make_grads(params, 2))
        found.append(params)
    assert_near(found[1], found[0], 2**-7 if build in ("ALTO rounded", "ALTO in 8 bits") else 1e-6)
