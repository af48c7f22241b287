"""A step in two halves, with sums over ranks in between: two ranks with half of each layer make the step of one."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from kernel_layers import HYPER, TENSORS, clone, in_8_bits, make_layers
from support import assert_near, assert_same, pairwise

from thalweg.kernels import Scales, cpp, eightbit, foreach, single, triton
from thalweg.kernels.addresses import with_memory
from thalweg.kernels.eightbit import is_8bit, quantize, read
from thalweg.kernels.norms import count_rows, norm_of, parts_of, squares
from thalweg.kernels.pieces import Scratch
from thalweg.sharding.places import Place

BACKENDS = {"single": single, "foreach": foreach, "cpp": cpp, "triton": triton}
STATE = TENSORS[2:]
SHAPES = [(6, 700), (16, 512), (2, 2)]
FEW, FEW_IN_8_BITS = [(2, 270), (4, 40), (2, 2)], [(6, 512)]
"""For Triton's interpreter, which is slow."""
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 8e-3}
CASES = pairwise(
    (name, param, kind, late, dims, axis)
    for name, param, kind, late, dims, axis in itertools.product(
        BACKENDS, TOLERANCE, ["wide", "bfloat16", "8bit"], [False, True], [None, (1,)], [0, 1]
    )
    # The rows of one rank are not those of the other; Triton leaves shards of several runs, if rounded, to others.
    if not (dims and axis == 0) and not (name == "triton" and axis == 1 and (kind != "wide" or param == torch.bfloat16))
)


@pytest.mark.parametrize(("name", "param", "kind", "late", "dims", "axis"), CASES, ids=str)
def test_two_halves_on_two_ranks_are_a_step(name, param, kind, late, dims, axis, monkeypatch):
    backend, hyper = BACKENDS[name], dataclasses.replace(HYPER, stochastic_rounding=param == torch.bfloat16)
    shapes, in_few_bits = (FEW, FEW_IN_8_BITS) if name == "triton" else (SHAPES, SHAPES[1:2])
    layers = make_layers(in_few_bits if kind == "8bit" else shapes, param, norm_dims=dims)
    if kind == "8bit":
        monkeypatch.setattr(triton, "CHUNK", 1024)  # whole runs
        monkeypatch.setattr(eightbit, "LEAST", 1024)
        layers = in_8_bits(layers)
    elif kind == "bfloat16":
        layers = [x._replace(**{state: getattr(x, state).bfloat16() for state in STATE}) for x in layers]
    whole = [with_memory(layer, hyper) for layer in clone(layers)]
    rounded = kind != "wide" or param == torch.bfloat16
    ranks = [shards(layers, hyper, axis, rank, rounded=rounded) for rank in range(2)]
    if backend is not single:
        assert all(map(backend.takes, (*whole, *ranks[0][0], *ranks[1][0])))
    backend.step(whole, hyper, Scales(), Scratch())

    hyper = dataclasses.replace(hyper, late=late)
    before = [clone(mine) for mine, _ in ranks]
    begun = [backend.begin(mine, hyper, Scales(), Scratch(), sums) for mine, sums in ranks]
    for (mine, _), old in zip(ranks, before, strict=True):
        unchanged = TENSORS if late else ["param"]
        for name in unchanged:
            assert_same([wide(layer, name) for layer in mine], [wide(layer, name) for layer in old])
    total = ranks[0][1] + ranks[1][1]
    for half in begun:
        backend.finish(half, hyper, Scales(), Scratch(), total)
    for name in ("param", *STATE):
        got = [torch.cat([wide(a, name), wide(b, name)], axis) for a, b in zip(ranks[0][0], ranks[1][0], strict=True)]
        expected = [wide(layer, name) for layer in whole]
        if name == "param" or kind == "wide":
            assert_near(got, expected, TOLERANCE[param])
        else:
            assert_same(got, expected)


def shards(layers, hyper, axis, rank, *, rounded):
    """Half of each layer along an axis, and the sums to which its squares go."""
    slot, mine = 0, []
    for layer in layers:
        rows, columns = layer.param.shape
        run = columns // (1 + axis) * (rows // 2 if axis == 0 else 1)
        place = Place(rank * run, run, 2 * run)
        halves = {name: half(getattr(layer, name), axis, rank) for name in TENSORS}
        mine.append(with_memory(layer._replace(**halves, place=place if rounded else None, slot=slot), hyper))
        slot += 2 * count_rows(mine[-1].param.shape, layer.norm_dims) * parts_of(layer.param.dtype)
    return mine, torch.zeros(slot, dtype=torch.float64)


def half(t, axis, rank):
    part = (read(t) if is_8bit(t) else t).chunk(2, axis)[rank].clone(memory_format=torch.contiguous_format)
    return quantize(part, signed=t.signed) if is_8bit(t) else part


def wide(layer, name):
    t = getattr(layer, name)
    return read(t) if is_8bit(t) else t


@pytest.mark.parametrize("size", [1e-300, 1e-30, 1.0, 1e30, 1e300])
def test_squares_of_any_size_are_added_up(size):
    one = torch.tensor([3.0 * size, 0.0], dtype=torch.float64)
    other = torch.tensor([4.0 * size, 1.0], dtype=torch.float64)
    expected = torch.tensor([5.0 * size, 1.0], dtype=torch.float64)
    torch.testing.assert_close(norm_of(squares(one, 3) + squares(other, 3)), expected, rtol=1e-15, atol=0.0)
