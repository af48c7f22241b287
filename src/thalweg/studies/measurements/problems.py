"""What measurements train: small networks on digits and Fashion-MNIST, seeds stacked, and the lab's language model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from thalweg.lab import tasks
from thalweg.studies.measurements.networks import Dense, cross_entropy, forward

TASKS = ("digits", "fashion-mnist", "pydoc-lm")
MOST = 5000
"""Images of the validation or the test set that are looked at."""


class Problem(NamedTuple):
    """Networks of some seeds, with what is trained and measured. Weights are stacked over seeds."""

    params: list[Tensor]
    batch: Callable[[Tensor], Tensor]
    """Losses (seeds,) on training examples (seeds, batch)."""
    sample: Callable[[Sequence[Tensor]], Tensor]
    """The loss of weights, stacked, on the fixed sample of training examples: (seeds,)."""
    validation: Callable[[], list[float]]
    """The metric of each seed on validation data."""
    test: Callable[[], list[float]]
    """The same on test data."""
    examples: int
    tested: int
    """Test examples."""


def problems(task: str, seeds: Sequence[int], examples: int) -> Iterator[tuple[Sequence[int], Problem]]:
    """The seeds, all together or, of the language model, one after the other.

    Args:
        task: one of :data:`TASKS`.
        seeds: of the initial weights.
        examples: how many training examples are used.
    """
    if task == "pydoc-lm":
        for seed in seeds:
            yield [seed], _language(seed, examples)
    else:
        yield seeds, images(task, seeds, examples)


def images(
    task: str,
    seeds: Sequence[int],
    examples: int,
    width: int = 32,
    activation: Callable[[Tensor], Tensor] = torch.relu,
) -> Problem:
    """Networks with one hidden layer on small images; the metric is the accuracy in per cent.

    Args:
        task: ``digits`` or ``fashion-mnist``.
        seeds: of the initial weights.
        examples: how many training examples are used.
        width: of the hidden layer.
        activation: of the hidden layer.
    """
    data = tasks.load(task)[1]
    x, labels = _pixels(data.train.inputs[:examples]), data.train.targets[:examples]
    model = Dense((x.shape[1], width, 10), seeds, activation)
    params: list[Tensor] = list(model.parameters())

    def accuracy(part: Any) -> list[float]:
        inputs, targets = _pixels(part.inputs[:MOST]), part.targets[:MOST]
        with torch.no_grad():
            found: list[float] = (100.0 * (model(inputs[None]).argmax(2) == targets).float().mean(1)).tolist()
        return found

    return Problem(
        params,
        lambda at: cross_entropy(model(x[at]), labels[at]),
        lambda own: cross_entropy(forward(own, x[None], activation), labels[None]),
        lambda: accuracy(data.validation),
        lambda: accuracy(data.test),
        len(x),
        min(MOST, len(data.test)),
    )


def _pixels(images: Tensor) -> Tensor:
    """Rows of pixels; 28 x 28 averaged to 14 x 14."""
    if images.shape[-1] > 14:
        images = F.avg_pool2d(images, 2)
    return images.flatten(1) / 2.0


def _language(seed: int, examples: int) -> Problem:
    task, data = tasks.load("pydoc-lm")
    inputs, targets = data.train.inputs[:examples], data.train.targets[:examples]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = task.model()
    names = [name for name, _ in model.named_parameters()]
    params = [p.detach()[None].clone().requires_grad_() for p in model.parameters()]

    def loss(own: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
        weights = {name: p[0] for name, p in zip(names, own, strict=True)}
        return task.loss(torch.func.functional_call(model, weights, (x,)), y)

    def metric(part: Any) -> list[float]:
        with torch.no_grad():
            return [float(loss(params, part.inputs[:256], part.targets[:256]))]

    return Problem(
        params,
        lambda at: loss(params, inputs[at[0]], targets[at[0]])[None],
        lambda own: loss(own, inputs[:64], targets[:64])[None],
        lambda: metric(data.validation),
        lambda: metric(data.test),
        len(inputs),
        min(256, len(data.test)),
    )
