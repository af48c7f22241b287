"""Whether gradients and what is kept fit the parameters that E's base steps itself."""

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
from thalweg.optim.exploration import ALPHA, BUFFERS, BY_PARAMETER, EMA, Groups
from thalweg.sharding import local

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

# Refuse a sparse gradient themselves, but when other parameters may have been stepped.
_DENSE = tuple(base for base in BY_PARAMETER if base not in (SGD, Adagrad))


def check_left(base: Optimizer, groups: Groups, *, judged: bool) -> None:
    """Raise unless gradients and b fit the parameters that the base steps itself, before it does.

    So must what torch's optimizers keep: a fused kernel does not look, and others have counted by the time they do.

    Args:
        base: the optimizer.
        groups: what it steps.
        judged: whether somebody asks if the gradients are finite.

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
