"""One NaN among many steps leaves no trace."""

import copy
import itertools
import warnings

import pytest
import torch
from support import assert_same, assert_same_state, make_grads, make_params, pairwise, take_steps
from torch.optim import SGD, Adagrad, Adam, AdamW

from thalweg import ALTO, E, EAdamW, Lamb

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


def test_one_nan_among_a_thousand_steps_leaves_no_trace():
    torch.manual_seed(0)
    p, q = (torch.nn.Parameter(torch.ones(4)) for _ in range(2))
    a, b = ALTO([p], lr=0.01), ALTO([q], lr=0.01)
    for k in range(1000):
        g = torch.randn(4)
        if k == 500:
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64, torch.complex128])
@pytest.mark.parametrize("value", BAD)
def test_all_dtypes_are_judged(dtype, value):
    """In float16 the limit on float32's squares is itself infinite."""
    p = torch.nn.Parameter(torch.ones(4, dtype=dtype))
    optimizer = ALTO([p])
    p.grad = torch.tensor([1.0, 2.0, value, 1.0]).to(dtype)
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert_same([p], [torch.ones(4, dtype=dtype)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_gradient_is_judged_by_its_own_dtype_among_others(dtype):
    """A square of 1e40 overflows in float32, whatever else there is in float64."""
    params = [torch.nn.Parameter(torch.ones(3, dtype=d)) for d in (torch.float64, torch.bfloat16, dtype)]
    optimizer = ALTO(params)
    for p in params:
        p.grad = torch.ones_like(p)
    params[-1].grad[0] = 1e20  # infinite in float16
    optimizer.step()
    assert optimizer.skipped_steps == (0 if dtype == torch.float64 else 1)


@pytest.mark.parametrize("nonfinite", ["skip", "propagate"])
@pytest.mark.parametrize("capturable", [False, True])
def test_a_step_for_which_there_is_no_gradient_changes_nothing(nonfinite, capturable):
    params = make_params()
    optimizer = ALTO(params, nonfinite=nonfinite, capturable=capturable, max_grad_norm=1.0)
    optimizer.step()
    assert_same(params, make_params())
    assert optimizer.skipped_steps == 0
    assert {int(optimizer.state[p]["step"]) for p in params} == {0}


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
    spoilt, clean = EAdamW(params, foreach=False, nonfinite="skip"), EAdamW(expected, foreach=False)
    take_steps(spoilt, params, [*grads[:3], spoil(grads[3], float("inf")), *grads[3:]])
    take_steps(clean, expected, grads)
    assert_same(params, expected)
    assert_same_state(spoilt, clean)
    assert spoilt.skipped_steps == 1


FUSED = [
    (Adam, {}),
    (Adam, {"amsgrad": True, "weight_decay": 0.1}),
    (AdamW, {}),
    (Adagrad, {}),
    (SGD, {}),
    (SGD, {"momentum": 0.9}),
    (SGD, {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}),
]


def fused(cls, params, alpha=0.5, **options):
    """E around a base that is told on the device to skip."""
    return E(cls(params, lr=0.1, fused=True, **options), alpha, 0.25, nonfinite="skip")


@pytest.fixture
def empty_memory_is_nan():
    """What a kernel that skips has not written is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("base", "dtype", "alpha", "first", "value"),
    pairwise(itertools.product(FUSED, [torch.float32, torch.bfloat16], [0.5, 0.0], [False, True], BAD)),
)
@pytest.mark.usefixtures("empty_memory_is_nan")
def test_around_a_fused_base_a_skipped_step_leaves_no_trace(base, dtype, alpha, first, value):
    cls, options = base
    params, expected = make_params(dtype=dtype), make_params(dtype=dtype)
    grads = make_grads(params, STEPS)
    spoilt, clean = fused(cls, params, alpha, **options), fused(cls, expected, alpha, **options)
    bad = [spoil(grads[k], value) for k in range(3)]
    rows = [bad[0], bad[1], *grads[:3], bad[2], *grads[3:]] if first else [*grads[:3], *bad, *grads[3:]]
    take_steps(spoilt, params, rows)
    take_steps(clean, expected, grads)
    assert_same(params, expected)
    assert_same_state(spoilt, clean)
    assert (spoilt.skipped_steps.item(), clean.skipped_steps.item()) == (3, 0)


def test_a_step_skipped_on_the_device_leaves_parameters_and_counts_at_once():
    params = make_params(dtype=torch.float32)
    optimizer = fused(AdamW, params)
    start, grads = [p.detach().clone() for p in params], make_grads(params, 1)[0]
    take_steps(optimizer, params, [spoil(grads, float("nan"))])
    assert_same(params, start)
    assert all(torch.equal(value, torch.zeros_like(value)) for s in optimizer.state.values() for value in s.values())
    assert not torch.equal(params[-1].grad, params[-1].grad)  # the caller's own again, NaN and all
    assert not hasattr(optimizer.base, "found_inf")


def test_a_fused_base_is_called_to_skip_and_any_other_is_not():
    class Own(AdamW):
        """A subclass may do anything in its step."""

    sgd = {"momentum": 0.9}
    for cls, options, calls in (
        (AdamW, {"fused": True}, 3),
        (AdamW, {"fused": False}, 2),
        (Own, {"fused": True}, 2),
        (SGD, {"fused": True, **sgd}, 3),
    ):
        params, seen = make_params(dtype=torch.float32), []
        optimizer = E(cls(params, lr=0.1, **options), 0.5, 0.25, nonfinite="skip")
        optimizer.base.register_step_pre_hook(lambda *_, seen=seen: seen.append(1))
        grads = make_grads(params, 2)
        take_steps(optimizer, params, [grads[0], spoil(grads[0], float("nan")), grads[1]])
        assert len(seen) == calls
        assert optimizer.skipped_steps == 1


def test_one_group_that_is_not_fused_and_the_decision_is_the_hosts():
    params, expected = make_params(dtype=torch.float32), make_params(dtype=torch.float32)
    grads = make_grads(params, 3)
    made = []
    for ps, rows in ((params, [grads[0], spoil(grads[1], float("nan")), *grads[1:]]), (expected, grads)):
        groups = [{"params": ps[:2], "fused": True}, {"params": ps[2:], "foreach": True, "fused": False}]
        made.append(E(AdamW(groups, lr=0.1), 0.5, 0.25, nonfinite="skip"))
        take_steps(made[-1], ps, rows)
    assert_same(params, expected)
    assert_same_state(*made)


def test_a_base_that_fails_to_step_is_told_nothing_afterwards():
    params = make_params(dtype=torch.float32)
    optimizer = fused(AdamW, params)
    take_steps(optimizer, params, make_grads(params, 1))

    def fail(*_):
        assert optimizer.base.found_inf == 0.0
        raise OSError

    optimizer.base.register_step_pre_hook(fail)
    with pytest.raises(OSError):  # noqa: PT011 (the test's own)
        optimizer.step()
    assert not hasattr(optimizer.base, "found_inf")
    for p, g in zip(params, make_grads(params, 1)[0], strict=True):
        assert torch.equal(p.grad, g)


@pytest.mark.parametrize("base", [AdamW, lambda params, fused: SGD(params, lr=0.1, momentum=0.9, fused=fused)])
def test_a_copy_of_e_around_a_fused_base_skips_as_well(base):
    params = make_params(dtype=torch.float32)
    optimizer = E(base(params, fused=True), 0.5, 0.25, nonfinite="skip")
    grads = make_grads(params, 3)
    take_steps(optimizer, params, grads[:1])
    twin, others = copy.deepcopy((optimizer, params))
    take_steps(twin, others, [spoil(grads[1], float("inf")), *grads[1:]])
    take_steps(optimizer, params, grads[1:])
    assert_same(others, params)
    assert_same_state(twin, optimizer)
    assert (twin.skipped_steps.item(), optimizer.skipped_steps.item()) == (1, 0)


def test_the_policy_and_a_counter_survive_pickle():
    e = copy.deepcopy(EAdamW(make_params(), nonfinite="skip"))
    assert (e.nonfinite, e.skipped_steps, e.skipped_steps.dtype) == ("skip", 0, torch.int64)
    assert copy.deepcopy(ALTO(make_params())).skipped_steps == 0


def step_with(optimizer, p, *, finite):
    p.grad = torch.full_like(p, 1.0 if finite else float("nan"))
    optimizer.step()


@pytest.mark.parametrize("build", [ALTO, lambda ps: EAdamW(ps, nonfinite="skip")], ids=["ALTO", "EAdamW"])
def test_ten_steps_that_are_skipped_but_not_in_a_row_are_not_warned_of(build):
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = build([p])
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for k in range(40):
            step_with(optimizer, p, finite=k % 2 == 0)
    assert optimizer.skipped_steps == 20


@pytest.mark.parametrize("build", [ALTO, lambda ps: EAdamW(ps, nonfinite="skip")], ids=["ALTO", "EAdamW"])
def test_ten_in_a_row_are_warned_of_after_a_resume_too_and_once(build):
    p, q = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer, resumed = build([p]), build([q])
    for k in range(6):
        step_with(optimizer, p, finite=k % 2 == 0)
    resumed.load_state_dict(optimizer.state_dict())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for steps in (10, 30):
            for _ in range(steps):
                step_with(resumed, q, finite=False)
            (text,) = [str(w.message) for w in caught if w.category is RuntimeWarning]
            assert text.startswith("10 steps in a row were skipped by ")
    assert resumed.skipped_steps == 43


@pytest.mark.parametrize("key", ["skipped_steps", "explore_skipped"])
def test_groups_that_say_different_counts_have_the_largest(key):
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    groups = [{"params": [p]} for p in params]
    optimizer = ALTO(groups) if key == "skipped_steps" else EAdamW(groups, nonfinite="skip")
    saved = optimizer.state_dict()
    for group, count in zip(saved["param_groups"], (2, 5), strict=True):
        group[key] = count
    optimizer.load_state_dict(saved)
    assert optimizer.skipped_steps == 5
    assert [group[key] for group in optimizer.param_groups] == [5, 5]
