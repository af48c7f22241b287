"""Arguments that are trees, or functions from parameters to trees: masks, and the axes of norms.

:func:`optax.inject_hyperparams` calls every function that it is given as a schedule, with the count of steps for the
parameters, unless its ``static_args`` names it. A mask function then returns one boolean for all parameters, a function
of axes those of a 0-d array, and nothing would tell. Such a call is refused here.
"""

from __future__ import annotations

import inspect
from numbers import Integral
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from thalweg.arguments import reject
from thalweg.jax.checks import as_tuple

if TYPE_CHECKING:
    from collections.abc import Callable

    P = ParamSpec("P")
    R = TypeVar("R")

_FUNCTIONS = ("mask", "trust_mask", "norm_axes")
_DTYPE = "accumulator_dtype"
_TUPLES = ("norm_axes", "trust_clip", "clip", "ratio_clip")
_MASK = "None, a tree of True and False, or a function from parameters to one"
_AXES = "None or a tuple of different axes, for each parameter"


def no_schedules(transformation: Callable[P, R]) -> Callable[P, R]:
    """Let :func:`optax.inject_hyperparams` take no mask, axes or dtype of ``transformation`` for a schedule.

    It binds its arguments to the signature, and then looks which of them are functions.
    """
    plain = inspect.signature(transformation)
    transformation.__signature__ = _Signature(list(plain.parameters.values()))  # type: ignore[attr-defined]
    return transformation


class _Signature(inspect.Signature):
    def bind(self, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
        bound = super().bind(*args, **kwargs)
        bound.apply_defaults()
        for name, value in bound.arguments.items():
            if name in _FUNCTIONS and is_function(value):
                bound.arguments[name] = _OfParameters(name, value)
            elif name == _DTYPE and callable(value):  # jnp.bfloat16 is a function, too
                bound.arguments[name] = jnp.dtype(value)
            elif name in _TUPLES:  # arrays would become traced
                bound.arguments[name] = as_tuple(value) if isinstance(value, np.ndarray) else value
        return bound


class _OfParameters:
    """A function of parameters, which refuses to be called with a count of steps."""

    def __init__(self, argument: str, function: Callable[[Any], Any]) -> None:
        self._argument, self._function = argument, function

    def __call__(self, params: Any) -> Any:
        if isinstance(params, jax.Array | np.generic | int) and jnp.issubdtype(jnp.result_type(params), jnp.integer):
            raise ValueError(f"{self._argument} must be called with parameters, got the step {params!r}: {_HINT}")
        return self._function(params)


_HINT = "optax.inject_hyperparams takes a function for a schedule unless static_args names it"


def is_function(x: object) -> bool:
    """Whether ``x`` is a function, and not a tree of a class that can be called."""
    return callable(x) and bool(jax.tree_util.all_leaves([x]))


def function_of(mask: Any, argument: str) -> Callable[[Any], Any] | None:
    """``mask`` as a function from parameters to what is checked to be a mask of theirs; None for None.

    Raises:
        ValueError: it is neither None, nor a tree of booleans, nor a function; or one boolean for all parameters, which
            is what a function called as a schedule returns. The function returned raises it for a tree that does not
            fit the parameters.

    >>> function_of({"a": True}, "mask")({"b": 1.0})
    Traceback (most recent call last):
    ValueError: mask must be a prefix of the tree of parameters, PyTreeDef({'b': *}), got {'a': True}
    """
    return None if mask is None else _checked(argument, mask, _check_mask)


def _checked(
    argument: str, given: Any, check: Callable[[str, Any, bool], None], is_leaf: Callable[[Any], bool] | None = None
) -> Callable[[Any], Any]:
    """A tree, or function from parameters to one, as a function whose trees are checked, also as prefixes of theirs.

    ``check`` is told whether the tree is for more than one parameter.
    """
    if not is_function(given):
        check(argument, given, True)

    def checked(params: Any) -> Any:
        found = given(params) if is_function(given) else given
        check(argument, found, not jax.tree_util.all_leaves([params]))
        try:
            jax.tree.map(lambda *_: None, found, params, is_leaf=is_leaf)
        except (ValueError, TypeError) as error:
            allowed = f"a prefix of the tree of parameters, {jax.tree.structure(params)}"
            raise ValueError(f"{argument} must be {allowed}, got {found!r}") from error
        return found

    return checked


def _check_mask(argument: str, mask: Any, several: bool) -> None:
    for leaf in jax.tree.leaves(mask):
        if isinstance(leaf, jax.core.Tracer):
            reject(argument, mask, f"{_MASK}, of values known when a step is compiled")
        if not _says_yes_or_no(leaf):
            reject(argument, mask, _MASK)
    if several and jax.tree_util.all_leaves([mask]):
        raise ValueError(f"{argument} must be {_MASK}, got {mask!r} for all parameters: {_HINT}")


def _says_yes_or_no(leaf: Any) -> bool:
    """Whether it is a boolean or an integer, 0-d arrays included."""
    scalar = isinstance(leaf, bool | int | np.generic | np.ndarray | jax.Array) and np.ndim(leaf) == 0
    return scalar and any(jnp.issubdtype(jnp.result_type(leaf), kind) for kind in (jnp.bool_, jnp.integer))


def axes_of(norm_axes: Any, argument: str) -> Callable[[Any], Any]:
    """``norm_axes`` as a function from parameters to what is checked to be axes for each of them.

    Raises:
        ValueError: it is neither None, nor a tuple of axes or a tree of these, nor a function; or no axes for all
            parameters, as of a 0-d array: each entry would be a layer. The function returned raises it for a tree that
            does not fit the parameters.
    """
    return _checked(argument, norm_axes, _check_axes, is_axes)


def is_axes(x: object) -> bool:
    """Whether x is None or a tuple of different axes, or a list of them as config files have it."""
    # By exact type: optax's MaskedNode is an empty named tuple. And an empty list is a tree without leaves.
    axes = as_tuple(x)
    listed = type(axes) is tuple and (type(x) is tuple or len(axes) > 0)
    if x is None or not listed:
        return x is None
    integers = all(isinstance(axis, Integral) and not isinstance(axis, bool) for axis in axes)
    return integers and len({*axes}) == len(axes)


def _check_axes(argument: str, axes: Any, several: bool) -> None:
    if not all(map(is_axes, jax.tree.leaves(axes, is_leaf=is_axes))):
        reject(argument, axes, _AXES)
    if several and type(axes) is tuple and not axes:
        raise ValueError(f"{argument} must be {_AXES}, got () for all parameters: {_HINT}")
