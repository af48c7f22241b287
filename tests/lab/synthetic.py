"""Folders of comparisons, written record by record as :mod:`thalweg.lab` documents them: nothing is trained."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

ACCURACY = {"name": "test accuracy", "goal": "max", "unit": "%", "low": 0.0, "high": 100.0}
MSE = {"name": "test MSE", "goal": "min", "log": True, "low": 0.0}
RECIPE = {"schedule": "cosine", "warmup": 0.05, "lr_rule": "none", "lr_base": 256, "clip": None,
          "label_smoothing": 0.0, "augment": None, "precision": "no", "evaluations": 10}  # fmt: skip
AXES = {"lr": (1e-3, 1.0, True), "weight_decay": (1e-4, 2.0, True), "forgetting": (0.01, 0.5, True),
        "forgetting2": (0.001, 0.3, True), "gain": (-0.9, 0.9, False), "horizon": (1.01, 3000.0, True)}  # fmt: skip
WHERE = {"python": "3.11.2", "torch": "2.13.0", "host": "node-1", "accelerators": "none"}
OWN = ("alto", "e-adamw", "e-muon")
TWO_TABLES = (("digits", ACCURACY, 1024, 40), ("sine", MSE, 256, 60))
QUALITY = {"alto": 0.4, "e-muon": 0.5, "muon": 0.45, "lamb": 0.0, "adamw": -0.1, "e-adamw": 0.05, "sgd": -0.6}


def settings(point: dict[str, float]) -> dict[str, float]:
    found = {"lr": point["lr"], "weight_decay": point["weight_decay"], "momentum": 1.0 - point["forgetting"]}
    if "forgetting2" in point:
        found["beta2"] = 1.0 - point["forgetting2"]
    if "gain" in point:
        found |= {"alpha": point["gain"] * point["horizon"], "beta": 1.0 - 1.0 / point["horizon"]}
    return found


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


class Comparison:
    """Writes cells; the numbers come from a generator, the same for the same ``seed``."""

    def __init__(self, root: Path, seed: int = 0) -> None:
        self.root, self.rng = root, np.random.default_rng(seed)

    def cell(
        self, task: str, metric: dict[str, Any], batch_size: int, steps: int, optimizer: str, *, trials: int = 6,
        studies: int = 3, seeds: int = 5, quality: float | None = None, spread: float = 0.05, title: str | None = None,
        fail: dict[int, tuple[str, str]] | None = None, failing_seeds: int = 0, **more: Any,
    ) -> Path:  # fmt: skip
        """One optimizer in one table; ``fail`` are trials of study 0 that failed, by number."""
        folder = self.root / "runs" / task / str(batch_size) / "".join(c if c.isalnum() or c in "-._" else "." for c in
                                                                       optimizer) / f"{steps}-steps"  # fmt: skip
        own = [name for name in AXES if optimizer in OWN or name not in ("gain", "horizon")]
        if optimizer == "sgd":
            own.remove("forgetting2")
        fields = {
            "format": 2, "task": task, "title": title or f"The task {task}", "metric": metric, "batch_size": batch_size,
            "steps": steps, "budget": "short", "target": 90.0 if metric["goal"] == "max" else 0.02,
            "train_examples": 1200, "optimizer": optimizer, "recipe": RECIPE, "trials": trials, "studies": studies,
            "space": [dict(zip(("name", "low", "high", "log"), (name, *AXES[name]), strict=True)) for name in own],
            "seeds": seeds, "code": "c0de", "data": "da7a", "left_out": None,
            "command": "thalweg compare digits sine", **more,
        }  # fmt: skip
        write(folder / "cell.json", fields)
        if fields["left_out"] is not None:
            return folder
        skill = QUALITY.get(optimizer, 0.0) if quality is None else quality
        bests: list[tuple[float, dict[str, float]]] = []
        for study in range(studies):
            found = []
            for number in range(trials):
                point = {name: self._between(*AXES[name]) for name in own}
                off = abs(math.log10(point["lr"]) + 1.3) + 0.2 * abs(math.log10(point["forgetting"]) + 1.0)
                failure = (fail or {}).get(number) if study == 0 else None
                value = self._run(
                    fields, folder / f"study-{study}" / f"trial-{number}-{study}{number:03}", ("trial", study, number),
                    point, 0, skill - off + 0.1 * self.rng.normal(), failure,
                )  # fmt: skip
                if value is not None:
                    found.append((value, point))
            sign = -1.0 if metric["goal"] == "max" else 1.0
            bests.append(min(found, key=lambda one: sign * one[0]) if found else (sign * math.inf, {}))
        sign = -1.0 if metric["goal"] == "max" else 1.0
        _, point = sorted(bests, key=lambda one: sign * one[0])[len(bests) // 2]
        shared = np.random.default_rng(7).normal(size=seeds)
        for number in range(seeds if point else 0):
            failure = ("diverged", "the loss is not a number") if number < failing_seeds else None
            self._run(
                fields, folder / f"seed-{number}-{number:04}", ("seed", 0, number), point, 1000 + number,
                skill + 0.3 * shared[number] + spread * self.rng.normal(), failure,
            )  # fmt: skip
        return folder

    def _between(self, low: float, high: float, log: bool) -> float:
        share = self.rng.uniform()
        return float(low * (high / low) ** share if log else low + share * (high - low))

    def _run(
        self, cell: dict[str, Any], folder: Path, place: tuple[str, int, int], point: dict[str, float], seed: int,
        skill: float, failure: tuple[str, str] | None,
    ) -> float | None:  # fmt: skip
        kind, study, number = place
        steps, up = cell["steps"], cell["metric"]["goal"] == "max"
        spec = {
            "format": 2, "hash": folder.name[-4:], "task": cell["task"], "batch_size": cell["batch_size"],
            "steps": steps, "optimizer": cell["optimizer"], "settings": settings(point), "seed": seed,
            "test": kind == "seed", **cell["recipe"], "code": "c0de", "data": "da7a",
            "place": {"kind": kind, "study": study, "round": 0, "number": number, "point": point},
        }  # fmt: skip
        write(folder / "spec.json", spec)
        write(folder / "environment.json", WHERE | {"host": f"node-{1 + number % 2}"})
        history, at = [], None

        def metric(share: float) -> float:
            level = share * (2.0 + skill)
            return 100.0 * (1.0 - 0.9 * math.exp(-1.3 * level)) if up else math.exp(-2.2 * level)

        for i in range(11):
            step = steps * i // 10
            value = metric(i / 10)
            target = cell["target"]
            if at is None and target is not None and (value >= target if up else value <= target):
                at = step
            history.append({"step": step, "examples": step * cell["batch_size"], "seconds": 0.01 * step,
                            "loss": 2.3 * math.exp(-(2.0 + skill) * i / 10), "validation": value,
                            "lr": point["lr"]})  # fmt: skip
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
        final = history[-1]["validation"]
        if failure is not None:
            final, at = None, None
        write(
            folder / "result.json",
            {"status": "failed" if failure else "finished", "failure": failure[0] if failure else None,
             "reason": failure[1] if failure else None, "validation": final,
             "test": final * 0.99 if final is not None and kind == "seed" else None, "seconds": 0.01 * steps,
             "steps_to_target": at, "seconds_to_target": None if at is None else 0.01 * at},
        )  # fmt: skip
        return final


def timing(root: Path, task: str, batch_size: int, steps: int, optimizers: tuple[str, ...]) -> None:
    seconds = {name: [0.001 * (1 + i) * factor for factor in (1.1, 0.9, 1.0, 1.4)] for i, name in enumerate(optimizers)}
    write(root / "runs" / task / str(batch_size) / "timing" / f"{steps}-steps.json", {"specs": {}, "seconds": seconds})


def comparison(root: Path, optimizers: tuple[str, ...] = tuple(QUALITY)) -> Path:
    """Two tables of seven optimizers: failures, an optimizer that is left out, one with a failed seed."""
    writer = Comparison(root)
    for task, metric, batch_size, steps in TWO_TABLES:
        for optimizer in optimizers:
            more: dict[str, Any] = {}
            if optimizer == "sgd":
                more["fail"] = {1: ("diverged", "the loss grew to 3e+12"), 2: ("out of memory", "16 GiB asked for")}
            if optimizer == "adamw" and task == "sine":
                more["failing_seeds"] = 1
            if optimizer == "muon" and task == "sine":
                more["left_out"] = "no matrices"
            writer.cell(task, metric, batch_size, steps, optimizer, **more)
        timing(root, task, batch_size, steps, optimizers)
    return root
