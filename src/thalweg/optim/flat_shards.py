"""Parameters that are pieces of a flat buffer, as FSDP1 and DeepSpeed's ZeRO shard them.

They have lost the shapes of the layers. A norm of such a piece is that of no layer, and what is judged of one rank's
pieces, a global norm or whether gradients are finite, is not what the other ranks find: only an update of each entry by
itself is right. FSDP2 shards each parameter for itself, as a DTensor that knows its whole.
"""

from __future__ import annotations

import functools
import re
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy
from torch.optim import ASGD, SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop, Rprop, SparseAdam

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

ELEMENTWISE = (SGD, Adam, AdamW, NAdam, RAdam, Adamax, Adagrad, Adadelta, RMSprop, Rprop, ASGD, SparseAdam)
"""Whose update of an entry depends on no other entry."""
_BEYOND_ENTRIES = re.compile(
    "lamb|lars|muon|shampoo|soap|adafactor|came|novograd|sm3|lbfgs|prodigy|dadapt|kron|psgd|galore|fromage|nero|"
    "adamp|sgdp|stableadam|scion|dion|sam$|mars",
    re.IGNORECASE,
)
_WAY_OUT = (
    "shard with FSDP2 (torch.distributed.fsdp.fully_shard), which keeps the shapes of parameters; FSDP1 does not, with "
    "use_orig_params=True either. What treats each entry by itself may be sharded so: "
)


def is_flat(p: Any) -> bool:
    """Whether ``p`` is marked as a piece of a flat buffer: by FSDP1, with whatever options, or by ZeRO's stage 3."""
    whole = getattr(p, "ds_shape", None)
    return bool(getattr(p, "_fsdp_flattened", False)) or (whole is not None and tuple(whole) != tuple(p.shape))


def check_group(group: dict[str, Any]) -> None:
    """Raise ``ValueError`` if a group of Lamb has flat shards, and an option that looks beyond an entry."""
    if beyond := _looks_beyond_entries(group):
        for p in group.get("params", ()):
            if is_flat(p):
                _refuse(p, "is a piece of a flat buffer", beyond)


def note(optimizer: Any, params: Iterable[Tensor]) -> None:
    """Let :func:`check_new` know what the optimizer was given; no copy or pickle of it does.

    By address and shape: a strong reference would keep what has been replaced in memory, and a weak one would keep
    ``torch.utils.swap_tensors``, as used by ``Module.to``, from swapping.
    """
    given = vars(optimizer).setdefault("_given", {})
    for p in params:
        given[id(p)] = _shape(p)


def check_new(optimizer: Any, p: Tensor, group: dict[str, Any]) -> None:
    """Raise ``ValueError`` if Lamb is to step ``p`` for the first time, and :func:`has_become_flat`."""
    if (beyond := _looks_beyond_entries(group)) and has_become_flat(optimizer, p, optimizer.param_groups):
        _refuse(p, "is a piece of a flat buffer, in the place of what the optimizer was given", beyond)


def has_become_flat(optimizer: Any, p: Tensor, groups: list[dict[str, Any]]) -> bool:
    """Whether ``p`` is flat, was flattened, or is new where the optimizer was given layers and has vectors alone.

    DeepSpeed and Megatron's distributed optimizer put flat buffers there, FSDP1 cuts the parameters themselves.
    """
    given = vars(optimizer).get("_given", {})
    shape, before = _shape(p), given.get(id(p))
    if is_flat(p) or shape == before:
        return is_flat(p)
    if before is not None and len(shape) < 2 <= len(before):
        return True
    now = (q.ndim for group in groups for q in group["params"])
    return any(len(s) > 1 for s in given.values()) and max(now, default=0) < 2


def _shape(p: Tensor) -> tuple[int, ...]:
    return () if is_lazy(p) else tuple(p.shape)


def _looks_beyond_entries(group: dict[str, Any]) -> str:
    """The options by which Lamb looks at more than an entry, or nothing."""
    adapts = group["trust_ratio"] is True or (group["trust_ratio"] and group["weight_decay"] > 0.0)
    found = (
        f"trust_ratio={group['trust_ratio']!r}" if adapts else "",
        f"max_grad_norm={group['max_grad_norm']}" if group["max_grad_norm"] is not None else "",
        f"nonfinite={group['nonfinite']!r}" if group["nonfinite"] != "propagate" else "",
    )
    return " and ".join(filter(None, found))


def _refuse(p: Tensor, what: str, beyond: str) -> None:
    raise ValueError(
        f"parameters must be whole, or sharded each for itself, for {beyond}; one of shape {tuple(p.shape)} {what}: "
        f"{_WAY_OUT}trust_ratio=False with max_grad_norm=None and nonfinite='propagate', or E around AdamW"
    )


def check_base(e: Any, base: Any, groups: list[dict[str, Any]], nonfinite: str) -> None:
    """Raise ``ValueError`` if E or its base, which are to step ``groups`` of flat shards, looks beyond an entry.

    Warns:
        UserWarning: it is not known whether the base does.
    """
    params = [p for group in groups for p in group["params"]]
    flat = [p for p in params if has_become_flat(e, p, base.param_groups)]
    note(e, params)
    name = type(base).__name__
    if not flat:
        return
    if nonfinite != "propagate":
        _refuse(flat[0], "is a piece of a flat buffer", f"nonfinite={nonfinite!r}")
    if type(base) in ELEMENTWISE or "trust_ratio" in base.defaults:  # LAMB looks itself
        return
    if _BEYOND_ENTRIES.search(name):
        _refuse(flat[0], "is a piece of a flat buffer", f"E around {name}")
    warnings.warn(
        f"parameters are pieces of flat buffers, as FSDP1 makes them: the steps of {name} are right if it treats each "
        "entry by itself, and silently wrong if it looks at rows, matrices or norms; FSDP2 (fully_shard) keeps shapes",
        stacklevel=4,
    )


def looks_beyond_entries(base: Any) -> bool:
    """Whether an optimizer is known to look at rows, matrices or norms; not Lamb, which asks other ranks itself."""
    known = _by_name if torch.compiler.is_compiling() else _remembered  # Dynamo sees through a cache, and warns of it
    return "trust_ratio" not in base.defaults and known(type(base).__name__)


def _by_name(name: str) -> bool:
    return bool(_BEYOND_ENTRIES.search(name))


_remembered = functools.cache(_by_name)


def check_first_step(e: Any) -> None:
    """The same at the first step, whatever has happened to the parameters since; later ones ask nothing."""
    if not torch.compiler.is_compiling() and "_has_looked" not in vars(e):
        check_base(e, e.base, e.param_groups, e.nonfinite)
        vars(e)["_has_looked"] = True
