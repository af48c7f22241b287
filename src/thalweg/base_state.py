"""Loading the state of E's base, which must be such that the base can step from it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from thalweg.backends import compute_dtype
from thalweg.exploration import ALPHA, BETA, BY_PARAMETER, EMA
from thalweg.hyperparameters import check_count, is_number, reject
from thalweg.state import check_buffer, check_state_dict, load_keeping_dtype

if TYPE_CHECKING:
    from torch.optim import Optimizer

_NUMBERS = ("mu_product", "eta", "mu")  # of NAdam and ASGD


def load(base: Any, state_dict: dict[str, Any]) -> None:
    """Let the base load a state dict, its own or that of E around it; b keeps its dtype, or is widened to E's.

    Raises:
        ValueError: as :func:`check_loaded`, or the base fails on it.
    """
    handle = None
    if hasattr(base, "_optimizer_load_state_dict_pre_hooks"):  # after the user's, which may change all
        handle = base.register_load_state_dict_pre_hook(check_loaded)
    kind = type(base).__name__
    try:
        load_keeping_dtype(base, base.load_state_dict, state_dict, (EMA,))
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"state_dict must be {kind}'s, alone or with E, got one that raises {error!r}") from error
    finally:
        if handle is not None:
            handle.remove()
    if handle is None:
        check_loaded(base, {"state": base.state, "param_groups": base.param_groups})
    for p in (p for group in base.param_groups for p in group["params"]):
        if EMA in (state := base.state.get(p, {})):
            state[EMA] = state[EMA].to(torch.promote_types(state[EMA].dtype, compute_dtype(p.dtype)))


def check_loaded(base: Any, state_dict: Any) -> None:
    """Raise ``ValueError`` for the first entry of the state of ``state_dict`` that the base or E cannot go on from.

    Of one of torch's own optimizers (:data:`thalweg.exploration.BY_PARAMETER`) all is known: what must be there, of
    which shape and kind. Of any other base: E's b, ``step``, and what must be like the state that is there already.
    """
    check_state_dict(state_dict)
    saved = [(key, group) for group in state_dict["param_groups"] for key in group["params"]]
    params = chain.from_iterable(group["params"] for group in base.param_groups)
    for p, (key, group) in zip(params, saved):  # noqa: B905 (torch says that they do not match)
        if key in state_dict["state"]:
            _check(base, {**base.defaults, **group}, p, state_dict["state"][key])


def _check(base: Any, group: dict[str, Any], p: Tensor, state: Any) -> None:
    of = f"of a parameter of shape {tuple(p.shape)}"
    if not isinstance(state, Mapping):
        reject(f"the state {of}", state, "a dictionary")
    if EMA in state:
        check_buffer(f"{EMA} {of}", state[EMA], p)
    torchs = type(base) in BY_PARAMETER
    step = state.get("step", 0)
    if not torchs and (not isinstance(step, Tensor) or step.numel() == 1):  # else it is something of its own
        check_count(f"step {of}", step)
    expected = _made_by(base, group, p) if torchs and state else _present(base, p, state)
    if not expected.keys() <= state.keys():
        reject(f"the state {of}", sorted(map(str, state)), f"{type(base).__name__}'s, with {', '.join(expected)}")
    if torchs and state.get("momentum_buffer") is not None:  # SGD makes it in its step
        expected.setdefault("momentum_buffer", p)
    for name, like in expected.items():
        which, x = f"{name} {of if like.shape == p.shape else f'of shape {tuple(like.shape)}'}", state[name]
        if name == "step":
            check_count(which, x)
        elif name in _NUMBERS:
            number = x.item() if isinstance(x, Tensor) and x.numel() == 1 else x
            if not (is_number(number) and abs(number) < float("inf")):
                reject(which, x, "a finite number")
        elif like.is_floating_point() or like.is_complex():
            check_buffer(which, x, p if like.shape == p.shape else like)
        elif not isinstance(x, Tensor) or x.shape != like.shape:
            reject(which, x, f"a tensor of shape {tuple(like.shape)}")


def _present(base: Any, p: Tensor, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """What is kept for p now, is of its shape and is to be loaded."""
    now = base.state.get(p, {})
    return {
        name: x for name, x in now.items() if name in state and isinstance(x, Tensor) and x.ndim and x.shape == p.shape
    }


def _made_by(base: Any, group: dict[str, Any], p: Tensor) -> dict[str, Tensor]:
    """The state that one of torch's optimizers makes for a parameter like p, as tensors without memory."""
    like = torch.empty(p.shape, dtype=p.dtype, device="meta", requires_grad=True)
    like.grad = torch.empty_like(like)
    plain = {"foreach": None, "fused": None, "capturable": False, "differentiable": False}
    lists: list[list[Any]] = [[] for _ in inspect.signature(base._init_group).parameters]
    try:
        base._init_group({**group, **plain, "params": [like]}, *lists[1:])
        return dict(base.state.get(like, {}))
    finally:
        base.state.pop(like, None)


def check_groups(base: Optimizer, before: list[dict[str, Any]]) -> None:
    """Raise ``ValueError`` for a group that a load has left without an option it had ``before``."""
    needed = [name for name in base.defaults if name not in (ALPHA, BETA) and not name.startswith("_")]
    for i, (had, group) in enumerate(zip(before, base.param_groups, strict=True)):
        if lost := [name for name in needed if name in had and name not in group]:
            reject(f"param_groups[{i}]", sorted(map(str, group)), f"{type(base).__name__}'s, with {', '.join(lost)}")
