"""A hash of what decides a run beside its spec: the source of what trains, and what alters its arithmetic."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
import sysconfig
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import thalweg
from thalweg.lab import tasks
from thalweg.lab.contenders import CONTENDERS, base_of, contender
from thalweg.lab.engine import variables

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(inspect.getfile(thalweg)).parent
PACKAGES = {"site-packages", "dist-packages"}  # the user's own and the system's as well, which sysconfig does not name
TRAINS = (
    "__init__.py",
    "arguments.py",
    "equations.py",
    "evaluation.py",
    "files.py",
    "kernels",
    "lab/contenders",
    "lab/engine",
    "lab/failures.py",
    "lab/hub.py",
    "lab/models",
    "lab/plans.py",
    "lab/ranks",
    "lab/saved",
    "lab/signals.py",
    "lab/skeletons.py",
    "lab/split.py",
    "lab/streams.py",
    "lab/tasks",
    "optim",
    "records",
    "sharding",
    "theory/stability.py",
    "theory/warning.py",
    "torch_private.py",
)
"""The files and folders of the package that a run depends on: all that ``engine.loop`` imports, and nothing else.

What only reads, reports, measures or draws is left out, so that editing it leaves stored runs as they are.
"""


@cache
def code_hash(task: str, optimizer: str) -> str:
    """12 hexadecimal digits: Thalweg's own source as far as it trains, the task's and the optimizer's.

    Of a user's task or optimizer the module that defines it counts, and the user's other modules that it imports; of
    an installed one the module that defines it. Variables of the environment that alter arithmetic count where set.

    Raises:
        UserError: no such task or optimizer.
    """
    digest = hashlib.sha256(own_source(ROOT))
    if task not in tasks.TASKS:
        digest.update(_source_of(type(tasks.find(task))))
    base = base_of(optimizer)
    if base not in CONTENDERS:
        contender(base)  # importable, or a clear error
        module, _, attribute = base.rpartition(".")
        digest.update(_source_of(getattr(__import__(module, fromlist=[attribute]), attribute)))
    digest.update(variables.arithmetic().encode())
    return digest.hexdigest()[:12]


@cache
def own_source(root: Path) -> bytes:
    """The hash of all files of :data:`TRAINS` under the package's folder, and of their names."""
    digest = hashlib.sha256()
    for part in TRAINS:
        for path in sorted([root / part] if part.endswith(".py") else (root / part).rglob("*")):
            if path.suffix != ".pyc" and not path.is_dir():
                digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.digest()


def _source_of(thing: type) -> bytes:
    """The source of the module that defines a class, and of the user's other modules that it imports, in turn."""
    found: dict[str, bytes] = {}
    todo = [thing.__module__]
    while todo:
        name = todo.pop()
        if name in found or (path := _file_of(name)) is None or (found and _installed(path)):
            continue
        found[name] = path.read_bytes()
        if not _installed(path):
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            todo += _imported_by(found[name], package)
    return b"\0".join(part for name in sorted(found) for part in (name.encode(), found[name])) or (
        thing.__qualname__.encode()
    )


def _file_of(name: str) -> Path | None:
    """The source file of a module; of an installed package's submodules no more than the package is looked for."""
    top = name.partition(".")[0]
    for one in (top, name):
        try:
            spec = importlib.util.find_spec(one)
        except (ImportError, AttributeError, ValueError):
            return None
        path = Path(spec.origin) if spec is not None and spec.origin else None
        if one == top != name and path is not None and _installed(path) and name not in sys.modules:
            return None  # to look further would import the package
    return path if path is not None and path.is_file() else None


def _imported_by(source: bytes, package: str) -> Iterator[str]:
    """The names of what a module's source imports, also inside of functions; some are not modules but what is in them.

    >>> sorted(_imported_by(b"import a.b; from .c import d", "p"))
    ['a.b', 'p.c', 'p.c.d']
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join(filter(None, (*parents[: len(parents) - node.level + 1], base)))
            yield base
            yield from (f"{base}.{one.name}" for one in node.names)


def _installed(path: Path) -> bool:
    """Whether a file is Python's, an installed package's or Thalweg's own."""
    kept = sysconfig.get_paths()
    folders = [Path(kept[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return not PACKAGES.isdisjoint(path.resolve().parts) or any(
        path.resolve().is_relative_to(folder) for folder in (*folders, ROOT.resolve())
    )
