"""Every function's formula, minima and valley are what they are said to be."""

from __future__ import annotations

import math
import re

import pytest
import torch
from scipy.optimize import minimize

from thalweg.landscape import FUNCTIONS, landscape

ALL = pytest.mark.parametrize("f", FUNCTIONS.values(), ids=FUNCTIONS)
VALLEYS = pytest.mark.parametrize("f", [f for f in FUNCTIONS.values() if f.valley], ids=lambda f: f.name)


def gradients(f, points):
    points = points.clone().requires_grad_()
    return torch.autograd.grad(f(points).sum(), points)[0]


def grid(f, n=41):
    x, y = (torch.linspace(low, high, n, dtype=torch.float64) for low, high in f.bounds)
    return torch.stack(torch.meshgrid(x, y, indexing="ij"), dim=-1).reshape(-1, 2)


@ALL
def test_values_and_gradients_at_the_minima(f):
    at = torch.tensor([(m.x, m.y) for m in f.minima], dtype=torch.float64)
    stated = torch.tensor([m.value for m in f.minima], dtype=torch.float64)
    torch.testing.assert_close(f(at), stated, rtol=0, atol=1e-12)
    assert gradients(f, at).abs().max() < 1e-10
    assert torch.linalg.eigvalsh(f.hessians(at)).min() > (-1e-9 if f.level else 1e-3)
    for x, y in at.tolist():
        assert f.bounds[0][0] <= x <= f.bounds[0][1]
        assert f.bounds[1][0] <= y <= f.bounds[1][1]


@ALL
def test_there_is_no_other_minimum_within_the_bounds(f):
    if f.level:
        assert f(grid(f)).min() >= 0.0
        return

    def value_and_gradient(z):
        point = torch.tensor(z, requires_grad=True)
        value = f(point)
        return value.item(), torch.autograd.grad(value, point)[0].numpy()

    found = set()
    for start in grid(f, 7).numpy():
        end = minimize(value_and_gradient, start, jac=True, method="BFGS", options={"gtol": 1e-9}).x
        inside = all(low < z < high for z, (low, high) in zip(end, f.bounds, strict=True))
        curved = torch.linalg.eigvalsh(f.hessians(torch.tensor(end)[None]))[0, 0] > 1e-3
        if inside and curved:
            found.add((round(end[0], 3), round(end[1], 3)))
    assert {(round(m.x, 3) + 0.0, round(m.y, 3) + 0.0) for m in f.minima} == {(x + 0.0, y + 0.0) for x, y in found}


@ALL
def test_the_formula_is_the_function(f):
    """The text, read as Python, is what is computed."""
    text = f.formula.split(", k =")[0]
    text = re.sub(r"²|³|⁴", lambda m: f"**{dict(zip('²³⁴', '234', strict=True))[m[0]]}", text)
    text = re.sub(r"(?<=[\dxy)])(?=[(xy])", "*", text)  # what stands side by side is multiplied
    text = text.replace("k*(x)", "k(x)").replace("h*(x)", "h(x)").replace("sin x", "math.sin(x)")
    text = re.sub(r"(?<=\*\*\d)(?=[xy(])", "*", text)

    def k(x):
        return 2 + 20 / (1 + math.exp(2 * x))

    def h(x):
        from scipy.integrate import quad

        return quad(lambda s: (s + 2) * (s + 1) * (s - 2) / 5, 2, x)[0]

    points = grid(f, 5)
    expected = [eval(text, {"math": math, "k": k, "h": h, "x": x, "y": y}) for x, y in points.tolist()]
    torch.testing.assert_close(f(points), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@VALLEYS
def test_the_valley_is_a_valley(f):
    points = f.valley.points(2001)
    tangent = torch.zeros_like(points)
    tangent[1:-1] = points[2:] - points[:-2]
    keep = tangent.norm(dim=1) > 1e-3 * f.size / 100  # a cusp has no tangent
    points, tangent = points[keep], tangent[keep]
    tangent = tangent / tangent.norm(dim=1, keepdim=True)
    across = torch.stack([-tangent[:, 1], tangent[:, 0]], dim=1)
    hessians = f.hessians(points)
    stiff, soft = (torch.einsum("ni,nij,nj->n", v, hessians, v) for v in (across, tangent))
    away = points.norm(dim=1) > 0.3 if f.name == "cardioid" else slice(None)  # at its cusp even across is flat
    assert stiff[away].min() > 0
    assert (stiff[away] > 2.0 * soft[away].abs()).float().mean() > 0.9
    # How far to the side the lowest point lies, as Newton has it, over the size of the picture.
    aside = ((gradients(f, points) * across).sum(1) / stiff)[away].abs()
    assert aside.max() < 0.03 * f.size
    if f.valley.closed:
        ends = f.valley.points(2)
        torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-12)
    for m in f.minima:
        assert (f.valley.points() - torch.tensor([m.x, m.y])).norm(dim=1).min() < 2e-3


def test_the_lower_minimum_is_further_along():
    for name in ("curved", "branching", "closed"):
        f = landscape(name)
        start = torch.tensor(f.start)
        near, far = sorted(f.minima, key=lambda m: (torch.tensor([m.x, m.y]) - start).norm())
        assert far.value < near.value - 0.1, name


def test_bad_input():
    with pytest.raises(ValueError, match=r"name must be 'cardioid' or .*, got 'sombrero'"):
        landscape("sombrero")
    with pytest.raises(ValueError, match=r"name must be .*, got 'rosenbroc'; did you mean 'rosenbrock'\?$"):
        landscape("rosenbroc")
    with pytest.raises(ValueError, match=r"points must have the shape \(\.\.\., 2\), got \(3,\)"):
        landscape("beale")(torch.zeros(3))
