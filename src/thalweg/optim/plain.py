"""Options in Python's own types, the only ones in groups and state dicts: what JSON can print, and what compares equal.

Config files, NumPy and torch's own loaders give the same option in another type: torch's full state dicts have lists
for tuples, others 0-d tensors for numbers, or 0 and 1 for False and True.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from thalweg.kernels import has_numbers

_PLAIN = frozenset({float, int, bool, str, type(None)})
_SEQUENCES = frozenset({"betas", "trust_clip", "ratio_clip", "norm_dims"})
_SCALARS = frozenset(
    {
        *("trust_ratio", "maximize", "capturable", "stochastic_rounding", "foreach", "fused"),
        *("bias_correction", "decoupled_decay"),
        *("alpha", "beta", "eps", "trust_eps", "weight_decay", "max_grad_norm", "nonfinite", "rounding_step"),
    }
)


def make_plain(group: dict[str, Any]) -> None:
    """Put the options of ALTO and Lamb in Python's own types: numbers for NumPy's and 0-d tensors, tuples for lists.

    Lists may be OmegaConf's, arrays or tensors. ``lr`` may stay a tensor. What is of no such kind stays, for the checks
    to refuse.

    >>> import torch
    >>> group = {"betas": torch.tensor([0.5, 0.75]), "trust_clip": [0, 10.0], "eps": torch.tensor(0.5)}
    >>> make_plain(group)
    >>> group
    {'betas': (0.5, 0.75), 'trust_clip': (0, 10.0), 'eps': 0.5}
    """
    for name, value in group.items():
        if name in _SEQUENCES:
            if type(value) is not tuple or any(type(x) not in _PLAIN for x in value):
                group[name] = as_tuple(value)
        elif type(value) not in _PLAIN and (name in _SCALARS or not isinstance(value, Tensor)):
            group[name] = as_scalar(value)


def as_tuple(value: Any) -> Any:
    """A list, array or vector as a tuple of Python's numbers, tensors in a list kept; anything else as it is."""
    if value is None:
        return None
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return tuple(x if isinstance(x, Tensor) else as_scalar(x) for x in value)
    return tuple(value.tolist()) if getattr(value, "ndim", None) == 1 and _is_readable(value) else value


def as_scalar(value: Any) -> Any:
    """A scalar of NumPy or a 0-d tensor as Python's number; anything else as it is."""
    return value.tolist() if getattr(value, "ndim", None) == 0 and _is_readable(value) else value


def _is_readable(value: Any) -> bool:
    return hasattr(value, "tolist") and not (isinstance(value, Tensor) and not has_numbers(value))


def make_plain_as(group: dict[str, Any], before: Mapping[str, Any]) -> None:
    """Put options that have been loaded into the types that they had ``before``, of any optimizer.

    ``lr`` may be a tensor in either: there what was saved stays, as in torch's own optimizers.

    >>> group = {"betas": [0.9, 0.99], "maximize": 0, "lr": 0.1}
    >>> make_plain_as(group, {"betas": (0.5, 0.5), "maximize": False, "lr": 0.2})
    >>> group
    {'betas': (0.9, 0.99), 'maximize': False, 'lr': 0.1}
    """
    for name in before.keys() & group.keys() - {"params"}:
        if not (name == "lr" and isinstance(group[name], Tensor)):
            group[name] = _like(group[name], before[name])
    for name in ("foreach", "fused") & group.keys():
        group[name] = _as_flag(group[name])


def _like(value: Any, before: Any) -> Any:
    if isinstance(before, tuple | list):
        values = as_tuple(value)
        if not isinstance(values, tuple):
            return value
        if len(values) == len(before):
            values = tuple(map(_like, values, before))
        return values if isinstance(before, tuple) else list(values)
    if isinstance(before, Tensor):
        return value if isinstance(value, Tensor) else as_scalar(value)
    if before is None or type(before) in _PLAIN:
        value = as_scalar(value)
    return _as_flag(value) if isinstance(before, bool) else value


def _as_flag(value: Any) -> Any:
    value = as_scalar(value)
    return bool(value) if type(value) in (int, float) and value in (0, 1) else value


def make_options_plain(group: dict[str, Any], options: Iterable[str], sequences: Iterable[str]) -> None:
    """Put options as given to any optimizer in Python's own types; tensors stay, which some may be, and others' lists.

    Args:
        group: the group.
        options: the names of its options.
        sequences: the names of those that may be tuples.
    """
    for name in options:
        value = group.get(name)
        if type(value) not in _PLAIN and not isinstance(value, Tensor):
            group[name] = as_tuple(value) if name in sequences else as_scalar(value)
