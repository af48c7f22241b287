"""E and Adam in one pass: which steps it takes, and that they are the base's on g'."""

from __future__ import annotations

import copy
import functools
import importlib

import pytest
import torch
from naive import NaiveAdam, NaiveAdamW, WithE
from support import (
    SHAPES,
    assert_near,
    assert_same,
    assert_same_state,
    clone_params,
    hooked,
    make_grads,
    make_params,
    scheduled,
    take_steps,
)
from test_backends import peak
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.nn import Parameter
from torch.optim import Adam, AdamW

from thalweg import E, EAdam, EAdamW
from thalweg.kernels import cpp
from thalweg.optim import one_pass
from thalweg.torch_private import fake_store, init_group

STEPS = 6


@pytest.fixture
def base_steps(monkeypatch):
    """How often the base itself has stepped, a group at a time."""
    calls = []
    module = importlib.import_module("torch.optim.adam")
    real = module.adam
    monkeypatch.setattr(module, "adam", lambda *args, **kwargs: calls.append(1) or real(*args, **kwargs))
    return calls


@pytest.mark.parametrize("how", [{}, {"fused": True}], ids=str)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(("alpha", "beta"), [(-5.0, 0.99), (0.5, 0.01), (3.0, 0.75)])
def test_it_is_the_papers_e_in_front_of_adamw(alpha, beta, weight_decay, how, base_steps):
    params = make_params()
    grads = make_grads(params, 300)
    options = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": weight_decay}
    naive = [WithE(functools.partial(NaiveAdamW, **options), p.detach(), alpha, beta) for p in params]
    take_steps(EAdamW(params, alpha=alpha, beta=beta, **how, **options), params, grads)
    for row in grads:
        for rule, g in zip(naive, row, strict=True):
            rule.step(g)
    assert_near(params, [rule.theta for rule in naive], 1e-12)
    assert base_steps == []


def test_it_is_the_papers_e_in_front_of_adam(base_steps):
    params = make_params()
    grads = make_grads(params, 50)
    options = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-6}
    naive = [WithE(functools.partial(NaiveAdam, **options), p.detach(), 1.5, 0.5) for p in params]
    take_steps(EAdam(params, alpha=1.5, beta=0.5, **options), params, grads)
    for row in grads:
        for rule, g in zip(naive, row, strict=True):
            rule.step(g)
    assert_near(params, [rule.theta for rule in naive], 1e-12)
    assert base_steps == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fused": True},
        {"fused": True, "lr": torch.tensor(0.01, dtype=torch.float64)},
        {"lr": torch.tensor(0.01, dtype=torch.float64)},
        {"betas": (0.0, 0.5), "eps": 1e-3, "weight_decay": 0.3},
        {"cls": Adam},
        {"cls": Adam, "weight_decay": 0.3, "decoupled_weight_decay": True},
    ],
    ids=str,
)
def test_its_steps_and_state_are_the_bases_on_the_same_gradients(options, dtype, base_steps):
    options = {"lr": 0.01, **options}
    cls = options.pop("cls", AdamW)
    fused, other = make_params(dtype=dtype), make_params(dtype=dtype)
    grads = make_grads(fused, STEPS)
    grads[1][0] = grads[3][-1] = None
    made = E(cls(fused, **options), 2.0, 0.75)
    by_base = E(cls(other, **{**options, "fused": False, "foreach": False}), 2.0, 0.75)
    take_steps(made, fused, grads)
    assert base_steps == []
    take_steps(by_base, other, grads)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    assert_near(fused, other, tolerance)
    for p, q in zip(fused, other, strict=True):
        assert made.state[p].keys() == by_base.state[q].keys()
        for key, value in by_base.state[q].items():
            assert made.state[p][key].dtype == value.dtype
            assert_near([made.state[p][key]], [value], tolerance)


@pytest.mark.parametrize("fused", [None, True])
def test_gradients_stay_as_they_are_and_nothing_is_allocated(fused):
    params = [Parameter(torch.ones(1 << 18)), Parameter(torch.ones(1000))]
    optimizer = EAdamW(params, fused=fused)
    own = [torch.full_like(p, 0.5) for p in params]
    for p, g in zip(params, own, strict=True):
        p.grad = g
    optimizer.step()
    assert peak(optimizer.step) < 4096
    assert all(p.grad is g for p, g in zip(params, own, strict=True))
    assert_same(own, [torch.full_like(p, 0.5) for p in params])
    bytes_of_state = sum(t.nbytes for state in optimizer.state.values() for t in state.values() if t.ndim > 0)
    assert bytes_of_state == 12 * sum(p.numel() for p in params)


class Own(AdamW):
    """A subclass may do anything in its step."""


@pytest.mark.parametrize(
    "build",
    [
        lambda params: AdamW(params, fused=False),
        lambda params: AdamW(params, foreach=False),
        lambda params: AdamW(params, foreach=True),
        lambda params: AdamW(params, amsgrad=True),
        lambda params: AdamW(params, fused=True, amsgrad=True),
        lambda params: AdamW(params, maximize=True),
        lambda params: AdamW(params, fused=True, capturable=True),
        lambda params: Adam(params, weight_decay=0.1),
        Own,
        lambda params: hooked(AdamW(params)),
        lambda params: scheduled(AdamW(params)),
    ],
    ids=[
        "not fused",
        "single",
        "foreach",
        "amsgrad",
        "amsgrad fused",
        "maximize",
        "capturable",
        "coupled",
        "subclass",
        "hook",
        "scheduler of the base",
    ],
)
def test_any_other_step_is_the_bases_own_bit_for_bit(build, base_steps):
    params, expected = make_params(dtype=torch.float32), make_params(dtype=torch.float32)
    grads = make_grads(params, STEPS)
    optimizer = E(build(params), 2.0, 0.75)
    assert "one pass" not in repr(optimizer)
    take_steps(optimizer, params, grads)
    assert len(base_steps) == STEPS
    base, emas = build(expected), [torch.zeros_like(p) for p in expected]
    for row in grads:
        take_steps(base, expected, [[torch.lerp(g, b, -0.5) for b, g in zip(emas, row, strict=True)]])
        for b, g in zip(emas, row, strict=True):
            b.lerp_(g, 0.25)
    assert_same(params, expected)


OPTIONS_BY_GROUP = ({}, {"explore_alpha": 0.0}, {"fused": True, "lr": 0.1}, {"foreach": False}, {"amsgrad": True})


def two_dtypes():
    params = make_params(SHAPES * 2, torch.float32)
    return [p if i < len(SHAPES) else Parameter(p.detach().bfloat16()) for i, p in enumerate(params)]


@pytest.mark.parametrize("nonfinite", ["propagate", "skip"])
def test_each_parameter_takes_the_step_it_takes_alone(nonfinite, base_steps):
    """Groups that the kernels take beside others, and in each of them parameters that the base has to step."""
    models, alone = ([two_dtypes() for _ in OPTIONS_BY_GROUP] for _ in range(2))
    groups = [{"params": params, **options} for params, options in zip(models, OPTIONS_BY_GROUP, strict=True)]
    optimizer = E(AdamW(groups), 2.0, 0.75, nonfinite=nonfinite)
    assert repr(optimizer).endswith(", partly in one pass with it)")
    params = [p for model in models for p in model]
    grads = [[g.to(p.dtype) for p, g in zip(params, row, strict=True)] for row in make_grads(params, STEPS)]
    grads[1][0] = grads[2][-1] = None
    before = list(map(id, optimizer.param_groups))
    if nonfinite == "skip":
        spoilt = [None if g is None else torch.full_like(g, torch.nan) for g in grads[3]]
        take_steps(
            optimizer, params, [*grads[:3], [*grads[3][:-1], spoilt[-1]], [spoilt[0], *grads[3][1:]], *grads[3:]]
        )
        assert optimizer.skipped_steps == 2
    else:
        take_steps(optimizer, params, grads)
    assert list(map(id, optimizer.param_groups)) == before
    assert len(base_steps) == STEPS * len(OPTIONS_BY_GROUP)
    for i, p in enumerate(p for model in alone for p in model):
        options = OPTIONS_BY_GROUP[i // len(alone[0])]
        by_itself = E(AdamW([{"params": [p], **options}]), 2.0, 0.75)
        in_one_pass = p.dtype == torch.float32 and options in (OPTIONS_BY_GROUP[0], OPTIONS_BY_GROUP[2])
        assert repr(by_itself).endswith("in one pass with it)") is in_one_pass
        take_steps(by_itself, [p], [[row[i]] for row in grads])
        assert_same([params[i]], [p])
        assert optimizer.state[params[i]].keys() == by_itself.state[p].keys()
        for name, value in by_itself.state[p].items():
            assert_same([optimizer.state[params[i]][name]], [value])


def test_a_base_that_raises_keeps_its_groups(monkeypatch):
    params = make_params(dtype=torch.float32)
    optimizer = E(AdamW([{"params": params[:2]}, {"params": params[2:], "fused": False}]))
    groups = optimizer.param_groups
    monkeypatch.setattr(AdamW, "step", lambda self: (_ for _ in ()).throw(OSError))
    with pytest.raises(OSError):  # noqa: PT011 (the test's own)
        take_steps(optimizer, params, make_grads(params, 1))
    assert optimizer.param_groups is groups
    assert_same(params, make_params(dtype=torch.float32))


def test_a_base_that_evaluates_the_closure_steps_itself(base_steps):
    params = make_params(dtype=torch.float32)
    optimizer = E(AdamW(params), reevaluates=True)
    assert "one pass" not in repr(optimizer)

    def closure():
        optimizer.zero_grad()
        loss = sum(p.square().sum() for p in params)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert base_steps == [1]


def test_bfloat16_parameters_are_left_to_the_base(base_steps):
    params = make_params(dtype=torch.bfloat16)
    optimizer = EAdamW(params)
    assert "one pass" not in repr(optimizer)  # said before there is a gradient
    take_steps(optimizer, params, make_grads(params, 2))
    assert len(base_steps) == 2


@pytest.mark.parametrize("fused", [None, True])
def test_without_a_compiler_the_base_steps(fused, monkeypatch, base_steps):
    monkeypatch.setattr(cpp, "missing", lambda wanted: "no compiler")
    params = make_params(dtype=torch.float32)
    optimizer = EAdamW(params, fused=fused)
    take_steps(optimizer, params, make_grads(params, 2))
    assert len(base_steps) == 2
    assert "one pass" not in repr(optimizer)


def test_the_representation_says_so():
    for fused in (None, True):
        assert repr(EAdamW(make_params(dtype=torch.float32), fused=fused)).endswith("\n), in one pass with it)")


def test_it_goes_on_from_a_checkpoint_of_the_base_and_of_its_own():
    params = make_params(dtype=torch.float32)
    grads = make_grads(params, 3 * STEPS)
    alone = AdamW(params, fused=True)
    take_steps(alone, params, grads[:STEPS])
    others = clone_params(params)
    optimizer = EAdamW(others, alpha=2.0, beta=0.75, fused=True)
    optimizer.load_state_dict(alone.state_dict())
    take_steps(optimizer, others, grads[STEPS : 2 * STEPS])
    assert optimizer.state[others[0]]["step"] == 2 * STEPS
    again = clone_params(others)
    resumed = EAdamW(again, fused=True)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for made, ps in ((optimizer, others), (resumed, again)):
        take_steps(made, ps, grads[2 * STEPS :])
    assert_same(again, others)
    assert_same_state(resumed, optimizer)


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_a_gradient_that_is_not_finite_changes_nothing(nonfinite, base_steps):
    params = make_params(dtype=torch.float32)
    optimizer = EAdamW(params, fused=True, nonfinite=nonfinite)
    grads = make_grads(params, 2)
    take_steps(optimizer, params, grads[:1])
    before, state = clone_params(params), copy.deepcopy(optimizer.state_dict()["state"])
    grads[1][2].fill_(torch.nan)
    if nonfinite == "raise":
        with pytest.raises(RuntimeError, match="has an infinity, a NaN"):
            take_steps(optimizer, params, grads[1:])
    else:
        take_steps(optimizer, params, grads[1:])
        assert optimizer.skipped_steps == 1
    assert_same(params, before)
    for i, saved in optimizer.state_dict()["state"].items():
        for key, value in saved.items():
            assert torch.equal(value, state[i][key])
    assert base_steps == []


def test_a_capture_that_the_base_refuses_is_refused_before_anything_changes(monkeypatch):
    """As without ``capturable``; nothing can be captured here."""

    def refuse(base):
        raise RuntimeError("Attempting CUDA graph capture")

    monkeypatch.setattr(AdamW, "_accelerator_graph_capture_health_check", refuse)
    params = make_params()
    optimizer = EAdamW(params, fused=True)
    with pytest.raises(RuntimeError, match="Attempting CUDA graph capture"):
        take_steps(optimizer, params, make_grads(params, 1))
    assert not optimizer.state


def test_what_applies_is_asked_anew_at_each_step(base_steps):
    """α may be scheduled through 0, where E is the base bit for bit."""
    params = make_params(dtype=torch.float32)
    optimizer = EAdamW(params, fused=True, alpha=2.0, beta=0.75)
    for alpha, calls in ((2.0, 0), (0.0, 1), (-2.0, 1)):
        optimizer.param_groups[0]["explore_alpha"] = alpha
        assert bool(one_pass.split(optimizer.base)[0]) is (alpha != 0.0)
        take_steps(optimizer, params, make_grads(params, 1))
        assert len(base_steps) == calls


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"capturable": True}])
def test_the_state_of_sharded_parameters_is_made_as_torch_makes_it(options):
    dist.init_process_group("fake", rank=0, world_size=4, store=fake_store())
    try:
        mesh, made = init_device_mesh("cpu", (4,)), []
        for make in (one_pass._init_sharded, init_group):
            p = Parameter(DTensor.from_local(torch.ones(3, 4), mesh, [Shard(0)]))
            p.grad = torch.zeros_like(p)
            optimizer = torch.optim.AdamW([p], **options)
            make(optimizer, optimizer.param_groups[0])
            made.append({name: told(x) for name, x in optimizer.state[p].items()})
    finally:
        dist.destroy_process_group()
    assert made[0] == made[1]


def told(x):
    return type(x), x.dtype, x.device, x.shape, x.stride(), getattr(x, "placements", None), bool(x.any())
