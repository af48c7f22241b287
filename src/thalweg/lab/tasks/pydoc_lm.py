"""A small language model on text that comes with Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg.lab.tasks.base import Budget, Rows, Splits, Task
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


class PydocLM(Task):
    """A byte-level GPT-2 on the text of Python's own help topics.

    The topics repeat each other, some whole: only the first of each repeated passage is kept, so that no 32 bytes of
    the test or validation text stand anywhere else. The text is that of the Python that runs: the data's hash is part
    of a run's identity, and runs on other texts are never mixed.
    """

    name = "pydoc-lm"
    title = "byte-level GPT-2 (2 layers, width 64) on the help topics of Python's standard library"
    metric = Metric("test loss", "min", unit="nats/byte", low=0.0)
    budgets: ClassVar = (Budget(16, 600, 2.2), Budget(256, 200, 2.2), Budget(256, 1000, 1.8, "long"))
    example_cost = 1000.0
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
        """GPT-2 as transformers builds it, without dropout."""
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            vocab_size=256, n_positions=self.length, n_embd=64, n_layer=2, n_head=4,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        model: nn.Module = GPT2LMHeadModel(config)
        return model

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Cross-entropy per byte."""
        loss: Tensor = F.cross_entropy(output.logits.flatten(0, 1), target.flatten())
        return loss

    def score(self, output: Any, target: Tensor) -> Tensor:
        """Mean cross-entropy of each window."""
        loss: Tensor = F.cross_entropy(output.logits.transpose(1, 2), target, reduction="none").mean(1)
        return loss
