"""Everything private to torch that this package uses: what a new torch may break is here, and nowhere else.

Tried with torch 2.13.0, by the whole of the tests. Multi-tensor operations (``torch._foreach_add_`` and its like) are
used where they are needed: torch's documentation lists them, as a beta, in spite of their names.
"""

from __future__ import annotations

import copy
import functools
import inspect
from typing import TYPE_CHECKING, Any, cast

import torch
from torch._compile import _disable_dynamo
from torch._subclasses.fake_tensor import FakeTensor as FakeTensor
from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode

if TYPE_CHECKING:
    from collections.abc import Hashable

    from torch import Tensor
    from torch.optim import Optimizer

AMP_SCALING = "_step_supports_amp_scaling"
"""With this attribute, an optimizer's step is called by GradScaler as it is, its gradients scaled."""

fused_adam_ = torch._fused_adam_
outside_graphs = _disable_dynamo


def below_subclasses() -> Any:
    """A context in which tensors are plain ones, whatever mode would make them fake."""
    return torch._C._DisableTorchDispatch()


def is_in_functorch(t: Tensor) -> bool:
    """Whether ``t`` is what a transformation of torch.func sees, inside."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(t))


def is_zero_tensor(t: Tensor) -> bool:
    """Whether ``t`` stands for zeros without having memory, as autograd makes them."""
    return bool(t._is_zerotensor())


def version_of(t: Tensor) -> int:
    """How often ``t`` has been written to in place."""
    return int(t._version)


def local_tensor(t: Any) -> Any:
    """What a DTensor has here, not waited for and without a graph; any other tensor itself."""
    return getattr(t, "_local_tensor", t)


def fake_store() -> Any:
    """The store of a process group with the backend "fake", whose collectives return at once and move nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore  # which registers the backend

    return FakeStore()


def sharded_like(here: Tensor, x: Any) -> Tensor:
    """A DTensor of which ``here`` is the shard, and which is sharded as ``x`` is: on its device, offloaded or not."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._dtensor_spec import TensorMeta

    spec = x._spec
    if here.dtype != x.dtype:
        spec = copy.copy(spec)
        spec.tensor_meta = TensorMeta(x.shape, x.stride(), here.dtype)
    return cast("Any", DTensor)(here, spec, requires_grad=False)  # type: ignore[no-any-return]


def mps_generator() -> torch.Generator:
    """Torch's own generator on Apple's GPUs, which has no public name."""
    return torch.mps._get_default_mps_generator()


def refuse_if_capturing(optimizer: Any) -> None:
    """Raise, as torch's own steps do, in the capture of a graph without ``capturable``."""
    optimizer._accelerator_graph_capture_health_check()


def init_group(optimizer: Any, group: dict[str, Any]) -> None:
    """Make the state of a group's parameters that have a gradient and no state, as the optimizer's own step does."""
    optimizer._init_group(group, *([] for _ in range(_count_lists(cast("Hashable", type(optimizer))))))


@functools.cache
def _count_lists(cls: Any) -> int:
    """How many lists such an optimizer has filled, besides."""
    return len(inspect.signature(cls._init_group).parameters) - 2


def step_is_hooked(optimizer: Any) -> bool:
    """Whether a hook of its own or of all optimizers sees the optimizer's step."""
    before = optimizer._optimizer_step_pre_hooks or _global_optimizer_pre_hooks
    return bool(before or optimizer._optimizer_step_post_hooks or _global_optimizer_post_hooks)


def has_step_hooks(optimizer: Optimizer) -> bool:
    """Whether an optimizer can be given hooks on its step; a wrapper that is not built as torch's are cannot."""
    return hasattr(optimizer, "_optimizer_step_post_hooks")


def has_load_hooks(optimizer: Optimizer) -> bool:
    """Whether the optimizer is built as torch's are, with hooks before and after a load."""
    return hasattr(optimizer, "_optimizer_load_state_dict_pre_hooks")


def default_store() -> Any:
    """The key-value store that the processes of the default group share."""
    return torch.distributed.distributed_c10d._get_default_store()
