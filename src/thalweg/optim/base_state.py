"""Loading the state of E's base, which must be such that the base can step from it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from thalweg.arguments import is_number, reject
from thalweg.kernels import compute_dtype
from thalweg.kernels.checks import check_buffer
from thalweg.optim.exploration import ALPHA, BETA, BUFFERS, BY_PARAMETER, EMA
from thalweg.optim.hyperparameters import check_count
from thalweg.optim.state import check_state_dict, load_keeping_dtype
from thalweg.torch_private import has_load_hooks, init_group

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.optim import Optimizer

_NUMBERS = ("mu_product", "eta", "mu")  # of NAdam and ASGD


def load(base: Any, state_dict: dict[str, Any]) -> None:
    """Let the base load a state dict, its own or that of E around it; b keeps its dtype, or is widened to E's.

    Of torch's own optimizers (:data:`thalweg.optim.exploration.BY_PARAMETER`) all is known that a state must have. Of
    any other base: E's b, ``step``, and that options and buffers that are there now are there afterwards, and as large.

    Raises:
        ValueError: the base fails on the state dict, or could not step from what it has loaded.
    """
    kind = type(base).__name__
    groups = [dict(group) for group in base.param_groups]
    states = {p: dict(state) for _, p, state in _states(base)}
    handle = None
    if has_load_hooks(base):  # after the user's, which may change all
        handle = base.register_load_state_dict_pre_hook(_check_kinds)
    try:
        load_keeping_dtype(base, base.load_state_dict, state_dict, (EMA,))
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"state_dict must be {kind}'s, alone or with E, got one that raises {error!r}") from error
    finally:
        if handle is not None:
            handle.remove()
    needed = [name for name in base.defaults if name not in (ALPHA, BETA) and not name.startswith("_")]
    for i, (had, group) in enumerate(zip(groups, base.param_groups, strict=True)):
        if lost := [name for name in needed if name in had and name not in group]:
            reject(f"param_groups[{i}]", sorted(map(str, group)), f"{kind}'s, with {', '.join(lost)}")
    for group, p, state in _states(base):
        if type(base) in BY_PARAMETER:
            _check_torchs(base, group, p, state)
        else:
            _check_like(states.get(p, {}), p, state)
        if EMA in state:
            check_buffer(EMA, state[EMA], p)
            state[EMA] = state[EMA].to(torch.promote_types(state[EMA].dtype, compute_dtype(p.dtype)))


def _states(base: Optimizer) -> Iterator[tuple[dict[str, Any], Tensor, Any]]:
    """Each parameter that has a state, with its group and that state."""
    states = base.state
    return ((group, p, states[p]) for group in base.param_groups for p in group["params"] if p in states)


def _check_kinds(base: Optimizer, state_dict: Any) -> None:
    """Raise ``ValueError`` for what a base of torch would cast, and lose."""
    check_state_dict(state_dict)
    keys = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
    params = chain.from_iterable(group["params"] for group in base.param_groups)
    for p, key in zip(params, keys):  # noqa: B905 (torch says that they do not match)
        of = f"of a parameter of shape {tuple(p.shape)}"
        state = state_dict["state"].get(key, {})
        if not isinstance(state, Mapping):
            reject(f"the state {of}", state, "a dictionary")
        for name in state.keys() & (BUFFERS if type(base) in BY_PARAMETER else {EMA}):
            x = state[name]
            if isinstance(x, Tensor) and not (x.is_complex() if p.is_complex() else x.is_floating_point()):
                which = "complex" if p.is_complex() else "floating-point"
                reject(f"{name} {of}", f"one of {x.dtype}", f"a dense {which} tensor of that shape")


def _check_torchs(base: Any, group: dict[str, Any], p: Tensor, state: Any) -> None:
    of = f"of a parameter of shape {tuple(p.shape)}"
    expected = _made_by(base, group, p) if state else {}
    if not expected.keys() <= state.keys():
        reject(f"the state {of}", sorted(map(str, state)), f"{type(base).__name__}'s, with {', '.join(expected)}")
    for name, x in state.items():
        if name == "step":
            state[name] = _as_count(x, check_count(f"step {of}", x), group, p)
        elif name in _NUMBERS:
            number = x.item() if isinstance(x, Tensor) and x.numel() == 1 else x
            if not (is_number(number) and abs(number) < float("inf")):
                reject(f"{name} {of}", x, "a finite number")
            if isinstance(x, Tensor) and (x.ndim > 0 or not x.is_floating_point()):
                state[name] = x.reshape(()).to(x.dtype if x.is_floating_point() else torch.float32)
        elif isinstance(x, Tensor) and x.layout is torch.sparse_coo and group.get(ALPHA, 0.0) == 0.0:  # SGD's momentum
            if x.shape != p.shape:
                reject(f"{name} {of}", tuple(x.shape), f"of shape {tuple(p.shape)}")
        elif name in BUFFERS and (x is not None or name in expected):  # SGD may have no momentum yet
            check_buffer(name, x, p)
        elif name in expected and not (isinstance(x, Tensor) and x.shape == expected[name].shape):
            got = tuple(x.shape) if isinstance(x, Tensor) else x
            reject(f"{name} {of}", got, f"a tensor of shape {tuple(expected[name].shape)}")


def _as_count(step: Any, count: int, group: dict[str, Any], p: Tensor) -> Tensor:
    """A saved count of steps in the form that torch's own optimizers and the kernels continue from."""
    if isinstance(step, Tensor):
        fits = step.ndim == 0 and step.dtype in (torch.float32, torch.float64)
        return step if fits else step.reshape(()).to(torch.float32)
    device = p.device if group.get("capturable") or group.get("fused") else "cpu"
    return torch.tensor(float(count), dtype=torch.float32, device=device)


def _check_like(before: Mapping[str, Any], p: Tensor, state: Any) -> None:
    of = f"of a parameter of shape {tuple(p.shape)}"
    if not isinstance(state, Mapping):
        reject(f"the state {of}", state, "a dictionary")
    step = state.get("step", 0)
    if not isinstance(step, Tensor) or step.numel() == 1:  # else it is something of the base's own
        check_count(f"step {of}", step)
    for name, old in before.items():
        if name in state and isinstance(old, Tensor) and old.ndim and old.shape == p.shape and name != EMA:
            x = state[name]
            if not isinstance(x, Tensor) or x.shape != p.shape or x.is_floating_point() != old.is_floating_point():
                got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else x
                reject(f"{name} {of}", got, f"a tensor like the one that is there, {old.dtype} of that shape")


def _made_by(base: Any, group: dict[str, Any], p: Tensor) -> dict[str, Tensor]:
    """The state that one of torch's optimizers makes for a parameter like p, as tensors without memory."""
    like = torch.empty(p.shape, dtype=p.dtype, device="meta", requires_grad=True)
    like.grad = torch.empty_like(like)
    plain = {"foreach": None, "fused": None, "capturable": False, "differentiable": False}
    try:
        init_group(base, {**group, **plain, "params": [like]})
        return dict(base.state.get(like, {}))
    finally:
        base.state.pop(like, None)
