"""Bad values are refused early, in the words of the torch side; what has no value yet is let through."""

from __future__ import annotations

import functools
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


@pytest.mark.parametrize("axes", [1, "rows", [(0,), "rows"], {"a": (0, 0)}, (True,), (0.5,)], ids=str)
def test_axes_that_are_no_tuples_of_different_axes_are_refused(axes):
    text = rf"^norm_axes must be None or a tuple of different axes, for each parameter, got {re.escape(repr(axes))}$"
    for build in (tj.scale_by_trust_ratio, functools.partial(tj.alto, 0.1)):
        with pytest.raises(ValueError, match=text):
            build(norm_axes=axes)
    tx, params = tj.scale_by_trust_ratio(norm_axes=lambda params: {"a": axes}), {"a": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match=r"^norm_axes must be None or a tuple of different axes"):
        tx.update(params, tx.init(params), params)


@pytest.mark.parametrize("axes", [(2,), (-3,), (0, -2)], ids=str)
def test_axes_that_a_parameter_has_not_are_refused(axes):
    text = rf"^norm_axes must be .*, also of one of shape \(2, 3\), got {re.escape(repr(axes))}$"
    tx, params = tj.scale_by_trust_ratio(norm_axes=axes), jnp.ones((2, 3))
    with pytest.raises(ValueError, match=text):
        tx.update(params, tx.init(params), params)


@pytest.mark.parametrize("mask", ["kernels", {"a": "no"}, {"a": 0.5}], ids=str)
@pytest.mark.parametrize("name", ["mask", "trust_mask"])
@pytest.mark.parametrize("make", [tj.alto, tj.lamb])
def test_masks_that_say_neither_yes_nor_no_are_refused(make, name, mask):
    text = f"^{name} must be None, a tree of True and False, or a function from parameters to one, got "
    with pytest.raises(ValueError, match=text + re.escape(repr(mask))):
        make(0.1, **{name: mask})
    for fine in (None, {"a": False}, [np.bool_(True), 1], lambda params: params):
        make(0.1, **{name: fine})


@pytest.mark.parametrize("make", [np.array, jnp.array, lambda x: np.array([0.5, x]), lambda x: jnp.array([x, 0.5])])
@pytest.mark.parametrize(
    ("build", "name", "value"),
    [
        (tj.alto, "learning_rate", -1.0),
        (tj.alto, "weight_decay", float("nan")),
        (tj.alto, "trust_eps", float("inf")),
        (tj.alto, "eps", 0.0),
        (tj.alto, "b1", 1.0),
        (tj.alto, "beta", -0.1),
        (tj.lamb, "b2", 1.5),
        (tj.lamb, "b1", 1j),
        (tj.scale_by_adam, "eps_root", -1.0),
        (tj.scale_by_trust_ratio, "eps", -1.0),
        (tj.scale_by_exploration, "beta", 1.0),
        (tj.scale_by_exploration, "alpha", 100.0),
    ],
)
def test_arrays_are_judged_by_value_unless_they_are_traced(build, name, value, make):
    required = {"learning_rate": 0.1} if build in (tj.alto, tj.lamb) else {}
    required |= {"alpha": 0.1} if name == "beta" else {}
    build(**{**required, name: make(0.25)})
    with pytest.raises(ValueError, match=rf"^{name} must be a number .*, got "):
        build(**{**required, name: make(value)})
    if value != 1j:
        jax.jit(lambda traced: build(**{**required, name: traced}).init(jnp.ones(2)))(make(value))


def test_alpha_and_beta_in_arrays_are_judged_together():
    tj.scale_by_exploration(jnp.array([1.9, -50.0]), jnp.array([0.5, 0.99]))
    for alpha, beta in ((2.0, jnp.array(0.5)), (np.array([1.0, -2.0]), np.array(0.5)), (jnp.array(1.0), 0.0)):
        with pytest.raises(ValueError, match=r"^alpha must be a number "):
            tj.scale_by_exploration(alpha, beta)


@pytest.mark.parametrize("make", [tj.alto, tj.lamb])
def test_an_update_without_params_is_refused(make):
    for optimizer in (make(0.1), tj.scale_by_trust_ratio()):
        with pytest.raises(ValueError, match=r"^params must be given to update: .*, got None"):
            optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))


def test_what_has_no_value_yet_is_let_through():
    schedule = optax.constant_schedule(0.1)
    tj.alto(schedule, alpha=schedule, weight_decay=schedule)
    tj.scale_by_exploration(schedule, 0.0)
    jax.jit(lambda alpha, beta: tj.scale_by_exploration(alpha, beta).init(jnp.ones(2)))(200.0, 0.5)
    jax.jit(lambda beta: tj.scale_by_exploration(200.0, beta).init(jnp.ones(2)))(0.5)
    for bad in (NAN, "1"):
        with pytest.raises(ValueError, match=r"^alpha must be a number in \(-2, 2\), as .*, got "):
            tj.scale_by_exploration(bad, jnp.array(0.5))


def test_numpys_numbers_are_numbers():
    assert tj.scale_by_exploration(np.float32(0.0), 0.5).init(jnp.ones(2)) == optax.EmptyState()
    with pytest.raises(ValueError, match=r"^alpha must be a number in"):
        tj.scale_by_exploration(np.float64(2.0), np.float32(0.5))


OPTIONS = {
    "learning_rate": 0.1,
    "b1": 0.3,  # 1 - β below a half is rounded, above it is exact
    "b2": 0.2,
    "alpha": -0.7,
    "beta": 0.1,
    "eps": 1e-6,
    "trust_eps": 1e-3,
    "weight_decay": 0.3,
    "eps_root": 1e-3,
}


@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_numbers_of_numpy_do_what_pythons_do_bit_for_bit(kind, float64):
    """In single and double precision, where NumPy's dtype would take part in JAX's arithmetic, and Python's not."""
    params = {"w": jnp.linspace(-1.0, 2.0, 64).astype(jnp.float32), "b": jnp.linspace(1.0, 3.0, 7)}
    given = {name: kind(value) for name, value in OPTIONS.items()}
    plain = {name: float(value) for name, value in given.items()}
    clip = (kind(0.5), np.int64(2))
    found = [
        tj.alto(**options, trust_clip=bounds).update(params, tj.alto(**options).init(params), params)[0]
        for options, bounds in ((given, clip), (plain, (0.5, 2)))
    ]
    assert jax.tree.map(lambda x: (x.dtype, x.tolist()), found[0]) == jax.tree.map(
        lambda x: (x.dtype, x.tolist()), found[1]
    )


def test_integers_of_numpy_are_numbers():
    p = jnp.ones(2)
    for build in (
        lambda k: tj.alto(k(1), k(0), k(0), k(0), k(0), trust_eps=k(0), weight_decay=k(2), norm_axes=(k(0),)),
        lambda k: tj.scale_by_exploration(k(0), k(0)),
    ):
        ours, plain = (build(k).update(p, build(k).init(p), p) for k in (np.int64, int))
        assert jax.tree.map(lambda x: x.tolist(), ours) == jax.tree.map(lambda x: x.tolist(), plain)
        assert jax.tree.structure(ours) == jax.tree.structure(plain)
