"""Texts of one's own: tags by their names in any order, entities beyond the last token, labels by their names."""

import shutil

import hub_folders
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from hub_folders import refused

from thalweg.lab import hub
from thalweg.lab.tasks import bert

LABELS = list(bert.CoNLL2003.labels)
# CoNLL-2003


SENTENCES = [  # words and tags
    (["Peter", "Blackburn"], ["B-PER", "I-PER"]),
    (["EU", "rejects", "German", "call"], ["B-ORG", "O", "B-MISC", "O"]),
    (["Peter", "EU", "lamb"], ["B-LOC", "B-LOC", "I-LOC"]),
]


def conll(root, tags, kind, splits=("train", "validation", "test"), words=None):
    words = words or [one for one, _ in SENTENCES]
    for split in splits:
        hub_folders.write(root, "lhoestq/conll2003/data", split, {"tokens": words, "ner_tags": tags},
                          {"tokens": List(Value("string")), "ner_tags": List(kind)})  # fmt: skip


def numbers(order):
    return [[order.index(tag) for tag in tags] for _, tags in SENTENCES]


def read(part):
    """The names of the tags that count, by row."""
    return [[LABELS[tag] for tag in row if tag != -100] for row in part.targets.tolist()]


ALPHABETIC = sorted(LABELS)
IOB1 = [["I-PER", "I-PER"], ["I-ORG", "O", "I-MISC", "O"], ["I-LOC", "B-LOC", "I-LOC"]]
BIOES = [["B-PER", "E-PER"], ["S-ORG", "O", "S-MISC", "O"], ["S-LOC", "B-LOC", "E-LOC"]]


@pytest.mark.parametrize(
    ("tags", "kind"),
    [
        (numbers(LABELS), ClassLabel(names=LABELS)),
        (numbers(ALPHABETIC), ClassLabel(names=ALPHABETIC)),
        (numbers(LABELS), Value("int64")),
        ([tags for _, tags in SENTENCES], Value("string")),
        (IOB1, Value("string")),
        (BIOES, Value("string")),
    ],
    ids=["named", "alphabetic", "numbers", "texts", "iob1", "bioes"],
)
def test_the_same_predictions_score_the_same_in_every_copy(own_data, tiny_weights, tags, kind):
    conll(own_data, tags, kind)
    shutil.copytree(tiny_weights, own_data, dirs_exist_ok=True)
    task = bert.CoNLL2003()
    _, _, test = task.splits()
    assert read(test) == [tags for _, tags in SENTENCES]
    output = torch.zeros(3, 128, 9)
    output[0, :, LABELS.index("I-PER")] = 1.0  # one of four entities found, and two that are none
    output[2, :, LABELS.index("B-LOC")] = 1.0
    output[1, :, 0] = 1.0
    assert task.combine(task.score(output, test.targets)) == pytest.approx(100 * 2 * 2 / (5 + 4))


@pytest.mark.parametrize(
    ("tags", "kind", "what"),
    [
        (numbers(ALPHABETIC), Value("int64"), "begins with I if the numbers stand for O, B-PER"),
        ([[1, 2], [3, 9, 7, 0], [0, 0, 0]], Value("int64"), "row 1, column ner_tags: has the tag 9, not a whole"),
        ([[1, 2], [3, -100, 7, 0], [0, 0, 0]], Value("int64"), "has the tag -100, not a whole number from 0 to 8"),
        ([[1, 2], [3, 0, 7], [0, 0, 0]], Value("int64"), "row 1, column ner_tags: has 3 tags of 4 words"),
        ([["B-GPE", "O"], ["O"] * 4, ["O"] * 3], Value("string"), "row 0, column ner_tags: has the tag 'B-GPE', not"),
        ([[1, 2], [3, 0, None, 0], [0, 0, 0]], Value("int64"), "row 1, column ner_tags: is [3, 0, None, 0], not a"),
    ],
)  # fmt: skip
def test_tags_that_are_none_are_named(own_data, tiny_weights, tags, kind, what):
    conll(own_data, tags, kind)
    shutil.copytree(tiny_weights, own_data, dirs_exist_ok=True)
    assert what in refused(bert.CoNLL2003().splits)


def test_empty_sentences_and_marks_of_documents_do_not_count(own_data, tiny_weights, monkeypatch):
    monkeypatch.delenv(hub.ROWS)
    monkeypatch.setattr(bert.CoNLL2003, "published", dict.fromkeys(("train", "validation", "test"), (1,)))
    conll(own_data, [[], [0], [1, 2]], Value("int64"), words=[[], ["-DOCSTART-"], ["Peter", "Blackburn"]])
    shutil.copytree(tiny_weights, own_data, dirs_exist_ok=True)
    assert [read(part) for part in bert.CoNLL2003().splits()] == [[["B-PER", "I-PER"]]] * 3


def test_sentences_that_are_all_empty_are_none(own_data, tiny_weights):
    conll(own_data, [[], [0]], Value("int64"), words=[[], ["-DOCSTART-"]])
    shutil.copytree(tiny_weights, own_data, dirs_exist_ok=True)
    assert "train-00000-of-00001.parquet, split train, has no rows: hf download" in refused(bert.CoNLL2003().splits)


def test_entities_behind_the_last_token_count(own_data, tiny_weights):
    """A sentence of 300 words is read in parts, none of which cuts an entity; what is not found there is missed."""
    words = [*(["call", "Peter", "Blackburn"] * 100)[:299], "\u200b"]  # the last is nothing to the tokenizer
    tags = [*(["O", "B-PER", "I-PER"] * 100)[:299], "I-PER"]
    conll(own_data, [[LABELS.index(tag) for tag in tags]], Value("int64"), words=[words])
    shutil.copytree(tiny_weights, own_data, dirs_exist_ok=True)
    task = bert.CoNLL2003()
    test = task.splits().test
    rows = read(test)
    assert len(rows) > 10
    assert [tag for row in rows for tag in row] == tags
    assert not any(row[0] == "I-PER" for row in rows)
    first = torch.zeros(len(rows), 128, 9)
    first[0, torch.arange(128), test.targets[0].clamp(min=0)] = 1.0  # the first part alone is right
    first[1:, :, 0] = 1.0
    scores = task.score(first, test.targets)
    assert task.more(scores)["precision"] == 100.0
    assert task.more(scores)["recall"] == pytest.approx(rows[0].count("B-PER"))  # of 100


class Letters:
    """A token a letter."""

    unk_token = "?"

    def __call__(self, words, **_):
        return self if not setattr(self, "words", words) else None

    def word_ids(self):
        return [i for i, word in enumerate(self.words) for _ in word]


@pytest.mark.parametrize(
    ("words", "tags", "parts"),
    [
        ("ab cd ef", "O O O", ["ab cd", "ef"]),
        ("ab cd ef", "O B-X I-X", ["ab", "cd ef"]),
        ("ab cd", "O O", ["ab cd"]),
        ("a abcdefgh b", "O O O", ["a", "abcdefgh", "b"]),
        ("ab cd ef", "B-X I-X I-X", ["ab cd", "ef"]),  # longer than a part: it must be cut
        ("abcd e", "B-X O", ["abcd", "e"]),
    ],
)
def test_parts_of_a_sentence(words, tags, parts):
    found = bert.windows(Letters(), words.split(), tags.split(), 6)
    assert [" ".join(part) for part, _ in found] == parts
    assert [tag for _, part in found for tag in part] == tags.split()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("I-A I-A O I-A", "B-A I-A O B-A"),
        ("I-A B-A I-B", "B-A B-A B-B"),
        ("B-A I-A I-A O", "B-A I-A I-A O"),
        ("S-A B-A E-A O", "B-A B-A I-A O"),
        ("U-A B-A L-A U-A", "B-A B-A I-A B-A"),
        ("B-A E-A S-A", "B-A I-A B-A"),
    ],
)
def test_iob2(given, expected):
    assert bert.iob2(given.split()) == expected.split()


@pytest.mark.parametrize("task", [bert.MRPC, bert.IMDB])
def test_yes_is_what_its_name_says_whatever_its_number(own_data, tiny_weights, task):
    hub_folders.texts(own_data)
    shutil.copytree(tiny_weights, own_data, dirs_exist_ok=True)
    before = [part.targets.tolist() for part in task().splits()]
    assert set(before[2]) == {0, 1}
    names = task.label.names
    for path in own_data.rglob("*.parquet"):
        data = Dataset.from_parquet(str(path))
        if getattr(data.features.get("label"), "names", None) == list(names):
            flipped = [1 - label for label in data["label"]]
            columns = {name: flipped if name == "label" else list(data[name]) for name in data.column_names}
            features = {**data.features, "label": ClassLabel(names=names[::-1])}
            Dataset.from_dict(columns, features=Features(features)).to_parquet(path)
    assert [part.targets.tolist() for part in task().splits()] == before
    for path in own_data.rglob("*.parquet"):
        data = Dataset.from_parquet(str(path))
        if "label" in data.features:
            features = Features({**data.features, "label": ClassLabel(names=["ham", "spam"])})
            Dataset.from_dict(data.to_dict(), features=features).to_parquet(path)
    assert f"has the classes ham, spam, not {', '.join(names)}" in refused(task().splits)


def test_reviews_keep_their_labels(own_data, tiny_weights):
    """Whatever was left out as published twice, and wherever the held-out tenth lies."""
    shutil.copytree(tiny_weights, own_data, dirs_exist_ok=True)
    rng = np.random.default_rng(0)
    labels = [i % 3 % 2 for i in range(30)]
    texts = [f"{('bad', 'good')[label]} {hub_folders.sentence(rng).replace('good', 'a')}" for label in labels]
    texts[1:3] = texts[4:6]  # of the same labels
    for split in ("train", "test"):
        part = slice(0, 24) if split == "train" else slice(24, 30)
        hub_folders.write(own_data, "stanfordnlp/imdb", split, {"text": texts[part], "label": labels[part]},
                          {"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})  # fmt: skip
    task = bert.IMDB()
    good = task.tokenizer().convert_tokens_to_ids("good")
    splits = task.splits()
    assert [len(part) for part in splits] == [20, 2, 6]
    for part in splits:
        assert (part.inputs["input_ids"] == good).any(1).long().tolist() == part.targets.tolist()


def test_labels_that_are_hidden_are_one_clear_error(own_data, tiny_weights):
    hub_folders.texts(own_data)
    path = own_data / "nyu-mll/glue/mrpc/test-00000-of-00001.parquet"
    data = Dataset.from_parquet(str(path))
    Dataset.from_dict({**data.to_dict(), "label": [-1] * len(data)}, features=data.features).to_parquet(path)
    assert f"{path}, split test, row 0, column label: is -1, which stands for a label that is not published" in refused(
        lambda: bert.MRPC()._load("test")
    )
