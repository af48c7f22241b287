"""What the transformations are in their limits: the plain chain, LAMB, AdamW, the paper's two buffers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from omegaconf import OmegaConf
from trees import assert_near, assert_same, gradients, run, tree

import thalweg.jax as tj

PLAIN = {
    "sgd": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adamw": lambda: optax.adamw(optax.linear_schedule(0.01, 0.0, 10)),
    "lamb": lambda: optax.lamb(0.01),
    "muon": lambda: optax.contrib.muon(0.01),
    "alto": lambda: tj.alto(0.01),
}


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, jnp.float32) for name in PLAIN), ("adamw", jnp.bfloat16)], ids=str
)
def test_e_at_alpha_0_is_not_there_bit_for_bit(name, dtype):
    e = tj.scale_by_exploration(0, 0.9)
    jit = name == "muon"  # which has a loop in its step
    params, state = run(optax.chain(e, PLAIN[name]()), tree(0, dtype), gradients(5, dtype), jit=jit)
    plain, plain_state = run(PLAIN[name](), tree(0, dtype), gradients(5, dtype), jit=jit)
    assert_same(params, plain)
    assert_same(jax.tree.leaves(state), jax.tree.leaves(plain_state))
    assert e.init(tree(0)) == optax.EmptyState()


@pytest.mark.parametrize(
    ("alpha", "dtype"),
    [(0, jnp.float32), (0.0, jnp.bfloat16), (lambda count: 0.0 * count, jnp.float32)],
    ids=["int", "float", "scheduled"],
)
def test_alto_at_alpha_0_is_lamb_and_the_chain_without_e_bit_for_bit(alpha, dtype):
    params, grads = tree(0, dtype), gradients(10, dtype)
    alto = run(tj.alto(0.1, 0.8, 0.99, alpha, 0.9, weight_decay=0.1), params, grads)[0]
    lamb = run(tj.lamb(0.1, 0.8, 0.99, weight_decay=0.1), params, grads)[0]
    assert_same(alto, lamb)
    if dtype == jnp.float32:
        chain = optax.chain(
            tj.scale_by_adam(0.8, 0.99),
            optax.add_decayed_weights(0.1),
            tj.scale_by_trust_ratio(1e-6),
            optax.scale_by_learning_rate(0.1),
        )
        assert_same(alto, run(chain, params, grads)[0])


def test_alto_is_e_in_front_of_lamb_bit_for_bit():
    chain = optax.chain(tj.scale_by_exploration(3.0, 0.75), tj.lamb(0.1, 0.8, 0.99))
    params, grads = tree(0), gradients(10)
    assert_same(run(tj.alto(0.1, 0.8, 0.99, 3.0, 0.75), params, grads)[0], run(chain, params, grads)[0])


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_lamb_is_optaxs_lamb_and_has_its_state(weight_decay, float64):
    ours = tj.lamb(0.1, 0.9, 0.999, trust_eps=0.0, weight_decay=weight_decay)
    theirs = optax.lamb(0.1, 0.9, 0.999, weight_decay=weight_decay)
    params, grads = tree(0, jnp.float64), gradients(50, jnp.float64)
    actual, expected = run(ours, params, grads), run(theirs, params, grads)
    assert_near(actual, expected, 1e-12)


def test_lamb_without_its_trust_ratio_is_adamw(float64):
    params, grads = tree(0, jnp.float64), gradients(50, jnp.float64)
    nothing = {"dense": False, "scale": False}
    ours = tj.lamb(0.01, 0.9, 0.99, eps=1e-8, weight_decay=0.1, trust_mask=nothing)
    assert_near(
        run(ours, params, grads)[0], run(optax.adamw(0.01, 0.9, 0.99, weight_decay=0.1), params, grads)[0], 1e-12
    )


@pytest.mark.parametrize(("alpha", "beta"), [(-5.0, 0.99), (0.5, 0.01), (3.0, 0.75), (-0.9, 0.0)])
def test_one_buffer_gives_what_the_papers_two_give(alpha, beta, float64):
    e = tj.scale_by_exploration(alpha, beta)
    state = e.init(jnp.zeros((3, 4)))
    a = previous = np.zeros((3, 4))
    for g in np.random.default_rng(0).standard_normal((50, 3, 4)):
        a, previous = beta * a + (1 - beta) * (g - previous), g
        updates, state = e.update(jnp.asarray(g), state)
        assert_near(updates, g + alpha * a, 1e-12)


@pytest.mark.parametrize("b2", [0.999, 0.99999])
def test_the_bias_correction_keeps_its_digits_in_float32(b2, float64):
    def directions(tx, dtype):
        state, found = tx.init(jnp.zeros(100, dtype)), []
        for g in np.random.default_rng(0).standard_normal((20, 100)):
            updates, state = tx.update(jnp.asarray(g, dtype), state)
            found.append(np.asarray(updates))
        return found

    exact = directions(optax.scale_by_adam(0.9, b2, 1e-6), jnp.float64)
    assert_near(directions(tj.scale_by_adam(0.9, b2), jnp.float64), exact, 1e-12)
    assert_near(directions(tj.scale_by_adam(0.9, b2), jnp.float32), exact, 1e-6)


def test_a_layer_at_zero_moves_as_adam_would_have_it_and_a_still_one_does_not():
    params = {"zero": jnp.zeros(3), "still": jnp.ones(3)}
    grads = {"zero": jnp.array([1.0, -2.0, 3.0]), "still": jnp.zeros(3)}
    for optimizer in (tj.lamb(0.1, weight_decay=0.0), tj.alto(0.1, weight_decay=0.0)):
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        np.testing.assert_allclose(updates["zero"], [-0.1, 0.1, -0.1], rtol=1e-5)
        np.testing.assert_array_equal(updates["still"], 0.0)


def test_the_trust_ratio():
    tx = tj.scale_by_trust_ratio(eps=0.5, clip=(0.5, 2.0))
    params = [jnp.array([3.0, 4.0]), jnp.array([0.0, 0.1]), jnp.array([0.0, 1.0]), jnp.zeros(2)]
    updates, _ = tx.update([jnp.array([0.6, 0.8])] * 4, tx.init(params), params)
    ratios = [2.0 / (1.0 + 0.5 * 2.0), 0.5 / (1.0 + 0.5 * 0.5), 1.0 / 1.5, 0.5 / (1.0 + 0.5 * 0.5)]
    for update, ratio in zip(updates, ratios, strict=True):
        np.testing.assert_allclose(update, ratio * np.array([0.6, 0.8]), rtol=1e-6)


STACK = {"kernel": (2, 3, 4), "bias": (2, 4), "head": (3, 4)}
AXES = {
    "a tree": {"kernel": (1, 2), "bias": (-1,), "head": None},
    "a function": lambda params: {k: tuple(range(1, p.ndim)) if k != "head" else None for k, p in params.items()},
}


@pytest.mark.parametrize("axes", AXES.values(), ids=AXES.keys())
def test_stacked_layers_move_like_separate_ones(axes):
    rng = np.random.default_rng(0)
    draw = lambda: {k: jnp.asarray(rng.standard_normal(shape), jnp.float32) for k, shape in STACK.items()}  # noqa: E731
    apart = lambda t: {**{(k, i): t[k][i] for k in ("kernel", "bias") for i in range(2)}, "head": t["head"]}  # noqa: E731
    params, grads = draw(), [draw() for _ in range(5)]
    separate = {
        k if isinstance(k, tuple) else (k, 0): v
        for k, v in apart(run(tj.alto(0.1, norm_axes=axes), params, grads)[0]).items()
    }
    relabel = lambda t: {k if isinstance(k, tuple) else (k, 0): v for k, v in apart(t).items()}  # noqa: E731
    assert_near(separate, run(tj.alto(0.1), relabel(params), [relabel(g) for g in grads])[0], 1e-6)


def test_norm_axes_may_be_a_prefix_or_one_for_all():
    params, grads = {"a": [jnp.ones((2, 3)), 2 * jnp.ones((2, 3))], "b": jnp.ones((2, 3))}, None
    rng = np.random.default_rng(0)
    grads = [jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape), p.dtype), params)]
    in_full = run(tj.lamb(0.1, norm_axes={"a": [(1,), (1,)], "b": (1,)}), params, grads)
    assert_same(run(tj.lamb(0.1, norm_axes={"a": (1,), "b": (1,)}), params, grads), in_full)
    assert_same(run(tj.lamb(0.1, norm_axes=(1,)), params, grads), in_full)


@pytest.mark.parametrize("kind", [list, OmegaConf.create, np.array])
def test_axes_and_bounds_may_be_lists_as_config_files_have_them(kind):
    params = {"a": [jnp.ones((2, 3)), jnp.full((2, 3), 2.0)], "b": jnp.full((2, 3), 3.0)}
    updates = jax.tree.map(lambda p: p + jnp.arange(p.size).reshape(p.shape), params)

    def scaled(axes, clip=None):
        tx = tj.scale_by_trust_ratio(norm_axes=axes, clip=clip)
        return tx.update(updates, tx.init(params), params)[0]

    for axes in ([1], [0, 1]):
        assert_same(scaled(kind(axes), kind([0.5, 1.5])), scaled(tuple(axes), (0.5, 1.5)))
    assert_same(scaled({"a": kind([1]), "b": kind([0])}), scaled({"a": (1,), "b": (0,)}))
    tj.alto(0.1, norm_axes=kind([1]), trust_clip=kind([0.5, 1.5]))


def test_an_update_can_be_differentiated_where_norms_and_gradients_are_zero():
    params, grads = [jnp.zeros(3), jnp.ones(3)], [jnp.ones(3), jnp.zeros(3)]
    optimizer = tj.alto(0.1, weight_decay=0.0, eps_root=1e-8)

    def moved(grads):
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        return sum(jnp.sum(u**2) for u in updates)

    assert all(bool(jnp.isfinite(d).all()) for d in jax.jit(jax.grad(moved))(grads))


def test_complex_parameters_are_pairs_of_real_ones():
    pair = lambda x: jnp.stack([x.real, x.imag], -1)  # noqa: E731
    kernels = [tree(seed)["dense"]["kernel"] for seed in range(4)]
    params = [p + 1j * q for p, q in zip(kernels[:2], kernels[2:], strict=True)]
    grads = [[p * (1.0 + 0.1j * k) for p in params] for k in range(1, 5)]
    for make in (tj.alto, tj.lamb, lambda lr: optax.chain(tj.scale_by_exploration(3.0, 0.75), tj.scale_by_adam())):
        after, state = run(make(0.1), params, grads)
        paired, paired_state = run(make(0.1), [*map(pair, params)], [[*map(pair, row)] for row in grads])
        assert_near([*map(pair, after)], paired, 1e-6)
        assert_near(jax.tree.map(lambda x: pair(x) if jnp.iscomplexobj(x) else x, state), paired_state, 1e-6)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_averages_in_float32_follow_a_gradient_that_drops(beta, traced):
    """By many powers of ten, to a digit or so less than float32 has: 1 - 0.001 is not 0.999."""
    large, drops = np.array([1.0, -0.5, 2.0, 0.25, 1.5]), np.array([[1e-4], [1e-6], [1e-8]])
    grads = [np.tile(large, (3, 1)), *(np.roll(large, k) * drops * k for k in (1, 2, 3))]
    b2 = jnp.asarray(beta) if traced else beta
    adam, e = tj.scale_by_adam(b2, b2), tj.scale_by_exploration(jnp.asarray(0.4) if traced else 0.4, b2)
    states = adam.init(jnp.zeros((3, 5))), e.init(jnp.zeros((3, 5)))
    m = v = b = np.zeros((3, 5))
    for g in grads:
        h = g + 0.4 * (1 - beta) * (g - b)
        m, v, b = beta * m + (1 - beta) * g, beta * v + (1 - beta) * g**2, beta * b + (1 - beta) * g
        updates, after = e.update(jnp.asarray(g), states[1])
        states = adam.update(jnp.asarray(g), states[0])[1], after
        for actual, expected in ((states[0].mu, m), (states[0].nu, v), (after.ema, b), (updates, h)):
            for drop in range(3):
                assert_near(actual[drop], expected[drop], 3e-5 if traced else 2e-6)


@pytest.mark.parametrize("size", [1e37, 1e25, 1e-25, 1e-30])
def test_norms_are_right_whatever_the_size_of_the_entries(size):
    theta, r = (np.random.default_rng(seed).standard_normal((2, 3, 4)) for seed in (0, 1))
    for axes in (None, (-2, -1), (0,)):
        tx = tj.scale_by_trust_ratio(norm_axes=axes)
        norms = [np.sqrt(np.sum(x**2, axis=axes, keepdims=True)) for x in (theta, r)]
        for sizes in ((size, 1.0), (1.0, size) if size < 1e30 else (size, size)):
            params, updates = (jnp.asarray(x * s, jnp.float32) for x, s in zip((theta, r), sizes, strict=True))
            scaled = np.asarray(tx.update(updates, tx.init(params), params)[0], np.float64)
            assert_near(scaled / sizes[0], r * norms[0] / norms[1], 1e-6)
    assert tj.scale_by_trust_ratio().update(jnp.ones((0, 3)), optax.EmptyState(), jnp.ones((0, 3)))[0].shape == (0, 3)
