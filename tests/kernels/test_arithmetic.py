"""The Triton kernels take the steps of the one-parameter-at-a-time backend, under Triton's interpreter."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
import triton as triton_package
import triton.language as tl
from kernel_layers import (
    BLOCK,
    CHUNK,
    FLOATS,
    HYPER,
    TENSORS,
    TOLERANCE,
    Launches,
    assert_agree,
    both,
    clone,
    kernels_only,
    make_layers,
    step,
    written,
)
from support import assert_near, assert_same, make_grads, pairwise
from torch import Tensor

from thalweg import equations as eq
from thalweg.kernels import Scales, triton
from thalweg.kernels.triton import kernels as triton_kernels

DTYPES = [
    (param, grad, state)
    for param in FLOATS
    for grad in FLOATS
    for state in (torch.float64, torch.float32, torch.bfloat16)
    if (param, state) != (torch.float64, torch.bfloat16)  # see test_stochastic_rounding
]


@pytest.mark.parametrize(("param", "grad", "state"), pairwise(DTYPES), ids=str)
def test_dtypes(param, grad, state, monkeypatch):
    layers = make_layers([(41,)], param, grad, state)
    # A float64 parameter's float32 moments are rounded from what may differ in the last place.
    tolerance = 1e-6 if torch.float32 in (param, state) or param.itemsize == 2 else None
    assert_agree(*kernels_only(monkeypatch, layers), tolerance)


STATES = ("exp_avg", "exp_avg_sq", "explore_ema")
WIDE_AND_NARROW = list(itertools.product((torch.float32, torch.bfloat16), repeat=3))[1:-1]


@pytest.mark.parametrize("trust_ratio", [True, False])
@pytest.mark.parametrize("dtypes", [*WIDE_AND_NARROW, (torch.float64, torch.float32, torch.float16)], ids=str)
def test_every_buffer_may_have_a_dtype_of_its_own(dtypes, trust_ratio, monkeypatch):
    layers = [
        layer._replace(**{k: getattr(layer, k).to(dtype) for k, dtype in zip(STATES, dtypes, strict=True)})
        for layer in make_layers([(CHUNK + 7,), (5, 3)], torch.float32)
    ]
    assert_agree(*kernels_only(monkeypatch, layers, trust_ratio=trust_ratio), 1e-6)


ADAMW = {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}


@pytest.mark.parametrize("alpha", [0.0, -5.0, 3.0])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_without_the_trust_ratio_a_step_is_that_of_torchs_adamw_on_what_e_makes_of_the_gradient(dtype, alpha):
    """Torch decays first and scales eps by a correction that is none of ours: other roundings, the same update."""
    layers = make_layers([(5, 3), (CHUNK + 7,), ()], dtype, explore=alpha != 0.0)
    for layer in layers:
        for t in layer[3:6]:
            if t is not None:
                t.zero_()
    params = [torch.nn.Parameter(layer.param.clone()) for layer in layers]
    bs = [torch.zeros_like(p) for p in params]
    hyper = dataclasses.replace(
        HYPER, lr=0.1, alpha=alpha, beta1=0.9, eps=1e-3, weight_decay=0.1, trust_ratio=False, trust_eps=0.0
    )
    adamw = torch.optim.AdamW(params, **ADAMW)
    for k in range(1, 4):
        for i, (p, g) in enumerate(zip(params, make_grads(params, 3)[k - 1], strict=True)):
            h, bs[i] = eq.explore(g, bs[i], alpha=alpha, beta=0.9)
            p.grad = h
            layers[i] = layers[i]._replace(grad=g, step=float(k))
        adamw.step()
        step(layers, hyper)
    assert_near([layer.param for layer in layers], params, 2 * TOLERANCE[dtype])
    for name in STATES[:2]:
        assert_near([getattr(x, name) for x in layers], [adamw.state[p][name] for p in params], 2 * TOLERANCE[dtype])


@pytest.mark.parametrize("param", TOLERANCE)
def test_sizes(param, monkeypatch):
    shapes = [(), (0,), (1,), (2,), (31,), (32,), (33,), (63,), (4, 16), (65,), (3, 0), (CHUNK * 3,), (7, 31)]
    assert_agree(*kernels_only(monkeypatch, make_layers(shapes, param)))


def test_sizes_at_the_true_chunk(monkeypatch):
    monkeypatch.undo()
    assert_agree(*both(make_layers([(1023,), (1025,), (triton.CHUNK + 1,)], torch.float32)))


def test_nothing_is_launched_for_no_elements(monkeypatch):
    launches = Launches(monkeypatch)
    assert_agree(*both(make_layers([(0,), (2, 0)])))
    assert not launches.log


def test_more_chunks_than_one_block_of_sums(monkeypatch):
    monkeypatch.setattr(triton, "CHUNK", 32)
    assert_agree(*both(make_layers([(5,), (32 * (BLOCK + 3),)])))


@pytest.mark.parametrize(
    "changes",
    [
        {"trust_ratio": False},
        {"trust_clip": (0.5, 1.0)},
        {"trust_clip": (100.0, 200.0)},
        {"ratio_clip": (0.0, 0.3)},
        {"ratio_clip": (30.0, 40.0)},
        {"bias_correction": False},
        {"decoupled_decay": True, "weight_decay": 0.5},
        {"decoupled_decay": True, "weight_decay": 0.5, "trust_ratio": False},
        {"trust_eps": 0.0},
        {"weight_decay": 0.0},
        {"maximize": True},
        {"eps": 0.1},
        {"beta1": 0.0, "alpha": 0.5},
        {"beta2": 0.0, "beta3": 0.0},
        {"alpha": 2.0, "beta2": 0.3, "beta3": 0.4},
        {"lr": 0.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("explore", [True, False])
def test_hyperparameters(changes, explore):
    assert_agree(*both(make_layers([(5, 3), (CHUNK + 7,), ()], explore=explore), **changes))


@pytest.mark.parametrize("trust_ratio", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_learning_rate_on_the_device(dtype, trust_ratio):
    lr = torch.tensor(0.3, dtype=dtype)
    assert_agree(*both(make_layers([(5, 3), (7,)]), lr=lr, trust_ratio=trust_ratio))


def test_a_clipped_gradient():
    layers = make_layers([(5, 3), (CHUNK + 7,)])
    grads = [layer.grad.clone() for layer in layers]
    assert_agree(*both(layers, scales=Scales(grad=torch.tensor(0.25)), maximize=True))
    assert_same([layer.grad for layer in layers], grads)


@pytest.mark.parametrize("on_device", [False, True])
def test_every_layer_counts_its_own_steps(on_device):
    steps = (1.0, 40.0, 1000.0, 3.0)
    layers = make_layers([(5,), (3, 3), (2,), (9,)], steps=tuple(map(torch.tensor, steps)) if on_device else steps)
    # The oracle's corrections are float32, like the count.
    assert_agree(*both(layers, beta2=0.99, beta3=0.999), 1e-6 if on_device else None)


def test_a_count_on_the_device_is_that_in_a_number():
    numbers = make_layers([(5,), (9,)], steps=(1.0, 70.0))
    tensors = [layer._replace(step=torch.tensor(layer.step)) for layer in clone(numbers)]
    for layers in (numbers, tensors):
        step(layers, HYPER)
    assert_agree(tensors, numbers)


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_zeros(weight_decay):
    """A layer of norm 0 moves with ratio 1; a gradient of 0 moves nothing but the decay."""
    layers = make_layers([(40,), (CHUNK + 3,), (40,)])
    layers[0].param.zero_()
    for t in layers[1][1:2] + layers[1][3:6]:
        t.zero_()
    start = clone(layers)
    actual, expected = both(layers, weight_decay=weight_decay)
    assert_agree(actual, expected)
    assert layers[0].param.abs().max() > 0
    assert torch.equal(layers[1].param, start[1].param) == (weight_decay == 0.0)


@pytest.mark.parametrize("trust_ratio", [True, False])
@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16])
def test_a_skipped_step_leaves_every_bit(state, trust_ratio):
    layers = make_layers([(41,), (CHUNK + 3,)], torch.bfloat16, state=state, steps=(torch.tensor(0.0),))
    for layer in layers:
        layer.grad.fill_(float("nan"))
    start = clone(layers)
    hyper = dataclasses.replace(HYPER, trust_ratio=trust_ratio, stochastic_rounding=True)
    step(layers, hyper, Scales(grad=torch.tensor(float("nan")), proceed=torch.tensor(0.0)))
    for a, e in zip(written(layers), written(start), strict=True):
        assert_same(a, e)


def test_a_step_not_skipped_is_the_same_step():
    plain, going = (make_layers([(41,), (3, 5)]) for _ in range(2))
    step(plain, HYPER)
    step(going, HYPER, Scales(proceed=torch.tensor(1.0)))
    for a, e in zip(written(going), written(plain), strict=True):
        assert_same(a, e)


def test_a_step_is_repeatable_bit_for_bit():
    first, second = (make_layers([(1000,), (3, 5)], torch.float32) for _ in range(2))
    for layers in (first, second):
        step(layers, HYPER)
    for a, e in zip(written(first), written(second), strict=True):
        assert_same(a, e)


def naive_round(x: Tensor, seed: int, index: Tensor | None = None) -> Tensor:
    """The hash in Python's integers, for each element by itself."""
    rounded = []
    for i, value in enumerate(x.flatten().tolist()):
        h = ((i if index is None else int(index[i])) * 0x9E3779B1 + seed) % 2**32
        h ^= h >> 16
        h = h * 0x21F0AAAD % 2**32
        h ^= h >> 15
        h = h * 0x735A2D97 % 2**32
        h ^= h >> 15
        bits = torch.tensor(value).view(torch.int32).item() % 2**32
        if bits & 0x7F800000 != 0x7F800000:
            bits = (bits + (h & 0xFFFF)) & 0xFFFF0000
        rounded.append(bits - 2**32 if bits >= 2**31 else bits)
    return torch.tensor(rounded, dtype=torch.int32).view(torch.float32).bfloat16().view(x.shape)


@triton_package.jit
def round_all(x, out, seed, start, BLOCK: tl.constexpr):  # noqa: N803
    lanes = tl.arange(0, BLOCK)
    values = triton_kernels.round_to_bfloat16(tl.load(x + lanes), seed.to(tl.uint32), (start + lanes).to(tl.uint32))
    tl.store(out + lanes, values)


@pytest.mark.parametrize(("seed", "start"), [(0, 0), (12345, 7), (2**32 - 3, 2**32 - 100)])
def test_the_hash(seed, start):
    x = torch.randn(256) * torch.logspace(-40, 38, 256)
    x[:6] = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 3.4e38])
    x[6] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)  # a GPU's NaN: one more would be -0
    out = torch.empty_like(x)
    round_all[1,](x, out, seed, start, BLOCK=256)
    expected = naive_round(x, seed, torch.arange(start, start + 256)).float()
    assert torch.equal(out.nan_to_num(nan=1.0), expected.nan_to_num(nan=1.0))
    assert torch.equal(out.isnan(), expected.isnan())


@pytest.mark.parametrize("trust_ratio", [True, False])
@pytest.mark.parametrize("param", [torch.bfloat16, torch.float64])
def test_stochastic_rounding(param, trust_ratio):
    """The bits of the step in wide state, rounded: parameter and each state tensor by a seed of its own."""
    hyper = dataclasses.replace(HYPER, trust_ratio=trust_ratio, stochastic_rounding=True)
    low = make_layers([(CHUNK + 5,), (2, 3)], param, torch.float32, torch.bfloat16)
    wide = torch.promote_types(param, torch.float32)
    high = [layer._replace(**{k: getattr(layer, k).to(wide) for k in TENSORS}) for layer in clone(low)]
    for layers in (low, high):
        step(layers, hyper)
    for a, e in zip(low, high, strict=True):
        for i, name in enumerate(("param", "exp_avg", "exp_avg_sq", "explore_ema")):
            if getattr(a, name).dtype == torch.bfloat16:
                assert_same([getattr(a, name)], [naive_round(getattr(e, name).float(), (a.seed + i) % 2**32)])


@pytest.mark.parametrize(("dtype", "stochastic"), [(torch.bfloat16, False), (torch.float16, True)])
def test_what_is_not_rounded_by_chance_is_rounded_to_nearest(dtype, stochastic):
    low = make_layers([(50,)], dtype, torch.float32)
    high = [layer._replace(param=layer.param.float()) for layer in clone(low)]
    for layers in (low, high):
        step(layers, dataclasses.replace(HYPER, stochastic_rounding=stochastic))
    assert_same([low[0].param], [high[0].param.to(dtype)])
