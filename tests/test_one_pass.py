"""E and a fused Adam in one pass: which steps it takes, and that they are the base's on g'."""

from __future__ import annotations

import copy
import functools
import importlib

import pytest
import torch
from naive import NaiveAdam, NaiveAdamW, WithE
from support import assert_near, assert_same, assert_same_state, clone_params, make_grads, make_params, take_steps
from test_backends import peak
from torch.nn import Parameter
from torch.optim import Adam, AdamW

from thalweg import E, EAdam, EAdamW, one_pass
from thalweg.backends import compiled

STEPS = 6


@pytest.fixture
def base_steps(monkeypatch):
    """How often the base itself has stepped, a group at a time."""
    calls = []
    module = importlib.import_module("torch.optim.adam")
    real = module.adam
    monkeypatch.setattr(module, "adam", lambda *args, **kwargs: calls.append(1) or real(*args, **kwargs))
    return calls


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(("alpha", "beta"), [(-5.0, 0.99), (0.5, 0.01), (3.0, 0.75)])
def test_it_is_the_papers_e_in_front_of_adamw(alpha, beta, weight_decay, base_steps):
    params = make_params()
    grads = make_grads(params, 300)
    options = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": weight_decay}
    naive = [WithE(functools.partial(NaiveAdamW, **options), p.detach(), alpha, beta) for p in params]
    take_steps(EAdamW(params, alpha=alpha, beta=beta, fused=True, **options), params, grads)
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
    take_steps(EAdam(params, alpha=1.5, beta=0.5, fused=True, **options), params, grads)
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
    made = E(cls(fused, fused=True, **options), 2.0, 0.75)
    by_base = E(cls(other, fused=False, foreach=False, **options), 2.0, 0.75)
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


def test_gradients_stay_as_they_are_and_nothing_is_allocated():
    params = [Parameter(torch.ones(1 << 18)), Parameter(torch.ones(1000))]
    optimizer = EAdamW(params, fused=True)
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


def watched(params):
    base = AdamW(params, fused=True)
    base.register_step_pre_hook(lambda *_: None)
    return base


def scheduled(params):
    base = AdamW(params, fused=True)
    torch.optim.lr_scheduler.LinearLR(base)
    return base


@pytest.mark.parametrize(
    "build",
    [
        lambda params: AdamW(params, fused=False),
        lambda params: AdamW(params, fused=True, amsgrad=True),
        lambda params: AdamW(params, fused=True, maximize=True),
        lambda params: AdamW(params, fused=True, capturable=True),
        lambda params: Adam(params, fused=True, weight_decay=0.1),
        lambda params: Own(params, fused=True),
        watched,
        scheduled,
        lambda params: AdamW([{"params": params[:1]}, {"params": params[1:], "fused": False}], fused=True),
        lambda params: AdamW([{"params": params[:1]}, {"params": params[1:], "explore_alpha": 0.0}], fused=True),
    ],
    ids=[
        "plain",
        "amsgrad",
        "maximize",
        "capturable",
        "coupled",
        "subclass",
        "hook",
        "scheduler of the base",
        "one group",
        "one alpha of 0",
    ],
)
def test_any_other_step_is_the_bases_own_bit_for_bit(build, base_steps):
    params, expected = make_params(dtype=torch.float32), make_params(dtype=torch.float32)
    grads = make_grads(params, STEPS)
    optimizer = E(build(params), 2.0, 0.75)
    assert "one pass" not in repr(optimizer)
    take_steps(optimizer, params, grads)
    assert len(base_steps) == STEPS * len(optimizer.param_groups)
    base, emas = build(expected), [torch.zeros_like(p) for p in expected]
    for row in grads:
        seen = []
        for i, (b, g) in enumerate(zip(emas, row, strict=True)):
            alpha = next(
                group.get("explore_alpha", 2.0)
                for group in base.param_groups
                if any(expected[i] is p for p in group["params"])
            )
            seen.append(torch.lerp(b, g, 1 + alpha * 0.25))
            b.lerp_(g, 0.25)
        take_steps(base, expected, [seen])
    assert_same(params, expected)


def test_bfloat16_parameters_are_left_to_the_base(base_steps):
    params = make_params(dtype=torch.bfloat16)
    optimizer = EAdamW(params, fused=True)
    assert "one pass" not in repr(optimizer)  # said before there is a gradient
    take_steps(optimizer, params, make_grads(params, 2))
    assert len(base_steps) == 2


def test_without_a_compiler_the_base_steps(monkeypatch, base_steps):
    monkeypatch.setattr(compiled, "missing", lambda: "no compiler")
    params = make_params(dtype=torch.float32)
    optimizer = EAdamW(params, fused=True)
    take_steps(optimizer, params, make_grads(params, 2))
    assert len(base_steps) == 2
    assert "one pass" not in repr(optimizer)


def test_the_representation_says_so():
    assert repr(EAdamW(make_params(dtype=torch.float32), fused=True)).endswith(", in one pass with it)")


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
        assert one_pass.applies(optimizer.base) is (alpha != 0.0)
        take_steps(optimizer, params, make_grads(params, 1))
        assert len(base_steps) == calls
