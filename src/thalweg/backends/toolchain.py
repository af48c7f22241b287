"""C++ built by Inductor's toolchain, once for a machine: its cache directory keeps the result."""

from __future__ import annotations

import ctypes
import functools
import inspect
import logging
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

Function: TypeAlias = Callable[..., int]

_FLAGS = (
    "-ffp-contract=fast",
    "-fno-math-errno",  # or a square root is a call
    "-ftree-loop-vectorize",  # Inductor turns it off, and with it `omp simd`
)
_log = logging.getLogger(__name__)


def load(file: str, function: str, macros: Mapping[str, object], arguments: tuple[Any, ...]) -> Function:
    """A C function of a file beside this one, its ``macros`` defined; from the cache, if this machine has built it.

    Raises:
        RuntimeError: there is no C++ compiler, or it fails.
    """
    from torch._inductor.codecache import CppCodeCache  # half of what torch.compile needs, so only here
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    source = Path(__file__).with_name(file).read_text()
    defines = "".join(f"#define {name} {value}\n" for name, value in macros.items())
    started = time.perf_counter()
    # Without Inductor's vector headers, whose flags -march=native implies and whose trial takes seconds. Older versions
    # of torch do not offer that, and try them.
    offered = inspect.signature(CppCodeCache.load_async).parameters
    spared = {"needs_vec_isa": False} if "needs_vec_isa" in offered else {}
    code = f"// for {_processor()}\n{defines}{source}"
    try:
        library: Any = CppCodeCache.load(code, device_type="cpu", extra_flags=_FLAGS, **spared)
    except (CppCompileError, InvalidCxxCompiler, OSError) as error:
        raise RuntimeError(f"kernels for the CPU cannot be built: {error}") from error
    _log.info("%s in %.1f s, for %s", file, time.perf_counter() - started, dict(macros))
    found: Any = getattr(library, function)
    found.argtypes, found.restype = arguments, ctypes.c_int64
    return found  # type: ignore[no-any-return]


@functools.cache
def _processor() -> str:
    """Its name, as code is compiled for its instructions and a cache may be shared."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line for line in lines if line.startswith(("model name", "CPU part"))), platform.platform())
