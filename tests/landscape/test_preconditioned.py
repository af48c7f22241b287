"""The sharpness that an optimizer sees: its limit is where the real optimizer stops converging."""

from __future__ import annotations

import pytest
import torch
from closed_forms import Quadratic
from torch import nn

from thalweg import ALTO, E, EAdamW, Lamb
from thalweg.landscape import preconditioned_sharpness
from thalweg.landscape.preconditioned import rates
from thalweg.theory import stability_limit

CONVEX = [9.0, 3.0, 2.0, *[0.5] * 9]
STILL = 1.0 - 1e-13  # a second moment that stands still


def frozen(make, momentum_free=False):
    """An optimizer on a quadratic whose second moments stand still, and never were corrected for bias."""
    loss = Quadratic(CONVEX, [(3, 3), (3,)]).place(torch.linspace(0.1, 1, 12, dtype=torch.float64))
    optimizer = make(loss.params)
    for p in loss.params:
        state = optimizer.state[p]
        moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.linspace(0.5, 2, p.numel()).view_as(p).to(p)}
        if isinstance(getattr(optimizer, "base", optimizer), torch.optim.RMSprop):
            moments = {"square_avg": moments["exp_avg_sq"], "momentum_buffer": torch.zeros_like(p)}
        if not isinstance(getattr(optimizer, "base", optimizer), torch.optim.SGD):
            state.update(step=torch.tensor(1e15, dtype=torch.float64), **moments)
    return loss, optimizer


def sgd(params, lr):
    return torch.optim.SGD(params, lr=lr, momentum=0.8)


def damped(params, lr):
    return torch.optim.SGD(params, lr=lr, momentum=0.8, dampening=0.5)


def nesterov(params, lr):
    return torch.optim.SGD(params, lr=lr, momentum=0.8, nesterov=True)


def adam(params, lr):
    return torch.optim.Adam(params, lr=lr, betas=(0.9, STILL), eps=0.1)


def rmsprop(params, lr):
    return torch.optim.RMSprop(params, lr=lr, alpha=STILL, momentum=0.5, eps=0.1)


def plain_lamb(params, lr):
    return Lamb(params, lr=lr, betas=(0.9, STILL), eps=0.1, trust_ratio=False, weight_decay=0.0, fused=False)


def plain_alto(params, lr):
    return ALTO(params, lr=lr, betas=(0.9, STILL), alpha=0.6, beta=0.5, eps=0.1, trust_ratio=False, weight_decay=0.0)


def with_e(make, alpha, beta):
    return lambda params, lr: E(make(params, lr), alpha=alpha, beta=beta)


CASES = {
    "sgd": sgd,
    "damped": damped,
    "nesterov": nesterov,
    "adam": adam,
    "rmsprop": rmsprop,
    "lamb": plain_lamb,
    "alto": plain_alto,
    "e-sgd": with_e(sgd, 0.5, 0.01),
    "e-adam": with_e(adam, -5.0, 0.99),
    "e-adam-swings": with_e(adam, -0.4, 0.5),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of a narrow stable range
@pytest.mark.parametrize("name", CASES)
def test_the_limit_is_where_the_optimizer_stops_converging(name):
    """With second moments that stand still the steps are a linear map: stable just below the limit, not above."""
    _, optimizer = frozen(lambda params: CASES[name](params, 0.01))
    loss, optimizer = frozen(lambda params: CASES[name](params, 0.01))
    found = preconditioned_sharpness(loss, optimizer)
    critical = 0.01 * found.limit / found.eta_lambda.item()
    for factor, converges in ((0.93, True), (1.07, False)):
        loss, optimizer = frozen(lambda params, lr=factor * critical: CASES[name](params, lr))
        assert preconditioned_sharpness(loss, optimizer).share == pytest.approx(factor, rel=1e-6)
        start = recent = loss().item()
        for _ in range(100):
            if not 1e-3 * start < recent < 1e3 * start:
                break
            recent = max(one_step(loss, optimizer) for _ in range(50))  # iterates that swing pass by 0
        assert (recent < 1e-3 * start, recent > 1e3 * start) == (converges, not converges), factor


def one_step(loss, optimizer):
    optimizer.zero_grad()
    value = loss()
    value.backward()
    optimizer.step()
    return value.item()


def adam_by_hand(gradients, betas, eps):
    v = torch.zeros_like(gradients[0])
    for g in gradients:
        v = betas[1] * v + (1 - betas[1]) * g * g
    t = len(gradients)
    return 1 / ((1 - betas[0] ** t) * ((v / (1 - betas[1] ** t)).sqrt() + eps))


@pytest.mark.parametrize("amsgrad", [False, True])
def test_adams_diagonal_with_its_bias_corrections(amsgrad):
    loss = Quadratic(CONVEX, [(12,)]).place(torch.linspace(0.1, 1, 12, dtype=torch.float64))
    optimizer = torch.optim.AdamW(loss.params, lr=0.3, betas=(0.9, 0.95), eps=1e-3, amsgrad=amsgrad)
    gradients = []
    for _ in range(5):
        optimizer.zero_grad()
        loss().backward()
        gradients.append(loss.params[0].grad.clone())
        optimizer.step()
    d = adam_by_hand(gradients, (0.9, 0.95), 1e-3)
    if amsgrad:
        history = [adam_by_hand(gradients[:n], (0.9, 0.95), 0.0) * (1 - 0.9**n) for n in range(1, 6)]
        largest = torch.stack([(1 - 0.95**n) / h.square() for n, h in enumerate(history, 1)]).max(0).values
        d = 1 / ((1 - 0.9**5) * ((largest / (1 - 0.95**5)).sqrt() + 1e-3))
    expected = torch.linalg.eigvalsh(d.sqrt()[:, None] * loss.matrix * d.sqrt()).flip(0)
    found = preconditioned_sharpness(loss, optimizer, 3)
    torch.testing.assert_close(found.eta_lambda / 0.3, expected[:3])
    assert found.limit == stability_limit(0.0, 0.0, momentum=0.9)


@pytest.mark.parametrize("centered", [False, True])
def test_rmsprops_diagonal_is_that_of_its_step(centered):
    p = nn.Parameter(torch.linspace(0.5, 2, 6, dtype=torch.float64))
    optimizer = torch.optim.RMSprop([p], lr=1e-9, alpha=0.9, eps=1e-3, centered=centered)
    for _ in range(4):
        before = p.detach().clone()
        optimizer.zero_grad()
        p.pow(3).sum().backward()
        optimizer.step()
    torch.testing.assert_close(before - p.detach(), rates(optimizer).rates[0] * p.grad, rtol=1e-5, atol=1e-15)


@pytest.mark.parametrize("options", [{}, {"trust_clip": (0.5, 1.5)}, {"norm_dims": (-1,)}, {"weight_decay": 0.0}])
def test_the_trust_ratio_is_that_of_the_step(options):
    """A step of almost no length moves a layer by lr · ratio · r: the diagonal times r's own numerator."""
    torch.manual_seed(0)
    params = [
        nn.Parameter(torch.randn(4, 3, dtype=torch.float64)),
        nn.Parameter(torch.zeros(2, 3, dtype=torch.float64)),
    ]
    loss_of = torch.randn(4, 3, dtype=torch.float64)
    options = {"weight_decay": 0.1, **options}
    optimizer = ALTO(params, lr=1e-9, betas=(0.9, 0.99), alpha=0.5, beta=0.3, fused=False, **options)
    for _ in range(3):
        before = [p.detach().clone() for p in params]
        optimizer.zero_grad()
        ((params[0] - loss_of).square().sum() + (params[1] - 1).square().sum() + params[0].pow(4).sum()).backward()
        optimizer.step()
    for p, old, rate in zip(params, before, rates(optimizer).rates, strict=True):
        m = optimizer.state[p]["exp_avg"]
        decay = optimizer.param_groups[0]["weight_decay"]
        v = optimizer.state[p]["exp_avg_sq"] / (1 - 0.99**3)
        # rate = η ratio / ((1-β2³)(√v̂+ε)), and the step is η ratio (m̂/(√v̂+ε) + λθ)
        ratio = rate * (1 - 0.9**3) * (v.sqrt() + 1e-6)
        torch.testing.assert_close(old - p, rate * m + ratio * decay * old, rtol=1e-5, atol=1e-15)


def test_settings_of_groups():
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    optimizer = EAdamW([{"params": [p]}, {"params": [q], "lr": 0.5}], lr=0.1, alpha=1.2, beta=0.3)
    (p.square().sum() + q.square().sum()).backward()
    optimizer.step()
    found = preconditioned_sharpness(lambda: p.square().sum() + q.square().sum(), optimizer)
    assert found.limit == stability_limit(1.2, 0.3, momentum=0.9)
    optimizer.param_groups[1]["betas"] = (0.8, 0.999)
    found = preconditioned_sharpness(lambda: p.square().sum() + q.square().sum(), optimizer)
    assert found.limit is None
    with pytest.raises(ValueError, match="alpha, beta and momentum must be the same in all groups"):
        _ = found.share


def test_narrow_state_and_unused_parameters():
    p, unused = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(1))
    kinds = [torch.bfloat16, torch.float32]
    found = []
    for dtype in kinds:
        optimizer = Lamb([p, unused], lr=1e-9, state_dtype=dtype)
        optimizer.zero_grad()
        p.square().sum().backward()
        optimizer.step()
        found.append(preconditioned_sharpness(lambda: p.square().sum(), optimizer).eta_lambda.item())
        assert [one is p for one in rates(optimizer).params] == [True]
    assert found[0] == pytest.approx(found[1], rel=0.02)


@pytest.mark.parametrize(
    ("says", "make", "step"),
    [
        ("optimizer must be SGD or RMSprop or Adam or AdamW or Lamb or ALTO, or E around one of these, got 'Adagrad'",
         lambda params: torch.optim.Adagrad(params), True),
        ("optimizer must be one that has made a step, got 'Adam without state'",
         lambda params: torch.optim.Adam(params), False),
        ("optimizer must be one that descends", lambda params: torch.optim.SGD(params, lr=0.1, maximize=True), True),
    ],
)  # fmt: skip
def test_bad_input(says, make, step):
    p = nn.Parameter(torch.ones(2))
    optimizer = make([p])
    if step:
        p.sum().backward()
        optimizer.step()
    with pytest.raises(ValueError, match=says):
        preconditioned_sharpness(lambda: p.square().sum(), optimizer)
