"""The closed forms of a step's cost against models without memory, cut on a fake process group, and by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from thalweg import ALTO, Lamb, param_groups
from thalweg.bench.wire import Collectives
from thalweg.lab import skeletons, tasks
from thalweg.lab.engine import placement
from thalweg.sharding import plan
from thalweg.sharding.plan import ADAMW, PLANNED, Mesh, Parameter
from thalweg.torch_private import fake_store


@pytest.fixture
def ranks():
    """A function that makes this process the first of so many, of which there are no others."""
    yield lambda count: dist.init_process_group("fake", rank=0, world_size=count, store=fake_store())
    dist.destroy_process_group()


def skeleton(task):
    with torch.device("meta"):
        return tasks.find(task).skeleton()


def cut(model, mesh):
    """The model's parameters as DTensors: by experts and tensor parallelism, then by FSDP2."""
    sizes = {"data": mesh.data, "shard": mesh.shard, "expert": mesh.expert, "tensor": mesh.tensor}
    axes = init_device_mesh("cpu", tuple(sizes.values()), mesh_dim_names=tuple(sizes))
    stacks, made = set(), {}  # a tied parameter is made once
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        stacked = all(p.ndim == 3 for p in own.values())
        for name, p in own.items():
            by_tensor = Shard(p.ndim - 1) if p.ndim > 1 else Replicate()
            spread = [Shard(0), Shard(0) if mesh.expert > 1 else by_tensor]
            where = (axes["expert", "tensor"], spread) if stacked else (axes["tensor"], [by_tensor])
            made[id(p)] = made.get(id(p)) or (p, nn.Parameter(distribute_tensor(p.detach(), *where)))
            setattr(module, name, made[id(p)][1])
        if own and stacked:
            fully_shard(module, mesh=axes["data", "shard"])
            stacks |= set(module.parameters(recurse=False))
    axes["shard", "expert"]._flatten("others")
    fully_shard(model, mesh=axes["data", "others"], ignored_params=stacks)


def cut_by_the_lab(model, mesh):
    """As ``thalweg train --sharding fsdp2+ep`` does it."""
    placement.sharded(model, mesh, "cpu", "no")


def numel(t):
    return (t.to_local() if isinstance(t, DTensor) else t).numel()


def stored(optimizer):
    tensors = [x for state in optimizer.state.values() for name, x in state.items() if name != "step"]
    return sum(numel(x) * x.element_size() for x in tensors)


CUTS = [
    ("moe-85b", Mesh(expert=384), cut_by_the_lab),
    ("pydoc-moe", Mesh(shard=7), cut),
    ("pydoc-moe", Mesh(data=2, shard=3, tensor=2, expert=2), cut),
    ("pydoc-moe", Mesh(shard=100, tensor=5), cut),
    ("pydoc-lm", Mesh(data=8, shard=48), cut),
    ("pydoc-lm", Mesh(data=3), cut),
]


@pytest.mark.filterwarnings("ignore:Slicing a flattened dim from root mesh")
@pytest.mark.parametrize(("task", "mesh", "cut"), CUTS, ids=lambda value: str(getattr(value, "__name__", value)))
def test_shapes_state_and_collectives_are_those_of_a_model_cut_without_memory(task, mesh, cut, ranks):
    """Also where experts and the rest have meshes of their own, of the same ranks."""
    ranks(mesh.ranks)
    model = skeleton(task)
    parameters = skeletons.parameters(model)
    cut(model, mesh)
    shapes = [tuple(p.to_local().shape) for p in model.parameters()]
    assert [plan.local_shape(p, mesh) for p in parameters] == shapes
    held = sum(map(math.prod, shapes))
    for cls, dtype in itertools.product((Lamb, ALTO), ("float32", "bfloat16")):
        given = {"alpha": 0.5, "beta": 0.5} if cls is ALTO else {}
        optimizer = cls(param_groups(model), lr=0.1, state_dtype=dtype, **given)
        optimizer.init_state()
        (one,) = (one for one in PLANNED if (one.name, one.state) == (cls.__name__.upper(), dtype))
        cost = plan.cost(parameters, mesh, one)
        assert (cost.parameters, cost.gradients, cost.state) == (4 * held, 4 * held, stored(optimizer))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    optimizer.step()
    cost = plan.cost(parameters, mesh, ADAMW)
    assert (cost.state, cost.temporary) == (stored(optimizer), 4 * held)
    assert cost.total == 5 * 4 * held
    if mesh.pieces == 1:  # copies alone are plain parameters in the plan
        return
    for nonfinite in ("skip", "propagate"):
        optimizer = ALTO(param_groups(model), lr=0.1, alpha=0.5, beta=0.5, nonfinite=nonfinite)
        expected = plan.all_reduces(parameters, mesh, judged=nonfinite == "skip")
        for _ in range(1 if task == "moe-85b" else 2):  # of the largest, a step takes a second
            with Collectives() as made:
                optimizer.step()
            assert made.calls == {"allreduce": len(expected)}
            assert made.bytes == sum(one.bytes for one in expected)


def parts(p, mesh):
    """Where the elements of a parameter lie that each rank has, by torch.chunk."""
    found = [torch.arange(p.numel).view(p.shape)]
    whole = p.stacked and mesh.expert > 1
    cuts = [(mesh.expert, 0), (mesh.shard, 0)] if p.stacked else [(mesh.shard * mesh.expert, 0)]
    for count, axis in (*cuts, (mesh.tensor, 0 if whole else 1 + p.stacked)):
        if axis < len(p.shape):
            found = [one for whole in found for one in whole.chunk(count, axis)]
    return [one.flatten() for one in found]


def is_in_blocks(part):
    """Whether what lies together begins and ends where blocks do."""
    ends = (part.diff(append=torch.tensor([-1])) != 1).nonzero().flatten()
    begins = torch.cat([torch.tensor([0]), ends[:-1] + 1])
    return not (part[begins] % 256).any() and not ((part[ends] + 1) % 256).any()


SHAPES = [(96, 128), (64, 1024), (1000, 256), (5000,), (4096,), (4095,), (17, 256), (512, 8, 3), (33, 512),
          (3, 2176), (256, 511)]  # fmt: skip
MESHES = [
    Mesh(), Mesh(shard=2), Mesh(shard=7), Mesh(shard=48), Mesh(shard=96), Mesh(tensor=2), Mesh(shard=3, tensor=4),
    Mesh(shard=3, expert=2), Mesh(data=5, shard=2, expert=4, tensor=2),
]  # fmt: skip


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (8, 24, 256), (8, 3, 512), (8, 5, 7), (8, 64, 96)], ids=str)
def test_no_rank_holds_more_than_the_first_in_8_bits_too(shape, mesh):
    p = Parameter(shape, stacked=shape[0] == 8)
    there = parts(p, mesh)
    assert max(map(len, there)) == len(there[0]) == plan.local_numel(p, mesh)
    eight = p.numel >= 4096 and p.numel % 256 == 0
    each = [
        len(part) + 4 * len(part) // 256 + 1024 if eight and is_in_blocks(part) else 4 * len(part) for part in there
    ]
    assert max(each) == each[0] == plan.state_bytes(p, mesh, 1, "8bit")


MODEL = [
    Parameter((100, 40), hidden=True),
    Parameter((100,), adapted=False),
    Parameter((6, 50, 40), stacked=True, hidden=True),
    Parameter((6, 50), stacked=True, adapted=False),
    Parameter((), adapted=False),
]


@pytest.mark.parametrize(
    ("mesh", "added"),
    [
        (Mesh(), []),
        (Mesh(data=8), []),
        (Mesh(data=8, shard=4), [("verdict, clipping", 11, 32), ("norms of layers", 2, 4)]),
        (Mesh(expert=6), [("verdict, clipping", 11, 6), ("norms of layers", 2, 6)]),
        (Mesh(tensor=2), [("verdict, clipping", 9, 2), ("norms of layers", 14, 2)]),
        (
            Mesh(data=2, shard=5, tensor=2, expert=3),
            [("verdict, clipping", 11, 60), ("norms of layers", 2, 15), ("norms of layers", 2, 2)],
        ),
    ],
    ids=str,
)  # fmt: skip
def test_two_all_reduces_of_parameters_that_are_cut(mesh, added):
    for one in PLANNED:
        assert list(plan.cost(MODEL, mesh, one).all_reduces) == (added if one.ours else [])
    only = [one for one in added if "norms" in one[0]]
    assert plan.all_reduces(MODEL, mesh, trust_ratio=False) == [one for one in added if one not in only]


def test_one_all_reduce_where_nothing_is_judged():
    for mesh in (Mesh(shard=4), Mesh(data=2, shard=4)):
        (one,) = plan.all_reduces(MODEL, mesh, judged=False)
        assert one == ("norms, and who has gradients", 11 + 2, mesh.ranks)
    (one,) = plan.all_reduces(MODEL, Mesh(data=2, shard=4), judged=False, trust_ratio=False)
    assert one.numbers == 11


def test_sums_of_squares_of_float64_take_three_numbers():
    found = plan.all_reduces(MODEL, Mesh(shard=4), dtype="float64")
    assert [(one.numbers, one.bytes, one.sent) for one in found] == [(11, 88, 132), (6, 48, 72)]


def test_what_waits_for_norms_waits_whole_and_the_rest_is_taken_in_pieces():
    large, small, vector = Parameter((1 << 14, 1 << 12)), Parameter((256, 256)), Parameter((256,), adapted=False)
    experts = Parameter((64, 1 << 10, 1 << 12), stacked=True)
    layers = [large, small, small, vector]
    piece = 1 << 24
    assert plan.foreach_temporary(layers, Mesh()) == 4 * ((1 << 26) + piece)
    assert plan.foreach_temporary(layers, Mesh(shard=2)) == 4 * ((1 << 25) + 2 * 128 * 256)
    assert plan.foreach_temporary([small, small, vector], Mesh()) == 2 * 4 * (2 * 256 * 256 + 256)
    assert plan.foreach_temporary([small, experts], Mesh(expert=64)) == 4 * 2 * (1 << 22)
    assert plan.foreach_temporary([small, experts], Mesh(expert=32, tensor=2)) == 4 * 2 * (1 << 22)
    assert plan.foreach_temporary([small, experts], Mesh(shard=32, tensor=2)) == 4 * (256 // 32 * 128 + (1 << 22))
    assert plan.foreach_temporary([small], Mesh(), "float64") == 2 * plan.foreach_temporary([small], Mesh())


def test_muon_gathers_the_matrices_of_gpt2_small():
    """164 MB a rank on 32 ranks."""
    width = 768
    sides = ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width))
    blocks = [Parameter(side, hidden=True) for side in sides] * 12
    whole = 2 * 12 * 12 * width**2
    assert plan.muon_gather([*blocks, Parameter((50257, width))], Mesh(data=2, shard=32)) == whole * 31 // 32
    assert plan.muon_gather(blocks, Mesh(data=8)) == 0
    stack = [Parameter((8, width, width), hidden=True, stacked=True)]
    assert plan.muon_gather(stack, Mesh(expert=4, shard=2)) == 0  # whole where they are
    assert plan.muon_gather(stack, Mesh(expert=4, tensor=2)) == 0
    assert plan.muon_gather(stack, Mesh(shard=4, tensor=2)) == 2 * 2 * width**2 // 2


def test_what_a_skeleton_says_of_its_parameters():
    of = dict(zip([name for name, _ in skeleton("pydoc-moe").named_parameters()], skeletons.of_task("pydoc-moe"),
                  strict=True))  # fmt: skip
    stacked = {name for name, p in of.items() if p.stacked}
    assert stacked == {name for name in of if ".experts." in name}
    assert all(of[name].hidden and of[name].adapted and of[name].layers == 8 for name in stacked)
    plain = {name for name, p in of.items() if p.hidden} - stacked
    assert plain == {name for name in of if ("proj" in name and "experts" not in name) or ".gate." in name}
    assert {name for name, p in of.items() if not p.adapted} == {name for name in of if "norm" in name}


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ({"data": 0}, "mesh data must be an integer of at least 1, got 0"),
        ({"tensor": 1.5}, "mesh tensor must be an integer of at least 1, got 1.5"),
        ({"expert": 4}, r"mesh expert must divide the 6 experts of a layer \(1, 2, 3, 6\), got 4"),
        (
            {"expert": 2, "tensor": 2},
            r"mesh expert x tensor must divide the 6 experts of a layer \(1, 2, 3, 6\), got 2 x 2",
        ),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(mesh, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        plan.cost(MODEL, Mesh(**mesh), ADAMW)
    with pytest.raises(ValueError, match=r"^mesh expert must be 1 for a model without layers of stacked experts"):
        plan.cost(MODEL[:2], Mesh(expert=4), ADAMW)
    with pytest.raises(ValueError, match=r"^dtype must be 'bfloat16' or 'float32' or 'float64', got 'float16'"):
        plan.cost(MODEL, Mesh(), ADAMW, "float16")


def test_it_fits_where_its_parts_do():
    cost = plan.cost(MODEL, Mesh(shard=2), PLANNED[-1])
    assert (
        cost.total == cost.fused + cost.temporary == sum((cost.parameters, cost.gradients, cost.state, cost.temporary))
    )
    verdicts = [cost.verdict(memory) for memory in (cost.total, cost.total - 1, cost.fused, cost.fused - 1)]
    assert verdicts == ["fits", "fits if fused", "fits if fused", "does not fit"]
