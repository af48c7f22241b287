"""What XLA makes of a step: one compilation, no more bytes than its outputs ask for, donated buffers used."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import optax
import pytest
from trees import apply, gradients, tree

import thalweg.jax as tj

SIZE = 1 << 16


def compiled(optimizer, **options):
    """A step on one parameter in float32."""
    p = jnp.ones(SIZE)
    return jax.jit(lambda p, s, g: apply(optimizer, p, s, g), **options).lower(p, optimizer.init(p), p).compile()


def e_of(plain):
    return optax.chain(tj.scale_by_exploration(-5.0, 0.99), plain)


# Bytes accessed per parameter. XLA on CPU makes one pass for each output, which reads what that depends on: with p, g
# and b in float32, E and SGD are p' from p, g, b (16) and b' from g, b (12). ALTO is b' from g, b (12); m' and v' from
# g, b and themselves (16 each); the largest of p, and ‖p‖ (4 each); r, in the place of p', from p, m', v' (16); the
# largest of r, and ‖r‖ (4 each); p' from p, r (12).
TRAFFIC = {
    "E of SGD": (lambda: e_of(optax.sgd(0.1)), 28),
    "E of SGD, alpha=0": (lambda: optax.chain(tj.scale_by_exploration(0), optax.sgd(0.1)), 12),
    "E of SGD, a schedule": (
        lambda: optax.chain(tj.scale_by_exploration(optax.linear_schedule(-5, 5, 9), 0.9), optax.sgd(0.1)),
        28,
    ),
    "alto": (lambda: tj.alto(0.1), 88),
    "alto, alpha=0": (lambda: tj.alto(0.1, alpha=0), 68),
}


@pytest.mark.parametrize("name", TRAFFIC)
def test_a_step_moves_the_bytes_that_its_outputs_ask_for_and_needs_no_room(name):
    make, bytes_per_parameter = TRAFFIC[name]
    step = compiled(make())
    assert step.cost_analysis()["bytes accessed"] / SIZE == pytest.approx(bytes_per_parameter, abs=0.1)
    assert step.memory_analysis().temp_size_in_bytes < 0.1 * SIZE


def test_lamb_moves_less_than_optaxs():
    theirs, ours = (compiled(o).cost_analysis()["bytes accessed"] for o in (optax.lamb(0.1), tj.lamb(0.1)))
    assert ours < theirs


@pytest.mark.parametrize(
    ("alpha", "trees"), [(-5.0, 3), (0.0, 2), (optax.constant_schedule(0.0), 3)], ids=["-5", "0", "scheduled"]
)
def test_the_state_of_alto_is_three_trees_and_at_alpha_0_two(alpha, trees):
    assert arrays(tj.alto(0.1, alpha=alpha).init(tree(0))) == trees
    assert compiled(tj.alto(0.1, alpha=alpha)).memory_analysis().argument_size_in_bytes == pytest.approx(
        4 * SIZE * (2 + trees), abs=64
    )


@pytest.mark.parametrize(
    ("alpha", "trees"), [(-5.0, 1), (0, 0), (optax.constant_schedule(0.0), 1)], ids=["-5", "0", "scheduled"]
)
def test_the_state_of_e_is_one_tree_and_at_alpha_0_none(alpha, trees):
    assert arrays(tj.scale_by_exploration(alpha, 0.99).init(tree(0))) == trees


def arrays(state):
    """How many kernels there are in it."""
    return sum(leaf.shape == (3, 4) for leaf in jax.tree.leaves(state))


DONATING = {"E of AdamW": lambda: e_of(optax.adamw(0.1)), "lamb": lambda: tj.lamb(0.1), "alto": lambda: tj.alto(0.1)}


@pytest.mark.parametrize("name", DONATING)
def test_donated_parameters_and_state_are_all_reused(name):
    optimizer = DONATING[name]()
    analysis = compiled(optimizer, donate_argnums=(0, 1)).memory_analysis()
    gradient = 4 * SIZE
    assert analysis.alias_size_in_bytes == pytest.approx(analysis.argument_size_in_bytes - gradient, abs=16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step = jax.jit(lambda p, s, g: apply(optimizer, p, s, g), donate_argnums=(0, 1))
        params, state = tree(0), optimizer.init(tree(0))
        for g in gradients(3):
            before = (params, state)
            params, state = step(params, state, g)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
            assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((params, state)))


SCHEDULED = {
    "E": lambda: tj.scale_by_exploration(optax.cosine_decay_schedule(5.0, 10), 0.9),
    "alto": lambda: tj.alto(
        optax.warmup_cosine_decay_schedule(0.0, 0.1, 3, 10),
        beta=0.9,
        alpha=optax.linear_schedule(-5.0, 5.0, 10),
        weight_decay=optax.linear_schedule(0.0, 0.1, 10),
    ),
    "alto, injected": lambda: optax.inject_hyperparams(tj.alto)(
        optax.cosine_decay_schedule(0.1, 10), beta=0.9, alpha=optax.linear_schedule(-5.0, 5.0, 10)
    ),
}


@pytest.mark.parametrize("name", SCHEDULED)
def test_steps_and_schedules_compile_once(name):
    optimizer, traces = SCHEDULED[name](), []

    @jax.jit
    def step(params, state, g):
        traces.append(1)
        return apply(optimizer, params, state, g)

    params = tree(0)
    state = jax.jit(optimizer.init)(params)
    for g in gradients(12):
        params, state = step(params, state, g)
    assert len(traces) == 1
    assert step._cache_size() == 1


def test_a_changed_injected_alpha_compiles_nothing():
    optimizer = optax.inject_hyperparams(tj.scale_by_exploration)(alpha=-5.0, beta=0.9)
    step = jax.jit(optimizer.update)
    params = tree(0)
    state = optimizer.init(params)
    seen = set()
    for alpha in (-5.0, 0.0, 5.0):
        state.hyperparams["alpha"] = jnp.asarray(alpha)
        updates, _ = step(tree(1), state, params)
        seen.add(float(updates["scale"][0]))
    assert step._cache_size() == 1
    assert len(seen) == 3
