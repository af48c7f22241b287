"""The parameters of real models as shapes: an optimizer's step depends on nothing else of a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

from thalweg.arguments import did_you_mean
from thalweg.records.errors import UserError

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Model:
    """The shapes of a model's parameters, in its order; ``stacked`` ones hold a matrix for each expert."""

    name: str
    says: str
    plain: tuple[Shape, ...]
    stacked: tuple[Shape, ...] = ()

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """All shapes."""
        return self.plain + self.stacked

    @property
    def parameters(self) -> int:
        """How many numbers the model has."""
        return sum(map(prod, self.shapes))

    @property
    def largest(self) -> int:
        """How many of them its largest tensor has."""
        return max(map(prod, self.shapes))


def _gpt2(width: int, layers: int, vocabulary: int = 50257, context: int = 1024) -> tuple[Shape, ...]:
    """GPT-2 with the output layer tied to the embedding."""
    norm = ((width,), (width,))

    def linear(inputs: int, outputs: int) -> tuple[Shape, Shape]:
        return (inputs, outputs), (outputs,)  # transformers' Conv1D holds it transposed

    attention = (*linear(width, 3 * width), *linear(width, width))
    block = (*norm, *attention, *norm, *linear(width, 4 * width), *linear(4 * width, width))
    return ((vocabulary, width), (context, width), *block * layers, *norm)


def _bert(width: int, layers: int, vocabulary: int, positions: int, kinds: int) -> tuple[Shape, ...]:
    """BERT with its pooler."""
    norm = ((width,), (width,))
    square = ((width, width), (width,))
    block = (*square * 4, *norm, (4 * width, width), (4 * width,), (width, 4 * width), (width,), *norm)
    return ((vocabulary, width), (positions, width), (kinds, width), *norm, *block * layers, *square)


def _resnet(depths: tuple[int, ...], classes: int) -> tuple[Shape, ...]:
    """ResNet with bottleneck blocks."""

    def conv(inputs: int, outputs: int, side: int) -> tuple[Shape, ...]:
        return (outputs, inputs, side, side), (outputs,), (outputs,)  # a batch norm follows each

    def blocks() -> Iterator[Shape]:
        inputs = 64
        for stage, depth in enumerate(depths):
            inner, outputs = 64 << stage, 256 << stage
            for block in range(depth):
                if block == 0:
                    yield from conv(inputs, outputs, 1)
                yield from (*conv(inputs, inner, 1), *conv(inner, inner, 3), *conv(inner, outputs, 1))
                inputs = outputs

    top = 256 << (len(depths) - 1)
    return (*conv(3, 64, 7), *blocks(), (classes, top), (classes,))


def _experts_block(width: int, inner: int, experts: int, keys: int) -> Model:
    """A decoder block of grouped-query attention and a mixture of experts, each expert a gated MLP."""
    attention = ((width, width), (keys, width), (keys, width), (width, width))
    return Model(
        "moe-block",
        f"a block of Granite 3.0 1B-A400M, {experts} experts in stacked tensors",
        plain=(*attention, (width,), (width,), (experts, width)),
        stacked=((experts, 2 * inner, width), (experts, width, inner)),
    )


def _narrow_mixture(layers: int, width: int, inner: int, experts: int, vocabulary: int) -> Model:
    """Qwen2-MoE, whose shared expert is four times as wide as the others; its experts are stacked."""
    attention = ((width, width), (width,)) * 3 + ((width, width),)
    shared = ((4 * inner, width), (4 * inner, width), (width, 4 * inner), (1, width))
    layer = (*attention, (experts, width), *shared, (width,), (width,))
    return Model(
        "moe-narrow",
        f"Qwen1.5-MoE-A2.7B at a sixteenth of its width, with {layers} layers",
        plain=((vocabulary, width), *layer * layers, (width,), (vocabulary, width)),
        stacked=((experts, 2 * inner, width), (experts, width, inner)) * layers,
    )


MODELS = {
    model.name: model
    for model in (
        Model("gpt2-23m", "GPT-2 of width 256, 12 layers", _gpt2(256, 12)),
        Model("gpt2-small", "GPT-2 small", _gpt2(768, 12)),
        Model("gpt2-medium", "GPT-2 medium", _gpt2(1024, 24)),
        Model("resnet50", "ResNet-50", _resnet((3, 4, 6, 3), 1000)),
        Model("bert-base", "BERT-base with its pooler", _bert(768, 12, 30522, 512, 2)),
        _experts_block(1024, 512, 32, 512),
        _narrow_mixture(64, 128, 88, 60, 151_936),
    )
}
TINY = Model("tiny", "a few small tensors, for trying the tool out", ((64, 32), (32,), (32, 32), ()), ((4, 8, 16),))


def model(name: str) -> Model:
    """The model of this name.

    Raises:
        UserError: no such model.
    """
    if name == TINY.name:
        return TINY
    if name not in MODELS:
        raise UserError(
            f"argument --shapes: unknown model {name!r}: choose from {', '.join(MODELS)}{did_you_mean(name, MODELS)}"
        )
    return MODELS[name]
