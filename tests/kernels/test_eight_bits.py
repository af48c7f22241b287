"""State in 8 bits in the Triton kernels: what the other backends read and write."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
import triton as triton_package
import triton.language as tl
from kernel_layers import HYPER, TENSORS, assert_agree, both, clone, in_8_bits, kernels_only, make_layers, step, written
from support import assert_near, assert_same, clone_params, make_grads, make_params, pairwise, take_steps

from thalweg import ALTO, Lamb
from thalweg.kernels import Scales, Wanted, eightbit, single, triton
from thalweg.kernels.dispatch import choose
from thalweg.kernels.rounding import noise
from thalweg.kernels.triton import kernels as triton_kernels

CHUNK = 1024
SHAPES = [(9, 256), (256, 4), (5,)]  # the first has part of a block over; the last stays in float32
STATE = TENSORS[2:]
SUBSETS = [names for n in (1, 2, 3) for names in itertools.combinations(STATE, n)]


@pytest.fixture(autouse=True)
def whole_runs(monkeypatch, small_chunks):
    monkeypatch.setattr(triton, "CHUNK", CHUNK)
    monkeypatch.setattr(eightbit, "LEAST", CHUNK)  # the interpreter is slow


def layers_in_8_bits(names=STATE, shapes=SHAPES, rest=torch.float32, param=torch.float32, **options):
    layers = make_layers(shapes, param, **options)
    if rest != torch.float32:
        others = [name for name in STATE if name not in names]
        layers = [x._replace(**{name: getattr(x, name).to(rest) for name in others}) for x in layers]
    large = [x.param.numel() >= eightbit.LEAST for x in layers]
    names = [name for name in names if options.get("explore", True) or name != "explore_ema"]
    return [in_8_bits([x], names)[0] if eight else x for x, eight in zip(layers, large, strict=True)]


@pytest.mark.parametrize(
    ("names", "rest", "trust_ratio"),
    pairwise(itertools.product(SUBSETS, [torch.float32, torch.bfloat16], [True, False])),
    ids=str,
)
def test_every_buffer_may_be_in_8_bits(names, rest, trust_ratio, monkeypatch):
    assert_agree(*kernels_only(monkeypatch, layers_in_8_bits(names, rest=rest), trust_ratio=trust_ratio), 1e-6)


@pytest.mark.parametrize("param", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("explore", [True, False])
def test_whatever_the_parameter(param, explore, monkeypatch):
    assert_agree(*kernels_only(monkeypatch, layers_in_8_bits(param=param, explore=explore)), 1e-6)


def test_slices_of_whole_runs_have_norms_of_their_own(monkeypatch):
    layers = layers_in_8_bits(shapes=[(3, 3, 512), (2, 5, 256)], norm_dims=(1, 2))
    layers[0].param[0] *= 10
    assert_agree(*kernels_only(monkeypatch, layers), 1e-6)


@pytest.mark.parametrize("case", ["slices across runs", "permuted", "permuted codes"])
def test_what_has_its_runs_elsewhere_is_left_to_single(case, monkeypatch):
    (layer,) = layers_in_8_bits(shapes=[(64, 128)], norm_dims=(1,) if case == "slices across runs" else None)
    if "permuted" in case:
        layer = layer._replace(**{k: getattr(layer, k).t().contiguous().t() for k in TENSORS[:2]})
    if case == "permuted codes":
        for name in STATE:
            getattr(layer, name).codes = getattr(layer, name).codes.t().contiguous().t()
    left = []
    original = single.step
    monkeypatch.setattr(single, "step", lambda layers, *rest: (left.append(len(layers)), original(layers, *rest)))
    assert_agree(*both([layer]))
    assert left == [1, 1]


def test_nothing_is_written_beyond_a_layer():
    """Whose last block has runs that are not there."""
    (layer,) = layers_in_8_bits(shapes=SHAPES[:1])
    whole = []
    for name in STATE:
        q = getattr(layer, name)
        whole += [torch.full((t.numel() + 256,), 77, dtype=t.dtype) for t in parts(q)]
        q.codes, q.scale = (
            w[: t.numel()].copy_(t.flatten()).view(t.shape) for w, t in zip(whole[-2:], parts(q), strict=True)
        )
    step([layer], HYPER)
    assert all((w[-256:] == 77).all() for w in whole)


@pytest.mark.parametrize("trust_ratio", [True, False])
def test_a_skipped_step_leaves_every_bit(trust_ratio):
    layers = layers_in_8_bits(steps=(torch.tensor(0.0),))
    for layer in layers:
        layer.grad.fill_(float("nan"))
    start = clone(layers)
    hyper = dataclasses.replace(HYPER, trust_ratio=trust_ratio)
    step(layers, hyper, Scales(grad=torch.tensor(float("nan")), proceed=torch.tensor(0.0)))
    for a, e in zip(written(layers), written(start), strict=True):
        assert_same([part for x in a for part in parts(x)], [part for x in e for part in parts(x)])


@pytest.mark.parametrize("state_dtype", ["8bit", {"exp_avg": "8bit", "exp_avg_sq": torch.bfloat16}], ids=str)
@pytest.mark.parametrize("cls", [ALTO, Lamb])
def test_whole_steps_are_those_of_single(cls, state_dtype, monkeypatch):
    """From zeros, one of them skipped."""
    assert choose(Wanted(fused=True), torch.device("cuda")) is triton
    params = make_params(SHAPES, torch.float32)
    others = clone_params(params)
    grads = make_grads(params, 4)
    grads[2][1][5] = float("nan")
    expected = cls(others, lr=0.01, foreach=False, state_dtype=state_dtype)
    take_steps(expected, others, grads)
    monkeypatch.setattr("thalweg.kernels.dispatch.choose", lambda *_: triton)
    monkeypatch.setattr(single, "step", lambda *args: pytest.fail("left to another backend"))
    optimizer = cls(params, lr=0.01, state_dtype=state_dtype)
    take_steps(optimizer, params, grads)
    assert_near(params, others, 1e-4)  # where a number is rounded the other way
    assert eightbit.is_8bit(optimizer.state[params[0]]["exp_avg"])
    for p, other in zip(params, others, strict=True):
        for name, t in optimizer.state[p].items():
            if eightbit.is_8bit(t):
                assert (t.codes != expected.state[other][name].codes).double().mean() <= 2e-3


def parts(x):
    return (x.codes, x.scale) if eightbit.is_8bit(x) else (x,)


@triton_package.jit
def encode_all(x, codes, scales, seed, start, signed, SIGNED: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    lanes = tl.arange(0, BLOCK)
    index = (start + lanes).to(tl.uint32)
    code, scale = triton_kernels.encode(tl.load(x + lanes), seed.to(tl.uint32), index, signed, SIGNED, BLOCK)
    tl.store(codes + lanes, code)
    tl.store(scales + tl.arange(0, BLOCK // 256), scale)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(("seed", "start"), [(0, 0), (2**32 - 3, 2**32 - 512)])
def test_what_is_written_is_what_torch_operations_write_bit_for_bit(signed, seed, start):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 256, generator=generator) * 10.0 ** (8 * torch.rand(16, 256, generator=generator) - 6)
    x = x if signed else x.square()
    x[1], x[2, :2], x[3, 7], x[4, 7], x[5, 1:] = 0.0, 1e6, torch.nan, torch.inf, 1e-12
    if signed:
        x[2, 0], x[6] = -1e6, -x[6].abs()
    expected = eightbit.zeros(x, signed=signed)
    eightbit.write(expected, x, noise(x, seed, start))
    codes, scales = torch.empty_like(expected.codes), torch.empty_like(expected.scale)
    encode_all[1,](x, codes, scales, seed, start, eightbit.tables(signed, x.device), SIGNED=signed, BLOCK=4096)
    torch.testing.assert_close(scales, expected.scale, rtol=0.0, atol=0.0, equal_nan=True)
    assert_same([codes], [expected.codes])
