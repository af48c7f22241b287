"""Steps of tensors that only stand for others, fake ones and those on meta: no number is read, no address asked for."""

from __future__ import annotations

import functools
from contextlib import nullcontext

import pytest
import torch
from support import assert_same, make_grads, make_params, take_steps
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import Parameter

from thalweg import ALTO, E, EAdamW, Lamb
from thalweg.kernels import eightbit, foreach

WHERE = {"fake": FakeTensorMode, "meta": lambda: nullcontext()}
LARGE = ((64, 64), (300, 1000), (5,))
"""One whose state may be in 8 bits, one that is cut into pieces, one that is taken together with others."""


@pytest.fixture
def no_addresses(monkeypatch):
    monkeypatch.setattr(FakeTensor, "data_ptr", lambda self: pytest.fail("a fake tensor has no address"))


def stands_in(t, where):
    return t.is_meta if where == "meta" else isinstance(t, FakeTensor)


def take_two_steps(build, shapes, where, dtype=torch.float32):
    with WHERE[where]():
        device = "meta" if where == "meta" else "cpu"
        params = [Parameter(torch.randn(shape, dtype=dtype, device=device)) for shape in shapes]
        optimizer = build(params)
        take_steps(optimizer, params, [[torch.randn_like(p) for p in params] for _ in range(2)])
    return optimizer, params


def base_steps(entry, option, where):
    """Whether the base does, for E: Adafactor reads numbers, and torch's fused kernels refuse meta."""
    fused = option is not None and option.kwargs.get("fused")
    return entry.name != "E(Adafactor)" and not (where == "meta" and fused and not issubclass(entry.constructor, Lamb))


@pytest.mark.usefixtures("no_addresses")
@pytest.mark.pairwise(where=WHERE)
@pytest.mark.where(test=base_steps)
def test_they_are_stepped_with_every_option(entry, option, where):
    kwargs = dict(option.kwargs) if option is not None else {}
    if isinstance(kwargs.get("lr"), torch.Tensor):  # a real one, which the mode refuses
        kwargs["lr"] = 0.5
    optimizer, params = take_two_steps(functools.partial(entry.build, **kwargs), entry.shapes, where, torch.float64)
    averages = [name for name in entry.state if name not in entry.counters and kwargs.get("alpha") != 0.0]
    for p in params:
        assert all(stands_in(optimizer.state[p][name], where) for name in averages)
        assert [optimizer.state[p][name].shape for name in averages] == [p.shape for _ in averages]


@pytest.mark.usefixtures("no_addresses")
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize(
    "build",
    [
        ALTO,
        functools.partial(ALTO, foreach=False),
        functools.partial(ALTO, foreach=True, max_grad_norm=1.0),
        functools.partial(ALTO, fused=True, trust_ratio=False),
        lambda params: Lamb(params, lr=torch.ones_like(params[0].flatten()[0])),
        functools.partial(Lamb, state_dtype="8bit"),
        functools.partial(Lamb, state_dtype={"exp_avg": "8bit", "exp_avg_sq": torch.bfloat16}),
        functools.partial(EAdamW, foreach=False, nonfinite="skip"),
        lambda params: E(torch.optim.AdamW(params, foreach=True), nonfinite="raise"),
    ],
)
def test_so_are_large_ones(build, where):
    optimizer, params = take_two_steps(build, LARGE, where)
    codes = [optimizer.state[p]["exp_avg"] for p in params]
    assert all(stands_in(getattr(m, "codes", m), where) for m in codes)


def test_what_is_kept_for_them_does_not_reach_real_ones():
    def step_real_ones():
        params = make_params([(64, 64), (3,)], torch.float32)
        optimizer = Lamb(params, state_dtype="8bit", foreach=True)
        take_steps(optimizer, params, make_grads(params, 2))
        return params

    expected = step_real_ones()
    for kept in (eightbit.tables, foreach._counted):
        kept.cache_clear()
    take_two_steps(functools.partial(Lamb, state_dtype="8bit", foreach=True), [(64, 64), (3,)], "fake")
    take_two_steps(functools.partial(Lamb, nonfinite="propagate", foreach=True), [(64, 64), (3,)], "fake")
    assert_same(step_real_ones(), expected)


@pytest.mark.parametrize("build", [ALTO, Lamb, EAdamW])
def test_fake_ones_are_loaded(build):
    with FakeTensorMode():
        params = [Parameter(torch.randn(shape)) for shape in LARGE]
        optimizer, other = build(params), build(params)
        grads = [[torch.randn_like(p) for p in params]]
        take_steps(optimizer, params, grads)
        other.load_state_dict(optimizer.state_dict())
        take_steps(other, params, grads)
    assert all(isinstance(other.state[p]["exp_avg"], FakeTensor) for p in params)


@pytest.mark.parametrize("build", [ALTO, functools.partial(Lamb, nonfinite="propagate"), EAdamW])
def test_an_optimizer_that_is_built_outside_the_mode_steps_inside(build):
    with FakeTensorMode():
        params = [Parameter(torch.randn(3, 4))]
    optimizer = build(params)
    with params[0].fake_mode:
        take_steps(optimizer, params, [[torch.randn(3, 4)]] * 2)
    assert isinstance(optimizer.state[params[0]]["exp_avg"], FakeTensor)
    assert int(getattr(optimizer, "skipped_steps", 0)) == 0
