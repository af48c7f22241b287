"""Which files of a folder of data are a split: all that belong to it, once, with the published number of rows."""

import shutil

import hub_folders
import pytest
from hub_folders import CIFAR, images, refused
from PIL import Image
from shrunk_tasks import SHRUNK

from thalweg.lab import hub, tasks
from thalweg.lab.split import fetch
from thalweg.lab.tasks import bert, fashion_mnist, gpt2, published_images
from thalweg.records.errors import UserError


def test_a_shard_that_is_missing_is_named(own_data):
    images(own_data)
    folder = own_data / CIFAR
    shutil.move(folder / "train-00000-of-00001.parquet", folder / "train-00000-of-00002.parquet")
    message = refused(published_images.CIFAR10ResNet20().splits)
    assert f"{folder.parent}, split train, needs 2 files, each number once" in message
    assert "it has train-00000-of-00002.parquet; download it again" in message


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train-00001-of-00003"], r"needs 3 files, .*: it has train-00001-of-00003.parquet; download"),
        (["train-00000-of-00002", "train-00002-of-00002"], r"needs 2 files"),
        (["train-00000-of-00002-0a", "train-00000-of-00002-0b"], r"needs 2 files, each number once"),
        (["train-00000-of-00001-0a1b2c", "train-00000-of-00001-ff01"], r"needs 1 files, each number once"),
        (["train-00000-of-00001", "train/0000"], r"the split train 2 times \(.*keep one"),
        (["train-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"], r"the split train 2 times"),
        (["a/train-00000-of-00001", "b/train-00000-of-00001"], r"the split train 2 times"),
        (["webtext.train", "xl-1542M.train"], r"the split train 2 times"),
        (["a/train", "b/train", "c/train", "d/train"], r"the split train 4 times \(a/\S+, b/\S+, c/\S+\): keep"),
    ],
)  # fmt: skip
def test_files_that_are_not_the_split_once_and_whole(own_data, names, message):
    paths = [own_data / f"{name}.parquet" for name in names]
    with pytest.raises(UserError, match=message):
        hub.check_whole(sorted(paths), own_data, "train")


@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00002-a20af9e372ba5451", "train-00001-of-00002-b16feb26a5ecb9f3"],
        ["train-1-of-2", "train-2-of-2"],
        ["train/0000", "train/0001"],
        ["train-1", "train-2"],
        ["webtext.train"],
        ["parquet-train-2023"],
    ],
)
def test_files_that_are(own_data, names):
    hub.check_whole(sorted(own_data / f"{name}.parquet" for name in names), own_data, "train")


def test_a_split_is_a_word_of_a_files_name_or_its_folder(own_data):
    names = ["a/train-00000-of-00002.parquet", "b/train/0000.parquet", "a/test.parquet", "retrain-0.parquet",
             "webtext.train.jsonl", "train.txt", "a/valid.parquet", ".cache/train.parquet"]  # fmt: skip
    for name in names:
        (own_data / name).parent.mkdir(exist_ok=True, parents=True)
        (own_data / name).touch()

    def found(*args):
        return [path.relative_to(own_data).as_posix() for path in hub.files_of(own_data, *args)]

    assert found("train") == [names[0], names[1], names[4]]
    assert found("train", "a") == [names[0]]
    assert found("train", "c") == [names[4]]  # a and b are other configurations
    assert found("validation") == [names[6]]


def test_another_configuration_is_not_taken_for_the_one_that_is_not_there(own_data):
    """GLUE's RTE has the columns of MRPC."""
    hub_folders.texts(own_data)
    (own_data / "nyu-mll/glue/mrpc").rename(own_data / "nyu-mll/glue/rte")
    message = refused(bert.MRPC().splits)
    assert "has no Parquet file of the split train" in message
    assert "it has rte/train-00000-of-00001.parquet: hf download" in message


@pytest.mark.parametrize("name", ["train-test", "my.test-train-2024", "valid_train"])
def test_a_file_that_is_named_for_two_splits_is_neither(own_data, name):
    """Or the same rows were trained on and tested."""
    images(own_data, splits=("train",))
    path = own_data / CIFAR / f"{name}.parquet"
    (own_data / CIFAR / "train-00000-of-00001.parquet").rename(path)
    message = refused(published_images.CIFAR10ResNet20().splits)
    assert message.startswith(f"{path} is named for the splits train and ")


def test_a_files_own_name_counts_before_its_folders(own_data):
    images(own_data)
    folder = own_data / CIFAR
    (folder / "train").mkdir()
    for split in ("train", "test"):
        (folder / f"{split}-00000-of-00001.parquet").rename(folder / f"train/{split}.parquet")
    assert [path.name for path in hub.files_of(folder, "train")] == ["train.parquet"]
    assert [path.name for path in hub.files_of(folder, "test")] == ["test.parquet"]


@pytest.mark.parametrize("task", [published_images.CIFAR10ResNet20, published_images.ImageNetResNet34])
def test_a_folders_name_is_no_pattern(own_data, monkeypatch, task):
    for name, count in (("a * [b]", 6), ("a large [b]", 9), ("a large b", 9)):
        images(own_data / name, count=count)
        for split in ("train", "val"):
            for kind in ("n01440764", "n01443537"):
                folder = own_data / name / "ILSVRC/imagenet-1k" / split / kind
                folder.mkdir(parents=True)
                for i in range(count // 3):
                    Image.new("RGB", (9, 9)).save(folder / f"{i}.png")
    monkeypatch.setenv(hub.VARIABLE, str(own_data / "a * [b]"))
    train, validation, test = task().splits()
    assert (len(train) + len(validation), len(test)) == ((6, 6) if task.images == "img" else (4, 4))


def test_files_behind_links_count_and_a_link_to_nothing_is_named(own_data, tmp_path_factory):
    images(own_data)
    folder = own_data / CIFAR
    other = tmp_path_factory.mktemp("other") / "there"
    folder.rename(other)
    folder.symlink_to(other)
    assert len(published_images.CIFAR10ResNet20().splits().test) == 6
    path = folder / "test-00000-of-00001.parquet"
    path.unlink()
    path.symlink_to(other / "nothing")
    assert f"cannot read {path}, split test (" in refused(published_images.CIFAR10ResNet20().splits)


def test_what_may_not_be_read_is_one_error(own_data, monkeypatch):
    """Root may read all, so that the system's answer is put on."""
    images(own_data)

    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("os.scandir", refuse)
        message = refused(lambda: hub.files_of(own_data / CIFAR, "train"))
    assert message == f"cannot read {own_data / CIFAR} (Permission denied)"
    monkeypatch.setattr("pathlib.Path.is_dir", refuse)
    message = refused(lambda: tasks.load.__wrapped__("cifar10-resnet20"))
    assert message.startswith(f"cannot read {own_data}/uoft-cs/cifar10 (Permission denied), which task 'cifar10")


@pytest.mark.parametrize(
    ("root", "said"),
    [
        ("", "--local-dir DIR/a/b, with THALWEG_DATA=DIR"),
        ("/my data/", "--local-dir '/my data/a/b'"),
        ("/data", "--local-dir /data/a/b"),
    ],
)
def test_the_command_that_fetches_can_be_pasted(monkeypatch, root, said):
    monkeypatch.setenv(hub.VARIABLE, root)
    assert fetch("a/b") == f"hf download --repo-type dataset a/b {said}"


def test_the_number_of_rows_is_the_published_one_unless_it_is_meant(own_data, monkeypatch, tiny_weights):
    monkeypatch.delenv(hub.ROWS)
    hub_folders.published_images(own_data)
    hub_folders.texts(own_data)
    shutil.copytree(tiny_weights, own_data, dirs_exist_ok=True)
    counts = {"cifar10-resnet20": "30 rows, not 50,000", "cifar100-vgg16": "30 rows, not 50,000",
              "imagenet-resnet50": "16 rows, not 1,281,167", "conll2003-bert": "12 rows, not 14,041",
              "imdb-bert": "22 rows, not 25,000", "mrpc-bert": "12 rows, not 3,668",
              "gpt2-345m": "14 rows, not 2,340,000 or 250,000"}  # fmt: skip
    for name, count in counts.items():
        message = refused(tasks.find(SHRUNK[name]).splits)
        assert f"split train, has {count}: hf download" in message
        assert message.endswith("or set THALWEG_DATA_ROWS=any if this is intended")
    monkeypatch.setenv(hub.ROWS, "some")
    assert "THALWEG_DATA_ROWS must be 'any' or unset, got 'some'" in refused(tasks.find("imdb-bert").splits)


@pytest.mark.parametrize(("split", "published"), [("train", 30), ("test", 8)])
def test_every_split_is_counted(own_data, monkeypatch, split, published):
    monkeypatch.delenv(hub.ROWS)
    hub_folders.published_images(own_data)
    task = published_images.CIFAR10ResNet20()
    monkeypatch.setattr(published_images.CIFAR, "published", {"train": (30,), "test": (8,)})
    assert [len(part) for part in task.splits()] == [27, 3, 8]
    monkeypatch.setattr(published_images.CIFAR, "published", {"train": (30,), "test": (8,), split: (published + 1,)})
    assert f"split {split}, has {published} rows, not {published + 1}" in refused(task.splits)


def test_the_published_numbers_of_rows():
    assert published_images.CIFAR.published == {"train": (50_000,), "test": (10_000,)}
    assert published_images.ImageNet.published == {"train": (1_281_167,), "validation": (50_000,)}
    assert bert.CoNLL2003.published == {"train": (14_041,), "validation": (3250,), "test": (3453,)}
    assert bert.MRPC.published == {"train": (3668,), "validation": (408,), "test": (1725,)}
    assert fashion_mnist.PUBLISHED == {"train": (60_000,), "test": (10_000,)}
    assert gpt2.GPT2.published == (2_340_000, 250_000)
    for name in ("cifar10-resnet20", "imagenet-resnet50"):
        task = tasks.TASKS[name]
        kept = task.kept if name.startswith("imagenet") else 5000
        assert task.published_examples == task.published["train"][0] - kept
