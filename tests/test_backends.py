"""The backends where they differ in how they go about it: large layers, layouts, temporaries, kernels."""

from __future__ import annotations

import itertools

import pytest
import torch
from support import assert_near, assert_same, clone_params, make_grads, make_params, pairwise, take_steps
from torch.nn import Parameter
from torch.profiler import profile
from torch.torch_version import TorchVersion

from thalweg import ALTO, Lamb
from thalweg.kernels import Layer, cpp, eightbit
from thalweg.kernels.cpp import toolchain
from thalweg.kernels.pieces import CHUNK, PIECE, Scratch, flat, pieces
from thalweg.kernels.rounding import EXP_AVG, EXP_AVG_SQ, EXPLORE_EMA
from thalweg.optim import exploration

WAYS = {"single": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
STEPS = 2


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def run(starts, gradients, way, **options):
    params = clone_params(starts)
    take_steps(ALTO(params, **{"lr": 0.01, "alpha": -5.0, **WAYS[way], **options}), params, gradients)
    return params


def whole(monkeypatch):
    """No layer is cut."""
    monkeypatch.setattr("thalweg.kernels.pieces.PIECE", 1 << 60)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "options", [{}, {"trust_ratio": False}, {"weight_decay": 0.0}, {"max_grad_norm": 0.1}], ids=str
)
def test_layers_larger_than_a_piece_are_updated_as_if_whole(way, options, monkeypatch):
    shapes = [(2 * PIECE + 5,), (513, 515), (PIECE // 4,), (7, 3)]
    starts = [normal(*shape, seed=i) for i, shape in enumerate(shapes)]
    starts[1].zero_()  # of which the ratio is 1
    gradients = [[normal(*shape, seed=10 * k + i) for i, shape in enumerate(shapes)] for k in range(1, STEPS + 1)]
    in_pieces = run(starts, gradients, way, **options)
    whole(monkeypatch)
    assert_near(in_pieces, run(starts, gradients, "single", **options), 1e-12)


@pytest.mark.parametrize(("device", "size"), [("cpu", PIECE), ("meta", CHUNK)])
def test_pieces_fit_the_cache_of_a_cpu_and_outlast_the_launch_on_an_accelerator(device, size):
    tensors = [torch.empty(2 * size + 5, device=device) for _ in range(6)]
    layer = Layer(*tensors[:2], 1.0, *tensors[2:5])
    assert [(piece.start, r.numel()) for piece, r in pieces(layer, tensors[5])] == [
        (0, size),
        (size, size),
        (2 * size, 5),
    ]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(300, 301), (60, 61)])  # larger than what is shared among threads, and smaller
def test_stacked_layers_larger_than_a_piece_have_each_their_norm(way, shape):
    layers = [normal(*shape, seed=i) for i in range(9)]
    stack = torch.stack([layer * 10.0**i for i, layer in enumerate(layers)])
    gradients = [[normal(*stack.shape, seed=k)] for k in range(1, STEPS + 1)]
    (stacked,) = run([stack], gradients, way, norm_dims=(-2, -1))
    apart = run(list(stack.unbind()), [list(row[0].unbind()) for row in gradients], "single")
    assert_near(list(stacked.unbind()), apart, 1e-12)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [4, 56])  # smaller and larger than a piece
def test_layouts_of_parameter_and_gradient_may_differ(way, size):
    start = normal(size, size, size, 2)
    gradients = [[normal(size, size, size, 2, seed=k)] for k in range(1, STEPS + 1)]
    expected = run([start], gradients, "single")
    last = torch.channels_last
    for layout in (start, start.contiguous(memory_format=last)):
        for rows in (gradients, [[g.contiguous(memory_format=last) for g in row] for row in gradients]):
            assert_near(run([layout], rows, way), expected, 1e-12)
    padded = torch.empty(size, size, size, 3, dtype=torch.float64)[..., :2].copy_(start)  # not dense
    param = Parameter(padded)
    take_steps(ALTO([param], 0.01, alpha=-5.0, **WAYS[way]), [param], gradients)
    assert_near([param], expected, 1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_whose_memory_is_not_their_values_are_read_as_they_are(way):
    """Negated in name alone, as complex arithmetic leaves them, and zeros that have no memory."""
    starts = [normal(5, 6), normal(7, seed=1)]
    g = normal(5, 6, seed=2)
    expected = run(starts, [[-g, torch.zeros(7, dtype=torch.float64)]], "single")
    params = clone_params(starts)
    params[0].grad, params[1].grad = torch._neg_view(g.clone()), torch._efficientzerotensor(7, dtype=torch.float64)
    ALTO(params, 0.01, alpha=-5.0, nonfinite="propagate", **WAYS[way]).step()
    assert_near(params, expected, 1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_a_backward_pass_of_what_was_computed_before_the_step_raises(way):
    p = Parameter(normal(5, 6))
    loss = p.square().sum()
    p.grad = torch.ones_like(p)
    ALTO([p], **WAYS[way]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_vectors_are_views_in_the_order_of_memory():
    x = normal(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    (vector,) = flat([x])
    assert vector.data_ptr() == x.data_ptr()
    assert vector.shape == (120,)
    assert flat([x, x.contiguous()]) is None
    assert flat([x[..., :2]]) is None


def test_scratch_is_used_again_and_grows():
    scratch = Scratch()
    large = scratch.like(torch.empty(10, 10), torch.float32, "r")
    assert scratch.like(torch.empty(3, 5), torch.float32, "r").data_ptr() == large.data_ptr()
    assert scratch.like(torch.empty(3, 5), torch.float32, "h").data_ptr() != large.data_ptr()
    assert scratch.like(torch.empty(11, 10), torch.float32, "r").shape == (11, 10)


def peak(step) -> int:
    """The most that was allocated at a time, beyond what there was before, in bytes."""
    with profile(profile_memory=True) as profiler:
        step()
    events = sorted(
        (event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"),
        key=lambda event: event.start_ns(),
    )
    total = most = 0
    for event in events:
        total += event.nbytes()
        most = max(most, total)
    return most


@pytest.mark.parametrize(
    "options",
    [{}, {"foreach": False}, {"foreach": True}]
    + [{"state_dtype": s, "foreach": way} for s in (torch.bfloat16, "8bit") for way in (None, True, False)],
    ids=str,
)
def test_temporaries_are_at_most_twice_the_largest_parameter(options):
    """Of the first step beyond its state, when scratch memory is allocated, and of later ones."""
    params = [Parameter(torch.ones(shape)) for shape in ((9 * PIECE,), (2 * PIECE,), *[(1000,)] * 50)]
    for p in params:
        p.grad = torch.ones_like(p)
    largest = 4 * params[0].numel()
    small = Parameter(torch.ones(2))
    take_steps(ALTO([small], **options), [small], [[torch.ones(2)]])  # kernels are compiled by now
    optimizer = ALTO(params, **options)
    optimizer.init_state()
    for _ in range(2):
        assert peak(optimizer.step) <= 2 * largest


def test_the_memory_counter_sees_what_is_allocated():
    assert peak(lambda: torch.ones(1000) + torch.ones(1000)) in (12000, 12000 + 3 * 64)


def test_one_kernel_serves_all_shapes_and_hyperparameters(monkeypatch):
    built = []
    real = toolchain.load
    monkeypatch.setattr(toolchain, "load", lambda file, *rest: built.append(file) or real(file, *rest))
    cpp._kernel.cache_clear()
    params = [Parameter(normal(*shape, dtype=torch.float32)) for shape in ((), (2,), (3, 5), (70, 80), (2, 3, 4, 5))]
    optimizer = ALTO(params, alpha=-5.0, fused=True)
    group = optimizer.param_groups[0]
    for k in range(1, 6):
        for p in params:
            p.grad = normal(*p.shape, seed=k, dtype=torch.float32)
        group.update(lr=0.1 / k, alpha=-0.1 * k, weight_decay=0.1 * (k - 1), betas=(0.9 - 0.1 * k, 0.99), beta=0.5)
        group.update(trust_clip=(0.1, float(k)), eps=1e-6 * k, trust_eps=1e-6 * k)
        optimizer.step()
    assert [file for file in built if file == "kernels.cpp"] == ["kernels.cpp"]


@pytest.mark.parametrize("state_dtype", [None, "8bit"])
def test_a_step_does_not_depend_on_the_number_of_threads(state_dtype):
    shapes = [(1 << 20,), (300, 301), (40, 7, 1000), (5,), ()]
    starts = [normal(*shape, seed=i, dtype=torch.float32) for i, shape in enumerate(shapes)]
    gradients = [[normal(*shape, seed=9 + i, dtype=torch.float32) for i, shape in enumerate(shapes)]]
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(run(starts, gradients, "fused", state_dtype=state_dtype))
    finally:
        torch.set_num_threads(threads)
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])
    assert_near(found[0], run(starts, gradients, "single", state_dtype=state_dtype), 1e-6)


@pytest.mark.parametrize("decoupled_decay", [False, True])
@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16, {"exp_avg_sq": torch.bfloat16}])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_kernel_moves_a_number_alike_wherever_it_stands(dtype, state_dtype, decoupled_decay):
    """Within a vector of the processor and behind the last one, so that a layer may be cut over ranks."""
    start, gradient = normal(64, dtype=dtype) * torch.logspace(-2, 2, 64).to(dtype), normal(64, seed=1, dtype=dtype)
    options = {"trust_ratio": False, "state_dtype": state_dtype, "decoupled_decay": decoupled_decay}
    (stepped,) = run([start], [[gradient]], "fused", **options)
    for begin, end in ((0, 22), (22, 44), (44, 64), (5, 12), (63, 64)):
        assert_same(run([start[begin:end]], [[gradient[begin:end]]], "fused", **options), [stepped[begin:end]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_kernel_that_judges_gradients_sees_every_entry(dtype):
    tensors = [torch.zeros(size, dtype=dtype) for size in (0, 1, 3, 600_003)]  # of the last, several blocks
    tensors.append(torch.zeros(4, 5, dtype=dtype).t())
    limit = 1000.0
    assert cpp.all_within(tensors, lambda dtype: limit) is True
    beyond = torch.nextafter(torch.tensor(limit, dtype=dtype), torch.tensor(torch.inf, dtype=dtype)).item()
    for i, position in ((1, 0), (2, 2), (3, 0), (3, 300_001), (3, 600_002), (4, 19)):
        for value, within in ((limit, True), (-limit, True), (beyond, False), (-beyond, False)):
            flat(tensors[i : i + 1])[0][position] = value
            assert cpp.all_within(tensors, lambda dtype: limit) is within
        for value in (torch.nan, -torch.inf):
            flat(tensors[i : i + 1])[0][position] = value
            assert cpp.all_within(tensors, lambda dtype: limit) is False
        tensors[i].zero_()
    assert cpp.all_within([tensors[3][::2]], lambda dtype: limit) is None  # has gaps


def test_float16_is_converted_as_torch_converts_it():
    """Read and written as it is, for every value; and rounded to nearest, for numbers between the values."""
    every = torch.arange(1 << 16).to(torch.int16).view(torch.float16)
    starts = [every[every.isfinite()]]
    options = {"trust_ratio": False, "eps": 1.0, "weight_decay": 0.9}
    assert_same(run(starts, [[torch.zeros_like(starts[0])]], "fused", lr=0.0, **options), starts)
    gradients = [[normal(len(starts[0]), dtype=torch.float16)]]
    fused, single = (run(starts, gradients, way, lr=0.01, **options)[0] for way in ("fused", "single"))
    assert (fused != starts[0]).double().mean() > 0.5
    assert (fused != single).double().mean() < 1e-3  # where float32 differs in its last place


@pytest.mark.parametrize(("dtype", "gap"), [(torch.float16, 2**-10), (torch.bfloat16, 2**-7)])
def test_halfway_between_two_values_the_even_one_is_taken(dtype, gap):
    starts = [1.0 + gap * torch.arange(1, 8, dtype=torch.float32)]
    params = [Parameter(t.to(dtype)) for t in starts]
    params[0].grad = torch.ones_like(params[0])
    options = {"betas": (0.0, 0.0), "eps": 1e-30, "weight_decay": 0.0, "trust_ratio": False}  # moves by lr, exactly
    Lamb(params, lr=gap / 2, fused=True, **options).step()
    assert_same(params, [(t - gap / 2).to(dtype) for t in starts])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_parameters_are_updated_in_float32_by_all(way, dtype):
    starts = [normal(40, 50, dtype=dtype), normal(3, seed=1, dtype=dtype)]
    gradients = [[normal(*t.shape, seed=k, dtype=dtype) for t in starts] for k in range(1, STEPS + 1)]
    for actual, expected in zip(run(starts, gradients, way), run(starts, gradients, "single"), strict=True):
        steps = (actual.view(torch.int16).int() - expected.view(torch.int16).int()).abs()
        assert steps.max() <= 1  # a unit in the last place


@pytest.mark.parametrize("way", WAYS)
def test_all_round_stochastically_alike(way, monkeypatch):
    starts = [normal(2 * PIECE, dtype=torch.bfloat16)]
    gradients = [[normal(2 * PIECE, seed=k, dtype=torch.bfloat16)] for k in range(1, STEPS + 1)]
    actual = run(starts, gradients, way, stochastic_rounding=True)[0]
    whole(monkeypatch)
    expected = run(starts, gradients, "single", stochastic_rounding=True)[0]
    assert (actual != expected).double().mean() < 1e-3  # where float32 differs in its last place
    assert (actual != run(starts, gradients, way)[0]).double().mean() > 0.1


NARROW = (torch.bfloat16, "8bit")
BUFFERS = (EXP_AVG, EXP_AVG_SQ, EXPLORE_EMA)


STORED = [*NARROW, *({name: dtype} for dtype in NARROW for name in BUFFERS), dict(zip(BUFFERS, NARROW, strict=False))]


@pytest.mark.parametrize(
    ("way", "stored", "trust_ratio"), pairwise(itertools.product(["foreach", "fused"], STORED, [True, False])), ids=str
)
def test_all_store_state_in_few_bits_alike(way, stored, trust_ratio):
    starts = [normal(*shape, seed=i, dtype=torch.float32) for i, shape in enumerate([(300, 301), (7,), (175, 512)])]
    gradients = [[normal(*t.shape, seed=k, dtype=torch.float32) for t in starts] for k in range(1, STEPS + 1)]
    found = []
    for name in (way, "single"):
        params = clone_params(starts)
        optimizer = ALTO(params, 0.01, alpha=-5.0, state_dtype=stored, trust_ratio=trust_ratio, **WAYS[name])
        take_steps(optimizer, params, gradients)
        found.append((params, [optimizer.state[p][key] for p in params for key in BUFFERS]))
    (params, state), (expected, expected_state) = found
    assert_near(params, expected, 1e-4)
    for a, b in zip(state, expected_state, strict=True):
        assert eightbit.kind(a) == eightbit.kind(b)
        if eightbit.is_8bit(a):
            assert_near([a.scale], [b.scale], 1e-6)
            a, b = a.codes, b.codes
        if a.dtype in (torch.bfloat16, torch.uint8):
            assert (a != b).double().mean() < 2e-3  # where float32 differs in its last place
        else:
            assert_near([a], [b], 1e-2)  # E's buffer in few bits reaches the moments


@pytest.mark.parametrize("way", ["foreach", "fused"])
@pytest.mark.parametrize("trust_ratio", [True, False])
def test_all_write_8_bits_alike_bit_for_bit(way, trust_ratio):
    """What is computed is exact: from zeros, with products by powers of 2 alone, and then halved by a gradient of 0."""
    g = normal(64, 256, dtype=torch.float32) * 10.0 ** (4 * normal(64, 256, seed=1, dtype=torch.float32) - 4).clamp_(
        -12, 5
    )
    g[1], g[2, 1:], g[3, :2], g[4] = 0.0, 1e-12, torch.tensor([-1e6, 1e6]), -g[4].abs()
    g[5, 7], g[6, 7] = torch.nan, torch.inf
    found = []
    for name in (way, "single"):
        p = Parameter(torch.ones_like(g))
        options = {"state_dtype": "8bit", "trust_ratio": trust_ratio, "nonfinite": "propagate", **WAYS[name]}
        optimizer = ALTO([p], betas=(0.5, 0.5), beta=0.5, alpha=1.0, **options)
        for gradient, alpha in ((g, 1.0), (torch.zeros_like(g), 0.0)):
            optimizer.param_groups[0]["alpha"] = alpha
            take_steps(optimizer, [p], [[gradient]])
            found.append([part for key in BUFFERS for q in [optimizer.state[p][key]] for part in (q.codes, q.scale)])
    for actual, expected in zip(found[:2], found[2:], strict=True):
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.parametrize(
    ("options", "picked"),
    [
        ({}, "fused"),
        ({"state_dtype": "8bit"}, "fused"),
        ({"foreach": True}, "foreach"),
        ({"foreach": False}, "single"),
        ({"fused": True}, "fused"),
    ],
)
def test_the_representation_says_what_was_picked(options, picked):
    assert f"backend: {picked} on cpu" in repr(ALTO([Parameter(torch.ones(2))], **options))


def test_what_dtensors_lack_before_torch_2_13_is_done_one_by_one(monkeypatch):
    xs, ys = make_grads(make_params(), 2)
    expected = torch._foreach_lerp(xs, ys, 1.5)
    xs[0].device_mesh = None
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.12.1"))
    monkeypatch.setattr(torch, "_foreach_lerp", lambda *_: pytest.fail("not for DTensors"))
    assert_same(exploration._foreach_lerp(xs, ys, 1.5), expected)


def test_before_parameters_are_somewhere_no_kernel_looks_for_them():
    p = Parameter(torch.empty(3, device="meta"))
    p.grad = torch.empty_like(p)
    optimizer = ALTO([p], fused=True, nonfinite="propagate")
    assert "backend: single on meta" in repr(optimizer)
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].device.type == "meta"
