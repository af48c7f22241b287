"""Whether options, gradients and what is kept fit a step of E and of its base, checked before it begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.optim import SGD, Adagrad

from thalweg.arguments import reject
from thalweg.kernels import has_numbers
from thalweg.kernels.checks import (
    LOW,
    PLAIN,
    check_buffer,
    check_gradient,
    check_memory,
    check_storage,
    holds_its_values,
)
from thalweg.optim import flat_shards, one_pass
from thalweg.optim.exploration import (
    ALPHA,
    BETA,
    BUFFERS,
    BY_PARAMETER,
    EMA,
    Groups,
    make_exploration_plain,
    refuse_misnamed,
)
from thalweg.optim.hyperparameters import recheck_exploration
from thalweg.optim.step_checks import check_gradients
from thalweg.sharding import local

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from thalweg.kernels.footprint import Footprint
    from thalweg.optim.layers import Stepped

# Refuse a sparse gradient themselves, but when other parameters may have been stepped.
_DENSE = tuple(base for base in BY_PARAMETER if base not in (SGD, Adagrad))


def check_options(e: Any) -> None:
    """Raise ``ValueError`` for what a schedule may have written into E's groups, or at the first step for flat shards.

    α and β1 become Python's own numbers.
    """
    for group in e.param_groups:
        make_exploration_plain(group)
        recheck_exploration(group[ALPHA], group[BETA], names=(ALPHA, BETA))
        if "alpha" in group or "beta" in group:
            refuse_misnamed(group, e.defaults)
    flat_shards.check_first_step(e)


def check_tensors(
    base: Optimizer, in_one_pass: Groups, left: Groups, footprint: Footprint, *, judged: bool
) -> list[list[Stepped]]:
    """Check what E steps ``in_one_pass`` with its base, and what is ``left`` to that; nothing changes.

    Returns:
        The parameters of each group ``in_one_pass`` that have a gradient.

    Raises:
        ValueError: an option that the kernels cannot take.
        ValueError, TypeError, RuntimeError: as :func:`thalweg.optim.step_checks.check_gradients` and
            :func:`check_left`.
    """
    one_pass.check_options(in_one_pass)
    stepped = check_gradients(in_one_pass, base.state, footprint, "E")
    check_left(base, left, judged=judged)
    return stepped


def check_left(base: Optimizer, groups: Groups, *, judged: bool) -> None:
    """Raise unless gradients and b fit the parameters that the base steps itself, before it does.

    So must what torch's optimizers keep: a fused kernel does not look, and others have counted by the time they do.

    Args:
        base: the optimizer.
        groups: what it steps.
        judged: whether gradients are judged for being finite.

    Raises:
        RuntimeError: a sparse gradient that E works on, or that the base does not take.
        ValueError, TypeError: what :mod:`thalweg.kernels.checks` says of a tensor that does not fit, or a gradient to
            be judged whose class alone knows its values.
    """
    if torch.compiler.is_compiling():
        return
    buffers = BUFFERS if type(base) in BY_PARAMETER else {EMA}
    for group in groups:
        for p in group["params"]:
            if (g := p.grad) is None or passes_sparse(base, group, p):
                continue
            if not _is_ordinary(g, p):
                check_gradient(p, g, "E")
                if holds_its_values(type(here := local(p))):
                    check_storage(f"a parameter of shape {tuple(p.shape)}", here)
            if judged and has_numbers(g) and not holds_its_values(cls := type(local(g))):
                reject("nonfinite", "skip or raise", f"'propagate' for gradients of class {cls.__name__}")
            for name, x in base.state.get(p, {}).items():
                if name in buffers and (x is not None or name == EMA) and not _is_ordinary(x, p):
                    check_buffer(name, x, p)
                    if holds_its_values(type(here := local(x))):
                        check_memory(f"{name} of a parameter of shape {tuple(p.shape)}", here)


def passes_sparse(base: Optimizer, group: dict[str, Any], p: Tensor) -> bool:
    """Whether the gradient of ``p`` is sparse and left to the base: E does nothing to it, and the base may take it."""
    if p.grad is None or p.grad.layout is not torch.sparse_coo or type(base) in _DENSE:
        return False
    return group[ALPHA] == 0.0 and EMA not in base.state.get(p, {})


def _is_ordinary(x: Any, p: Tensor) -> bool:
    """Whether ``x`` goes with ``p`` without further questions, as nearly all gradients and buffers do."""
    return (
        type(x) in PLAIN
        and type(p) in PLAIN
        and not (p.is_nested or x.is_nested)
        and x.layout is torch.strided
        and x.shape == p.shape
        and (x.dtype is p.dtype or (x.dtype is torch.float32 and not p.is_complex()))
        and x.get_device() == p.get_device()
        and x.is_contiguous()
        and not x.is_inference()
        and x.data_ptr() >= LOW
        and p.data_ptr() >= LOW
    )
