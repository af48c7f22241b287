"""Where α is 0, sparse gradients are the base's own matter; elsewhere they are refused."""

from __future__ import annotations

import copy

import pytest
import torch
from support import assert_same, clone_params

from thalweg import ALTO, ESGD, E, EAdam, EAdamW, Lamb

BASES = {
    "SGD": lambda ps: torch.optim.SGD(ps, lr=0.125),
    "SGD, momentum": lambda ps: torch.optim.SGD(ps, lr=0.125, momentum=0.5),
    "SGD, foreach": lambda ps: torch.optim.SGD(ps, lr=0.125, foreach=True),
    "Adagrad": lambda ps: torch.optim.Adagrad(ps, lr=0.125),
}
FORMS = {
    "instance": lambda base: lambda ps, **own: E(BASES[base](ps), **own),
    "class": lambda base: (
        lambda ps, **own: E.of(type(BASES[base](ps)))(
            ps, lr=0.125, **({"momentum": 0.5} if "momentum" in base else {}), **own
        )
    ),
}


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rows = torch.nn.Embedding(6, 3, sparse=True)
        self.out = torch.nn.Linear(3, 1)

    def forward(self, k):
        return self.out(self.rows(torch.tensor([k % 3, 5, 5]))).square().sum()


def train(model, optimizer, steps, first=0):
    for k in range(first, first + steps):
        optimizer.zero_grad()
        model(k).backward()
        assert model.rows.weight.grad.layout is torch.sparse_coo
        optimizer.step()
    return list(model.parameters())


@pytest.mark.parametrize("nonfinite", ["propagate", "skip", "raise"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("base", BASES)
def test_at_alpha_0_the_base_steps_on_them_as_it_does_alone(base, form, nonfinite):
    expected, model = Model(), Model()
    alone = BASES[base](expected.parameters())
    optimizer = FORMS[form](base)(list(model.parameters()), alpha=0.0, nonfinite=nonfinite)
    assert_same(train(model, optimizer, 6), train(expected, alone, 6))
    assert not any("explore_ema" in state for state in optimizer.state.values())
    resumed_model = copy.deepcopy(model)
    resumed = FORMS[form](base)(list(resumed_model.parameters()), alpha=0.0)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert_same(train(resumed_model, resumed, 3, first=6), train(expected, alone, 3, first=6))


def test_an_optimizer_of_sparse_gradients_alone_works_too():
    expected, model = (torch.nn.Embedding(6, 3, sparse=True) for _ in range(2))
    model.load_state_dict(expected.state_dict())
    alone = torch.optim.SparseAdam(expected.parameters(), lr=0.125)
    optimizer = E.of(torch.optim.SparseAdam)(model.parameters(), lr=0.125, alpha=0.0, nonfinite="skip")
    for k in range(6):
        for m, o in ((expected, alone), (model, optimizer)):
            o.zero_grad()
            m(torch.tensor([k % 3, 5, 5])).square().sum().backward()
            o.step()
    assert_same(model.parameters(), expected.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_one_that_is_not_finite_is_skipped_or_raised_as_any_other(value):
    for nonfinite in ("skip", "raise"):
        model = Model()
        optimizer = E(BASES["SGD"](model.parameters()), alpha=0.0, nonfinite=nonfinite)
        model(0).backward()
        model.rows.weight.grad = torch.sparse_coo_tensor([[1]], [[1.0, value, 1.0]], (6, 3))
        before = clone_params(model.parameters())
        if nonfinite == "raise":
            with pytest.raises(RuntimeError, match="an infinity, a NaN or an entry whose square overflows"):
                optimizer.step()
        else:
            optimizer.step()
            assert optimizer.skipped_steps == 1
        assert_same(model.parameters(), before)


REFUSED = {
    "α of the group": lambda ps: ESGD(ps, alpha=0.5, beta=0.25),
    "ALTO": lambda ps: ALTO(ps, alpha=0.0),
    "Lamb": Lamb,
    "EAdam": lambda ps: EAdam(ps, alpha=0.0),
    "EAdamW": lambda ps: EAdamW(ps, alpha=0.0),
    "E(Lamb)": lambda ps: E(Lamb(ps), alpha=0.0),
    "E(RMSprop)": lambda ps: E(torch.optim.RMSprop(ps), alpha=0.0),
}


@pytest.mark.parametrize("build", REFUSED)
def test_elsewhere_and_where_the_base_takes_none_nothing_changes(build):
    model = Model()
    optimizer = REFUSED[build](list(model.parameters()))
    model(0).backward()
    before = clone_params(model.parameters())
    with pytest.raises(RuntimeError, match=r"^(ALTO|Lamb|E) needs dense gradients, got one of layout torch.sparse_coo"):
        optimizer.step()
    assert_same(model.parameters(), before)
    assert not optimizer.state


def test_alpha_may_be_0_in_one_group_and_b_that_has_begun_still_needs_dense_gradients():
    model = Model()
    groups = [{"params": model.rows.parameters(), "explore_alpha": 0.0}, {"params": model.out.parameters()}]
    optimizer = ESGD(groups, lr=0.125, alpha=0.5, beta=0.25)
    train(model, optimizer, 2)
    assert "explore_ema" in optimizer.state[model.out.weight]
    optimizer.state[model.rows.weight]["explore_ema"] = torch.zeros(6, 3)
    with pytest.raises(RuntimeError, match=r"^E needs dense gradients"):
        optimizer.step()
