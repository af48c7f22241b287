"""The repeated blocks of a model: computed again instead of remembered, and compiled."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from thalweg.records.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def blocks(model: nn.Module) -> list[nn.Module]:
    """The members of all lists of modules, but of those within a member."""
    if isinstance(model, nn.ModuleList):
        return list(model)
    return [block for child in model.children() for block in blocks(child)]


def has_statistics(module: nn.Module) -> bool:
    """Whether it has parameters of its own, and beside them numbers that are none, as batch normalisation has."""
    own: list[Iterator[Any]] = [module.parameters(recurse=False), module.buffers(recurse=False)]
    return all(any(x.is_floating_point() for x in some) for some in own)


def recompute(model: nn.Module) -> None:
    """Have each block keep its inputs alone for backward, which runs its forward once more; names stay as they are.

    Raises:
        UserError: there are no blocks, or one would count a batch twice.
    """
    found = blocks(model)
    if not found:
        raise UserError(f"--activation-checkpointing needs a model with a list of blocks, got {type(model).__name__}")
    for block in found:
        if any(map(has_statistics, block.modules())):
            raise UserError(
                "--activation-checkpointing would take statistics of batches twice: the model has such norms"
            )
        block.forward = functools.partial(_again, block, block.forward)


def _again(block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return checkpoint(forward, *args, use_reentrant=False, **kwargs) if block.training else forward(*args, **kwargs)


def compiled(model: nn.Module) -> None:
    """Compile each block, or the whole of a model without any, in place and at its first call."""
    for module in blocks(model) or [model]:
        module.compile()
