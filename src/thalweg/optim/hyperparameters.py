"""Checks of the optimizers' hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from thalweg.arguments import (
    check_beta,
    check_bool,
    check_choice,
    check_clip,
    check_eps,
    check_exploration,
    check_nonnegative,
    is_number,
    reject,
    reject_name,
)
from thalweg.kernels import eightbit, has_numbers, is_abstract
from thalweg.kernels.eightbit import EIGHT_BITS
from thalweg.kernels.rounding import NARROW, is_narrow, stored_as
from thalweg.optim.flat_shards import check_group
from thalweg.optim.plain import make_plain

NONFINITE = ("skip", "raise", "propagate")
STATE_DTYPES = (None, torch.float32, torch.float64, torch.bfloat16, EIGHT_BITS)
DECAYED = "decayed"
_NAMES: dict[torch.dtype | str, str] = {
    key: str(dtype).removeprefix("torch.")
    for dtype in STATE_DTYPES
    if isinstance(dtype, torch.dtype)
    for key in (dtype, str(dtype))
}


def check_lr(lr: object, *, may_read: bool, may_read_back: bool) -> None:
    """Raise ``ValueError`` unless lr is a number in [0, inf), or a tensor of one.

    A tensor is read if it ``may_read``, one on an accelerator if it ``may_read_back``, none where there are no numbers.
    """
    if isinstance(lr, Tensor) and lr.numel() == 1:
        if is_abstract(lr) or not (may_read if lr.is_cpu else may_read_back):
            return
        lr = lr.item()
    check_nonnegative("lr", lr)


def check_count(argument: str, value: object) -> int:
    """``value``, a number or a tensor of one, as an integer, or ``ValueError`` unless it is whole and at least 0."""
    count = value
    if isinstance(value, Tensor) and value.numel() == 1:
        count = value.item() if has_numbers(value) else 0
    if not (is_number(count) and 0 <= count < math.inf and count == int(count)):  # type: ignore[operator, call-overload]
        reject(argument, value, "a whole number in [0, inf)")
    return int(count)  # type: ignore[call-overload, no-any-return]


def check_betas(betas: object) -> None:
    """Raise ``ValueError`` unless betas are two numbers in [0, 1)."""
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        reject("betas", betas, "2 numbers in [0, 1)")
    for i, beta in enumerate(betas):
        check_beta(f"betas[{i}]", beta)


def recheck_exploration(alpha: Any, beta: Any, *, names: tuple[str, str]) -> None:
    """As :func:`check_exploration`, at little cost, for what a schedule may have changed."""
    floats = type(alpha) is float and type(beta) is float
    if not (floats and 0.0 <= beta < 1.0 and abs(alpha) * (1.0 - beta) < 1.0):
        check_exploration(alpha, beta, names=names)


# Options of other optimizers, and other names for ours: in a group they would have no effect.
_FOREIGN = {
    *("amsgrad", "b1", "b2", "dampening", "decay"),
    *("differentiable", "learning_rate", "momentum", "nesterov", "wd"),
}


def check_keys(group: Mapping[str, Any], known: Collection[str], *, foreign: bool = True) -> None:
    """Raise ``ValueError`` for a key of a group that is meant to be an option but is none of the ``known`` ones.

    That is one like the name of an option, misspelt, or, if ``foreign``, the name of another optimizer's. Other keys
    are the user's, or a scheduler's such as ``initial_lr`` and ``max_momentum``, which have the name whole, and stay.

    >>> check_keys({"params": [], "weigth_decay": 0.1}, ("lr", "weight_decay"))
    Traceback (most recent call last):
    ValueError: a parameter group must be given options by their names, weight_decay, got 'weigth_decay'
    """
    for key in group:
        if isinstance(key, str) and key not in known and key not in ("params", "param_names"):
            others = [name for name in known if f"_{name}_" not in f"_{key}_"]
            alike = get_close_matches(key.lower(), others, n=1, cutoff=0.8)
            if alike or (foreign and key in _FOREIGN):
                reject("a parameter group", key, f"given options by their names, {', '.join(alike or sorted(known))}")


def check_lamb(group: dict[str, Any], buffers: tuple[str, ...], *, may_wait: bool = True) -> None:
    """Raise ``ValueError`` for the first hyperparameter of ``group`` that is out of range; its state is ``buffers``."""
    make_plain(group)
    adapt = group["trust_ratio"]
    if not isinstance(adapt, bool) and not (isinstance(adapt, str) and adapt == DECAYED):
        reject("trust_ratio", adapt, f"True, False or {DECAYED!r}")
    for name in ("maximize", "capturable", "stochastic_rounding", "bias_correction", "decoupled_decay"):
        check_bool(name, group[name])
    check_lr(group["lr"], may_read_back=may_wait, may_read=may_wait or not group["capturable"])
    check_eps("eps", group["eps"])
    for name in ("trust_eps", "weight_decay"):
        check_nonnegative(name, group[name])
    check_betas(group["betas"])
    for name in ("foreach", "fused"):
        check_bool(name, group[name], none=True)
    if group["fused"] and group["foreach"]:
        reject("fused", True, "None or False with foreach=True, of which it would take the place")
    for device in {p.device for p in group.get("params", ())} if group["fused"] else ():
        if device.type == "cuda" and may_wait and find_spec("triton") is None:  # a step asks when it looks for kernels
            reject("fused", True, f"None or False for a parameter on {device} without Triton (pip install triton)")
        if device.type not in ("cpu", "cuda", "meta"):
            reject("fused", True, f"None or False for a parameter on {device}, as its kernels are for the CPU and CUDA")
    check_clip("trust_clip", group["trust_clip"])
    check_clip("ratio_clip", group["ratio_clip"])
    if (bound := group["max_grad_norm"]) is not None and not (is_number(bound) and bound > 0.0):
        reject("max_grad_norm", bound, "None or a number in (0, inf]")
    _check_state_dtype(group, buffers)
    check_choice("nonfinite", group["nonfinite"], NONFINITE)
    if group["nonfinite"] == "raise" and _is_capturable(group):
        reject("nonfinite", "raise", "'skip' or 'propagate' with capturable=True, as raising reads the gradients back")
    if group["stochastic_rounding"] and _is_capturable(group):
        reject("stochastic_rounding", True, "False with capturable=True, as its seed is counted on the host")
    _check_norm_dims(group)
    if may_wait:
        check_group(group)


def _check_state_dtype(group: dict[str, Any], buffers: tuple[str, ...]) -> None:
    given = group["state_dtype"]
    named = {name: _name(x) for name, x in given.items()} if isinstance(given, Mapping) else _name(given)
    wanted = [stored_as(named, name) for name in buffers]
    known = all(w is None or (isinstance(w, torch.dtype | str) and w in STATE_DTYPES) for w in wanted)
    if not known or (isinstance(named, dict) and not named.keys() <= set(buffers)):
        *first, last = (repr(value) for value in STATE_DTYPES)
        allowed = f"{', '.join(first)}, {last} or a mapping of {', '.join(map(repr, buffers))} to these"
        if isinstance(given, str) and not isinstance(getattr(torch, given.removeprefix("torch."), None), torch.dtype):
            names = (EIGHT_BITS, *(str(dtype).removeprefix("torch.") for dtype in STATE_DTYPES if dtype is not None))
            reject_name("state_dtype", given, allowed, names)
        reject("state_dtype", given, allowed)
    _check_narrow(group)
    group["state_dtype"] = named
    if is_narrow(named) and any(p.is_complex() for p in group.get("params", ())):
        reject("state_dtype", given, "None, torch.float32 or torch.float64 for complex parameters")
    if EIGHT_BITS in wanted and not torch.compiler.is_compiling():  # Dynamo cannot trace a cache
        eightbit.torchao()


def _name(dtype: Any) -> Any:
    """The name of a dtype, by which a group has it: torch's loaders of full state dicts and JSON know no dtypes."""
    return _NAMES.get(dtype, dtype) if isinstance(dtype, torch.dtype | str) else dtype


def check_loaded(group: dict[str, Any], states: Mapping[Any, Mapping[str, Any]], names: tuple[str, ...]) -> None:
    """Let ``state_dtype`` say how the group's state is stored, if it is in few bits, or raise ``ValueError``.

    A loader that fills the tensors that are there, such as torch.distributed.checkpoint's, leaves them in their dtype
    and yet brings the options of the checkpoint.
    """
    for name in names:
        buffers = [states[p][name] for p in group["params"] if name in states.get(p, ())]
        dtypes = {EIGHT_BITS if eightbit.is_8bit(b) else b.dtype for b in buffers}
        for dtype in dtypes & NARROW - {stored_as(group["state_dtype"], name)}:
            stored = {n: dtype if n == name else stored_as(group["state_dtype"], n) for n in names}
            group["state_dtype"] = {n: _name(dtype) for n, dtype in stored.items()}
    _check_narrow(group)


def _is_capturable(group: dict[str, Any]) -> bool:
    """Whether it is said to be; to a step that is being compiled Dynamo says it of every group."""
    return group["capturable"] and not torch.compiler.is_compiling()


def _check_narrow(group: dict[str, Any]) -> None:
    given = group["state_dtype"]
    if _is_capturable(group) and is_narrow(given):
        allowed = "None, torch.float32 or torch.float64 with capturable=True, as the seed of rounding is on the host"
        reject("state_dtype", given, allowed)


def _check_norm_dims(group: dict[str, Any]) -> None:
    dims = group["norm_dims"]
    if dims is None:
        return
    integers = isinstance(dims, tuple) and all(isinstance(d, int) and not isinstance(d, bool) for d in dims)
    if not integers or not dims or len(set(dims)) != len(dims):
        reject("norm_dims", dims, "None or a tuple of different axes")
    for p in group.get("params", ()):
        if len({d % p.ndim for d in dims if -p.ndim <= d < p.ndim}) != len(dims):
            reject("norm_dims", dims, f"different axes of every parameter of its group, one of shape {tuple(p.shape)}")
