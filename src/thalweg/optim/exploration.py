"""What E does to one step of its base: g' in the place of each gradient g, then b moved on by g."""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from itertools import repeat
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch.nn.parameter import UninitializedParameter
from torch.optim import (
    ASGD,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Muon,
    NAdam,
    RAdam,
    RMSprop,
    Rprop,
)

from thalweg import equations as eq
from thalweg.arguments import check_exploration, reject
from thalweg.kernels import compute_dtype
from thalweg.kernels.checks import holds_its_values
from thalweg.kernels.pieces import piece_size
from thalweg.optim.hyperparameters import check_keys
from thalweg.optim.plain import as_scalar, make_options_plain
from thalweg.sharding import is_sharded, local, sharded_like
from thalweg.torch_private import step_is_hooked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor
    from torch.optim import Optimizer

ALPHA, BETA, EMA = "explore_alpha", "explore_beta", "explore_ema"
Bucket: TypeAlias = "tuple[list[Tensor], dict[str, Any], bool]"
Groups: TypeAlias = "list[dict[str, Any]]"
# Each steps a parameter by what it keeps for that parameter alone.
BY_PARAMETER = (SGD, Adam, AdamW, NAdam, RAdam, Adamax, Adagrad, Adadelta, Adafactor, RMSprop, Rprop, ASGD, Muon)
BUFFERS = {  # of these and of E, those in the shape of their parameter
    *(EMA, "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg"),
    *("acc_delta", "sum", "prev", "step_size", "ax"),
}


def make_base_plain(base: Optimizer, group: dict[str, Any]) -> None:
    """Put the options of a group, or the defaults, in Python's own types: E's, and the base's as far as is known.

    Of torch's optimizers, sequences become tuples; of others only ``betas``, as they may have lists of their own.
    """
    options = [name for name in base.defaults if name in group]
    make_options_plain(group, options, options if type(base) in BY_PARAMETER else {"betas"})
    make_exploration_plain(group)


def make_exploration_plain(group: dict[str, Any]) -> None:
    """Put E's α and β1 in Python's own types, and ``betas`` that are a list: all that a step looks at itself."""
    for name in (ALPHA, BETA):
        if name in group and type(group[name]) is not float:
            group[name] = as_scalar(group[name])
    if type(group.get("betas")) is list:
        group["betas"] = tuple(group["betas"])


def with_e(base: Optimizer, group: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """A group with E's entries, those that it lacks from the defaults; SAM repeats E's own under their short names.

    Raises:
        ValueError: an option that would not be read, or E's out of range.
    """
    checked = {**group, **{name: defaults[name] for name in (ALPHA, BETA) if name not in group}}
    refuse_misnamed(checked, defaults)
    for argument in {"alpha", "beta"} - defaults.keys():
        checked.pop(argument, None)
    make_base_plain(base, checked)
    check_keys(checked, defaults, foreign=False)  # some bases have options that are in no defaults
    check_exploration(checked[ALPHA], checked[BETA], names=(ALPHA, BETA))
    if checked.get("differentiable"):
        reject("differentiable", True, "False, as E is not differentiable")
    return checked


def refuse_misnamed(group: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Raise ``ValueError`` for an α or β1 that would not be read; some bases have an ``alpha`` of their own."""
    for argument, name in (("alpha", ALPHA), ("beta", BETA)):
        if argument in group and argument not in defaults and group[argument] != group[name]:
            reject(argument, group[argument], f"called {name} in a group of E")


@contextmanager
def explored(base: Optimizer, proceed: Tensor | None = None) -> Iterator[None]:
    """Inside, ``p.grad`` is g'; on a clean exit b moves on. The gradient itself is never written to.

    ``proceed`` is what b moves on for, if that is decided on the device.
    """
    buckets = list(_buckets(base))
    grads = [(p, p.grad) for params, *_ in buckets for p in params]
    try:
        for params, group, foreach in buckets:
            for p, h in zip(params, _replacements(base, params, group, foreach), strict=True):
                p.grad = h
        yield
    finally:
        for p, g in grads:
            p.grad = g
    for params, group, foreach in buckets:
        _advance(base, params, [cast("Tensor", p.grad) for p in params], group[BETA], foreach, proceed)


def parts(base: Optimizer, groups: Groups) -> Iterator[Groups]:
    """The groups, cut so that the base can step one part after the other, and g' is there for one part at a time.

    A part is as large as the largest parameter, or a piece if that is more. Only a base that steps each parameter by
    itself, without hooks on ``step`` or another in its place, steps in parts; in a step being compiled, none.
    """
    if type(base) not in BY_PARAMETER or is_watched(base) or torch.compiler.is_compiling():
        yield groups
        return
    parameters = [p for group in groups for p in group["params"]]
    size = {p: 0 if isinstance(p, UninitializedParameter) else p.numel() * p.element_size() for p in parameters}
    limit = max((max(nbytes, 4 * piece_size(p.device)) for p, nbytes in size.items()), default=0)
    if sum(size.values()) <= limit:
        yield groups
        return
    part: Groups = []
    room = limit
    for group in groups:
        begin = 0
        for end, p in enumerate(group["params"]):
            if size[p] > room:
                yield [*part, {**group, "params": group["params"][begin:end]}]
                part, room, begin = [], limit, end
            room -= size[p]
        part.append({**group, "params": group["params"][begin:]})
    yield part


@contextmanager
def only(optimizer: Optimizer, groups: list[dict[str, Any]]) -> Iterator[None]:
    """Inside, these are the optimizer's groups."""
    everything = optimizer.param_groups
    if groups is not everything:
        optimizer.param_groups = groups
    try:
        yield
    finally:
        if groups is not everything:
            optimizer.param_groups = everything


def is_watched(base: Optimizer) -> bool:
    """Whether hooks see the base's ``step``, or a scheduler, say, has put another in its place."""
    return "step" in vars(base) or step_is_hooked(base)


def shifts(base: Optimizer) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each parameter that E adapts: itself, s = g' - g in the gradient's dtype, and b after this step."""
    found = []
    for params, group, _ in _buckets(base):
        for p in params:
            g = cast("Tensor", p.grad)
            b = base.state.get(p, {}).get(EMA)
            wide = g.to(compute_dtype(g.dtype)) if b is None else g.to(b.dtype)
            h, after = eq.explore(
                wide, torch.zeros_like(wide) if b is None else b, alpha=group[ALPHA], beta=group[BETA]
            )
            found.append((p, (h - wide).to(g.dtype), after))
    return found


def can_skip(base: Optimizer) -> bool:
    """Whether the base leaves its next step out by itself where its ``found_inf`` is 1, as torch's fused ones do.

    A subclass may do more than its kernel. And from a first step that it leaves out, SGD would keep a momentum that
    was never written.
    """
    return type(base) in (Adam, AdamW, SGD, Adagrad) and all(
        group["fused"] and (not group.get("momentum") or all(_has_momentum(base, p) for p in group["params"]))
        for group in base.param_groups
    )


def _has_momentum(base: Optimizer, p: Tensor) -> bool:
    return p.grad is None or base.state.get(p, {}).get("momentum_buffer") is not None


@contextmanager
def skipping(base: Any, proceed: Tensor | None) -> Iterator[None]:
    """Inside, a base that :func:`can_skip` does so unless ``proceed``, told as ``torch.amp.GradScaler`` tells it."""
    if proceed is None:
        yield
        return
    base.found_inf = proceed.logical_not().float()
    try:
        yield
    finally:
        del base.found_inf


@contextmanager
def zero_gradients(params: list[Tensor]) -> Iterator[None]:
    """Inside, sharded parameters without a gradient have one of zeros, as the whole parameter has here."""
    for p in params:
        p.grad = sharded_like(torch.zeros_like(local(p)), p)
    try:
        yield
    finally:
        for p in params:
            p.grad = None


def _buckets(base: Optimizer) -> Iterator[Bucket]:
    """Parameters that have a gradient and an EMA or need one; in one bucket all have it, or none."""
    for group in base.param_groups:
        buckets: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
        for p in group["params"]:
            if p.grad is None:
                continue
            started = p in base.state and EMA in base.state[p]
            if started or group[ALPHA] != 0.0:
                together = is_sharded(p.grad) or holds_its_values(type(p.grad))  # as torch's own multi-tensor steps
                buckets[p.device, p.grad.dtype, started, together].append(p)
        for (device, _, _, together), params in buckets.items():
            foreach = group.get("foreach")
            yield params, group, together and (device.type == "cuda" if foreach is None else bool(foreach))


def _replacements(base: Optimizer, params: list[Tensor], group: dict[str, Any], foreach: bool) -> list[Tensor]:
    """g' = g + c (g - b) of each parameter, in the gradient's dtype; b is 0 where it does not exist yet."""
    grads = [cast("Tensor", p.grad) for p in params]
    gain = eq.gain(group[ALPHA], group[BETA])
    if EMA in base.state.get(params[0], {}):
        emas = [base.state[p][EMA] for p in params]
        wide = [g.to(b.dtype) for g, b in zip(grads, emas, strict=True)]
        lerped = _foreach_lerp(wide, emas, -gain) if foreach else map(torch.lerp, wide, emas, repeat(-gain))
        replaced = [h.to(g.dtype) for h, g in zip(lerped, grads, strict=True)]
    else:
        replaced = [g * (1.0 + gain) for g in grads]
    if group.get("fused"):
        replaced = [_laid_out_as(p, h) for p, h in zip(params, replaced, strict=True)]
    return [_with_graph_of(g, h) if g.requires_grad else h for g, h in zip(grads, replaced, strict=True)]


def _foreach_lerp(xs: list[Tensor], ys: list[Tensor], weight: float) -> list[Tensor]:
    """``torch._foreach_lerp``, which DTensors have since torch 2.13."""
    if torch.__version__ < "2.13" and any(is_sharded(x) for x in xs):
        return [torch.lerp(x, y, weight) for x, y in zip(xs, ys, strict=True)]
    return list(torch._foreach_lerp(xs, ys, weight))


def _laid_out_as(p: Tensor, h: Tensor) -> Tensor:
    """h with the strides of p: torch's fused kernels for the CPU take them for granted, and do not look."""
    if h.stride() == p.stride():
        return h
    laid = torch.empty_like(p, dtype=h.dtype).copy_(h)
    if laid.stride() != p.stride():
        raise RuntimeError(
            f"a fused base needs parameters without gaps in memory, got one of shape {tuple(p.shape)} and strides "
            f"{p.stride()}: build it with fused=False"
        )
    return laid


def _with_graph_of(g: Tensor, h: Tensor) -> Tensor:
    """h as g plus a constant, for bases that differentiate the gradient: the Hessian stays that of the loss."""
    with torch.enable_grad():
        return g + (h - g).detach()


def _advance(
    base: Optimizer, params: list[Tensor], grads: list[Tensor], beta: float, foreach: bool, proceed: Tensor | None
) -> None:
    """b ← β1 b + (1-β1) g. A missing b starts here, after the base has made its own state for the parameter.

    Compiled, this is a graph of its own, with the gradients as its inputs: ``p.grad`` would be guarded by identity.
    """
    for p in params:
        if EMA not in base.state[p]:
            base.state[p][EMA] = torch.zeros_like(p, dtype=compute_dtype(p.dtype))
    emas = [base.state[p][EMA] for p in params]
    grads = [g.to(b.dtype) for g, b in zip(grads, emas, strict=True)]
    if proceed is not None:  # towards itself, b stays where it is
        grads = [torch.where(proceed.to(b.device), g, b) for g, b in zip(grads, emas, strict=True)]
    if foreach:
        torch._foreach_lerp_(emas, grads, 1.0 - beta)
    else:
        for b, g in zip(emas, grads, strict=True):
            b.lerp_(g, 1.0 - beta)
