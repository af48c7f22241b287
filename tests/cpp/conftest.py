"""A cache of their own for the kernels in C++."""

from __future__ import annotations

import tempfile

import pytest
from cached import compile_once

from thalweg.kernels.cpp import cache, toolchain


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """The directory of the cache, which is yet to be made; and nothing has been said in this process."""
    monkeypatch.setenv("THALWEG_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not here"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    cache._say.cache_clear()
    yield tmp_path / "cache"
    assert list((tmp_path / "temporary").iterdir()) == []
    cache._say.cache_clear()


@pytest.fixture
def built(monkeypatch):
    """What has been compiled, in all tests once."""
    sources = []
    monkeypatch.setattr(
        toolchain, "_compiled", lambda source, command: sources.append(source) or compile_once(source, *command)
    )
    return sources
