"""Bfloat16 parameters written with stochastic rounding."""

import copy

import pytest
import torch
from support import assert_same, make_grads, make_params, take_steps

from thalweg import ALTO
from thalweg.kernels.rounding import stochastic_round


def test_rounding_is_to_the_two_neighbours_and_unbiased():
    torch.manual_seed(0)
    x = torch.randn(1000) * torch.logspace(-10, 10, 1000)
    draws = torch.stack([stochastic_round(x, k) for k in range(1000)])
    down = (x.view(torch.int32) & -(1 << 16)).view(torch.float32)
    up = ((x.view(torch.int32) & -(1 << 16)) + (1 << 16)).view(torch.float32)
    assert ((draws == down) | (draws == up)).all()
    assert torch.equal(draws, draws.bfloat16().float())
    # Each mean of 1000 draws is within five standard errors, at most half a spacing each, of x.
    assert ((draws.mean(0) - x).abs() <= 5 * 0.5 * (up - down).abs() / 1000**0.5).all()
    assert ((draws - x) / (up - down).abs()).mean().abs() <= 5 * 0.5 / draws.numel() ** 0.5  # and that of all, of 0


def test_float64_is_rounded_as_float32():
    x = torch.randn(100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(stochastic_round(x, 1), stochastic_round(x.float(), 1))


def test_what_bfloat16_holds_is_left_alone():
    values = torch.tensor([0.0, -0.0, 1.0, -3.0, 2.0**-130, float("inf"), -float("inf")])
    assert torch.equal(stochastic_round(values, 0), values)
    assert stochastic_round(torch.tensor([float("nan")]), 0).isnan()


@pytest.mark.parametrize("foreach", [False, True])
def test_small_updates_survive_on_average_where_rounding_to_nearest_loses_them(foreach):
    def train(stochastic):
        p = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
        optimizer = ALTO([p], 2e-4, trust_ratio=False, stochastic_rounding=stochastic, foreach=foreach, weight_decay=0)
        for _ in range(100):  # each moves by lr, a nineteenth of the spacing below 1
            p.grad = torch.ones_like(p)
            optimizer.step()
        return p.detach().float().mean().item()

    assert train(False) == 1.0
    assert train(True) == pytest.approx(1.0 - 100 * 2e-4, abs=5e-4)


def test_rounding_resumes_bit_for_bit_and_differs_by_step_and_parameter():
    params, others = (make_params(((40,), (40,)), torch.bfloat16) for _ in range(2))
    grads = make_grads(params, 8)
    straight = ALTO(params, 1e-3, stochastic_rounding=True)
    take_steps(straight, params, grads)
    first = ALTO(others, 1e-3, stochastic_rounding=True)
    take_steps(first, others, grads[:4])
    second = ALTO(others, 1e-3, stochastic_rounding=True)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    take_steps(second, others, grads[4:])
    assert_same(params, others)

    twins = [torch.nn.Parameter(torch.ones(400, dtype=torch.bfloat16)) for _ in range(2)]
    optimizer = ALTO(twins, 1e-3, stochastic_rounding=True, trust_ratio=False)
    moves = []
    for _ in range(2):
        starts = [p.detach().clone() for p in twins]
        take_steps(optimizer, twins, [[torch.ones_like(p) for p in twins]])
        moves += [p.detach() - start for p, start in zip(twins, starts, strict=True)]
    assert len({tuple(move.tolist()) for move in moves}) == 4


NARROW = {
    "parameters": {"stochastic_rounding": True},
    "bfloat16 state": {"state_dtype": torch.bfloat16},
    "8-bit state": {"state_dtype": "8bit"},
}


def stored(optimizer, params):
    """All that is rounded."""
    found = []
    for p in params:
        state = [optimizer.state[p][name] for name in ("exp_avg", "exp_avg_sq", "explore_ema")]
        found.append([p.detach().clone(), *(getattr(t, "codes", t).clone() for t in state)])
    return found


def twins(count):
    values = torch.randn(4096, generator=torch.Generator().manual_seed(0)).bfloat16()
    return [torch.nn.Parameter(values.clone()) for _ in range(count)]


@pytest.mark.parametrize("options", NARROW.values(), ids=NARROW)
def test_the_noise_of_a_parameter_depends_on_its_place_among_all_however_they_are_grouped(options, way):
    g = twins(1)[0].detach()
    found = []
    for sizes in ((3,), (1, 2)):
        params = twins(3)
        rest = iter(params)
        groups = [{"params": [next(rest) for _ in range(size)]} for size in sizes]
        optimizer = ALTO(groups, 0.01, trust_ratio=False, **options, **way)
        take_steps(optimizer, params, [[g] * 3] * 2)
        found.append(stored(optimizer, params))
    for together, apart in zip(*found, strict=True):
        assert_same(apart, together)
    for i in (0,) if "stochastic_rounding" in options else (1, 2, 3):
        assert len({tuple(tensors[i].tolist()) for tensors in found[0]}) == 3


@pytest.mark.parametrize("options", NARROW.values(), ids=NARROW)
def test_groups_that_are_added_or_loaded_go_on_with_the_noise_of_their_places(options):
    rows = [[g.bfloat16() for g in row] for row in make_grads(twins(3), 6)]
    params = twins(3)
    straight = ALTO([{"params": params[:1]}, {"params": params[1:2]}], 0.01, **options)
    take_steps(straight, params[:2], [row[:2] for row in rows[:2]])
    straight.add_param_group({"params": params[2:]})
    take_steps(straight, params, rows[2:4])
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    resumed = ALTO([{"params": [p]} for p in others], 0.01, **options)
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
    for optimizer, ps in ((straight, params), (resumed, others)):
        take_steps(optimizer, ps, rows[4:])
    for a, b in zip(stored(resumed, others), stored(straight, params), strict=True):
        assert_same(a, b)
