r"""ALTO, and LAMB, which is ALTO without E, as chains of transformations.

For layer i at step k, with :math:`h_k` the gradient as E passes it on (:func:`thalweg.jax.scale_by_exploration`):

.. math::
    m_k &= β_2 m_{k-1} + (1-β_2) h_k, & \hat m_k &= m_k / (1-β_2^k) \\
    v_k &= β_3 v_{k-1} + (1-β_3) h_k^2, & \hat v_k &= v_k / (1-β_3^k) \\
    r_k &= \hat m_k / (\sqrt{\hat v_k} + ε_1) + λ θ_k \\
    θ^{(i)} &\leftarrow θ^{(i)} - η\, r^{(i)} \frac{φ(‖θ^{(i)}‖)}{‖r^{(i)}‖ + ε_2 φ(‖θ^{(i)}‖)}

Sources: arXiv 2510.27153 (ALTO), arXiv 1904.00962 (LAMB).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jax
import optax

from thalweg.arguments import check_bool, is_number
from thalweg.jax.checks import check_clip, check_nonnegative, plain
from thalweg.jax.dtypes import widen
from thalweg.jax.exploration import scale_by_exploration
from thalweg.jax.moments import scale_by_adam
from thalweg.jax.trees import function_of, no_schedules
from thalweg.jax.trust_ratio import NO_PARAMS, scale_by_trust_ratio
from thalweg.theory.warning import Filter, warn_if_narrow

if TYPE_CHECKING:
    from collections.abc import Callable

    from jax.typing import ArrayLike, DTypeLike

    from thalweg.jax.trust_ratio import NormAxes

    Mask: TypeAlias = Any | Callable[[optax.Params], Any] | None


@no_schedules
def alto(
    learning_rate: optax.ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.99,
    alpha: optax.ScalarOrSchedule = -5.0,
    beta: ArrayLike = 0.99,
    eps: ArrayLike = 1e-6,
    trust_eps: ArrayLike = 1e-6,
    weight_decay: optax.ScalarOrSchedule = 0.01,
    mask: Mask = None,
    trust_mask: Mask = None,
    norm_axes: NormAxes = None,
    *,
    trust_clip: tuple[float, float] | None = None,
    ratio_clip: tuple[float, float] | None = None,
    bias_correction: bool = True,
    decoupled_decay: bool = False,
    eps_root: ArrayLike = 0.0,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""ALTO: E in front of bias-corrected LAMB.

    The state is three trees like the parameters, b, m and v: 12 bytes per parameter in float32. From the gradient to
    the update everything is in float32 at least; the update is then rounded to the gradient's dtype.

    Args:
        learning_rate: η, a number or a schedule.
        b1: decay rate of the first moment, in [0, 1), as in :func:`optax.lamb`; the paper's β2.
        b2: decay rate of the second moment; the paper's β3.
        alpha: α of E with ``|α| < 1/(1-β1)``, a number or a schedule; negative explores (the paper's choice for batches
            of 1K and more), positive exploits (α = 0.5 and β1 = 0.01 below that). At the number 0 this is LAMB, bit for
            bit, and b is not allocated.
        beta: β1 of E, in [0, 1).
        eps: ε1 > 0.
        trust_eps: ε2 ≥ 0 of the trust ratio.
        weight_decay: λ ≥ 0, a number or a schedule.
        mask: which parameters decay: a tree of booleans that is a prefix of the parameters, or a function from
            parameters to one. None: all. Functions must be named in ``static_args`` of
            :func:`optax.inject_hyperparams`, or it calls them as schedules, which is an error here.
        trust_mask: likewise, which parameters the trust ratio adapts. The others take AdamW's step.
        norm_axes: axes over which the norms of the trust ratio are taken, for arrays that stack layers
            (:func:`thalweg.jax.scale_by_trust_ratio`).
        trust_clip: (lo, hi): φ clamps the norm of a layer to this range. None: φ is the identity.
        ratio_clip: (lo, hi): clamps the ratio itself, not the 1 of a layer of zeros. None: no clamp.
        bias_correction: False: m̂ = m and v̂ = v.
        decoupled_decay: True: θ is multiplied by 1 - ηλ before the step, and r has no λθ.
        eps_root: added inside Adam's square root, for derivatives of an update.
        accumulator_dtype: dtype of b and m. None: the parameter's, but float32 for float16 and bfloat16. v is in
            float32 at least.

    Returns:
        A :class:`optax.GradientTransformationExtraArgs`, whose ``update`` needs ``params``.

    Raises:
        ValueError: an argument outside its range, named with its value; one boolean for a whole tree as a mask, or a
            tree that does not fit the parameters; ``update`` without ``params``.

    >>> import jax.numpy as jnp
    >>> params = {"w": jnp.array([3.0, 4.0])}
    >>> optimizer = alto(0.1, weight_decay=0.0, trust_eps=0.0)
    >>> updates, state = optimizer.update({"w": jnp.ones(2)}, optimizer.init(params), params)
    >>> round(float(optax.tree.norm(updates)), 5)  # the learning rate times the norm of the layer
    0.5

    References:
        Zhao et al., Exploring Landscapes for Better Minima along Valleys, arXiv 2510.27153, 2025
    """
    exploration = scale_by_exploration(alpha, beta, accumulator_dtype)
    direction = scale_by_adam(b1, b2, eps, eps_root, accumulator_dtype, bias_correction=bias_correction)
    if all(map(is_number, (alpha, beta, b1))):
        warn_if_narrow([Filter(float(alpha), float(beta), float(b1))])  # type: ignore[arg-type]
    trust_ratio = _trust_ratio(trust_eps, trust_clip, norm_axes, ratio_clip)
    both = exploration, direction
    return _lamb(both, learning_rate, weight_decay, mask, trust_mask, trust_ratio, decoupled_decay)


@no_schedules
def lamb(
    learning_rate: optax.ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.99,
    eps: ArrayLike = 1e-6,
    trust_eps: ArrayLike = 1e-6,
    weight_decay: optax.ScalarOrSchedule = 0.01,
    mask: Mask = None,
    trust_mask: Mask = None,
    norm_axes: NormAxes = None,
    *,
    trust_clip: tuple[float, float] | None = None,
    ratio_clip: tuple[float, float] | None = None,
    bias_correction: bool = True,
    decoupled_decay: bool = False,
    eps_root: ArrayLike = 0.0,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """LAMB: Adam's direction, scaled layer by layer to the norm of the layer.

    With ``trust_eps=0`` this is :func:`optax.lamb` in exact arithmetic, with its state, for real parameters; see
    :func:`thalweg.jax.scale_by_adam` and :func:`thalweg.jax.scale_by_trust_ratio` for what is done differently.

    Args:
        learning_rate: η, a number or a schedule.
        b1: decay rate of the first moment, in [0, 1).
        b2: decay rate of the second moment, in [0, 1).
        eps: ε1 > 0.
        trust_eps: ε2 ≥ 0 of the trust ratio; 0 gives the published LAMB.
        weight_decay: λ ≥ 0, a number or a schedule.
        mask: which parameters decay, as for :func:`alto`.
        trust_mask: which parameters the trust ratio adapts.
        norm_axes: axes of a layer in an array that stacks several.
        trust_clip: range of φ.
        ratio_clip: range of the ratio.
        bias_correction: False: m̂ = m and v̂ = v.
        decoupled_decay: True: λ outside of r.
        eps_root: added inside Adam's square root.
        accumulator_dtype: dtype of the first moment.

    Returns:
        A :class:`optax.GradientTransformationExtraArgs`, whose ``update`` needs ``params``.

    Raises:
        ValueError: an argument outside its range, named with its value; one boolean for a whole tree as a mask, or a
            tree that does not fit the parameters; ``update`` without ``params``.

    >>> import jax.numpy as jnp
    >>> params = jnp.zeros(2)
    >>> optimizer = lamb(0.1, weight_decay=0.0)
    >>> updates, state = optimizer.update(jnp.ones(2), optimizer.init(params), params)
    >>> [round(float(u), 5) for u in updates]  # a layer at zero moves as Adam would have it
    [-0.1, -0.1]

    References:
        You et al., Large Batch Optimization for Deep Learning, arXiv 1904.00962, 2020
    """
    direction = (scale_by_adam(b1, b2, eps, eps_root, accumulator_dtype, bias_correction=bias_correction),)
    trust_ratio = _trust_ratio(trust_eps, trust_clip, norm_axes, ratio_clip)
    return _lamb(direction, learning_rate, weight_decay, mask, trust_mask, trust_ratio, decoupled_decay)


def _trust_ratio(
    eps: ArrayLike,
    clip: tuple[float, float] | None,
    norm_axes: NormAxes,
    ratio_clip: tuple[float, float] | None,
) -> optax.GradientTransformation:
    """With errors in the names of :func:`alto`."""
    check_nonnegative("trust_eps", eps)
    return scale_by_trust_ratio(eps, check_clip("trust_clip", clip), norm_axes, ratio_clip)


def _lamb(
    direction: tuple[optax.GradientTransformation, ...],
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: optax.ScalarOrSchedule,
    mask: Mask,
    trust_mask: Mask,
    trust_ratio: optax.GradientTransformation,
    decoupled_decay: bool,
) -> optax.GradientTransformationExtraArgs:
    check_nonnegative("learning_rate", learning_rate, schedule=True)
    check_nonnegative("weight_decay", weight_decay, schedule=True)
    check_bool("decoupled_decay", decoupled_decay)
    decayed, adapted = function_of(mask, "mask"), function_of(trust_mask, "trust_mask")
    rate, decay = plain(learning_rate), plain(weight_decay)
    steps = [
        optax.add_decayed_weights(decay, decayed),
        trust_ratio if adapted is None else optax.masked(trust_ratio, adapted),
    ]
    if decoupled_decay:
        steps = [_after_decay(steps[1], rate, decay, decayed), steps[0]]
    return _wide_inside(optax.chain(*direction, *steps, optax.scale_by_learning_rate(rate)))


class _AfterDecayState(NamedTuple):
    step: jax.Array
    inner: optax.OptState


def _after_decay(
    inner: optax.GradientTransformation,
    rate: optax.ScalarOrSchedule,
    decay: optax.ScalarOrSchedule,
    decayed: Callable[[optax.Params], Any] | None,
) -> optax.GradientTransformation:
    """``inner`` at parameters that decay has multiplied by 1 - ηλ already."""

    def shrink(factor: Any) -> optax.GradientTransformation:
        scaled = optax.stateless(lambda params, _: jax.tree.map(lambda p: p * factor, params))
        return scaled if decayed is None else optax.masked(scaled, decayed)

    def init_fn(params: optax.Params) -> _AfterDecayState:
        return _AfterDecayState(jax.numpy.zeros([], jax.numpy.int32), inner.init(params))

    def update_fn(
        updates: optax.Updates, state: _AfterDecayState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, _AfterDecayState]:
        if params is None:
            raise ValueError(NO_PARAMS)
        eta, weight = (x(state.step) if callable(x) else x for x in (rate, decay))
        tx = shrink(1.0 - eta * weight)
        smaller, _ = tx.update(params, tx.init(params), params)
        updates, kept = inner.update(updates, state.inner, smaller)
        return updates, _AfterDecayState(optax.safe_increment(state.step), kept)

    return optax.GradientTransformation(init_fn, update_fn)


def _wide_inside(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Round once, at the end, what goes from one transformation of a chain to the next in float32 at least."""
    inner = optax.with_extra_args_support(inner)

    def update_fn(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is None:
            raise ValueError(NO_PARAMS)
        wide, state = inner.update(widen(updates), state, widen(params), **extra_args)
        return jax.tree.map(lambda w, g: w.astype(jax.numpy.result_type(g)), wide, updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update_fn)
