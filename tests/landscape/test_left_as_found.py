"""Buffers, torch's random numbers, gradients and modes are after an estimate what they were before."""

from __future__ import annotations

import pytest
import torch
from estimators import ESTIMATORS, OF_A_LOSS
from torch import nn
from torch.nn import functional as F

from thalweg.landscape import FixedSample, hessian_trace, mean_increase, worst_case
from thalweg.zeroth_order import spsa


class Counted(nn.Module):
    """A buffer that every call replaces, one that it writes to, and one that grows."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("written", torch.zeros(2))
        self.register_buffer("grown", torch.zeros(1))

    def forward(self, x):
        self.calls = self.calls + 1
        self.written.add_(1.0)
        self.grown = torch.zeros(len(self.grown) + 1)
        return x


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), Counted(), nn.Linear(6, 3))
    x, y = torch.randn(40, 5), torch.randint(3, (40,))
    model(x)  # statistics that are not those of the start
    return model, x, y


def everything(model):
    return {
        **{name: t.clone() for name, t in model.state_dict().items() if name != "4.grown"},
        **{f"gradient of {name}": p.grad.clone() for name, p in model.named_parameters()},
        **{f"mode of {name}": torch.tensor(module.training) for name, module in model.named_modules()},
        "generator": torch.get_rng_state(),
    }


def check_unchanged(before, after):
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("kind", ["closure", "sample"])
def test_nothing_changes_in_training_mode(name, kind):
    model, x, y = network()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(torch.get_rng_state()))
    if kind == "closure" and name in OF_A_LOSS:
        loss = lambda: F.cross_entropy(model(x), y)  # noqa: E731
    else:
        model.eval()
        loss = FixedSample(model, F.cross_entropy, [(x[:20], y[:20]), (x[20:], y[20:])], training=True)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    buffers, before = dict(model.named_buffers()), everything(model)
    ESTIMATORS[name](loss, list(model.parameters()))
    assert calls
    assert not torch.equal(calls[0], before["generator"])  # masks were drawn
    check_unchanged(before, everything(model))
    assert all(now is buffers[key] for key, now in model.named_buffers() if key != "4.grown")


def test_nothing_changes_if_the_loss_raises():
    model, x, y = network()
    F.cross_entropy(model(x), y).backward()
    before = everything(model)

    def loss():
        model(x)
        raise KeyError

    for call in (lambda: spsa(loss, model.parameters(), seed=0), lambda: hessian_trace(loss, model.parameters())):
        with pytest.raises(KeyError):
            call()
        check_unchanged(before, everything(model))


def test_a_sample_that_is_called_by_itself_changes_nothing_and_can_be_differentiated():
    model, x, y = network()
    F.cross_entropy(model(x), y).backward()
    before = everything(model)
    loss = FixedSample(model, F.cross_entropy, [(x, y)], training=True)()
    check_unchanged(before, everything(model))
    expected = torch.autograd.grad(F.cross_entropy(model(x), y), model.parameters())  # from the same state: one mask
    torch.testing.assert_close(torch.autograd.grad(loss, model.parameters()), expected)


def test_within_an_estimate_each_evaluation_draws_a_mask_of_its_own():
    model, x, y = network()
    seen = set()
    model[3].register_forward_hook(lambda module, args, out: seen.add(tuple(out.eq(0).flatten().tolist())))
    mean_increase(lambda: F.cross_entropy(model(x), y), model.parameters(), 0.1, pairs=3)
    assert len(seen) == 7


def test_a_graph_that_the_user_holds_can_still_be_differentiated():
    model, x, y = network()
    model.eval()  # in which batch norm's statistics are part of the graph
    held = F.cross_entropy(model(x), y)
    sample = FixedSample(model, F.cross_entropy, [(x, y)], training=True)
    hessian_trace(sample, model.parameters(), 6)
    expected = torch.autograd.grad(F.cross_entropy(model(x), y), model.parameters())
    torch.testing.assert_close(torch.autograd.grad(held, model.parameters()), expected)


def test_buffers_of_functional_calls_are_put_back_and_not_into_the_module():
    model, x, y = network()
    own = dict(model.named_buffers())
    others = {name: buffer.clone() + 1 for name, buffer in own.items()}
    before = {name: buffer.clone() for name, buffer in others.items()}
    kept = {name: buffer.clone() for name, buffer in own.items()}

    def loss():
        return F.cross_entropy(torch.func.functional_call(model, {**others}, (x,)), y)

    worst_case(loss, model.parameters(), 0.1, steps=2)
    assert all(torch.equal(others[name], before[name]) for name in others)
    assert all(now is own[name] and torch.equal(now, kept[name]) for name, now in model.named_buffers())


def test_estimates_of_spsa_have_one_mask_in_all_evaluations_and_another_at_the_next_seed():
    model, x, y = network()
    masks = []
    model[3].register_forward_hook(lambda module, args, out: masks.append(out.eq(0)))

    def loss():
        return F.cross_entropy(model(x), y)

    for seed in (1, 1, 2):
        spsa(loss, model.parameters(), seed=seed, samples=3)
    first, again, other = masks[:6], masks[6:12], masks[12:]
    assert all(torch.equal(mask, first[0]) for mask in [*first, *again])
    assert all(torch.equal(mask, other[0]) for mask in other)
    assert not torch.equal(first[0], other[0])
    torch.manual_seed(1)  # another rank, say
    spsa(loss, model.parameters(), seed=1)
    assert not torch.equal(masks[-1], first[0])
