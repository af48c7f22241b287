"""Data in the form of their first publication: what is wrong is named, what is right becomes what the tasks read."""

import os
import pickle
import re
import struct
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from hub_folders import refused

from thalweg.lab import hub, originals, tasks
from thalweg.lab.originals import convert, iob2
from thalweg.lab.tasks import bert
from thalweg.records.errors import UserError

DOCS = Path(__file__).parents[2] / "docs/data.md"
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


def cifar10(folder, binary=False):
    folder.mkdir(parents=True)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for i, name in enumerate(names):
        if binary:
            row = np.array([i + 1, *PIXELS[i]], np.uint8)
            (folder / f"{name}.bin").write_bytes(row.tobytes())
        else:
            (folder / name).write_bytes(batch([(i, i + 1)], [b"labels"]))
    return folder


def cifar100(folder):
    folder.mkdir(parents=True)
    for name, rows in (("train", [(0, 11, 1), (1, 99, 19)]), ("test", [(2, 50, 7)])):
        (folder / name).write_bytes(batch(rows, [b"fine_labels", b"coarse_labels"]))
    (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": []}))
    return folder


def conll(folder, names=("eng.train", "eng.testa", "eng.testb")):
    folder.mkdir(parents=True)
    text = (
        "-DOCSTART- -X- O O\n\nEU NNP I-NP I-ORG\nrejects VBZ I-VP O\nGerman JJ I-NP I-MISC\n. . O O\n\n"
        "Peter NNP I-NP I-PER\nBlackburn NNP I-NP I-PER\n\n-DOCSTART- -X- O O\n\n"
        'BRUSSELS NNP I-NP I-LOC\nAsia NNP I-NP B-LOC\n" " O O\n'
    )
    for name in names:
        (folder / name).write_text(text)
    return folder


HEADER = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
PAIRS = [
    '1\t10\t11\t" Yes , " he said .\tHe said "yes .\r\n',
    "0\t20\t21\tOne café .\tTwo .\r\n",
    "1\t30\t31\tA .\tB .\r\n",
]


def mrpc(folder):
    folder.mkdir(parents=True)
    (folder / "msr_paraphrase_train.txt").write_bytes(b"\xef\xbb\xbf" + (HEADER + "".join(PAIRS)).encode())
    (folder / "msr_paraphrase_test.txt").write_bytes(b"\xef\xbb\xbf" + (HEADER + "0\t40\t41\tC .\tD .\r\n").encode())
    (folder / "mrpc_dev_ids.tsv").write_text("20\t21\n", encoding="utf-8-sig")
    return folder


def imdb(folder):
    for split in ("train", "test", "train/unsup"):
        for kind in ("neg", "pos") if "/" not in split else ("",):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
            for i in range(2):
                text = f'{split} {kind} {i}: "quite"<br /><br />naïve\n'
                (folder / split / kind / f"{i}_{3 + i}.txt").write_text(text, encoding="utf-8")
    return folder


def rows(paths):
    return {path.name.split("-")[0]: datasets.Dataset.from_parquet(str(path)) for path in paths}


@pytest.mark.parametrize("binary", [False, True])
def test_cifar10(tmp_path, own_data, binary):
    found = rows(convert("uoft-cs/cifar10", cifar10(tmp_path / "source", binary), own_data))
    assert list(found["train"]["label"]) == [1, 2, 3, 4, 5]
    assert list(found["test"]["label"]) == [6]
    for i in range(5):
        assert np.array_equal(np.asarray(found["train"][i]["img"]), PIXELS[i].reshape(3, 32, 32).transpose(1, 2, 0))
    splits = tasks.find("cifar10-resnet20").splits()
    assert [len(part) for part in splits] == [4, 1, 1]


def test_cifar100(tmp_path, own_data):
    found = rows(convert("uoft-cs/cifar100", cifar100(tmp_path / "cifar-100-python"), own_data))
    assert found["train"].column_names == ["img", "fine_label", "coarse_label"]
    assert list(found["train"]["fine_label"]) == [11, 99]
    assert list(found["train"]["coarse_label"]) == [1, 19]
    assert list(found["test"]["fine_label"]) == [50]
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    for name in ("train.bin", "test.bin"):
        (folder / name).write_bytes(bytes([4, 73, *PIXELS[0].tolist()]))
    found = rows(convert("uoft-cs/cifar100", folder, own_data))
    assert (found["test"][0]["coarse_label"], found["test"][0]["fine_label"]) == (4, 73)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


def test_a_pickle_executes_nothing(tmp_path, own_data, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = cifar10(tmp_path / "source")
    (folder / "data_batch_3").write_bytes(pickle.dumps({b"data": Evil()}, protocol=2))
    message = refused(lambda: convert("uoft-cs/cifar10", folder, own_data))
    assert re.search(
        r"cannot read .*data_batch_3 \(UnpicklingError: \w+\.mkdir has no place in a batch of images", message
    )
    assert not Path("made-by-a-pickle").exists()
    assert not (own_data / "uoft-cs").exists()  # nothing is written unless all was read


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("data_batch_2", b"", "EOFError"),
        ("data_batch_2", pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}), "not as many as"),
        ("data_batch_2", pickle.dumps({b"data": np.zeros((1, 3072)), b"labels": [1]}), "are not bytes"),
        ("test_batch.bin", bytes(3072), "cannot reshape"),
    ],
)
def test_batches_that_are_none_are_named(tmp_path, own_data, name, data, what):
    folder = cifar10(tmp_path / "source", binary=name.endswith(".bin"))
    (folder / name).write_bytes(data)
    message = refused(lambda: convert("uoft-cs/cifar10", folder, own_data))
    assert f"cannot read {folder / name} (" in message
    assert what in message


@pytest.mark.parametrize("names", [("eng.train", "eng.testa", "eng.testb"), ("train.txt", "valid.txt", "test.txt")])
def test_conll2003(tmp_path, own_data, tiny_weights, names):
    found = rows(convert("lhoestq/conll2003", conll(tmp_path / "source", names), own_data))
    assert set(found) == {"train", "validation", "test"}
    assert list(found["train"]["tokens"]) == [
        ["EU", "rejects", "German", "."], ["Peter", "Blackburn"], ["BRUSSELS", "Asia", '"'],
    ]  # fmt: skip
    names = found["train"].features["ner_tags"].feature.names
    assert [[names[tag] for tag in tags] for tags in found["train"]["ner_tags"]] == [
        ["B-ORG", "O", "B-MISC", "O"], ["B-PER", "I-PER"], ["B-LOC", "B-LOC", "O"],
    ]  # fmt: skip
    data = hub.load(
        "lhoestq/conll2003", "test", {name: bert.SequenceColumn(tags=True) for name in ("tokens", "ner_tags")}
    )
    assert [len(words) for words, _ in bert.tagged_sentences(data, bert.CoNLL2003.labels)] == [4, 2, 3]


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
    assert iob2(given.split()) == expected.split()


def test_columns_that_are_none_are_named(tmp_path, own_data):
    folder = conll(tmp_path / "source")
    (folder / "eng.testb").write_text("EU NNP I-NP I-ORG\nrejects VBZ I-VP 7\n")
    message = refused(lambda: convert("lhoestq/conll2003", folder, own_data))
    assert f"{folder / 'eng.testb'}, line 2: 'rejects VBZ I-VP 7' is not a word followed by its columns" in message
    (folder / "eng.testb").unlink()
    assert "has no file eng.testb or test.txt" in refused(lambda: convert("lhoestq/conll2003", folder, own_data))


@pytest.mark.parametrize("glue", [False, True])
def test_mrpc(tmp_path, own_data, glue):
    folder = mrpc(tmp_path / "source")
    if glue:  # as its script leaves them
        (folder / "mrpc_dev_ids.tsv").unlink()
        (folder / "msr_paraphrase_train.txt").unlink()
        (folder / "dev.tsv").write_text(HEADER + PAIRS[1])
        (folder / "train.tsv").write_text(HEADER + PAIRS[0] + PAIRS[2])
    paths = convert("nyu-mll/glue", folder, own_data)
    assert {path.parent for path in paths} == {own_data / "nyu-mll/glue/mrpc"}
    found = rows(paths)
    assert [*found["train"]["sentence1"]] == ['" Yes , " he said .', "A ."]
    assert [*found["train"]["sentence2"]] == ['He said "yes .', "B ."]
    assert [*found["train"]["label"]] == [1, 1]
    assert [*found["validation"]["sentence1"]] == ["One café ."]
    assert [*found["test"]["label"]] == [0]
    assert found["test"].features["label"].names == ["not_equivalent", "equivalent"]


def test_tables_that_are_none_are_named(tmp_path, own_data):
    folder = mrpc(tmp_path / "source")
    (folder / "mrpc_dev_ids.tsv").write_text("20\t22\n")
    message = refused(lambda: convert("nyu-mll/glue", folder, own_data))
    assert f"{folder / 'mrpc_dev_ids.tsv'} is not a list of pairs of msr_paraphrase_train.txt" in message
    (folder / "msr_paraphrase_test.txt").write_text(HEADER + PAIRS[0] + "0\t40\t41\tC .\n")
    message = refused(lambda: convert("nyu-mll/glue", folder, own_data))
    assert f"{folder / 'msr_paraphrase_test.txt'}, line 3: not a label (0 or 1), two numbers and two" in message


def test_imdb(tmp_path, own_data):
    found = rows(convert("stanfordnlp/imdb", imdb(tmp_path / "aclImdb"), own_data))
    assert [*found["train"]["label"]] == [0, 0, 1, 1]
    assert found["test"][2]["text"] == 'test pos 0: "quite"<br /><br />naïve\n'
    for path in (tmp_path / "aclImdb/test/pos").iterdir():
        path.unlink()
    assert "aclImdb/test/pos has no reviews" in refused(
        lambda: convert("stanfordnlp/imdb", tmp_path / "aclImdb", own_data)
    )


FORMS = {
    "uoft-cs/cifar10": ("cifar10-resnet20", cifar10, "cifar-10-batches-py"),
    "uoft-cs/cifar100": ("cifar100-resnet20", cifar100, "cifar-100-python"),
    "lhoestq/conll2003": ("conll2003-bert", conll, "conll2003"),
    "nyu-mll/glue": ("mrpc-bert", mrpc, "MRPC"),
    "stanfordnlp/imdb": ("imdb-bert", imdb, "aclImdb"),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_folder_of_originals_is_recognised_and_the_command_named(own_data, tmp_path, tiny_weights, monkeypatch, name):
    task, make, called = FORMS[name]
    make(own_data / name / called)
    monkeypatch.setattr(bert.BERT, "tokenizer", lambda _: None)
    message = refused(tasks.find(task).splits)
    assert f"convert them with python -m thalweg.lab.originals {name} {own_data / name}" in message
    assert originals.main([name, str(own_data / name)]) == 0  # and as it says, it goes
    assert hub.layout.files_of(own_data / name, "train")


def test_a_command_that_cannot_be_followed_is_one_line(own_data, tmp_path, capsys, monkeypatch):
    for arguments, what in (
        (["mnist", str(tmp_path)], "cannot convert 'mnist': choose from uoft-cs/cifar10, "),
        (["uoft-cs/cifar10", str(tmp_path / "no")], "no is not a folder: unpack the archive"),
        (["uoft-cs/cifar10", str(tmp_path)], "has no file data_batch_1 or data_batch_1.bin"),
    ):
        assert originals.main(arguments) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert what in said
        assert said.count("\n") == 1
    monkeypatch.delenv(hub.VARIABLE)
    assert originals.main(["uoft-cs/cifar10", str(tmp_path)]) == 2
    assert "no output folder: set THALWEG_DATA, or give one with --to" in capsys.readouterr().err


def test_the_page_names_commands_that_work(tmp_path):
    """Each command of the page, run in a folder that has what it names."""
    blocks = re.findall(r"^    (python -m thalweg.lab.originals .*)$", DOCS.read_text(), re.M)
    assert {line.split()[3] for line in blocks} == set(FORMS)
    for line in blocks:
        name, source = line.split()[3:5]
        FORMS[name][1](tmp_path / source)
    environment = {**os.environ, "THALWEG_DATA": str(tmp_path / "data"), "PYTHONPATH": os.pathsep.join(sys.path)}
    line = blocks[0].replace("python", sys.executable, 1)
    ran = subprocess.run(
        line.split(), cwd=tmp_path, env=environment, check=False, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    for line in blocks[1:]:
        name, source = line.split()[3:5]
        assert originals.main([name, str(tmp_path / source), "--to", str(tmp_path / "data")]) == 0
    assert len(list((tmp_path / "data").rglob("*.parquet"))) == 2 + 2 + 3 + 3 + 2


def test_what_is_unreadable_as_text_is_named(tmp_path, own_data):
    folder = mrpc(tmp_path / "source")
    (folder / "msr_paraphrase_test.txt").write_bytes(HEADER.encode() + b"0\t1\t2\tcaf\xe9\tx\r\n")
    with pytest.raises(UserError, match=r"cannot read .*msr_paraphrase_test.txt \('utf-8' codec"):
        convert("nyu-mll/glue", folder, own_data)
