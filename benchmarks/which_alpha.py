"""Which α and β1, for which base, batch and budget? Test accuracy on small images, at the best learning rate of each.

    python benchmarks/which_alpha.py --machine epyc-9005-2-cores

Every cell is a base, α and β1, and a regime (batch size and steps). Learning rates are a factor 3 apart; a cell starts
with three, goes on beyond the end that is best, and takes the one with the best mean validation accuracy over two
seeds. With it fresh seeds are trained, which alone see the test set. Intervals are of 95 % (Student's t); differences
to the base alone are paired, as seeds share initial weights and batches. Without Fashion-MNIST the images are
scikit-learn's digits. Half an hour on one core, five minutes with --data digits; complete cells in the record are not
run again: interrupt, and give the same command to go on.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from small_images import Images, load
from stacked import Networks, interval
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, AdamW, RMSprop

from thalweg import ALTO, E
from thalweg.bench.environment import environment
from thalweg.zeroth_order import spsa

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.optim import Optimizer

HIDDEN = 64
TUNING = (0, 1)
FIRST_FRESH = 100
FACTOR = 3.0


class Setting(NamedTuple):
    """Of E; α = 0 is the base alone."""

    alpha: float
    beta: float


ALONE = Setting(0.0, 0.0)
SETTINGS = (ALONE, Setting(-5, 0.99), Setting(-5, 0.9), Setting(-3, 0.75), Setting(0.5, 0.01), Setting(5, 0.9))


class Regime(NamedTuple):
    """A batch size as a share of the training set, and a budget."""

    share: float
    steps: int


REGIMES = {"large": Regime(1 / 4, 240), "short": Regime(1 / 4, 40), "small": Regime(1 / 128, 640)}


class Base(NamedTuple):
    """An optimizer behind E, and where its learning rates start."""

    lr: float
    make: Callable[[list[nn.Parameter], float, Setting], Optimizer]


def around(cls: Any, **options: Any) -> Callable[[list[nn.Parameter], float, Setting], Optimizer]:
    """E around an optimizer; at α = 0 it passes the gradient on."""
    return lambda params, lr, s: E(cls(params, lr=lr, **options), *s)


def alto(params: list[nn.Parameter], lr: float, s: Setting) -> Optimizer:
    """At α = 0 LAMB. The norms are those of each seed's layers."""
    options = {"weight_decay": 0.0, "norm_dims": (-2, -1), "nonfinite": "propagate"}
    return ALTO(params, lr=lr, alpha=s.alpha, beta=s.beta, **options)


BASES = {
    "SGD": Base(0.3, around(SGD)),
    "RMSprop": Base(0.001, around(RMSprop)),
    "Adagrad": Base(0.01, around(Adagrad)),
    "SGD, momentum .9": Base(0.03, around(SGD, momentum=0.9)),
    "AdamW": Base(0.001, around(AdamW, weight_decay=0.0)),
    "LAMB": Base(0.01, alto),
}
WITHOUT_BACKWARD = Base(0.003, around(SGD))
ALL_REGIMES = {**REGIMES, "zeroth": Regime(1 / 32, 1000)}


def batches(images: Images, regime: Regime, seeds: tuple[int, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    """For each step the images and labels of every seed, in the seed's own order."""
    n = len(images.train.labels)
    size = max(1, round(n * regime.share))
    generators = [torch.Generator().manual_seed(10_000 + seed) for seed in seeds]
    step = 0
    while True:
        orders = torch.stack([torch.randperm(n, generator=g) for g in generators])
        for chosen in orders.split(size, dim=1):
            if step == regime.steps:
                return
            step += 1
            yield images.train.images[chosen], images.train.labels[chosen]


def train(images: Images, base: Base, s: Setting, regime: Regime, lr: float, seeds: tuple[int, ...]) -> Networks:
    """All seeds, under a cosine schedule to zero."""
    model = Networks((images.pixels, HIDDEN, 10), seeds)
    optimizer = base.make(list(model.parameters()), lr, s)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, regime.steps)
    for x, y in batches(images, regime, seeds):
        optimizer.zero_grad()
        model.cross_entropy(x, y).sum().backward()
        optimizer.step()
        schedule.step()
    return model


def train_without_backward(
    images: Images, _: Base, s: Setting, regime: Regime, lr: float, seeds: tuple[int, ...]
) -> Networks:
    """SGD on SPSA estimates of the gradient, two evaluations a step, one seed after the other."""
    joined = Networks((images.pixels, HIDDEN, 10), seeds)
    for i, seed in enumerate(seeds):
        model = Networks((images.pixels, HIDDEN, 10), (seed,))
        optimizer = E(SGD(model.parameters(), lr=lr), *s)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, regime.steps)
        for k, (x, y) in enumerate(batches(images, regime, (seed,))):
            optimizer.zero_grad()
            spsa(lambda x=x, y=y, m=model: m.cross_entropy(x, y)[0], model.parameters(), seed=100_000 * seed + k)
            optimizer.step()
            schedule.step()
        for layer, trained in zip(joined.layers, model.layers, strict=True):
            layer.data[i] = trained.data[0]
    return joined


def tuned(trained: Callable[[float, tuple[int, ...]], Networks], images: Images, start: float) -> tuple[float, float]:
    """The learning rate of the best mean validation accuracy, and that accuracy."""
    found: dict[int, float] = {}

    def at(k: int) -> float:
        if k not in found:
            _, accuracies = trained(start * FACTOR**k, TUNING).judge(*images.validation)
            found[k] = sum(accuracies) / len(accuracies)
        return found[k]

    best = max((-1, 0, 1), key=at)
    while best in (min(found), max(found)) and len(found) < 8:
        at(best - 1 if best == min(found) else best + 1)
        best = max(found, key=found.__getitem__)
    return start * FACTOR**best, found[best]


def measure(images: Images, name: str, s: Setting, regime: str, fresh: tuple[int, ...]) -> dict[str, Any]:
    """One cell."""
    base, how = (BASES[name], train) if name in BASES else (WITHOUT_BACKWARD, train_without_backward)
    setting = ALL_REGIMES[regime]

    def trained(lr: float, seeds: tuple[int, ...]) -> Networks:
        return how(images, base, s, setting, lr, seeds)

    lr, validation = tuned(trained, images, base.lr)
    model = trained(lr, fresh)
    _, accuracies = model.judge(*images.test)
    losses, _ = model.judge(*images.train)
    return {"lr": lr, "validation": validation, "test": accuracies, "loss": losses}


def plan() -> list[tuple[str, str, Setting]]:
    """Regime, base and setting of every cell."""
    cells = [(regime, name, s) for regime in REGIMES for name in BASES for s in SETTINGS]
    return cells + [("zeroth", "SPSA + SGD", s) for s in SETTINGS]


def tables(record: dict[str, Any]) -> str:
    """Markdown: for each regime the test accuracies of the base alone, and the paired differences to it."""
    lines: list[str] = []
    for regime in ALL_REGIMES:
        size = round(record["images"] * ALL_REGIMES[regime].share)
        lines += ["", f"{regime}: batch {size} of {record['images']}, {ALL_REGIMES[regime].steps} steps", ""]
        head = ["base", "alone", *(f"{s.alpha:g}, {s.beta:g}" for s in SETTINGS[1:])]
        lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for name in dict.fromkeys(name for r, name, _ in plan() if r == regime):
            row = [name]
            alone = record["cells"].get(_key(regime, name, ALONE))
            for s in SETTINGS:
                cell = record["cells"].get(_key(regime, name, s))
                row.append("" if cell is None or alone is None else _entry(cell, None if s == ALONE else alone))
            lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def _entry(cell: dict[str, Any], alone: dict[str, Any] | None) -> str:
    values = cell["test"]
    if alone is not None:
        values = [mine - theirs for mine, theirs in zip(values, alone["test"], strict=True)]
    mean, half = interval(values)
    loss = sum(cell["loss"]) / len(cell["loss"])
    sign = "" if alone is None else "+"
    return f"{mean:{sign}.1f} ± {half:.1f} ({loss:.3f}; {cell['lr']:.2g})"


def _key(regime: str, name: str, s: Setting) -> str:
    return f"{regime}/{name}/{s.alpha:g},{s.beta:g}"


def main() -> None:
    """Measure what is missing, print the tables and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", default="unnamed", help="names the record, MACHINE-which-alpha-DATA.json")
    parser.add_argument("--data", choices=("auto", "fashion", "digits"), default="auto", help="the images")
    parser.add_argument("--seeds", type=int, default=8, help="fresh ones of each cell (default 8)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the record")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds must be at least 2")
    torch.set_num_threads(1)
    images = load(options.data)
    fresh = tuple(range(FIRST_FRESH, FIRST_FRESH + options.seeds))
    path = options.out / f"{options.machine}-which-alpha-{images.name}.json"
    record = {"data": images.name, "images": len(images.train.labels), "seeds": fresh, "cells": {}}
    if path.exists():
        stored = json.loads(path.read_text())
        if stored["seeds"] == list(fresh):
            record["cells"] = stored["cells"]
    options.out.mkdir(parents=True, exist_ok=True)
    for regime, name, s in plan():
        key = _key(regime, name, s)
        if key not in record["cells"]:
            record["cells"][key] = cell = measure(images, name, s, regime, fresh)
            print(f"{key}: {interval(cell['test'])[0]:.1f} %, lr {cell['lr']:.2g}", flush=True)
            path.write_text(json.dumps({**record, "environment": environment()}, indent=1) + "\n")
    print(tables(record))
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on")
