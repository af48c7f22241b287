"""State stored in fewer bits than it is computed in."""

from __future__ import annotations

import copy
import functools
import pickle
from math import prod

import pytest
import torch
from support import assert_near, assert_same, clone_params, make_grads, make_params, take_steps, through_a_file
from torch.nn import Parameter

from thalweg import ALTO, Lamb
from thalweg.bench.memory import state_bytes
from thalweg.bench.shapes import MODELS
from thalweg.kernels import Scales, cpp, eightbit, foreach, single
from thalweg.kernels.footprint import Footprint
from thalweg.kernels.pieces import PIECE, Scratch
from thalweg.kernels.rounding import noise, stochastic_round
from thalweg.optim import layers
from thalweg.optim.layers import _seed
from thalweg.optim.step_checks import check_gradients

BUFFERS = ("exp_avg", "exp_avg_sq", "explore_ema")
MIXED = {"exp_avg": "8bit", "exp_avg_sq": torch.float32, "explore_ema": torch.bfloat16}
NARROW = pytest.mark.parametrize("state_dtype", [torch.bfloat16, "8bit", MIXED], ids=["bfloat16", "8bit", "mixed"])
WAYS = {"single": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
WAY = pytest.mark.parametrize("way", WAYS)
SHAPES = ((64, 128), (4096,), (10,), (2 * PIECE + 512,), (30, 300), (3, 4096))
SMALL = ((64, 128), (10,), (4096,))


def numbers(t):
    """State as float numbers, whatever it is stored as."""
    return eightbit.read(t) if eightbit.is_8bit(t) else t


def named(state_dtype):
    """As a group has it."""
    if isinstance(state_dtype, dict):
        return {name: named(dtype) for name, dtype in state_dtype.items()}
    return str(state_dtype).removeprefix("torch.") if isinstance(state_dtype, torch.dtype) else state_dtype


def bits(optimizer, params):
    """Copies of all that is stored."""
    found = []
    for p in params:
        for t in optimizer.state[p].values():
            found += [t.codes.clone(), t.scale.clone()] if eightbit.is_8bit(t) else [t.clone()]
    return found


def trained(state_dtype, steps=3, shapes=SMALL, **options):
    params = make_params(shapes, torch.float32)
    grads = make_grads(params, 2 * steps)
    optimizer = ALTO(params, 0.01, state_dtype=state_dtype, **options)
    take_steps(optimizer, params, grads[:steps])
    return optimizer, params, grads[steps:]


@pytest.mark.parametrize(("optimizer", "buffers"), [(ALTO, 3), (Lamb, 2)])
def test_exact_bytes_of_state_on_the_shapes_of_gpt2(optimizer, buffers):
    model = MODELS["gpt2-23m"]
    counts = {}
    for state_dtype in (None, torch.bfloat16, "8bit"):
        made = optimizer([Parameter(torch.empty(shape)) for shape in model.shapes], state_dtype=state_dtype)
        made.init_state()
        counts[state_dtype] = state_bytes(made) - 4 * len(model.shapes)  # the steps
    sizes = [prod(shape) for shape in model.shapes]
    assert counts[None] == 4 * buffers * model.parameters
    assert counts[torch.bfloat16] == 2 * buffers * model.parameters
    each = [n + 4 * n // 256 + 1024 if n >= 4096 and n % 256 == 0 else 4 * n for n in sizes]
    assert counts["8bit"] == buffers * sum(each)
    assert counts["8bit"] <= 3.2 * buffers / 3 * model.parameters


def rounded(stored, value, name, seed):
    """What is read again of a buffer that is ``value`` after the step."""
    seed += 1 + BUFFERS.index(name)
    if eightbit.is_8bit(stored):
        q = eightbit.zeros(value, signed=name != "exp_avg_sq")
        eightbit.write(q, value, noise(value, seed, 0))
        return eightbit.read(q)
    return stochastic_round(value, seed).bfloat16() if stored.dtype == torch.bfloat16 else value


@NARROW
@pytest.mark.parametrize("way", ["single", "foreach"])  # the kernels add up norms in another order
@pytest.mark.parametrize("options", [{}, {"norm_dims": (-1,)}, {"trust_ratio": False}], ids=str)
def test_a_step_is_the_float32_step_from_what_is_stored_rounded_once(state_dtype, way, options):
    """Layers smaller and larger than a piece, and of sizes that stay in float32."""
    params = make_params(SHAPES, torch.float32)
    optimizer = ALTO(params, 0.01, state_dtype=state_dtype, **WAYS[way], **options)
    optimizer.init_state()
    for step, row in enumerate(make_grads(params, 3), 1):
        others = clone_params(params)
        exact = ALTO(others, 0.01, **WAYS[way], **options)
        exact.init_state()
        for p, q in zip(params, others, strict=True):
            exact.state[q] = {key: numbers(t).float().clone() for key, t in optimizer.state[p].items()}
        take_steps(optimizer, params, [row])
        take_steps(exact, others, [row])
        assert_same(params, others)
        for i, (p, q) in enumerate(zip(params, others, strict=True)):
            stored = optimizer.state[p]
            expected = [rounded(stored[name], exact.state[q][name], name, _seed(step, i)) for name in BUFFERS]
            assert_same([numbers(stored[name]) for name in BUFFERS], expected)


@WAY
def test_each_buffer_is_stored_as_it_is_asked_for(way):
    optimizer, params, _ = trained(MIXED, **WAYS[way])
    state = optimizer.state[params[0]]
    assert [eightbit.is_8bit(state[name]) for name in BUFFERS] == [True, False, False]
    assert [state[name].dtype for name in BUFFERS[1:]] == [torch.float32, torch.bfloat16]
    wide, wide_params, _ = trained({"exp_avg_sq": torch.float64})
    assert [wide.state[wide_params[0]][name].dtype for name in BUFFERS] == [torch.float32, torch.float64, torch.float32]


def test_the_signs_and_tables_are_those_of_the_buffers():
    optimizer, params, _ = trained("8bit")
    assert [optimizer.state[params[0]][name].signed for name in BUFFERS] == [True, False, True]


def turning():
    """A gradient for 300 steps, and what it turns to for as many."""
    g = torch.randn(8192, generator=torch.Generator().manual_seed(0))
    return [g] * 300 + [g.roll(1)] * 300


@functools.cache
def averages():
    """The buffers after that, in float64, where α is 1 and all betas are 0.99."""
    m = v = b = torch.zeros((), dtype=torch.float64)
    for g in turning():
        h = g.double() + 0.01 * (g - b)
        m, v, b = torch.lerp(m, h, 0.01), torch.lerp(v, h.square(), 0.01), torch.lerp(b, g.double(), 0.01)
    return dict(zip(BUFFERS, (m, v, b), strict=True))


@NARROW
@WAY
def test_averages_follow_a_gradient_that_turns_round(state_dtype, way):
    """They move by a hundredth of the distance at a time, half of what rounding to nearest would lose."""
    p = Parameter(torch.ones(8192))
    narrow = ALTO([p], 0.0, (0.99, 0.99), 1.0, 0.99, state_dtype=state_dtype, **WAYS[way])
    take_steps(narrow, [p], [[g] for g in turning()])
    for name, expected in averages().items():
        actual = numbers(narrow.state[p][name]).double()
        assert (actual - expected).norm() <= 0.06 * expected.norm(), name
        assert torch.dot(actual, expected) / torch.dot(expected, expected) == pytest.approx(1.0, abs=0.005), name


@pytest.mark.parametrize("state_dtype", [torch.bfloat16, "8bit"])
def test_the_noise_is_another_at_every_step_and_for_every_parameter_and_buffer(state_dtype):
    params = [Parameter(torch.ones(4096)) for _ in range(2)]
    g = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    optimizer = ALTO(params, 0.0, (0.5, 0.5), 1.0, 0.5, state_dtype=state_dtype)
    seen = set()
    for _ in range(3):
        optimizer.state.clear()  # so that each step rounds the same numbers
        take_steps(optimizer, params, [[g, g]])
        seen |= {
            tuple((numbers(optimizer.state[p][name]) / scale).tolist())
            for p in params
            for name, scale in (("exp_avg", 0.75), ("explore_ema", 0.5))
        }
    assert len(seen) == 12
    assert optimizer.param_groups[0]["rounding_step"] == 3
    assert trained(None)[0].param_groups[0]["rounding_step"] == 0


@NARROW
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", ["file", "itself", "copy", "pickle"])
def test_training_goes_on_bit_for_bit(state_dtype, dtype, way):
    params = make_params(SMALL, dtype)
    grads = make_grads(params, 6)
    optimizer = ALTO(params, 0.01, state_dtype=state_dtype)
    take_steps(optimizer, params, grads[:3])
    both = (optimizer, params)
    if way == "file":
        resumed_params = clone_params(params)
        resumed = ALTO(resumed_params, state_dtype=state_dtype)
        resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    else:
        resumed, resumed_params = pickle.loads(pickle.dumps(both)) if way == "pickle" else copy.deepcopy(both)
    if way == "itself":
        resumed.load_state_dict(resumed.state_dict())
    assert_same(bits(resumed, resumed_params), bits(optimizer, params))
    before = bits(optimizer, params)
    take_steps(resumed, resumed_params, grads[3:])
    assert_same(bits(optimizer, params), before)  # nothing is shared
    take_steps(optimizer, params, grads[3:])
    assert_same(resumed_params, params)
    assert_same(bits(resumed, resumed_params), bits(optimizer, params))


@NARROW
def test_the_state_dict_that_was_loaded_is_not_shared(state_dtype):
    optimizer, params, grads = trained(state_dtype)
    before = {name: numbers(optimizer.state[params[0]][name]).clone() for name in BUFFERS}
    others = clone_params(params)
    resumed = ALTO(others, state_dtype=state_dtype)
    resumed.load_state_dict(optimizer.state_dict())
    take_steps(resumed, others, grads)
    assert_same([numbers(optimizer.state[params[0]][name]) for name in BUFFERS], before.values())


@pytest.mark.parametrize(("saved", "fresh"), [(None, "8bit"), ("8bit", None), (torch.bfloat16, "8bit"), (MIXED, None)])
def test_state_stays_as_it_was_saved_and_the_group_says_so(saved, fresh):
    optimizer, params, grads = trained(saved)
    resumed_params = clone_params(params)
    resumed = ALTO(resumed_params, state_dtype=fresh)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    assert resumed.param_groups[0]["state_dtype"] == named(saved)
    for made, of in ((optimizer, params), (resumed, resumed_params)):
        take_steps(made, of, grads)
    assert_same(resumed_params, params)
    assert_same(bits(resumed, resumed_params), bits(optimizer, params))


@NARROW
@WAY
def test_a_step_that_is_skipped_leaves_every_bit(state_dtype, way):
    optimizer, params, grads = trained(state_dtype, **WAYS[way])
    before, start = bits(optimizer, params), clone_params(params)
    grads[0][1][3] = float("nan")
    take_steps(optimizer, params, grads[:1])
    assert_same(bits(optimizer, params), before)
    assert_same(params, start)


@NARROW
@pytest.mark.parametrize("backend", [single, foreach, cpp])
def test_a_step_that_the_device_skips_leaves_every_bit(state_dtype, backend):
    optimizer, params, _ = trained(state_dtype, shapes=SHAPES)
    before, start = bits(optimizer, params), clone_params(params)
    for p in params:
        p.grad = torch.full_like(p, float("nan"))
    group = optimizer.param_groups[0]
    proceed = torch.tensor(0.0)
    with torch.no_grad():
        (stepped,) = check_gradients([group], optimizer.state, Footprint(), "ALTO")
        hyper, wanted = optimizer._hyper(group), layers.wanted(group)
        plan = layers.plan_group(group, stepped, optimizer.state, hyper, wanted, proceed, rounds=True)
        layers.count_step(plan)
        for _, bucket in plan.buckets:
            backend.step(bucket, plan.hyper, Scales(proceed=proceed), Scratch())
    assert_same(bits(optimizer, params), before)
    assert_same(params, start)


@NARROW
def test_a_group_of_its_own_storage_may_be_added(state_dtype):
    first, second = make_params(SMALL, torch.float32), make_params(SMALL, torch.float32, 2)
    grads = make_grads(first, 3)
    optimizer = ALTO(first, 0.01)
    optimizer.add_param_group({"params": second, "state_dtype": state_dtype})
    alone = clone_params(second)
    still = clone_params(first)  # what is rounded depends on the place among all
    expected = ALTO([{"params": still}, {"params": alone}], 0.01, state_dtype=state_dtype)
    take_steps(optimizer, [*first, *second], [row + row for row in grads])
    take_steps(expected, alone, grads)
    assert_same(second, alone)
    assert all(optimizer.state[p]["exp_avg"].dtype == torch.float32 for p in first)


@NARROW
@WAY
@pytest.mark.parametrize("size", [16, 72])  # smaller and larger than a piece
def test_layouts_of_parameter_and_gradient_may_differ(state_dtype, way, size):
    generator = torch.Generator().manual_seed(0)
    start, *grads = (torch.randn(size, size, size, 2, generator=generator) for _ in range(4))
    ends = []
    for layout in (torch.contiguous_format, torch.channels_last):
        params = [Parameter(start.clone(memory_format=layout))]
        rows = [[g.contiguous(memory_format=layout)] for g in grads]
        optimizer = ALTO(params, 0.01, state_dtype=state_dtype, **WAYS[way])
        take_steps(optimizer, params, rows)
        ends.append(params)
    moved = (ends[0][0] - start).abs().max().item()
    assert (ends[0][0] - ends[1][0]).abs().max() <= 0.05 * moved  # in bfloat16 other noise


@NARROW
def test_narrow_state_trains_like_float32(state_dtype):
    """A convex problem: not bit for bit, but to the same loss."""
    torch.manual_seed(0)
    x, w = torch.randn(512, 64), torch.randn(64, 64)
    losses = []
    for stored in (None, state_dtype):
        p = Parameter(torch.full((64, 64), 0.1))
        optimizer = ALTO([p], 0.02, alpha=-5.0, state_dtype=stored, weight_decay=0.0)
        for _ in range(150):
            optimizer.zero_grad()
            loss = (x @ (p - w)).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.2)
    assert losses[1] < 0.1 * (x @ w).square().mean()


@pytest.mark.parametrize("state_dtype", [torch.bfloat16, "8bit", {"exp_avg_sq": "8bit"}], ids=str)
def test_complex_parameters_are_refused(state_dtype):
    text = r"state_dtype must be None, torch\.float32 or torch\.float64 for complex parameters, got "
    with pytest.raises(ValueError, match=f"^{text}"):
        ALTO(make_params(dtype=torch.complex64), state_dtype=state_dtype)


def test_a_group_says_how_its_state_is_stored_whatever_was_loaded():
    """A distributed checkpoint is read into the tensors that are there, and brings options of its own."""
    for state_dtype in ("8bit", MIXED):
        optimizer, _, _ = trained(state_dtype)
        saved = optimizer.state_dict()
        saved["param_groups"][0]["state_dtype"] = None
        optimizer.load_state_dict(saved)
        assert optimizer.param_groups[0]["state_dtype"] == (
            dict.fromkeys(BUFFERS, "8bit") if state_dtype == "8bit" else {**named(MIXED), "exp_avg_sq": None}
        )
        saved["param_groups"][0]["capturable"] = True
        text = r"state_dtype must be None, torch\.float32 or torch\.float64 with .*, got \{.*\}"
        with pytest.raises(ValueError, match=f"^{text}$"):
            optimizer.load_state_dict(saved)


@pytest.mark.parametrize("state_dtype", [torch.bfloat16, "8bit"])
def test_alpha_that_becomes_nonzero_allocates_its_buffer_as_asked_for(state_dtype):
    optimizer, params, grads = trained(state_dtype, alpha=0.0)
    assert "explore_ema" not in optimizer.state[params[0]]
    optimizer.param_groups[0]["alpha"] = 0.5
    take_steps(optimizer, params, grads)
    b = optimizer.state[params[0]]["explore_ema"]
    assert eightbit.is_8bit(b) == (state_dtype == "8bit")
    assert_near([numbers(b)], [sum(0.01 * 0.99 ** (2 - k) * row[0] for k, row in enumerate(grads))], 0.05)
