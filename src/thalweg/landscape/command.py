"""``thalweg landscape``: walks on the functions with valleys, and the flatness of a trained network of the lab's."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thalweg import files
from thalweg.arguments import did_you_mean
from thalweg.lab import contenders, tasks, terminal
from thalweg.lab.engine import data, schedules
from thalweg.lab.errors import UserError
from thalweg.landscape import plots, walks
from thalweg.landscape.batches import batch_sharpness, batch_sharpness_limits, gradient_noise
from thalweg.landscape.density import spectral_density
from thalweg.landscape.derivatives import check_params, value
from thalweg.landscape.eigen import hessian_eigenpairs
from thalweg.landscape.estimates import Estimate
from thalweg.landscape.functions import FUNCTIONS, Landscape, landscape
from thalweg.landscape.layers import curvature_by_layer
from thalweg.landscape.perturbed import mean_increase, squared_gradient_norm, worst_case
from thalweg.landscape.preconditioned import preconditioned_sharpness
from thalweg.landscape.samples import FixedSample
from thalweg.landscape.scales import filter_scale
from thalweg.landscape.trace import hessian_trace

DEFAULT = ("cardioid", "curved", "branching", "closed")
RADIUS = 0.05
"""Of the worst case and of the mean increase, in filter-normalised coordinates: 5 % of each weight's filter's size."""


def valleys(
    *,
    functions: Sequence[str],
    bases: Sequence[str],
    alphas: Sequence[float],
    beta: float,
    steps: int,
    walkers: int,
    noise: float,
    animate: str,
    seed: int,
    out: Path,
) -> None:
    """Walk, draw, count."""
    terminal.interruptible()
    console = terminal.console()
    try:
        chosen = [landscape(name) for name in dict.fromkeys(functions)]
        for base in bases:
            walks.default_lr(FUNCTIONS["closed"], base)
        if not bases or not alphas:
            raise ValueError("--bases and --alphas must name at least one each")
        if animate not in (*bases, "none"):
            raise ValueError(f"--animate must be {' or '.join(map(repr, (*bases, 'none')))}, got {animate!r}")
        started = time.perf_counter()
        found = []
        for function in chosen:
            here = _walks(function, bases, alphas, beta, steps, walkers, noise, seed)
            found += [(walk, walks.numbers(walk)) for walk in here]
            written = [plots.walks_picture([here], out / f"{function.name}.png")]
            if animate != "none":
                moving = [walk for walk in here if walk.base == animate]
                written.append(plots.animation(moving, out / f"{function.name}-{animate}.gif", frames=40))
            _print_walks(console, found[-len(here) :])
            console.print(f"  {', '.join(str(path) for path in written)}", soft_wrap=True)
    except ValueError as error:
        raise UserError(str(error)) from None
    record = {
        "kind": "valleys",
        "command": terminal.command(),
        "noise": noise,
        "seed": seed,
        "seconds": time.perf_counter() - started,
        "rows": walks.table(found),
    }
    console.print(f"record: {_write(out / 'valleys.json', record)}", soft_wrap=True)


def _walks(
    function: Landscape,
    bases: Sequence[str],
    alphas: Sequence[float],
    beta: float,
    steps: int,
    walkers: int,
    noise: float,
    seed: int,
) -> list[walks.Walk]:
    begin = walks.starts(function, walkers, seed=seed)
    slope = torch.func.grad(function)(begin[0]).norm().item()
    return [
        walks.walk(
            function, base, alpha, beta, lr=walks.default_lr(function, base), steps=steps, begin=begin,
            noise=noise * slope, seed=seed,
        )
        for base in bases
        for alpha in alphas
    ]  # fmt: skip


def _print_walks(console: Any, found: Sequence[tuple[walks.Walk, walks.Numbers]]) -> None:
    from rich.table import Table

    headings = (
        "base", "α", "along the valley", "lowest loss", "minima", "at the lowest", "end: loss", "sharpness"
    )  # fmt: skip
    rows = [
        (
            walk.base + (f" ({n.diverged:.0%} diverged)" if n.diverged else ""), f"{walk.alpha:g}", _brief(n.along),
            _brief(n.lowest), _brief(n.minima), _brief(n.found_lowest), _brief(n.end_loss), _brief(n.end_sharpness),
        )
        for walk, n in found
    ]  # fmt: skip
    console.print(f"{found[0][0].function.name}: mean ± standard error over walkers")
    for columns in terminal.in_parts(headings, rows, 2, console.width):
        table = Table()
        for at, wide in columns:
            table.add_column(headings[at], justify="right" if at else "left", width=wide)
        for row in rows:
            table.add_row(*(row[at] for at, _ in columns))
        console.print(table)


def _brief(one: Estimate) -> str:
    return f"{one.value:.3g}±{one.standard_error:.1g}"


def flatness(
    *,
    optimizer: str,
    given: dict[str, float],
    batch_size: int,
    steps: int,
    schedule: str,
    eigenvalues: int,
    seed: int,
    out: Path,
) -> None:
    """Train on digits, and measure."""
    terminal.interruptible()
    console = terminal.console()
    if schedule not in schedules.SCHEDULES:
        raise UserError(f"--schedule must be {' or '.join(schedules.SCHEDULES)}, got {schedule!r}")
    chosen = contenders.contender(optimizer)
    settings = contenders.defaults(chosen, batch_size)
    if unknown := sorted(set(given) - set(settings)):
        near = "".join(did_you_mean(name, settings) for name in unknown)
        raise UserError(f"--set: {optimizer} has no {', '.join(unknown)}; it has {', '.join(settings)}{near}")
    settings |= given
    started = time.perf_counter()
    task, splits = tasks.load("digits")
    torch.manual_seed(seed)
    model = task.model()
    try:
        trained = chosen.build(model, settings)
        _train(model, task, splits.train, trained, batch_size, steps, schedule, seed)
        seconds = time.perf_counter() - started
        record = _measured(model, task, splits, trained, settings, batch_size, eigenvalues, seed)
        picture = _density(model, task, splits, optimizer, seed, out / "density.png")
    except ValueError as error:
        raise UserError(str(error)) from None
    record = {
        "kind": "flatness", "command": terminal.command(), "optimizer": optimizer, "settings": settings,
        "batch_size": batch_size, "steps": steps, "schedule": schedule, "seed": seed, "training_seconds": seconds,
        "seconds": time.perf_counter() - started, **record,
    }  # fmt: skip
    for name, one in record["measured"].items():
        console.print(f"{name:>34}  {_said(one)}")
    console.print("by layer: entries, largest eigenvalue, trace")
    for name, layer in record["layers"].items():
        console.print(f"{name:>34}  {layer['entries']:>6} {layer['top']:10.4g}   {_said(layer['trace'])}")
    console.print(f"record: {_write(out / 'flatness.json', record)}; picture: {picture}", soft_wrap=True)


def _train(
    model: nn.Module, task: Any, rows: Any, optimizer: Any, batch_size: int, steps: int, schedule: str, seed: int
) -> None:
    rates = [group["lr"] for group in optimizer.param_groups]
    model.train()
    for step, batch in zip(range(steps), data.batches(seed, 0, len(rows), batch_size), strict=False):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedules.factor(schedule, step, steps, 0.05)
        inputs, targets = rows.__getitems__(batch)
        optimizer.zero_grad()
        loss = task.loss(model(inputs), targets)
        if not math.isfinite(loss.item()):
            raise UserError(f"the loss is {loss.item():g} at step {step}: take a smaller lr")
        loss.backward()
        optimizer.step()


def _sample(model: nn.Module, task: Any, rows: Any, size: int, seed: int) -> FixedSample:
    """All rows, in one fixed order, in batches of one size but for the last."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return FixedSample(model, task.loss, [rows.__getitems__(part.tolist()) for part in torch.split(order, size)])


def _measured(
    model: nn.Module,
    task: Any,
    splits: Any,
    optimizer: Any,
    settings: dict[str, float],
    batch_size: int,
    k: int,
    seed: int,
) -> dict[str, Any]:
    sample = _sample(model, task, splits.train, 240, seed)
    whole = _sample(model, task, splits.train, len(splits.train), seed)  # one batch, whose graph is kept
    small = _sample(model, task, splits.train, min(batch_size, 32), seed)
    params: list[Tensor] = check_params(model.parameters())
    with torch.no_grad():
        accuracy = task.combine(task.score(model.eval()(splits.test.inputs), splits.test.targets))
    pairs = hessian_eigenpairs(sample, params, k)
    scale = filter_scale(params)
    noise = gradient_noise(small, params)
    found: dict[str, Any] = {
        "training loss": value(sample),
        "test accuracy, %": accuracy,
        "squared gradient norm": squared_gradient_norm(sample, params),
    }
    for at in range(k):
        found[f"eigenvalue {at + 1}"] = _with_error(float(pairs.values[at]), float(pairs.standard_errors[at]))
    for name, one in (
        ("trace", hessian_trace(whole, params)),
        ("trace, filter-normalised", hessian_trace(whole, params, scale=scale)),
        (f"mean increase, {RADIUS:g} of each filter", mean_increase(whole, params, RADIUS, scale=scale)),
        (f"batch sharpness, batches of {small.sizes[0]}", batch_sharpness(small, params).mean),
    ):
        found[name] = _with_error(one.value, one.standard_error)
    found["eigenvalue 1, filter-normalised"] = float(hessian_eigenpairs(whole, params, scale=scale).values[0])
    radius = RADIUS * math.sqrt(scale.numel())
    worst = worst_case(whole, params, radius, scale=scale)
    found[f"worst increase, {RADIUS:g} of each filter"] = worst.increase
    found["gradient noise scale, examples"] = noise.scale
    try:
        own = preconditioned_sharpness(sample, optimizer)
    except ValueError as error:
        found["as the optimizer sees it"] = f"unknown: {error}"
    else:
        found["ηλ as the optimizer sees it"] = _with_error(
            float(own.eta_lambda[0]), float(own.pairs.standard_errors[0])
        )
        found["its stability limit"] = own.limit
        if type(optimizer) is torch.optim.SGD and own.lr is not None:
            both = batch_sharpness_limits(own.lr, settings["momentum"], summed=False)
            found["batch sharpness settles at, small"] = both.small_batches
            found["batch sharpness settles at, large"] = both.large_batches
    layers = {
        name: {
            "entries": one.entries,
            "top": one.top,
            "trace": _with_error(one.trace.value, one.trace.standard_error),
        }
        for name, one in curvature_by_layer(whole, model, products=12, tolerance=1e-3).items()
    }
    return {"examples": sample.examples, "sample": "all training images", "measured": found, "layers": layers}


def _density(model: nn.Module, task: Any, splits: Any, name: str, seed: int, path: Path) -> Path:
    sample = _sample(model, task, splits.train, len(splits.train), seed)
    found = spectral_density(sample, check_params(model.parameters()), steps=40, vectors=4)
    return plots.density_picture({name: found}, path, title="digits: density of the Hessian's eigenvalues")


def _with_error(number: float, error: float) -> dict[str, float]:
    return {"value": number, "standard_error": error}


def _said(one: Any) -> str:
    if isinstance(one, dict):
        return f"{one['value']:.4g} ± {one['standard_error']:.2g}"
    return f"{one:.4g}" if isinstance(one, float) else str(one)


def _write(path: Path, record: dict[str, Any]) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    return path
