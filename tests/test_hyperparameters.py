"""Random hyperparameters either build an optimizer or raise a ValueError that names the argument."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import make_grads, make_params, take_steps

import thalweg
from thalweg import ALTO, EAdamW, Lamb
from thalweg.arguments import check_exploration
from thalweg.optim.hyperparameters import check_lr

FEW = settings(max_examples=60, derandomize=True, deadline=None, database=None)

numbers = st.one_of(
    st.floats(),
    st.floats(0.0, 1.0),
    st.floats(-2.0, 2.0),
    st.integers(-2, 2),
    st.sampled_from([None, "1", True, (), 1j, torch.tensor(0.5), torch.tensor(-1.0), torch.ones(2)]),
)


def lists(size):
    return st.one_of(st.lists(numbers, min_size=size, max_size=size), st.tuples(*[numbers] * size), numbers)


flags = st.one_of(st.booleans(), st.none(), st.integers(0, 1))
lamb = {
    "lr": numbers,
    "betas": lists(2),
    "eps": numbers,
    "trust_eps": numbers,
    "weight_decay": numbers,
    "trust_ratio": flags,
    "trust_clip": st.one_of(st.none(), lists(2)),
    "ratio_clip": st.one_of(st.none(), lists(2)),
    "bias_correction": flags,
    "decoupled_decay": flags,
    "max_grad_norm": numbers,
    "state_dtype": st.sampled_from(
        [
            None,
            torch.float32,
            torch.float64,
            torch.bfloat16,
            "8bit",
            "float32",
            "float16",
            {"exp_avg": "8bit"},
            {1: None},
        ]
    ),
    "nonfinite": st.sampled_from(["skip", "raise", "propagate", "drop", None]),
    "stochastic_rounding": flags,
    "norm_dims": st.one_of(st.none(), st.tuples(st.integers(-2, 1)), st.integers(0, 1)),
    "maximize": flags,
    "foreach": flags,
    "fused": flags,
    "capturable": flags,
}
alto = {**lamb, "alpha": numbers, "beta": numbers}


def builds_or_names_the_argument(optimizer, kwargs):
    params = make_params(((2,),), torch.float32)
    try:
        return optimizer(params, **kwargs), params
    except ValueError as error:
        text = str(error)
    name = text.split(" ", 1)[0].split("[")[0]
    # alpha may be out of range because of beta
    assert name in kwargs or (name == "alpha" and "beta=" in text), text
    assert " must be " in text
    assert ", got " in text
    return None


def test_the_strategies_cover_every_option_of_lamb_and_alto():
    assert set(lamb) == set(Lamb(make_params()).defaults)
    assert set(alto) == set(ALTO(make_params()).defaults)


@FEW
@given(st.fixed_dictionaries({}, optional=lamb))
def test_lamb_builds_or_names_the_argument(kwargs):
    builds_or_names_the_argument(Lamb, kwargs)


@FEW
@given(st.fixed_dictionaries({}, optional=alto))
def test_alto_builds_or_names_the_argument(kwargs):
    builds_or_names_the_argument(ALTO, kwargs)


@pytest.mark.parametrize("name", alto)
@settings(FEW, max_examples=25)
@given(st.data())
def test_every_option_alone_builds_an_optimizer_that_steps_or_is_named(name, data):
    if (made := builds_or_names_the_argument(ALTO, {name: data.draw(alto[name])})) is not None:
        optimizer, params = made
        take_steps(optimizer, params, make_grads(params, 1))
        assert [p.shape for p in params] == [(2,)]


@FEW
@given(numbers, numbers)
@example(100.0, 0.99)
@example(-1.0, 0.0)
def test_e_builds_or_names_the_argument(alpha, beta):
    builds_or_names_the_argument(EAdamW, {"alpha": alpha, "beta": beta})


@FEW
@given(st.floats(-200.0, 200.0), st.floats(0.0, 1.0, exclude_max=True))
def test_alpha_is_accepted_exactly_where_the_gain_is_below_one(alpha, beta):
    if abs(alpha) * (1.0 - beta) < 1.0:
        check_exploration(alpha, beta, names=("alpha", "beta"))
    else:
        with pytest.raises(ValueError, match=r"^alpha must be a number in \(.*\), as .* with beta=.*, got "):
            check_exploration(alpha, beta, names=("alpha", "beta"))


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 0.9, 0.99, 0.999])
def test_the_bound_itself_is_refused_and_its_neighbour_accepted(beta):
    bound = 1.0 / (1.0 - beta)
    for sign in (-1.0, 1.0):
        check_exploration(sign * bound * (1 - 1e-12), beta, names=("alpha", "beta"))
        with pytest.raises(ValueError, match=r"^alpha must be a number in "):
            check_exploration(sign * math.nextafter(bound * (1 + 1e-15), math.inf), beta, names=("alpha", "beta"))


unit = st.floats(0.0, 1.0)
below_one = st.floats(0.0, 1.0, exclude_max=True)


valid = {
    "lr": st.one_of(unit, unit.map(torch.tensor)),
    "eps": st.floats(1e-37, 1.0),
    "trust_eps": unit,
    "weight_decay": unit,
    "trust_ratio": st.booleans(),
    "trust_clip": st.sampled_from([None, (0.0, 1.0), (0.1, 10.0)]),
    "ratio_clip": st.sampled_from([None, (0.0, 1.0), (0.1, 10.0)]),
    "bias_correction": st.booleans(),
    "decoupled_decay": st.booleans(),
    "max_grad_norm": st.one_of(st.none(), st.floats(1e-6, 1e6)),
    "state_dtype": st.sampled_from([None, torch.float32, torch.float64, torch.bfloat16, "8bit"]),
    "nonfinite": st.sampled_from(["skip", "raise", "propagate"]),
    "stochastic_rounding": st.booleans(),
    "norm_dims": st.sampled_from([None, (-1,), (0, 1)]),
    "maximize": st.booleans(),
    "foreach": st.sampled_from([None, False, True]),
    "capturable": st.booleans(),
}
betas = st.tuples(below_one, below_one)
gains = st.floats(-0.999, 0.999)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])


def test_the_valid_strategies_cover_every_option_but_kernels_that_are_compiled():
    assert {*valid, "betas", "alpha", "beta", "fused"} == set(alto)


@pytest.mark.filterwarnings("ignore:.* is stable only up to")
@settings(FEW, max_examples=120)
@given(st.fixed_dictionaries({}, optional=valid), betas, below_one, gains, dtypes)
def test_every_valid_combination_steps_on_a_convex_problem_without_a_nan(options, betas, beta, gain, dtype):
    """With a gradient that is zero at the start, and one that is nowhere else; but for options that exclude others."""
    p = torch.nn.Parameter(torch.tensor([[0.0, 1.0, -2.0], [0.0, 0.0, 0.0]], dtype=dtype))
    options |= {"betas": betas, "alpha": gain / (1.0 - beta), "beta": beta}
    sign = -1.0 if options.get("maximize") else 1.0
    narrow = options.get("state_dtype") in (torch.bfloat16, "8bit")
    raises, rounds = options.get("nonfinite") == "raise", options.get("stochastic_rounding")
    if options.get("capturable") and (narrow or raises or rounds):
        names = "nonfinite|stochastic_rounding|state_dtype"
        with pytest.raises(ValueError, match=rf"^({names}) must be .* with capturable=True, as "):
            ALTO([p], **options)
        return
    optimizer = ALTO([p], **options)
    for _ in range(30):
        optimizer.zero_grad()
        (sign * p.square().sum()).backward()
        optimizer.step()
    assert p.isfinite().all()
    assert all(value.isfinite().all() for value in optimizer.state[p].values())


@pytest.mark.filterwarnings("ignore:.* is stable only up to")
@settings(FEW, max_examples=40)
@given(
    st.fixed_dictionaries(
        {"beta": below_one, "gain": st.floats(-0.999, 0.999), "lr": unit, "eps": st.floats(1e-8, 1.0)},
        optional={"betas": st.tuples(below_one, below_one), "weight_decay": unit, "foreach": st.booleans()},
    )
)
def test_every_valid_combination_of_e_and_adamw_steps_without_a_nan(options):
    p = torch.nn.Parameter(torch.tensor([0.0, 1.0, -2.0]))
    options["alpha"] = options.pop("gain") / (1.0 - options["beta"])
    optimizer = EAdamW([p], **options)
    for _ in range(30):
        optimizer.zero_grad()
        p.square().sum().backward()
        optimizer.step()
    assert p.isfinite().all()
    assert all(value.isfinite().all() for value in optimizer.state[p].values())


@pytest.mark.parametrize("build", [ALTO, Lamb])
@pytest.mark.parametrize(
    ("option", "text"),
    [
        ({"nonfinite": "skp"}, r"^nonfinite must be .*, got 'skp'; did you mean 'skip'\?$"),
        ({"state_dtype": "bflot16"}, r"^state_dtype must be .*, got 'bflot16'; did you mean 'bfloat16'\?$"),
        ({"state_dtype": "8bits"}, r"^state_dtype must be .*, got '8bits'; did you mean '8bit'\?$"),
        ({"state_dtype": "complex"}, r"^state_dtype must be .*, got 'complex'$"),
    ],
)
def test_of_names_that_are_misspelt_the_nearest_is_named(build, option, text):
    with pytest.raises(ValueError, match=text):
        build(make_params(), **option)


def test_e_and_the_package_name_the_nearest_too():
    with pytest.raises(ValueError, match=r"^nonfinite must be .*, got 'rais'; did you mean 'raise'\?$"):
        EAdamW(make_params(), nonfinite="rais")
    with pytest.raises(AttributeError, match=r"^module 'thalweg' has no attribute 'ALTOO'; did you mean 'ALTO'\?$"):
        thalweg.ALTOO  # noqa: B018
    assert not hasattr(thalweg, "unlike_any")


def test_a_rate_on_the_host_is_read_only_where_it_may_be():
    """In a step with ``capturable`` it may not: reading it would break the capture of a graph."""
    wrong = torch.tensor(-1.0)
    check_lr(wrong, may_read=False, may_read_back=True)
    with pytest.raises(ValueError, match=r"^lr must be a number in \[0, inf\), got -1\.0$"):
        check_lr(wrong, may_read=True, may_read_back=False)
    optimizer = Lamb(make_params(), capturable=True)
    (group,) = optimizer.param_groups
    group["lr"] = wrong
    optimizer._check(group, may_wait=False)
    group["capturable"] = False
    with pytest.raises(ValueError, match=r"^lr must be a number in \[0, inf\), got -1\.0$"):
        optimizer._check(group, may_wait=False)
