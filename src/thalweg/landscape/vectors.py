"""Vectors of all parameters, one after the other: made from what a user may give, and taken apart again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from thalweg.arguments import reject

Vector: TypeAlias = Any
"""A vector of all parameters: a tensor, an array or a list of numbers; or tensors in the shapes of the parameters."""
Coordinates: TypeAlias = Any
"""A tensor, an array or a sequence of numbers."""


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All entries in one vector, a copy."""
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def pieces(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of a vector in the shapes of ``like``."""
    parts = torch.split(vector, [t.numel() for t in like])
    return [part.view(t.shape) for part, t in zip(parts, like, strict=True)]


def split(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The parts of a vector in the shapes, dtypes and on the devices of ``like``; views where these are its own."""
    return [piece.to(t.device, t.dtype) for piece, t in zip(pieces(vector, like), like, strict=True)]


def empty_like(params: Sequence[Tensor]) -> Tensor:
    """What a vector of all parameters is like, in size, dtype and device, without memory for its entries."""
    dtype = params[0].dtype
    for p in params:
        dtype = torch.promote_types(dtype, p.dtype)
    return torch.empty((), dtype=dtype, device=params[0].device).expand(sum(p.numel() for p in params))


def as_vector(argument: str, given: Vector, params: Sequence[Tensor]) -> Tensor:
    """What was given for all parameters as one vector, in their dtype.

    Args:
        argument: its name, for the error.
        given: a tensor, an array or a sequence of as many numbers as the parameters have entries; or tensors in the
            shapes of the parameters, in their order, also as the values of a mapping; or a list of one vector.
        params: the parameters.

    Raises:
        ValueError: it is none of these, or not finite.

    >>> p, q = torch.zeros(2, 1), torch.zeros(1)
    >>> as_vector("direction", [1, 2, 3], [p, q]), as_vector("direction", [p + 1, q], [p, q])
    (tensor([1., 2., 3.]), tensor([1., 1., 0.]))
    """
    like = empty_like(params)
    found = _joined(given, params)
    if found is None or found.is_complex() or found.shape != like.shape or not found.isfinite().all():
        allowed = f"a vector of {len(like)} finite numbers, or a tensor in the shape of each parameter"
        reject(argument, _told(given), allowed)
    return found.to(like)


def _joined(given: Vector, params: Sequence[Tensor]) -> Tensor | None:
    """As one tensor; None if that cannot be."""
    if isinstance(given, Mapping):
        given = given.values()
    if not isinstance(given, Tensor) and not hasattr(given, "__array__") and isinstance(given, Iterable):
        given = list(given)
        tensors = [_tensor(one) for one in given if getattr(one, "shape", ()) != ()]
        if len(tensors) == len(given) == len(params) and [_shape(t) for t in tensors] == [p.shape for p in params]:
            return flat([t.to(params[0].device) for t in tensors if t is not None])
        if tensors:
            return tensors[0] if len(tensors) == len(given) == 1 else None
    found = _tensor(given)
    return found.reshape(-1) if found is not None and len(params) == 1 and found.shape == params[0].shape else found


def _tensor(given: Any) -> Tensor | None:
    try:
        # Python's numbers and lists of them have no dtype of their own that is worth keeping.
        wide = None if hasattr(given, "dtype") else torch.float64
        return torch.as_tensor(given, dtype=wide).detach()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tensor.shape


def _told(given: Any) -> str:
    if getattr(given, "shape", None) is not None:
        return f"one of shape {tuple(given.shape)}"
    return f"{type(given).__name__} of {len(given)}" if hasattr(given, "__len__") else type(given).__name__


def as_numbers(argument: str, given: Coordinates) -> Tensor:
    """Coordinates as a vector, float64, on the CPU.

    Raises:
        ValueError: it is not a vector of finite numbers.

    >>> as_numbers("x", range(3))
    tensor([0., 1., 2.], dtype=torch.float64)
    """
    plain = isinstance(given, Iterable) and not isinstance(given, Tensor | str | Mapping) and not _is_array(given)
    found = _tensor(list(given) if plain else given)
    if found is None or found.is_complex() or found.dim() != 1 or not len(found) or not found.isfinite().all():
        reject(argument, _told(given), "a vector of finite coordinates")
    return found.double().cpu()


def _is_array(given: Any) -> bool:
    return hasattr(given, "__array__")


def full_precision(like: Tensor) -> torch.autocast:
    """A context in which our own products of matrices are not cast, whatever autocast the loss is evaluated in."""
    return torch.autocast(like.device.type, enabled=False)


def dot(a: Tensor, b: Tensor) -> float:
    """a · b."""
    with full_precision(a):
        return float(a @ b)
