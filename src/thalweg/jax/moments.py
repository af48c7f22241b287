r"""Adam's direction with an exact bias correction.

.. math::
    m_k = β_1 m_{k-1} + (1-β_1) g_k, \qquad v_k = β_2 v_{k-1} + (1-β_2) g_k^2, \qquad
    \frac{m_k / (1-β_1^k)}{\sqrt{v_k / (1-β_2^k) + ε_0} + ε}

of every real number; a complex one is two, as in torch. (optax has :math:`|g_k|^2` there, so that both get one scale.)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from thalweg.arguments import check_beta, check_bool, check_eps, is_number
from thalweg.jax.checks import check_each, check_nonnegative, plain
from thalweg.jax.dtypes import accumulator_like, by_parts, check_accumulator, is_none, lerp, wide_dtype
from thalweg.jax.trees import no_schedules

if TYPE_CHECKING:
    from jax.typing import ArrayLike, DTypeLike


@no_schedules
def scale_by_adam(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.99,
    eps: ArrayLike = 1e-6,
    eps_root: ArrayLike = 0.0,
    accumulator_dtype: DTypeLike | None = None,
    *,
    bias_correction: bool = True,
) -> optax.GradientTransformation:
    r"""Rescale updates as Adam does.

    The same as :func:`optax.scale_by_adam` in exact arithmetic, and in its state, but for four things. The bias
    correction 1 - β^k keeps its digits in float32: optax's direction is off by 1e-5 at β2 = 0.999, by 1e-4 at 0.9999.
    State and arithmetic are in float32 at least: in bfloat16, 0.999 is 1 and the second moment never decays. Real and
    imaginary parts of complex parameters are scaled each by their own second moments, which are complex, too. And an
    update that is None leaves its moments as they are.

    Args:
        b1: decay rate of the first moment, in [0, 1).
        b2: decay rate of the second moment, in [0, 1).
        eps: ε > 0, added outside of the square root.
        eps_root: ε0 ≥ 0, added inside; to differentiate through an update at a gradient of 0.
        accumulator_dtype: dtype of the first moment. None: the parameter's, but float32 for float16 and bfloat16. The
            second moment is in float32 at least: beside it, (1-β2) g² vanishes in half precision.
        bias_correction: False: the moments themselves take the place of the corrected ones.

    Returns:
        A :class:`optax.GradientTransformation` whose state is a :class:`optax.ScaleByAdamState`.

    Raises:
        ValueError: an argument outside its range, named with its value.

    >>> tx = scale_by_adam(b1=0.5, b2=0.5, eps=1e-30)
    >>> updates, state = tx.update(jnp.array(-3.0), tx.init(jnp.array(0.0)))
    >>> float(updates)  # the sign, at the first step
    -1.0
    """
    check_each(check_beta, "b1", b1)
    check_each(check_beta, "b2", b2)
    check_each(check_eps, "eps", eps)
    check_nonnegative("eps_root", eps_root)
    check_accumulator(accumulator_dtype)
    check_bool("bias_correction", bias_correction)
    b1, b2, eps, eps_root = map(plain, (b1, b2, eps, eps_root))

    def init_fn(params: optax.Params) -> optax.ScaleByAdamState:
        mu = jax.tree.map(lambda p: accumulator_like(p, accumulator_dtype), params)
        nu = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=wide_dtype(p)), params)
        return optax.ScaleByAdamState(count=jnp.zeros([], jnp.int32), mu=mu, nu=nu)

    def update_fn(
        updates: optax.Updates, state: optax.ScaleByAdamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        del params
        count = optax.safe_increment(state.count)

        def first(g: Any, m: Any) -> Any:
            return m if g is None else lerp(m, g, 1.0 - b1)

        def second(g: Any, v: Any) -> Any:
            return v if g is None else lerp(v, by_parts(jnp.square)(jnp.asarray(g, wide_dtype(g))), 1.0 - b2)

        def direction(g: Any, m: Any, v: Any) -> Any:
            return None if g is None else by_parts(rescale)(m, v).astype(jnp.result_type(g))

        def rescale(m: jax.Array, v: jax.Array) -> jax.Array:
            m_hat, v_hat = m, v
            if bias_correction:
                m_hat = m / gathered_weight(b1, count, v.dtype)
                v_hat = v / gathered_weight(b2, count, v.dtype)
            return m_hat / (jnp.sqrt(v_hat + jnp.asarray(eps_root, v.dtype)) + jnp.asarray(eps, v.dtype))

        mu = jax.tree.map(first, updates, state.mu, is_leaf=is_none)
        nu = jax.tree.map(second, updates, state.nu, is_leaf=is_none)
        directions = jax.tree.map(direction, updates, mu, nu, is_leaf=is_none)
        mu, nu = (
            jax.tree.map(lambda new, old: new.astype(old.dtype), *pair) for pair in ((mu, state.mu), (nu, state.nu))
        )
        return directions, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(init_fn, update_fn)


def gathered_weight(decay: ArrayLike, count: jax.Array, dtype: Any) -> jax.Array:
    """1 - β^k by way of ``expm1``: the difference itself would lose the digits that 1 and β^k share.

    >>> float(gathered_weight(0.5, jnp.array(2), jnp.float32))
    0.75
    """
    if is_number(decay):  # in double precision: rounding β = 0.999 to float32 moves log β by 1e-5 of it
        log: ArrayLike = math.log(decay) if decay else -math.inf  # type: ignore[arg-type]
    else:
        log = jnp.log(decay)
    return -jnp.expm1(count.astype(dtype) * jnp.asarray(log, dtype))
