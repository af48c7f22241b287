"""What a step of ALTO and Lamb asks of all gradients together: whether they are finite, and their global norm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from thalweg.kernels import cpp, dispatch, has_numbers, is_abstract
from thalweg.kernels.finite import all_finite, refuse_nonfinite
from thalweg.kernels.norms import global_norm
from thalweg.optim.layers import wanted

if TYPE_CHECKING:
    from torch import Tensor


def is_finite(groups: list[dict[str, Any]], gradients: list[Tensor]) -> Tensor | None:
    """Whether all gradients that are here are finite, 0-d; None if no group asks."""
    if all(group["nonfinite"] == "propagate" for group in groups):
        return None
    fused = _may_read(groups, gradients) and all(
        dispatch.choose(wanted(group), p.device) is cpp for group in groups for p in group["params"][:1]
    )
    return all_finite(gradients, fused=fused)


def judge_finite(groups: list[dict[str, Any]], gradients: list[Tensor]) -> Tensor | None:
    """:func:`is_finite` of all gradients there are; None if there are none, or no group skips a step that is not.

    Raises:
        RuntimeError: one is not, in a step of a group with ``nonfinite="raise"``.
    """
    finite = is_finite(groups, gradients) if gradients else None
    if finite is None:
        return None
    policies = {group["nonfinite"] for group in groups}
    if "raise" in policies and has_numbers(gradients[0]) and not finite:
        refuse_nonfinite(gradients)
    return finite if "skip" in policies else None


def is_decided_on_device(group: dict[str, Any], finite: Tensor) -> bool:
    """Whether the group's steps are skipped on the device, without the host ever knowing."""
    return finite.device.type != "cpu" or group["capturable"] or is_abstract(finite)


def total_norm(groups: list[dict[str, Any]], gradients: list[Tensor]) -> Tensor | None:
    """The global gradient norm, if a group asks for it."""
    if all(group["max_grad_norm"] is None for group in groups):
        return None
    return global_norm(gradients, may_read=_may_read(groups, gradients))


def _may_read(groups: list[dict[str, Any]], gradients: list[Tensor]) -> bool:
    """Whether numbers that are on the host may be read there."""
    return not (any(map(is_abstract, gradients[:1])) or any(group["capturable"] for group in groups))
