"""A base that evaluates the closure itself: within one step it sees the loss plus s·(θ-θ_k), with s = α a_k fixed."""

from __future__ import annotations

import pytest
import torch
from naive import NaiveE
from support import assert_near, assert_same, clone_params, through_a_file
from torch.nn import Parameter
from torch.optim import LBFGS

from thalweg import E

ALPHA, BETA, STEPS = 0.5, 0.75, 4
SEARCHES = pytest.mark.parametrize("search", [None, "strong_wolfe"])


class Valley:
    """A function of two parameters in float64, a Rosenbrock valley, and a record of every evaluation."""

    def __init__(self, alpha: float = ALPHA) -> None:
        self.params = [
            Parameter(torch.tensor([[-1.2, 1.0], [0.3, -0.7]], dtype=torch.float64)),
            Parameter(torch.tensor([0.8, -0.4], dtype=torch.float64)),
        ]
        self.points, self.losses, self.grads = [], [], []

    def value(self, point):
        x = torch.cat([p.flatten() for p in point])
        return (5 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    def __call__(self):
        for p in self.params:
            p.grad = None
        loss = self.value(self.params)
        loss.backward()
        self.points.append(clone_params(self.params))
        self.losses.append(loss.detach().clone())
        self.grads.append([p.grad for p in self.params])
        return loss.detach()


class SpiedLBFGS(LBFGS):
    """LBFGS, and what its closure shows it."""

    def __init__(self, params, **kwargs):
        super().__init__(params, **kwargs)
        self.seen = []

    def step(self, closure):
        params = self.param_groups[0]["params"]

        def spied():
            loss = closure()
            self.seen.append((clone_params(params), loss.clone(), [p.grad.clone() for p in params]))
            return loss

        return super().step(spied)


def lbfgs(valley, search, cls=LBFGS):
    return cls(valley.params, lr=0.1 if search is None else 1.0, max_iter=6, line_search_fn=search)


@SEARCHES
def test_every_evaluation_within_a_step_is_of_one_function_with_its_true_gradient(search):
    valley = Valley()
    base = lbfgs(valley, search, SpiedLBFGS)
    optimizer = E(base, ALPHA, BETA)
    rules = [NaiveE(ALPHA, BETA) for _ in valley.params]
    far = 0
    for _ in range(STEPS):
        base.seen.clear()
        start = clone_params(valley.params)
        first = len(valley.points)
        optimizer.step(valley)
        s = [rule(g) - g for rule, g in zip(rules, valley.grads[first], strict=True)]
        assert len(base.seen) == len(valley.points) - first >= 2
        for (point, loss, grads), own, g in zip(base.seen, valley.losses[first:], valley.grads[first:], strict=True):
            linear = sum((si * (p - q)).sum() for si, p, q in zip(s, point, start, strict=True))
            assert_near([loss], [own + linear], 1e-12)
            assert_near(grads, [gi + si for gi, si in zip(g, s, strict=True)], 1e-12)
            far += linear.abs() > 1e-3
    assert far >= STEPS  # the linear term was there to be seen


@SEARCHES
def test_it_is_the_base_alone_on_the_shifted_function_with_as_many_evaluations(search):
    valley, twin = Valley(), Valley()
    optimizer, alone = E(lbfgs(valley, search), ALPHA, BETA), lbfgs(twin, search)
    rules = [NaiveE(ALPHA, BETA) for _ in twin.params]
    for _ in range(STEPS):
        optimizer.step(valley)
        start, s = clone_params(twin.params), []

        def shifted(start=start, s=s):
            loss = twin()
            if not s:
                s.extend(rule(p.grad) - p.grad for rule, p in zip(rules, twin.params, strict=True))
            for p, si, q in zip(twin.params, s, start, strict=True):
                loss = loss + ((p - q).detach() * si).sum()
                p.grad = p.grad + si
            return loss

        alone.step(shifted)
        assert len(valley.points) == len(twin.points)
        assert_near(valley.params, twin.params, 1e-9)


class Probe(torch.optim.Optimizer):
    """Central differences of the loss it is shown, at the start of the step and away from it."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.01})
        self.found = []

    @torch.no_grad()
    def step(self, closure):
        params, generator = self.param_groups[0]["params"], torch.Generator().manual_seed(0)
        origin = clone_params(params)
        for distance in (0.0, 0.5):
            d = [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in params]
            values = []
            for offset in (1e-5, -1e-5, 0.0):
                for p, o, di in zip(params, origin, d, strict=True):
                    p.copy_(o + (distance + offset) * di)
                values.append(closure())
            slope = sum((p.grad * di).sum() for p, di in zip(params, d, strict=True))
            self.found.append(((values[0] - values[1]) / 2e-5, slope))
        for p, o in zip(params, origin, strict=True):
            p.copy_(o - self.param_groups[0]["lr"] * p.grad)


def test_the_losses_that_the_base_compares_differ_as_its_gradients_say():
    valley = Valley()
    probe = Probe(valley.params)
    optimizer = E(probe, ALPHA, BETA)
    for _ in range(3):
        optimizer.step(valley)
    assert len(probe.found) == 6
    assert_near([torch.stack([a for a, _ in probe.found])], [torch.stack([b for _, b in probe.found])], 1e-8)


@SEARCHES
def test_afterwards_the_gradients_are_the_closures_own_and_b_has_moved_by_the_first_of_each_step(search):
    valley = Valley()
    optimizer = E(lbfgs(valley, search), ALPHA, BETA)
    emas = [torch.zeros_like(p) for p in valley.params]
    for _ in range(STEPS):
        first = len(valley.points)
        assert optimizer.step(valley) == valley.losses[first]
        assert all(p.grad is g for p, g in zip(valley.params, valley.grads[-1], strict=True))
        copy = Valley()
        for p, q in zip(copy.params, valley.points[-1], strict=True):
            p.data.copy_(q)
        copy()
        assert_same([p.grad for p in valley.params], copy.grads[0])
        emas = [BETA * b + (1 - BETA) * g for b, g in zip(emas, valley.grads[first], strict=True)]
        assert_near([optimizer.state[p]["explore_ema"] for p in valley.params], emas, 1e-14)


@SEARCHES
def test_at_alpha_zero_it_is_lbfgs_alone_bit_for_bit_and_evaluation_for_evaluation(search):
    valley, twin = Valley(), Valley()
    optimizer, alone = E(lbfgs(valley, search), 0.0, BETA), lbfgs(twin, search)
    for _ in range(STEPS):
        assert optimizer.step(valley) == alone.step(twin)
        assert len(valley.points) == len(twin.points)
        assert_same(valley.losses, twin.losses)
        assert_same(valley.params, twin.params)


@SEARCHES
def test_saved_and_loaded_it_goes_on_as_if_it_had_never_stopped(search):
    valley, other = Valley(), Valley()
    optimizer, resumed = E(lbfgs(valley, search), ALPHA, BETA), E(lbfgs(other, search), ALPHA, BETA)
    for _ in range(STEPS // 2):
        optimizer.step(valley)
    for p, q in zip(other.params, valley.params, strict=True):
        p.data.copy_(q)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    for _ in range(STEPS // 2):
        optimizer.step(valley)
        resumed.step(other)
    assert_same(other.params, valley.params)


class Forgets(torch.optim.SGD):
    """Resets the gradients before it evaluates where the step began, as LookSAM does."""

    set_to_none = True

    def step(self, closure):
        self.zero_grad(self.set_to_none)
        with torch.enable_grad():
            closure()
        super().step()


@pytest.mark.parametrize("set_to_none", [False, True])
@pytest.mark.parametrize("alpha", [0.0, ALPHA])
def test_a_base_that_has_reset_the_gradients_finds_them_again(alpha, set_to_none):
    valley, twin = Valley(), Valley()
    optimizer = E(Forgets(valley.params, lr=0.01), alpha, BETA)
    optimizer.base.set_to_none = set_to_none
    alone = E(torch.optim.SGD(twin.params, lr=0.01), alpha, BETA)
    for _ in range(STEPS):
        optimizer.step(valley)
        alone.step(twin)
        assert_near(valley.params, twin.params, 1e-14)
    assert not torch.equal(valley.params[0], Valley().params[0])
