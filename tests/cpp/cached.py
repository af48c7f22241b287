"""The kernels in C++, as a process has them that has just begun."""

from __future__ import annotations

import ctypes
import functools

import torch

from thalweg.kernels import cpp, dispatch
from thalweg.kernels.cpp import toolchain

compile_ = toolchain._compiled
compile_once = functools.cache(lambda source, *command: compile_(source, list(command)))


def load():
    """The kernel that judges gradients, as in a process that has none yet, tried out."""
    judge = toolchain.load("finite.cpp", "all_within", {}, (ctypes.c_char_p, ctypes.c_int64, ctypes.c_int64))
    found = []
    for numbers in ([1.0, 2.0], [1.0, 4.0]):
        x = torch.tensor(numbers)
        row = cpp._VECTOR.pack(x.data_ptr(), 2, cpp._LIMIT.pack(4, cpp._bits(3.0, torch.float32)))
        found.append(judge(row, 1, 1))
    assert found == [1, 0]


def files(folder):
    return sorted(folder.iterdir())


def forget():
    """As in a process that has just begun."""
    for known in (cpp._judge, cpp._kernel, dispatch._warn):
        known.cache_clear()
