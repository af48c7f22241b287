"""What optax's own tests ask of every transformation, and what its wrappers and jax's transformations make of ours."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trees import apply, assert_near, assert_same, gradients, run, tree, types

import thalweg.jax as tj

TABLE = {
    "E": lambda: tj.scale_by_exploration(-5.0, 0.99),
    "E with a schedule": lambda: tj.scale_by_exploration(optax.linear_schedule(-5.0, 5.0, 10), 0.9),
    "E of AdamW": lambda: optax.chain(tj.scale_by_exploration(0.5, 0.01), optax.adamw(0.01)),
    "scale_by_adam": lambda: tj.scale_by_adam(),
    "scale_by_trust_ratio": lambda: tj.scale_by_trust_ratio(1e-6),
    "lamb": lambda: tj.lamb(0.1),
    "alto": lambda: tj.alto(0.1),
    "alto with everything": lambda: tj.alto(
        optax.cosine_decay_schedule(0.1, 10),
        alpha=optax.linear_schedule(-5.0, 5.0, 10),
        weight_decay=optax.constant_schedule(0.1),
        mask=lambda params: jax.tree.map(lambda p: p.ndim == 1, params),
        trust_mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        norm_axes=lambda params: jax.tree.map(lambda p: (-1,), params),
        trust_clip=(0.1, 10.0),
    ),
}
DTYPES = (jnp.bfloat16, jnp.float32, jnp.float64, jnp.complex64)


def over(*names):
    """For each of these entries of the table, or for all."""
    names = names or tuple(TABLE)
    return pytest.mark.parametrize("make", [TABLE[name] for name in names], ids=names)


over_all = over()
over_ours = over("E", "E with a schedule", "scale_by_adam", "scale_by_trust_ratio", "lamb", "alto")
over_kinds = over("E with a schedule", "alto with everything")


@pytest.mark.parametrize("dtype", DTYPES, ids=[dtype.__name__ for dtype in DTYPES])
@over_kinds
def test_shapes_and_dtypes_are_kept_through_jit_and_cond(make, dtype, float64):
    transformation, params = make(), tree(0, dtype)
    state = transformation.init(params)
    update = lambda s: transformation.update(tree(1, dtype), s, params)  # noqa: E731
    step = jax.jit(lambda s, proceed: jax.lax.cond(proceed, update, lambda s: (params, s), s))  # raises on another type
    updates, after = jax.eval_shape(step, state, True)
    assert types(updates) == types(params)
    assert types(after) == types(state)


@over("E with a schedule", "scale_by_adam", "alto with everything")
def test_mixed_dtypes_are_kept_each(make, float64):
    params = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(3, jnp.float32), "c": jnp.ones(3, jnp.float64)}
    transformation = make()
    state = jax.eval_shape(jax.jit(transformation.init), params)
    updates, after = jax.eval_shape(jax.jit(transformation.update), params, state, params)
    assert types(updates) == types(params)
    assert types(after) == types(state)


@over_kinds
def test_scan_is_the_loop(make):
    transformation, params, grads = make(), tree(0), gradients(6)
    looped = run(transformation, params, grads)
    stacked = jax.tree.map(lambda *g: jnp.stack(g), *grads)
    step = lambda carry, g: (apply(transformation, *carry, g), None)  # noqa: E731
    scanned, _ = jax.jit(lambda carry: jax.lax.scan(step, carry, stacked))((params, transformation.init(params)))
    assert_near(scanned, looped, 1e-5)


@over("alto with everything")
def test_vmap_over_members_is_each_alone(make):
    transformation = make()
    members = [tree(seed) for seed in range(3)]
    together = jax.tree.map(lambda *p: jnp.stack(p), *members)
    grads = [jax.tree.map(lambda *g: jnp.stack(g), *(tree(10 * k + seed) for seed in range(3))) for k in (1, 2)]
    step = jax.jit(jax.vmap(lambda p, s, g: apply(transformation, p, s, g)))
    params, state = together, jax.vmap(transformation.init)(together)
    for g in grads:
        params, state = step(params, state, g)
    for i, member in enumerate(members):
        alone = run(transformation, member, [jax.tree.map(lambda x, i=i: x[i], g) for g in grads])
        assert_near(jax.tree.map(lambda x, i=i: x[i], (params, state)), alone, 1e-5)


def test_vmap_over_alpha_and_beta_is_each_alone():
    alphas, betas = jnp.array([-5.0, 0.0, 3.0]), jnp.array([0.99, 0.5, 0.75])

    def train(alpha, beta):
        return run(tj.alto(0.1, beta=beta, alpha=alpha), tree(0), gradients(3), jit=True)[0]

    together = jax.vmap(train)(alphas, betas)
    for i in range(3):
        alone = run(tj.alto(0.1, beta=float(betas[i]), alpha=float(alphas[i])), tree(0), gradients(3))[0]
        assert_near(jax.tree.map(lambda x, i=i: x[i], together), alone, 1e-5)


@over("E", "alto with everything")
def test_extra_arguments_are_taken_within_a_chain_and_by_the_optimizers(make):
    transformation, params = make(), tree(0)
    for taking in (optax.chain(transformation), optax.with_extra_args_support(transformation)):
        plain = transformation.update(params, transformation.init(params), params)[0]
        assert_same(taking.update(params, taking.init(params), params, value=1.0)[0], plain)


@pytest.mark.parametrize("make", [tj.alto, tj.lamb])
def test_the_optimizers_take_extra_arguments_as_they_are(make):
    params = tree(0)
    optimizer = make(0.1)
    assert isinstance(optimizer, optax.GradientTransformationExtraArgs)
    optimizer.update(params, optimizer.init(params), params, value=1.0)


@over_all
def test_the_state_is_found_by_map_params(make):
    transformation, params = make(), tree(0)
    if transformation.init(params) == optax.EmptyState():
        return
    state = transformation.init(params)
    marked = optax.tree.map_params(transformation, lambda leaf: leaf + 1, state)
    shift = jax.tree.map(lambda a, b: a - b, marked, state)
    moved = {np.shape(leaf) for leaf in jax.tree.leaves(shift) if np.any(np.asarray(leaf, np.float32) == 1)}
    assert {(3, 4), (4,)} <= moved


@over_all
def test_the_state_of_abstract_parameters_is_that_of_real_ones(make):
    abstract = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), tree(0))
    assert types(make().init(abstract)) == types(make().init(tree(0)))


@over_all
def test_empty_trees_pass(make):
    transformation = make()
    assert transformation.update({}, transformation.init({}), {})[0] == {}


@over("E", "alto")
def test_python_scalars_pass(make):
    transformation = make()
    assert np.isfinite(transformation.update(1.0, transformation.init(2.0), 2.0)[0])


@over_ours  # masks of optax and optax.adamw refuse it
def test_none_stays_none_and_leaves_the_state_of_that_parameter(make):
    transformation, params = make(), tree(0)
    one = transformation.update(tree(1), transformation.init(params), params)[1]
    grads = {"dense": tree(2)["dense"], "scale": None}
    updates, state = transformation.update(grads, one, params)
    assert updates["scale"] is None
    assert_same(updates["dense"]["kernel"], transformation.update(tree(2), one, params)[0]["dense"]["kernel"])
    assert jax.tree.structure(state) == jax.tree.structure(one)
    for after, before in zip(jax.tree.leaves(state), jax.tree.leaves(one), strict=True):
        if after.shape == (4,):
            assert_same(after, before)
        elif after.shape == (3, 4):
            assert np.any(np.asarray(after) != np.asarray(before))


@over_all
def test_parameters_that_are_none_have_no_state(make):
    transformation = make()
    trained = {"trained": jnp.ones((2, 3))}
    alone, alone_state = transformation.update(trained, transformation.init(trained), trained)
    params = {**trained, "static": None}
    updates, state = transformation.update(params, transformation.init(params), params)
    assert_same(updates, {**alone, "static": None})
    assert_same(jax.tree.leaves(state), jax.tree.leaves(alone_state))


@over("E", "scale_by_adam", "scale_by_trust_ratio", "alto with everything")
def test_masked_nodes_pass_and_take_no_state(make):
    transformation, params = make(), tree(0)
    mask = {"dense": True, "scale": False}
    masked = optax.masked(transformation, mask)
    state = masked.init(params)
    updates, after = masked.update(tree(1), state, params)
    assert types(after) == types(state)
    assert {np.shape(leaf) for leaf in jax.tree.leaves(state)} <= {(3, 4), ()}
    assert_same(updates["scale"], tree(1)["scale"])
    kernel = lambda t: {"dense": {"kernel": t["dense"]["kernel"]}}  # noqa: E731
    alone = transformation.update(kernel(tree(1)), transformation.init(kernel(params)), kernel(params))[0]
    assert_same(updates["dense"]["kernel"], alone["dense"]["kernel"])


@over("alto")
def test_multi_transform_gives_each_group_its_own(make):
    params, grads = tree(0), gradients(3)
    labels = {"dense": "ours", "scale": "sgd"}
    both = run(optax.multi_transform({"ours": make(), "sgd": optax.sgd(0.1)}, labels), params, grads)[0]
    ours = run(make(), {"dense": params["dense"]}, [{"dense": g["dense"]} for g in grads])[0]
    assert_near(both["dense"], ours["dense"], 1e-6)
    np.testing.assert_allclose(both["scale"], params["scale"] - 0.1 * sum(g["scale"] for g in grads), rtol=1e-5)


@over("alto")
def test_multi_steps_is_one_step_on_the_mean(make):
    params, grads = tree(0), gradients(4)
    accumulated = optax.MultiSteps(make(), every_k_schedule=2)
    step, state = jax.jit(accumulated.update), accumulated.init(params)
    updates, state = step(grads[0], state, params)
    assert not any(np.any(np.asarray(u)) for u in jax.tree.leaves(updates))
    after, _ = run(accumulated, params, grads, jit=True)
    means = [jax.tree.map(lambda a, b: (a + b) / 2, *grads[i : i + 2]) for i in (0, 2)]
    assert_near(after, run(make(), params, means)[0], 1e-5)


@over("alto")
def test_apply_if_finite_leaves_out_a_bad_step(make):
    params, grads = tree(0), gradients(3)
    bad = {**grads[0], "scale": jnp.full(4, jnp.nan)}
    guarded, state = run(optax.apply_if_finite(make(), 5), params, [grads[0], bad, *grads[1:]], jit=True)
    plain, inner = run(make(), params, grads)
    assert_near(guarded, plain, 1e-6)
    assert_near(state.inner_state, inner, 1e-6)
    assert int(state.total_notfinite) == 1


INJECTED = {
    "E": (tj.scale_by_exploration, {"alpha": -5.0, "beta": 0.99}, ()),
    "alto": (tj.alto, {"learning_rate": 0.1, "alpha": 3.0, "beta": 0.75}, ()),
    "lamb": (tj.lamb, {"learning_rate": 0.1, "mask": lambda p: jax.tree.map(jnp.ndim, p)}, ("mask",)),
    "scale_by_trust_ratio": (tj.scale_by_trust_ratio, {"eps": 0.1, "norm_axes": (-1,)}, ()),
}


@pytest.mark.parametrize("name", INJECTED)
def test_injected_hyperparameters_are_those_given(name):
    factory, arguments, static = INJECTED[name]
    params = {"a": jnp.ones((3, 4)), "b": jnp.full((4,), 0.5)}
    grads = [jax.tree.map(lambda p, k=k: jnp.sin(p * k), params) for k in (1, 2, 3)]
    injected = optax.inject_hyperparams(factory, static_args=static)(**arguments)
    actual, state = run(injected, params, grads)
    expected, inner = run(factory(**arguments), params, grads)
    assert_near(actual, expected, 1e-5)
    assert_near(state.inner_state, inner, 1e-5)


def test_injected_hyperparameters_can_be_changed_and_scheduled():
    params, g = tree(0), tree(1)
    injected = optax.inject_hyperparams(tj.scale_by_exploration)(alpha=-5.0, beta=0.9)
    state = injected.init(params)
    state.hyperparams["alpha"] = jnp.asarray(5.0)
    e = tj.scale_by_exploration(5.0, 0.9)
    assert_near(injected.update(g, state, params)[0], e.update(g, e.init(params))[0], 1e-6)

    alpha = optax.linear_schedule(-5.0, 5.0, 4)
    scheduled = optax.inject_hyperparams(tj.alto)(0.1, beta=0.9, alpha=alpha)
    expected = run(tj.alto(0.1, beta=0.9, alpha=alpha), params, gradients(6))[0]
    assert_near(run(scheduled, params, gradients(6))[0], expected, 1e-5)


def test_the_schedule_of_alpha_counts_updates_from_0():
    seen = []
    e = tj.scale_by_exploration(lambda count: seen.append(int(count)) or 0.1, 0.5)
    state = e.init(jnp.zeros(2))
    for _ in range(3):
        _, state = e.update(jnp.ones(2), state)
    assert seen == [0, 1, 2]


@over("E with a schedule", "scale_by_adam", "scale_by_trust_ratio", "alto with everything")
def test_half_precision_is_float32_rounded_once(make):
    dtype = jnp.bfloat16
    optimizer, params = make(), tree(0, dtype)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    state, wide_state = optimizer.init(params), optimizer.init(wide)
    for g in gradients(5, dtype):
        updates, state = optimizer.update(g, state, params)
        expected, wide_state = optimizer.update(jax.tree.map(lambda x: x.astype(jnp.float32), g), wide_state, wide)
        assert_same(updates, jax.tree.map(lambda x: x.astype(dtype), expected))
        assert_same(state, wide_state)


def test_an_average_with_long_memory_arrives_in_bfloat16():
    e, ones = tj.scale_by_exploration(-5.0, 0.999), jnp.ones(1, jnp.bfloat16)
    state = jax.lax.fori_loop(0, 5000, lambda _, state: e.update(ones, state)[1], e.init(ones))
    assert abs(float(state.ema[0]) - (1 - 0.999**5000)) < 1e-4


def test_the_accumulator_is_in_the_dtype_asked_for():
    dtype = b = m = jnp.dtype(jnp.bfloat16)
    state = run(tj.alto(0.1, accumulator_dtype=dtype), tree(0), gradients(3))[1]
    found = jax.tree.map(jnp.result_type, (state[0].ema, state[1].mu, state[1].nu))
    assert {*jax.tree.leaves(found[0])} == {b}
    assert {*jax.tree.leaves(found[1])} == {m}
    assert {*jax.tree.leaves(found[2])} == {jnp.dtype(jnp.float32)}
    exact = run(tj.alto(0.1), tree(0), gradients(3))[1]
    assert_near(jax.tree.map(lambda x: x.astype(jnp.float32), state[0].ema), exact[0].ema, 0.01)
