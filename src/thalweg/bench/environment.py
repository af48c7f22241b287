"""Where a measurement was taken."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

import thalweg
from thalweg.records import files as records
from thalweg.records.errors import UserError

PEERS = ("e-optimizer-adaptor", "pytorch_optimizer", "torch_optimizer", "heavyball", "apex", "bitsandbytes", "torchao")


def environment() -> dict[str, str]:
    """Machine, interpreter, packages, commit and date."""
    found = records.environment()
    kept = ("python", "thalweg", "torch", "numpy", "processor", "cores", "accelerators", "threads", "instructions")
    return {name: found[name] for name in kept} | {
        "system": platform.platform(),
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "cuda": str(torch.version.cuda),
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **{package: _version(package) for package in PEERS},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """The commit of the checkout that thalweg is imported from, with "-dirty" where it has changes."""
    package = Path(thalweg.__file__).resolve().parent
    top = _git(package, "rev-parse", "--show-toplevel")
    if not top or Path(top) / "src" / "thalweg" != package:  # installed, if perhaps below a checkout of something else
        return "not a checkout"
    return _git(package, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*") or "unknown"


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def device(name: str) -> torch.device:
    """The device of this name.

    Raises:
        UserError: it is not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(f"argument --device: torch {torch.__version__} finds no 'cuda' here: choose from cpu")
    return torch.device(name)


def free_bytes(device: torch.device) -> int:
    """How much more memory this process can have there."""
    if device.type == "cpu":
        return int(psutil.virtual_memory().available)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + cached
