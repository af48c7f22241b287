"""What the host does: launches, tables on the device, captures; and what the compiler makes of the kernels."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from kernel_layers import CHUNK, HYPER, Launches, make_layers
from torch.utils._python_dispatch import TorchDispatchMode

from thalweg.backends import Scales, triton, triton_tables
from thalweg.backends.pieces import Scratch


def test_a_backward_pass_across_the_step_raises():
    layers = make_layers([(4,)])
    weight = torch.nn.Parameter(layers[0].param)
    loss = weight.square().sum()
    with torch.no_grad():
        triton.step([layers[0]._replace(param=weight)], HYPER, Scales(), Scratch())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(("trust_ratio", "names"), [(True, ["sweep", "adapt", "sweep"]), (False, ["sweep"])])
@pytest.mark.parametrize("count", [1, 12])
def test_the_number_of_launches_does_not_depend_on_that_of_parameters(count, trust_ratio, names, monkeypatch):
    launches = Launches(monkeypatch)
    layers = make_layers([(2, 16)] * count, norm_dims=(1,)) + make_layers([(CHUNK * 2 + 1,)])
    triton.step(layers, dataclasses.replace(HYPER, trust_ratio=trust_ratio), Scales(), Scratch())
    slices = 2 * count if trust_ratio else count
    programs = {"sweep": (slices + 3,), "adapt": (slices + 1,)}
    assert [launch[:2] for launch in launches.log] == [(name, programs[name]) for name in names]


class NothingIsReadBack(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("trust_ratio", [True, False])
def test_nothing_is_read_back(trust_ratio):
    layers = make_layers([(5, 3), (40,)], steps=(torch.tensor(3.0),))
    scales = Scales(grad=torch.tensor(0.5), go=torch.tensor(1.0))
    hyper = dataclasses.replace(HYPER, lr=torch.tensor(0.1), trust_ratio=trust_ratio)
    with NothingIsReadBack():
        triton.step(layers, hyper, scales, Scratch())


class FakeCuda:
    """Streams, captures and pinned memory of a device that is not there."""

    def __init__(self, monkeypatch):
        self.stream, self.capturing, self.pinned = 1, False, []
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.capturing)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=self.stream))
        monkeypatch.setattr(triton_tables, "_pinned", self.pin)
        for name in ("_resident", "_spare", "_captured"):
            monkeypatch.setattr(triton_tables, name, type(getattr(triton_tables, name))())

    def pin(self, like):
        assert not self.capturing
        self.pinned.append(torch.empty_like(like))
        return self.pinned[-1]

    def tables(self, *, grad=512, param=256):
        row = (param, grad, 0, 0, 0, 0, 0, 1000, 1)
        return triton_tables.tables((row,), (4,) * 5, CHUNK, torch.device("meta"))


def test_tables_stay_on_the_device_until_an_address_changes(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    first = cuda.tables()
    sent = len(cuda.pinned)
    assert cuda.tables() is first
    assert len(cuda.pinned) == sent
    moved = cuda.tables(grad=1024)
    assert moved is not first
    assert len(cuda.pinned) == sent + 1  # what was laid by for a capture still is
    assert cuda.tables(grad=1024) is moved
    cuda.tables(param=8)
    assert cuda.tables(grad=1024) is moved
    cuda.stream = 2
    assert cuda.tables(grad=1024) is not moved


def test_a_capture_has_tables_of_its_own_sent_from_memory_of_its_own(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    eager = cuda.tables()
    cuda.capturing = True
    captured = cuda.tables()
    assert captured is not eager
    assert any(t.device.type == "cpu" for t in triton_tables._captured)
    assert any(t.data_ptr() == captured.lines.data_ptr() for t in triton_tables._captured)
    cuda.capturing = False
    assert cuda.tables() is eager
    assert not triton_tables._spare
    cuda.tables(grad=1024)  # lays new memory by
    cuda.capturing = True
    cuda.tables()
    assert len(triton_tables._captured) == 4


def test_the_memory_for_tables_is_bounded(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    monkeypatch.setattr(triton_tables, "_MAX_RESIDENT", 3)
    kept = cuda.tables(param=0)
    for param in range(10):
        cuda.tables(param=param)
        assert cuda.tables(param=0) is kept  # used last
    assert len(triton_tables._resident) == 3


COMPILE = """
import re
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from thalweg.backends import triton_kernels

def compile(kernel, pointers, constants):
    signature = {p.name: p.annotation_type or "constexpr" for p in kernel.params} | pointers
    source = ASTSource(kernel, signature, {k: constants.get(k) for k, t in signature.items() if t == "constexpr"})
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4}).asm["ptx"]

f64, f32, bf16 = tl.float64, tl.float32, tl.bfloat16
pointers = {"table": "*i64", "work": "*i64", "go": "*fp32", "grad_scale": "*fp32"}
for (param, grad, state, dtype), (measure, fresh, keep), alignment, wide in (
    ((f32, f32, f32, f32), (True, True, True), 16, "v4.b32"),
    ((f32, f32, f32, f32), (False, False, False), 16, "v4.b32"),
    ((bf16, bf16, bf16, f32), (True, True, False), 16, "v4.b32"),
    ((f64, f32, f64, f64), (False, True, True), 16, "v2.b64"),
    ((f32, bf16, f32, f32), (True, True, True), 1, None),
):
    ptx = compile(
        triton_kernels.sweep,
        pointers | ({"partials": "*fp64"} if measure else {"rates": "*fp64"}),
        dict(PARAM=param, GRAD=grad, STATE=state, DTYPE=dtype, EXPLORE=True, COUNTED=True, STOCHASTIC=True,
             ALIGNMENT=alignment, MEASURE=measure, ADAPT=True, FRESH=fresh, KEEP=keep, CHUNK=16384, BLOCK=1024),
    )
    vectors = [x for x in re.findall(r"ld\\.global\\S*|st\\.global\\S*", ptx) if ".v" in x]
    if wide is None:
        assert not vectors, vectors
    else:
        assert any(x.startswith("ld") and x.endswith(wide) for x in vectors), vectors
        assert measure and not keep or any(x.startswith("st") for x in vectors), vectors
compile(triton_kernels.adapt, {"table": "*i64", "partials": "*fp64", "rates": "*fp64"}, dict(CHUNK=16384, BLOCK=1024))
"""


def test_the_kernels_compile_and_load_sixteen_bytes_at_a_time(tmp_path):
    """For an H100, by Triton's own compiler, which needs no GPU."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    subprocess.run(
        [sys.executable, "-c", COMPILE], check=True, env={**environment, "TRITON_CACHE_DIR": str(tmp_path)}, timeout=300
    )
