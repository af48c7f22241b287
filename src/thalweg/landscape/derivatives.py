"""A loss of a model's parameters: its value, gradient and Hessian-vector products, and the parameters moved and back.

A loss is a closure without arguments that returns a scalar, or a :class:`~thalweg.landscape.FixedSample`, whose batches
are gone through one after the other, so that a sample of any size needs the memory of one batch.

Everything is written for vectors of all parameters, one after the other, as :func:`flat` makes them. Nothing here
touches ``p.grad`` or, but inside :func:`moved_to`, the parameters. Each evaluation is within
:func:`~thalweg.evaluation.fresh_casts`; derivatives are taken outside of autocast, so that each operation has the dtype
in which it was evaluated. Every public estimator is :func:`~thalweg.evaluation.undisturbed`, since a loss may change
buffers and random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from thalweg.arguments import reject
from thalweg.evaluation import fresh_casts
from thalweg.landscape.samples import Loss, Part, parts_of
from thalweg.landscape.vectors import Vector, as_vector, empty_like, flat, full_precision, pieces, split
from thalweg.sharding import is_sharded


def check_params(params: Iterable[Tensor]) -> list[Tensor]:
    """The parameters as a list, each once.

    Raises:
        ValueError: there are none, or one is not a real floating-point tensor that requires grad, or sharded.
    """
    found = [params] if isinstance(params, Tensor) else list(params)
    if not found:
        reject("params", found, "at least one tensor")
    for p in found:
        if not (isinstance(p, Tensor) and p.is_floating_point() and p.requires_grad):
            what = f"{p.dtype}, requires_grad={p.requires_grad}" if isinstance(p, Tensor) else type(p).__name__
            reject("params", what, "real floating-point tensors that require grad")
    check_whole(found)
    return list(dict.fromkeys(found))


def check_whole(params: Iterable[Tensor]) -> None:
    """Raise ``ValueError`` if a parameter is a DTensor: FSDP2 has its gradient in ``p.grad`` alone, and in shards."""
    if any(map(is_sharded, params)):
        reject(
            "params",
            "sharded ones (DTensors)",
            "whole tensors: load what torch.distributed.checkpoint.state_dict.get_state_dict returns with "
            "StateDictOptions(full_state_dict=True) into a model and an optimizer that are not sharded",
        )


@contextmanager
def moved_to(params: Sequence[Tensor], vector: Tensor) -> Iterator[None]:
    """Inside, the parameters are ``vector``; afterwards they are what they were, bit for bit."""
    before = [p.detach().clone() for p in params]
    try:
        write(params, vector)
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(params, before, strict=True):
                p.copy_(old)


def write(params: Sequence[Tensor], vector: Tensor) -> None:
    """Give the parameters these values."""
    with torch.no_grad():
        for p, piece in zip(params, split(vector, params), strict=True):
            p.copy_(piece)


def value(loss: Loss) -> float:
    """The loss, without a graph."""
    with torch.no_grad():
        return math.fsum(weight * _number(part) for weight, part in parts_of(loss))


def gradient(loss: Loss, params: Sequence[Tensor]) -> Tensor:
    """The gradient as one vector."""
    return value_and_gradient(loss, params)[1]


def value_and_gradient(loss: Loss, params: Sequence[Tensor]) -> tuple[float, Tensor]:
    """The loss and its gradient."""
    return _value_and_gradient(parts_of(loss), params)


def _value_and_gradient(parts: Sequence[Part], params: Sequence[Tensor]) -> tuple[float, Tensor]:
    total, sums = 0.0, [torch.zeros_like(p) for p in params]
    for weight, part in parts:
        with torch.enable_grad(), fresh_casts():
            here = _checked(part(), differentiable=True)
            with full_precision(params[0]):
                grads = torch.autograd.grad(here, params, allow_unused=True, materialize_grads=True)
        total += weight * float(here.detach())
        torch._foreach_add_(sums, grads, alpha=weight)
    return total, flat(sums)


class Curvature:
    """Products of the Hessian of a loss at one place with vectors.

    With S = diag(``scale``) they are those of S H S: the Hessian in the coordinates u of θ = θ_0 + S u.

    The derivatives of a closure's loss, or of a sample of one batch, are kept, so that each product takes one backward
    pass; of a sample of several batches they are taken anew for every product.

    Args:
        loss: a closure or a sample.
        params: what it is differentiated by.
        scale: a number for each parameter entry, as one vector; None: 1.

    Attributes:
        params: the parameters.
        like: what a vector is like, see :func:`~thalweg.landscape.vectors.empty_like`.
        size: the number of entries.

    Raises:
        ValueError: ``params`` or ``scale`` do not fit, or the loss is no finite scalar that depends on the parameters.
    """

    def __init__(self, loss: Loss, params: Iterable[Tensor], *, scale: Vector | None = None) -> None:
        self.params = check_params(params)
        self.like = empty_like(self.params)
        self.size = len(self.like)
        self.scale = None if scale is None else as_vector("scale", scale, self.params)
        self.parts = parts_of(loss)
        self._kept = self._graph(self.parts[0][1]) if len(self.parts) == 1 else None

    def gradient(self) -> Tensor:
        """S∇L."""
        return self._scaled(flat(self._kept) if self._kept else _value_and_gradient(self.parts, self.params)[1])

    def times(self, vector: Tensor) -> Tensor:
        """S H S v for a vector v of ``size`` entries."""
        return self._product(self._scaled(vector), self.parts)

    def times_of_parts(self, vector: Tensor) -> Iterator[Tensor]:
        """S H_b S v for each part of the sample, with its own H_b."""
        for _, part in self.parts:
            yield self._product(self._scaled(vector), [(1.0, part)])

    def _scaled(self, vector: Tensor) -> Tensor:
        return vector if self.scale is None else self.scale * vector

    def _product(self, vector: Tensor, parts: Sequence[Part]) -> Tensor:
        direction = split(vector, self.params)
        product = torch.zeros_like(self.like, memory_format=torch.contiguous_format)
        sums = pieces(product, self.params)
        for weight, part in parts:
            grads = self._kept or self._graph(part)
            # A gradient that does not depend on the parameters has no graph: its loss is linear in that parameter.
            curved = [(g, d) for g, d in zip(grads, direction, strict=True) if g.requires_grad]
            if curved:
                outputs, vectors = zip(*curved, strict=True)
                with full_precision(vector):
                    found = torch.autograd.grad(
                        outputs,
                        self.params,
                        vectors,
                        retain_graph=self._kept is not None,
                        allow_unused=True,
                        materialize_grads=True,
                    )
                left = list(found)
                del found
                for total in reversed(sums):  # one after the other, so that memory is given back as it is taken
                    total.add_(left.pop(), alpha=weight)
        return product if self.scale is None else product.mul_(self.scale)

    def _graph(self, loss: Loss) -> tuple[Tensor, ...]:
        # The fast kernels of attention cannot be differentiated twice.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), fresh_casts():
            here = _checked(loss(), differentiable=True)
            with full_precision(here):
                return torch.autograd.grad(
                    here, self.params, create_graph=True, allow_unused=True, materialize_grads=True
                )


def _number(loss: Loss) -> float:
    with fresh_casts():
        return float(_checked(loss()))


def _checked(loss: Any, *, differentiable: bool = False) -> Tensor:
    if not (isinstance(loss, Tensor) and loss.numel() == 1):
        what = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        reject("loss", what, "a closure that returns a scalar tensor")
    if differentiable and not loss.requires_grad:
        reject("loss", "one without a gradient", "a closure whose value depends on the parameters")
    if not loss.isfinite().all():
        reject("loss", float(loss.detach()), "a closure whose value is finite")
    return loss.reshape(())
