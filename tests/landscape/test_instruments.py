"""What is measured while training, against the two-buffer recursion, the step itself, and gradients of examples."""

from __future__ import annotations

import math

import pytest
import torch
from closed_forms import small_network
from torch import nn
from torch.nn import functional as F

from thalweg import ALTO, E, EAdamW, Lamb
from thalweg.landscape import FixedSample, Instruments, gradient_noise, hessian_eigenvalues, preconditioned_sharpness


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors])


@pytest.mark.parametrize("kind", ["E", "ALTO"])
def test_a_and_g_by_the_papers_two_buffers(kind):
    model, x, y = small_network()
    params = list(model.parameters())
    if kind == "E":
        optimizer = E(torch.optim.SGD(params, lr=0.3), alpha=-2.0, beta=0.7)
    else:
        optimizer = ALTO(params, lr=0.05, alpha=-2.0, beta=0.7)
    instruments = Instruments(optimizer)
    a, last = 0.0, 0.0
    for step in range(5):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        g = flat([p.grad for p in params]).clone()
        a = 0.7 * a + 0.3 * (g - last)
        last = g
        found = instruments.measure()
        assert found["a_over_g"] == pytest.approx((a.norm() / g.norm()).item(), rel=1e-6), step
        assert found["cosine_a_g"] == pytest.approx((a @ g / a.norm() / g.norm()).item(), rel=1e-6)
        assert found["gradient_norm"] == pytest.approx(g.norm().item())
        assert torch.equal(flat([p.grad for p in params]), g)
        optimizer.step()


@pytest.mark.parametrize(
    "options", [{}, {"max_grad_norm": 0.01}, {"trust_clip": (0.1, 2.0)}, {"maximize": True}, {"alpha": 0.0}]
)
def test_trust_ratios_are_those_of_the_step(options):
    model, x, y = small_network()
    params = list(model.parameters())
    lr = 1e-3
    optimizer = ALTO(
        [{"params": [params[0], params[2]]}, {"params": [params[1], params[3]], "trust_ratio": False}],
        lr=lr, weight_decay=0.1, **{"alpha": 0.8, "beta": 0.5, **options},
    )  # fmt: skip
    instruments = Instruments(optimizer, names=dict(model.named_parameters()))
    for step in range(1, 4):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        found = instruments.measure()
        before = [p.detach().clone() for p in params]
        optimizer.step()
        names = [name for name in found if name.startswith("trust_ratio/")]
        assert names == ["trust_ratio/0.weight", "trust_ratio/2.weight"]
        for p, old, name in ((params[0], before[0], names[0]), (params[2], before[2], names[1])):
            state = optimizer.state[p]
            m, v = state["exp_avg"] / (1 - 0.9**step), state["exp_avg_sq"] / (1 - 0.99**step)
            r = m / (v.sqrt() + 1e-6) + 0.1 * old
            assert found[name] == pytest.approx(((old - p).norm() / (lr * r.norm())).item(), rel=1e-6)


def test_stacked_layers_have_a_ratio_each():
    p = nn.Parameter(torch.tensor([[3.0, 4.0], [0.6, 0.8]]))
    optimizer = Lamb([p], weight_decay=0.0, norm_dims=(-1,), trust_eps=0.0)
    p.sum().backward()
    found = Instruments(optimizer).measure()
    # r is 1 in each entry
    assert found["trust_ratio/0/0"] == pytest.approx(5 / math.sqrt(2), rel=1e-5)
    assert found["trust_ratio/0/1"] == pytest.approx(1 / math.sqrt(2), rel=1e-5)


@pytest.mark.parametrize("sizes", [(10, 10, 10, 10), (4, 16, 20)])
def test_the_noise_of_micro_batches_is_that_of_the_sample(sizes):
    model, x, y = small_network()
    params = list(model.parameters())
    instruments = Instruments(torch.optim.SGD(params, lr=0.1))
    parts = list(zip(x.split(sizes), y.split(sizes), strict=True))
    for _ in range(2):  # the second step starts anew
        for part_x, part_y in parts:
            share = len(part_x) / 40
            (F.cross_entropy(model(part_x), part_y) * share).backward()
            instruments.micro_batch(len(part_x), share)
        found = instruments.measure()
        expected = gradient_noise(FixedSample(model, F.cross_entropy, parts), params)
        assert found["gradient_noise_trace"] == pytest.approx(expected.trace)
        assert found["gradient_squared_norm"] == pytest.approx(expected.squared_norm)
        assert found["gradient_noise_scale"] == pytest.approx(expected.scale)
        model.zero_grad()


def test_the_noise_is_that_of_the_gradient_before_it_was_clipped():
    model, x, y = small_network()
    params = list(model.parameters())
    instruments = Instruments(torch.optim.SGD(params, lr=0.1))
    parts = list(zip(x.split(10), y.split(10), strict=True))
    for part_x, part_y in parts:
        (F.cross_entropy(model(part_x), part_y) / 4).backward()
        instruments.micro_batch(10, 0.25)
    torch.nn.utils.clip_grad_norm_(params, 1e-3)
    found = instruments.measure()
    assert found["gradient_norm"] == pytest.approx(1e-3, rel=1e-2)
    expected = gradient_noise(FixedSample(model, F.cross_entropy, parts), params)
    assert found["gradient_squared_norm"] == pytest.approx(expected.squared_norm)


def micro_batches(model, x, y, instruments, sizes=(10, 10, 20)):
    parts = list(zip(x.split(sizes), y.split(sizes), strict=True))
    for part_x, part_y in parts:
        share = len(part_x) / 40
        (F.cross_entropy(model(part_x), part_y) * share).backward()
        instruments.micro_batch(len(part_x), share)
    return parts


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("steps", [True, False])
def test_the_noise_is_that_of_the_coming_step_also_if_others_were_not_measured(to_none, steps):
    model, x, y = small_network()
    params = list(model.parameters())
    optimizer = E(torch.optim.SGD(params, lr=0.1), alpha=0.5, beta=0.5)
    instruments = Instruments(optimizer)
    for step in range(7):
        parts = micro_batches(model, x, y, instruments)
        if step % 3 == 0:
            found = instruments.measure()
            expected = gradient_noise(FixedSample(model, F.cross_entropy, parts), params)
            assert found["gradient_noise_trace"] == pytest.approx(expected.trace), step
            assert found["gradient_noise_scale"] == pytest.approx(expected.scale)
        if steps or not to_none:  # otherwise a step that is given up, as a GradScaler does
            optimizer.step()
        optimizer.zero_grad(set_to_none=to_none)


def test_the_noise_of_a_step_that_is_over_is_not_that_of_the_next():
    model, x, y = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    instruments = Instruments(optimizer)
    micro_batches(model, x, y, instruments)
    optimizer.step()
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    assert set(instruments.measure()) == {"gradient_norm"}


def test_gradients_zeroed_in_place_without_a_step_are_over_once_measured():
    model, x, y = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    instruments = Instruments(optimizer)
    for _ in range(2):  # the first is given up
        parts = micro_batches(model, x, y, instruments)
        found = instruments.measure()
        optimizer.zero_grad(set_to_none=False)
    expected = gradient_noise(FixedSample(model, F.cross_entropy, parts), list(model.parameters()))
    assert found["gradient_noise_trace"] == pytest.approx(expected.trace)


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
def test_gradients_with_graphs_of_their_own_are_one_step():
    model, x, y = small_network()
    instruments = Instruments(torch.optim.SGD(model.parameters(), lr=0.1))
    for part_x, part_y in zip(x.split(20), y.split(20), strict=True):
        (F.cross_entropy(model(part_x), part_y) / 2).backward(create_graph=True)
        instruments.micro_batch(20, 0.5)
    found = instruments.measure()
    parts = list(zip(x.split(20), y.split(20), strict=True))
    expected = gradient_noise(FixedSample(model, F.cross_entropy, parts), model.parameters())
    assert found["gradient_noise_trace"] == pytest.approx(expected.trace)


def test_instruments_leave_nothing_on_the_optimizer():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(3))], lr=0.1)
    instruments = [Instruments(optimizer) for _ in range(3)]
    assert len(optimizer._optimizer_step_post_hooks) == 3
    del instruments
    assert not optimizer._optimizer_step_post_hooks


def test_sharpness_follows_what_is_trained():
    """A parameter thaws, a group is added, and one freezes."""
    model, x, y = small_network()
    first, second = model[0], model[2]
    first.weight.requires_grad_(False)
    second.requires_grad_(False)
    optimizer = torch.optim.SGD(first.parameters(), lr=0.1)
    sample = FixedSample(model, F.cross_entropy, [(x, y)])
    instruments = Instruments(optimizer, loss=sample, every=1)

    def check():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        expected = hessian_eigenvalues(sample, trained).item()
        assert instruments.measure()["sharpness"] == pytest.approx(expected, rel=1e-3)
        optimizer.step()

    check()
    first.weight.requires_grad_(True)
    check()
    second.requires_grad_(True)
    optimizer.add_param_group({"params": second.parameters()})
    check()
    first.requires_grad_(False)
    check()


def test_what_is_left_out():
    p = nn.Parameter(torch.ones(2, 2))
    no_e, none = {"a_over_g, cosine_a_g": "SGD has no E"}, {"trust_ratio": "SGD has none"}
    for optimizer, expected in (
        (torch.optim.SGD([p]), no_e | none),
        (E(torch.optim.SGD([p]), alpha=0.5, beta=0.5), none),
        (E(torch.optim.SGD([p]), alpha=0.0, beta=0.5), {"a_over_g, cosine_a_g": "α is 0"} | none),
        (ALTO([p]), {}),
        (Lamb([p], trust_ratio=False),
         {"a_over_g, cosine_a_g": "Lamb has no E", "trust_ratio": "no group is adapted"}),
        (Lamb([p], trust_ratio="decayed", weight_decay=0.0),
         {"a_over_g, cosine_a_g": "Lamb has no E", "trust_ratio": "no group is adapted"}),
        (E(torch.optim.Adagrad([p]), alpha=0.5, beta=0.5),
         {"trust_ratio": "Adagrad has none", "eta_lambda, share_of_limit": "the diagonal of Adagrad is not known"}),
        (ALTO([p], maximize=True), {"eta_lambda, share_of_limit": "ALTO ascends"}),
    ):  # fmt: skip
        assert Instruments(optimizer).left_out() == expected


def test_sharpness_every_n_steps():
    model, x, y = small_network()
    sample = FixedSample(model, F.cross_entropy, [(x, y)])
    optimizer = EAdamW(model.parameters(), lr=0.01, alpha=0.5, beta=0.01)
    instruments = Instruments(optimizer, loss=sample, every=3)
    seen = []
    for step in range(7):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        found = instruments.measure()
        if "sharpness" in found:
            seen.append(step)
            assert found["sharpness"] == pytest.approx(hessian_eigenvalues(sample, model.parameters()).item(), rel=1e-6)
            assert ("eta_lambda" in found) == (step > 0)
            if step:
                own = preconditioned_sharpness(sample, optimizer)
                assert found["eta_lambda"] == pytest.approx(own.eta_lambda.item(), rel=1e-6)
                assert found["share_of_limit"] == pytest.approx(own.share, rel=1e-6)
        optimizer.step()
    assert seen == [0, 3, 6]


def test_training_is_the_same_with_and_without():
    ends = []
    for watched in (False, True):
        model, x, y = small_network()
        optimizer = ALTO(model.parameters(), lr=0.05)
        sample = FixedSample(model, F.cross_entropy, [(x, y)])
        instruments = Instruments(optimizer, loss=sample, every=2)
        for _ in range(4):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            if watched:
                instruments.micro_batch(40, 1.0)
                instruments.measure()
            optimizer.step()
        ends.append(flat([p.detach() for p in model.parameters()]))
    assert torch.equal(*ends)


P = nn.Parameter(torch.ones(3))


@pytest.mark.parametrize(
    ("says", "call"),
    [
        ("optimizer must be a torch.optim.Optimizer, got 'list'", lambda: Instruments([P])),
        ("every must be an integer of at least 1, got 0", lambda: Instruments(torch.optim.SGD([P]), every=0)),
        ("examples must be an integer of at least 1, got 0",
         lambda: Instruments(torch.optim.SGD([P])).micro_batch(0, 1.0)),
        ("share must be a number in", lambda: Instruments(torch.optim.SGD([P])).micro_batch(1, 0.0)),
    ],
)  # fmt: skip
def test_bad_input(says, call):
    with pytest.raises(ValueError, match=says):
        call()
