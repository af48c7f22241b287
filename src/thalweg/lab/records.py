"""Records of runs: one folder a run, complete or not there.

A run's folder holds ``settings.json``, ``environment.json`` and ``metrics.jsonl``, written as it goes, and
``result.json``, written last: a run without it was interrupted and is run again.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch

from thalweg.lab.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

PACKAGES = ("thalweg", "torch", "accelerate", "transformers", "optuna", "pytorch_optimizer", "numpy", "scikit-learn")


@cache
def environment() -> dict[str, str]:
    """Where this process runs: interpreter, packages, processor and accelerators."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    found["torch"] = torch.__version__  # with the build, which the package's metadata may lack
    found["processor"] = _processor()
    found["cores"] = str(os.cpu_count())
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found["accelerators"] = ", ".join(devices) or "none"
    return found


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:  # noqa: PTH123
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader finds the old file or the new one, never a part."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        UserError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise UserError(f"corrupt record {path} ({error}): delete it and run the same command again") from None


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that determines a run. ``test`` asks for the test metric at the end, which tuning never sees."""

    task: str
    batch_size: int
    steps: int
    optimizer: str
    settings: dict[str, float]
    seed: int
    test: bool


def result(folder: Path, run: Run) -> dict[str, Any] | None:
    """The result of this run in this folder, or None if it did not end there or the folder holds another run."""
    if not (folder / "result.json").exists() or read_json(folder / "settings.json") != asdict(run):
        return None
    found = read_json(folder / "result.json")
    if not isinstance(found, dict) or found.get("status") not in ("finished", "failed"):
        raise UserError(f"corrupt record {folder / 'result.json'}: delete {folder} and run the same command again")
    return found


def metrics(folder: Path) -> list[dict[str, float]]:
    """The metrics of a run, one dictionary a recorded step.

    Raises:
        UserError: a line is not JSON.
    """
    path = folder / "metrics.jsonl"
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (ValueError, OSError) as error:
        raise UserError(f"corrupt record {path} ({error}): delete {folder} and run the same command again") from None
