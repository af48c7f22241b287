"""Slices of quadratics in closed form, and barriers of known double wells."""

from __future__ import annotations

import pytest
import torch
from closed_forms import quadratic, small_network
from torch import nn
from torch.nn import functional as F

from thalweg.landscape import (
    bezier_path,
    elastic_band,
    filter_normalised_directions,
    hessian_eigenpairs,
    linear_path,
    plane_through,
    slice_1d,
    slice_2d,
)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


class Well:
    """f of two numbers, as the loss of a parameter."""

    def __init__(self, f):
        self.f = f
        self.p = nn.Parameter(double(0.3, 0.2))

    def __call__(self):
        return self.f(*self.p)


def curved_well(height, tilt=0.0):
    """Minima (-1, 0) and (1, 0) joined by the valley y = 1 - x², a quadratic Bézier curve; its pass is at (0, 1)."""
    return Well(lambda x, y: 30 * (y - 1 + x * x) ** 2 + height * (x * x - 1) ** 2 + tilt * (x + 1) / 2)


A, B = double(-1.0, 0.0), double(1.0, 0.0)


def test_a_slice_along_an_eigenvector_is_a_parabola():
    loss = quadratic()
    pairs = hessian_eigenpairs(loss, loss.params, 2)
    x = torch.linspace(-1, 1, 11)
    found = slice_1d(loss, loss.params, pairs.vectors[0], x)
    torch.testing.assert_close(found.losses, 0.5 * 9.0 * x.double() ** 2)
    y = torch.linspace(0, 2, 5)
    plane = slice_2d(loss, loss.params, (pairs.vectors[0], pairs.vectors[1]), x, y)
    expected = 4.5 * x.double()[:, None] ** 2 + 3.75 * y.double() ** 2
    torch.testing.assert_close(plane.losses, expected)
    assert plane.losses.shape == (11, 5)


def test_directions_have_the_norms_of_the_filters():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.GroupNorm(1, 3), nn.Flatten(), nn.Linear(3, 4)).double()
    params = list(model.parameters())
    first, second = filter_normalised_directions(params, 2)
    for direction in (first, second):
        at = 0
        for p in params:
            piece = direction[at : at + p.numel()].view(p.shape)
            at += p.numel()
            if p.dim() > 1:
                torch.testing.assert_close(piece.flatten(1).norm(dim=1), p.detach().flatten(1).norm(dim=1))
            else:
                assert piece.eq(0).all()
    assert abs(F.cosine_similarity(first, second, dim=0)) < 0.5
    assert torch.equal(filter_normalised_directions(params, seed=0)[0], first)


def test_the_plane_holds_its_three_solutions():
    loss = quadratic(linear=1.0)
    drawn = torch.randn(3, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = plane_through(loss, loss.params, list(drawn), points=5, margin=0.0)
    sides = [(drawn[a] - drawn[b]).norm() for a, b in ((0, 1), (0, 2), (1, 2))]
    assert found.points is not None
    for (a, b), side in zip(((0, 1), (0, 2), (1, 2)), sides, strict=True):
        assert (found.points[a] - found.points[b]).norm().item() == pytest.approx(side.item())
    # a quadratic on a plane is one of two variables, which six of its values determine
    x, y = (one.reshape(-1) for one in torch.meshgrid(found.x, found.y, indexing="ij"))
    design = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y], dim=1)
    solution = torch.linalg.lstsq(design, found.losses.reshape(-1)[:, None]).solution[:, 0]
    for (px, py), vector in zip(found.points.tolist(), drawn, strict=True):
        here = double(1, px, py, px * px, px * py, py * py) @ solution
        assert here.item() == pytest.approx(loss.place(vector)().item(), rel=1e-9)


def test_the_margin_is_a_share_of_the_extent_on_either_side():
    loss = quadratic()
    solutions = torch.zeros(3, 64, dtype=torch.float64)
    solutions[0, 0], solutions[1, 0], solutions[2, :2] = 1.0, 3.0, double(0.0, 4.0)
    found = plane_through(loss, loss.params, solutions, points=3, margin=0.5)
    torch.testing.assert_close(found.points, torch.tensor([[0.0, 0.0], [2.0, 0.0], [-1.0, 4.0]]).double())
    torch.testing.assert_close(found.x, double(-2.5, 0.5, 3.5))
    torch.testing.assert_close(found.y, double(-2.0, 2.0, 6.0))


def test_barriers_of_a_straight_double_well():
    well = Well(lambda x, y: 0.7 * (x * x - 1) ** 2 + 5 * y * y)
    found = linear_path(well, [well.p], A, B, points=21)
    assert (found.barrier, found.climb) == (pytest.approx(0.7), pytest.approx(0.7))
    torch.testing.assert_close(found.losses, 0.7 * ((2 * found.t - 1) ** 2 - 1) ** 2)
    tilted = Well(lambda x, y: 0.7 * (x * x - 1) ** 2 + 0.2 * (x + 1) / 2 + 5 * y * y)
    found = linear_path(tilted, [tilted.p], A, B, points=21)
    assert found.barrier == pytest.approx(0.7)
    assert found.climb == pytest.approx(0.7 + 0.1 - 0.2, abs=0.02)


def test_within_a_convex_basin_there_is_no_barrier():
    bowl = Well(lambda x, y: x * x + 3 * y * y)
    assert linear_path(bowl, [bowl.p], A, double(2.0, 1.0)).barrier == 0.0


def test_a_bezier_curve_finds_the_curved_valley():
    well = curved_well(height=0.0)
    straight = linear_path(well, [well.p], A, B)
    assert straight.barrier == pytest.approx(30.0)
    found = bezier_path(well, [well.p], A, B, steps=600, lr=0.05)
    assert found.barrier < 1e-2
    torch.testing.assert_close(found.places[12], double(0.0, 1.0), rtol=0, atol=0.02)


@pytest.mark.parametrize("tilt", [0.0, 0.3])
def test_an_elastic_band_finds_the_pass(tilt):
    well = curved_well(height=0.8, tilt=tilt)
    found = elastic_band(well, [well.p], A, B, images=7, steps=300, lr=0.04, points=9)
    # along y = 1 - x²: 0.8 (x²-1)² + tilt (x+1)/2, whose maximum is the pass
    x = torch.linspace(-1, 1, 20001, dtype=torch.float64)
    exact = (0.8 * (x * x - 1) ** 2 + tilt * (x + 1) / 2).max().item()
    assert found.losses.max().item() == pytest.approx(exact, rel=2e-3)
    assert found.climb == pytest.approx(exact - tilt, rel=5e-3)


def test_mueller_and_brown():
    """A standard of transition paths: minima and saddles in Müller and Brown 1979."""
    amplitude, a = double(-200, -100, -170, 15), double(-1, -1, -6.5, 0.7)
    b, c = double(0, 0, 11, 0.6), double(-10, -10, -6.5, 0.7)
    x0, y0 = double(1, 0, -0.5, -1), double(0, 0.5, 1.5, 1)

    def f(x, y):
        return (amplitude * (a * (x - x0) ** 2 + b * (x - x0) * (y - y0) + c * (y - y0) ** 2).exp()).sum()

    well = Well(f)
    start, end = double(-0.558224, 1.441726), double(-0.050011, 0.466694)
    found = elastic_band(well, [well.p], start, end, images=7, steps=400, lr=0.02, points=9)
    assert found.losses[0].item() == pytest.approx(-146.6995, abs=1e-3)
    assert found.losses[-1].item() == pytest.approx(-80.7678, abs=1e-3)
    assert found.losses.max().item() == pytest.approx(-40.6648, abs=0.05)


def test_two_networks_and_their_parameters_come_back():
    model, x, y = small_network()
    params = list(model.parameters())
    before = [p.detach().clone() for p in params]
    start = nn.utils.parameters_to_vector(params).detach()
    end = start + torch.randn(len(start), dtype=torch.float64)

    def loss():
        return F.cross_entropy(model(x), y)

    line = linear_path(loss, params, start, end, points=5)
    curve = bezier_path(loss, params, start, end, steps=20, points=5)
    band = elastic_band(loss, params, start, end, images=3, steps=3, points=5)
    for path in (line, curve, band):
        assert path.losses[0].item() == pytest.approx(loss().item())
        assert path.losses[-1].item() == pytest.approx(line.losses[-1].item())
        assert torch.equal(path.places[0], start)
    assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True))


P = nn.Parameter(torch.ones(3))
ONE, TWO = torch.ones(3), torch.tensor([0.0, 1.0, 2.0])


@pytest.mark.parametrize(
    ("says", "call"),
    [
        ("direction must be a vector of 3 finite numbers", lambda f: slice_1d(f, [P], torch.ones(2), torch.ones(1))),
        ("x must be a vector of finite coordinates", lambda f: slice_1d(f, [P], ONE, torch.ones(1, 1))),
        ("directions must be two vectors, got '1 of them'", lambda f: slice_2d(f, [P], [ONE], torch.ones(1))),
        ("solutions must be three vectors that are not on one line", lambda f: plane_through(f, [P], [ONE, TWO, ONE])),
        ("solutions must be three vectors that", lambda f: plane_through(f, [P], [ONE, ONE, TWO])),
        ("solutions must be three vectors, got '2 of them'", lambda f: plane_through(f, [P], [ONE, TWO])),
        ("points must be an integer of at least 3, got 2", lambda f: linear_path(f, [P], ONE, TWO, points=2)),
        ("end must be another solution", lambda f: linear_path(f, [P], ONE, ONE)),
        ("start must be a vector of 3", lambda f: linear_path(f, [P], torch.ones(2), ONE)),
        ("steps must be an integer of at least 1, got 0", lambda f: bezier_path(f, [P], ONE, TWO, steps=0)),
        ("lr must be a number in", lambda f: bezier_path(f, [P], ONE, TWO, lr=0.0)),
        ("images must be an integer of at least 1, got 0", lambda f: elastic_band(f, [P], ONE, TWO, images=0)),
        ("count must be an integer of at least 1", lambda f: filter_normalised_directions([P], 0)),
    ],
)
def test_bad_input(says, call):
    with pytest.raises(ValueError, match=says):
        call(lambda: P.square().sum())
