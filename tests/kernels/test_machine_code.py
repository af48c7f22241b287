"""What Triton's compiler and NVIDIA's assembler make of the kernels, which needs no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compile_steps.py")
STACK = 16
"""Bytes: some variants come out at a few registers above what lets one more program share a multiprocessor; ptxas then
moves as many to the stack."""
THREADS = 128
ALL = (
    "float32",
    "float64",
    "bfloat16",
    "float16 gradients",
    "all bfloat16",
    "float64, float32 state",
    "mixed state",
    "8-bit state",
    "8-bit and mixed state",
)


@pytest.mark.parametrize(
    ("capability", "dtypes"),
    [(80, ("float32", "8-bit and mixed state")), pytest.param(90, ALL, marks=pytest.mark.slow)],
    ids=str,
)
def test_all_that_a_step_launches_compiles_without_spills_and_moves_sixteen_bytes_at_a_time(
    capability, dtypes, tmp_path
):
    """For an A100 and an H100."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {
        "PYTHONPATH": os.pathsep.join((str(SCRIPT.parent), str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", ""))),
        "TRITON_CACHE_DIR": str(tmp_path),
    }
    command = [sys.executable, str(SCRIPT), str(capability), *dtypes]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment, timeout=1200)
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kernel["dtypes"] for kernel in kernels} == set(dtypes)
    for kernel in kernels:
        assert kernel["launched"] == (["sweep", "adapt", "sweep"] if kernel["trust_ratio"] else ["sweep"])
        assert kernel["resources"]["LOCAL"] == 0, kernel
        assert kernel["resources"]["STACK"] <= STACK, kernel
        if kernel["kernel"] == "sweep":
            wide = tuple(kernel["widths"].get(f"{kind} 128", 0) for kind in ("ld", "st"))
            assert wide == (moved(kernel) if kernel["aligned"] else (0, 0)), kernel


def moved(kernel):
    """How many loads and stores of 16 bytes a thread's elements of a full block are; the last may be cut short."""
    elements = int(kernel["constants"]["BLOCK"]) // THREADS
    param, grad, *state = (size * elements // 16 for size in kernel["itemsizes"])
    flags = {name: kernel["constants"][name] == "True" for name in ("EXPLORE", "FRESH", "KEEP", "MEASURE")}
    m, v, b = state if flags["EXPLORE"] else (*state[:2], 0)
    loads = param + m + v + flags["FRESH"] * (grad + b)
    return loads, flags["KEEP"] * (m + v + b) + (not flags["MEASURE"]) * param
