"""On CUDA nobody waits for the device; seen without one, on tensors that only say they are there.

Launches are looked at and not made.
"""

from __future__ import annotations

import functools
import importlib
import itertools
from contextlib import nullcontext

import pytest
import torch
from support import pairwise
from test_launches import FakeCuda
from test_whole_steps import DTYPES, OPTIONS, SHAPES
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from thalweg import ALTO, EAdamW, Lamb
from thalweg.kernels import dispatch, foreach, single, triton
from thalweg.kernels.triton import address_tables as triton_tables
from thalweg.optim import one_pass

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)


class NobodyWaits(TorchDispatchMode):
    """Raises for what would make the host wait for CUDA, or what torch refuses there; lists all calls."""

    READS = (aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select)

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket is not torch.ops.prim.device:
            self.calls.append(func.overloadpacket)
        tensors = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        devices = {t.device.type for t in tensors}
        if func.overloadpacket in self.READS and "cuda" in devices:
            raise AssertionError(f"{func} reads what is on the device")
        if func is aten._local_scalar_dense.default:
            return 3.0  # of a fake tensor on the host, such as a count
        result = func(*args, **kwargs)
        if func.overloadpacket is aten.lift_fresh and result.device.type == "cuda":
            raise AssertionError("a number is sent and waited for")
        if func.overloadpacket in (aten._to_copy, aten.copy_):
            source, target = tensors[-1].device.type, result.device.type
            waits = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
            if source != target and (target == "cpu" or waits):
                raise AssertionError(f"a copy from {source} to {target} that the host waits for")
        if func is aten._foreach_add_.Tensor and args[0][0].device != args[1].device:
            raise AssertionError("CUDA's multi-tensor sum takes no tensor from the host")
        return result


class Launch:
    """In the place of a kernel: looks at the arguments and launches nothing."""

    def __init__(self, name, log):
        self.name, self.log, self.options = name, log, {}

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            self.options = kwargs
            for value in (*args, *kwargs.values()):
                if isinstance(value, Tensor):
                    assert value.device == CUDA
            self.log.append((self.name, grid))

        return launch


def lay_out(original, *content):
    """The tables' sizes are in their numbers, which a fake tensor has none of."""
    with unset_fake_temporarily():
        table, end = original(*content)
    return torch.empty(len(table), dtype=table.dtype), end


@pytest.fixture
def cuda(monkeypatch):
    """(names and grids of what is launched); inside, tensors may say that they are on CUDA."""
    FakeCuda(monkeypatch)
    log, addresses = [], itertools.count(1 << 44, 1 << 12)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("thalweg.kernels.FakeTensor", ())  # here none is: they are those of a GPU
    monkeypatch.setattr(FakeTensor, "data_ptr", lambda t: vars(t).setdefault("address", next(addresses)), raising=False)
    for module in ("addresses", "checks"):
        monkeypatch.setattr(f"thalweg.kernels.{module}.PLAIN", frozenset({FakeTensor, Tensor, Parameter}))
    monkeypatch.setattr(triton_tables, "_lay_out", functools.partial(lay_out, triton_tables._lay_out))
    for name in ("sweep", "adapt"):
        monkeypatch.setattr(triton, name, Launch(name, log))
    monkeypatch.setattr(single, "step", lambda *args: pytest.fail("left to another backend"))
    monkeypatch.setattr(foreach, "_counted", foreach._counted.__wrapped__)  # keep no fake tensor for others
    with FakeTensorMode():
        yield log


def take_fake_step(optimizer, params, grad_dtype=None):
    for p in params:
        p.grad = None  # as zero_grad does: the gradients are elsewhere at every step
        p.grad = torch.empty_like(p, dtype=grad_dtype)
    with NobodyWaits() as mode:
        optimizer.step()
    return mode.calls


@pytest.mark.parametrize(
    ("cls", "dtype", "options", "lr"),
    pairwise(itertools.product([ALTO, Lamb], DTYPES.values(), OPTIONS, ["number", "on the host", "on the device"])),
)
def test_no_step_waits_for_the_device(cls, dtype, options, lr, cuda):
    """Not even the first."""
    params = [Parameter(torch.empty(shape, dtype=dtype, device="cuda")) for shape in SHAPES]
    rate = {"number": 0.1, "on the host": torch.tensor(0.1), "on the device": torch.full((), 0.1, device="cuda")}[lr]
    optimizer = cls(params, fused=True, **OPTIONS[options])
    for group in optimizer.param_groups:
        group["lr"] = rate
    assert "backend: triton on cuda" in repr(optimizer)
    launched = ["sweep"] if "no trust" in options else ["sweep", "adapt", "sweep"]
    for _ in range(3):
        cuda.clear()
        assert len(take_fake_step(optimizer, params)) > 0
        assert [name for name, _ in cuda] == launched
    counted = "cpu" if options == "propagate" else "cuda"
    assert {optimizer.state[p]["step"].device.type for p in params} == {counted}
    buffers = {t.device for p in params for name, t in optimizer.state[p].items() if name != "step"}
    assert buffers == {CUDA}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nor_does_a_step_of_multi_tensor_operations_the_default(dtype, options, cuda):
    params = [Parameter(torch.empty(shape, dtype=dtype, device="cuda")) for shape in SHAPES]
    optimizer = ALTO(params, **OPTIONS[options])
    assert "backend: foreach on cuda" in repr(optimizer)
    for _ in range(3):
        take_fake_step(optimizer, params)
    assert not cuda


@pytest.mark.parametrize("stochastic_rounding", [False, True])
def test_neither_do_steps_of_bfloat16_parameters_with_skips_and_slices(stochastic_rounding, cuda):
    params = [Parameter(torch.empty(4, 8, 8, dtype=torch.bfloat16, device="cuda"))]
    optimizer = ALTO(params, fused=True, stochastic_rounding=stochastic_rounding, norm_dims=(-2, -1))
    for _ in range(2):
        take_fake_step(optimizer, params)
    assert cuda[-3:] == [("sweep", (12 // 3,)), ("adapt", (4,)), ("sweep", (4,))]


def test_nor_does_a_step_for_which_there_is_no_gradient(cuda):
    params = [Parameter(torch.empty(3, device="cuda")), Parameter(torch.empty(0, device="cuda"))]
    optimizer = ALTO(params, fused=True)
    take_fake_step(optimizer, params[1:])
    with NobodyWaits():
        optimizer.zero_grad()
        optimizer.step()
    assert not cuda


@pytest.fixture
def gpu_with_kernels(monkeypatch):
    monkeypatch.setattr(dispatch, "_triton_runs_on", lambda device: True)


@pytest.mark.parametrize("lr", ["number", "on the host", "on the device"])
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("nonfinite", ["propagate", "skip"])
@pytest.mark.usefixtures("gpu_with_kernels")
def test_e_around_a_fused_adam_is_one_launch_for_a_group_and_dtype_and_nobody_waits(
    nonfinite, capturable, lr, cuda, monkeypatch
):
    module = importlib.import_module("torch.optim.adam")
    monkeypatch.setattr(module, "adam", lambda *args, **kwargs: pytest.fail("the base has stepped"))
    narrow, more, wide = (
        [Parameter(torch.empty(shape, dtype=dtype, device="cuda")) for shape in SHAPES]
        for dtype in (torch.float32, torch.float32, torch.float64)
    )
    params = [*narrow, *more, *wide]
    groups = [{"params": narrow}, {"params": [*more, *wide]}]
    optimizer = EAdamW(groups, fused=True, capturable=capturable, nonfinite=nonfinite)
    rate = {"number": 0.1, "on the host": torch.tensor(0.1), "on the device": torch.full((), 0.1, device="cuda")}[lr]
    for group in optimizer.param_groups:
        group["lr"] = rate
    assert repr(optimizer).endswith(", in one pass with it)")
    for _ in range(3):
        cuda.clear()
        take_fake_step(optimizer, params)
        assert [name for name, _ in cuda] == ["sweep"] * 3
        assert isinstance(triton.sweep.options["proceed"], Tensor) is (nonfinite == "skip")
        assert triton.sweep.options["COUNTED"]
    assert {t.device for p in params for t in optimizer.state[p].values()} == {CUDA}
    assert optimizer.skipped_steps.device.type == ("cuda" if nonfinite == "skip" else "cpu")
    for p in params:
        p.grad = None
    cuda.clear()
    with NobodyWaits():
        optimizer.step()
    assert not cuda


@pytest.mark.usefixtures("cuda", "gpu_with_kernels")
def test_e_tells_each_of_several_gpus_whether_the_step_counts(monkeypatch):
    seen = []

    class Sweep:
        def __getitem__(self, grid):
            return lambda lines, *_, proceed, **kwargs: seen.append((lines.device.index, proceed.device.index))

    monkeypatch.setattr(triton, "sweep", Sweep())
    params = [Parameter(torch.empty(3, device=f"cuda:{i}")) for i in (1, 0, 1)]
    take_fake_step(EAdamW(params, fused=True, nonfinite="skip"), params)
    assert seen == [(1, 1), (0, 0)]


@pytest.mark.usefixtures("cuda", "gpu_with_kernels")
@pytest.mark.parametrize(
    ("takes", "options", "dtype"),
    [
        (True, {}, torch.float32),
        (False, {}, torch.bfloat16),
        (False, {"fused": False}, torch.float32),
        (False, {"fused": None}, torch.float32),
        (False, {"amsgrad": True}, torch.float32),
        (False, {"alpha": 0.0}, torch.float32),
    ],
)
def test_any_other_step_on_cuda_is_the_bases(takes, options, dtype):
    optimizer = EAdamW([Parameter(torch.empty(3, dtype=dtype, device="cuda"))], **{"fused": True, **options})
    assert bool(one_pass.split(optimizer.base)[0]) is takes
    optimizer.base.register_step_pre_hook(lambda *_: None)
    assert not one_pass.split(optimizer.base)[0]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_operations_does_not_depend_on_that_of_parameters(dtype, options, cuda):
    """torch's multi-tensor operations, for the verdict on the gradients and the counts of steps, count as one."""
    counts = []
    for number in (3, 50):
        params = [Parameter(torch.empty(8, i + 1, dtype=dtype, device="cuda")) for i in range(number)]
        optimizer = ALTO(params, fused=True, **OPTIONS[options])
        take_fake_step(optimizer, params)
        calls = take_fake_step(optimizer, params)
        if options == "propagate":  # steps are counted and read on the host, where they are
            calls = [call for call in calls if call is not aten._local_scalar_dense]
        counts.append(calls)
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum()),
        lambda x: float(x.sum()),
        lambda x: x.cpu(),
        lambda x: x.to("cpu", non_blocking=True),
        lambda x: torch.zeros(3).to(x.device),
        lambda x: x.copy_(torch.zeros(3)),
        lambda x: torch.tensor(1.0, device=x.device),
        lambda x: torch.nonzero(x),
        lambda x: torch._foreach_add_([x], torch.ones(()), alpha=1),
    ],
)
def test_waiting_is_seen(wait, cuda):
    with pytest.raises((AssertionError, RuntimeError)), NobodyWaits():  # the latter where torch knows no CUDA
        wait(torch.zeros(3, device="cuda"))
