"""A step of ALTO and Lamb on parameters that are sharded: each rank moves its shards, by norms of the whole.

Two collectives, however many layers there are: what :mod:`thalweg.optim.ranks` says, and the squares of r and θ of the
layers whose norms reach over ranks. One, where nothing is clipped, skipped or raised: the squares then come along, and
the first half of the step changes nothing.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from thalweg.kernels import has_numbers
from thalweg.kernels.finite import refuse_nonfinite
from thalweg.kernels.norms import count_rows, parts_of
from thalweg.optim import judging, layers, skipped
from thalweg.optim.ranks import Agreed, Ranks, Told, refuse_for_others
from thalweg.optim.step_checks import check_step
from thalweg.sharding import is_misplaced, is_sharded, is_whole, local, placed_as, sharded_like
from thalweg.sharding.collectives import all_reduce
from thalweg.sharding.schedule import Cut
from thalweg.torch_private import outside_graphs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence


Place = tuple[Cut, torch.device]
"""Where squares are added up: over the ranks of a cut, and on which device."""


class Layout(NamedTuple):
    """Where the squares of each layer are among those that are added up together, and how many numbers these are."""

    slots: dict[Tensor, int]
    sizes: dict[Place, int]
    places: dict[Tensor, Place]


@outside_graphs
def step(optimizer: Any, ranks: Ranks) -> None:
    """One step of the optimizer, together with ``ranks``.

    Raises:
        ValueError, TypeError, RuntimeError: as :func:`thalweg.optim.step_checks.check_step`, or because another rank
            does; nothing has changed then on any rank whose parameters are on the CPU.
    """
    groups = optimizer.param_groups
    policies = {group["nonfinite"] for group in groups}
    measured = any(group["max_grad_norm"] is not None for group in groups)
    asks = measured or policies != {"propagate"}
    layout = _layout(ranks, groups)
    one_round = not asks and ranks.schedule.has_one_round
    on_host = _may_read(ranks, groups)
    nothing = Told({}, torch.ones((), dtype=torch.bool) if asks else None, measured)
    placed = _place(ranks, groups, nothing, layout if one_round else None, on_host=on_host)
    try:
        stepped, lacking = check_step(optimizer, optimizer._own_state(), optimizer._footprint, placed)
        finite = judging.is_finite(groups, [grad for some in stepped for _, _, grad, _, _ in some])
    except Exception:
        told = nothing._replace(failed=True)
        ranks.agree(told, _by_mesh(layout, ranks) if one_round else None, on_host=on_host)
        raise
    options = _options(optimizer) if on_host else ()
    present = {p: grad for some in stepped for _, p, grad, _, _ in some}
    missing = ranks.missing(present)
    if one_round:
        optimizer._allocate(lacking)
        _step_in_one_round(optimizer, ranks, layout, stepped, missing, options, on_host=on_host)
    else:
        agreed = ranks.agree(Told(present, finite, measured, options=options), on_host=on_host)
        _refuse(agreed, policies, present)
        for p in missing:
            if agreed.has_gradient(p):
                _add_zeros(groups, stepped, p)
        optimizer._allocate(lacking)
        finite = agreed.finite if "skip" in policies else None
        moving, states = list(optimizer._moving(finite, stepped)), optimizer._own_state()
        plans = [optimizer._plan(*moves, states, places=layout.places, slots=layout.slots) for moves in moving]
        if finite is not None:
            skipped.count_skipped(optimizer, finite)
        if plans:
            _step_in_two_rounds(optimizer, layout, plans, agreed.total_norm)
    _note_written(stepped)


def _place(
    ranks: Ranks, groups: list[dict[str, Any]], nothing: Told, layout: Layout | None, *, on_host: bool
) -> dict[Tensor, Tensor]:
    """Gradients that are not on the shards of their parameters, such as sums still to be taken, brought there.

    By collectives, which all ranks have to call, but for those that are whole: on the host they tell each other
    first. In backward all have the same.
    """
    params = (p for on in ranks.schedule.meshes.values() for p in on.params)
    misplaced = {p: p.grad for p in params if p.grad is not None and is_misplaced(p, p.grad)}
    awaited = {p for p, grad in misplaced.items() if not is_whole(grad)}
    if awaited and on_host and not any("first_index" in group for group in groups):
        told = nothing._replace(misplaced=awaited, waits=True)
        agreed = ranks.agree(told, None if layout is None else _by_mesh(layout, ranks), on_host=True)
        _refuse(agreed, set(), {})
    return {p: placed_as(p, grad) for p, grad in misplaced.items()}


def _options(optimizer: Any) -> list[dict[str, object]]:
    """Of each group, what has to be the same on all ranks: all but who carries out the step."""
    own = ("fused", "foreach", "capturable")
    return [
        {name: _plain(group[name]) for name in optimizer.defaults if name in group and name not in own}
        for group in optimizer.param_groups
    ]


def _plain(value: Any) -> object:
    """As a schedule may have written it on one rank and not on another."""
    if isinstance(value, Tensor | int | float):
        return float(value)
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else str(value)


def _step_in_two_rounds(
    optimizer: Any, layout: Layout, plans: list[layers.GroupPlan], total_norm: Tensor | None
) -> None:
    """The second of them, what ranks agree on being known."""
    sums = _zeros(layout)
    begun: list[_Half] = []
    for plan in plans:
        layers.count_step(plan)
        begun += _begin(optimizer, plan, total_norm, sums)
    for plan in plans:
        optimizer._step_buckets(plan, total_norm)
    for place in sums:
        sums[place] = all_reduce(sums[place], *place[0]).to(place[1])
    for half in begun:
        half.finish(optimizer, sums)


def _step_in_one_round(
    optimizer: Any,
    ranks: Ranks,
    layout: Layout,
    stepped: list[list[layers.Stepped]],
    missing: list[Tensor],
    options: Sequence[Mapping[str, object]],
    *,
    on_host: bool,
) -> None:
    """All that ranks tell each other comes after the first half of the step, which on the host changes nothing.

    On a device the state has moved by then: of the parameters that have a gradient here, and so move in any case.
    """
    states, sums = optimizer._own_state(), _zeros(layout)
    groups = optimizer.param_groups
    plan = functools.partial(optimizer._plan, states=states, places=layout.places, slots=layout.slots)
    plans = [plan(group, some, None, late=on_host) for group, some in zip(groups, stepped, strict=True)]
    waiting: list[tuple[Tensor, layers.GroupPlan]] = []
    for p in missing:
        i, zeros = _zero_gradient(groups, p)
        waiting.append((p, plan(groups[i], [zeros], None, late=True)))
    begun: list[_Half] = []
    for one in plans:
        if not on_host:
            layers.count_step(one)
        begun += _begin(optimizer, one, None, sums)
    if_present = {p: (one, list(_begin(optimizer, one, None, sums))) for p, one in waiting}
    present = {p: grad for some in stepped for _, p, grad, _, _ in some}
    if any("first_index" in group for group in groups) and not sums:  # in backward, a layer that no rank waits for
        agreed = Agreed(False, None, None, {}, {})
    else:
        agreed = ranks.agree(Told(present, options=options), _by_mesh(layout, ranks, sums), on_host=on_host)
    _refuse(agreed, set(), present)
    for mesh, total in agreed.sums.items():
        places = [place for place in sums if ranks.schedule.same[place[0].mesh] == mesh]
        for place, part in zip(places, torch.split(total, [layout.sizes[x] for x in places]), strict=True):
            sums[place] = part.div_(place[0].copies).to(place[1])
    for p, (one, halves) in if_present.items():
        if agreed.has_gradient(p):
            layers.count_step(one)
            plans.append(one)
            begun += halves
    for one in plans[: len(groups)] if on_host else ():
        layers.count_step(one)
    for half in begun:
        half.finish(optimizer, sums)
    for one in plans:
        optimizer._step_buckets(one, None)


@dataclass(frozen=True)
class _Half:
    """Layers of which the first half of a step is done."""

    plan: layers.GroupPlan
    backend: Any
    scales: Any
    place: Place
    begun: Any

    def finish(self, optimizer: Any, sums: dict[Place, Tensor]) -> None:
        hyper = replace(self.plan.hyper, late=self.plan.late)
        self.backend.finish(self.begun, hyper, self.scales, optimizer._scratch, sums[self.place])


def _begin(
    optimizer: Any, plan: layers.GroupPlan, total_norm: Tensor | None, sums: dict[Place, Tensor]
) -> Iterator[_Half]:
    hyper = replace(plan.hyper, late=plan.late)
    for backend, bucket, place in plan.halves:
        scales = layers.scales_of(plan, bucket, total_norm)
        begun = backend.begin(bucket, hyper, scales, optimizer._scratch, sums[place])
        yield _Half(plan, backend, scales, place, begun)


def _layout(ranks: Ranks, groups: list[dict[str, Any]]) -> Layout:
    """Kept with the schedule, as long as the same groups are adapted."""
    adapting = tuple(map(layers.adapts, groups))
    kept: dict[tuple[bool, ...], Layout] = vars(ranks).setdefault("layouts", {})
    if adapting not in kept:
        kept[adapting] = _lay_out(ranks, groups, adapting)
    return kept[adapting]


def _lay_out(ranks: Ranks, groups: list[dict[str, Any]], adapting: tuple[bool, ...]) -> Layout:
    schedule = ranks.schedule
    layout = Layout({}, defaultdict(int), {})
    for params, dims, adapted in zip(schedule.lists, schedule.norm_dims, adapting, strict=True):
        for p in params:
            cut = schedule.cuts.get(p)
            if adapted and cut is not None:
                here = local(p)
                place = cut, here.device
                covered = None if dims is None else tuple(d % p.ndim for d in dims)
                layout.places[p], layout.slots[p] = place, layout.sizes[place]
                layout.sizes[place] += 2 * count_rows(here.shape, covered) * parts_of(p.dtype)
    return layout


def _zeros(layout: Layout) -> dict[Place, Tensor]:
    return {place: torch.zeros(size, dtype=torch.float64, device=place[1]) for place, size in layout.sizes.items()}


def _by_mesh(layout: Layout, ranks: Ranks, sums: dict[Place, Tensor] | None = None) -> dict[Any, Tensor]:
    """The sums of each mesh as one vector; zeros where there are none to tell."""
    sums = _zeros(layout) if sums is None else sums
    found = {}
    for mesh in ranks.schedule.meshes:
        vectors = [x for place, x in sums.items() if ranks.schedule.same[place[0].mesh] == mesh]
        device = vectors[0].device if vectors else "cpu"
        found[mesh] = torch.cat([x.to(device) for x in vectors]) if vectors else torch.zeros(0, dtype=torch.float64)
    return found


def _may_read(ranks: Ranks, groups: list[dict[str, Any]]) -> bool:
    """Whether numbers are on the host, and may be read there."""
    if any(group["capturable"] for group in groups):
        return False
    first = [on.params[0] for on in ranks.schedule.meshes.values()]
    first += [p for group in groups for p in group["params"][:1]]
    return all(local(p).is_cpu and has_numbers(p) for p in first)


def _refuse(agreed: Agreed, policies: set[str], present: dict[Tensor, Tensor]) -> None:
    """Raise on every rank what one of them has found."""
    if agreed.failed:
        refuse_for_others("the step has failed")
    if "raise" in policies and agreed.finite is not None and has_numbers(agreed.finite) and not agreed.finite:
        refuse_nonfinite(present.values())
        refuse_for_others("a gradient has an infinity, a NaN or an entry whose square overflows,")


def _add_zeros(groups: list[dict[str, Any]], stepped: list[list[layers.Stepped]], p: Tensor) -> None:
    i, zeros = _zero_gradient(groups, p)
    stepped[i].append(zeros)


def _zero_gradient(groups: list[dict[str, Any]], p: Tensor) -> tuple[int, layers.Stepped]:
    """The group of a parameter, and the parameter to be stepped with a gradient of zeros."""
    before = 0
    for i, group in enumerate(groups):
        for j, other in enumerate(group["params"]):
            if other is p:
                return i, (before + j, p, sharded_like(torch.zeros_like(local(p)), p), {}, None)
        before += len(group["params"])
    raise AssertionError("a parameter of the schedule is in a group")


def _note_written(stepped: Iterable[list[layers.Stepped]]) -> None:
    """As in-place operations on DTensors do, so that a backward pass of what was computed before the step raises."""
    if sharded := [p for some in stepped for _, p, *_ in some if is_sharded(p)]:
        torch.autograd.graph.increment_version(sharded)
