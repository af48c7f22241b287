"""What the ranks of sharded parameters agree on before a step changes anything.

One packed all-reduce for each mesh: whether a rank has failed, whether gradients are finite, their squares, which
parameters have a gradient on any rank, and whether all have the same options. Several meshes share the verdict and the
squares: what one has told, the next passes on. A process group joins ranks whose optimizers hold different parameters.
"""

from __future__ import annotations

import itertools
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from thalweg.arguments import reject
from thalweg.kernels import has_numbers
from thalweg.kernels.norms import PARTS, norm_of, squares_of
from thalweg.sharding import is_sharded, local
from thalweg.sharding.collectives import (
    all_reduce,
    compare,
    device_of,
    device_of_group,
    every_dim,
    gather,
    has_others,
    is_first,
    say_empty,
)
from thalweg.sharding.schedule import OnMesh, Schedule, describe

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

_SQUARES = 4  # after: failed, waits, not finite, options
_HEAD = _SQUARES + PARTS
_MISPLACED = 1 << 20  # beside 1 for a gradient, more than there are ranks
_orders = itertools.count()


class Told(NamedTuple):
    """What one rank has to tell: of its gradients, if asked for, whether they are finite, and those to be measured.

    ``misplaced`` are sharded parameters whose gradients are neither on their shards nor whole, ``waits`` whether it
    says no more before they are, so that all tell again, and ``options`` those of each group that all should share.
    """

    present: Mapping[Tensor, Tensor] = {}
    finite: Tensor | None = None
    measured: bool = False
    failed: bool = False
    misplaced: Collection[Tensor] = ()
    waits: bool = False
    options: Sequence[Mapping[str, object]] = ()


class Agreed(NamedTuple):
    """What all know then; ``sums`` are those that came along, of each mesh.

    Without waiting for a device, ``failed`` is not known, and is a reason not to be ``finite``.
    """

    failed: bool
    finite: Tensor | None
    total_norm: Tensor | None
    gradients: dict[Tensor, Tensor | float]
    sums: dict[DeviceMesh, Tensor]

    def has_gradient(self, p: Tensor) -> bool:
        """Whether a sharded parameter has a gradient on any rank; a device is waited for."""
        found = self.gradients[p]
        return bool(found) if not isinstance(found, Tensor) or has_numbers(found) else False


class ProcessGroupOf:
    """A process group that an optimizer holds: shared by its copies, and left out of a pickle."""

    def __init__(self, group: ProcessGroup | None) -> None:
        if group is not None and not isinstance(group, torch.distributed.ProcessGroup):
            reject("process_group", group, "a torch.distributed.ProcessGroup or None")
        self.group = group

    def __deepcopy__(self, memo: Any) -> ProcessGroupOf:
        return self

    def __reduce__(self) -> Any:
        return ProcessGroupOf, (None,)


class Ranks:
    """Those that an optimizer has to ask: of the meshes of its parameters, and of its process group."""

    def __init__(self, schedule: Schedule, group: ProcessGroup | None) -> None:
        self.schedule, self.group = schedule, group

    def missing(self, present: Mapping[Tensor, Tensor]) -> list[Tensor]:
        """Sharded parameters that are trained and have no gradient here."""
        return [p for on in self.schedule.meshes.values() for p in on.params if p.requires_grad and p not in present]

    def agree(self, told: Told, sums: Mapping[DeviceMesh, Tensor] | None = None, *, on_host: bool) -> Agreed:
        """Tell, and hear what the others have told: a collective, which all ranks have to call alike.

        Args:
            told: what this rank tells.
            sums: vectors in float64 to be summed along with it, of each mesh.
            on_host: whether numbers may be read on the host; else options and misplaced gradients are not looked at.

        Raises:
            ValueError: ranks differ in an option, or some have misplaced a gradient that others have not.
        """
        while True:
            exchange = self._exchange(told, sums, on_host=on_host)
            if exchange.wrong is not None:
                raise ValueError(exchange.wrong)
            if told.waits or not on_host or exchange.failed > 0.0 or exchange.waiting == 0.0:
                return exchange.result()

    def _exchange(self, told: Told, sums: Mapping[DeviceMesh, Tensor] | None, *, on_host: bool) -> _Exchange:
        exchange = _Exchange(told, on_host)
        for on in self.schedule.meshes.values():
            squares = None
            if told.measured:
                pairs = [(told.present[p], w) for p, w in zip(on.params, on.weights, strict=True) if p in told.present]
                weights = [w for _, w in pairs] if any(w != 1.0 for _, w in pairs) else ()
                squares = squares_of((local(g) for g, _ in pairs), weights, may_read=on_host)
            exchange.over_mesh(on, squares, None if sums is None else sums[on.mesh])
        if told.measured:
            plain = [g for p, g in told.present.items() if not is_sharded(p)]
            exchange.add(squares_of(plain, may_read=on_host))
        if self.group is not None and (told.measured or told.finite is not None):
            exchange.over_group(self.group)
        return exchange


class _Exchange:
    """What has been told so far, on the host as numbers, else on the device of the parameters."""

    def __init__(self, told: Told, on_host: bool) -> None:
        self.told, self.on_host = told, on_host
        self.failed: Any = float(told.failed)
        self.waiting: Any = float(told.waits)
        self.wrong: str | None = None
        self.bad: Any = 0.0
        if told.finite is not None:
            self.bad = float(not told.finite) if on_host else told.finite.logical_not().double()
        self.squares: list[Tensor] = []
        self.gradients: dict[Tensor, Tensor | float] = {}
        self.sums: dict[DeviceMesh, Tensor] = {}

    def add(self, squares: Tensor) -> None:
        self.squares.append(squares)

    def over_mesh(self, on: OnMesh, squares: Tensor | None, sums: Tensor | None) -> None:
        mesh, params = on.mesh, on.params
        flags = [float(p in self.told.present) for p in params]
        compared = self.on_host and has_others(mesh)
        options = 0.0
        if compared:
            if self.told.misplaced:
                flags = [flag + _MISPLACED * (p in self.told.misplaced) for flag, p in zip(flags, params, strict=True)]
            options = _weighted([self.told.options[i] for i in on.groups] if self.told.options else None, mesh)
        pack = self._packed(device_of(mesh), options, squares, flags, sums)
        pack = all_reduce(pack, mesh, every_dim(mesh))
        count = _HEAD + len(params)
        if sums is not None:
            self.sums[mesh] = pack[count:] if pack.is_meta else pack[count:].to(sums.device)
        self.failed, self.waiting, self.bad, differing = self._head(pack)
        if squares is not None:
            self.add(pack[_SQUARES:_HEAD])
        found: Sequence[Any] = pack[_HEAD:count].tolist() if self.on_host else pack[_HEAD:count].unbind()
        if compared and self.failed == 0.0:
            self._compare(on, found, differing)
        self.gradients.update(zip(params, found, strict=True))

    def _compare(self, on: OnMesh, flags: Sequence[float], options: float) -> None:
        """All ranks of the mesh see the same sums, and so find the same."""
        size = on.mesh.size()
        for i, flag in enumerate(flags):
            if flag >= _MISPLACED and flag // _MISPLACED != size:
                self.wrong = (
                    f"the gradient of sharded parameter number {i} of shape {tuple(on.params[i].shape)} must be placed "
                    f"alike on all ranks of its mesh; on {int(flag // _MISPLACED)} of {size} it is still to be summed "
                    "or cut otherwise than the parameter, and on others it is not, or is missing: zeros would do there"
                )
        if self.waiting == 0.0 and options != 0.0:
            self.wrong = _difference(gather([self.told.options[i] for i in on.groups], on.mesh), on.groups)
        self.failed = float(self.wrong is not None)  # which the next mesh is told

    def over_group(self, group: ProcessGroup) -> None:
        pack = self._packed(device_of_group(group), 0.0, self._total(), [], None)
        torch.distributed.all_reduce(pack, group=group)
        self.failed, self.waiting, self.bad, _ = self._head(pack)
        self.squares = [pack[_SQUARES:_HEAD]]

    def _packed(
        self,
        device: torch.device,
        options: float,
        squares: Tensor | None,
        flags: Sequence[float],
        sums: Tensor | None,
    ) -> Tensor:
        head = [self.failed, self.waiting, self.bad, options]
        if self.on_host:
            numbers = [*head, *([0.0] * PARTS if squares is None else squares.tolist()), *flags]
            pack = torch.tensor(numbers, dtype=torch.float64, device="cpu")
            return (pack if sums is None else torch.cat((pack, sums))).to(device)
        if any(isinstance(x, Tensor) and x.is_meta for x in (self.bad, squares, sums)):
            device = torch.device("meta")
        parts = [torch.as_tensor(x, dtype=torch.float64, device=device).reshape(1) for x in head]
        parts.append(torch.zeros(PARTS, dtype=torch.float64, device=device) if squares is None else squares.to(device))
        parts.append(torch.tensor(flags, dtype=torch.float64, device=device))
        return torch.cat([*parts, *(() if sums is None else (sums.to(device),))])

    def _head(self, pack: Tensor) -> Sequence[Any]:
        return pack[:_SQUARES].tolist() if self.on_host else pack[:_SQUARES].unbind()

    def _total(self) -> Tensor | None:
        if not self.squares:
            return None
        return torch.stack([x.to(self.squares[0].device) for x in self.squares]).sum(0)

    def result(self) -> Agreed:
        total = self._total()
        norm = None if total is None else norm_of(total)
        if self.on_host:
            finite = None if self.told.finite is None else torch.tensor(self.bad == 0.0, device="cpu")
            return Agreed(self.failed > 0.0, finite, norm, self.gradients, self.sums)
        finite = None if self.told.finite is None else (self.bad + self.failed == 0.0).to(self.told.finite.device)
        return Agreed(False, finite, norm, self.gradients, self.sums)


def _weighted(options: Sequence[Mapping[str, object]] | None, mesh: DeviceMesh) -> float:
    """A checksum with a weight: those of all ranks of a mesh add up to 0, and so do checksums that are the same."""
    if options is None:
        return 0.0
    checksum = zlib.crc32(repr(options).encode())
    return float(checksum * (1 - mesh.size() if is_first(mesh) else 1))


def _difference(found: Sequence[tuple[int, Sequence[Mapping[str, object]]]], groups: Sequence[int]) -> str:
    """The first option in which a rank differs from the first rank."""
    (first, expected), *others = found
    for rank, options in others:
        for i, here, there in zip(groups, expected, options, strict=True):
            for name, value in here.items():
                if repr(there[name]) != repr(value):
                    return (
                        f"{name} of group {i} must be the same on all ranks of a mesh, got {value} on rank {first} and "
                        f"{there[name]} on rank {rank}: let a schedule run on each rank"
                    )
    raise AssertionError("checksums differ where options do")


def ranks_of(
    optimizer: Any,
    groups: Sequence[dict[str, Any]],
    norm_dims: Sequence[tuple[int, ...] | None],
    told: Callable[[dict[str, Any]], Mapping[str, object]],
) -> Ranks | None:
    """Those that a step of ``groups`` has to ask; None if nothing is sharded and there is no process group.

    When the list of parameters is new, all ranks of a mesh compare theirs.

    Args:
        optimizer: the optimizer, which keeps what has been found out.
        groups: its groups.
        norm_dims: of each, the axes over which norms are taken.
        told: of a group, the options that decide what ranks tell each other.

    Raises:
        ValueError: the lists of two ranks differ.
    """
    kept = vars(optimizer).get("_ranks")
    if kept is not None and kept.schedule.is_of(groups, norm_dims):
        return kept if kept.schedule.meshes or kept.group is not None else None
    schedule = Schedule([group["params"] for group in groups], norm_dims)
    held = vars(optimizer).get("_process_group")
    ranks = Ranks(schedule, None if held is None else held.group)
    alone = any("first_index" in group for group in groups)  # a layer of its own, in backward
    if not alone:
        _compare(optimizer, schedule, groups, told, ranks.group)
    vars(optimizer)["_ranks"] = ranks
    return ranks if schedule.meshes or ranks.group is not None else None


def _compare(
    optimizer: Any,
    schedule: Schedule,
    groups: Sequence[dict[str, Any]],
    told: Callable[[dict[str, Any]], Mapping[str, object]],
    group: ProcessGroup | None,
) -> None:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    if "_order" not in vars(optimizer):
        vars(optimizer)["_order"] = next(_orders)
    order = vars(optimizer)["_order"]
    if group is None and not any(schedule.lists) and torch.distributed.get_world_size() > 1:
        say_empty(order)
    described: dict[Any, list[str]] = {mesh: [] for mesh in schedule.meshes}
    for one in groups:
        for p, name in zip(one["params"], _names(one), strict=True):
            if is_sharded(p):
                described[schedule.same[p.device_mesh]].append(describe(p, name, told(one)))
    for mesh, lines in described.items():
        if all(has_numbers(p) for p in schedule.meshes[mesh].params[:1]):
            compare(lines, mesh, order)


def _names(group: dict[str, Any]) -> Iterable[str | None]:
    names = group.get("param_names")
    return names if names is not None and len(names) == len(group["params"]) else [None] * len(group["params"])


def refuse_for_others(what: str) -> None:
    """Raise ``RuntimeError`` for what is wrong on another rank."""
    raise RuntimeError(f"{what} on another rank, which says more; nothing has changed here")
