"""The interpreter, as the kernels need it."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
from interpreter import remember_builtins

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def interpreter():
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs Triton's interpreter")
    remember_builtins()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    from kernel_layers import BLOCK, CHUNK

    from thalweg.kernels import triton

    monkeypatch.setattr(triton, "CHUNK", CHUNK)
    monkeypatch.setattr(triton, "_BLOCK", BLOCK)


@pytest.fixture(autouse=True)
def rounding_to_nearest(monkeypatch):
    """Where hardware rounds to the nearest bfloat16, the interpreter cuts off."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast = InterpreterBuilder.cast_impl

    def cast_impl(self, x, dtype):
        if x.dtype.scalar == tl.float32 and dtype.scalar == tl.bfloat16:
            data = torch.from_numpy(x.data.copy()).bfloat16().view(torch.int16).numpy().view("uint16")
            return TensorHandle(data, tl.bfloat16)
        return cast(self, x, dtype)

    monkeypatch.setattr(InterpreterBuilder, "cast_impl", cast_impl)
