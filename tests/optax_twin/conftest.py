"""Without jax and optax there is nothing here to collect."""

from __future__ import annotations

import os

import pytest

# Read when the first array is made. What these tests compile runs once or a few times: to have it fast takes longer.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

jax = pytest.importorskip("jax")
pytest.importorskip("optax")


@pytest.fixture
def float64():
    """JAX in double precision, for one test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
