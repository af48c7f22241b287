"""Loading an optimizer's state: checked, in the dtype it was saved in, and undone after an error."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from thalweg.arguments import reject
from thalweg.kernels import eightbit
from thalweg.kernels.checks import BUFFERS, check_buffer
from thalweg.kernels.rounding import EXP_AVG_SQ, stored_as
from thalweg.optim.hyperparameters import check_count
from thalweg.sharding import is_sharded
from thalweg.torch_private import has_load_hooks

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from torch.optim import Optimizer


# Options of ALTO, of torch's Adam and of E around it.
_OF_OTHERS = frozenset(
    {
        "alpha",
        "beta",
        "amsgrad",
        "differentiable",
        "decoupled_weight_decay",
        "explore_alpha",
        "explore_beta",
        "explore_skipped",
    }
)


@dataclass(frozen=True)
class Sealed:
    """A tensor that is loaded as it is: what is no tensor, no loader casts."""

    tensor: torch.Tensor

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"load_state_dict must not cast state that keeps its dtype: it looked for its {name!r}")


def check_state_dict(state_dict: Any) -> None:
    """Raise ``ValueError`` unless it has the form of an optimizer's state dict."""
    form = isinstance(state_dict, Mapping) and isinstance(state_dict.get("state"), Mapping)
    groups = state_dict.get("param_groups") if form else None
    if not (isinstance(groups, list | tuple) and all(isinstance(group, Mapping) for group in groups)):
        got = sorted(map(str, state_dict)) if isinstance(state_dict, Mapping) else state_dict
        reject("state_dict", got, "an optimizer's, a dictionary with 'state' and a list of 'param_groups'")
    for key, state in state_dict["state"].items():
        if isinstance(state, Mapping) and isinstance(step := state.get("step"), str):  # torch would iterate over it
            reject(f"step of parameter {key!r}", step, "a whole number in [0, inf)")


def check_loaded_state(p: Any, state: Mapping[str, Any], needed: tuple[str, ...], buffers: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless the state loaded for a parameter is a count of steps and averages of its gradient.

    The count may have any form of a number, and is brought into that of a step later.

    Args:
        p: the parameter.
        state: what is kept for it, not empty.
        needed: names of the averages that must be there.
        buffers: names of those that may be there.
    """
    of = f"of a parameter of shape {tuple(p.shape)}"
    if not {"step", *needed} <= state.keys() <= {"step", *buffers}:
        reject(f"the state {of}", list(state), f"under the names {', '.join(('step', *buffers))}")
    check_count(f"step {of}", state["step"])
    for name in buffers:
        if name in state:
            check_buffer(name, state[name], p)


def with_wide_shards(state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state dict with sharded 8-bit state read into float32, as shards of another size may end within a block."""

    def widened(state: Any) -> Any:
        return {k: eightbit.read(x) if is_sharded(x) and eightbit.is_8bit(x) else x for k, x in state.items()}

    return {**state_dict, "state": {key: widened(state) for key, state in state_dict["state"].items()}}


def widen_float16(state: dict[str, Any]) -> None:
    """Make a parameter's float16 state float32: in float16, v of gradients below 1e-3 is 0."""
    for name in BUFFERS:
        if isinstance(x := state.get(name), torch.Tensor) and x.dtype is torch.float16:
            state[name] = x.float()


def quantize_again(state: dict[str, Any], group: Mapping[str, Any]) -> None:
    """Put a parameter's float32 state in 8 bits, where the group that was saved with it says so."""
    for name in BUFFERS:
        x = state.get(name)
        wanted = stored_as(group.get("state_dtype"), name) == eightbit.EIGHT_BITS
        if wanted and isinstance(x, torch.Tensor) and x.dtype is torch.float32 and not eightbit.is_8bit(x):
            state[name] = eightbit.quantize(x, signed=name != EXP_AVG_SQ)


def renewed(
    group: Mapping[str, Any], defaults: Collection[str], buffers: Collection[str], optimizer: str
) -> dict[str, Any]:
    """A saved group as an ``optimizer`` with these options has it, less what Adam and E have besides.

    Raises:
        ValueError: Adam's ``amsgrad=True``.
    """
    if group.get("amsgrad"):
        reject("amsgrad", True, f"False in a state that {optimizer} loads")
    kept = {name: value for name, value in group.items() if name in defaults or name not in _OF_OTHERS}
    if isinstance(stored := kept.get("state_dtype"), Mapping):
        kept["state_dtype"] = {name: dtype for name, dtype in stored.items() if name in buffers}
    return kept


def load_keeping_dtype(
    optimizer: Optimizer, load: Callable[[dict[str, Any]], None], state_dict: dict[str, Any], keys: Collection[str]
) -> None:
    """``load(state_dict)``, but ``state[p][key]`` keeps the dtype it was saved in.

    Torch casts every floating-point state to the dtype of its parameter on load (pytorch#43706): float32 moments of a
    bfloat16 parameter would come back rounded. However ``load`` finds the parameter of a buffer, here it finds it too.
    """
    if not has_load_hooks(optimizer):  # a wrapper that is not built as torch's are
        try:
            load(_sealed(state_dict, keys))
        finally:
            _unseal(optimizer, keys)
        return
    handles = (  # the user's own hooks see tensors: those before are through, those after come later
        optimizer.register_load_state_dict_pre_hook(lambda _, loaded: _sealed(loaded, keys)),
        optimizer.register_load_state_dict_post_hook(lambda _: _unseal(optimizer, keys), prepend=True),
    )
    try:
        load(state_dict)
    finally:
        for handle in handles:
            handle.remove()
        _unseal(optimizer, keys)  # where a load has failed half way


def _sealed(tree: Any, keys: Collection[str]) -> Any:
    """A tree of dictionaries and lists, in which what has one of these keys is sealed."""
    if isinstance(tree, list):
        return [_sealed(branch, keys) for branch in tree]
    if not isinstance(tree, dict):
        return tree
    sealed = copy.copy(tree)
    for key, value in tree.items():
        sealed[key] = Sealed(value) if key in keys and isinstance(value, torch.Tensor) else _sealed(value, keys)
    return sealed


def _unseal(optimizer: Optimizer, keys: Collection[str]) -> None:
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        state = optimizer.state.get(p, {})
        for key in keys:
            if isinstance(value := state.get(key), Sealed):
                state[key] = value.tensor.clone().to(p.device)  # a copy that torchao's tensors make too


@contextmanager
def restored_on_error(optimizer: Optimizer) -> Iterator[None]:
    """If what is inside fails, the optimizer is then as it was: its attributes, groups and state, and what they hold.

    So are optimizers and schedulers inside it. A tensor is kept, not copied: what is written into one stays written.
    """
    before: list[tuple[Any, Any]] = []
    _note(optimizer, before, set())
    try:
        yield
    except BaseException:
        for container, contents in before:
            container.clear()
            (container.update if isinstance(container, dict | set) else container.extend)(contents)
        raise


def _note(value: Any, found: list[tuple[Any, Any]], seen: set[int]) -> None:
    """Append each mutable container that a load may reach from ``value``, with a copy of what it holds."""
    if hasattr(type(value), "load_state_dict") and not isinstance(value, torch.nn.Module):
        value = vars(value)
    if not isinstance(value, dict | list | tuple | set | deque) or id(value) in seen:
        return
    seen.add(id(value))
    if not isinstance(value, tuple):
        found.append((value, copy.copy(value)))
    for branch in value.values() if isinstance(value, dict) else value:
        _note(branch, found, seen)


@contextmanager
def at_rest(optimizer: Optimizer) -> Iterator[None]:
    """Inside, every parameter that requires grad has a gradient of zeros, and every learning rate is 0.

    Afterwards, what was there before is as it was: gradients, entries of groups and of the state, and parameters that
    have one, which some bases move even so (Schedule-Free). What is new in groups and state stays.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    grads = [p.grad for p in params]
    groups = [(group, dict(group)) for group in optimizer.param_groups]
    states = {p: copy.deepcopy(state) for p, state in optimizer.state.items()}
    values = {p: p.detach().clone() for p in params if p in states}
    try:
        for p in params:
            p.grad = torch.zeros_like(p) if p.requires_grad else None
        for group, before in groups:
            if "lr" in group:
                lr = before["lr"]
                group["lr"] = torch.zeros_like(lr) if isinstance(lr, torch.Tensor) else 0.0
        yield
    finally:
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        for group, before in groups:
            group.update(before)
        for p, state in states.items():
            optimizer.state[p].update(state)
        with torch.no_grad():
            for p, value in values.items():
                p.copy_(value)


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
