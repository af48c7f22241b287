"""Fine-tuning of a small pretrained encoder, all-MiniLM-L6-v2, for which two cores suffice."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from thalweg.lab.tasks.base import Budget, Rows, Splits, short_and_long, without_duplicates
from thalweg.lab.tasks.bert import BERT, MRPC, CoNLL2003, tagged_rows
from thalweg.lab.tasks.classification import Classification, Tagging
from thalweg.lab.tasks.pydoc_sentences import AREAS, subjects
from thalweg.lab.tasks.python_tokens import PythonTokens, passages


class MiniLM(BERT):
    """A task whose model is all-MiniLM-L6-v2 with a new head; its embeddings, 11.9 of 22.6 M parameters, stay.

    A BERT of 6 layers and width 384, distilled by Wang et al. (arXiv:2002.10957), then trained on pairs of sentences.
    """

    weights = "sentence-transformers/all-MiniLM-L6-v2"
    shape: ClassVar = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}

    def model(self) -> nn.Module:
        """The published weights, of which the embeddings are not trained, and a new head."""
        return _frozen(super().model())

    def skeleton(self) -> nn.Module:
        """The same shapes."""
        return _frozen(super().skeleton())


def _frozen(model: Any) -> nn.Module:
    model.bert.embeddings.requires_grad_(False)
    return model  # type: ignore[no-any-return]


class MiniLMPythonTokens(MiniLM, Tagging):
    """The data of :class:`~thalweg.lab.tasks.python_tokens.PythonTokens` in tokens of the encoder.

    A line break is the token for unknown words, as the encoder has none for it. Windows of at most 64 tokens begin
    before a token of Python rather than in it.
    """

    name = "minilm-python-tokens"
    title = "tokens of Python source (names, keywords, numbers, strings, comments), MiniLM of 6 layers"
    budgets: ClassVar = (Budget(32, 64), Budget(256, 24), Budget(256, 48, name="long"))
    example_cost = 21_000.0  # in bfloat16, where the processor computes in it; in float32 50,000
    kind, classes, length = "BertForTokenClassification", len(PythonTokens.labels), 64
    labels = PythonTokens.labels

    def splits(self) -> Splits:
        """Modules in three sets, about 80, 10 and 10 % of them."""
        return without_duplicates(*(self._rows(part) for part in passages()))

    def _rows(self, part: list[tuple[Any, ...]]) -> Rows:
        sentences = [([*map(str, pieces)], [piece.label for piece in pieces]) for pieces in part]
        return tagged_rows(self.tokenizer(), sentences, self.labels, self.length)


class MiniLMPydocSentences(MiniLM, Classification):
    """The data of :class:`~thalweg.lab.tasks.pydoc_sentences.PydocSentences` in tokens of the encoder, 32 of each."""

    name = "minilm-pydoc-sentences"
    title = "sentences of the standard library's docstrings by subject, MiniLM of 6 layers"
    budgets: ClassVar = (Budget(32, 128), Budget(256, 33), Budget(256, 66, name="long"))
    example_cost = 9_000.0  # as above; in float32 24,000
    kind, classes, length = "BertForSequenceClassification", len(AREAS), 32

    def splits(self) -> Splits:
        """80, 10 and 10 % of the sentences."""
        return without_duplicates(*(self._rows(part) for part in subjects()))

    def _rows(self, part: list[tuple[int, str]]) -> Rows:
        return Rows(self.encoded([line for _, line in part]), torch.tensor([area for area, _ in part]))


class MiniLMCoNLL2003(MiniLM, CoNLL2003):
    """:class:`~thalweg.lab.tasks.bert.CoNLL2003` by MiniLM, which knows no capital letters."""

    name = "minilm-conll2003"
    title = "CoNLL-2003 named entities, MiniLM of 6 layers (uncased)"
    budgets: ClassVar = short_and_long({32: (438, 2190), 256: (54, 270)})
    download = "lhoestq/conll2003 (2 MB)"
    example_cost = 42_000.0


class MiniLMMRPC(MiniLM, MRPC):
    """:class:`~thalweg.lab.tasks.bert.MRPC` by MiniLM."""

    name = "minilm-mrpc"
    title = "MRPC paraphrases, MiniLM of 6 layers (uncased)"
    budgets: ClassVar = short_and_long({32: (114, 1140), 256: (14, 140)})
    download = "nyu-mll/glue, mrpc (1 MB)"
    example_cost = 42_000.0
