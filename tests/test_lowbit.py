"""8-bit blocks: what is written, and what is read again."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import Tensor
from torchao.optim.subclass_8bit import OptimState8bit

from thalweg import ALTO
from thalweg.kernels import eightbit
from thalweg.kernels.rounding import noise

SIGNED = pytest.mark.parametrize("signed", [True, False])


def numbers(signed: bool, count: int = 1 << 14) -> Tensor:
    """Over many decades within each block."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, generator=generator) * 10.0 ** (8 * torch.rand(count, generator=generator) - 6)
    return x if signed else x.square()


def written(x: Tensor, signed: bool, seed: int = 0) -> OptimState8bit:
    q = eightbit.zeros(x, signed=signed)
    eightbit.write(q, x, noise(x, seed, 0))
    return q


@SIGNED
def test_each_number_becomes_one_of_the_two_fractions_about_it_of_the_largest_of_its_block(signed):
    x = numbers(signed)
    q = written(x, signed)
    blocks = x.view(-1, 256)
    assert torch.equal(q.scale, blocks.gather(1, blocks.abs().argmax(1, keepdim=True)).squeeze(1))
    fractions = (blocks / q.scale.unsqueeze(1)).view(-1)
    below = (torch.searchsorted(q.qmap, fractions, right=True) - 1).clamp(0, 254)
    codes = q.codes.long()
    lost = ~torch.tensor(signed) & (below == 0) & (fractions > 0)
    assert lost.any() != signed
    assert (codes[lost] == 1).all()
    assert ((codes == below) | (codes == below + 1)).all()
    assert (codes == below).any()
    assert (codes[~lost] == below[~lost] + 1).any()


@SIGNED
def test_rounding_keeps_the_mean(signed):
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    x = x if signed else x.square()
    draws = torch.stack([eightbit.read(written(x, signed, seed)) for seed in range(0, 8000, 4)])
    q = written(x, signed)
    fractions = (x.view(-1, 256) / q.scale.unsqueeze(1)).view(-1)
    inside = (fractions > q.qmap[0 if signed else 1]) & (fractions < 1.0)  # others have one neighbour to go to
    below = (torch.searchsorted(q.qmap, fractions, right=True) - 1).clamp(0, 254)
    step = q.scale.abs().repeat_interleave(256) * (q.qmap[below + 1] - q.qmap[below])
    # Each mean of 2000 draws is within five standard errors, at most half a step each, of x.
    assert ((draws.mean(0) - x).abs() <= 5 * 0.5 * step / 2000**0.5)[inside].all()
    assert inside.double().mean() > 0.99


@SIGNED
@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_read_is_what_torchao_reads_and_writes_back_bit_for_bit(signed, seed):
    q = written(numbers(signed, 1 << 18), signed)
    assert isinstance(q, OptimState8bit)
    assert torch.equal(eightbit.read(q), q.dequantize())
    again = written(eightbit.read(q), signed, seed)
    assert torch.equal(again.codes, q.codes)
    assert torch.equal(again.scale, q.scale)


@SIGNED
def test_precision_does_not_hang_on_the_magnitude(signed):
    x = numbers(signed)
    for scale in (2.0**-80, 2.0**40):
        assert torch.equal(written(x * scale, signed).codes, written(x, signed).codes)


def test_a_mean_of_squares_is_not_rounded_to_zero_and_zero_stays():
    x = torch.zeros(4096)
    x[0], x[1] = 1.0, 1e-30
    v = eightbit.read(written(x, signed=False))
    assert (v[0], v[2:].any()) == (1.0, False)
    assert v[1] > 0


@SIGNED
def test_zeros_are_zeros_written(signed):
    q = eightbit.zeros(torch.ones(64, 64), signed=signed)
    assert not eightbit.read(q).any()
    again = written(torch.zeros(64, 64), signed)
    assert torch.equal(q.codes, again.codes)
    assert torch.equal(q.scale, again.scale)


@pytest.mark.parametrize(
    ("shape", "eight_bits"), [((4096,), True), ((64, 80), True), ((3840,), False), ((4097,), False), ((), False)]
)
def test_small_and_odd_sizes_stay_in_float32(shape, eight_bits):
    z = eightbit.zeros(torch.ones(shape), signed=True)
    assert eightbit.is_8bit(z) == eight_bits
    assert (z.shape, z.dtype) == (shape, torch.float32)


def test_a_copy_is_apart_and_a_piece_is_not():
    q = written(numbers(True), signed=True)
    before = eightbit.read(q)
    twins = q.clone(), copy.deepcopy(q)
    first, *_ = q.view(-1).split(1024)
    eightbit.write(first, torch.ones(1024), noise(torch.ones(1024), 0, 0))
    assert torch.equal(eightbit.read(q), torch.cat((torch.ones(1024), before[1024:])))
    for twin in twins:
        assert torch.equal(eightbit.read(twin), before)
    for x, size in ((q.view(-1), 100), (q, 3)):  # within blocks: what was written, wide and apart
        first, *_ = x.split(size)
        assert torch.equal(first, eightbit.read(x)[:size])
        assert not eightbit.is_8bit(first)


def test_without_torchao_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    eightbit.torchao.cache_clear()
    with pytest.raises(
        ImportError, match=r"^state_dtype='8bit' needs torchao>=0\.17, pip install 'thalweg\[lowbit\]' \("
    ):
        ALTO([torch.nn.Parameter(torch.ones(3))], state_dtype={"exp_avg": "8bit"})
    monkeypatch.undo()
    eightbit.torchao()


def test_a_torchao_whose_tensors_have_no_dtype_is_named(monkeypatch):
    def zeros(shape, signed=True, block_size=256, device=None):
        """That of torchao 0.16."""

    monkeypatch.setattr(eightbit.torchao().OptimState8bit, "zeros", zeros)
    eightbit.torchao.cache_clear()
    with pytest.raises(ImportError, match=r"needs torchao>=0\.17, .* \(the one installed is older than 0\.17\)$"):
        ALTO([torch.nn.Parameter(torch.ones(3))], state_dtype="8bit")
    monkeypatch.undo()
    eightbit.torchao()
