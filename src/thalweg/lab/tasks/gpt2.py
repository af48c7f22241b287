"""Language models of the slides at their own sizes: GPT-2 with 345 M parameters, and a mixture of experts with 85 B."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from itertools import groupby
from operator import itemgetter
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from thalweg.kernels import has_numbers
from thalweg.lab import hub, streams
from thalweg.lab.split import TEXT
from thalweg.lab.tasks.base import Budget, Splits, Stream, held_out
from thalweg.lab.tasks.language import Mixture, NextToken, gpt2, mixtral
from thalweg.records.errors import UserError
from thalweg.records.metric import Metric
from thalweg.sharding import local
from thalweg.sharding.places import indices

NOVEL = 64  # characters; a text that begins like another is left out
NUMBERS = 2**16  # of a matrix that are made at a time, in whole rows
SCORED = 10_000  # texts at most that validate where others are streamed, and that test


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """Rows of tokens, kept on disk: all but the last are the input, all but the first the target."""

    def __init__(self, data: Any) -> None:
        self.data = data
        self._fingerprint = data._fingerprint

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return shifted(self.data[int(index)])


def shifted(row: dict[str, list[int]]) -> tuple[Tensor, Tensor]:
    """Input and target of a row of tokens."""
    tokens = torch.tensor(row["tokens"])
    return tokens[:-1], tokens[1:]


def different(texts: Iterable[str]) -> list[int]:
    """The places of those that say something and do not begin like one before."""
    begins: set[str] = set()
    kept = []
    for i, text in enumerate(texts):
        if text.strip() and text[:NOVEL] not in begins:
            begins.add(text[:NOVEL])
            kept.append(i)
    return kept


class PublishedTexts(NextToken):
    """The next token of published texts.

    Texts are joined, each followed by the token for its end, and cut into windows. Texts of one split stand in no
    other, and of several that begin with the same 64 characters only the first is kept.
    """

    metric = Metric("test loss", "min", unit="nats/token", low=0.0)
    data: ClassVar[str]
    published: ClassVar[tuple[int, ...]] = (2_340_000, 250_000)  # of all models, or of one set such as webtext
    weights: ClassVar[str]
    length: ClassVar[int]
    vocabulary: ClassVar[int]

    def tokenizer(self) -> Any:
        """What cuts texts into tokens."""
        return hub.tokenizer(self.weights, self.vocabulary)

    def splits(self) -> Splits:
        """98, 1 and 1 % of the texts of the published training set."""
        found = hub.load(self.data, "train", {"text": TEXT}, published=self.published)
        data = found.data
        kept = different(data["text"])
        if len(kept) < 3:
            raise UserError(f"{found.place} has {len(kept)} different texts: at least 3 are needed")
        data, hundredth = data.select(kept), max(1, len(kept) // 100)
        train, others = held_out(len(data), 2 * hundredth)
        parts = train, others[:hundredth], others[hundredth:]
        return Splits(*(self._windows(data.select(part.tolist())) for part in parts))

    def stream(self) -> Splits:
        """All files but the last ones, of which up to 10,000 texts validate and as many test."""
        found = streams.stream(self.data, "train", {"text": TEXT})
        kept = different(found.held.data["text"])
        if len(kept) < 2:
            raise UserError(
                f"{found.place} has {len(kept)} different texts in the files held out: at least 2 are needed"
            )
        count = min(len(kept) // 2, SCORED)
        held = found.held.data.select(kept[: 2 * count])
        begins = {text[:NOVEL] for text in held["text"]}
        cut, name = self._cutting(found.identity)

        def windows(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
            found.check(batch)
            return cut({"text": [text for text in batch["text"] if text.strip() and text[:NOVEL] not in begins]})

        rows = found.data.map(windows, batched=True, remove_columns=["text"])
        scored = (
            self._windows(held.select(range(k * count, (k + 1) * count)), f"{found.identity} {k}") for k in range(2)
        )
        return Splits(Stream(rows, shifted, found.place, name), *scored)

    def _windows(self, data: Any, texts: str = "") -> Windows:
        cut, name = self._cutting(texts or data._fingerprint)
        return Windows(data.map(cut, batched=True, remove_columns=data.column_names, new_fingerprint=name))

    def _cutting(self, texts: str) -> tuple[Callable[[dict[str, list[str]]], dict[str, list[list[int]]]], str]:
        """What cuts a batch of texts into windows, and a name for what it makes of the texts of this name."""
        tokenizer, size = self.tokenizer(), self.length + 1

        def cut(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
            ids = tokenizer(batch["text"], verbose=False)["input_ids"] if batch["text"] else []
            joined = [token for text in ids for token in (*text, tokenizer.eos_token_id)]
            return {"tokens": [joined[i : i + size] for i in range(0, len(joined) - size + 1, self.length)]}

        # named by what decides it: the library's own hash of a tokenizer changes when the tokenizer is used
        decides = f"{texts} {size} {sorted(tokenizer.get_vocab().items())}"
        return cut, hashlib.sha256(decides.encode()).hexdigest()[:16]

    def example(self) -> tuple[Tensor, Tensor]:
        """Two windows."""
        tokens = torch.zeros(2, self.length, dtype=torch.long)
        return tokens, tokens


class GPT2(PublishedTexts):
    """GPT-2 medium, which Megatron calls 345 M: 24 layers of width 1024 with 16 heads, 1024 tokens."""

    name = "gpt2-345m"
    title = "GPT-2 345M on GPT-2's published outputs"
    budgets: ClassVar = (Budget(512, 5000), Budget(4096, 500), Budget(4096, 5000, name="long"))
    example_cost = 200_000_000.0
    download = "spacerini/gpt2-outputs (4.4 GB) and the tokenizer of openai-community/gpt2 (3 MB)"
    data, weights, length = "spacerini/gpt2-outputs", "openai-community/gpt2", 1024
    shape: ClassVar[dict[str, Any]] = {"n_embd": 1024, "n_layer": 24, "n_head": 16}
    vocabulary: ClassVar[int] = 50_257

    def model(self) -> nn.Module:
        """GPT-2 without dropout."""
        return gpt2(vocabulary=self.vocabulary, length=self.length, **self.shape)


class MoE(Mixture, PublishedTexts):
    """A Mixtral of 85 B parameters, our choice of shape: the slides say the total and the batch, 1600 x 8192 tokens.

    384 experts a layer, 8 of them a token, 24 layers of width 2560: as many experts as the slides have GPUs, each of
    which keeps one of every layer with ``fsdp2+ep``.
    """

    name = "moe-85b"
    title = "mixture of experts, 85 B parameters (384 experts a layer, 8 a token)"
    budgets: ClassVar = (Budget(1600, 1000), Budget(1600, 10_000, name="long"))
    example_cost = 30_000_000_000.0
    download = "spacerini/gpt2-outputs (4.4 GB) and the tokenizer of openai-community/gpt2 (3 MB)"
    data, weights, length = "spacerini/gpt2-outputs", "openai-community/gpt2", 8192
    chosen = 8
    vocabulary: ClassVar[int] = 50_257
    shape: ClassVar[dict[str, Any]] = {
        "hidden_size": 2560, "intermediate_size": 1192, "num_hidden_layers": 24, "num_attention_heads": 20,
        "num_key_value_heads": 4, "num_local_experts": 384,
    }  # fmt: skip

    def model(self) -> nn.Module:
        """A Mixtral, filled unless it is made without memory."""
        model = mixtral(vocabulary=self.vocabulary, length=self.length, chosen=self.chosen, **self.shape)
        if has_numbers(next(model.parameters())):
            self.initialise(model)
        return model

    def initialise(self, model: nn.Module) -> None:
        """Matrices from N(0, .02²), a few rows at a time, each time from a generator of their own; vectors one.

        Thus a model that was never whole anywhere has the same weights on any number of processes.
        """
        generator = torch.Generator(next(model.parameters()).device)
        for name, p in model.named_parameters():
            here = local(p.detach())
            if p.ndim < 2:
                here.fill_(1.0)
                continue
            cut = [torch.tensor(indices(p, axis), dtype=torch.long, device=here.device) for axis in range(1, p.ndim)]
            at_once, done = max(1, NUMBERS // math.prod(p.shape[1:])), 0
            places = [divmod(i, at_once) for i in indices(p, 0)]
            for block, rows in groupby(places, itemgetter(0)):
                digest = hashlib.sha256(f"{torch.initial_seed()} {name} {block}".encode()).digest()
                generator.manual_seed(int.from_bytes(digest[:8]) >> 1)
                whole = here.new_empty(at_once, *p.shape[1:]).normal_(0.0, 0.02, generator=generator)
                at = torch.tensor([row for _, row in rows], device=here.device)
                here[done : done + len(at)] = whole[torch.meshgrid(at, *cut, indexing="ij")]
                done += len(at)
