"""One NaN among many steps leaves no trace."""

import copy

import pytest
import torch
from support import assert_same, assert_same_state, make_grads, make_params, take_steps

from thalweg import ALTO, EAdamW, Lamb

STEPS = 6
BAD = (float("nan"), float("inf"), -float("inf"))
SHAPE = (2, 3)


def spoil(grads, value):
    """One bad entry in the last gradient of a step."""
    grads = [g.clone() for g in grads]
    grads[-1].view(-1)[-1] = value
    return grads


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("optimizer", [ALTO, Lamb])
def test_a_skipped_step_changes_nothing_but_the_counter(optimizer, foreach, capturable, value):
    """With capturable the decision is taken on the device, without it on the host."""
    params, expected = make_params(), make_params()
    grads = make_grads(params, STEPS)
    options = {"foreach": foreach, "capturable": capturable, "max_grad_norm": 1.0}
    spoilt, clean = optimizer(params, **options), optimizer(expected, **options)
    take_steps(spoilt, params, [*grads[:2], spoil(grads[2], value), *grads[2:4], spoil(grads[0], value), *grads[4:]])
    take_steps(clean, expected, grads)
    assert_same(params, expected)
    assert_same_state(spoilt, clean)
    assert (spoilt.skipped_steps.item(), clean.skipped_steps.item()) == (2, 0)


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("foreach", [False, True])
def test_the_very_first_step_may_be_skipped(foreach, capturable):
    params, expected = make_params(), make_params()
    grads = make_grads(params, 3)
    options = {"foreach": foreach, "capturable": capturable}
    take_steps(ALTO(params, **options), params, [spoil(grads[0], float("nan")), *grads])
    take_steps(ALTO(expected, **options), expected, grads)
    assert_same(params, expected)


def test_one_nan_among_ten_thousand_steps_leaves_no_trace():
    torch.manual_seed(0)
    p, q = (torch.nn.Parameter(torch.ones(4)) for _ in range(2))
    a, b = ALTO([p], lr=0.01), ALTO([q], lr=0.01)
    for k in range(10_000):
        g = torch.randn(4)
        if k == 5000:
            p.grad = torch.tensor([1.0, float("nan"), 1.0, 1.0])
            a.step()
        p.grad, q.grad = g, g.clone()
        a.step()
        b.step()
    assert torch.equal(p, q)
    assert a.skipped_steps == 1


@pytest.mark.parametrize("optimizer", [ALTO, Lamb, EAdamW])
def test_raise_names_the_gradient_before_anything_changes(optimizer):
    params = make_params()
    grads = make_grads(params, 2)
    made = optimizer(params, nonfinite="raise")
    take_steps(made, params, grads[:1])
    before, state = [p.detach().clone() for p in params], copy.deepcopy(made.state_dict())
    with pytest.raises(RuntimeError, match=r"^a gradient of shape \(2, 3, 1, 2\) has an infinity, a NaN or an entry"):
        take_steps(made, params, [spoil(grads[1], float("inf"))])
    assert_same(params, before)
    for i, saved in state["state"].items():
        for key, value in made.state_dict()["state"][i].items():
            assert torch.equal(value, saved[key])


@pytest.mark.parametrize("foreach", [False, True])
def test_propagate_lets_it_through_as_torch_does(foreach):
    params = make_params()
    grads = spoil(make_grads(params, 1)[0], float("nan"))
    take_steps(ALTO(params, nonfinite="propagate", foreach=foreach), params, [grads])
    assert [bool(p.isfinite().all()) for p in params] == [True, True, True, False]


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 4.6e18), (torch.float64, 3.3e153)])
def test_gradients_are_skipped_exactly_where_their_squares_would_overflow(dtype, limit):
    p = torch.nn.Parameter(torch.ones(SHAPE, dtype=dtype))
    optimizer = ALTO([p], lr=0.1, alpha=50.0)
    for size, skipped in ((limit, 0), (limit * 1.1, 1), (-limit * 1.1, 2), (1.0, 2)):
        p.grad = torch.full_like(p, size)
        optimizer.step()
        assert optimizer.skipped_steps == skipped
    assert all(value.isfinite().all() for value in optimizer.state[p].values())
    assert p.isfinite().all()


def test_a_group_that_propagates_steps_while_the_others_skip():
    first, second = make_params(), make_params(seed=1)
    optimizer = ALTO([{"params": first}, {"params": second, "nonfinite": "propagate"}])
    starts = [[p.detach().clone() for p in params] for params in (first, second)]
    grads = [*spoil(make_grads(first, 1)[0], float("nan")), *make_grads(second, 1)[0]]
    take_steps(optimizer, [*first, *second], [grads])
    assert_same(first, starts[0])
    assert not any(torch.equal(p, s) for p, s in zip(second, starts[1], strict=True))


def test_e_skips_its_base_with_all_its_state():
    params, expected = make_params(), make_params()
    grads = make_grads(params, STEPS)
    spoilt, clean = EAdamW(params, nonfinite="skip"), EAdamW(expected)
    take_steps(spoilt, params, [*grads[:3], spoil(grads[3], float("inf")), *grads[3:]])
    take_steps(clean, expected, grads)
    assert_same(params, expected)
    assert_same_state(spoilt, clean)
    assert spoilt.skipped_steps == 1


def test_the_policy_and_a_counter_survive_pickle():
    e = copy.deepcopy(EAdamW(make_params(), nonfinite="skip"))
    assert (e.nonfinite, e.skipped_steps) == ("skip", 0)
    assert copy.deepcopy(ALTO(make_params())).skipped_steps == 0
