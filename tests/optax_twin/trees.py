"""Trees of parameters and gradients, steps and comparisons that these tests share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax


def tree(seed: int, dtype: object = jnp.float32) -> dict[str, object]:
    """Like the parameters of a small model: nested, with a matrix and a vector."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)  # noqa: E731
    return {"dense": {"kernel": draw(3, 4)}, "scale": draw(4)}


def gradients(steps: int, dtype: object = jnp.float32) -> list[dict[str, object]]:
    return [tree(100 + k, dtype) for k in range(steps)]


def run(optimizer, params, grads, state=None, *, jit=False):
    """The parameters and the state after one step for each gradient.

    What is not jitted shares its operations with all other tests on leaves of these shapes. What branches within a
    step, as some wrappers do, would be compiled anew at each.
    """
    step = lambda p, s, g: apply(optimizer, p, s, g)  # noqa: E731
    step = jax.jit(step) if jit else step
    state = optimizer.init(params) if state is None else state
    for g in grads:
        params, state = step(params, state, g)
    return params, state


def apply(optimizer, params, state, g):
    updates, state = optimizer.update(g, state, params)
    return optax.apply_updates(params, updates), state


def assert_same(actual, expected):
    """Bit for bit, with structure and dtypes."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert jnp.result_type(a) == jnp.result_type(e)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(e))


def assert_near(actual, expected, tolerance):
    """Of each leaf: the largest difference is at most ``tolerance`` times its largest entry."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, e = (np.asarray(x, np.complex128 if jnp.iscomplexobj(x) else np.float64) for x in (a, e))
        assert np.abs(a - e).max() <= tolerance * np.abs(e).max()


def types(tree):
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)
