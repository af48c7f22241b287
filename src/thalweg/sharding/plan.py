"""What a step costs a rank, in closed form: shapes and a mesh go in, bytes and collectives come out.

Bytes are those of the rank that holds most, the first along every axis of the mesh. Nothing here computes with tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import NamedTuple

from thalweg.arguments import check_choice, check_integer

DTYPES = {"bfloat16": 2, "float32": 4, "float64": 8}
"""Bytes of a number."""
STATE_DTYPES = ("float32", "bfloat16", "8bit")
"""What the state of ALTO and Lamb is stored as."""
BLOCK, LEAST = 256, 4096
"""Of 8-bit state: numbers that share a scale, and the least of a whole parameter that is stored so."""
TABLE = 4 * 256
"""Bytes of the fractions that the codes of an 8-bit tensor stand for."""
PIECE = 1 << 24
"""Elements that foreach takes together on an accelerator."""
SCALARS = 7
"""Numbers of the verdict's all-reduce beside one a parameter.

A failure, who waits for the others, the verdict, whether options are alike, and the gradients' squares.
"""
SUM_OF_SQUARES = {"float64": 3}
"""Numbers that carry a sum of squares of a parameter, one where its dtype is not listed."""
REDUCED = 8
"""Bytes of a number that the optimizer reduces: float64."""
GATHERED = 2
"""Bytes of a number that Muon gathers: bfloat16."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """What matters of a parameter here.

    ``adapted``: by the trust ratio. ``stacked``: its first axis counts experts, each with a norm of its own.
    ``hidden``: a matrix, or a stack of them, that Muon is for.
    """

    shape: tuple[int, ...]
    adapted: bool = True
    stacked: bool = False
    hidden: bool = False

    @property
    def numel(self) -> int:
        """Its elements, on all ranks."""
        return prod(self.shape)

    @property
    def layers(self) -> int:
        """How many norms it has."""
        return self.shape[0] if self.stacked else 1

    @property
    def layer(self) -> tuple[int, ...]:
        """The shape of one of them."""
        return self.shape[self.stacked :]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """Ranks along four axes: copies of all, FSDP2's shards, tensor parallelism, experts.

    Ranks that share experts see different examples, so that FSDP2 cuts all other parameters over ``shard`` · ``expert``
    of them, along their first axis, and a rank's experts over ``shard``. Tensor parallelism cuts the second axis of
    every layer and leaves vectors whole; a model's own plan may name the first, which makes the same bytes where sizes
    divide. Where there is an axis for experts, these are shared out over ``expert`` · ``tensor``, and none is cut.

    Raises:
        ValueError: an axis is not an integer of at least 1.
    """

    data: int = 1
    shard: int = 1
    tensor: int = 1
    expert: int = 1

    def __post_init__(self) -> None:
        for name, size in asdict(self).items():
            check_integer(f"mesh {name}", size, 1)

    @property
    def ranks(self) -> int:
        """All of them."""
        return self.data * self.pieces

    @property
    def pieces(self) -> int:
        """Ranks that hold one copy of the model between them."""
        return self.shard * self.tensor * self.expert

    def __str__(self) -> str:
        return " x ".join(f"{name}={size}" for name, size in asdict(self).items() if size > 1) or "one rank"


class Cut(NamedTuple):
    """Over how many ranks a parameter is cut: its first axis as FSDP2 does and by experts, and its ``axis``."""

    shard: int
    expert: int
    tensor: int
    axis: int

    @property
    def ranks(self) -> int:
        """All that hold a part of it."""
        return self.shard * self.expert * self.tensor


def cut(p: Parameter, mesh: Mesh) -> Cut:
    """How a parameter is cut; a number has no axis for it."""
    axis = 1 + p.stacked
    if p.stacked and mesh.expert > 1:
        return Cut(mesh.shard, mesh.expert * mesh.tensor, 1, axis)
    tensor = mesh.tensor if len(p.shape) > axis else 1
    if p.stacked:
        return Cut(mesh.shard, 1, tensor, axis)
    return Cut(mesh.shard * mesh.expert if p.shape else 1, 1, tensor, axis)


def check_mesh(parameters: Sequence[Parameter], mesh: Mesh) -> None:
    """Raise ``ValueError`` where experts cannot be shared out evenly over the mesh, or there are none."""
    if mesh.expert == 1:
        return
    counts = sorted({p.layers for p in parameters if p.stacked})
    if not counts:
        raise ValueError(f"mesh expert must be 1 for a model without layers of stacked experts, got {mesh.expert}")
    for count in counts:
        if count % (mesh.expert * mesh.tensor):
            axes, sizes = (
                ("expert x tensor", f"{mesh.expert} x {mesh.tensor}") if mesh.tensor > 1 else ("expert", mesh.expert)
            )
            allowed = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
            raise ValueError(f"mesh {axes} must divide the {count} experts of a layer ({allowed}), got {sizes}")


def local_shape(p: Parameter, mesh: Mesh) -> tuple[int, ...]:
    """What the first rank has of it, by the rule of ``torch.chunk``: the largest piece, as the later ranks have less.

    >>> local_shape(Parameter((10, 6)), Mesh(shard=4, tensor=2)), local_shape(Parameter((3,)), Mesh(shard=8))
    ((3, 3), (1,))
    """
    found = list(p.shape)
    shard, expert, tensor, axis = cut(p, mesh)
    if found:
        found[0] = -(-(found[0] // expert) // shard)
    if tensor > 1:
        found[axis] = -(-found[axis] // tensor)
    return tuple(found)


def local_numel(p: Parameter, mesh: Mesh) -> int:
    """Elements of it that the first rank has."""
    return prod(local_shape(p, mesh))


def unsharded_numel(parameters: Sequence[Parameter], mesh: Mesh) -> int:
    """Elements that the first rank has where FSDP2 has gathered all that it shares out.

    >>> unsharded_numel([Parameter((10, 6)), Parameter((8, 3), stacked=True)], Mesh(shard=2, expert=2))
    72
    """
    alone = Mesh(tensor=mesh.tensor, expert=mesh.expert)
    return sum(local_numel(p, alone) if p.stacked else local_numel(p, Mesh(tensor=mesh.tensor)) for p in parameters)


def norm_reaches_over_ranks(p: Parameter, mesh: Mesh) -> bool:
    """Whether the norm of a layer in it needs more than one rank: a stack is cut between layers, and these are not."""
    shard, expert, tensor, _ = cut(p, mesh)
    return tensor > 1 or (not p.stacked and shard * expert > 1)


def is_stored_in_8_bits(p: Parameter, mesh: Mesh) -> bool:
    """Whether 8-bit state is: a large parameter in whole blocks, of which each rank's part begins and ends at blocks.

    >>> [is_stored_in_8_bits(Parameter((96, 128)), Mesh(shard=n)) for n in (1, 48, 96)]
    [True, True, False]
    """
    local = local_shape(p, mesh)
    _, _, tensor, axis = cut(p, mesh)
    run = prod(local) if tensor == 1 else prod(local[axis:])  # as far as memory goes on without a gap
    whole = p.numel if tensor == 1 else prod(p.shape[axis:])
    return p.numel >= LEAST and run % BLOCK == 0 and whole % BLOCK == 0


def state_bytes(p: Parameter, mesh: Mesh, buffers: int, dtype: str) -> int:
    """The optimizer's buffers of one parameter, without the 4 bytes of its count of steps.

    ``dtype`` is one of ``DTYPES`` or ``"8bit"``: a code a number, a float32 scale a block and a table a tensor, or
    float32 where :func:`is_stored_in_8_bits` says so.

    >>> state_bytes(Parameter((64, 256)), Mesh(shard=8), 3, "8bit") == 3 * (8 * 256 + 8 * 4 + 1024)
    True
    """
    numel = local_numel(p, mesh)
    if dtype != "8bit":
        return buffers * DTYPES[dtype] * numel
    if not is_stored_in_8_bits(p, mesh):
        return buffers * 4 * numel
    return buffers * (numel + 4 * numel // BLOCK + TABLE)


def foreach_temporary(parameters: Sequence[Parameter], mesh: Mesh, dtype: str = "float32") -> int:
    """The most that a step of ALTO or Lamb with foreach needs beside its state, in bytes; the fused kernels need none.

    Of layers whose norm reaches over ranks all of r waits for the norms. The others are taken one after the other, up
    to ``PIECE`` elements together: r of these, or of a larger layer, and one piece for the gradient that Adam sees.
    They are in float32, or in float64 if the parameters are.
    """
    waiting, others = 0, [0]
    for p in parameters:
        numel = local_numel(p, mesh)
        if p.adapted and norm_reaches_over_ranks(p, mesh):
            waiting += numel
        else:
            others.append(numel)
    piece = min(PIECE, sum(others))
    return max(4, DTYPES[dtype]) * max(waiting, max(piece, *others) + piece)


def ring_all_reduce(size: int, ranks: int) -> int:
    """Bytes that each of the ranks sends for the sum of ``size`` bytes: 2 (k-1)/k of them.

    >>> ring_all_reduce(1000, 1), ring_all_reduce(1000, 2), ring_all_reduce(1000, 8)
    (0, 1000, 1750)
    """
    return 2 * (ranks - 1) * size // ranks


def ring_all_gather(size: int, ranks: int) -> int:
    """Bytes that each of the ranks sends for all to have all ``size`` bytes: (k-1)/k of them."""
    return (ranks - 1) * size // ranks


class AllReduce(NamedTuple):
    """A sum over ``ranks`` of so many float64 numbers, and what it is of."""

    what: str
    numbers: int
    ranks: int

    @property
    def bytes(self) -> int:
        """Its size."""
        return REDUCED * self.numbers

    @property
    def sent(self) -> int:
        """Bytes that each rank sends."""
        return ring_all_reduce(self.bytes, self.ranks)


VERDICT, NORMS, BOTH = "verdict, clipping", "norms of layers", "norms, and who has gradients"


def all_reduces(
    parameters: Sequence[Parameter],
    mesh: Mesh,
    *,
    judged: bool = True,
    trust_ratio: bool = True,
    dtype: str = "float32",
) -> list[AllReduce]:
    """What a step of ours reduces over ranks: nothing where no parameter is cut, else two all-reduces.

    The first, over all ranks, has the verdict on all gradients, their squares, and for each parameter whether it has
    one. The second, over the ranks that share a layer, ‖θ‖² and ‖r‖² of each adapted layer whose norm reaches over
    them: one for each axis of the mesh where these are some axes of several, and not all.

    Args:
        parameters: of one optimizer.
        mesh: where they are.
        judged: whether gradients are clipped, or skipped or raised for; False: one all-reduce has everything, unless
            experts are spread over one axis and each is cut over another.
        trust_ratio: whether layers are adapted; False: the second is not needed.
        dtype: of the parameters.
    """
    held = [p for p in parameters if cut(p, mesh).ranks > 1]
    if not held:
        return []
    numbers: dict[tuple[int, ...], int] = {}
    together = not judged
    for p in held:
        here = cut(p, mesh)
        over = tuple(n for n in (1 if p.stacked else here.shard * here.expert, here.tensor) if n > 1)
        if trust_ratio and p.adapted and over:
            layers = local_shape(p, mesh)[0] if p.stacked else 1
            numbers[over] = numbers.get(over, 0) + 2 * SUM_OF_SQUARES.get(dtype, 1) * layers
            together &= not (p.stacked and here.shard * here.expert > 1)
    told = SCALARS + len(held)
    if together:
        return [AllReduce(BOTH, told + sum(numbers.values()), mesh.ranks)]
    found = [AllReduce(VERDICT, told, mesh.ranks)]
    every = tuple(n for n in (mesh.data, mesh.shard * mesh.expert, mesh.tensor) if n > 1)
    for over, count in numbers.items():
        found += [AllReduce(NORMS, count, n) for n in ((mesh.ranks,) if over == every else over)]
    return found


def muon_gather(parameters: Sequence[Parameter], mesh: Mesh) -> int:
    """Bytes that each rank sends for all to have the hidden matrices whole in bfloat16, as distributed Muon needs them.

    By rings: (k-1)/k of a matrix that k ranks share. Experts that are whole on their rank are not gathered.
    """
    found = 0
    for p in (p for p in parameters if p.hidden):
        here, whole = cut(p, mesh), prod(p.layer)
        layers, ranks = (local_shape(p, mesh)[0], here.tensor) if p.stacked else (1, here.ranks)
        found += ring_all_gather(GATHERED * layers * whole, ranks)
    return found


@dataclass(frozen=True, slots=True)
class Optimizer:
    """Buffers a parameter, and what they are stored as (None: as the parameters).

    ``ours``: it reduces what :func:`all_reduces` says, and takes layers in pieces. Others are torch's: nothing is
    reduced, and foreach has one list as large as all that is here.
    """

    name: str
    buffers: int
    state: str | None = None
    ours: bool = False


ADAMW = Optimizer("AdamW", 2)
PLANNED = (
    ADAMW,
    *(Optimizer(name, n, state, True) for name, n in (("LAMB", 2), ("ALTO", 3)) for state in STATE_DTYPES),
)
"""The optimizers that are set beside each other."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a step, in bytes of the rank that holds most, without activations and without what FSDP2 gathers.

    ``temporary`` is that of foreach, the default on CUDA; the fused kernels have none as large as a parameter.
    ``checkpoint`` is of all ranks together: parameters and state.
    """

    parameters: int
    gradients: int
    state: int
    temporary: int
    checkpoint: int
    all_reduces: tuple[AllReduce, ...]

    @property
    def fused(self) -> int:
        """All of it with the fused kernels."""
        return self.parameters + self.gradients + self.state

    @property
    def total(self) -> int:
        """All of it with foreach."""
        return self.fused + self.temporary

    def verdict(self, memory: int) -> str:
        """Whether it fits into so many bytes: ``"fits"``, ``"fits if fused"`` or ``"does not fit"``."""
        if self.total <= memory:
            return "fits"
        return "fits if fused" if self.fused <= memory else "does not fit"


def cost(parameters: Sequence[Parameter], mesh: Mesh, optimizer: Optimizer, dtype: str = "float32") -> Cost:
    """What a step of an optimizer costs.

    Args:
        parameters: of the model.
        mesh: the ranks.
        optimizer: which.
        dtype: of parameters and gradients, one of ``DTYPES``.

    Raises:
        ValueError: the experts cannot be shared out over the mesh, or the dtype is unknown.

    >>> found = cost([Parameter((1024, 1024)), Parameter((1024,), adapted=False)], Mesh(shard=8), PLANNED[4])
    >>> found.state == 3 * found.parameters, found.temporary == 4 * 1024 * 1024 // 8
    (True, True)
    >>> [(one.numbers, one.ranks, one.sent) for one in found.all_reduces]
    [(9, 8, 126), (2, 8, 28)]
    """
    check_choice("dtype", dtype, tuple(DTYPES))
    check_mesh(parameters, mesh)
    numel = sum(local_numel(p, mesh) for p in parameters)
    stored = optimizer.state or dtype
    saved = "float32" if stored == "8bit" and mesh.pieces > 1 else stored  # as checkpoints of shards have it
    return Cost(
        parameters=DTYPES[dtype] * numel,
        gradients=DTYPES[dtype] * numel,
        state=sum(state_bytes(p, mesh, optimizer.buffers, stored) for p in parameters),
        temporary=foreach_temporary(parameters, mesh, dtype) if optimizer.ours else DTYPES[dtype] * numel,
        checkpoint=sum(DTYPES[dtype] * p.numel + state_bytes(p, Mesh(), optimizer.buffers, saved) for p in parameters),
        all_reduces=tuple(all_reduces(parameters, mesh, dtype=dtype) if optimizer.ours else ()),
    )
