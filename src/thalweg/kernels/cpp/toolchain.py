"""C++ built by the machine's compiler, once for a user: a cache directory keeps the result (:mod:`~.cache`).

Only the compiler is called, with the flags below: nothing of torch is included or linked, and its machinery for
compiling, which takes a second to import and may have something to say, is left alone.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch

from thalweg.kernels.cpp import cache

Function: TypeAlias = Callable[..., int]

_FLAGS = (
    "-std=c++20",
    "-O3",
    "-ffp-contract=fast",
    "-fno-math-errno",  # or a square root is a call
    "-shared",
    "-fPIC",
)
_PATIENCE = 300.0  # seconds for what takes one: a compiler that hangs is none
_log = logging.getLogger(__name__)


def load(file: str, function: str, macros: Mapping[str, object], arguments: tuple[Any, ...]) -> Function:
    """A C function of a file beside this one, its ``macros`` defined; from the cache, if it has been built before.

    ``$CXX`` is the compiler, or else g++ or clang++.

    Raises:
        RuntimeError: there is no C++ compiler, or it fails, or what it makes cannot be loaded.
    """
    source = Path(__file__).with_name(file).read_text(encoding="utf-8")
    defines = "".join(f"#define {name} {value}\n" for name, value in macros.items())
    started = time.perf_counter()
    try:
        library = _library(Path(file).stem, defines + source)
    except (OSError, ValueError, subprocess.SubprocessError) as error:  # ValueError: CXX cannot be split
        raise RuntimeError(f"kernels for the CPU cannot be built: {error}") from error
    _log.info("%s in %.1f s, for %s", file, time.perf_counter() - started, dict(macros))
    found: Any = getattr(library, function)
    found.argtypes, found.restype = arguments, ctypes.c_int64
    return found  # type: ignore[no-any-return]


def _library(stem: str, source: str) -> ctypes.CDLL:
    compiler, flags = _compiler(), [*_FLAGS, *_flags_here()]
    depends_on = (source, *flags, *map(_identity, compiler), _processor(), torch.__version__)
    name = f"{stem}-{hashlib.sha256(repr(depends_on).encode()).hexdigest()[:32]}.so"
    if (kept := cache.read(name)) is not None:
        try:
            return _loaded(kept)
        except OSError as error:  # from another system with this home, say
            _log.info("%s is built again: %s", name, error)
    code = _compiled(source, [*compiler, *flags])
    library = _loaded(code)
    cache.write(name, code)
    return library


def _loaded(code: bytes) -> ctypes.CDLL:
    """A library, from a private copy: what was read is what runs, and no other process can truncate it in use."""
    with tempfile.TemporaryDirectory(prefix="thalweg-") as private:
        path = Path(private) / "kernels.so"
        path.write_bytes(code)
        return ctypes.CDLL(str(path))


def _compiled(source: str, command: list[str]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="thalweg-", ignore_cleanup_errors=True) as private:
        code, library = Path(private) / "kernels.cpp", Path(private) / "kernels.so"
        code.write_text(source, encoding="utf-8")
        done = subprocess.run(
            [*command, str(code), "-o", str(library)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            check=False,
        )
        if done.returncode:
            raise OSError(f"{shlex.join(command)} ended with {done.returncode}: {done.stdout.strip()[-2000:]}")
        return library.read_bytes()


def _compiler() -> list[str]:
    """The command of the compiler."""
    if sys.platform == "win32":
        raise FileNotFoundError("not on Windows")
    if wanted := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(wanted[0]) is None:
            raise FileNotFoundError(f"there is no C++ compiler {wanted[0]!r}, which CXX names")
        return wanted
    names = ("clang++",) if sys.platform == "darwin" else ("g++", "clang++")
    found = next((name for name in names if shutil.which(name)), None)
    if found is None:
        raise FileNotFoundError(f"there is no C++ compiler, {' or '.join(names)}, and CXX names none")
    return [found]


def _flags_here() -> list[str]:
    if sys.platform != "darwin":
        return ["-mcpu=native" if platform.machine() == "ppc64le" else "-march=native", "-fopenmp"]
    root = Path(torch.__file__).parent  # which has what Apple's compiler lacks
    return ["-Xclang", "-fopenmp", f"-I{root / 'include'}", f"-L{root / 'lib'}", f"-Wl,-rpath,{root / 'lib'}", "-lomp"]


def _identity(word: str) -> tuple[object, ...]:
    """A word of the compiler's command and, if that is a program, which one: without starting it."""
    if (path := shutil.which(word)) is None:
        return (word,)
    status = Path(path).stat()
    return word, os.path.realpath(path), status.st_size, status.st_mtime_ns


@functools.cache
def _processor() -> list[str]:
    """Its name and what it can do, as code is compiled for its instructions and a cache may be shared."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return [platform.machine()]
    with info.open() as lines:
        first = itertools.takewhile(str.strip, lines)  # of as many as there are cores
        return [line for line in first if line.startswith(("model name", "flags", "CPU part", "Features"))]
