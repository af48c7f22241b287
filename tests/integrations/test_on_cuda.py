"""What only a GPU can show: the Triton kernels as compiled, that torch sees nobody wait, a step in a CUDA graph."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from support import assert_near, assert_same, clone_params, make_grads, make_params

from thalweg import ALTO, EAdamW, Lamb

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
        p.grad = None if g is None else g.clone()
    optimizer.step()


@contextmanager
def nobody_waits():
    """Inside, an operation that waits for the device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


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
    with nobody_waits():
        for row in grads:
            step(optimizer, params, row)
    assert_near([p for p in params if p.numel()], [p for p in others if p.numel()], TOLERANCE[dtype])


@pytest.mark.parametrize("options", [{}, {"nonfinite": "skip"}, {"nonfinite": "skip", "capturable": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_e_and_a_fused_adamw_in_one_pass_take_the_steps_of_the_base_and_nobody_waits(dtype, options):
    params, grads = start(dtype)
    others = clone_params(params)
    grads[1][0] = None
    if "nonfinite" in options:
        grads[2][1][5] = float("nan")

    def build(params, **how):
        rest = {"lr": torch.tensor(0.05, device=DEVICE), "weight_decay": 0.3}
        groups = [{"params": params[:3]}, {"params": params[3:], **rest}]
        return EAdamW(groups, alpha=2.0, beta=0.75, lr=0.1, **options, **how)

    optimizer, expected = build(params, fused=True), build(others, fused=False, foreach=False)
    assert "in one pass" in repr(optimizer)
    for row in grads:
        step(expected, others, row)
    with nobody_waits():
        for row in grads:
            step(optimizer, params, row)
    assert_near([p for p in params if p.numel()], [p for p in others if p.numel()], TOLERANCE[dtype])
    assert optimizer.skipped_steps == expected.skipped_steps == (1 if "nonfinite" in options else 0)
    for p, other in zip(params, others, strict=True):
        assert optimizer.state[p]["step"] == expected.state[other]["step"].to(DEVICE)


def test_a_grad_scaler_scales_and_skips_e_in_one_pass():
    """By powers of two, which round nothing."""
    params, grads = start()
    others = clone_params(params)
    optimizer, expected = (EAdamW(ps, lr=0.1, fused=True) for ps in (params, others))
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**10)
    for k, row in enumerate(grads):
        scaler.scale(sum((p * g).sum() for p, g in zip(params, row, strict=True))).backward()
        if k == 1:
            params[0].grad[0, 0] = float("inf")
        else:
            step(expected, others, row)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert_same(params, others)
    assert scaler.get_scale() == 2.0**9


CAPTURED = {
    "ALTO": ALTO,
    "E and AdamW in one pass": lambda params, **options: EAdamW(params, nonfinite="skip", **options),
}


@pytest.mark.parametrize("build", CAPTURED.values(), ids=CAPTURED)
def test_a_step_in_a_cuda_graph_is_replayed_and_skipped_like_any_other(build):
    params, grads = start(steps=6)
    grads[4][0][0, 0] = float("nan")
    others = clone_params(params)
    optimizer = build(params, lr=0.1, fused=True, capturable=True)
    expected = build(others, lr=0.1, fused=True, capturable=True)
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
