"""What is collected, over what tests are run, and how cases are named."""

from __future__ import annotations

import fnmatch
import gc
import importlib
import importlib.util
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Read when torch is loaded, also by the processes that tests start: two workers on two cores, whose threads wait for
# each other by spinning, keep each other from running.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's and SciPy's, which always spin
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # what is not there is not asked for over the network, 23 s each time

import torch

if not torch.cuda.is_available():  # said before anything imports Triton, which reads it once
    os.environ.setdefault("TRITON_INTERPRET", "1")

import one_server
from capabilities import CASES, TABLE, Capability, Option
from interpreter import remember_builtins
from support import WAYS, pairwise


@pytest.fixture(autouse=True, scope="module")
def no_crowded_ranks() -> Iterator[None]:
    """Ranks are kept from module to module unless they take time while they wait."""
    yield
    if (pool := sys.modules.get("rank_pool")) is not None:
        pool.end_crowded()


def pytest_collection_finish() -> None:
    """Collections while tests run leave out what all of them have imported: a quarter of a second each time."""
    gc.collect()
    gc.freeze()


def pytest_runtest_teardown() -> None:
    if (pool := sys.modules.get("rank_pool")) is not None:
        pool.end_idle()


def pytest_make_parametrize_id(val: object) -> str | None:
    if isinstance(val, Capability):
        return val.name
    if isinstance(val, Option):
        return f"{val.name}={val.value}"
    if isinstance(val, torch.dtype):
        return str(val).removeprefix("torch.")
    return None


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Of pytest-xdist: a worker is about to start."""
    node.workerinput["server"] = one_server.address()


def pytest_configure(config: pytest.Config) -> None:
    if (address := getattr(config, "workerinput", {}).get("server")) is not None:
        one_server.use(address)
    config.addinivalue_line("markers", "pairwise(**axes): what the entries, or these and options, are combined with")
    config.addinivalue_line("markers", "where(test): which of these combinations the test is about")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Modules that help the tests have no doctests, and to look for some would import them.

    Each folder's ``conftest`` is a module of that name, and some modules can only be imported by the process that a
    test starts them in.
    """
    if collection_path.suffix != ".py" or any(
        fnmatch.fnmatch(collection_path.name, pattern) for pattern in config.getini("python_files")
    ):
        return None
    return True


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``entry`` runs a test over the table; with ``option``, over every option too, None being no option."""
    if metafunc.definition.path.parent != Path(__file__).parent:
        return
    names = set(metafunc.fixturenames)
    if {"entry", "option"} <= names:
        rows = [case for case in CASES if available(case[1])]
    elif "entry" in names:
        rows = [(entry,) for entry in TABLE]
    else:
        return
    pairs, where = map(metafunc.definition.get_closest_marker, ("pairwise", "where"))
    axes = {} if pairs is None else pairs.kwargs
    rows = [(*row, *values) for row in rows for values in itertools.product(*axes.values())]
    if where is not None:
        rows = [row for row in rows if where.kwargs["test"](*row)]
    if axes:
        rows = pairwise(rows, key=lambda value: pytest_make_parametrize_id(value) or repr(value))
    metafunc.parametrize([*(name for name in ("entry", "option") if name in names), *axes], rows)


def available(option: Option | None) -> bool:
    return option is None or option.effect != "cuda" or torch.cuda.is_available()


@pytest.fixture(params=[*WAYS, "triton"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options of ALTO and Lamb: each of the ways in which they step, Triton's kernels under its interpreter too."""
    return WAYS[request.param] if request.param != "triton" else step_with_triton(monkeypatch)


@pytest.fixture
def triton_steps(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options with which Triton's kernels step, also E and Adam in one pass."""
    return step_with_triton(monkeypatch)


def step_with_triton(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    if os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None:
        pytest.skip("needs Triton's interpreter")
    remember_builtins()
    kernels = importlib.import_module("thalweg.kernels.triton")
    monkeypatch.setattr("thalweg.kernels.dispatch.choose", lambda *_: kernels)
    return {}
