"""The slides' memory figure as a measurement of ``thalweg reproduce``: what ``thalweg bench memory`` counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from thalweg.bench import environment
from thalweg.bench.candidates import candidate
from thalweg.bench.memory import MemoryBenchmark
from thalweg.bench.shapes import model
from thalweg.records import files as records

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WHO = (
    "adamw-fused", "lamb", "alto", "alto-bf16", "alto-8bit", "e-adamw", "pytorch-optimizer-lamb", "authors-alto",
    "authors-e-adamw",
)  # fmt: skip


def run(options: dict[str, Any], folder: Path, say: Callable[[str], None]) -> None:
    """Count each of ``options["shapes"]`` that is not counted yet."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name in options["shapes"]:
        path = folder / f"{name}.json"
        if path.exists():
            continue
        say(f"memory on the shapes of {name}, on {device.type}")
        benchmark = MemoryBenchmark(model(name), [candidate(one) for one in WHO], device, torch.float32)
        benchmark.run()
        records.write_json(path, {**(benchmark.record() or {}), "environment": environment.environment()})
