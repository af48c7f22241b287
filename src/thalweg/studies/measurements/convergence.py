"""The convergence theorem of the slides, measured: regret where the loss is convex, gradient norms where it is not.

Convex: multinomial logistic regression on digits with a ridge, so that there is one optimum, which Newton's method
finds; batches of all examples in a new order each epoch, η_k = η/√k. Not convex: a tanh network on the same digits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scipy.special import logsumexp, softmax
from sklearn.linear_model import LogisticRegression

from thalweg import equations as eq
from thalweg.lab import tasks
from thalweg.studies.measurements.networks import Dense, cross_entropy, is_matrix, optimizer
from thalweg.studies.pages.numbers import log_spaced
from thalweg.studies.pages.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor
    from torch.optim import Optimizer


BETA3 = {"adam": 0.999, "lamb": 0.99}
EPS = {"adam": 1e-8, "lamb": 1e-6}


class Optimum(NamedTuple):
    """The minimum of the ridge regression: weights and biases, the loss, the largest entry of the gradient."""

    weights: np.ndarray
    biases: np.ndarray
    loss: float
    gradient: float


def wanted(options: dict[str, Any]) -> list[Settings]:
    """Each optimizer at each η where the loss is convex, and at its own where it is not.

    Args:
        options: ``settings`` (pairs [α, β1]), ``seeds`` (of which the first chooses η), ``ridge``, ``batch_size``,
            ``convex_steps`` and ``eta`` (a list for each base), ``steps``, ``width``, ``network_ridge`` (a list),
            ``constant`` and ``decaying`` (η of each base).
    """
    shared = {"seeds": options["seeds"], "batch": options["batch_size"]}
    pairs = [(float(alpha), float(beta)) for alpha, beta in options["settings"]]
    found: list[Settings] = [
        {"loss": "convex", "base": base, "alpha": alpha, "beta": beta, "eta": float(eta), "ridge": options["ridge"],
         "steps": options["convex_steps"], **shared}
        for base, etas in options["eta"].items() for alpha, beta in pairs for eta in etas
    ]  # fmt: skip
    return found + [
        {"loss": "network", "base": base, "alpha": alpha, "beta": beta, "eta": float(eta), "decays": decays,
         "full": full, "ridge": float(strength), "steps": options["steps"], "width": options["width"], **shared}
        for decays, known in ((False, options["constant"]), (True, options["decaying"]))
        for base, eta in known.items() for alpha, beta in pairs for full in (True, False)
        for strength in options["network_ridge"]
    ]  # fmt: skip


def measure(settings: Settings) -> dict[str, Any]:
    """One setting, all seeds."""
    return regret(settings) if settings["loss"] == "convex" else gradients(settings)


def regret(settings: Settings) -> dict[str, Any]:
    """R(T) at some T, of each seed, and how far the theorem's condition holds.

    ``regret`` is R(T) = Σ_{k≤T} ℓ_k(θ_k) - ℓ_k(θ*), ``at`` those T. ``increased`` is the share of coordinates and steps
    at which the quantity of the theorem did not fall, ``late`` that of the second half of the steps, ``always`` the
    share of coordinates at which it never fell; each of v as the theorem has it and, ``corrected``, of v̂.
    """
    x, labels = digits()
    best = optimum(x.numpy(), labels.numpy(), settings["ridge"])
    star = [torch.from_numpy(best.weights)[None], torch.from_numpy(best.biases)[None, None]]
    model = Dense((x.shape[1], 10), range(settings["seeds"]), dtype=torch.float64)
    params = list(model.parameters())
    stepped = optimizer(settings["base"], params, settings["eta"], settings["alpha"], settings["beta"], decayed=False)
    conditions = {"as written": Condition(settings, params), "corrected": Condition(settings, params, corrected=True)}
    total, found = torch.zeros(settings["seeds"], dtype=torch.float64), []
    points = log_spaced(1, settings["steps"], 60)
    for k, batch in enumerate(batches(len(labels), settings["batch"], range(settings["seeds"]), settings["steps"]), 1):
        inputs, targets = x[batch], labels[batch]
        losses = cross_entropy(model(inputs), targets) + ridge(params, settings["ridge"])
        with torch.no_grad():
            outputs = torch.baddbmm(star[1].expand(len(batch), -1, -1), inputs, star[0].expand(len(batch), -1, -1))
            total += losses - cross_entropy(outputs, targets) - ridge(star, settings["ridge"])
        if k in points:
            found.append(total.tolist())
        for group in stepped.param_groups:
            group["lr"] = settings["eta"] / k**0.5
        stepped.zero_grad()
        torch.autograd.backward(losses.sum())
        before = [p.detach().clone() for p in params]
        stepped.step()
        for one in conditions.values():
            one.see(k, before, stepped)
    return {
        "at": points,
        "regret": [list(column) for column in zip(*found, strict=True)],
        "optimum": {"loss": best.loss, "gradient": best.gradient},
        "condition": {name: one.found() for name, one in conditions.items()},
    }


class Condition:
    """Whether √k (√v_{k,i} + ε1)(‖r_k‖ + ε2 φ(‖θ_k‖)) / φ(‖θ_k‖) increases in k, in each coordinate.

    Without a trust ratio (Adam, and the biases of LAMB) the quantity is √k (√v_{k,i} + ε1), as in Adam's theorem.
    """

    def __init__(self, settings: Settings, params: Sequence[Tensor], *, corrected: bool = False) -> None:
        self.base, self.steps, self.corrected = settings["base"], settings["steps"], corrected
        self.params = params
        self.last: list[Tensor] = []
        self.never = [torch.ones_like(p, dtype=torch.bool) for p in params]
        self.increased, self.late, self.seen, self.seen_late = 0, 0, 0, 0

    def see(self, k: int, before: Sequence[Tensor], stepped: Optimizer) -> None:
        """Take note of step k, from where it started and the state that it left."""
        now = [self.quantity(k, theta, stepped.state[p]) for theta, p in zip(before, self.params, strict=True)]
        for at, (new, old) in enumerate(zip(now, self.last, strict=False)):
            rose = new >= old
            self.never[at] &= rose
            count, size = int(rose.sum()), rose.numel()
            self.increased += count
            self.seen += size
            if k > self.steps // 2:
                self.late += count
                self.seen_late += size
        self.last = now

    def quantity(self, k: int, theta: Tensor, state: dict[str, Any]) -> Tensor:
        """It, for the entries of one layer stacked over seeds."""
        v, correction = state["exp_avg_sq"], eq.bias_correction(BETA3[self.base], k)
        found: Tensor = k**0.5 * ((v / correction if self.corrected else v).sqrt() + EPS[self.base])
        if self.base == "lamb" and is_matrix(theta):
            first = eq.bias_correction(0.9, k)
            r = eq.direction(state["exp_avg"], v, correction2=first, correction3=correction, eps=EPS[self.base])
            norms = (eq.norm(each, (1, 2)) for each in (theta, r))
            found = found / eq.trust_ratio(*norms, eps=1e-6, clip=None)
        return found

    def found(self) -> dict[str, float]:
        """The shares."""
        entries = sum(each.numel() for each in self.never)
        return {
            "increased": self.increased / max(1, self.seen),
            "late": self.late / max(1, self.seen_late),
            "always": sum(int(each.sum()) for each in self.never) / entries,
        }


def gradients(settings: Settings) -> dict[str, Any]:
    """The running mean of ‖∇f(θ_k)‖² at some T, of each seed; with batches from every fifth step.

    f is the cross-entropy of all examples plus a ridge. Without one the network fits every example, so that in the end
    the gradients of batches vanish with that of f; with one they do not.
    """
    x, labels = digits()
    x = x.float()
    model = Dense((x.shape[1], settings["width"], 10), range(settings["seeds"]))
    params = list(model.parameters())

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(model(inputs), targets) + ridge(params, settings["ridge"])

    stepped = optimizer(settings["base"], params, settings["eta"], settings["alpha"], settings["beta"], decayed=False)
    total, seen, at, found = torch.zeros(settings["seeds"], dtype=torch.float64), 0, [], []
    points = set(log_spaced(1, settings["steps"], 60))
    order = batches(len(labels), settings["batch"], range(settings["seeds"]), settings["steps"])
    for k, batch in enumerate(order, 1):
        stepped.zero_grad()
        if settings["full"] or k % 5 == 1:
            torch.autograd.backward(loss(x[None], labels[None]).sum())
            total += sum(p.grad.double().square().flatten(1).sum(1) for p in params if p.grad is not None)
            seen += 1
        if not settings["full"]:
            stepped.zero_grad()
            torch.autograd.backward(loss(x[batch], labels[batch]).sum())
        if settings["decays"]:
            for group in stepped.param_groups:
                group["lr"] = settings["eta"] / k**0.5
        stepped.step()
        if k in points:
            at.append(k)
            found.append((total / seen).tolist())
    with torch.no_grad():
        losses = loss(x[None], labels[None]).tolist()
    return {"at": at, "mean": [list(column) for column in zip(*found, strict=True)], "loss": losses}


def digits() -> tuple[Tensor, Tensor]:
    """The lab's training digits, (examples, 64) in float64, and their classes."""
    train = tasks.load("digits")[1].train
    return train.inputs.flatten(1).double(), train.targets


def ridge(params: Sequence[Tensor], strength: float) -> Tensor:
    """(strength / 2) ‖θ‖² of each seed."""
    return strength / 2.0 * torch.stack([p.square().flatten(1).sum(1) for p in params]).sum(0)


def batches(examples: int, size: int, seeds: Sequence[int], steps: int) -> Iterator[Tensor]:
    """Indices (seeds, size) of each step: every epoch a new order of each seed, cut into whole batches."""
    generators = [torch.Generator().manual_seed(1000 + seed) for seed in seeds]
    order, at = torch.empty(len(seeds), 0, dtype=torch.long), 0
    for _ in range(steps):
        if at + size > order.shape[1]:
            order, at = torch.stack([torch.randperm(examples, generator=g) for g in generators]), 0
        yield order[:, at : at + size]
        at += size


def optimum(x: np.ndarray, labels: np.ndarray, strength: float) -> Optimum:
    """The minimum of the mean cross-entropy of softmax(xW + b) plus (strength / 2)(‖W‖² + ‖b‖²), by Newton's method.

    Raises:
        RuntimeError: the largest entry of the gradient stays above 1e-10.
    """
    n = len(x)
    inputs = np.concatenate([x, np.ones((n, 1))], axis=1)  # the bias is penalised too
    model = LogisticRegression(C=1.0 / (strength * n), fit_intercept=False, solver="newton-cholesky", tol=1e-13)
    theta = model.fit(inputs, labels).coef_.T
    logits = inputs @ theta
    hot = np.eye(theta.shape[1])[labels]
    loss = (logsumexp(logits, axis=1) - (hot * logits).sum(1)).mean() + strength / 2.0 * (theta**2).sum()
    gradient = inputs.T @ (softmax(logits, axis=1) - hot) / n + strength * theta
    if (left := float(np.abs(gradient).max())) > 1e-10:
        raise RuntimeError(f"the optimum of the regression was not found to 1e-10: a gradient of {left:.2g} is left")
    return Optimum(theta[:-1], theta[-1], float(loss), left)
