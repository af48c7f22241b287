"""Data of one's own that do not hold what was published: one line that names file, split, row and column."""

import shutil

import datasets
import hub_folders
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hub_folders import CIFAR, images, refused, stored
from PIL import Image

from thalweg.lab import hub, tasks
from thalweg.lab.split import IMAGE, TEXT, WORDS, Classes
from thalweg.lab.tasks import bert, gpt2, published_images


@pytest.mark.parametrize(
    ("kind", "labels", "what"),
    [
        (Value("string"), ["0", "1", "cat", "3", "4", "0"], "row 0, column label: is '0' (string), not a whole number"),
        (Value("int64"), [0, 1, None, 3, 4, 0], "row 2, column label: is null"),
        (Value("float64"), [0.0, 1.0, 2.0, 3.0, 4.0, 0.0], "row 0, column label: is 0.0 (double), not a whole number"),
        (Value("bool"), [True] * 6, "row 0, column label: is True (bool), not a whole number"),
        (Value("int32"), [0, 1, 2, 10, 4, 0], "row 3, column label: is 10, not a whole number from 0 to 9"),
        (Value("uint8"), [0, 1, 2, 255, 4, 0], "row 3, column label: is 255"),
        (Value("int64"), [-1] * 6, "row 0, column label: is -1, which stands for a label that is not published"),
    ],
)  # fmt: skip
def test_labels_that_are_none_are_named(own_data, kind, labels, what):
    images(own_data, splits=("test",))
    images(own_data, kind, splits=("train",), edit=lambda columns: columns.update(label=labels))
    path = own_data / CIFAR / "train-00000-of-00001.parquet"
    assert f"{path}, split train, {what}" in refused(published_images.CIFAR10ResNet20().splits)


def test_a_label_beyond_the_largest_with_a_sign_is_named(own_data):
    (own_data / "a/b").mkdir(parents=True)
    pq.write_table(pa.table({"label": pa.array([0, 2**64 - 1], pa.uint64())}), own_data / "a/b/train.parquet")
    message = refused(lambda: hub.load("a/b", "train", {"label": Classes(2)}))
    assert message.endswith("row 1, column label: is 18446744073709551615, not a whole number from 0 to 1")


def test_a_row_is_counted_over_all_files(own_data):
    for i, labels in enumerate(([0, 1], [2, 3], [4, 11])):
        path = own_data / f"a/b/train-0000{i}-of-00003.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"label": labels}), path)
    message = refused(lambda: hub.load("a/b", "train", {"label": Classes(10)}))
    assert f"{path.parent}, split train, row 5, column label: is 11" in message


def test_shards_may_differ_in_what_changes_no_value(own_data):
    """Widths of numbers and texts, names of elements, a path that no image has."""
    folder = own_data / "a/b"
    folder.mkdir(parents=True)
    picture = stored(Image.new("RGB", (2, 2)))["bytes"]
    for i, (number, text, item, path) in enumerate(
        (("int64", "string", "item", "string"), ("uint8", "large_string", "element", "null"))
    ):
        types = {name: getattr(pa, name)() for name in (number, text, path)}
        image = pa.struct({"bytes": pa.binary(), "path": types[path]})
        words = pa.list_(pa.field(item, types[text]))
        table = pa.table({
            "label": pa.array([i], types[number]), "text": pa.array([f"t{i}"], types[text]),
            "tokens": pa.array([["a", "b"]], words), "img": pa.array([{"bytes": picture, "path": None}], image),
        })  # fmt: skip
        pq.write_table(table, folder / f"train-0000{i}-of-00002.parquet")
    columns = {"label": Classes(2), "text": TEXT, "tokens": WORDS, "img": IMAGE}
    found = hub.load("a/b", "train", columns)
    assert (list(found.values("label")), list(found.values("text"))) == ([0, 1], ["t0", "t1"])
    assert found.pictures("img", "RGB", (2, 2)).shape == (2, 2, 2, 3)


def test_shards_of_other_types_columns_or_classes_are_named(own_data):
    folder = own_data / "a/b"
    folder.mkdir(parents=True)
    first, second = (folder / f"train-0000{i}-of-00002.parquet" for i in range(2))

    def write(path, values, feature, column="label"):
        Dataset.from_dict({column: values}, features=Features({column: feature})).to_parquet(path)

    def load():
        return hub.load("a/b", "train", {"label": Classes(2)})

    write(first, [0, 1], ClassLabel(names=["neg", "pos"]))
    write(second, ["0", "cat"], Value("string"))
    assert f"cannot read {folder}, split train (ValueError: Invalid string class label cat" in refused(load)
    write(second, [0, 1], ClassLabel(names=["pos", "neg"]))
    assert f"{second}, split train, column label: the classes are others or in another order than in" in refused(load)
    write(second, [0, 1], Value("int64"), "target")
    message = refused(load)
    assert f"cannot read {folder}, split train (CastError: Couldn't cast target: int64" in message
    assert message.endswith("its files do not go together, take all of them from one copy")
    second.write_bytes(first.read_bytes()[:-50])
    assert f"cannot read {second}, split train" in refused(load)


def test_a_file_that_is_damaged_inside_is_named(own_data):
    folder = own_data / "a/b"
    folder.mkdir(parents=True)
    for i in range(2):
        pq.write_table(pa.table({"text": [f"{n}" * 9 for n in range(99)]}), folder / f"train-0000{i}-of-00002.parquet")
    path = folder / "train-00001-of-00002.parquet"
    data = bytearray(path.read_bytes())
    data[4:60] = bytes(56)  # the first page's header; the footer is whole
    path.write_bytes(data)
    message = refused(lambda: hub.load("a/b", "train", {"text": TEXT}))
    assert message.startswith(f"cannot read {path}, split train (")


def test_a_split_that_is_missing_is_not_made_of_another(own_data, tiny_weights):
    hub_folders.texts(own_data)
    shutil.copytree(tiny_weights, own_data, dirs_exist_ok=True)
    (own_data / "nyu-mll/glue/mrpc/validation-00000-of-00001.parquet").rename(own_data / "nyu-mll/glue/mrpc/dev.csv")
    assert "has no Parquet file of the split validation" in refused(bert.MRPC().splits)


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        (['{"text": "a"}', '{"text": "b'], "cannot read {}, split train (ArrowInvalid: JSON parse error"),
        (['{"text": "a"}', "", '{"text": "b"}', "3"], "cannot read {}, split train ("),
        (['{"text": "a"}', "", '{"text": null}'], "{}, split train, row 1, column text: is null"),
        (['{"text": "a"}', '{"words": "b"}'], "{}, split train, row 1, column text: is null"),
        (
            ['{"text": "a"}', '{"text": 3}'],
            "{}, split train, row 0, column text: is '\"a\"' (extension<arrow.json>), not",
        ),
        (
            ['{"text": "2020-01-01"}', '{"text": "2020-01-02"}'],
            "{}, split train, row 0, column text: is datetime.datet",
        ),
        (['{"content": "a"}'], "{}, split train, needs the column text: it has content"),
    ],
)
def test_json_lines_that_are_none_are_named(own_data, lines, what):
    path = own_data / "spacerini/gpt2-outputs/webtext.train.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(lines) + "\n")
    assert what.format(path) in refused(gpt2.GPT2().splits)


def test_texts_that_are_not_utf8_are_named(own_data):
    """Arrow's reader of JSON lets them pass."""
    path = own_data / "spacerini/gpt2-outputs/webtext.train.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes('{"text": "a"}\n{"text": "é"}\n'.encode("latin-1"))
    what = "row 1, column text: is not UTF-8 ('utf-8' codec can't decode byte 0xe9"
    assert f"{path}, split train, {what}" in refused(gpt2.GPT2().splits)


def test_data_that_are_too_few_are_not_the_tasks_fault(own_data, tiny_weights):
    path = own_data / "spacerini/gpt2-outputs/webtext.train.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text('{"text": "a"}\n' * 3)
    assert refused(gpt2.GPT2().splits) == f"{path} has 1 different texts: at least 3 are needed"
    path.write_text("")
    assert refused(gpt2.GPT2().splits) == f"cannot read {path}, split train (StopIteration): download it again"
    images(own_data, count=1)
    message = refused(lambda: tasks.load.__wrapped__("cifar10-resnet20"))
    assert message == "the data of task 'cifar10-resnet20' are too few: 0, 1, 1 examples to train, validate and test on"


def test_arrow_files_that_count_their_classes_otherwise_are_named(own_data):
    (own_data / "a/b").mkdir(parents=True)
    for i, names in enumerate((["neg", "pos"], ["pos", "neg"])):
        data = Dataset.from_dict({"label": [0, 1]}, features=Features({"label": ClassLabel(names=names)}))
        data.save_to_disk(own_data / names[0])
        saved = own_data / names[0] / "data-00000-of-00001.arrow"
        saved.rename(own_data / f"a/b/train-0000{i}-of-00002.arrow")
    message = refused(lambda: hub.load("a/b", "train", {"label": Classes(2)}))
    assert f"{own_data}/a/b/train-00001-of-00002.arrow, split train, column label: the classes are others" in message


def test_texts_as_json_lines_and_as_arrow_files_are_read(own_data):
    (own_data / "a/b").mkdir(parents=True)
    (own_data / "a/b/webtext.train.jsonl").write_text('\ufeff{"id": 1, "text": "one"}\n{"id": 2, "text": "two"}\n')
    assert list(hub.load("a/b", "train", {"text": TEXT}).values("text")) == ["one", "two"]
    datasets.DatasetDict(
        {split: Dataset.from_dict({"text": ["one", None]}) for split in ("train", "test")}
    ).save_to_disk(own_data / "c/d")
    message = refused(lambda: hub.load("c/d", "train", {"text": TEXT}))
    assert f"{own_data}/c/d/train/data-00000-of-00001.arrow, split train, row 1, column text: is null" in message


def test_files_of_two_kinds_are_not_mixed(own_data):
    for suffix in ("parquet", "jsonl"):
        (own_data / f"a/b/train.{suffix}").parent.mkdir(parents=True, exist_ok=True)
        (own_data / f"a/b/train.{suffix}").touch()
    assert "the split train 2 times (train.jsonl, train.parquet)" in refused(
        lambda: hub.load("a/b", "train", {"text": TEXT})
    )


def test_a_folder_that_has_something_else_is_not_passed_over(own_data):
    images(own_data)
    assert "has no Parquet file of the split valid" in refused(
        lambda: hub.load("uoft-cs/cifar10", "valid", {"img": TEXT})
    )
    assert "needs the column fine_label: it has img, label" in refused(
        lambda: hub.load("uoft-cs/cifar10", "train", {"img": TEXT, "fine_label": Classes(2)})
    )


@pytest.mark.parametrize(
    ("column", "what"),
    [("a", "row 0, column a: is 'x' (string), not a seq"), ("b", "row 1, column b: is ['x', None], not a sequence"),
     ("c", "row 0, column c: is [1.5] (list<"), ("d", "row 1, column d: is null")],
)  # fmt: skip
def test_sequences_that_are_none_are_named(own_data, column, what):
    (own_data / "a/b").mkdir(parents=True)
    rows = {"a": ["x", "y"], "b": [["x"], ["x", None]], "c": [[1.5], [2.0]], "d": [["x"], None]}
    Dataset.from_dict(rows).to_parquet(own_data / "a/b/train.parquet")
    assert what in refused(lambda: hub.load("a/b", "train", {column: WORDS}))


def test_what_is_wrong_with_data_is_one_line_on_the_command_line(own_data, capsys):
    from thalweg.commands import main as cli

    images(own_data, Value("string"), edit=lambda columns: columns.update(label=["cat"] * 6))
    tasks.load.cache_clear()  # of another test's data
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "cifar10-resnet20", "--steps", "1", "--batch-size", "2", "--out", str(own_data / "out")])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert [line for line in said.splitlines() if "error" in line][-1].endswith(
        "train-00000-of-00001.parquet, split train, row 0, column label: is 'cat' (string), not a whole number from 0 to 9"  # noqa: E501
    )
    assert "Traceback" not in said
