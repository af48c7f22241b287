"""Fine-tuning of BERT-base on CoNLL-2003, IMDB and MRPC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from thalweg.lab import hub
from thalweg.lab.split import TAGS, TEXT, WORDS, Classes, Kind
from thalweg.lab.tasks.base import Rows, Splits, Task, held_out, short_and_long
from thalweg.lab.tasks.classification import Tagging, YesOrNo
from thalweg.records.errors import UserError

ENTITIES = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")
VOCABULARIES = {
    "google-bert/bert-base-cased": 28_996, "google-bert/bert-base-uncased": 30_522,
    "sentence-transformers/all-MiniLM-L6-v2": 30_522,
}  # fmt: skip
INPUTS = "input_ids", "attention_mask", "token_type_ids"


class BERT(Task):
    """A task whose model is a published BERT with a new head.

    ``weights`` is its name on the hub; :mod:`thalweg.lab.hub` says where else it may be. ``length`` is how many tokens
    of an example are kept, ``shape`` what of the configuration is not BERT-base's.
    """

    weights: ClassVar[str]
    kind: ClassVar[str]
    classes: ClassVar[int]
    length: ClassVar[int]
    shape: ClassVar[dict[str, Any]] = {}
    example_cost = 2_000_000.0

    def tokenizer(self) -> Any:
        """That of the weights."""
        from transformers import AutoConfig

        return hub.tokenizer(self.weights, hub.pretrained(AutoConfig, self.weights).vocab_size)

    def model(self) -> nn.Module:
        """The published weights, and a head drawn from torch's global generator.

        Raises:
            UserError: the weights are not available, or lack more than the head.
        """
        import transformers

        made, found = hub.pretrained(
            getattr(transformers, self.kind), self.weights, num_labels=self.classes, output_loading_info=True
        )
        if lacking := sorted(name for name in found["missing_keys"] if not name.startswith("classifier.")):
            raise UserError(f"the weights {self.weights} lack {lacking[0]}{', ...' * (len(lacking) > 1)}")
        model: nn.Module = made.float()
        return model

    def pretrained(self) -> nn.Module:
        """The published weights alone."""
        from transformers import AutoModel

        made: nn.Module = hub.pretrained(AutoModel, self.weights)
        return made

    def skeleton(self) -> nn.Module:
        """A BERT of the weights' vocabulary and shape."""
        import transformers

        config: Any = transformers.BertConfig(vocab_size=VOCABULARIES[self.weights], **self.shape)
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
        return {name: found[name] for name in INPUTS}


class CoNLL2003(BERT, Tagging):
    """Names of persons, organisations, places and others in news, by BERT-base (cased); F1 of whole names.

    A word's label is that of its first token; its other tokens count for nothing. What is longer than 128 tokens is
    read in parts (:func:`windows`), so that all entities are trained on and counted.
    """

    name = "conll2003-bert"
    title = "CoNLL-2003 named entities, BERT-base (cased)"
    budgets: ClassVar = short_and_long({32: (438, 2190), 1024: (13, 65)})
    download = "lhoestq/conll2003 (2 MB) and google-bert/bert-base-cased (436 MB)"
    published_examples = 14_041
    weights, kind, classes, length = "google-bert/bert-base-cased", "BertForTokenClassification", 9, 128
    labels = ENTITIES
    published: ClassVar[dict[str, tuple[int, ...]]] = {"train": (14_041,), "validation": (3250,), "test": (3453,)}

    def splits(self) -> Splits:
        """14,041, 3,250 and 3,453 sentences, as published, and a row more for each part of a sentence that is cut."""
        return Splits(*(self._load(split) for split in ("train", "validation", "test")))

    def _load(self, split: str) -> Rows:
        columns = {"tokens": WORDS, "ner_tags": TAGS}
        data = hub.load("lhoestq/conll2003", split, columns)
        tokenizer = self.tokenizer()
        sentences = tagged_sentences(data, self.labels)
        data.expect(len(sentences), self.published[split])
        return tagged_rows(tokenizer, sentences, self.labels, self.length)


def tagged_rows(
    tokenizer: Any, sentences: Sequence[tuple[list[str], list[str]]], labels: tuple[str, ...], length: int
) -> Rows:
    """Words and tags as the model's inputs and targets, in parts that fit (:func:`windows`), filled to ``length``.

    A word's label is that of its first token; the target of its other tokens, and of padding, is -100.
    """
    parts = [part for words, tags in sentences for part in windows(tokenizer, words, tags, length)]
    found = tokenizer(
        [words for words, _ in parts], is_split_into_words=True, padding="max_length", truncation=True,
        max_length=length, return_tensors="pt",
    )  # fmt: skip
    targets = torch.full_like(found["input_ids"], -100)
    for i, (_, tags) in enumerate(parts):
        before = None
        for k, word in enumerate(found.word_ids(i)):
            if word is not None and word != before:
                targets[i, k] = labels.index(tags[word])
            before = word
    return Rows({name: found[name] for name in INPUTS}, targets)


def iob2(tags: list[str]) -> list[str]:
    """Tags of any of the usual schemes as IOB2, where each entity, and nothing else, begins with B.

    In IOB1, of the original files, only an entity that touches another of its type does; BIOES and BILOU also mark ends
    (E, L) and entities of one word (S, U).
    """
    found = []
    before = ""
    for tag in tags:
        mark, _, kind = tag.partition("-")
        mark = {"E": "I", "L": "I", "S": "B", "U": "B"}.get(mark, mark)
        found.append(tag if not kind else f"B-{kind}" if mark == "I" and kind != before else f"{mark}-{kind}")
        before = kind
    return found


def tagged_sentences(data: hub.Split, labels: tuple[str, ...]) -> list[tuple[list[str], list[str]]]:
    """Words and tags, by name and in IOB2, of every sentence; empty ones and marks of documents are left out.

    Numbers are what the files say that they are; where nothing says it, the places of ``labels``, and then each entity
    must begin with B, or the order is another.
    """
    names = data.classes("ner_tags")
    found = []
    for row, (words, given) in enumerate(zip(data.data["tokens"], data.data["ner_tags"], strict=True)):
        if len(words) != len(given):
            raise data.fault(row, "ner_tags", f"has {len(given)} tags of {len(words)} words")
        if words in ([], ["-DOCSTART-"]):
            continue
        known = names or labels
        if bad := [tag for tag in given if isinstance(tag, int) and not 0 <= tag < len(known)]:
            raise data.fault(row, "ner_tags", f"has the tag {bad[0]}, not a whole number from 0 to {len(known) - 1}")
        tags = [known[tag] if isinstance(tag, int) else tag for tag in given]
        right = iob2(tags)
        if unknown := [tag for tag in right if tag not in labels]:
            raise data.fault(row, "ner_tags", f"has the tag {unknown[0]!r}, not one of {', '.join(labels)}")
        if right != tags and not names and any(isinstance(tag, int) for tag in given):
            what = (
                f"has an entity that begins with I if the numbers stand for {', '.join(labels)}, and nothing says what "
                "they stand for: name them in a ClassLabel"
            )
            raise data.fault(row, "ner_tags", what)
        found.append((list(words), right))
    return found


def windows(tokenizer: Any, words: list[str], tags: list[str], length: int) -> list[tuple[list[str], list[str]]]:
    """A sentence as parts that each fit into ``length`` tokens, so that no entity is lost; one, if it fits.

    Parts are cut between words, before an entity rather than in it. A word of which the tokenizer leaves nothing
    becomes the token for unknown words, or its tag would be lost.
    """
    pieces = [0] * len(words)
    for word in tokenizer(words, is_split_into_words=True, add_special_tokens=False, verbose=False).word_ids():
        pieces[word] += 1
    words = [word if count else tokenizer.unk_token for word, count in zip(words, pieces, strict=True)]
    sizes = [min(max(count, 1), length - 2) for count in pieces]  # of a longer word the first tokens are kept
    found, first = [], 0
    while first < len(words):
        last, size = first, 0
        while last < len(words) and size + sizes[last] <= length - 2:
            size += sizes[last]
            last += 1
        cut = last
        while last < len(words) and cut > first and tags[cut].startswith("I-"):
            cut -= 1
        last = cut if cut > first else last
        found.append((words[first:last], tags[first:last]))
        first = last
    return found


class IMDB(BERT, YesOrNo):
    """Whether a review of a film is kind, by BERT-base (uncased).

    Some reviews are published twice, also across the sets: what stands in the test set, or before, is left out of
    training and validation.
    """

    name = "imdb-bert"
    title = "IMDB reviews, BERT-base (uncased)"
    budgets: ClassVar = short_and_long({32: (697, 2091), 1024: (21, 63)})
    download = "stanfordnlp/imdb (84 MB) and google-bert/bert-base-uncased (440 MB)"
    published_examples = 22_300
    weights, kind, classes, length = "google-bert/bert-base-uncased", "BertForSequenceClassification", 2, 512
    label: ClassVar[Classes] = Classes(2, ("neg", "pos"))

    def splits(self) -> Splits:
        """The training set less a random tenth, which is to validate, and the 25,000 reviews of the test set."""
        columns: dict[str, Kind] = {"text": TEXT, "label": self.label}
        whole, test = (hub.load("stanfordnlp/imdb", split, columns, published=(25_000,)) for split in ("train", "test"))
        seen, kept = set(test.values("text")), []
        for i, text in enumerate(whole.values("text")):
            if text not in seen:
                seen.add(text)
                kept.append(i)
        if len(kept) < 2:
            raise UserError(
                f"{whole.place} has {len(kept)} reviews to train on that are not in the test set: at least 2 are needed"
            )
        train, validation = held_out(len(kept), max(1, len(kept) // 10))
        rows = torch.tensor(kept)
        return Splits(
            self._rows(whole, rows[train]), self._rows(whole, rows[validation]),
            self._rows(test, torch.arange(len(test))),
        )  # fmt: skip

    def _rows(self, data: hub.Split, rows: Tensor) -> Rows:
        labels = torch.from_numpy(data.labels("label", self.label))
        return Rows(self.encoded(data.data.select(rows.tolist())["text"]), labels[rows])


class MRPC(BERT, YesOrNo):
    """Whether two sentences say the same, by BERT-base (uncased)."""

    name = "mrpc-bert"
    title = "MRPC paraphrases, BERT-base (uncased)"
    budgets: ClassVar = short_and_long({32: (114, 1140), 1024: (3, 30)})
    download = "nyu-mll/glue, mrpc (1 MB) and google-bert/bert-base-uncased (440 MB)"
    published_examples = 3668
    weights, kind, classes, length = "google-bert/bert-base-uncased", "BertForSequenceClassification", 2, 128
    label: ClassVar[Classes] = Classes(2, ("not_equivalent", "equivalent"))
    published: ClassVar[dict[str, tuple[int, ...]]] = {"train": (3668,), "validation": (408,), "test": (1725,)}

    def splits(self) -> Splits:
        """3,668, 408 and 1,725 pairs, as published."""
        return Splits(*(self._load(split) for split in ("train", "validation", "test")))

    def _load(self, split: str) -> Rows:
        columns: dict[str, Kind] = {"sentence1": TEXT, "sentence2": TEXT, "label": self.label}
        data = hub.load("nyu-mll/glue", split, columns, "mrpc", self.published[split])
        labels = torch.from_numpy(data.labels("label", self.label))
        return Rows(self.encoded(data.data["sentence1"], data.data["sentence2"]), labels)
