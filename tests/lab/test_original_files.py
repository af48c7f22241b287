"""Data in the form of their first publication: the page says how they become what the tasks read."""

import pickle
import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hub_folders import refused

from thalweg.lab import hub, tasks
from thalweg.lab.split import TAGS, WORDS
from thalweg.lab.tasks import bert

PAGE = Path(__file__).parents[2] / "docs/data.md"
PIXELS = np.arange(7 * 3072, dtype=np.int64).reshape(7, 3072) % 251


def batch(rows, keys):
    """A pickle as Python 2 made it, opcode by opcode: byte strings, and arrays by numpy's older names."""

    def string(value):
        return (b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<i", len(value))) + value

    def numbers(values):
        return b"](" + b"".join(b"K" + bytes([value]) for value in values) + b"e"

    kind = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"K" + bytes([len(rows)]) + b"M\x00\x0c\x86"
    pixels = b"".join(PIXELS[row[0]].astype(np.uint8).tobytes() for row in rows)
    data = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01" + shape + kind + b"\x89" + string(pixels) + b"tb"
    )
    items = string(b"data") + data + string(b"batch_label") + string(b"training batch 1 of 5")
    for i, key in enumerate(keys):
        items += string(key) + numbers([row[i + 1] for row in rows])
    return b"\x80\x02}(" + items + b"u."


def cifar10(folder):
    folder.mkdir(parents=True)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for i, name in enumerate(names):
        (folder / name).write_bytes(batch([(i, i + 1)], [b"labels"]))


def cifar100(folder):
    folder.mkdir(parents=True)
    for name, rows in (("train", [(0, 11, 1), (1, 99, 19)]), ("test", [(2, 50, 7)])):
        (folder / name).write_bytes(batch(rows, [b"fine_labels", b"coarse_labels"]))
    (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": []}))


def conll(folder):
    folder.mkdir(parents=True)
    text = (
        "-DOCSTART- -X- O O\n\nEU NNP I-NP I-ORG\nrejects VBZ I-VP O\nGerman JJ I-NP I-MISC\n. . O O\n\n"
        "Peter NNP I-NP I-PER\nBlackburn NNP I-NP I-PER\n\n-DOCSTART- -X- O O\n\n"
        'BRUSSELS NNP I-NP I-LOC\nAsia NNP I-NP B-LOC\n" " O O\n'
    )
    for name, encoding in (("eng.train", "utf-8"), ("eng.testa", "utf-8-sig"), ("eng.testb", "utf-8-sig")):
        (folder / name).write_text(text, encoding=encoding)


HEADER = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
PAIRS = [
    '1\t10\t11\t" Yes , " he said .\tHe said "yes .\r\n',
    "0\t20\t21\tOne café .\tTwo .\r\n",
    "1\t30\t31\tNA\tB .\r\n",
]


def mrpc(folder):
    folder.mkdir(parents=True)
    (folder / "msr_paraphrase_train.txt").write_bytes(b"\xef\xbb\xbf" + (HEADER + "".join(PAIRS)).encode())
    (folder / "msr_paraphrase_test.txt").write_bytes(b"\xef\xbb\xbf" + (HEADER + "0\t40\t41\tC .\tD .\r\n").encode())
    (folder / "mrpc_dev_ids.tsv").write_text("20\t21\n", encoding="utf-8-sig")


def imdb(folder):
    for split in ("train", "test", "train/unsup"):
        for kind in ("neg", "pos") if "/" not in split else ("",):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
            for i in range(2):
                text = f'{split} {kind} {i}: "quite"<br /><br />naïve\n'
                (folder / split / kind / f"{i}_{3 + i}.txt").write_text(text, encoding="utf-8")


FORMS = {
    "cifar10-resnet20": ("uoft-cs/cifar10", cifar10, "cifar-10-batches-py"),
    "cifar100-resnet20": ("uoft-cs/cifar100", cifar100, "cifar-100-python"),
    "conll2003-bert": ("lhoestq/conll2003", conll, "conll2003"),
    "mrpc-bert": ("nyu-mll/glue", mrpc, "MRPC"),
    "imdb-bert": ("stanfordnlp/imdb", imdb, "aclImdb"),
}


@pytest.mark.parametrize("task", FORMS)
def test_a_folder_of_originals_is_one_error_that_names_the_page(own_data, monkeypatch, task):
    name, make, called = FORMS[task]
    make(own_data / name / called)
    monkeypatch.setattr(bert.BERT, "tokenizer", lambda _: None)
    message = refused(tasks.find(task).splits)
    assert message.startswith(f"{own_data / name} holds data in the form of their first publication ({called}")
    assert message.endswith("the page 'Data' of the documentation says under 'From the original files'")
    assert "\n## From the original files\n" in PAGE.read_text()


@pytest.fixture
def converted(own_data, tiny_weights, tmp_path_factory, monkeypatch):
    """What the code of the page, run as it stands, makes of files of each form."""
    source = tmp_path_factory.mktemp("source")
    for _, make, called in FORMS.values():
        make(source / called)
    monkeypatch.chdir(source)
    code = "".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
    exec(compile(code, str(PAGE), "exec"), {})
    shutil.copytree(tiny_weights, own_data, dirs_exist_ok=True)
    return own_data


def test_the_page_converts_each_form_into_what_the_task_reads(converted):
    def read(path):
        return Dataset.from_parquet(str(converted / path))

    cifar = tasks.find("cifar10-resnet20")
    assert [len(part) for part in cifar.splits()] == [4, 1, 1]
    ten, hundred = read("uoft-cs/cifar10/train-00000-of-00001.parquet"), tasks.find("cifar100-resnet20").splits()
    assert list(ten["label"]) == [1, 2, 3, 4, 5]
    for i in range(5):
        assert np.array_equal(np.asarray(ten[i]["img"]), PIXELS[i].reshape(3, 32, 32).transpose(1, 2, 0))
    assert sorted([*hundred.train.targets.tolist(), *hundred.validation.targets.tolist()]) == [11, 99]
    assert hundred.test.targets.tolist() == [50]

    found = hub.load("lhoestq/conll2003", "validation", {"tokens": WORDS, "ner_tags": TAGS})
    assert bert.tagged_sentences(found, bert.ENTITIES) == [
        (["EU", "rejects", "German", "."], ["B-ORG", "O", "B-MISC", "O"]),
        (["Peter", "Blackburn"], ["B-PER", "I-PER"]),
        (["BRUSSELS", "Asia", '"'], ["B-LOC", "B-LOC", "O"]),
    ]
    assert [len(part) for part in tasks.find("conll2003-bert").splits()] == [3, 3, 3]

    train, validation, _ = (read(f"nyu-mll/glue/mrpc/{one}-00000-of-00001.parquet") for one in bert.MRPC.published)
    assert [*train["sentence1"]] == ['" Yes , " he said .', "NA"]
    assert [*train["sentence2"]] == ['He said "yes .', "B ."]
    assert [*validation["sentence1"]] == ["One café ."]
    assert [part.targets.tolist() for part in tasks.find("mrpc-bert").splits()] == [[1, 1], [0], [0]]

    reviews = read("stanfordnlp/imdb/test-00000-of-00001.parquet")
    assert reviews[2]["text"] == 'test pos 0: "quite"<br /><br />naïve\n'
    assert tasks.find("imdb-bert").splits().test.targets.tolist() == [0, 0, 1, 1]
