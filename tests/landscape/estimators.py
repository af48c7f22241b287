"""Every public estimator of a loss, called in the smallest way, as a vector of what it found."""

from __future__ import annotations

import inspect

import torch

import thalweg.landscape as landscape
from thalweg.landscape import Instruments
from thalweg.zeroth_order import spsa


def vector(params):
    return torch.cat([p.detach().reshape(-1) for p in params])


def drawn(params, seed):
    theta = vector(params)
    return 0.3 * torch.randn(theta.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(theta)


def numbers(*values):
    return torch.cat([torch.as_tensor(x, dtype=torch.float64).detach().reshape(-1) for x in values])


def ends(params):
    return {"start": vector(params), "end": vector(params) + drawn(params, 0)}


def preconditioned(loss, params):
    optimizer = torch.optim.Adam(params, lr=0.01)
    for p in params:
        optimizer.state[p] = {"step": torch.tensor(1.0), "exp_avg": torch.ones_like(p), "exp_avg_sq": p.detach() ** 2}
    return numbers(landscape.preconditioned_sharpness(loss, optimizer).eta_lambda)


def instruments(loss, params):
    watched = Instruments(torch.optim.SGD(params, lr=0.1), loss=loss)
    return numbers(watched.measure()["sharpness"])


def by_spsa(loss, params):
    before = [p.grad for p in params]
    for p in params:
        p.grad = None
    mean = spsa(loss, params, seed=3, eps=0.1, samples=2)
    found = numbers(mean, *[p.grad for p in params])
    for p, g in zip(params, before, strict=True):
        p.grad = g
    return found


def by_layer(loss, params):
    found = landscape.curvature_by_layer(loss, {"all": params}, products=6)["all"]
    return numbers(found.top, found.trace.value)


def noise(sample, params):
    found = landscape.gradient_noise(sample, params)
    return numbers(found.trace, found.squared_norm)


def density(loss, params):
    found = landscape.spectral_density(loss, params, steps=5, vectors=2)
    return numbers(found.nodes, found.weights)


def worst(loss, params):
    found = landscape.worst_case(loss, params, 0.3, steps=3)
    return numbers(found.increase, found.step)


def eigenpairs(loss, params):
    found = landscape.hessian_eigenpairs(loss, params, 2, tolerance=1e-2)
    return numbers(found.values, found.vectors.abs(), found.residuals)


OF_A_LOSS = {
    "bezier_path": lambda f, p: numbers(landscape.bezier_path(f, p, **ends(p), steps=3, points=5).losses),
    "curvature_by_layer": by_layer,
    "elastic_band": lambda f, p: numbers(landscape.elastic_band(f, p, **ends(p), images=3, steps=4, points=5).losses),
    "hessian_eigenpairs": eigenpairs,
    "hessian_eigenvalues": lambda f, p: numbers(landscape.hessian_eigenvalues(f, p)),
    "hessian_trace": lambda f, p: numbers(landscape.hessian_trace(f, p, 6).value),
    "linear_path": lambda f, p: numbers(landscape.linear_path(f, p, **ends(p), points=5).losses),
    "mean_increase": lambda f, p: numbers(landscape.mean_increase(f, p, 0.1, pairs=3).value),
    "plane_through": lambda f, p: numbers(
        landscape.plane_through(f, p, [vector(p), drawn(p, 1), drawn(p, 2)], points=3).losses
    ),
    "preconditioned_sharpness": preconditioned,
    "slice_1d": lambda f, p: numbers(landscape.slice_1d(f, p, drawn(p, 3), [-1.0, 0.0, 1.0]).losses),
    "slice_2d": lambda f, p: numbers(landscape.slice_2d(f, p, (drawn(p, 3), drawn(p, 4)), [-1.0, 0.0, 1.0]).losses),
    "spectral_density": density,
    "squared_gradient_norm": lambda f, p: numbers(landscape.squared_gradient_norm(f, p)),
    "worst_case": worst,
    "Instruments": instruments,
    "spsa": by_spsa,
}
OF_A_SAMPLE = {
    "batch_sharpness": lambda f, p: numbers(landscape.batch_sharpness(f, p).mean.value),
    "gradient_noise": noise,
}
ESTIMATORS = {**OF_A_LOSS, **OF_A_SAMPLE}


def that_take_a_loss():
    """The names of everything public that evaluates a loss."""
    found = {"spsa"}
    for name in landscape.__all__:
        one = getattr(landscape, name)
        if callable(one) and {"loss", "sample"} & inspect.signature(one).parameters.keys():
            found.add(name)
    return found - {"FixedSample"}
