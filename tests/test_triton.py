"""The Triton kernels take the steps of the one-parameter-at-a-time backend, under Triton's interpreter."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from support import assert_near, assert_same
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

import triton as triton_package
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from thalweg.backends import Hyper, Layer, Scales, single, triton, triton_kernels, triton_tables
from thalweg.backends.pieces import Scratch

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton's interpreter")

CHUNK, BLOCK = 128, 32
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6}
HYPER = Hyper(
    lr=0.1,
    alpha=-5.0,
    beta1=0.9,
    beta2=0.8,
    beta3=0.95,
    eps=1e-6,
    trust_eps=1e-3,
    weight_decay=0.01,
    trust_ratio=True,
    trust_clip=None,
    maximize=False,
    stochastic_rounding=False,
)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(triton, "CHUNK", CHUNK)
    monkeypatch.setattr(triton, "_BLOCK", BLOCK)


@pytest.fixture(autouse=True)
def rounding_to_nearest(monkeypatch):
    """Where hardware rounds to the nearest bfloat16, the interpreter cuts off."""
    cast = InterpreterBuilder.cast_impl

    def cast_impl(self, x, dtype):
        if x.dtype.scalar == tl.float32 and dtype.scalar == tl.bfloat16:
            data = torch.from_numpy(x.data.copy()).bfloat16().view(torch.int16).numpy().view("uint16")
            return TensorHandle(data, tl.bfloat16)
        return cast(self, x, dtype)

    monkeypatch.setattr(InterpreterBuilder, "cast_impl", cast_impl)


def make_layers(
    shapes, param=torch.float64, grad=None, state=None, *, explore=True, steps=(3.0,), norm_dims=None, seed=0
):
    """In the middle of a training: moments of gradients like this one."""
    generator = torch.Generator().manual_seed(seed)
    grad = grad or param
    state = state or torch.promote_types(param, torch.float32)

    def random(shape, dtype):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return [
        Layer(
            param=random(shape, param),
            grad=random(shape, grad),
            step=steps[i % len(steps)],
            exp_avg=random(shape, state) * 0.3,
            exp_avg_sq=random(shape, state).square() * 0.3,
            explore_ema=random(shape, state) * 0.3 if explore else None,
            norm_dims=norm_dims,
            seed=0xFFFFFFF0 + 7 * i,
        )
        for i, shape in enumerate(shapes)
    ]


def clone(layers):
    return [Layer(*(x.clone() if isinstance(x, Tensor) else x for x in layer)) for layer in layers]


def written(layers):
    """What a step may write to, by parameter, first moments, ..."""
    columns = zip(*((a.param, a.exp_avg, a.exp_avg_sq, a.explore_ema) for a in layers), strict=True)
    return [[x for x in column if x is not None] for column in columns]


def both(layers, scales=None, **changes):
    """The layers after a step of the kernels, and after one of the oracle."""
    hyper, scales = dataclasses.replace(HYPER, **changes), scales or Scales()
    expected = clone(layers)
    single.step(expected, hyper, scales, Scratch())
    triton.step(layers, hyper, scales, Scratch())
    return layers, expected


def assert_agree(actual, expected, tolerance=None):
    """Wide tensors to a tolerance, 16-bit ones to a unit in the last place."""
    for a, e in zip(written(actual), written(expected), strict=True):
        for x, y in zip(a, e, strict=True):
            if x.dtype.itemsize > 2:
                if x.numel():
                    assert_near([x], [y], tolerance or TOLERANCE[x.dtype])
                continue
            ulps = (x.view(torch.int16).int() - y.view(torch.int16).int()).abs()
            assert ulps.max() <= 1
            assert (ulps > 0).double().mean() <= 0.05


def kernels_only(monkeypatch, layers, **changes):
    """As :func:`both`, but nothing may be left to the oracle."""
    expected = clone(layers)
    single.step(expected, dataclasses.replace(HYPER, **changes), Scales(), Scratch())
    with monkeypatch.context() as patch:
        patch.setattr(single, "step", lambda *args: pytest.fail("left to another backend"))
        triton.step(layers, dataclasses.replace(HYPER, **changes), Scales(), Scratch())
    return layers, expected


class Launches:
    """What is launched: (name, grid, keywords)."""

    def __init__(self, monkeypatch):
        self.log = []
        for name in ("sweep", "adapt"):
            monkeypatch.setattr(triton, name, self.Kernel(getattr(triton, name), self.log))

    class Kernel:
        def __init__(self, kernel, log):
            self.kernel, self.log = kernel, log

        def __getitem__(self, grid):
            def launch(*args, **kwargs):
                self.log.append((self.kernel.__name__, grid, kwargs))
                return self.kernel[grid](*args, **kwargs)

            return launch


DTYPES = [
    (param, grad, state)
    for param in FLOATS
    for grad in FLOATS
    for state in (torch.float64, torch.float32, torch.bfloat16)
    if (param, state) != (torch.float64, torch.bfloat16)  # see test_stochastic_rounding
]


@pytest.mark.parametrize(("param", "grad", "state"), DTYPES, ids=str)
def test_dtypes(param, grad, state, monkeypatch):
    layers = make_layers([(41,)], param, grad, state)
    # A float64 parameter's float32 moments are rounded from what may differ in the last place.
    tolerance = 1e-6 if torch.float32 in (param, state) or param.itemsize == 2 else None
    assert_agree(*kernels_only(monkeypatch, layers), tolerance)


@pytest.mark.parametrize("param", TOLERANCE)
def test_sizes(param, monkeypatch):
    shapes = [(), (0,), (1,), (2,), (31,), (32,), (33,), (127,), (8, 16), (129,), (3, 0), (CHUNK * 3,), (7, 61)]
    assert_agree(*kernels_only(monkeypatch, make_layers(shapes, param)))


def test_sizes_at_the_true_chunk(monkeypatch):
    monkeypatch.undo()
    assert_agree(*both(make_layers([(1023,), (1025,), (triton.CHUNK + 1,)], torch.float32)))


def test_nothing_is_launched_for_no_elements(monkeypatch):
    launches = Launches(monkeypatch)
    assert_agree(*both(make_layers([(0,), (2, 0)])))
    assert not launches.log


def test_more_chunks_than_one_block_of_sums(monkeypatch):
    monkeypatch.setattr(triton, "CHUNK", 32)
    assert_agree(*both(make_layers([(5,), (32 * (BLOCK + 3),)])))


@pytest.mark.parametrize(
    "changes",
    [
        {"trust_ratio": False},
        {"trust_clip": (0.5, 1.0)},
        {"trust_clip": (100.0, 200.0)},
        {"trust_eps": 0.0},
        {"weight_decay": 0.0},
        {"maximize": True},
        {"eps": 0.1},
        {"beta1": 0.0, "alpha": 0.5},
        {"beta2": 0.0, "beta3": 0.0},
        {"alpha": 2.0, "beta2": 0.3, "beta3": 0.4},
        {"lr": 0.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("explore", [True, False])
def test_hyperparameters(changes, explore):
    assert_agree(*both(make_layers([(5, 3), (CHUNK + 7,), ()], explore=explore), **changes))


@pytest.mark.parametrize("trust_ratio", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_learning_rate_on_the_device(dtype, trust_ratio):
    lr = torch.tensor(0.3, dtype=dtype)
    assert_agree(*both(make_layers([(5, 3), (7,)]), lr=lr, trust_ratio=trust_ratio))


def test_a_clipped_gradient():
    layers = make_layers([(5, 3), (CHUNK + 7,)])
    grads = [layer.grad.clone() for layer in layers]
    assert_agree(*both(layers, scales=Scales(grad=torch.tensor(0.25)), maximize=True))
    assert_same([layer.grad for layer in layers], grads)


@pytest.mark.parametrize("on_device", [False, True])
def test_every_layer_counts_its_own_steps(on_device):
    steps = (1.0, 40.0, 1000.0, 3.0)
    layers = make_layers([(5,), (3, 3), (2,), (9,)], steps=tuple(map(torch.tensor, steps)) if on_device else steps)
    # The oracle's corrections are float32, like the count.
    assert_agree(*both(layers, beta2=0.99, beta3=0.999), 1e-6 if on_device else None)


def test_a_count_on_the_device_is_that_in_a_number():
    numbers = make_layers([(5,), (9,)], steps=(1.0, 70.0))
    tensors = [layer._replace(step=torch.tensor(layer.step)) for layer in clone(numbers)]
    for layers in (numbers, tensors):
        triton.step(layers, HYPER, Scales(), Scratch())
    assert_agree(tensors, numbers)


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_zeros(weight_decay):
    """A layer of norm 0 moves with ratio 1; a gradient of 0 moves nothing but the decay."""
    layers = make_layers([(40,), (CHUNK + 3,), (40,)])
    layers[0].param.zero_()
    for t in layers[1][1:2] + layers[1][3:6]:
        t.zero_()
    start = clone(layers)
    actual, expected = both(layers, weight_decay=weight_decay)
    assert_agree(actual, expected)
    assert layers[0].param.abs().max() > 0
    assert torch.equal(layers[1].param, start[1].param) == (weight_decay == 0.0)


@pytest.mark.parametrize("trust_ratio", [True, False])
@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16])
def test_a_skipped_step_leaves_every_bit(state, trust_ratio):
    layers = make_layers([(41,), (CHUNK + 3,)], torch.bfloat16, state=state, steps=(torch.tensor(0.0),))
    for layer in layers:
        layer.grad.fill_(float("nan"))
    start = clone(layers)
    hyper = dataclasses.replace(HYPER, trust_ratio=trust_ratio, stochastic_rounding=True)
    triton.step(layers, hyper, Scales(grad=torch.tensor(float("nan")), go=torch.tensor(0.0)), Scratch())
    for a, e in zip(written(layers), written(start), strict=True):
        assert_same(a, e)


def test_a_step_not_skipped_is_the_same_step():
    plain, going = (make_layers([(41,), (3, 5)]) for _ in range(2))
    triton.step(plain, HYPER, Scales(), Scratch())
    triton.step(going, HYPER, Scales(go=torch.tensor(1.0)), Scratch())
    for a, e in zip(written(going), written(plain), strict=True):
        assert_same(a, e)


def test_a_step_is_repeatable_bit_for_bit():
    first, second = (make_layers([(1000,), (3, 5)], torch.float32) for _ in range(2))
    for layers in (first, second):
        triton.step(layers, HYPER, Scales(), Scratch())
    for a, e in zip(written(first), written(second), strict=True):
        assert_same(a, e)


@pytest.mark.parametrize(
    ("shape", "dims"),
    [((5, 3, 4), (1, 2)), ((3, 2, 5), (2,)), ((2, CHUNK + 1), (1,)), ((4, 3), (0, 1)), ((1, 9), (1,))],
)
def test_slices_over_the_last_axes_have_norms_of_their_own(shape, dims, monkeypatch):
    layers = make_layers([shape, (2, *shape[1:])], norm_dims=dims)
    layers[0].param[0] *= 10
    whole = [layer._replace(norm_dims=None) for layer in clone(layers)]
    assert_agree(*kernels_only(monkeypatch, layers))
    triton.step(whole, HYPER, Scales(), Scratch())
    if len(dims) < len(shape) and shape[0] > 1:
        assert not torch.allclose(layers[0].param, whole[0].param)


def test_slices_are_rounded_by_their_place_in_the_parameter():
    layers = make_layers([(5, 7)], torch.bfloat16, torch.float32, norm_dims=(1,))
    assert_agree(*both(layers, stochastic_rounding=True))


@pytest.mark.parametrize(
    "case", ["first axis", "no axes", "permuted slices", "strided", "subclass", "mixed state", "float64 step"]
)
def test_what_the_kernels_cannot_walk_is_left_to_single(case, monkeypatch):
    odd, plain = make_layers([(4, 6), (4, 6)])
    if case == "first axis":
        odd = odd._replace(norm_dims=(0,))
    elif case == "no axes":
        odd = odd._replace(norm_dims=())
    elif case == "permuted slices":
        odd = odd._replace(norm_dims=(1,), **{k: getattr(odd, k).t().contiguous().t() for k in TENSORS})
    elif case == "strided":
        odd = odd._replace(**{k: torch.cat([getattr(odd, k)] * 2, 1)[:, ::2] for k in TENSORS})
    elif case == "subclass":
        odd = odd._replace(exp_avg=odd.exp_avg.as_subclass(Subclass))
    elif case == "mixed state":
        odd = odd._replace(exp_avg_sq=odd.exp_avg_sq.float())
    else:
        odd = odd._replace(step=torch.tensor(3.0, dtype=torch.float64))
    left = []
    original = single.step
    monkeypatch.setattr(single, "step", lambda layers, *rest: (left.append(len(layers)), original(layers, *rest)))
    assert_agree(*both([odd, plain]), 1e-6 if case == "mixed state" else None)
    assert left == [2, 1]  # the oracle's, and the odd one


TENSORS = ("param", "grad", "exp_avg", "exp_avg_sq", "explore_ema")


class Subclass(Tensor):
    """Like low-bit state: what its memory holds is its own business."""


def test_one_dense_layout_is_walked_as_it_lies(monkeypatch):
    layers = [
        layer._replace(**{k: getattr(layer, k).contiguous(memory_format=torch.channels_last) for k in TENSORS})
        for layer in make_layers([(3, 4, 2, 5), (2, 3, 1, 2)])
    ]
    assert_agree(*kernels_only(monkeypatch, layers))


def test_a_gradient_laid_out_otherwise_is_copied(monkeypatch):
    layers = make_layers([(4, 6), (3, 4, 2, 5)])
    layers[0] = layers[0]._replace(grad=layers[0].grad.t().contiguous().t())
    layers[1] = layers[1]._replace(grad=layers[1].grad[:1].expand(3, 4, 2, 5))
    assert_agree(*kernels_only(monkeypatch, layers))


def test_only_what_lies_at_multiples_of_sixteen_bytes_is_said_to(monkeypatch):
    launches = Launches(monkeypatch)
    layers = []
    for layer in make_layers([(CHUNK + 1,), (33,)], torch.float32):
        layers.append(layer._replace(**{k: torch.cat((torch.ones(1), getattr(layer, k)))[1:] for k in TENSORS}))
    assert layers[0].param.data_ptr() % 16 == 4
    even = make_layers([(40,)], torch.float32, seed=1)
    odd_slices = make_layers([(2, 5)], torch.float32, norm_dims=(1,))
    for case, alignments in (([*layers, *even], [1, 16]), (odd_slices, [1])):
        launches.log.clear()
        assert_agree(*both(case))
        assert [k["ALIGNMENT"] for name, _, k in launches.log if k.get("MEASURE")] == alignments


def naive_round(x: Tensor, seed: int, index: Tensor | None = None) -> Tensor:
    """The hash in Python's integers, for each element by itself."""
    rounded = []
    for i, value in enumerate(x.flatten().tolist()):
        h = ((i if index is None else int(index[i])) * 0x9E3779B1 + seed) % 2**32
        h ^= h >> 16
        h = h * 0x21F0AAAD % 2**32
        h ^= h >> 15
        h = h * 0x735A2D97 % 2**32
        h ^= h >> 15
        bits = torch.tensor(value).view(torch.int32).item() % 2**32
        if bits & 0x7F800000 != 0x7F800000:
            bits = (bits + (h & 0xFFFF)) & 0xFFFF0000
        rounded.append(bits - 2**32 if bits >= 2**31 else bits)
    return torch.tensor(rounded, dtype=torch.int32).view(torch.float32).bfloat16().view(x.shape)


@triton_package.jit
def round_all(x, out, seed, start, BLOCK: tl.constexpr):  # noqa: N803
    lanes = tl.arange(0, BLOCK)
    values = triton_kernels.round_to_bfloat16(tl.load(x + lanes), seed.to(tl.uint32), (start + lanes).to(tl.uint32))
    tl.store(out + lanes, values)


@pytest.mark.parametrize(("seed", "start"), [(0, 0), (12345, 7), (2**32 - 3, 2**32 - 100)])
def test_the_hash(seed, start):
    x = torch.randn(256) * torch.logspace(-40, 38, 256)
    x[:6] = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 3.4e38])
    x[6] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)  # a GPU's NaN: one more would be -0
    out = torch.empty_like(x)
    round_all[1,](x, out, seed, start, BLOCK=256)
    expected = naive_round(x, seed, torch.arange(start, start + 256)).float()
    assert torch.equal(out.nan_to_num(nan=1.0), expected.nan_to_num(nan=1.0))
    assert torch.equal(out.isnan(), expected.isnan())


@pytest.mark.parametrize("trust_ratio", [True, False])
@pytest.mark.parametrize("param", [torch.bfloat16, torch.float64])
def test_stochastic_rounding(param, trust_ratio):
    """The bits of the step in wide state, rounded: parameter and each state tensor by a seed of its own."""
    hyper = dataclasses.replace(HYPER, trust_ratio=trust_ratio, stochastic_rounding=True)
    low = make_layers([(CHUNK + 5,), (2, 3)], param, torch.float32, torch.bfloat16)
    wide = torch.promote_types(param, torch.float32)
    high = [layer._replace(**{k: getattr(layer, k).to(wide) for k in TENSORS}) for layer in clone(low)]
    for layers in (low, high):
        triton.step(layers, hyper, Scales(), Scratch())
    for a, e in zip(low, high, strict=True):
        for i, name in enumerate(("param", "exp_avg", "exp_avg_sq", "explore_ema")):
            if getattr(a, name).dtype == torch.bfloat16:
                assert_same([getattr(a, name)], [naive_round(getattr(e, name).float(), (a.seed + i) % 2**32)])


@pytest.mark.parametrize(("dtype", "stochastic"), [(torch.bfloat16, False), (torch.float16, True)])
def test_what_is_not_rounded_by_chance_is_rounded_to_nearest(dtype, stochastic):
    low = make_layers([(50,)], dtype, torch.float32)
    high = [layer._replace(param=layer.param.float()) for layer in clone(low)]
    for layers in (low, high):
        triton.step(layers, dataclasses.replace(HYPER, stochastic_rounding=stochastic), Scales(), Scratch())
    assert_same([low[0].param], [high[0].param.to(dtype)])


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
