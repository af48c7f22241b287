"""However a step is computed, it is the same step."""

from __future__ import annotations

import functools

import pytest
import torch
from support import WAYS, assert_near, assert_same, clone_params, make_grads, make_params, random_tensors, take_steps

from thalweg import ALTO, Lamb
from thalweg.kernels import cpp, dispatch
from thalweg.kernels.cpp import toolchain

STEPS = 8
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13}


@functools.cache
def gradients(shapes, dtype, steps):
    return make_grads(make_params(shapes, dtype), steps)


def run(entry, dtype, *, large=False, **kwargs):
    """The parameters after some steps, which have left all that is the user's as it was."""
    params = make_params(entry.large if large else entry.shapes, dtype)
    optimizer = entry.build(params, **kwargs)
    lr = optimizer.param_groups[0]["lr"]
    rate = lr.clone() if isinstance(lr, torch.Tensor) else lr
    for row in gradients(entry.large if large else entry.shapes, dtype, 2 if large else STEPS):
        grads = [g.clone() for g in row]
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        optimizer.step()
        assert all(p.grad is g for p, g in zip(params, grads, strict=True))
        assert_same(grads, row)
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr == rate
    return params


def assert_all_take_the_same_steps(entry, option, dtype, *, large):
    kwargs = option.kwargs if option is not None else {}
    single, foreach = (run(entry, dtype, large=large, foreach=foreach, **kwargs) for foreach in (False, True))
    # A capturable count is a float32 tensor: two roundings of it on top.
    tolerance = 1e-6 if "capturable" in kwargs else TOLERANCE[dtype]
    assert_near(foreach, single, tolerance)
    if entry.takes("fused"):
        assert_near(run(entry, dtype, large=large, **{"fused": True, **kwargs}), single, tolerance)


@pytest.mark.pairwise(layers=["float32", "float64", "float64, cut and shared out"])
@pytest.mark.where(test=lambda entry, option, _: entry.takes_foreach_with(option))
def test_foreach_fused_and_single_take_the_same_steps(entry, option, layers):
    dtype = torch.float32 if layers == "float32" else torch.float64
    assert_all_take_the_same_steps(entry, option, dtype, large=layers.endswith("shared out"))


def takes_learning_rate(entry, how, trust_ratio, _):
    """Torch's multi-tensor operations take none in a tensor on the CPU, and the trust ratio is ours."""
    lamb = issubclass(entry.constructor, Lamb)
    return entry.takes("lr") and (lamb or (how != "foreach" and trust_ratio is None))


@pytest.mark.pairwise(how=WAYS, trust_ratio=[None, True, False], large=[False, True])
@pytest.mark.where(test=takes_learning_rate)
def test_a_learning_rate_in_a_tensor_is_left_as_it_is(entry, how, trust_ratio, large):
    """With the trust ratio, without it, and with all that scales the update."""
    lr = torch.tensor(0.0625, dtype=torch.float64)
    options = {} if trust_ratio is None else {"trust_ratio": trust_ratio, "max_grad_norm": 0.5, "maximize": True}
    tensor, number = (run(entry, torch.float64, large=large, lr=rate, **WAYS[how], **options) for rate in (lr, 0.0625))
    assert lr.item() == 0.0625
    assert lr._version == 0
    assert_near(tensor, number, 1e-13)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.where(test=lambda entry: issubclass(entry.constructor, Lamb))
def test_capturable_takes_the_same_steps(entry, foreach):
    plain, capturable = (run(entry, torch.float32, foreach=foreach, capturable=flag) for flag in (False, True))
    assert_near(capturable, plain, 1e-6)


@pytest.mark.where(test=lambda entry: any(option.kwargs == {"fused": True} for option in entry.options))
def test_a_fused_base_takes_the_same_steps(entry):
    plain, fused = (run(entry, torch.float32, fused=flag) for flag in (False, True))
    assert_near(fused, plain, 1e-6)


@pytest.mark.where(test=lambda entry: entry.foreach)
def test_foreach_takes_groups_of_mixed_dtypes_and_sizes(entry):
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float32)
    shapes = entry.shapes[:1] * 2 + entry.shapes[-1:] * 2
    starts = [
        random_tensors([shape], dtype, 7 + i)[0] for i, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))
    ]
    grads = [
        [
            random_tensors([shape], dtype, 100 * k + i)[0]
            for i, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))
        ]
        for k in range(STEPS)
    ]
    single, foreach = clone_params(starts), clone_params(starts)
    take_steps(entry.build(single, foreach=False), single, grads)
    take_steps(entry.build(foreach, foreach=True), foreach, grads)
    for i, dtype in enumerate(dtypes):
        # bfloat16: one unit in the last place of the largest entry
        assert_near(foreach[i : i + 1], single[i : i + 1], TOLERANCE.get(dtype, 2**-7))


@pytest.mark.parametrize("optimizer", [ALTO, Lamb])
def test_kernels_are_the_default_on_cpu(optimizer, monkeypatch):
    calls = []
    for name in ("cpp", "foreach", "single"):
        monkeypatch.setattr(f"thalweg.kernels.{name}.step", lambda *args, name=name: calls.append(name))
    params = make_params()
    for options in ({}, {"fused": True}, {"fused": False}, {"foreach": True}, {"foreach": False}):
        take_steps(optimizer(params, **options), params, make_grads(params, 1))
    assert calls == ["cpp", "cpp", "foreach", "foreach", "single"]


def forget():
    """As in a process that has just begun."""
    for known in (cpp._judge, cpp._kernel, dispatch._warn):
        known.cache_clear()


def test_without_a_compiler_the_default_is_multi_tensor_operations_and_fused_an_error(monkeypatch):
    def fail(*_):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(toolchain, "load", fail)
    forget()
    params = make_params()
    with pytest.warns(
        UserWarning, match=r"no compiler\nALTO and Lamb step with torch's multi-tensor operations instead"
    ):
        assert "backend: foreach on cpu" in repr(ALTO(params))
    start = clone_params(params)
    for nonfinite in ("skip", "propagate"):
        optimizer = ALTO(params, fused=True, nonfinite=nonfinite)
        assert "backend: fused on cpu, which is not available here" in repr(optimizer)
        with pytest.raises(RuntimeError, match="no compiler"):
            take_steps(optimizer, params, make_grads(params, 1))
        assert_same(params, start)
        assert not optimizer.state
    assert "backend: foreach on cpu" in repr(ALTO(params))  # without another warning
    forget()


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("beta", [0.9, 0.999, 0.99999])
def test_a_count_in_float32_loses_nothing_to_the_bias_correction(beta, foreach):
    """1 - β^k in float32 is 5 digits short at β = 0.999; at k = 1 the corrected moment is the gradient itself."""
    params = make_params(dtype=torch.float32)
    start = clone_params(params)
    options = {"betas": (beta, beta), "eps": 1e-37, "weight_decay": 0.0, "trust_ratio": False, "lr": 1.0}
    take_steps(Lamb(params, capturable=True, foreach=foreach, **options), params, make_grads(params, 1))
    expected = [p.detach() - g.sign() for p, g in zip(start, make_grads(params, 1)[0], strict=True)]
    assert_near(params, expected, 1e-6)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("optimizer", [ALTO, Lamb])
def test_a_capturable_step_lives_on_the_parameters_device_and_reads_nothing_back(optimizer, foreach):
    """A tensor on the meta device has no value to read: ``item`` would raise."""
    params = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in ((2, 3), (3,))]
    for p in params:
        p.grad = torch.empty_like(p)
    capturable = optimizer(params, capturable=True, foreach=foreach, max_grad_norm=1.0)
    capturable.step()
    assert [capturable.state[p]["step"].device.type for p in params] == ["meta", "meta"]
    plain = optimizer(params, foreach=foreach, nonfinite="propagate")
    plain.step()
    assert [plain.state[p]["step"].device.type for p in params] == ["cpu", "cpu"]
