"""Fine-tuning of BERT-base on CoNLL-2003, IMDB and MRPC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from thalweg.lab import hub
from thalweg.lab.tasks.base import Budget, Rows, Splits, Task, held_out
from thalweg.lab.tasks.classification import Tagging, YesOrNo
from thalweg.records.errors import UserError

VOCABULARIES = {"google-bert/bert-base-cased": 28_996, "google-bert/bert-base-uncased": 30_522}


class BERT(Task):
    """A task whose model is a published BERT with a new head.

    ``weights`` is its name on the hub; :mod:`thalweg.lab.hub` says where else it may lie. ``length`` is how many tokens
    of an example are kept.
    """

    weights: ClassVar[str]
    kind: ClassVar[str]
    classes: ClassVar[int]
    length: ClassVar[int]
    example_cost = 2_000_000.0

    def tokenizer(self) -> Any:
        """That of the weights."""
        from transformers import AutoTokenizer

        return hub.pretrained(AutoTokenizer, self.weights)

    def model(self) -> nn.Module:
        """The published weights, and a head drawn from torch's global generator."""
        import transformers

        made: nn.Module = hub.pretrained(getattr(transformers, self.kind), self.weights, num_labels=self.classes)
        return made.float()

    def skeleton(self) -> nn.Module:
        """BERT-base with the vocabulary of the weights."""
        import transformers

        config = transformers.BertConfig(vocab_size=VOCABULARIES[self.weights])
        config.num_labels = self.classes
        made: nn.Module = getattr(transformers, self.kind)(config)
        return made

    def example(self) -> tuple[dict[str, Tensor], Tensor]:
        """Two texts of full length, and their labels: of each token where tokens have some."""
        shape = (2, self.length) if isinstance(self, Tagging) else (2,)
        return {"input_ids": torch.ones(2, self.length, dtype=torch.long)}, torch.zeros(shape, dtype=torch.long)

    def encoded(self, *texts: Sequence[str]) -> dict[str, Tensor]:
        """Texts, or pairs of them, as the model's inputs, cut and filled to ``length``."""
        found = self.tokenizer()(
            *[list(part) for part in texts], padding="max_length", truncation=True, max_length=self.length,
            return_tensors="pt",
        )  # fmt: skip
        return {name: found[name] for name in ("input_ids", "attention_mask", "token_type_ids")}


class CoNLL2003(BERT, Tagging):
    """Names of persons, organisations, places and others in news, by BERT-base (cased); F1 of whole names.

    A word's label is that of its first token; its other tokens count for nothing.
    """

    name = "conll2003-bert"
    title = "CoNLL-2003 named entities, BERT-base (cased)"
    budgets: ClassVar = (
        Budget(32, 438),
        Budget(1024, 13),
        Budget(32, 2190, name="long"),
        Budget(1024, 65, name="long"),
    )
    download = "lhoestq/conll2003 (2 MB) and google-bert/bert-base-cased (436 MB)"
    published_examples = 14_041
    weights, kind, classes, length = "google-bert/bert-base-cased", "BertForTokenClassification", 9, 128
    labels = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")

    def splits(self) -> Splits:
        """14,041, 3,250 and 3,453 sentences, as published."""
        return Splits(*(self._load(split) for split in ("train", "validation", "test")))

    def _load(self, split: str) -> Rows:
        data = hub.load("lhoestq/conll2003", split, ("tokens", "ner_tags"))
        words = [[*sentence] for sentence in data["tokens"]]
        found = self.tokenizer()(
            words, is_split_into_words=True, padding="max_length", truncation=True, max_length=self.length,
            return_tensors="pt",
        )  # fmt: skip
        targets = torch.full_like(found["input_ids"], -100)
        for i, tags in enumerate(data["ner_tags"]):
            before = None
            for k, word in enumerate(found.word_ids(i)):
                if word is not None and word != before:
                    targets[i, k] = tags[word]
                before = word
        return Rows({name: found[name] for name in ("input_ids", "attention_mask", "token_type_ids")}, targets)


class IMDB(BERT, YesOrNo):
    """Whether a review of a film is kind, by BERT-base (uncased).

    Some reviews are published twice, also across the sets: what stands in the test set, or before, is left out of
    training and validation.
    """

    name = "imdb-bert"
    title = "IMDB reviews, BERT-base (uncased)"
    budgets: ClassVar = (
        Budget(32, 697),
        Budget(1024, 21),
        Budget(32, 2091, name="long"),
        Budget(1024, 63, name="long"),
    )
    download = "stanfordnlp/imdb (84 MB) and google-bert/bert-base-uncased (440 MB)"
    published_examples = 22_300
    weights, kind, classes, length = "google-bert/bert-base-uncased", "BertForSequenceClassification", 2, 512

    def splits(self) -> Splits:
        """The training set less a random tenth, which is to validate, and the 25,000 reviews of the test set."""
        data, test = (hub.load("stanfordnlp/imdb", split, ("text", "label")) for split in ("train", "test"))
        seen, kept = set(test["text"]), []
        for i, text in enumerate(data["text"]):
            if text not in seen:
                seen.add(text)
                kept.append(i)
        data = data.select(kept)
        train, validation = held_out(len(data), max(1, len(data) // 10))
        return Splits(
            *(self._rows(part) for part in (data.select(train.tolist()), data.select(validation.tolist()), test))
        )

    def _rows(self, data: Any) -> Rows:
        return Rows(self.encoded(data["text"]), torch.tensor(data["label"]))


class MRPC(BERT, YesOrNo):
    """Whether two sentences say the same, by BERT-base (uncased)."""

    name = "mrpc-bert"
    title = "MRPC paraphrases, BERT-base (uncased)"
    budgets: ClassVar = (Budget(32, 114), Budget(1024, 3), Budget(32, 1140, name="long"), Budget(1024, 30, name="long"))
    download = "nyu-mll/glue, mrpc (1 MB) and google-bert/bert-base-uncased (440 MB)"
    published_examples = 3668
    weights, kind, classes, length = "google-bert/bert-base-uncased", "BertForSequenceClassification", 2, 128

    def splits(self) -> Splits:
        """3,668, 408 and 1,725 pairs, as published."""
        return Splits(*(self._load(split) for split in ("train", "validation", "test")))

    def _load(self, split: str) -> Rows:
        data = hub.load("nyu-mll/glue", split, ("sentence1", "sentence2", "label"), "mrpc")
        labels = torch.tensor(data["label"])
        if labels.min() < 0:
            raise UserError(f"nyu-mll/glue, mrpc, split {split}, has no labels: fetch a copy that has")
        return Rows(self.encoded(data["sentence1"], data["sentence2"]), labels)
