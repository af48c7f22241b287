r"""LAMB's trust ratio: each layer's update scaled to the norm of the layer.

.. math:: r \mapsto r\, \frac{φ(‖θ‖)}{‖r‖ + ε φ(‖θ‖)}
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from thalweg.arguments import reject
from thalweg.jax.checks import as_tuple, check_clip, check_nonnegative, plain
from thalweg.jax.dtypes import is_none, wide_dtype
from thalweg.jax.trees import axes_of, is_axes, no_schedules

if TYPE_CHECKING:
    from jax.typing import ArrayLike

NormAxes: TypeAlias = Any
"""None, a tuple of axes, a tree of these that is a prefix of the parameters, or a function from parameters to such."""

NO_PARAMS = "params must be given to update: the trust ratio and weight decay depend on them, got None"


@no_schedules
def scale_by_trust_ratio(
    eps: ArrayLike = 0.0,
    clip: tuple[float, float] | None = None,
    norm_axes: NormAxes = None,
    ratio_clip: tuple[float, float] | None = None,
) -> optax.GradientTransformation:
    r"""Scale the update r of each layer θ by φ(‖θ‖) / (‖r‖ + ε φ(‖θ‖)).

    Where φ(‖θ‖) = 0 (a layer that starts at zero) the ratio is 1, or the layer would never move; where ‖r‖ = 0 it is 1
    too. Norms are taken in float32 at least, over all shards of a layer. Unlike :func:`optax.scale_by_trust_ratio`,
    ``eps`` is relative to the layer, ``clip`` bounds ‖θ‖ alone, and several layers may be stacked in one array.

    Args:
        eps: ε ≥ 0.
        clip: (lo, hi): φ clamps the norm of a layer to this range. None: φ is the identity.
        norm_axes: axes over which a norm is taken, for arrays that stack layers, as scanned models do: (-2, -1) for
            kernels of shape (layers, in, out). None: all axes. Either for all parameters, or a tree of these that is a
            prefix of the parameters, or a function from parameters to such a tree.
        ratio_clip: (lo, hi): clamps the ratio itself, where neither norm is 0. None: no clamp.

    Returns:
        A :class:`optax.GradientTransformation` without state, whose ``update`` needs ``params``.

    Raises:
        ValueError: an argument outside its range; axes that do not fit the parameters, or none for all of them;
            ``update`` without ``params``.

    >>> tx = scale_by_trust_ratio()
    >>> tx.update(jnp.array([3.0, 4.0]), tx.init(None), jnp.array([0.0, 2.0]))[0]  # of norm 2
    Array([1.2, 1.6], dtype=float32)

    References:
        You et al., Large Batch Optimization for Deep Learning, arXiv 1904.00962, 2020
    """
    check_nonnegative("eps", eps)
    clip, ratio_clip = check_clip("clip", clip), check_clip("ratio_clip", ratio_clip)
    find_axes = axes_of(norm_axes, "norm_axes")
    eps = plain(eps)

    def scale(axes: tuple[int, ...] | None, r: Any, theta: Any) -> Any:
        if r is None:
            return None
        _check_fit(axes, jnp.shape(theta))
        wide = jnp.asarray(r, wide_dtype(r))
        phi, r_norm = norm(jnp.asarray(theta, wide_dtype(theta)), axes), norm(wide, axes)
        if clip is not None:
            phi = jnp.clip(phi, *clip)
        phi = phi.astype(r_norm.dtype)
        adapted = (phi > 0) & (r_norm > 0)
        # 1/1 where it is not: a division by zero there would spoil derivatives, though its value is never used.
        denominator = r_norm + jnp.asarray(eps, r_norm.dtype) * phi
        ratio = jnp.where(adapted, phi, 1) / jnp.where(adapted, denominator, 1)
        if ratio_clip is not None:
            ratio = jnp.where(adapted, jnp.clip(ratio, *ratio_clip), ratio)
        return (wide * ratio).astype(jnp.result_type(r))

    def update_fn(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.EmptyState]:
        if params is None:
            raise ValueError(NO_PARAMS)

        def scale_subtree(axes: Any, r: optax.Updates, theta: optax.Params) -> optax.Updates:
            return jax.tree.map(lambda r, theta: scale(as_tuple(axes), r, theta), r, theta, is_leaf=is_none)

        return jax.tree.map(scale_subtree, find_axes(params), updates, params, is_leaf=is_axes), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update_fn)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def norm(x: jax.Array, axes: tuple[int, ...] | None) -> jax.Array:
    """The 2-norm over ``axes``, in a shape that broadcasts; its derivative at 0 is 0.

    Of numbers divided by the largest, as the squares of 1e25 and 1e-25 are beyond float32.

    >>> norm(jnp.array([[3.0, 4.0], [6.0, 8.0]]), axes=(1,))
    Array([[ 5.],
           [10.]], dtype=float32)
    """
    largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True, initial=0)
    scale = jnp.where((largest > 0) & (largest < jnp.inf), largest, 1)
    return scale * jnp.sqrt(jnp.sum(abs_square(x / scale), axis=axes, keepdims=True))


@norm.defjvp
def _norm_jvp(axes: tuple[int, ...] | None, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    size = norm(x, axes)
    direction = jnp.where(size > 0, x, 0) / jnp.where(size > 0, size, 1)
    return size, jnp.sum(jnp.real(jnp.conj(direction) * dx), axis=axes, keepdims=True)


def abs_square(x: jax.Array) -> jax.Array:
    """|x|², real for complex x too."""
    return jnp.real(x * jnp.conj(x))


def _check_fit(axes: tuple[int, ...] | None, shape: tuple[int, ...]) -> None:
    n = len(shape)
    inside = axes is None or all(-n <= axis < n for axis in axes)
    if not inside or (axes and len({axis % n for axis in axes}) < len(axes)):
        reject("norm_axes", axes, f"None or different axes of each parameter, also of one of shape {shape}")
