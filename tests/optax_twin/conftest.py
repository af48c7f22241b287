"""Without jax and optax there is nothing here to collect."""

from __future__ import annotations

import pytest

jax = pytest.importorskip("jax")
pytest.importorskip("optax")


@pytest.fixture
def float64():
    """JAX in double precision, for one test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
