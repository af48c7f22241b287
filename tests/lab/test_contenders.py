import copy
import math

import pytest
import torch
from torch import nn

import thalweg
from thalweg.lab import tasks
from thalweg.lab.contenders import CONTENDERS, DEFAULTS, contender, defaults
from thalweg.lab.contenders.ema_nesterov import EMANesterov
from thalweg.lab.contenders.hyperball import Hyperball, without_decay
from thalweg.lab.contenders.matrices import JORDAN, POLAR_EXPRESS, hidden_layers, polar_factor
from thalweg.lab.contenders.muon import MuonAdamW, StackedMuon
from thalweg.lab.contenders.orscale import OrScale
from thalweg.lab.contenders.space import settings
from thalweg.records.errors import UserError

FULL = {"lr": 0.03, "weight_decay": 0.2, "momentum": 0.8, "beta2": 0.95, "alpha": 0.5, "beta": 0.25, "gamma": 0.1}


def middle(space):
    return {axis.name: axis.at(0.6) for axis in space}


@pytest.mark.parametrize("task", ["digits", "small_tasks:Line"])
@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_moves_every_parameter(name, task):
    torch.manual_seed(0)
    task, splits = tasks.load(task)
    model = task.model()
    before = copy.deepcopy(model.state_dict())
    optimizer = CONTENDERS[name].build(model, settings(middle(CONTENDERS[name].space)))
    inputs, targets = splits.train.__getitems__(list(range(8)))
    for _ in range(2):  # SOAP's first step only sets up
        optimizer.zero_grad()
        task.loss(model(inputs), targets).backward()
        optimizer.step()
    assert [key for key, value in model.state_dict().items() if torch.equal(value, before[key])] == []


def test_every_search_space_has_the_same_widths_and_those_of_the_recipes():
    ends = {
        "weight_decay": [(1e-4, 2.0), (1e-6, 2e-2)], "forgetting": [(0.01, 0.5)], "forgetting2": [(0.001, 0.3)],
        "horizon": [(1.01, 3000.0)], "gain": [(-0.9, 0.9), (0.0, 0.9)], "mix": [(0.1, 20.0)], "gamma": [(0.0025, 0.5)],
    }  # fmt: skip
    for one in CONTENDERS.values():
        found = {axis.name: axis for axis in one.space}
        assert {"lr", "weight_decay", "forgetting"} <= set(found)
        assert found.pop("lr").share(one.space[0].low * 64.0) == pytest.approx(1.0)
        assert all((axis.low, axis.high) in ends[name] for name, axis in found.items())
        assert [name for name, axis in found.items() if not axis.log] == [name for name in found if name == "gain"]
        assert "gain" not in found or (found["gain"].low == 0.0) == (one.name == "ema-nesterov")
        # LAMB's momenta at scale, its decay of ResNet-50, the paper's horizon
        if "sgd" not in one.name:
            assert found["forgetting2"].low <= 1 - 0.998 < 1 - 0.79 <= found["forgetting2"].high
        assert found["weight_decay"].high >= (1.5 if found["weight_decay"].low > 1e-5 else 1e-2)
        if "horizon" in found:
            assert found["horizon"].high >= 1000


CENTRES = {
    5e-2: ("sgd", "e-sgd"),
    1.6e-2: ("muon", "e-muon", "orscale", "e-orscale"),
    3e-2: (
        "lamb",
        "lamb-uncorrected",
        "alto",
        "alto-bf16",
        "alto-8bit",
        "nesterov-lamb",
        "adamh",
        "e-adamh",
    ),
}


def test_learning_rates_lie_around_those_that_were_best():
    """Those of the committed comparisons, of all that is like Adam .01: e-NAME where NAME is."""
    known = {name: centre for centre, names in CENTRES.items() for name in names}
    found = {one.name: one.space[0] for one in CONTENDERS.values()}
    assert {name: axis.at(0.5) for name, axis in found.items()} == pytest.approx(
        {name: known.get(name, 1e-2) for name in found}
    )


def test_alto_and_lamb_differ_in_e_alone():
    lamb, alto = CONTENDERS["lamb"].space, CONTENDERS["alto"].space
    assert alto[: len(lamb)] == lamb
    assert [axis.name for axis in alto[len(lamb) :]] == ["gain", "horizon"]
    one, other = (nn.Linear(3, 2) for _ in range(2))
    other.load_state_dict(one.state_dict())
    pair = CONTENDERS["lamb"].build(one, FULL), CONTENDERS["alto"].build(other, {**FULL, "alpha": 0.0})
    for group, same in zip(pair[0].param_groups, pair[1].param_groups, strict=True):
        keys = set(group) & set(same) - {"params"}
        assert {"lr", "betas", "eps", "trust_eps", "weight_decay"} <= keys
        assert {key: group[key] for key in keys} == {key: same[key] for key in keys}
    for _ in range(3):
        for p, q in zip(one.parameters(), other.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimizer in pair:
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def test_every_corner_of_every_search_space_is_a_valid_setting():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    for one in CONTENDERS.values():
        for end in ("low", "high"):
            one.build(model, settings({axis.name: getattr(axis, end) for axis in one.space}))


def test_the_defaults_are_the_baselines_of_a_fair_comparison():
    assert set(DEFAULTS) >= {
        "sgd", "adamw", "nadamw", "lamb", "muon", "soap", "schedule-free", "ademamix", "mars", "ema-nesterov", "alto",
        "e-muon",
    }  # fmt: skip


@pytest.mark.parametrize("name", CONTENDERS)
def test_settings_reach_the_optimizer(name):
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    optimizer = CONTENDERS[name].build(model, FULL)
    groups = optimizer.param_groups
    assert {group["lr"] for group in groups} == {0.03}
    assert {group["weight_decay"] for group in groups} == {0.2, 0.0}
    momenta = [group["betas"][:2] if "betas" in group else group["momentum"] for group in groups]
    assert set(momenta) <= {(0.8, 0.95), 0.8}
    if name.startswith("e-"):
        assert isinstance(optimizer, thalweg.E)
        assert {(g["explore_alpha"], g["explore_beta"]) for g in groups} == {(0.5, 0.25)}
    if name == "alto":
        assert {(g["alpha"], g["beta"]) for g in groups} == {(0.5, 0.25)}
    if name in ("sgd", "e-sgd"):
        assert all(g["nesterov"] for g in groups)


def test_the_defaults_of_a_run_are_the_papers_for_e():
    assert defaults(CONTENDERS["alto"], 4096).items() >= thalweg.paper_defaults(4096).items()
    assert defaults(CONTENDERS["adamw"], 4096)["lr"] == pytest.approx(1e-2)


def test_hidden_matrices_leave_out_embeddings_head_and_vectors():
    model = tasks.find("pydoc-lm").model()
    names = {id(p): name for name, p in model.named_parameters()}
    layers = hidden_layers(model)
    assert layers.convolutions == layers.stacks == []
    found = {names[id(p)] for p in layers.matrices}
    assert found == {
        f"transformer.h.{i}.{layer}.weight"
        for i in range(2)
        for layer in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }


def test_muon_is_left_out_of_a_model_without_matrices():
    for name in ("muon", "e-muon", "orscale", "adamh"):
        assert CONTENDERS[name].lacks(nn.Sequential(nn.Embedding(2, 2), nn.Linear(2, 1))) is not None
        assert CONTENDERS[name].lacks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))) is None


def test_muon_with_adamw_is_the_two_side_by_side_also_after_a_state_dict_round_trip():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    other = copy.deepcopy(model)
    both = MuonAdamW(model, {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.9, "beta2": 0.99})
    muon = torch.optim.Muon([other[0].weight], lr=0.01, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(
        [
            {"params": [other[2].weight], "weight_decay": 0.1},
            {"params": [other[0].bias, other[2].bias], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.9, 0.99),
    )
    for k in range(6):
        if k == 3:
            both.load_state_dict(both.state_dict())
            for group in (*both.param_groups, *muon.param_groups, *adamw.param_groups):
                group["lr"] = 0.002
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        both.step()
        muon.step()
        adamw.step()
    assert all(both.state[p] for p in model.parameters())  # or it would not be saved
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def stepped(optimizer, params, steps=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        optimizer.step()
    return params


def test_muon_of_convolutions_and_stacks_is_torchs_of_their_matrices():
    torch.manual_seed(0)
    filters, stack = nn.Parameter(torch.randn(4, 3, 2, 2)), nn.Parameter(torch.randn(3, 5, 6))
    flat, each = nn.Parameter(filters.detach().flatten(1)), [nn.Parameter(w) for w in stack.detach().clone()]
    own = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9}
    optimizer = StackedMuon([{"params": [filters], "flatten": True}, {"params": [stack]}], **own)
    torchs = torch.optim.Muon([flat, *each], **own, adjust_lr_fn="match_rms_adamw")
    for k in range(4):
        filters.grad, stack.grad = torch.randn_like(filters) * 10.0**k, torch.randn_like(stack)
        flat.grad = filters.grad.flatten(1)
        for w, g in zip(each, stack.grad, strict=True):
            w.grad = g.clone()
        optimizer.step()
        torchs.step()
    torch.testing.assert_close(filters.flatten(1), flat, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(stack, torch.stack(each), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (2, 5, 5)])
def test_a_polar_factor_has_the_singular_vectors_and_values_near_1(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e3
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    for coefficients, scale, within in ((JORDAN, 1.0, (0.6, 1.25)), (POLAR_EXPRESS, 1.02, (0.8, 1.2))):
        found = polar_factor(x, coefficients, scale=scale).float()
        values = torch.diagonal(u.mT @ found @ vh.mT, dim1=-2, dim2=-1)
        assert (values > within[0]).all()
        assert (values < within[1]).all()
    assert not polar_factor(torch.zeros(shape), POLAR_EXPRESS, scale=1.02).any()


def polar_by_svd(x, *_, **__):
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    return u @ vh


@pytest.mark.parametrize("calibrated", [True, False])
def test_orscale_is_its_equations(calibrated, monkeypatch):
    monkeypatch.setattr("thalweg.lab.contenders.orscale.polar_factor", polar_by_svd)
    start = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p = nn.Parameter(start.clone())
    optimizer = OrScale([{"params": [p]}], lr=0.3, weight_decay=0.5, momentum=0.9, calibrated=calibrated)
    w, m, c = start.clone(), torch.zeros_like(start), None
    for k in range(6):
        g = torch.randn(4, 3, generator=torch.Generator().manual_seed(10 + k), dtype=torch.float64)
        p.grad = g.clone()
        optimizer.step()
        m = 0.9 * m + 0.1 * g
        q = polar_by_svd(0.1 * g + 0.9 * m)
        d = 0.5 * w + (0.2 * 4**0.5 if calibrated else 1.0) * q
        if c is None:
            c = float(w.norm() / d.norm()) if calibrated else 1.0
        ratio = float(w.norm() / (c * d.norm() + 1e-6))
        ratio = min(max(ratio, 0.1), 5.0) if calibrated else min(max(ratio, 0.5), 1.5)
        w = w - 0.3 * ratio * d
        torch.testing.assert_close(p.detach(), w, rtol=1e-12, atol=1e-12)


def test_hyperball_is_its_equations_around_adam():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    groups = without_decay(thalweg.param_groups(model, 0.1), model)
    assert sorted(group["weight_decay"] for group in groups) == [0.0, 0.0, 0.1]
    plain = [{"params": g["params"], "weight_decay": g["weight_decay"]} for g in groups]
    optimizer = Hyperball(torch.optim.AdamW(plain, lr=0.05, betas=(0.9, 0.99)), model)
    w, m, v = model[0].weight.detach().clone(), 0.0, 0.0
    radius = w.norm()
    for k in range(1, 5):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        g = model[0].weight.grad.clone()
        optimizer.step()
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        u = m / (1 - 0.9**k) / ((v / (1 - 0.99**k)).sqrt() + 1e-8)
        w = w - 0.05 * radius * u / u.norm()
        w = radius * w / w.norm()
        torch.testing.assert_close(model[0].weight.detach(), w, rtol=1e-12, atol=1e-12)
    assert model[2].weight.norm() != radius


def test_hyperball_around_adam_without_momentum_is_heavyballs():
    """Which has none, whatever its first beta says."""
    heavyball = pytest.importorskip("heavyball")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Linear(5, 2, bias=False))
    twin = nn.Parameter(model[0].weight.detach().clone())
    base = torch.optim.AdamW(model.parameters(), lr=0.05, betas=(0.0, 0.99), weight_decay=0.0)
    optimizer = Hyperball(base, model)
    theirs = heavyball.HyperBallAdamW([twin], lr=0.05, betas=(0.9, 0.99), weight_decay=0.0)
    for _ in range(4):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        twin.grad = model[0].weight.grad.clone()
        optimizer.step()
        theirs.step()
    torch.testing.assert_close(model[0].weight, twin, rtol=1e-5, atol=1e-6)


def test_nadamw_looks_ahead_with_all_of_its_momentum_from_the_first_step():
    """By hand: the average at the next step, were its gradient the present one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4)).double()
    optimizer = CONTENDERS["nadamw"].build(model, FULL)
    b1, b2, lr = FULL["momentum"], FULL["beta2"], FULL["lr"]
    w, m, v = model[0].weight.detach().clone(), 0.0, 0.0
    for k in range(1, 6):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        g = model[0].weight.grad.clone()
        optimizer.step()
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        ahead = b1 * m / (1 - b1 ** (k + 1)) + (1 - b1) * g / (1 - b1**k)
        w = w * (1 - lr * FULL["weight_decay"]) - lr * ahead / ((v / (1 - b2**k)).sqrt() + 1e-8)
        # torch keeps the product of momenta in float32
        torch.testing.assert_close(model[0].weight.detach(), w, rtol=1e-6, atol=1e-8)


def test_nesterov_lamb_is_lamb_on_nesterovs_average():
    """Its h is (1 + β2) g - β2 b with b the gradient before: the average of h is m + β2 (m - m before)."""
    model = nn.Sequential(nn.Linear(3, 4))
    optimizer = CONTENDERS["nesterov-lamb"].build(model, FULL)
    p = model[0].weight
    g, m, before = torch.zeros_like(p), torch.zeros_like(p), torch.zeros_like(p)
    for _ in range(4):
        stepped(optimizer, [p, model[0].bias], steps=1)
        g, before = p.grad, m
        m = FULL["momentum"] * m + (1 - FULL["momentum"]) * g
        looked_ahead = m + FULL["momentum"] * (m - before)
        torch.testing.assert_close(optimizer.state[p]["exp_avg"], looked_ahead, rtol=1e-5, atol=1e-6)


# EMA-Nesterov


def quadratic_by_hand(steps, lr, alpha, beta):
    """The definition: the gradient of ½θ² at θ + α d, d the EMA of the moves."""
    theta, ahead = 1.0, 0.0
    for _ in range(steps):
        moved = theta - lr * (theta + alpha * ahead)
        ahead = beta * ahead + (1 - beta) * (moved - theta)
        theta = moved
    return theta, ahead


def quadratic_by(optimizer, p, steps):
    for _ in range(steps):
        p.grad = p.detach().clone()
        optimizer.step()


def test_ema_nesterov_is_its_definition_and_shows_theta_when_evaluated():
    p = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = EMANesterov(torch.optim.SGD([p], lr=0.1), alpha=3.0, beta=0.8)
    quadratic_by(optimizer, p, 7)
    theta, ahead = quadratic_by_hand(7, 0.1, 3.0, 0.8)
    assert p.item() == pytest.approx(theta + 3.0 * ahead, rel=1e-12)
    for _ in range(2):
        optimizer.eval()
        optimizer.eval()
        assert p.item() == pytest.approx(theta, rel=1e-12)
        optimizer.train()
        optimizer.train()
        assert p.item() == pytest.approx(theta + 3.0 * ahead, rel=1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_ema_nesterov_is_e_with_the_same_alpha_to_first_order(order):
    def difference(lr):
        ends = []
        for wrap in (lambda base: EMANesterov(base, alpha=1.5, beta=0.5), lambda base: thalweg.E(base, 1.5, 0.5)):
            p = nn.Parameter(torch.ones(1, dtype=torch.float64))
            optimizer = wrap(torch.optim.SGD([p], lr=lr))
            quadratic_by(optimizer, p, 40)
            if isinstance(optimizer, EMANesterov):
                optimizer.eval()
            ends.append(p.item())
        return abs(ends[0] - ends[1])

    plain = nn.Parameter(torch.ones(1, dtype=torch.float64))
    quadratic_by(torch.optim.SGD([plain], lr=0.01), plain, 40)
    if order == 1:
        assert difference(0.01) < 0.1 * abs(plain.item() - 1.0)
    else:
        assert difference(0.005) < 0.65 * difference(0.01)


def test_ema_nesterov_goes_on_from_its_state_dict():
    def made():
        torch.manual_seed(0)
        p = nn.Parameter(torch.randn(3, 2))
        return p, EMANesterov(torch.optim.AdamW([p], lr=0.1), alpha=2.0, beta=0.9)

    (p, one), (q, other) = made(), made()
    quadratic_by(one, p, 3)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    q.data.copy_(p)
    for optimizer, at in ((one, p), (other, q)):
        quadratic_by(optimizer, at, 3)
    assert torch.equal(p, q)


# any class


def ranges(name):
    return {axis.name: (axis.low, axis.high) for axis in contender(name).space}


@pytest.mark.parametrize(
    ("dotted", "name"),
    [
        ("torch.optim.SGD", "sgd"),
        ("torch.optim.Adam", "adam"),
        ("torch.optim.AdamW", "adamw"),
        ("torch.optim.NAdam", "adam"),  # without decoupled decay, which is not its default
        ("thalweg.ALTO", "alto"),
        ("thalweg.Lamb", "lamb"),
        ("thalweg.EAdamW", "e-adamw"),
        ("thalweg.ESGD", "e-sgd"),
        ("small_optimizers.Plain", "sgd"),
        ("small_optimizers.ZeroLr", "sgd"),
        ("small_optimizers.NanLr", "sgd"),
        ("pytorch_optimizer.AdaBelief", "adabelief"),
    ],
)
def test_a_class_is_searched_where_the_contender_of_its_kind_is(dotted, name):
    assert ranges(dotted) == ranges(name)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("torch.optim.Adagrad", {"lr", "weight_decay"}),
        ("torch.optim.RMSprop", {"lr", "weight_decay", "momentum", "beta2"}),
        ("pytorch_optimizer.Lion", {"lr", "weight_decay", "momentum", "beta2"}),
        ("pytorch_optimizer.AdEMAMix", {"lr", "weight_decay", "momentum", "beta2"}),
        ("thalweg.ALTO", {"lr", "weight_decay", "momentum", "beta2", "alpha", "beta"}),
    ],
)
def test_any_class_by_its_dotted_name(name, keys):
    one = contender(name)
    s = settings(middle(one.space))
    assert set(s) == keys
    optimizer = one.build(nn.Linear(2, 1), s)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (s["lr"], s["weight_decay"])
    if "betas" in group:
        assert group["betas"][:2] == (s["momentum"], s["beta2"])
    elif "beta2" in s:
        assert (group["momentum"], group["alpha"]) == (s["momentum"], s["beta2"])


def test_the_learning_rates_of_any_class_are_finite_and_positive():
    for name in ("small_optimizers.ZeroLr", "small_optimizers.NanLr", "small_optimizers.Exits"):
        low, high = ranges(name)["lr"]
        assert 0.0 < low < high < math.inf


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adamm", "unknown optimizer 'adamm': choose from sgd, adam"),
        ("..x", "cannot import optimizer '..x'"),
        (".", "unknown optimizer '.'"),
        ("torch.optim.Nope", "cannot import optimizer 'torch.optim.Nope'"),
        ("no.such.Thing", "cannot import optimizer 'no.such.Thing'"),
        ("torch.nn.Linear", "is not a subclass of torch.optim.Optimizer"),
        ("torch.optim.LBFGS", "needs an argument lr and a step\\(\\) without closure"),
    ],
)
def test_an_unusable_optimizer_is_one_clear_error(name, message):
    with pytest.raises(UserError, match=message):
        contender(name)


def test_a_module_that_fails_to_import_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for k, line in enumerate(("1/0", "import sys; sys.exit(3)", "def (")):
        (tmp_path / f"failing{k}.py").write_text(line)
        with pytest.raises(UserError, match=f"cannot import optimizer 'failing{k}.Some'"):
            contender(f"failing{k}.Some")


def test_a_class_of_the_current_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lying_here.py").write_text("import torch\nclass Mine(torch.optim.SGD): pass\n")
    assert contender("lying_here.Mine").name == "lying_here.Mine"
