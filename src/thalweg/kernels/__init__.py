"""How the equations are executed: the same results, at different speeds.

A backend is a module with ``step(layers, hyper, scales, scratch)``, which updates the layers of one bucket in place.
For layers whose norms reach over ranks it has the two halves of a step: ``begin(layers, hyper, scales, scratch, sums)``
writes the squares of θ and r that are here to ``sums``, and ``finish(begun, hyper, scales, scratch, sums)`` moves the
layers by the sums of all ranks. All tensors are plain ones: of what is sharded, the shard.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch

from thalweg import equations as eq
from thalweg.torch_private import FakeTensor, local_tensor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from thalweg.equations import Scalar
    from thalweg.sharding.places import Place


@dataclass(frozen=True, slots=True)
class Hyper:
    """The hyperparameters of one step of ALTO, in the notation of :mod:`thalweg.equations`."""

    lr: Scalar
    alpha: float
    beta1: float
    beta2: float
    beta3: float
    eps: float
    weight_decay: float
    trust_ratio: bool
    trust_eps: float = 0.0
    trust_clip: tuple[float, float] | None = None
    ratio_clip: tuple[float, float] | None = None
    bias_correction: bool = True
    decoupled_decay: bool = False
    maximize: bool = False
    stochastic_rounding: bool = False
    late: bool = False
    """Of a step in two halves: whether the first is to change nothing, and the second the state as well."""

    @property
    def decay_in_r(self) -> float:
        """λ where λθ is a part of r, as in LAMB; 0 where decay is decoupled."""
        return 0.0 if self.decoupled_decay else self.weight_decay

    @property
    def remaining(self) -> Scalar:
        """1 - ηλ, by which θ is multiplied before the step where decay is decoupled; else 1."""
        return 1.0 - self.lr * self.weight_decay if self.decoupled_decay else 1.0

    def trust_ratio_of(self, theta_norm: Tensor, r_norm: Tensor) -> Tensor:
        """:func:`thalweg.equations.trust_ratio` with these, of the norm of θ before its decay."""
        if self.decoupled_decay:
            theta_norm = theta_norm * abs(cast("float", self.remaining))
        return eq.trust_ratio(theta_norm, r_norm, eps=self.trust_eps, clip=self.trust_clip, ratio_clip=self.ratio_clip)

    def corrections(self, step: Scalar) -> tuple[Scalar, Scalar]:
        """1 - β2^k and 1 - β3^k at step k, or 1 and 1 without bias correction."""
        if not self.bias_correction:
            return 1.0, 1.0
        return eq.bias_correction(self.beta2, step), eq.bias_correction(self.beta3, step)


class Wanted(NamedTuple):
    """What a group of parameters asks of those who execute its step; each field is the option of that name."""

    fused: bool | None = None
    foreach: bool | None = None
    capturable: bool = False
    norm_dims: tuple[int, ...] | None = None


class Scales(NamedTuple):
    """What one step decides on the device, as 0-d tensors.

    ``grad`` multiplies every gradient. ``proceed`` is 1, or 0 where nothing may change because a gradient is not
    finite. ``None`` is a 1 that costs nothing.
    """

    grad: Tensor | None = None
    proceed: Tensor | None = None


class Memory(NamedTuple):
    """The addresses at which kernels find a layer's tensors, and the scales of its state in 8 bits.

    An address is 0 where there is no such tensor; that of the gradient also where its layout is not the parameter's.
    ``slices`` is how many equal parts of the memory have norms of their own; 0 where kernels cannot walk it.
    """

    param: int
    grad: int
    exp_avg: int
    exp_avg_sq: int
    explore_ema: int
    exp_avg_scale: int = 0
    exp_avg_sq_scale: int = 0
    explore_ema_scale: int = 0
    slices: int = 1


UNWALKABLE = Memory(0, 0, 0, 0, 0, slices=0)


class Layer(NamedTuple):
    """One parameter with its gradient and state. Complex tensors come as real views with a last axis of 2.

    ``norm_dims`` are the axes, counted from the front, over which its norm is taken (None: all of them); ``seed`` is
    that of its stochastic rounding, another for every layer and step; ``memory`` is None until it is looked up;
    ``start`` is where the tensors begin in those of the layer, if they are a piece of it. Of a shard, ``place`` says
    where it lies in the whole, if something is rounded by that, and ``slot`` where its squares go among the sums of all
    ranks, if its norm reaches over them.
    """

    param: Tensor
    grad: Tensor
    step: Scalar
    exp_avg: Tensor
    exp_avg_sq: Tensor
    explore_ema: Tensor | None
    memory: Memory | None = None
    norm_dims: tuple[int, ...] | None = None
    seed: int = 0
    start: int = 0
    place: Place | Tensor | None = None
    slot: int | None = None


def is_fake(t: Any) -> bool:
    """Whether a tensor, or what a DTensor has of it here, stands for one that has memory: none may be looked for."""
    return isinstance(local_tensor(t), FakeTensor)


def has_numbers(t: Tensor) -> bool:
    """Whether there are any: not in a fake tensor, nor on the meta device."""
    return not (t.is_meta or is_fake(t))


def is_abstract(t: Tensor) -> bool:
    """Whether a step must not ask for numbers of ``t``: there are none, or the step is being compiled."""
    return torch.compiler.is_compiling() or not has_numbers(t)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a parameter of ``dtype`` is updated, and by default keeps its state: float32 at least.

    >>> compute_dtype(torch.bfloat16), compute_dtype(torch.complex128)
    (torch.float32, torch.complex128)
    """
    return torch.promote_types(dtype, torch.float32)


def alike(tensors: Iterable[Tensor]) -> dict[tuple[Any, ...], list[Tensor]]:
    """The tensors of one device, dtype and mesh."""
    found: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
    for t in tensors:
        found[t.device, t.dtype, getattr(t, "device_mesh", None)].append(t)
    return found
