"""Bad values are refused early, in the words of the torch side; what has no value yet is let through."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import thalweg
import thalweg.jax as tj

NAN = float("nan")


def refusal(build, **arguments):
    with pytest.raises(ValueError, match=r" must be .*, got ") as error:
        build(**arguments)
    return str(error.value)


def torch_e(**arguments):
    return thalweg.E(torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1), **arguments)


def torch_alto(**arguments):
    names = {"b1": 0, "b2": 1}
    betas = [0.9, 0.99]
    for name in names.keys() & arguments.keys():
        betas[names[name]] = arguments.pop(name)
    arguments["lr"] = arguments.pop("learning_rate", 0.1)
    return thalweg.ALTO([torch.nn.Parameter(torch.ones(2))], betas=tuple(betas), **arguments)


E_INVALID = [
    {"alpha": 2.0, "beta": 0.5},
    {"alpha": -2.0, "beta": 0.5},
    {"alpha": 1.0, "beta": 0.0},
    *({"alpha": value} for value in (NAN, "1", None, True, 100)),
    *({"beta": value} for value in (1.0, -0.1, None, NAN, True)),
]
ALTO_INVALID = [
    *(
        {name: value}
        for name in ("learning_rate", "eps", "trust_eps", "weight_decay")
        for value in (-1.0, NAN, float("inf"), "1", True)
        if not (name == "eps" and value != -1.0)
    ),
    *({name: value} for name in ("b1", "b2", "beta") for value in (1.0, -0.1, "a")),
    {"alpha": 100.0},
    {"alpha": -1.0, "beta": 0.0},
    *({"trust_clip": value} for value in (1.0, (1.0,), [2.0, 1.0], (-1.0, 1.0), (0.0, NAN), ["a", 1.0], "01")),
]


@pytest.mark.parametrize("arguments", E_INVALID, ids=str)
def test_e_refuses_what_torchs_does_in_its_words(arguments):
    assert refusal(tj.scale_by_exploration, **arguments) == refusal(torch_e, **arguments)


@pytest.mark.parametrize("arguments", ALTO_INVALID, ids=str)
def test_alto_refuses_what_torchs_does_in_its_words(arguments):
    ours = refusal(tj.alto, **{"learning_rate": 0.1, **arguments})
    theirs = refusal(torch_alto, **arguments)
    for name, twin in (("lr", "learning_rate"), ("betas[0]", "b1"), ("betas[1]", "b2")):
        theirs = re.sub(rf"(?<!\w){re.escape(name)}", twin, theirs)
    if "eps" in arguments:  # torch has two bounds for it
        assert re.fullmatch(r"eps must be a number in \[1\.18e-38, inf\), as 0/0 is .*, got -1\.0", ours)
    else:
        assert ours == theirs


@pytest.mark.parametrize(
    ("build", "arguments", "text"),
    [
        (tj.alto, {"eps": 0.0}, r"eps must be a number in \[1\.18e-38, inf\), .*, got 0\.0"),
        (tj.alto, {"eps_root": -1.0}, r"eps_root must be a number in \[0, inf\), got -1\.0"),
        (tj.lamb, {"b1": 1.0}, r"b1 must be a number in \[0, 1\), got 1\.0"),
        (tj.lamb, {"b2": -1.0}, r"b2 must be a number in \[0, 1\), got -1\.0"),
        (tj.lamb, {"trust_clip": (2, 1)}, r"trust_clip must be None or \(lo, hi\) with 0 <= lo <= hi, got \(2, 1\)"),
        (tj.lamb, {"accumulator_dtype": jnp.int32}, "accumulator_dtype must be None or a floating-point dtype, got"),
        (tj.alto, {"accumulator_dtype": "half"}, None),
        (tj.alto, {"accumulator_dtype": "quarter"}, "accumulator_dtype must be None or a floating-point dtype, got"),
    ],
)
def test_bad_arguments_are_named_with_their_range(build, arguments, text):
    if text is None:
        build(0.1, **arguments)
    else:
        with pytest.raises(ValueError, match=f"^{text}"):
            build(0.1, **arguments)


def test_a_real_accumulator_of_complex_parameters_is_refused():
    e = tj.scale_by_exploration(accumulator_dtype=jnp.float32)
    with pytest.raises(ValueError, match=r"^accumulator_dtype must be None or a complex dtype for complex parameters"):
        e.init(jnp.ones(2, jnp.complex64))
    assert tj.scale_by_exploration(accumulator_dtype=jnp.complex64).init(jnp.ones(2, jnp.complex64)).ema.dtype == "c8"


@pytest.mark.parametrize("axes", [1, [(0,), "rows"]], ids=str)
def test_axes_that_are_no_tuples_are_refused(axes):
    tx = tj.scale_by_trust_ratio(norm_axes=axes)
    params = [jnp.ones(2), jnp.ones(2)]
    with pytest.raises(ValueError, match=r"^norm_axes must be None or a tuple of axes, for each parameter, got "):
        tx.update(params, tx.init(params), params)


@pytest.mark.parametrize("make", [tj.alto, tj.lamb])
def test_an_update_without_params_is_refused(make):
    for optimizer in (make(0.1), tj.scale_by_trust_ratio()):
        with pytest.raises(ValueError, match=r"^params must be given to update: .*, got None"):
            optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))


def test_what_has_no_value_yet_is_let_through():
    schedule = optax.constant_schedule(0.1)
    tj.alto(schedule, alpha=schedule, weight_decay=schedule)
    tj.scale_by_exploration(schedule, 0.0)
    tj.scale_by_exploration(0.5, jnp.array(0.0))  # an array may be traced
    jax.jit(lambda alpha, beta: tj.scale_by_exploration(alpha, beta).init(jnp.ones(2)))(200.0, 0.5)
    jax.jit(lambda beta: tj.scale_by_exploration(200.0, beta).init(jnp.ones(2)))(0.5)
    for bad in (NAN, "1"):
        with pytest.raises(ValueError, match=r"^alpha must be a number with \|alpha\| < 1/\(1 - beta\), got "):
            tj.scale_by_exploration(bad, jnp.array(0.5))


def test_numpys_numbers_are_numbers():
    assert tj.scale_by_exploration(np.float32(0.0), 0.5).init(jnp.ones(2)) == optax.EmptyState()
    with pytest.raises(ValueError, match=r"^alpha must be a number in"):
        tj.scale_by_exploration(np.float64(2.0), np.float32(0.5))
