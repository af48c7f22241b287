"""Whole steps of the optimizers on the kernels: what they compute, and that on CUDA nobody waits for the device.

There need not be a GPU: what is computed is seen under the interpreter, on CPU; what waits, on tensors that only say
that they are on CUDA, with launches that are looked at and not made.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from support import assert_near, assert_same, clone_params, make_grads, make_params, take_steps
from test_launches import FakeCuda
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.nn import Parameter
from torch.optim import AdamW
from torch.utils._python_dispatch import TorchDispatchMode

from thalweg import ALTO, E, EAdamW, Lamb, layers, one_pass
from thalweg.backends import choice, foreach, single, triton, triton_tables
from thalweg.backends.choice import choose, describe

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
SHAPES = ((3, 4), (129,), (), (0,), (2, 3, 5))
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "complex": torch.complex64}
OPTIONS = {
    "defaults": {},
    "capturable": {"capturable": True},
    "propagate": {"nonfinite": "propagate"},
    "propagate, capturable": {"nonfinite": "propagate", "capturable": True},
    "clipped": {"max_grad_norm": 0.1, "trust_clip": (0.5, 1.0)},
    "no trust ratio, ascending": {"trust_ratio": False, "maximize": True},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("cls", [ALTO, Lamb])
def test_whole_steps_are_those_of_single(cls, dtype, options, monkeypatch):
    """One of them skipped, of a parameter without a gradient now and then."""
    params = make_params(SHAPES, dtype)
    others = clone_params(params)
    grads = make_grads(params, 5)
    grads[1][0] = None
    if "propagate" not in options:
        grads[2][1][5] = float("nan")
    expected = cls(others, lr=0.1, foreach=False, **OPTIONS[options])
    take_steps(expected, others, grads)
    monkeypatch.setattr("thalweg.lamb.choose", lambda group, device: triton)
    monkeypatch.setattr(single, "step", lambda *args: pytest.fail("left to another backend"))
    optimizer = cls(params, lr=0.1, foreach=False, **OPTIONS[options])
    take_steps(optimizer, params, grads)
    assert_near(
        [p for p in params if p.numel()], [p for p in others if p.numel()], 2**-8 if dtype.itemsize == 2 else 2e-6
    )
    assert optimizer.skipped_steps == expected.skipped_steps == (0 if "propagate" in options else 1)
    for p, other in zip(params, others, strict=True):
        assert_same([optimizer.state[p]["step"]], [expected.state[other]["step"]])


def test_a_closure_is_called_first(monkeypatch):
    monkeypatch.setattr("thalweg.lamb.choose", lambda group, device: triton)
    weight = Parameter(torch.ones(3))
    optimizer = ALTO([weight])

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 3.0
    assert not torch.equal(weight, torch.ones(3))


def two_groups(params):
    rest = {
        "lr": torch.tensor(0.05, dtype=torch.float64),
        "betas": (0.8, 0.95),
        "weight_decay": 0.3,
        "explore_alpha": -2.0,
    }
    return [{"params": params[:2]}, {"params": params[2:], **rest}]


@pytest.mark.parametrize("judged", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_e_and_adamw_in_one_pass_are_the_base_on_what_e_passes_on(dtype, judged, monkeypatch):
    """The first step and another skipped, told on the device; of parameters without a gradient now and then."""
    params = make_params(SHAPES, dtype)
    others = clone_params(params)
    grads = make_grads(params, 6)
    grads[1][0] = grads[3][-1] = None
    if judged:
        grads[0][1][5] = grads[3][2] = torch.tensor(float("inf"), dtype=dtype)
    expected = E(AdamW(two_groups(others), foreach=False, fused=False), 2.0, 0.75, nonfinite="skip")
    take_steps(expected, others, grads)
    monkeypatch.setattr("thalweg.one_pass.choose", lambda group, device: triton)
    monkeypatch.setattr(single, "step", lambda *args: pytest.fail("left to another backend"))
    optimizer = E(AdamW(two_groups(params), fused=True), 2.0, 0.75)
    for row in grads:
        for p, g in zip(params, row, strict=True):
            p.grad = g
        one_pass.step(optimizer.base, layers.all_finite(g for g in row if g is not None) if judged else None)
    assert expected.skipped_steps == (2 if judged else 0)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    assert_near([p for p in params if p.numel()], [p for p in others if p.numel()], tolerance)
    for p, other in zip(params, others, strict=True):
        assert optimizer.state[p].keys() == expected.state[other].keys()
        for name, value in expected.state[other].items():
            if value.numel():
                assert_near([optimizer.state[p][name]], [value], tolerance)


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
    log, addresses = [], itertools.count(1 << 20, 1 << 12)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(FakeTensor, "data_ptr", lambda t: vars(t).setdefault("address", next(addresses)), raising=False)
    monkeypatch.setattr("thalweg.backends.addresses._PLAIN", frozenset({FakeTensor, Tensor, Parameter}))
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


@pytest.mark.parametrize("lr", ["number", "on the host", "on the device"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("cls", [ALTO, Lamb])
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
    monkeypatch.setattr(choice, "_triton_runs_on", lambda device: True)


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
        assert isinstance(triton.sweep.options["go"], Tensor) is (nonfinite == "skip")
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
            return lambda lines, *_, go, **kwargs: seen.append((lines.device.index, go.device.index))

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
        (False, {"amsgrad": True}, torch.float32),
        (False, {"alpha": 0.0}, torch.float32),
    ],
)
def test_any_other_step_on_cuda_is_the_bases(takes, options, dtype):
    optimizer = EAdamW([Parameter(torch.empty(3, dtype=dtype, device="cuda"))], **{"fused": True, **options})
    assert one_pass.applies(optimizer.base) is takes
    optimizer.base.register_step_pre_hook(lambda *_: None)
    assert not one_pass.applies(optimizer.base)


@pytest.mark.parametrize(
    ("runs", "capability", "version"),
    [
        (True, (8, 0), "12.8"),
        (True, (9, 0), "13.0"),
        (False, (7, 5), "12.8"),
        (False, (9, 4), None),
        (False, None, "12.8"),
    ],
)
def test_e_leaves_gpus_that_the_kernels_are_not_compiled_for_to_the_base(runs, capability, version, monkeypatch):
    """As those of AMD, for which torch says no version of CUDA; and all of them without Triton."""
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(triton, "probe", lambda device: None)
    assert choice._triton_runs_on.__wrapped__(CUDA) is runs
    monkeypatch.setattr(choice, "_triton", lambda: importlib.import_module("triton_is_not_there"))
    assert not choice._triton_runs_on.__wrapped__(CUDA)


def test_where_triton_cannot_build_the_base_steps_and_a_warning_says_why(monkeypatch):
    def refuse(device):
        raise RuntimeError("no C compiler")

    triton.probe(torch.device("cpu"))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(triton, "probe", refuse)
    with pytest.warns(UserWarning, match=r"^Triton's kernels cannot be had on cuda.*: no C compiler$"):
        assert not choice._triton_runs_on.__wrapped__(CUDA)


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


def test_triton_is_picked_for_cuda_alone():
    group = {"fused": True, "foreach": None}
    assert choose(group, CUDA) is triton
    assert describe(group, CUDA) == "triton on cuda"
    assert describe(group, torch.device("cpu")) == "fused on cpu"
    assert describe({"fused": None, "foreach": None}, CUDA) == "foreach on cuda"


def test_without_triton_the_constructor_says_what_to_install(monkeypatch):
    monkeypatch.setattr("thalweg.hyperparameters.find_spec", lambda name: None)
    with FakeTensorMode():
        params = [Parameter(torch.empty(2, device="cuda"))]
        text = r"fused must be None or False for a parameter on cuda:0 without Triton \(pip install triton\), got True"
        with pytest.raises(ValueError, match=text):
            ALTO(params, fused=True)
        ALTO(params)


def test_other_devices_are_refused():
    with FakeTensorMode():
        params = [Parameter(torch.empty(2, device="xpu"))]
        with pytest.raises(ValueError, match=r"fused must be None or False for a parameter on xpu:0, .*, got True"):
            ALTO(params, fused=True)


SCRIPT = """
import sys, torch
sys.modules["triton"] = None
import thalweg
from thalweg.backends.choice import choose
thalweg.ALTO([torch.nn.Parameter(torch.ones(2))], fused=True)
try:
    choose({"fused": True, "foreach": None}, torch.device("cuda"))
except ImportError as error:
    print(error)
"""


def test_without_triton_all_else_works_and_a_step_on_cuda_says_what_to_install():
    """A parameter may be moved to CUDA after the optimizer was made."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)
    assert done.stdout == "fused=True for parameters on CUDA needs Triton: pip install triton\n"


def test_importing_the_package_does_not_import_triton():
    code = "import sys, thalweg; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
