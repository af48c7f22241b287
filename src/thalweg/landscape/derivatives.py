"""A loss of a model's parameters: its value, gradient and Hessian-vector products, and the parameters moved and back.

A loss is a closure without arguments that returns a scalar, or a :class:`FixedSample`, the mean loss over batches that
are gone through one after the other, so that a sample of any size needs the memory of one batch.

Everything is written for vectors of all parameters, one after the other, as :func:`flat` makes them. Nothing here
touches ``p.grad``, torch's global random numbers, or, but inside :func:`moved_to`, the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from thalweg.arguments import reject
from thalweg.sharding import is_sharded

Loss: TypeAlias = Callable[[], Tensor]
Part: TypeAlias = tuple[float, Loss]


class FixedSample:
    """The mean loss of a model over batches that stay the same: a loss for everything in this package.

    Args:
        model: called with the inputs of a batch.
        loss: ``loss(output, targets)``, the mean over the examples of the batch, a scalar.
        batches: (inputs, targets) pairs, a data loader for example. They are kept, so that a loader that shuffles or
            augments is asked once; limit it with ``itertools.islice``.
        training: False evaluates in the model's evaluation mode (no dropout, stored statistics of batch norm), True in
            training mode, where a random layer makes the loss another one at each call.
        sizes: how many examples each batch has; None: as many as its targets are long.

    Attributes:
        batches: the batches.
        sizes: how many examples each has.
        examples: how many all have.

    Raises:
        ValueError: there is no batch, an empty one, or not as many sizes as batches.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], Tensor],
        batches: Iterable[tuple[Any, Any]],
        *,
        training: bool = False,
        sizes: Sequence[int] | None = None,
    ) -> None:
        self.model, self.loss, self.training = model, loss, training
        self.batches = list(batches)
        self.sizes = [len(targets) for _, targets in self.batches] if sizes is None else list(sizes)
        if len(self.sizes) != len(self.batches):
            reject("sizes", self.sizes, f"a number for each of {len(self.batches)} batches")
        self.examples = sum(self.sizes)
        if not self.batches or min(self.sizes) == 0:
            reject("batches", f"{len(self.batches)} batches with {self.examples} examples", "batches of examples")

    def __call__(self) -> Tensor:
        """The mean loss over all examples."""
        return torch.stack([weight * part() for weight, part in self.parts()]).sum()

    def parts(self) -> list[Part]:
        """Each batch's share of the examples, and its loss."""
        return [(size / self.examples, self._part(batch)) for size, batch in zip(self.sizes, self.batches, strict=True)]

    def _part(self, batch: tuple[Any, Any]) -> Loss:
        def loss() -> Tensor:
            modes = [(module, module.training) for module in self.model.modules()]
            self.model.train(self.training)
            try:
                return self.loss(self.model(batch[0]), batch[1])
            finally:
                for module, mode in modes:
                    module.training = mode

        return loss


def parts_of(loss: Loss) -> list[Part]:
    """The parts of a sample with their weights; a closure is one part."""
    return loss.parts() if isinstance(loss, FixedSample) else [(1.0, loss)]


def check_params(params: Iterable[Tensor]) -> list[Tensor]:
    """The parameters as a list.

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
    return found


def check_whole(params: Iterable[Tensor]) -> None:
    """Raise ``ValueError`` if a parameter is a DTensor: FSDP2 has its gradient in ``p.grad`` alone, and in shards."""
    if any(map(is_sharded, params)):
        reject(
            "params",
            "sharded ones (DTensors)",
            "whole tensors: load what torch.distributed.checkpoint.state_dict.get_state_dict returns with "
            "StateDictOptions(full_state_dict=True) into a model and an optimizer that are not sharded",
        )


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All entries in one vector, a copy."""
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def split(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The parts of a vector in the shapes, dtypes and on the devices of ``like``."""
    pieces = torch.split(vector, [t.numel() for t in like])
    return [piece.view(t.shape).to(t.device, t.dtype) for piece, t in zip(pieces, like, strict=True)]


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
        return math.fsum(weight * float(_checked(part())) for weight, part in parts_of(loss))


def gradient(loss: Loss, params: Sequence[Tensor]) -> Tensor:
    """The gradient as one vector."""
    return value_and_gradient(loss, params)[1]


def value_and_gradient(loss: Loss, params: Sequence[Tensor]) -> tuple[float, Tensor]:
    """The loss and its gradient."""
    total, sums = 0.0, [torch.zeros_like(p) for p in params]
    for weight, part in parts_of(loss):
        with torch.enable_grad():
            here = _checked(part(), differentiable=True)
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
        gradient: S∇L.
        size: the number of entries.

    Raises:
        ValueError: ``params`` or ``scale`` do not fit, or the loss is no finite scalar that depends on the parameters.
    """

    def __init__(self, loss: Loss, params: Iterable[Tensor], *, scale: Tensor | None = None) -> None:
        self.params = check_params(params)
        self.size = sum(p.numel() for p in self.params)
        if scale is not None and (scale.shape != (self.size,) or not scale.isfinite().all()):
            reject("scale", f"one of shape {tuple(scale.shape)}", f"a vector of {self.size} finite numbers")
        self.scale = scale
        self.parts = parts_of(loss)
        self._kept = self._graph(self.parts[0][1]) if len(self.parts) == 1 else None
        whole = flat(self._kept) if self._kept else gradient(loss, self.params)
        self.gradient = whole if scale is None else scale * whole

    def times(self, vector: Tensor) -> Tensor:
        """S H S v for a vector v of ``size`` entries."""
        return self._product(self._scaled(vector), None)

    def times_of_parts(self, vector: Tensor) -> Iterator[Tensor]:
        """S H_b S v for each part of the sample, with its own H_b."""
        for at in range(len(self.parts)):
            yield self._product(self._scaled(vector), at)

    def dense(self) -> Tensor:
        """S H S as a matrix, symmetrised; one product a column."""
        identity = torch.eye(self.size, dtype=self.gradient.dtype, device=self.gradient.device)
        matrix = torch.stack([self.times(column) for column in identity])
        return (matrix + matrix.T) / 2.0

    def _scaled(self, vector: Tensor) -> Tensor:
        return vector if self.scale is None else self.scale * vector

    def _product(self, vector: Tensor, at: int | None) -> Tensor:
        direction = split(vector, self.params)
        sums = [torch.zeros_like(p) for p in self.params]
        for weight, part in self.parts if at is None else [(1.0, self.parts[at][1])]:
            grads = self._kept or self._graph(part)
            # A gradient that does not depend on the parameters has no graph: its loss is linear in that parameter.
            curved = [(g, d) for g, d in zip(grads, direction, strict=True) if g.requires_grad]
            if curved:
                outputs, vectors = zip(*curved, strict=True)
                product = torch.autograd.grad(
                    outputs,
                    self.params,
                    vectors,
                    retain_graph=self._kept is not None,
                    allow_unused=True,
                    materialize_grads=True,
                )
                torch._foreach_add_(sums, product, alpha=weight)
        return self._scaled(flat(sums))

    def _graph(self, loss: Loss) -> tuple[Tensor, ...]:
        # The fast kernels of attention cannot be differentiated twice.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            return torch.autograd.grad(
                _checked(loss(), differentiable=True),
                self.params,
                create_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )


def _checked(loss: Any, *, differentiable: bool = False) -> Tensor:
    if not (isinstance(loss, Tensor) and loss.numel() == 1):
        what = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        reject("loss", what, "a closure that returns a scalar tensor")
    if differentiable and not loss.requires_grad:
        reject("loss", "one without a gradient", "a closure whose value depends on the parameters")
    if not loss.isfinite().all():
        reject("loss", float(loss.detach()), "a closure whose value is finite")
    return loss.reshape(())
