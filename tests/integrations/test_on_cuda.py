"""What only a GPU can show: the Triton kernels as compiled, that torch sees nobody wait, a step in a CUDA graph."""

from __future__ import annotations

import pytest
import torch
from support import assert_near, assert_same, clone_params, make_grads, make_params

from thalweg import ALTO, Lamb

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

DEVICE = "cuda"
# Steps are counted in float32 on the device: hence float64's tolerance.
SHAPES = ((300, 500), (129,), (), (0,), (2, 3, 5), (70_000,))
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-6, torch.bfloat16: 2**-7, torch.complex64: 1e-5}
OPTIONS = {
    "defaults": {},
    "no trust ratio": {"trust_ratio": False},
    "clipped, in tensors": {"max_grad_norm": 0.1, "capturable": True},
    "in numbers": {"nonfinite": "propagate"},
}


def start(dtype=torch.float32, steps=4):
    params = [torch.nn.Parameter(p.detach().to(DEVICE)) for p in make_params(SHAPES, dtype)]
    return params, [[g.to(DEVICE) for g in row] for row in make_grads(params, steps)]


def step(optimizer, params, row):
    for p, g in zip(params, row, strict=True):
        p.grad = g.clone()
    optimizer.step()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("cls", [ALTO, Lamb])
def test_the_kernels_take_the_steps_of_single_and_nobody_waits(cls, dtype, options):
    params, grads = start(dtype)
    others = clone_params(params)
    optimizer = cls(params, lr=0.1, fused=True, **OPTIONS[options])
    expected = cls(others, lr=0.1, foreach=False, **OPTIONS[options])
    for row in grads:
        step(expected, others, row)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for row in grads:
            step(optimizer, params, row)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_near([p for p in params if p.numel()], [p for p in others if p.numel()], TOLERANCE[dtype])


def test_a_step_in_a_cuda_graph_is_replayed_and_skipped_like_any_other():
    params, grads = start(steps=6)
    grads[4][0][0, 0] = float("nan")
    others = clone_params(params)
    optimizer = ALTO(params, lr=0.1, fused=True, capturable=True)
    expected = ALTO(others, lr=0.1, fused=True, capturable=True)
    for row in grads:
        step(expected, others, row)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(optimizer, params, grads[0])
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for row in grads[1:]:
        for p, g in zip(params, row, strict=True):
            p.grad.copy_(g)
        graph.replay()
    assert_same(params, others)
    assert optimizer.skipped_steps == expected.skipped_steps == 1
    assert {int(optimizer.state[p]["step"]) for p in params} == {5}


def test_addresses_may_change_at_every_step_while_copies_are_under_way():
    params, grads = start(steps=30)
    others = clone_params(params)
    optimizer, expected = (Lamb(ps, lr=0.01, fused=fused) for ps, fused in ((params, True), (others, False)))
    alive = []  # so that no address comes again
    for row in grads:
        step(optimizer, params, row)
        alive.extend(p.grad for p in params)
    for row in grads:
        step(expected, others, row)
    assert_near([p for p in params if p.numel()], [p for p in others if p.numel()], 1e-4)
