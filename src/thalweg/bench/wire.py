"""The collectives of a step, counted as it makes them, and what the closed form says of them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.distributed.tensor import DTensor

import thalweg
from thalweg.sharding import plan
from thalweg.torch_private import TorchDispatchMode

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMESPACES = ("c10d", "_c10d_functional")
NO_COLLECTIVES = ("wait_tensor", "_wrap_tensor_autograd")


class Collectives(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what this thread does inside.

    Attributes:
        calls: how often each collective was called.
        bytes_of: each collective's, of what was handed over, or of what came back where that is more, as a gathered
            tensor is.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()
        self.bytes_of: Counter[str] = Counter()

    @property
    def bytes(self) -> int:
        """Of all collectives."""
        return self.bytes_of.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(one, DTensor) for one in types):
            return NotImplemented  # it becomes operations on shards first, which come here again
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.namespace in NAMESPACES and name not in NO_COLLECTIVES:
            name = name.rstrip("_")
            self.calls[name] += 1
            self.bytes_of[name] += max(sum(_bytes(one)) for one in (*args, *(kwargs or {}).values(), found))
        return found


def closed_form(optimizer: Any, ranks: int) -> int | None:
    """The bytes that a step of ALTO or Lamb reduces with the defaults, all parameters being cut along their first axis.

    And of E around an optimizer that reduces nothing; None of any other. Not for parameters in float64.
    """
    if not isinstance(optimizer, thalweg.Lamb | thalweg.E):
        return None
    if isinstance(optimizer, thalweg.E) and optimizer.nonfinite == "propagate":
        return 0
    adapts = isinstance(optimizer, thalweg.Lamb)
    held = [
        plan.Parameter(tuple(p.shape), stacked=adapts and group["norm_dims"] is not None)
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    return sum(one.bytes for one in plan.all_reduces(held, plan.Mesh(shard=ranks), trust_ratio=adapts))


def _bytes(value: Any) -> Iterator[int]:
    if isinstance(value, Tensor):
        yield value.numel() * value.element_size()
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _bytes(one)
