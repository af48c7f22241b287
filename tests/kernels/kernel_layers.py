"""Layers in the middle of a training, stepped by the kernels and by the oracle."""

from __future__ import annotations

import dataclasses
from unittest import mock

import pytest
import torch
from support import assert_near
from torch import Tensor

from thalweg.kernels import Hyper, Layer, Scales, Wanted, dispatch, eightbit, single, triton
from thalweg.kernels.pieces import Scratch
from thalweg.kernels.rounding import noise

CHUNK, BLOCK = 64, 32
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
TENSORS = ("param", "grad", "exp_avg", "exp_avg_sq", "explore_ema")
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6}
HYPER = Hyper(
    lr=0.1,
    alpha=-5.0,
    beta1=0.9,
    beta2=0.8,
    beta3=0.95,
    eps=1e-6,
    trust_eps=1e-3,
    weight_decay=0.01,
    trust_ratio=True,
)


def make_layers(
    shapes, param=torch.float64, grad=None, state=None, *, explore=True, steps=(3.0,), norm_dims=None, seed=0
):
    """In the middle of a training: moments of gradients like this one."""
    generator = torch.Generator().manual_seed(seed)
    grad = grad or param
    state = state or torch.promote_types(param, torch.float32)

    def random(shape, dtype):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return [
        Layer(
            param=random(shape, param),
            grad=random(shape, grad),
            step=steps[i % len(steps)],
            exp_avg=random(shape, state) * 0.3,
            exp_avg_sq=random(shape, state).square() * 0.3,
            explore_ema=random(shape, state) * 0.3 if explore else None,
            norm_dims=norm_dims,
            seed=0xFFFFFFF0 + 7 * i,
        )
        for i, shape in enumerate(shapes)
    ]


def in_8_bits(layers, names=TENSORS[2:]):
    """The layers with these buffers so stored; they have whole runs of 256 elements."""

    def stored(t, name):
        q = eightbit.zeros(t, signed=name != "exp_avg_sq")
        eightbit.write(q, t, noise(t, 0, 0))
        return q

    return [layer._replace(**{name: stored(getattr(layer, name), name) for name in names}) for layer in layers]


def clone(layers):
    return [Layer(*(x.clone() if isinstance(x, Tensor) else x for x in layer)) for layer in layers]


def written(layers):
    """What a step may write to, by parameter, first moments, ..."""
    columns = zip(*((a.param, a.exp_avg, a.exp_avg_sq, a.explore_ema) for a in layers), strict=True)
    return [[x for x in column if x is not None] for column in columns]


def step(layers, hyper=HYPER, scales=None):
    """By the kernels, but for what the planner leaves to others."""
    with mock.patch.object(dispatch, "choose", return_value=triton):
        for backend, some in dispatch.assign(Wanted(), layers, hyper):
            backend.step(some, hyper, scales or Scales(), Scratch())


def both(layers, scales=None, **changes):
    """The layers after a step of the kernels, and after one of the oracle."""
    hyper, scales = dataclasses.replace(HYPER, **changes), scales or Scales()
    expected = clone(layers)
    single.step(expected, hyper, scales, Scratch())
    step(layers, hyper, scales)
    return layers, expected


def assert_agree(actual, expected, tolerance=None):
    """Wide tensors to a tolerance, 16-bit ones to a unit in the last place, 8-bit ones almost everywhere."""
    for a, e in zip(written(actual), written(expected), strict=True):
        for x, y in zip(a, e, strict=True):
            if eightbit.is_8bit(x):
                assert_near([x.scale], [y.scale], 1e-6)
                assert (x.codes != y.codes).double().mean() <= 2e-3  # where float32 differs in its last place
                continue
            if x.dtype.itemsize > 2:
                if x.numel():
                    assert_near([x], [y], tolerance or TOLERANCE[x.dtype])
                continue
            ulps = (x.view(torch.int16).int() - y.view(torch.int16).int()).abs()
            assert ulps.max() <= 1
            assert (ulps > 0).double().mean() <= 0.05


def kernels_only(monkeypatch, layers, **changes):
    """As :func:`both`, but nothing may be left to the oracle."""
    expected = clone(layers)
    single.step(expected, dataclasses.replace(HYPER, **changes), Scales(), Scratch())
    with monkeypatch.context() as patch:
        patch.setattr(single, "step", lambda *args: pytest.fail("left to another backend"))
        step(layers, dataclasses.replace(HYPER, **changes))
    return layers, expected


class Launches:
    """What is launched: (name, grid, keywords)."""

    def __init__(self, monkeypatch):
        self.log = []
        for name in ("sweep", "adapt"):
            monkeypatch.setattr(triton, name, self.Kernel(getattr(triton, name), self.log))

    class Kernel:
        def __init__(self, kernel, log):
            self.kernel, self.log = kernel, log

        def __getitem__(self, grid):
            def launch(*args, **kwargs):
                self.log.append((self.kernel.__name__, grid, kwargs))
                return self.kernel[grid](*args, **kwargs)

            return launch
