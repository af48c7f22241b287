"""What the host does: launches, tables on the device, captures."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from kernel_layers import CHUNK, HYPER, Launches, make_layers, step
from torch.utils._python_dispatch import TorchDispatchMode

from thalweg.kernels import Scales
from thalweg.kernels.triton import address_tables as triton_tables


def test_a_backward_pass_across_the_step_raises():
    layers = make_layers([(4,)])
    weight = torch.nn.Parameter(layers[0].param)
    loss = weight.square().sum()
    with torch.no_grad():
        step([layers[0]._replace(param=weight)], HYPER)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(("trust_ratio", "names"), [(True, ["sweep", "adapt", "sweep"]), (False, ["sweep"])])
@pytest.mark.parametrize("count", [1, 12])
def test_the_number_of_launches_does_not_depend_on_that_of_parameters(count, trust_ratio, names, monkeypatch):
    launches = Launches(monkeypatch)
    layers = make_layers([(2, 16)] * count, norm_dims=(1,)) + make_layers([(CHUNK * 2 + 1,)])
    step(layers, dataclasses.replace(HYPER, trust_ratio=trust_ratio))
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
    scales = Scales(grad=torch.tensor(0.5), proceed=torch.tensor(1.0))
    hyper = dataclasses.replace(HYPER, lr=torch.tensor(0.1), trust_ratio=trust_ratio)
    with NothingIsReadBack():
        step(layers, hyper, scales)


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
        row = (param, grad, *[0] * 8, 1000, 1)
        return triton_tables.tables((row,), (4,) * triton_tables.ADDRESSES, CHUNK, torch.device("meta"))


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
    cuda.capturing = False
    assert cuda.tables() is eager  # lays memory for another capture by
    cuda.capturing = True
    cuda.tables()
    first, second = triton_tables._captured
    assert first.data_ptr() != second.data_ptr()
    assert first.equal(second)
    _, *laid_by = cuda.pinned
    assert [t.data_ptr() for t in laid_by] == [first.data_ptr(), second.data_ptr()]


def test_a_table_on_its_way_is_not_written_to(monkeypatch):
    """Nor one of a graph: what is sent lies in memory that is filled once."""
    cuda = FakeCuda(monkeypatch)
    for grad in (512, 1024, 512):
        cuda.tables(grad=grad)
    sent = [t for t in cuda.pinned if all(t is not spare for spare in triton_tables._spare.values())]
    assert [t[1].item() for t in sent] == [512, 1024, 512]


def test_the_memory_for_tables_is_bounded(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    monkeypatch.setattr(triton_tables, "_MAX_RESIDENT", 3)
    kept = cuda.tables(param=0)
    for param in range(10):
        cuda.tables(param=param)
        assert cuda.tables(param=0) is kept  # used last
    assert len(triton_tables._resident) == len(triton_tables._spare) == 3
