import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import OPTIONS, stored

from thalweg.studies import pages
from thalweg.studies.measurements import convergence, work
from thalweg.studies.pages.numbers import ratios, slope

RIDGE = 1e-3


def loss_of(x, labels, theta):
    """Cross-entropy with the ridge, written out."""
    logits = np.concatenate([x, np.ones((len(x), 1))], axis=1) @ theta
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        total += math.log(sum(math.exp(v - row.max()) for v in row)) + row.max() - row[label]
    return total / len(x) + RIDGE / 2.0 * (theta**2).sum()


def test_the_gradient_at_the_optimum_is_zero():
    x, labels = (each[:300] for each in convergence.digits())
    best = convergence.optimum(x.numpy(), labels.numpy(), RIDGE)
    weights, biases = (torch.tensor(each, requires_grad=True) for each in (best.weights, best.biases))
    loss = torch.nn.functional.cross_entropy(x @ weights + biases, labels)
    loss = loss + RIDGE / 2.0 * (weights.square().sum() + biases.square().sum())
    gradients = torch.autograd.grad(loss, [weights, biases])
    assert max(float(g.abs().max()) for g in gradients) < 1e-10
    assert best.gradient < 1e-10
    assert best.loss == pytest.approx(float(loss.detach()), rel=1e-12)
    assert best.loss == pytest.approx(loss_of(x.numpy(), labels.numpy(), np.vstack([best.weights, best.biases])))


@pytest.mark.parametrize("base", ["adam", "lamb"])
def test_regret_of_an_optimizer_that_stays_is_the_gap_times_the_steps(base):
    """Nine batches of 133 are all examples once, so that their regret is nine times that of the whole loss."""
    settings = {
        "base": base,
        "alpha": 0.5,
        "beta": 0.01,
        "eta": 1e-30,
        "ridge": RIDGE,
        "steps": 18,
        "seeds": 2,
        "batch": 133,
    }
    found = convergence.regret(settings)
    x, labels = (each.numpy() for each in convergence.digits())
    for seed, curve in enumerate(found["regret"]):
        model = convergence.Dense((64, 10), [seed], dtype=torch.float64)
        theta = np.vstack([p.detach().numpy().reshape(-1, 10) for p in model.parameters()])
        gap = loss_of(x, labels, theta) - found["optimum"]["loss"]
        for steps in (9, 18):
            assert curve[found["at"].index(steps)] == pytest.approx(steps * gap, rel=1e-9)


def test_adam_by_hand():
    """Six full batches, with η_k = η/√k."""
    settings = {"base": "adam", "alpha": 0.0, "beta": 0.0, "eta": 0.1, "ridge": RIDGE, "steps": 6, "seeds": 1,
                "batch": 1197}  # fmt: skip
    found = convergence.regret(settings)
    x, labels = (each.numpy() for each in convergence.digits())
    model = convergence.Dense((64, 10), [0], dtype=torch.float64)
    theta = np.vstack([p.detach().numpy().reshape(-1, 10) for p in model.parameters()])
    ones = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    m = v = total = 0.0
    for k in range(1, 7):
        total += loss_of(x, labels, theta) - found["optimum"]["loss"]
        p = np.exp(ones @ theta)
        p /= p.sum(1, keepdims=True)
        g = ones.T @ (p - np.eye(10)[labels]) / len(x) + RIDGE * theta
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        step = (m / (1 - 0.9**k)) / (np.sqrt(v / (1 - 0.999**k)) + 1e-8)
        theta = theta - 0.1 / math.sqrt(k) * step
    assert found["at"][-1] == 6
    assert found["regret"][0][-1] == pytest.approx(total, rel=1e-9)


def test_the_condition_counts_what_does_not_fall():
    p = torch.zeros(1, 1, 2, dtype=torch.float64)
    condition = convergence.Condition({"base": "adam", "steps": 4}, [p])

    stepped = SimpleNamespace(state={p: {}})
    # √k √v: 1, √2, √.75, 2 of the first entry, rising throughout of the second
    for k, v in enumerate(([1.0, 1.0], [1.0, 1.0], [0.25, 1.0], [1.0, 1.0]), 1):
        stepped.state[p]["exp_avg_sq"] = torch.tensor([[v]], dtype=torch.float64)
        condition.see(k, [p], stepped)
    assert condition.found() == pytest.approx({"increased": 5 / 6, "late": 3 / 4, "always": 1 / 2})


def test_the_condition_of_lamb_has_the_trust_ratio():
    theta = torch.tensor([[[3.0, 0.0], [0.0, 4.0]]], dtype=torch.float64)
    condition = convergence.Condition({"base": "lamb", "steps": 4}, [theta])
    v = torch.full_like(theta, 0.04)
    m = torch.full_like(theta, 0.1)
    k = 3
    m_hat, v_hat = 0.1 / (1 - 0.9**k), 0.04 / (1 - 0.99**k)
    r = 2.0 * m_hat / (math.sqrt(v_hat) + 1e-6)  # the norm of four equal entries
    want = math.sqrt(k) * (0.2 + 1e-6) * (r + 1e-6 * 5.0) / 5.0
    found = condition.quantity(k, theta, {"exp_avg": m, "exp_avg_sq": v})
    torch.testing.assert_close(found, torch.full_like(theta, want), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("power", [-1.0, 0.5])
def test_slopes_of_powers_are_exact(power):
    at = [1, 3, 10, 30, 100, 300, 1000]
    curves = [[c * t**power for t in at] for c in (1.0, 7.0)]
    assert pages.convergence.slopes(at, curves) == pytest.approx([power, power], abs=1e-12)


def test_the_slope_is_scipys_and_refuses_what_has_no_logarithm():
    x, y = [1.0, 2.0, 5.0, 9.0], [3.0, 2.0, 4.0, 8.0]
    assert slope(x, y) == pytest.approx(stats.linregress(np.log(x), np.log(y)).slope)
    with pytest.raises(ValueError, match="at least 2 positive points"):
        slope([1.0, 2.0], [1.0, 0.0])


def test_ratios_are_paired_and_geometric():
    a, b = [2.0, 3.0, None, 5.0], [1.0, 2.0, 4.0, 2.0]
    logs = np.log([2.0, 1.5, 2.5])
    low, high = stats.t.interval(0.95, 2, logs.mean(), stats.sem(logs))
    found = ratios(a, b)
    assert (found.mean, found.low, found.high) == pytest.approx(tuple(map(math.exp, (logs.mean(), low, high))))
    assert found.pairs == 3
    assert ratios([1.0], [1.0]) is None


def test_the_seeds_that_are_left_are_never_below():
    low, high = [0.5, 0.51, 0.52, 0.5, None, None], [1.0] * 6
    assert ratios(low[:4], high[:4]).below
    assert (ratios(low, high).above, ratios(low, high).below) == (False, False)
    assert (ratios(high, low).above, ratios(high, low).below) == (False, False)
    few = [2.0, 2.1, 2.2, 2.0, None, None]  # what failed more often and is worse besides is worse
    assert ratios(few, high).above
    assert ratios(high, few).below


def test_running_means_are_means_of_the_squared_gradient():
    """At a learning rate of nothing the gradient stays, and so does the mean."""
    settings = {"base": "adam", "alpha": 0.0, "beta": 0.0, "eta": 1e-30, "decays": False, "full": False, "steps": 11,
                "ridge": 0.01, "width": 4, "seeds": 2, "batch": 133}  # fmt: skip
    found = convergence.gradients(settings)
    x, labels = convergence.digits()
    for seed, curve in enumerate(found["mean"]):
        w1, b1, w2, b2 = convergence.Dense((64, 4, 10), [seed]).of(0)
        out = torch.tanh(x.float() @ w1[0] + b1[0]) @ w2[0] + b2[0]
        loss = torch.nn.functional.cross_entropy(out, labels)
        loss = loss + 0.005 * sum(p.square().sum() for p in (w1, b1, w2, b2))
        square = sum(float(g.square().sum()) for g in torch.autograd.grad(loss, [w1, b1, w2, b2]))
        assert curve == pytest.approx([square] * len(curve), rel=1e-5)


def test_the_page_says_what_the_records_hold(tmp_path):
    work.run(convergence, OPTIONS[convergence], tmp_path, lambda text: None)
    section = pages.convergence.page(tmp_path)
    convex = [one for one in stored(tmp_path).values() if one["settings"]["loss"] == "convex"]
    assert len(convex) == 6
    assert len(section.grids[0].rows) == 4  # the better of two η for Adam
    for name, base, alpha in (("Adam", "adam", 0.0), ("LAMB", "lamb", 0.0), ("ALTO -.4, .5", "lamb", -0.4)):
        own = [one for one in convex if (one["settings"]["base"], one["settings"]["alpha"]) == (base, alpha)]
        best = min(own, key=lambda one: one["found"]["regret"][0][-1])
        at = np.array(best["found"]["at"])
        late = at >= 1.2
        each = [np.polyfit(np.log(at[late]), np.log(np.array(c)[late]), 1)[0] for c in best["found"]["regret"][1:]]
        half = stats.t.ppf(0.975, 1) * np.std(each, ddof=1) / math.sqrt(2)
        row = next(row for row in section.grids[0].rows if row[0] == name)
        assert row[3] == f"{np.mean(each):.3g} ± {half:.3g}"
