"""Small language models on text that comes with Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, TypeVar

import torch
from torch import nn

from thalweg.lab.tasks.base import Budget, Rows, Splits
from thalweg.lab.tasks.language import Mixture, NextToken, gpt2, mixtral
from thalweg.records.metric import Metric

REPEATED = 32  # bytes; a passage this long that stood anywhere before is left out


Text = TypeVar("Text", bytes, tuple[str, ...])


def without_repeats(texts: Sequence[Text], length: int = REPEATED) -> list[list[Text]]:
    """The pieces of each text that are left when every passage of ``length`` stays only where it stands first.

    Of bytes, or of words.

    >>> without_repeats([b"abcdefgh", b"xxcdefyy"], 4)
    [[b'abcdefgh'], [b'xx', b'yy']]
    """
    seen: set[Text] = set()
    found: list[list[Text]] = []
    for text in texts:
        own: list[Text] = []
        pieces: list[Text] = []
        start = i = 0
        while i < len(text):
            gram = text[i : i + length]
            if len(gram) == length and gram in seen:
                pieces.append(text[start:i])
                while len(gram) == length and gram in seen:  # to the end of the repeated passage
                    i += 1
                    gram = text[i : i + length]
                start = i = i + length - 1
            else:
                own.append(gram)
                i += 1
        seen.update(gram for gram in own if len(gram) == length)
        pieces.append(text[start:])
        found.append([piece for piece in pieces if piece])
    return found


class PydocLM(NextToken):
    """A byte-level GPT-2 on the text of Python's own help topics.

    The topics repeat each other, some whole: only the first of each repeated passage is kept, so that no 32 bytes of
    the test or validation text stand anywhere else. The text is that of the Python that runs: the data's hash is part
    of a run's identity, and runs on other texts are never mixed.
    """

    name = "pydoc-lm"
    title = "byte-level GPT-2 (2 layers, width 64) on the help topics of Python's standard library"
    metric = Metric("test loss", "min", unit="nats/byte", low=0.0)
    budgets: ClassVar = (Budget(16, 600, 2.2), Budget(256, 200, 2.2), Budget(256, 1000, 1.8, "long"))
    example_cost = 650.0
    length: ClassVar[int] = 48

    def splits(self) -> Splits:
        """Topics in three disjoint sets, about 80, 10 and 10 % of them, cut into windows of 48 bytes and the next."""
        from pydoc_data.topics import topics

        names = sorted(topics)
        order = torch.randperm(len(names), generator=torch.Generator().manual_seed(11)).tolist()
        pieces = without_repeats([topics[names[i]].encode() for i in order])
        tenth = len(names) // 10
        parts = pieces[2 * tenth :], pieces[:tenth], pieces[tenth : 2 * tenth]
        return Splits(*(self._windows([piece for topic in part for piece in topic]) for part in parts))

    def _windows(self, pieces: list[bytes]) -> Rows:
        found = []
        for piece in pieces:
            if len(piece) > self.length:
                data = torch.frombuffer(bytearray(piece), dtype=torch.uint8).long()
                whole = (len(data) - 1) // self.length * self.length + 1
                found.append(data[:whole].unfold(0, self.length + 1, self.length))
        windows = torch.cat(found)
        return Rows(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())

    def model(self) -> nn.Module:
        """GPT-2 without dropout."""
        return gpt2(vocabulary=256, length=self.length, n_embd=64, n_layer=2, n_head=4)


class PydocMoE(Mixture, PydocLM):
    """The language model of ``pydoc-lm`` as a small Mixtral: 8 experts a layer, of which each byte is sent to two.

    Transformers keeps the experts of a layer in one parameter: :func:`thalweg.param_groups` has their norms taken for
    each expert. The metric is the cross-entropy alone.
    """

    name = "pydoc-moe"
    title = "byte-level Mixtral (2 layers, width 64, 8 experts, 2 of them a byte) on the help topics of Python"
    budgets: ClassVar = (Budget(16, 600, 2.2), Budget(256, 100, 3.0), Budget(256, 400, 2.0, "long"))
    example_cost = 900.0

    def model(self) -> nn.Module:
        """A small Mixtral."""
        return mixtral(
            vocabulary=256, length=self.length, chosen=self.chosen, hidden_size=64, intermediate_size=88,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, num_local_experts=8,
        )  # fmt: skip
