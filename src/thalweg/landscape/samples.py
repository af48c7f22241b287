"""The losses that are looked at: a closure, or a model and batches that stay the same."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from thalweg.arguments import as_integer, reject
from thalweg.evaluation import fresh_casts, undisturbed

Loss: TypeAlias = Callable[[], Tensor]
Part: TypeAlias = tuple[float, Loss]
PAIRS = "(inputs, targets) pairs or mappings"


class FixedSample:
    """The mean loss of a model over batches that stay the same: a loss for everything in this package.

    A batch is a pair (inputs, targets) or a mapping:

    - Of a pair, the model is called with the inputs: with their entries as keyword arguments if they are a mapping and
      the model's ``forward`` takes these names, with their items if they are a tuple or list and ``forward`` needs as
      many arguments, else with the inputs as one argument. The loss is ``loss(output, targets)``.
    - Of a mapping, such as what a tokenizer or a collator of transformers returns, the model is called with those of
      its entries that ``forward`` takes by name. The loss is ``loss(output, batch)``.

    Args:
        model: called with each batch.
        loss: ``loss(output, targets)``, the mean over the examples of the batch, a scalar.
        batches: batches, a data loader for example. They are kept, so that a loader that shuffles or augments is asked
            once; limit it with ``itertools.islice``.
        training: False evaluates in the model's evaluation mode (no dropout, stored statistics of batch norm), True in
            training mode, where a random layer makes the loss another one at each evaluation. Either way buffers, such
            as the statistics of batch norm, and torch's random numbers are afterwards what they were.
        sizes: how many examples each batch has; None: as many as the first tensor in its targets is long (or, where
            they hold none, in its inputs; of a mapping, the first in it).

    Attributes:
        batches: the batches.
        sizes: how many examples each has.
        examples: how many all have.

    Raises:
        ValueError: there is no batch, an empty one, one that is neither a pair nor a mapping, or not as many sizes as
            batches.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], Tensor],
        batches: Iterable[Any],
        *,
        training: bool = False,
        sizes: Sequence[int] | None = None,
    ) -> None:
        self.model, self.loss, self.training = model, loss, training
        self.batches = list(batches)
        for batch in self.batches:
            if not isinstance(batch, Mapping) and not (isinstance(batch, Sequence) and len(batch) == 2):
                what = f"a {type(batch).__name__}"
                reject("batches", f"{what} of {len(batch)}" if isinstance(batch, Sequence) else what, PAIRS)
        self.sizes = list(map(_examples, self.batches)) if sizes is None else _checked_sizes(sizes, len(self.batches))
        self.examples = sum(self.sizes)
        if not self.batches or min(self.sizes) <= 0:
            reject("batches", f"{len(self.batches)} batches with {self.examples} examples", "batches of examples")

    @undisturbed()
    def __call__(self) -> Tensor:
        """The mean loss over all examples."""
        with fresh_casts():
            return torch.stack([weight * part() for weight, part in self.parts()]).sum()

    def parts(self) -> list[Part]:
        """Each batch's share of the examples, and its loss."""
        return [(size / self.examples, self._part(batch)) for size, batch in zip(self.sizes, self.batches, strict=True)]

    def _part(self, batch: Any) -> Loss:
        def loss() -> Tensor:
            modes = [(module, module.training) for module in self.model.modules()]
            self.model.train(self.training)
            try:
                if isinstance(batch, Mapping):
                    return self.loss(self.model(**_taken(self.model, batch)), batch)
                inputs, targets = batch
                args, named = _arguments(self.model, inputs)
                return self.loss(self.model(*args, **named), targets)
            finally:
                for module, mode in modes:
                    module.training = mode

        return loss


def parts_of(loss: Loss) -> list[Part]:
    """The parts of a sample with their weights; a closure is one part."""
    return loss.parts() if isinstance(loss, FixedSample) else [(1.0, loss)]


def _checked_sizes(sizes: Sequence[int], count: int) -> list[int]:
    found = [n for n in map(as_integer, sizes) if n is not None]
    if len(found) != len(sizes) or len(found) != count:
        reject("sizes", list(sizes), f"an integer for each of {count} batches")
    return found


def _examples(batch: Any) -> int:
    """The length of the first tensor of the targets, or else of the inputs."""
    lengths = map(_length, (batch,) if isinstance(batch, Mapping) else (batch[1], batch[0]))
    found = next((length for length in lengths if length is not None), None)
    if found is None:
        what = f"{PAIRS} with a tensor of examples, unless sizes are given"
        reject("batches", f"a {type(batch).__name__} without one", what)
    return found


def _length(value: Any) -> int | None:
    """Of the first tensor or array in a nest of mappings and sequences; of a sequence without any, its own."""
    if hasattr(value, "shape"):
        return int(value.shape[0]) if len(value.shape) else None
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    for item in items:
        if (length := _length(item)) is not None:
            return length
    return len(value) if isinstance(value, list | tuple) and value else None


def _arguments(model: nn.Module, inputs: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """How a model is called with the inputs of a pair."""
    signature = _signature(model)
    if isinstance(inputs, Mapping) and all(isinstance(name, str) for name in inputs) and _fits(signature, **inputs):
        return (), {**inputs}
    if isinstance(inputs, tuple | list) and not _fits(signature, inputs) and _fits(signature, *inputs):
        return inputs, {}
    return (inputs,), {}


def _taken(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Those entries of a batch that the model's forward takes."""
    signature = _signature(model)
    if any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        return {**batch}
    by_name = {name for name, p in signature.parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    found = {name: value for name, value in batch.items() if name in by_name}
    if not _fits(signature, **found):
        names = ", ".join(by_name) or "no names"
        reject("batches", f"mappings of {', '.join(map(str, batch))}", f"such that the model, which takes {names}, can "
               "be called with their entries: or give (inputs, targets) pairs")  # fmt: skip
    return found


def _fits(signature: inspect.Signature, *args: Any, **named: Any) -> bool:
    try:
        signature.bind(*args, **named)
    except TypeError:
        return False
    return True


def _signature(model: nn.Module) -> inspect.Signature:
    """Of the model's forward, seen through wrappers that take anything (DistributedDataParallel, torch.compile)."""
    while True:
        found = inspect.signature(model.forward)
        inner = getattr(model, "_orig_mod", getattr(model, "module", None))
        kinds = {p.kind for p in found.parameters.values()}
        if not isinstance(inner, nn.Module) or not kinds <= {
            inspect.Parameter.VAR_POSITIONAL,
            inspect.Parameter.VAR_KEYWORD,
        }:
            return found
        model = inner
