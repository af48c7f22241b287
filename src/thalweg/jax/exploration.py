r"""E, the adaptor, as a gradient transformation to chain in front of any other.

.. math:: g'_k = g_k + c\,(g_k - b_{k-1}), \qquad b_k = β_1 b_{k-1} + (1-β_1) g_k, \qquad c = α(1-β_1)

which is the paper's :math:`g_k + α a_k` with one buffer instead of two (:mod:`thalweg.equations`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from thalweg.arguments import is_number
from thalweg.jax.checks import check_exploration, plain
from thalweg.jax.dtypes import accumulator_like, check_accumulator, is_none, lerp
from thalweg.jax.trees import no_schedules

if TYPE_CHECKING:
    from jax.typing import ArrayLike, DTypeLike


class ScaleByExplorationState(NamedTuple):
    """State of :func:`scale_by_exploration`."""

    count: jax.Array  # type: ignore[assignment]  # shape=(), dtype=jnp.int32; not tuple.count
    ema: optax.Updates


@no_schedules
def scale_by_exploration(
    alpha: optax.ScalarOrSchedule = -5.0,
    beta: ArrayLike = 0.99,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformation:
    r"""Explore or exploit the valleys of the loss landscape, with any optimizer behind.

    .. math:: g'_k = g_k + α a_k, \qquad a_k = β_1 a_{k-1} + (1-β_1)(g_k - g_{k-1}), \qquad a_0 = g_0 = 0

    Updates keep their shapes and dtypes; the arithmetic is in float32 at least. An update that is None stays None and
    leaves its average as it is. The defaults are the paper's for batches of 1K and more; below, α = 0.5 and β1 = 0.01.

    Args:
        alpha: α; negative explores, positive exploits. A number or array with ``|α| < 1/(1-β1)``, or a schedule from
            the count of updates. The number 0 passes the updates on untouched, and nothing is allocated.
        beta: β1 in [0, 1), the decay rate of the average of the gradient.
        accumulator_dtype: dtype of that average. None: the parameter's, but float32 for float16 and bfloat16, where
            steps of an average with long memory are lost to rounding.

    Returns:
        A :class:`optax.GradientTransformation`. Its state is one tree like the parameters, and a count.

    Raises:
        ValueError: an argument outside its range, named with its value. Traced arrays and schedules pass, unread.

    >>> tx = scale_by_exploration(alpha=0.5, beta=0.5)
    >>> updates, state = tx.update(jnp.array(1.0), tx.init(jnp.array(0.0)))
    >>> float(updates), float(state.ema)  # g + αa with a = (1-β1) g, and b = (1-β1) g
    (1.25, 0.5)

    References:
        Zhao et al., Exploring Landscapes for Better Minima along Valleys, arXiv 2510.27153, 2025
    """
    check_exploration(alpha, beta)
    check_accumulator(accumulator_dtype)
    alpha, beta = plain(alpha), plain(beta)
    if is_number(alpha) and alpha == 0:
        return optax.identity()

    def init_fn(params: optax.Params) -> ScaleByExplorationState:
        ema = jax.tree.map(lambda p: accumulator_like(p, accumulator_dtype), params)
        return ScaleByExplorationState(count=jnp.zeros([], jnp.int32), ema=ema)

    def update_fn(
        updates: optax.Updates, state: ScaleByExplorationState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByExplorationState]:
        del params
        gain = (alpha(state.count) if callable(alpha) else alpha) * (1.0 - beta)

        def explore(g: Any, b: Any) -> Any:
            return None if g is None else lerp(g, b, -gain).astype(jnp.result_type(g))

        def average(g: Any, b: Any) -> Any:
            return b if g is None else lerp(b, g, 1.0 - beta).astype(jnp.result_type(b))

        explored = jax.tree.map(explore, updates, state.ema, is_leaf=is_none)
        ema = jax.tree.map(average, updates, state.ema, is_leaf=is_none)
        return explored, ScaleByExplorationState(count=optax.safe_increment(state.count), ema=ema)

    return optax.GradientTransformation(init_fn, update_fn)
