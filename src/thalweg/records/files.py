"""Files of a run: each written whole or not at all, and read as if they might be damaged.

What the files hold is said in :mod:`thalweg.records`.
"""

from __future__ import annotations

import errno
import json
import math
import os
import platform
import socket
import sys
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from thalweg.files import write_bytes as write_bytes
from thalweg.records.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

FORMAT = 2
"""The version of these files, which each spec and cell names."""
PACKAGES = ("thalweg", "torch", "accelerate", "transformers", "optuna", "pytorch_optimizer", "numpy", "scikit-learn")
LARGEST = 64 * 2**20  # bytes of a record; nothing that we write comes near it


class Damaged(Exception):  # noqa: N818 (a finding about a file, caught wherever records are read)
    """A record that cannot be read as what it should be: which file, and why."""

    def __init__(self, path: Path, why: object) -> None:
        self.path, self.why = path, " ".join(str(why).split())[:200]
        super().__init__(f"{path}: {self.why}")


VARIABLES = (
    "ACCELERATE_", "ATEN_", "CUBLAS_", "CUDA_", "CUDNN_", "CXX", "DNNL_", "FLASH_ATTENTION_", "GOMP_", "GOTO_", "KMP_",
    "MIOPEN_", "MKL_", "NPY_", "NVIDIA_TF32_", "OMP_", "ONEDNN_", "OPENBLAS_", "PYTORCH_", "TORCHDYNAMO_",
    "TORCHINDUCTOR_", "TORCH_", "TRANSFORMERS_", "TRITON_", "XLA_",
)  # fmt: skip
"""The variables that libraries of numerics read begin so; of them those are recorded that hold no path."""


def environment() -> dict[str, str]:
    """Where this process runs: interpreter, packages, processor, accelerators, and what tunes the arithmetic."""
    torch = sys.modules["torch"]  # imported where runs are trained; reading records needs none
    return {
        **_machine(),
        "threads": str(torch.get_num_threads()),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "float32 products": torch.get_float32_matmul_precision(),
        "variables": " ".join(f"{name}={value}" for name, value in sorted(_variables().items())) or "none",
    }


def _variables() -> dict[str, str]:
    """What is set of :data:`VARIABLES`, but for paths and for which of several devices a worker has."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(VARIABLES) and "/" not in value and not name.endswith("_VISIBLE_DEVICES")
    }


@cache
def _machine() -> dict[str, str]:
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    torch = sys.modules["torch"]  # reading records needs none
    found["torch"] = torch.__version__  # with the build, which the package's metadata may lack
    found["processor"] = _processor()
    found["cores"] = str(os.cpu_count())
    found["host"] = socket.gethostname()
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found["accelerators"] = ", ".join(devices) or "none"
    return found


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:  # noqa: PTH123
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Write records inside, in a folder or to a file.

    Raises:
        UserError: one cannot be written; its name, why, and what to do.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space, and run the same command again" if full else "choose another folder with --out"
        why = error.strerror or error
        raise UserError(f"cannot write to {error.filename or place} ({why}): {remedy}") from None


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def write_lines(path: Path, values: Iterable[Any]) -> None:
    """Write one JSON value a line, whole or not at all; numbers that JSON cannot say become null."""
    lines = [json.dumps({key: finite(item) for key, item in value.items()}, allow_nan=False) for value in values]
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode())


def finite(value: Any) -> Any:
    """The value, or None for a number that JSON cannot say."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_bytes(path: Path, largest: int = LARGEST) -> bytes:
    """The content of a regular file of a sensible size.

    Raises:
        Damaged: it is not there or not one.
    """
    try:
        if not path.is_file():
            raise Damaged(path, "not a file")
        if path.stat().st_size > largest:
            raise Damaged(path, f"larger than {largest} bytes")
        return path.read_bytes()
    except OSError as error:
        raise Damaged(path, error.strerror or error) from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        Damaged: the file is not one.
    """
    return _object(path, read_bytes(path))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """One JSON object a line.

    Raises:
        Damaged: a line is not one.
    """
    return [_object(path, line) for line in read_bytes(path).splitlines() if line.strip()]


def _object(path: Path, data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise Damaged(path, error) from None
    if not isinstance(found, dict):
        raise Damaged(path, "not a JSON object")
    return found


class Fields:
    """The fields of a JSON object, each asked for as what it should be; anything else is :class:`Damaged`."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path, self.values = path, values

    def _fail(self, name: str, kind: str) -> Damaged:
        return Damaged(self.path, f"{name} should be {kind}, got {self.values.get(name)!r:.60}")

    def text(self, name: str, *, optional: bool = False) -> str:
        """A string; with ``optional``, "" where it is null or absent."""
        value = self.values.get(name)
        if value is None and optional:
            return ""
        if not isinstance(value, str):
            raise self._fail(name, "text")
        return value

    def count(self, name: str, low: int = 0, high: int = 10**12) -> int:
        """An integer within bounds."""
        value = self.values.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._fail(name, f"an integer from {low} to {high}")
        return value

    def number(self, name: str) -> float:
        """A finite number."""
        value = self.maybe(name)
        if value is None:
            raise self._fail(name, "a number")
        return value

    def maybe(self, name: str) -> float | None:
        """A finite number, or None."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, (int, float)) or isinstance(value, bool) or abs(value) > 1e300 or value != value:
            raise self._fail(name, "a number or null")
        return float(value)

    def object(self, name: str) -> Fields:
        """A JSON object."""
        value = self.values.get(name)
        if not isinstance(value, dict):
            raise self._fail(name, "an object")
        return Fields(self.path, value)

    def numbers(self, name: str) -> dict[str, float]:
        """An object of finite numbers."""
        inner = self.object(name)
        return {key: inner.number(key) for key in inner.values}

    def texts(self, name: str) -> dict[str, str]:
        """An object of strings."""
        inner = self.object(name)
        return {key: inner.text(key) for key in inner.values}
