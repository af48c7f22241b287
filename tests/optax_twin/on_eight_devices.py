"""Sharded parameters give the single-device result, with the collectives one expects. Run by test_sharded.py.

It needs XLA_FLAGS=--xla_force_host_platform_device_count=8 before jax starts, hence a process of its own.
"""

from __future__ import annotations

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from trees import apply, assert_near

import thalweg.jax as tj

SHAPES = {"attention": (16, 24), "bias": (16,), "experts": (8, 16, 8)}
STACKED = {"attention": None, "bias": None, "experts": (1, 2)}
LAYERS = {"attention": 1, "bias": 1, "experts": 8}
MESHES = {1: ((8,), ("data",)), 2: ((4, 2), ("data", "model"))}
# The dimensions of the mesh, and over which of its axes each axis of a parameter is sharded.
LAYOUTS = {
    "fsdp": (1, {"attention": ("data",), "bias": ("data",), "experts": (None, "data")}),
    "tensor parallel": (1, {"attention": (None, "data"), "bias": (), "experts": (None, None, "data")}),
    "fsdp and tp": (2, {"attention": ("data", "model"), "bias": ("data",), "experts": (None, "model", "data")}),
    "expert parallel": (1, {"attention": (), "bias": (), "experts": ("data",)}),
}
OPTIMIZERS = {
    "E of SGD": lambda: optax.chain(tj.scale_by_exploration(3.0, 0.75), optax.sgd(0.1, momentum=0.9)),
    "alto": lambda: tj.alto(0.1, beta=0.75, alpha=3.0, norm_axes=STACKED),
}
STEPS = 2
COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast)(?:-start)?\("
)


def draw(seed):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in SHAPES.items()}


def shardings(layout):
    dimensions, specs = LAYOUTS[layout]
    shape, axes = MESHES[dimensions]
    mesh = jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * dimensions)
    return {name: NamedSharding(mesh, PartitionSpec(*spec)) for name, spec in specs.items()}


def sharded(tree, layout):
    return jax.device_put(tree, shardings(layout))


def compiled(optimizer, params):
    return jax.jit(lambda p, s, g: apply(optimizer, p, s, g)).lower(params, optimizer.init(params), params).compile()


def collectives(compiled):
    """(kind, number of elements) of each collective of a compiled module."""
    found = []
    for types, kind in COLLECTIVE.findall(compiled.as_text()):
        shapes = re.findall(r"\w+\[([\d,]*)\]", types)
        found.append((kind, sum(math.prod(int(d) for d in shape.split(",") if d) for shape in shapes)))
    return found


@functools.cache
def on_one_device(name):
    optimizer, params = OPTIMIZERS[name](), draw(0)
    step, state = compiled(optimizer, params), optimizer.init(params)
    for k in range(STEPS):
        params, state = step(params, state, draw(1 + k))
    return params


def test_there_are_eight_devices():
    assert jax.device_count() == 8


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_result_is_that_of_one_device_with_no_more_collectives_than_norms_ask_for(name, layout):
    optimizer, params = OPTIMIZERS[name](), sharded(draw(0), layout)
    step, state = compiled(optimizer, params), optimizer.init(params)
    for k in range(STEPS):
        params, state = step(params, state, sharded(draw(1 + k), layout))
    assert_near(params, on_one_device(name), 2e-6)
    for parameter, sharding in shardings(layout).items():
        assert params[parameter].sharding.is_equivalent_to(sharding, params[parameter].ndim)

    found = collectives(step)
    if name == "alto":
        assert {kind for kind, _ in found} <= {"all-reduce"}
        assert sum(numbers for _, numbers in found) == two_numbers_of_two_norms_for_each_axis_of_the_mesh(layout)
    else:
        assert found == []


def two_numbers_of_two_norms_for_each_axis_of_the_mesh(layout):
    """The largest entry and the sum of squares, of each layer; a whole expert on its device needs none."""
    specs = LAYOUTS[layout][1]
    inside = {name: spec[1:] if name == "experts" else spec for name, spec in specs.items()}
    return sum(4 * LAYERS[name] * sum(axis is not None for axis in spec) for name, spec in inside.items())


def test_the_norm_over_all_experts_needs_a_collective():
    params = sharded(draw(0), "expert parallel")
    assert collectives(compiled(tj.lamb(0.1), params)) == [("all-reduce", 2)] * 2


def test_the_state_is_sharded_like_its_parameter():
    params = sharded(draw(0), "fsdp and tp")
    state = tj.alto(0.1).init(params)
    for tree in (state[0].ema, state[1].mu, state[1].nu):
        for name, leaf in tree.items():
            assert leaf.sharding.is_equivalent_to(params[name].sharding, leaf.ndim), name


def test_sharding_is_part_of_the_type_where_the_mesh_is_explicit():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        params = jnp.ones((2, 8, 4), jnp.bfloat16, out_sharding=NamedSharding(mesh, PartitionSpec(None, "x")))
        for optimizer in (tj.scale_by_exploration(), tj.lamb(0.1), tj.alto(0.1, norm_axes=(-2, -1))):
            state = optimizer.init(params)
            updates, after = optimizer.update(params, state, params)
            assert jax.typeof(updates) == jax.typeof(params)
            assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)
