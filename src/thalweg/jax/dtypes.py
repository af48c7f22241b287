"""In which dtype to compute and to store: float32 at least, as half precision loses an average with long memory.

At β = 0.99 a bfloat16 average stands still as soon as the next gradient would change it by less than 2⁻⁹ of its size,
and at β3 = 0.999 the factor itself rounds to 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from thalweg.arguments import is_number, reject

if TYPE_CHECKING:
    from collections.abc import Callable

    from jax.typing import ArrayLike, DTypeLike


def wide_dtype(x: Any) -> jnp.dtype[Any]:
    """The dtype to compute in for an array or scalar: its own, but float32 for float16 and bfloat16.

    >>> wide_dtype(jnp.ones(2, jnp.bfloat16))
    dtype('float32')
    """
    return jnp.promote_types(jnp.result_type(x), jnp.float32)


def widen(tree: Any) -> Any:
    """Every leaf in :func:`wide_dtype`."""
    return jax.tree.map(lambda x: jnp.asarray(x, wide_dtype(x)), tree)


def check_accumulator(dtype: DTypeLike | None) -> None:
    """Raise ``ValueError`` unless dtype is None or a floating-point dtype."""
    try:
        valid = dtype is None or jnp.issubdtype(jnp.dtype(dtype), jnp.inexact)
    except TypeError:
        valid = False
    if not valid:
        reject("accumulator_dtype", dtype, "None or a floating-point dtype")


def accumulator_like(p: Any, dtype: DTypeLike | None) -> jax.Array:
    """Zeros in the shape and sharding of a parameter, in ``dtype``; None: in :func:`wide_dtype`.

    Raises:
        ValueError: a real dtype for a complex parameter.
    """
    if dtype is not None and jnp.iscomplexobj(p) and not jnp.issubdtype(jnp.dtype(dtype), jnp.complexfloating):
        reject("accumulator_dtype", dtype, "None or a complex dtype for complex parameters")
    return jnp.zeros_like(p, dtype=wide_dtype(p) if dtype is None else dtype)


def lerp(start: Any, end: Any, weight: ArrayLike) -> jax.Array:
    """start + weight·(end - start), in the wider dtype of both and in float32 at least.

    As :func:`torch.lerp` has it: from the end that weighs more, as rounding errors are of its size.

    >>> lerp(1.0, 3.0, weight=1.5)
    Array(4., dtype=float32)
    """
    dtype = jnp.promote_types(wide_dtype(start), wide_dtype(end))
    real = jnp.real(jnp.zeros((), dtype)).dtype
    start, end = jnp.asarray(start, dtype), jnp.asarray(end, dtype)
    from_start: jax.Array = start + jnp.asarray(weight, real) * (end - start)
    from_end: jax.Array = end - jnp.asarray(1 - weight, real) * (end - start)
    if is_number(weight):
        return from_start if weight < 0.5 else from_end  # type: ignore[operator]
    return jnp.where(jnp.asarray(weight) < 0.5, from_start, from_end)


def by_parts(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The function of real arrays; of complex ones, which are pairs of real numbers, applied to both parts."""

    def applied(*arrays: Any) -> jax.Array:
        if not any(map(jnp.iscomplexobj, arrays)):
            return function(*arrays)
        return jax.lax.complex(function(*map(jnp.real, arrays)), function(*map(jnp.imag, arrays)))

    return applied


def is_none(x: object) -> bool:
    """Whether x is None: the update of a parameter that has none."""
    return x is None
