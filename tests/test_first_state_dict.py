"""A state dict that is made before the first step leaves training as it would have been."""

from __future__ import annotations

import copy

import pytest
import torch
from support import assert_same, assert_same_state, make_grads, take_steps
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from thalweg import ALTO, ESGD, E, EAdam, EAdamW, Lamb, step_in_backward

OWN = {"alpha": -0.5, "beta": 0.25}
OPTIMIZERS = {
    "ALTO": lambda ps: ALTO(ps, **OWN),
    "ALTO, α = 0": lambda ps: ALTO(ps, alpha=0.0),
    "ALTO, lr in a tensor": lambda ps: ALTO(ps, lr=torch.tensor(0.125), **OWN),
    "ALTO, 8 bits": lambda ps: ALTO(ps, state_dtype="8bit", **OWN),
    "Lamb": Lamb,
    "EAdam": lambda ps: EAdam(ps, **OWN),
    "EAdamW": lambda ps: EAdamW(ps, **OWN),
    "EAdamW, α = 0": lambda ps: EAdamW(ps, alpha=0.0),
    "EAdamW, skip": lambda ps: EAdamW(ps, **OWN, nonfinite="skip", fused=True),
    "EAdamW, foreach": lambda ps: EAdamW(ps, **OWN, foreach=True, amsgrad=True),
    "ESGD, momentum": lambda ps: ESGD(ps, lr=0.125, momentum=0.5, **OWN),
    **{
        f"E({base.__name__})": lambda ps, base=base: E(base(ps, lr=0.125), **OWN)
        for base in (
            torch.optim.NAdam,
            torch.optim.RAdam,
            torch.optim.Adamax,
            torch.optim.Adadelta,
            torch.optim.RMSprop,
        )
    },
    "E(Adafactor)": lambda ps: E(torch.optim.Adafactor(ps), **OWN),
}


def start(build):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 2))
    return model, OPTIMIZERS[build](list(model.parameters()))


@pytest.mark.parametrize("build", OPTIMIZERS)
def test_one_that_torch_makes_before_the_first_step_counts_none(build):
    """It takes a step of zero gradients at learning rate 0 to have the state made."""
    (model, optimizer), (plain, expected) = start(build), start(build)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    counts = [state["step"] for state in optimizer.state.values() if "step" in state]
    assert not any(counts)
    assert optimizer.state
    assert optimizer.skipped_steps == 0
    other, resumed = start(build)
    set_optimizer_state_dict(other, resumed, saved)
    rows = make_grads(list(model.parameters()), 3)
    for m, o in ((model, optimizer), (plain, expected), (other, resumed)):
        take_steps(o, list(m.parameters()), rows)
    for m, o in ((model, optimizer), (other, resumed)):
        assert_same(m.parameters(), plain.parameters())
        if build != "ALTO, 8 bits":  # which has no equality
            assert_same_state(o, expected)


@pytest.mark.parametrize("build", ["EAdamW", "EAdamW, foreach", "E(NAdam)", "ESGD, momentum", "ALTO"])
def test_state_that_is_allocated_beforehand_stands_before_the_first_step(build):
    (model, optimizer), (plain, expected) = start(build), start(build)
    optimizer.init_state()
    before = [p.detach().clone() for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters())
    assert_same(model.parameters(), before)
    rows = make_grads(list(model.parameters()), 3)
    for m, o in ((model, optimizer), (plain, expected)):
        take_steps(o, list(m.parameters()), rows)
    assert_same(model.parameters(), plain.parameters())


@pytest.mark.parametrize("build", ["ALTO", "ALTO, lr in a tensor", "EAdamW", "EAdamW, foreach"])
@pytest.mark.parametrize(
    "case", ["one gradient is not zero", "one is missing", "a closure", "a learning rate", "later"]
)
def test_any_other_step_counts(build, case):
    """Warm-up that starts at 0, frozen layers, gradients that happen to vanish."""
    model, optimizer = start(build)
    params = list(model.parameters())
    group = optimizer.param_groups[0]
    for p in params:
        p.grad = torch.zeros_like(p)
    if case == "later":
        params[0].grad.fill_(1.0)
        optimizer.step()
        params[0].grad.zero_()
    if case != "a learning rate":
        group["lr"] = torch.tensor(0.0) if isinstance(group["lr"], torch.Tensor) else 0.0
    if case == "one gradient is not zero":
        params[-1].grad[-1] = 1e-30
    elif case == "one is missing":
        params[1].grad = None
    optimizer.step(*([lambda: 0.0] if case == "a closure" else []))
    assert optimizer.state[params[0]]["step"] == (2 if case == "later" else 1)


@pytest.mark.parametrize("cls", [ALTO, EAdamW])
def test_a_layer_that_steps_in_backward_counts_a_step_of_zeros(cls):
    """The first that has its gradient, in a warm-up from 0."""
    last, first = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = cls([last, first], lr=0.5, nonfinite="propagate")
    optimizer.param_groups[0]["lr"] = 0.0
    order = []
    for p in (last, first):
        p.register_post_accumulate_grad_hook(lambda p: order.append(p is first))
    step_in_backward(optimizer)
    (last.sum() + (0.0 * first).sum()).backward()
    optimizer.step()
    assert order == [True, False]
    assert [optimizer.state[p]["step"].item() for p in (last, first)] == [1.0, 1.0]
