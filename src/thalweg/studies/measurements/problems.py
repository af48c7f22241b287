"""What ``flatness`` trains: small networks on digits and Fashion-MNIST, seeds stacked, and the lab's language model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from thalweg.lab import tasks
from thalweg.studies.measurements.networks import Dense, cross_entropy, forward

TASKS = ("digits", "fashion-mnist", "pydoc-lm")


class Problem(NamedTuple):
    """Networks of some seeds, with what is trained and measured. Weights are stacked over seeds."""

    params: list[Tensor]
    batch: Callable[[Tensor], Tensor]
    """Losses (seeds,) on training examples (seeds, batch)."""
    sample: Callable[[Sequence[Tensor]], Tensor]
    """The loss of weights, stacked, on the fixed sample of training examples: (seeds,)."""
    test: Callable[[], list[float]]
    """The test metric of each seed."""
    examples: int


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
        yield seeds, _images(task, seeds, examples)


def _images(task: str, seeds: Sequence[int], examples: int) -> Problem:
    data = tasks.load(task)[1]
    x, labels = _pixels(data.train.inputs[:examples]), data.train.targets[:examples]
    test_x, test_labels = _pixels(data.test.inputs[:5000]), data.test.targets[:5000]
    model = Dense((x.shape[1], 32, 10), seeds, torch.relu)
    params: list[Tensor] = list(model.parameters())

    def test() -> list[float]:
        with torch.no_grad():
            found: list[float] = (100.0 * (model(test_x[None]).argmax(2) == test_labels).float().mean(1)).tolist()
        return found

    return Problem(
        params,
        lambda at: cross_entropy(model(x[at]), labels[at]),
        lambda own: cross_entropy(forward(own, x[None], torch.relu), labels[None]),
        test,
        len(x),
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

    def test() -> list[float]:
        with torch.no_grad():
            return [float(loss(params, data.test.inputs[:256], data.test.targets[:256]))]

    return Problem(
        params,
        lambda at: loss(params, inputs[at[0]], targets[at[0]])[None],
        lambda own: loss(own, inputs[:64], targets[:64])[None],
        test,
        len(inputs),
    )
