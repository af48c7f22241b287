import copy

import pytest
import torch
from torch import nn

import thalweg
from thalweg.lab import tasks
from thalweg.lab.errors import UserError
from thalweg.lab.optimizers import CONTENDERS, MuonAdamW, contender, hidden_matrices, settings


def middle(space):
    return {name: (d.low * d.high) ** 0.5 if d.log else (d.low + d.high) / 2 + 0.1 for name, d in space.items()}


@pytest.mark.parametrize("task", tasks.TASKS)
@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_moves_every_parameter_of_every_task(name, task):
    torch.manual_seed(0)
    task, splits = tasks.load(task)
    model = task.model()
    before = copy.deepcopy(model.state_dict())
    optimizer = CONTENDERS[name].build(model, settings(middle(CONTENDERS[name].space)))
    inputs, targets = splits.train.__getitems__(list(range(8)))
    for _ in range(2):
        task.loss(model(inputs), targets).backward()
        optimizer.step()
    assert [key for key, value in model.state_dict().items() if torch.equal(value, before[key])] == []


def test_every_search_space_has_the_same_widths():
    def width(d):
        return d.high / d.low if d.log else d.high - d.low

    for name in ("lr", "forgetting", "gain", "horizon"):
        assert len({round(width(c.space[name]), 6) for c in CONTENDERS.values() if name in c.space}) == 1
    assert all({"lr", "weight_decay", "forgetting"} <= set(c.space) for c in CONTENDERS.values())


def test_every_corner_of_every_search_space_is_a_valid_setting():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    for c in CONTENDERS.values():
        for end in ("low", "high"):
            c.build(model, settings({name: getattr(d, end) for name, d in c.space.items()}))


def test_settings_reach_the_optimizer():
    model = nn.Linear(2, 1)
    s = {"lr": 0.03, "weight_decay": 0.2, "momentum": 0.8, "alpha": -0.5, "beta": 0.25}
    alto = CONTENDERS["alto"].build(model, s)
    assert (alto.param_groups[0]["betas"], alto.param_groups[0]["beta"]) == ((0.8, 0.99), 0.25)
    assert [(g["alpha"], g["lr"], g["weight_decay"]) for g in alto.param_groups] == [(-0.5, 0.03, 0.2), (-0.5, 0.03, 0)]
    e = CONTENDERS["e-sgd"].build(model, s)
    assert isinstance(e, thalweg.E)
    assert (e.param_groups[0]["explore_alpha"], e.param_groups[0]["explore_beta"]) == (-0.5, 0.25)
    assert e.param_groups[0]["nesterov"] is True


def test_hidden_matrices_leave_out_embeddings_head_and_vectors():
    model = tasks.PydocLM().model()
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)] for p in hidden_matrices(model)}
    assert found == {
        f"transformer.h.{i}.{layer}.weight"
        for i in range(2)
        for layer in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }


def test_muon_is_left_out_of_a_model_without_matrices():
    assert CONTENDERS["muon"].lacks(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(2, 1))) is not None
    assert CONTENDERS["muon"].lacks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))) is None


def test_muon_with_adamw_is_the_two_side_by_side_also_after_a_state_dict_round_trip():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    other = copy.deepcopy(model)
    s = {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.9}
    both = MuonAdamW(model, s)
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


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("torch.optim.Adagrad", {"lr", "weight_decay"}),
        ("torch.optim.RMSprop", {"lr", "weight_decay", "momentum"}),
        ("pytorch_optimizer.Lion", {"lr", "weight_decay", "momentum"}),
        ("thalweg.ALTO", {"lr", "weight_decay", "momentum"}),
    ],
)
def test_any_class_by_its_dotted_name(name, keys):
    c = contender(name)
    s = settings(middle(c.space))
    assert set(s) == keys
    optimizer = c.build(nn.Linear(2, 1), s)
    assert optimizer.param_groups[0]["lr"] == s["lr"]
    assert optimizer.param_groups[0]["weight_decay"] == s["weight_decay"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adamm", "unknown optimizer 'adamm': choose from sgd, adam"),
        ("torch.optim.Nope", "cannot import optimizer 'torch.optim.Nope'"),
        ("no.such.Thing", "cannot import optimizer 'no.such.Thing'"),
        ("torch.nn.Linear", "is not a subclass of torch.optim.Optimizer"),
        ("torch.optim.LBFGS", "needs an argument lr and a step\\(\\) without closure"),
    ],
)
def test_an_unusable_optimizer_is_one_clear_error(name, message):
    with pytest.raises(UserError, match=message):
        contender(name)
