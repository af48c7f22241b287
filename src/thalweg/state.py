"""Optimizer state that keeps its own dtype."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from torch.optim import Optimizer


def load_keeping_dtype(
    optimizer: Optimizer, load: Callable[[dict[str, Any]], None], state_dict: dict[str, Any], keys: Collection[str]
) -> None:
    """``load(state_dict)``, then undo torch's cast of ``state[p][key]`` to the parameter's dtype.

    Torch casts every floating-point state to the dtype of its parameter on load (pytorch#43706): float32 moments of a
    bfloat16 parameter would come back rounded.
    """
    if not hasattr(optimizer, "_optimizer_load_state_dict_pre_hooks"):  # a wrapper that is not built as torch's are
        load(state_dict)
        return
    seen: dict[str, Any] = {}
    # Registered last, so that it sees what the user's own hooks made of the state dict.
    handle = optimizer.register_load_state_dict_pre_hook(lambda _, loaded: seen.update(loaded))
    try:
        load(state_dict)
    finally:
        handle.remove()
    ids = [i for group in seen["param_groups"] for i in group["params"]]
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for i, p in zip(ids, params, strict=True):
        saved = seen["state"].get(i, {})
        for key in keys:
            if isinstance(saved.get(key), torch.Tensor):
                optimizer.state[p][key] = saved[key].to(device=p.device, copy=True)


@contextmanager
def at_rest(optimizer: Optimizer) -> Iterator[None]:
    """Inside, every parameter that requires grad has a gradient of zeros, and every learning rate is 0."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    grads = [p.grad for p in params]
    rates = [(group, group["lr"]) for group in optimizer.param_groups if "lr" in group]
    try:
        for p in params:
            p.grad = torch.zeros_like(p) if p.requires_grad else None
        for group, lr in rates:
            group["lr"] = torch.zeros_like(lr) if isinstance(lr, torch.Tensor) else 0.0
        yield
    finally:
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        for group, lr in rates:
            group["lr"] = lr


def refuse_without(key: str, state: Mapping[Any, Any], saved: Any, base: str) -> None:
    """Raise ``RuntimeError`` if ``state`` has the buffer ``key`` and what was saved of it, however nested, has not."""
    if mentions(key, state) and not mentions(key, saved):
        raise RuntimeError(
            f"{base} leaves E's buffer out of its state dict: put E inside it, around the optimizer that it drives"
        )


def mentions(key: str, tree: Any) -> bool:
    """Whether ``key`` is a key of one of the dictionaries in a tree of dictionaries and lists."""
    if isinstance(tree, dict):
        return key in tree or any(mentions(key, branch) for branch in tree.values())
    return isinstance(tree, list | tuple) and any(mentions(key, branch) for branch in tree)
