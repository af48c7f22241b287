"""Stacked seeds against networks that train alone, and their curvature against dense Hessians."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import thalweg
from thalweg.landscape import Swing, preconditioned_sharpness
from thalweg.studies.measurements.networks import (
    Dense,
    TopEigenvalues,
    cross_entropy,
    forward,
    optimizer,
    squared_error,
)
from thalweg.studies.pages.settings import MOMENTUM

X = torch.randn(30, 5, generator=torch.Generator().manual_seed(3))
Y = torch.randint(4, (30,), generator=torch.Generator().manual_seed(4))


def alone(stacked, at):
    """The same network of one seed, of torch's own modules."""
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
    with torch.no_grad():
        for p, own in zip(model.parameters(), stacked.of(at), strict=True):
            p.copy_(own[0].T if p.dim() == 2 else own[0, 0])
    return model


def plain(base, model, lr, alpha, beta):
    if base == "lamb":
        groups = [
            {"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": 1e-4},
            {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0, "trust_ratio": False},
        ]
        return thalweg.ALTO(groups, lr, betas=(0.9, 0.99), alpha=alpha, beta=beta)
    made = {
        "gd": lambda: torch.optim.SGD(model.parameters(), lr),
        "momentum": lambda: torch.optim.SGD(model.parameters(), lr / 10.0, momentum=0.9),
        "rmsprop": lambda: torch.optim.RMSprop(model.parameters(), lr),
        "adagrad": lambda: torch.optim.Adagrad(model.parameters(), lr),
        "adam": lambda: torch.optim.Adam(model.parameters(), lr),
        "adamw": lambda: torch.optim.AdamW(model.parameters(), lr, weight_decay=0.01),
    }[base]()
    return thalweg.E(made, alpha=alpha, beta=beta) if alpha else made


@pytest.mark.parametrize("base", [base for base in MOMENTUM if base != "spsa"])
@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (-1.0, 0.5)])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_stacked_seeds_train_as_if_alone(base, alpha, beta):
    stacked = Dense((5, 6, 4), [0, 1])
    single = [alone(stacked, at) for at in range(2)]
    params = list(stacked.parameters())
    ours = optimizer(base, params, 0.02, alpha, beta)
    theirs = [plain(base, model, 0.02, alpha, beta) for model in single]
    swings = [] if base == "adagrad" else [Swing(each, 4) for each in (ours, *theirs)]
    for _ in range(10):
        ours.zero_grad()
        cross_entropy(stacked(X[None]), Y[None]).sum().backward()
        ours.step()
        for model, other in zip(single, theirs, strict=True):
            other.zero_grad()
            F.cross_entropy(model(X), Y).backward()
            other.step()
    tops = TopEigenvalues(lambda own: cross_entropy(forward(own, X[None], torch.tanh), Y[None]), tolerance=1e-6)
    for at, (model, other) in enumerate(zip(single, theirs, strict=True)):
        torch.testing.assert_close(stacked(X[None])[at], model(X), rtol=1e-4, atol=1e-5)
        if base != "adagrad":  # whose preconditioner the landscape does not know
            seen = preconditioned_sharpness(lambda model=model: F.cross_entropy(model(X), Y), other)
            assert tops.preconditioned(params, ours, at) == pytest.approx(float(seen.eta_lambda[0]), rel=1e-3)
            over = swings[1 + at].sharpness(lambda model=model: F.cross_entropy(model(X), Y))
            assert tops.over(swings[0], params, at) == pytest.approx(float(over.eta_lambda[0]), rel=1e-3)


@pytest.mark.parametrize("loss", [cross_entropy, squared_error])
def test_the_top_of_a_seed_is_that_of_its_dense_hessian(loss):
    stacked = Dense((5, 6, 4), [7, 8], dtype=torch.float64)
    x = X.double()
    tops = TopEigenvalues(lambda own: loss(forward(own, x[None], torch.tanh), Y[None]), tolerance=1e-8)
    for at in range(2):
        model = alone(copy.deepcopy(stacked), at).double()
        names = list(dict(model.named_parameters()))
        shapes = [p.shape for p in model.parameters()]
        sizes = [p.numel() for p in model.parameters()]

        def of(vector, model=model, names=names, shapes=shapes, sizes=sizes):
            pieces = [v.view(s) for v, s in zip(vector.split(sizes), shapes, strict=True)]
            out = torch.func.functional_call(model, dict(zip(names, pieces, strict=True)), (x,))
            if loss is cross_entropy:
                return F.cross_entropy(out, Y)
            return (out - F.one_hot(Y, 4)).square().sum() / len(Y) / 2.0

        start = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        dense = torch.linalg.eigvalsh(torch.autograd.functional.hessian(of, start))
        for _ in range(2):  # from a random vector, then from the eigenvector
            assert tops(list(stacked.parameters()), at) == pytest.approx(float(dense[-1]), rel=1e-6)


def test_an_unknown_base_is_named():
    with pytest.raises(
        ValueError, match=r"base must be one of gd, momentum, rmsprop, adagrad, adam, adamw, lamb, got 'sgd'"
    ):
        optimizer("sgd", [torch.zeros(1, 2, 2)], 0.1, 0.0, 0.0)
