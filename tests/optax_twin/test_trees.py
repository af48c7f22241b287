"""Masks and axes, as trees and as functions, also through ``optax.inject_hyperparams``, which calls functions."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import thalweg.jax as tj

PARAMS = {"kernel": jnp.full((4, 4), 1.25), "stack": jnp.arange(1.0, 13.0).reshape(2, 3, 2), "bias": jnp.full(4, 2.0)}
GRADS = jax.tree.map(jnp.ones_like, PARAMS)
STATIC = ("mask", "trust_mask", "norm_axes")


def matrices(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


def layers_of_stacks(params):
    return jax.tree.map(lambda p: (-2, -1) if p.ndim > 2 else None, params)


def rows(params):
    return jax.tree.map(lambda p: tuple(range(1, p.ndim)), params)


def by_name(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: "bias" not in str(path), params)


def updates(optimizer, *, params=PARAMS):
    """Those of the first step."""
    state = optimizer.init(params)
    return optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)[0]


def assert_same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-6), a, b)


FUNCTIONS = [
    ("mask", matrices),
    ("mask", by_name),
    ("trust_mask", matrices),
    ("trust_mask", lambda params: {"kernel": True, "stack": False, "bias": False}),
    ("norm_axes", layers_of_stacks),  # of a count of steps it makes None, which nobody could tell from the default
    ("norm_axes", rows),
]


@pytest.mark.parametrize("make", [tj.alto, tj.lamb])
@pytest.mark.parametrize(("name", "function"), FUNCTIONS)
def test_a_function_that_would_be_called_as_a_schedule_is_an_error_which_says_what_to_do(make, name, function):
    injected = optax.inject_hyperparams(make)(0.1, **{name: function})
    text = rf"^{name} must be called with parameters, got the step .*: optax\.inject_hyperparams .* static_args"
    for init in (injected.init, jax.jit(injected.init)):
        with pytest.raises(ValueError, match=text):
            init(PARAMS)


@pytest.mark.parametrize(("make", "partially"), [(tj.alto, False), (tj.lamb, True)])
def test_functions_named_in_static_args_do_what_they_do_alone(make, partially):
    functions = {"mask": matrices, "trust_mask": by_name, "norm_axes": layers_of_stacks}
    inject = functools.partial(optax.inject_hyperparams, static_args=STATIC)
    if partially:
        injected = inject(functools.partial(make, **functions))(learning_rate=0.1)
    else:
        injected = inject(make)(0.1, **functions)
    plain = updates(make(0.1, **functions))
    assert_same(updates(injected), plain)
    state = injected.init(PARAMS)
    assert_same(jax.jit(injected.update)(GRADS, state, PARAMS)[0], plain)  # what a compiler is told once
    if not partially:  # each function does something, or this would show nothing
        for name in functions:
            others = {key: value for key, value in functions.items() if key != name}
            with pytest.raises(AssertionError):
                assert_same(plain, updates(make(0.1, **others)))


def test_a_function_in_a_partial_is_refused_as_well_without_static_args():
    injected = optax.inject_hyperparams(functools.partial(tj.lamb, norm_axes=layers_of_stacks))(learning_rate=0.1)
    with pytest.raises(ValueError, match=r"^norm_axes must be called with parameters"):
        injected.init(PARAMS)


def test_axes_of_the_trust_ratio_alone_are_no_schedule_either():
    with pytest.raises(ValueError, match=r"^norm_axes must be called with parameters"):
        optax.inject_hyperparams(tj.scale_by_trust_ratio)(norm_axes=layers_of_stacks).init(PARAMS)
    injected = optax.inject_hyperparams(tj.scale_by_trust_ratio, static_args="norm_axes")(norm_axes=layers_of_stacks)
    assert_same(updates(injected), updates(tj.scale_by_trust_ratio(norm_axes=layers_of_stacks)))


def test_a_factory_of_ones_own_that_hands_on_what_a_schedule_returned_is_refused():
    @optax.inject_hyperparams
    def factory(learning_rate, trust_mask, norm_axes):
        return tj.lamb(learning_rate, trust_mask=trust_mask, norm_axes=norm_axes)

    @optax.inject_hyperparams
    def fine(learning_rate):
        return tj.lamb(learning_rate, trust_mask=matrices, norm_axes=rows)

    with pytest.raises(ValueError, match=r"^trust_mask must be .*, got False for all parameters: .* static_args"):
        factory(0.1, trust_mask=matrices, norm_axes=None).init(PARAMS)
    with pytest.raises(ValueError, match=r"^norm_axes must be .*, got \(\) for all parameters: .* static_args"):
        factory(0.1, trust_mask=None, norm_axes=rows).init(PARAMS)
    assert_same(updates(fine(0.1)), updates(tj.lamb(0.1, trust_mask=matrices, norm_axes=rows)))


@pytest.mark.parametrize("kind", [jnp.bfloat16, "bfloat16", jnp.dtype("bfloat16"), None], ids=str)
def test_a_dtype_is_no_schedule(kind):
    """jnp.bfloat16 can be called, and would be."""
    for make in (tj.scale_by_exploration, tj.scale_by_adam, tj.lamb):
        rate = {"learning_rate": 0.1} if make is tj.lamb else {}
        state = optax.inject_hyperparams(make)(**rate, accumulator_dtype=kind).init(PARAMS)
        plain = make(**rate, accumulator_dtype=kind).init(PARAMS)
        assert jax.tree.map(jnp.shape, state.inner_state) == jax.tree.map(jnp.shape, plain)
        dtypes = [x.dtype for x in jax.tree.leaves(state.inner_state)]
        assert dtypes == [x.dtype for x in jax.tree.leaves(plain)]
        assert (jnp.bfloat16 in dtypes) == ("bfloat16" in str(kind))


def test_trees_and_tuples_pass_through_unchanged():
    options = {
        "mask": {"kernel": True, "stack": np.bool_(False), "bias": 0},
        "trust_mask": {"kernel": True, "stack": jnp.array(True), "bias": False},
        "norm_axes": {"kernel": None, "stack": (1, 2), "bias": None},
        "trust_clip": np.array([0.5, 2.0]),
    }
    plain = updates(tj.lamb(0.1, **options))
    assert_same(updates(optax.inject_hyperparams(tj.lamb)(0.1, **options)), plain)
    assert_same(updates(tj.lamb(0.1, **{**options, "trust_clip": (0.5, 2.0)})), plain)
    injected = optax.inject_hyperparams(tj.lamb)(0.1, norm_axes=np.array([-1]))
    assert_same(updates(injected), updates(tj.lamb(0.1, norm_axes=(-1,))))


def test_schedules_are_still_schedules():
    def rate(count):
        return 0.1 / (1.0 + count)

    injected = optax.inject_hyperparams(tj.alto, static_args=STATIC)(rate, alpha=rate, mask=matrices)
    assert_same(updates(injected), updates(tj.alto(rate, alpha=rate, mask=matrices)))


BARE = [True, False, 1, np.bool_(False), np.array(True), jnp.array(False)]


@pytest.mark.parametrize("bare", BARE, ids=repr)
@pytest.mark.parametrize("name", ["mask", "trust_mask"])
def test_one_boolean_is_no_mask(name, bare):
    text = rf"^{name} must be None, a tree of True and False, or a function .*, got .* for all .*static_args"
    for make in (tj.alto, tj.lamb):
        with pytest.raises(ValueError, match=text):
            make(0.1, **{name: bare})
        with pytest.raises(ValueError, match=text):  # a function of a path or of one leaf, say
            make(0.1, **{name: lambda params: bare}).init(PARAMS)
    with pytest.raises(ValueError, match=text):
        optax.inject_hyperparams(tj.lamb)(0.1, **{name: bare}).init(PARAMS)


def test_parameters_that_are_one_array_have_one_boolean_and_may_have_no_axes():
    p = jnp.array([3.0, -4.0])
    plain = updates(tj.lamb(0.1, weight_decay=0.0, trust_mask=lambda p: p.ndim > 1), params=p)
    assert_same(plain, -jnp.full(2, 0.1))
    entries = updates(tj.lamb(0.1, weight_decay=0.0, trust_eps=0.0, norm_axes=lambda p: ()), params=p)
    assert_same(entries, -0.1 * jnp.abs(p))


def test_no_axes_for_all_parameters_are_refused():
    axes, text = (), r"^norm_axes must be None or a tuple of different axes, for each parameter, got \(\) for all param"
    for make in (tj.scale_by_trust_ratio, functools.partial(tj.lamb, 0.1)):
        with pytest.raises(ValueError, match=text):
            make(norm_axes=axes)
        optimizer = make(norm_axes=lambda params: axes)
        with pytest.raises(ValueError, match=text):
            optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS)
    tj.lamb(0.1, norm_axes={"kernel": (), "bias": None})


@pytest.mark.parametrize("wrong", [{"kernel": True}, [True, False, True], dict.fromkeys("abc", True)])
@pytest.mark.parametrize("as_function", [False, True])
def test_trees_of_another_structure_are_refused_by_name(wrong, as_function):
    def given(tree):
        return (lambda params: tree) if as_function else tree

    for name in ("mask", "trust_mask"):
        with pytest.raises(ValueError, match=rf"^{name} must be a prefix of the tree of parameters, PyTreeDef\("):
            tj.lamb(0.1, **{name: given(wrong)}).init(PARAMS)
    axes = jax.tree.map(lambda _: (0,), wrong)
    optimizer = tj.lamb(0.1, norm_axes=given(axes))
    with pytest.raises(ValueError, match=r"^norm_axes must be a prefix of the tree of parameters, PyTreeDef\("):
        optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS)


@pytest.mark.parametrize(
    "leaf",
    [0.5, "yes", np.float32(1), jnp.array(1.0), np.array([True, False]), jnp.ones(2), matrices],
    ids=lambda leaf: "a function" if callable(leaf) else repr(leaf),
)
def test_a_leaf_that_is_not_true_or_false_is_refused(leaf):
    wrong = {**dict.fromkeys(PARAMS, True), "bias": leaf}
    text = r"^mask must be None, a tree of True and False, or a function"
    with pytest.raises(ValueError, match=text):
        tj.lamb(0.1, mask=wrong)
    with pytest.raises(ValueError, match=text):
        tj.lamb(0.1, mask=lambda params: wrong).init(PARAMS)


def test_a_mask_that_has_no_values_yet_is_refused():
    mask = {**dict.fromkeys(PARAMS, jnp.array(True))}
    with pytest.raises(ValueError, match=r"^mask must be .*, of values known when a step is compiled, got "):
        jax.jit(lambda mask: tj.lamb(0.1, mask=mask).init(PARAMS))(mask)


def test_a_tree_that_can_be_called_is_a_tree():
    class Tree:
        def __init__(self, kernel, bias):
            self.kernel, self.bias = kernel, bias

        def __call__(self, params):
            raise AssertionError("it is a tree")

    jax.tree_util.register_pytree_node(Tree, lambda t: ((t.kernel, t.bias), None), lambda _, leaves: Tree(*leaves))
    params = Tree(PARAMS["kernel"], PARAMS["bias"])
    found = updates(tj.lamb(0.1, weight_decay=0.0, trust_mask=Tree(True, False)), params=params)
    assert_same(found.bias, jnp.full(4, -0.1))
    assert_same(found.kernel, jnp.full((4, 4), -0.125))
    none = updates(tj.lamb(0.1, weight_decay=0.0, norm_axes=Tree((1,), None)), params=params)
    assert_same(none.kernel, jnp.full((4, 4), -0.125))


def test_a_prefix_is_enough_and_states_can_be_mapped():
    params = {"norms": [jnp.ones(2), jnp.ones(3)], "kernel": jnp.full((2, 2), 2.0)}
    mask = {"norms": False, "kernel": True}
    optimizer = tj.lamb(0.1, weight_decay=0.5, mask=mask, trust_mask=mask)
    found = updates(optimizer, params=params)
    assert_same(found["norms"], [jnp.full(2, -0.1), jnp.full(3, -0.1)])
    state = optax.tree_map_params(optimizer, lambda x: x + 1.0, optimizer.init(params))
    assert {float(x.ravel()[0]) for x in jax.tree.leaves(state) if x.ndim} == {1.0}
