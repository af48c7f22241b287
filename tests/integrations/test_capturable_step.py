"""What a CUDA graph needs, seen on CPU: a capturable step never reads a tensor on the host, whatever its options.

The kernels that a step calls are listed by a dispatch mode; ``item``, ``bool`` and every other way of reading a value
end in ``_local_scalar_dense``.
"""

from __future__ import annotations

import pytest
import torch
from support import assert_moved, assert_same, assert_same_state, make_grads, make_params, take_steps
from torch.utils._python_dispatch import TorchDispatchMode

from thalweg import ALTO, ESGD, E, Lamb

aten = torch.ops.aten
READS = {aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select}
SHAPES = ((3, 4), (2, 3, 5))
OPTIONS = {
    "defaults": {},
    "skip": {"nonfinite": "skip"},
    "propagate": {"nonfinite": "propagate"},
    "clipped": {"max_grad_norm": 0.1, "trust_clip": (0.5, 1.0)},
    "stacked": {"norm_dims": (-2, -1), "weight_decay": 0.0},
    "no trust ratio, ascending": {"trust_ratio": False, "maximize": True},
}


class Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.overloadpacket)
        return func(*args, **(kwargs or {}))


def reads_of_third_step(optimizer, params, grads):
    take_steps(optimizer, params, grads[:2])
    for p, g in zip(params, grads[2], strict=True):
        p.grad = g.clone()
    with Calls() as calls:
        optimizer.step()
    assert len(calls.seen) > len(params)  # it has seen the step
    return [packet for packet in calls.seen if packet in READS]


def lr_of(kind):
    return torch.tensor(0.05) if kind == "tensor" else 0.05


@pytest.mark.parametrize("lr", ["number", "tensor"])
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("cls", [ALTO, Lamb])
def test_a_capturable_step_reads_nothing(cls, options, foreach, lr):
    params = make_params(SHAPES, torch.float32)
    optimizer = cls(params, lr=lr_of(lr), capturable=True, foreach=foreach, **OPTIONS[options])
    assert reads_of_third_step(optimizer, params, make_grads(params, 3)) == []


def test_a_step_that_is_not_capturable_is_seen_to_read():
    params = make_params(SHAPES, torch.float32)
    assert aten._local_scalar_dense in reads_of_third_step(ALTO(params), params, make_grads(params, 3))


@pytest.mark.parametrize("foreach", [False, True])
def test_e_reads_nothing_of_its_own(foreach):
    """Around SGD, which has no step count to read."""
    params = make_params(SHAPES, torch.float32)
    optimizer = ESGD(params, lr=0.1, momentum=0.9, alpha=0.5, beta=0.25, foreach=foreach)
    assert reads_of_third_step(optimizer, params, make_grads(params, 3)) == []


FUSED = {
    "Adam": lambda params: torch.optim.Adam(params, lr=0.1, amsgrad=True, fused=True),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.1, amsgrad=True, fused=True),
    "Adagrad": lambda params: torch.optim.Adagrad(params, lr=0.1, fused=True),
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1, fused=True),
    "SGD with momentum": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, fused=True),
}


@pytest.mark.parametrize("base", FUSED)
def test_e_around_a_fused_base_skips_without_reading(base):
    """The kernels are those of a step that counts; a base that is not fused is read for."""
    params = make_params(SHAPES, torch.float32)
    optimizer = E(FUSED[base](params), 0.5, 0.25, nonfinite="skip")
    grads, calls = make_grads(params, 4), []
    take_steps(optimizer, params, grads[:2])
    for row, bad in ((grads[2], 0.0), (grads[3], float("nan"))):
        before = [p.detach().clone() for p in params]
        for p, g in zip(params, row, strict=True):
            p.grad = g + bad
        with Calls() as seen:
            optimizer.step()
        calls.append(seen.seen)
        (assert_same if bad else assert_moved)(params, before)
    assert calls[0] == calls[1]
    assert not set(calls[0]) & READS
    assert optimizer.skipped_steps == 1


@pytest.mark.parametrize("base", FUSED)
def test_the_first_step_of_e_around_a_fused_base_reads_if_it_starts_a_momentum(base):
    params = make_params(SHAPES, torch.float32)
    optimizer = E(FUSED[base](params), 0.5, 0.25, nonfinite="skip")
    for p, g in zip(params, make_grads(params, 1)[0], strict=True):
        p.grad = g
    with Calls() as calls:
        optimizer.step()
    assert bool(set(calls.seen) & READS) == (base == "SGD with momentum")


def test_e_around_any_other_base_reads_to_skip():
    params = make_params(SHAPES, torch.float32)
    optimizer = ESGD(params, lr=0.1, nonfinite="skip")
    assert aten._local_scalar_dense in reads_of_third_step(optimizer, params, make_grads(params, 3))


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("cls", [ALTO, Lamb])
def test_the_kernels_are_the_same_for_finite_and_nonfinite_gradients(cls, foreach):
    """A captured graph replays what was captured: a skip is an outcome of it, not another graph."""
    calls, params = [], make_params(SHAPES, torch.float32)
    optimizer = cls(params, capturable=True, foreach=foreach)
    grads = make_grads(params, 4)
    take_steps(optimizer, params, grads[:2])
    for row, bad in ((grads[2], 0.0), (grads[3], float("inf"))):
        before = [p.detach().clone() for p in params]
        for p, g in zip(params, row, strict=True):
            p.grad = g + bad
        with Calls() as seen:
            optimizer.step()
        calls.append(seen.seen)
        (assert_same if bad else assert_moved)(params, before)
    assert calls[0] == calls[1]
    assert optimizer.skipped_steps == 1
    other = make_params(SHAPES, torch.float32)
    expected = cls(other, capturable=True, foreach=foreach)
    take_steps(expected, other, grads[:3])
    assert_same(params, other)
    assert_same_state(optimizer, expected)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("cls", [ALTO, Lamb])
def test_a_capturable_step_of_any_options_needs_no_values(cls, options, foreach):
    """A tensor on the meta device has none: reading would raise, and so would mixing it with one on the host."""
    params = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in SHAPES]
    optimizer = cls(params, capturable=True, foreach=foreach, **OPTIONS[options])
    for p in params:
        p.grad = torch.empty_like(p)
    for _ in range(2):
        optimizer.step()
    devices = {tensor.device.type for state in optimizer.state.values() for tensor in state.values()}
    assert devices == {"meta"}
    assert optimizer.skipped_steps.device.type == ("cpu" if options == "propagate" else "meta")
