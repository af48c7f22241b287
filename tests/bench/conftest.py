"""Garbage is collected in a moment, however much the process has imported."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def quick_collections() -> Iterator[None]:
    """The benchmarks collect all of it before they begin: a quarter of a second where all tests are loaded."""
    gc.freeze()
    yield
    gc.unfreeze()
