"""Walks of optimizers on the functions with valleys, many at a time, and what they come to in numbers.

All walkers of one setting are the rows of one parameter. SGD and Adam step each entry by itself, and LAMB's norms are
taken over each row, so that each walks as if it were alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from thalweg.arguments import check_choice, check_exploration, check_integer, check_nonnegative, check_positive
from thalweg.landscape.estimates import Estimate, check_seed, mean_of
from thalweg.landscape.functions import Landscape, as_points
from thalweg.landscape.vectors import Coordinates
from thalweg.optim.adaptor import E
from thalweg.optim.alto import ALTO

BASES = ("sgd", "adam", "lamb")
NEAR = 0.05  # of the picture's diagonal: a minimum is visited from so near


@dataclass(frozen=True, slots=True)
class Walk:
    """The walks of one setting.

    Attributes:
        function: where.
        base: "sgd", "adam" or "lamb".
        alpha: α of E in front.
        beta: β1.
        lr: the learning rate.
        places: shape (steps + 1, walkers, 2), float64; from where a walker diverged on, NaN.
    """

    function: Landscape
    base: str
    alpha: float
    beta: float
    lr: float
    places: Tensor


@dataclass(frozen=True, slots=True)
class Numbers:
    """What the walks of one setting come to: means over walkers with standard errors.

    Attributes:
        diverged: the share of walkers that left for infinity; the rest is about the others.
        along: the length of the stretch of the valley's floor that was walked, from the nearest point of the floor at
            each step; NaN where there is no valley.
        lowest: the lowest loss visited.
        minima: how many of the function's minima were visited, from within a twentieth of the picture.
        found_lowest: the share of walkers that end nearest to a lowest minimum and within that distance of it.
        end_loss: the loss at the end.
        end_sharpness: the largest eigenvalue of the Hessian at the end.
        end_trace: its trace there.
    """

    diverged: float
    along: Estimate
    lowest: Estimate
    minima: Estimate
    found_lowest: Estimate
    end_loss: Estimate
    end_sharpness: Estimate
    end_trace: Estimate


def starts(function: Landscape, count: int, *, spread: float = 0.02, seed: int = 0) -> Tensor:
    """Places around the function's start, normal, ``spread`` of the picture's diagonal wide: shape (count, 2).

    The first is the start itself.
    """
    count = check_integer("count", count, 1)
    drawn = torch.randn(count, 2, generator=torch.Generator().manual_seed(check_seed(seed)), dtype=torch.float64)
    drawn[0] = 0.0
    return torch.tensor(function.start, dtype=torch.float64) + spread * function.size * drawn


def walk(
    function: Landscape,
    base: str,
    alpha: float,
    beta: float,
    *,
    lr: float,
    steps: int = 300,
    begin: Coordinates | None = None,
    noise: float = 0.0,
    seed: int = 0,
) -> Walk:
    """Walk from many places at a time.

    Args:
        function: where.
        base: "sgd" without momentum, "adam" or "lamb" with β = (0.9, 0.99), without weight decay.
        alpha: α of E in front; 0 is the base alone.
        beta: β1.
        lr: learning rate above 0.
        steps: at least 1.
        begin: where, shape (walkers, 2); None: twenty :func:`~thalweg.landscape.walks.starts`.
        noise: standard deviation of what is added to each entry of the gradient, different for each walker, the same
            for each optimizer.
        seed: of the noise.

    Raises:
        ValueError: an argument outside its range.
    """
    check_choice("base", base, BASES)
    check_exploration(alpha, beta)
    check_positive("lr", lr)
    steps = check_integer("steps", steps, 1)
    check_nonnegative("noise", noise)
    at = starts(function, 20) if begin is None else as_points(begin)
    if at.dim() != 2 or at.shape[1] != 2:
        raise ValueError(f"begin must have the shape (walkers, 2), got {tuple(at.shape)}")
    place = nn.Parameter(at.double().clone())
    optimizer = _optimizer(place, base, alpha, beta, lr)
    generator = torch.Generator().manual_seed(check_seed(seed))
    places = [place.detach().clone()]
    for _ in range(steps):
        (place.grad,) = torch.autograd.grad(function(place).sum(), place)
        if noise:
            place.grad += noise * torch.randn(place.shape, generator=generator, dtype=torch.float64)
        optimizer.step()
        places.append(place.detach().clone())
    return Walk(function, base, alpha, beta, lr, _until_divergence(torch.stack(places), function))


def numbers(walked: Walk) -> Numbers:
    """What the walks come to.

    Raises:
        ValueError: there are less than two walkers.
    """
    function, places = walked.function, walked.places
    check_integer("walkers", places.shape[1], 2)
    stays = places[-1].isfinite().all(dim=-1)
    kept = places[:, stays]
    if kept.shape[1] < 2:
        none = Estimate(math.nan, math.nan, kept.shape[1])
        return Numbers(1.0 - stays.double().mean().item(), *[none] * 7)
    values = function(kept)
    at = torch.tensor([(m.x, m.y) for m in function.minima], dtype=torch.float64)
    away = torch.cdist(kept.reshape(-1, 2), at).view(*kept.shape[:2], len(at))
    near = NEAR * function.size
    best = torch.tensor([m.value for m in function.minima], dtype=torch.float64)
    lowest = (best <= best.min() + 1e-12)[away[-1].argmin(1)] & (away[-1].min(1).values < near)
    if function.level:  # all of the floor is a minimum
        lowest = values[-1] < 1e-3
    curvature = torch.linalg.eigvalsh(function.hessians(kept[-1]))
    return Numbers(
        diverged=1.0 - stays.double().mean().item(),
        along=mean_of(_stretch(function, kept)),
        lowest=mean_of(values.min(0).values),
        minima=mean_of((away.min(0).values < near).double().sum(1)),
        found_lowest=mean_of(lowest.double()),
        end_loss=mean_of(values[-1]),
        end_sharpness=mean_of(curvature[:, -1]),
        end_trace=mean_of(curvature.sum(1)),
    )


def _stretch(function: Landscape, places: Tensor) -> Tensor:
    """The length of floor between the furthest points reached, for each walker."""
    if function.valley is None:
        return torch.full((places.shape[1],), math.nan, dtype=torch.float64)
    floor = function.valley.points(1001)
    lengths = (floor[1:] - floor[:-1]).norm(dim=1)
    reached = torch.cat([torch.zeros(1, dtype=torch.float64), lengths.cumsum(0)])
    s = torch.stack([reached[torch.cdist(each, floor).argmin(1)] for each in places])
    if function.valley.closed:  # the short way round at each step
        whole = float(reached[-1])
        moves = s[1:] - s[:-1]
        moves = moves - whole * (moves / whole).round()
        s = torch.cat([s[:1], s[:1] + moves.cumsum(0)])
        return (s.max(0).values - s.min(0).values).clamp(max=whole)
    return s.max(0).values - s.min(0).values


def _until_divergence(places: Tensor, function: Landscape) -> Tensor:
    """NaN from where a walker is ten pictures away."""
    middle = torch.tensor([sum(bounds) / 2.0 for bounds in function.bounds], dtype=torch.float64)
    gone = ~((places - middle).norm(dim=-1) < 10.0 * function.size)
    ever = gone.cummax(dim=0).values
    return places.masked_fill(ever[..., None], math.nan)


def _optimizer(place: nn.Parameter, base: str, alpha: float, beta: float, lr: float) -> Optimizer:
    if base == "lamb":
        return ALTO(
            [place], lr, alpha=alpha, beta=beta, weight_decay=0.0, norm_dims=(-1,), nonfinite="propagate", foreach=True
        )
    if base == "adam":
        return E(torch.optim.Adam([place], lr, betas=(0.9, 0.99), foreach=True), alpha=alpha, beta=beta)
    return E(torch.optim.SGD([place], lr), alpha=alpha, beta=beta)


def default_lr(function: Landscape, base: str) -> float:
    """A learning rate at which a base walks the function without E.

    Of SGD 1/λ, half of its stability limit, for the largest curvature λ on the way: at the start, the minima and along
    the valley. Of Adam and LAMB what makes steps of about 0.5 % of the picture at the start: Adam's have the length η
    in each coordinate, LAMB's η times the distance from the origin.
    """
    check_choice("base", base, BASES)
    begin = torch.tensor([function.start], dtype=torch.float64)
    if base == "sgd":
        minima = torch.tensor([(m.x, m.y) for m in function.minima], dtype=torch.float64)
        floor = function.valley.points(101) if function.valley is not None else minima
        on_the_way = torch.cat([begin, minima, floor])
        return 1.0 / float(torch.linalg.eigvalsh(function.hessians(on_the_way))[:, -1].max())
    length = 0.005 * function.size
    return length if base == "adam" else length / max(float(begin.norm()), 0.1)
