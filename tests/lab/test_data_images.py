"""Images of one's own: each mode and size, what cannot be decoded, and the form of their first publication."""

import gzip
import shutil

import hub_folders
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Image
from hub_folders import CIFAR, images, refused, stored
from PIL import Image as PILImage

from thalweg.lab import hub
from thalweg.lab.engine.data import loader
from thalweg.lab.split import IMAGE
from thalweg.lab.tasks import fashion_mnist, published_images
from thalweg.records.errors import UserError

# images


def put(place, image):
    return lambda columns: columns["img"].__setitem__(place, image)


@pytest.mark.parametrize(
    ("image", "what"),
    [
        ({"bytes": stored(PILImage.new("RGB", (32, 32)))["bytes"][:50], "path": None}, "the image cannot be decoded"),
        ({"bytes": b"<html>", "path": None}, "the image cannot be decoded (of no known format)"),
        ({"bytes": b"", "path": None}, "the image cannot be decoded (of no known format)"),
        (stored(PILImage.new("RGB", (32, 30))), "is an image of 32x30 pixels, not 32x32"),
        (stored(PILImage.new("I;16", (32, 32))), "is an image of mode I;16: 8 bits a channel are needed"),
        (None, "is null"),
    ],
)
def test_images_that_are_none_are_named(own_data, image, what):
    images(own_data, edit=put(4, image))
    path = own_data / CIFAR / "train-00000-of-00001.parquet"
    message = refused(published_images.CIFAR10ResNet20().splits)
    assert f"{path}, split train, row 4, column img: {what}" in message


def test_images_of_any_mode_are_their_colours(own_data, monkeypatch):
    """A palette's numbers are no brightness, nor is a third channel another image."""
    monkeypatch.setattr(fashion_mnist, "FOLDER", own_data)
    monkeypatch.delenv(fashion_mnist.VARIABLE, raising=False)
    colour, grey = PILImage.new("RGB", (32, 32), (10, 200, 90)), PILImage.new("L", (32, 32), 77)
    modes = [grey, grey.convert("RGB"), grey.convert("RGBA"), grey.convert("P"), grey.quantize(4)]
    small = [image.resize((28, 28), PILImage.Resampling.NEAREST) for image in modes]
    hub_folders.write(own_data, "zalando-datasets/fashion_mnist", "test", {"image": small, "label": [*range(5)]},
                      {"image": Image(), "label": ClassLabel(num_classes=10)})  # fmt: skip
    pixels, labels = fashion_mnist._load("t10k")
    assert labels.tolist() == [*range(5)]
    torch.testing.assert_close(pixels, torch.full((5, 1, 28, 28), 77 / 127.5 - 1.0))
    modes = [grey, colour, colour.convert("RGBA"), colour.quantize(4)]
    images(own_data, edit=lambda columns: columns["img"].__setitem__(slice(0, 4), modes))
    found = hub.load("uoft-cs/cifar10", "test", {"img": IMAGE}).pictures("img", "RGB", (32, 32))
    assert found[:4, 5, 9].tolist() == [[77] * 3, *[[10, 200, 90]] * 3]


def test_photographs_that_are_read_while_training_are_named_by_workers_too(own_data):
    hub_folders.published_images(own_data)
    broken = [*hub_folders.pictures(3, (90, 120), 0), {"bytes": b"no image", "path": None}]
    hub_folders.write(own_data, "ILSVRC/imagenet-1k/data", "validation", {"image": broken, "label": [*range(4)]},
                      {"image": Image(), "label": hub_folders.numbered(1000)})  # fmt: skip
    test = published_images.ImageNetResNet50().splits().test
    assert test[2][1] == 2
    expected = "data/validation-00000-of-00001.parquet, split validation, row 3, column image: the image cannot be"
    for workers in (0, 1):
        assert expected in refused(lambda: [*loader(test, iter([[2, 3]]), workers)])  # noqa: B023


def test_photographs_keep_their_labels_and_name_their_classes_in_one_order(own_data):
    hub_folders.published_images(own_data)  # labelled by their rows
    task = published_images.ImageNetResNet34()
    train, validation, _ = task.splits()
    kept = [[int(part[i][1]) for i in range(len(part))] for part in (train, validation)]
    assert kept == [part.rows.tolist() for part in (train, validation)]
    assert sorted([*kept[0], *kept[1]]) == [*range(16)]
    others = [published_images.DecodedImages(train.split, rows, 256) for rows in (train.rows, train.rows.flip(0))]
    assert others[0]._fingerprint == train._fingerprint != others[1]._fingerprint
    names = [f"class {i}" for i in range(1000)][::-1]
    hub_folders.write(own_data, "ILSVRC/imagenet-1k/data", "validation",
                      {"image": hub_folders.pictures(2, (40, 40), 0), "label": [0, 1]},
                      {"image": Image(), "label": ClassLabel(names=names)})  # fmt: skip
    assert "the splits train and validation have their classes in other orders: take" in refused(task.splits)


def test_an_image_without_bytes_and_path_is_null(own_data):
    (own_data / "a/b").mkdir(parents=True)
    rows = [stored(PILImage.new("RGB", (2, 2))), {"bytes": None, "path": None}]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"img": pa.array(rows, kind)}), own_data / "a/b/train.parquet")
    message = refused(lambda: hub.load("a/b", "train", {"img": IMAGE}))
    assert message.endswith("train.parquet, split train, row 1, column img: is null")


def test_images_as_bytes_alone_are_read_in_each_of_arrows_types(own_data):
    data = stored(PILImage.new("RGB", (2, 2), (9, 8, 7)))["bytes"]
    for kind in ("binary", "large_binary"):
        folder = own_data / "a" / kind
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"img": pa.array([data], getattr(pa, kind)())}), folder / "train.parquet")
        found = hub.load(f"a/{kind}", "train", {"img": IMAGE})
        assert found.pictures("img", "RGB", (2, 2))[0, 1, 1].tolist() == [9, 8, 7]


def test_imagenet_is_read_as_its_archives_are_unpacked(own_data):
    for split, count in (("train", 5), ("val", 2)):
        for kind in ("n01440764", "n01443537"):
            folder = own_data / "ILSVRC/imagenet-1k" / split / kind
            folder.mkdir(parents=True)
            for i, image in enumerate(hub_folders.pictures(count, (60, 60), 0)):
                image.save(folder / f"{kind}_{i}.JPEG")
    train, validation, test = published_images.ImageNetResNet34().splits()
    assert (len(train), len(validation)) == (8, 2)
    assert [test[i][1] for i in range(4)] == [0, 0, 1, 1]
    table = own_data / "ILSVRC/imagenet-1k/train/metadata.csv"  # of which datasets would take the labels
    table.write_text("file_name,label\nn01440764/n01440764_0.JPEG,5\n")
    again = published_images.ImageNetResNet34().splits()
    assert [int(label) for label in again.train.labels] == [0] * 5 + [1] * 5
    (own_data / "ILSVRC/imagenet-1k/val/n01443537/n01443537_1.JPEG").write_bytes(b"no image")
    test = published_images.ImageNetResNet34().splits().test
    assert "val/n01443537/n01443537_1.JPEG cannot be decoded" in refused(lambda: test[3])
    shutil.copytree(own_data / "ILSVRC/imagenet-1k/val", own_data / "ILSVRC/imagenet-1k/validation")
    assert "holds the split validation 2 times (validation, val): keep one" in refused(
        published_images.ImageNetResNet34().splits
    )
    shutil.rmtree(own_data / "ILSVRC/imagenet-1k/validation")
    shutil.rmtree(own_data / "ILSVRC/imagenet-1k/val/n01443537")
    assert "the splits train and validation have classes that the other has not, such as n01443537" in refused(
        published_images.ImageNetResNet34().splits
    )
    shutil.rmtree(own_data / "ILSVRC/imagenet-1k/val")
    (own_data / "ILSVRC/imagenet-1k/val").mkdir()
    hub_folders.pictures(1, (60, 60), 0)[0].save(own_data / "ILSVRC/imagenet-1k/val/ILSVRC2012_val_00000001.JPEG")
    assert "such as ILSVRC2012_val_00000001.JPEG, but no folder for each class" in refused(
        published_images.ImageNetResNet34().splits
    )


def test_splits_that_count_their_classes_otherwise_are_not_mixed(own_data):
    names = [f"class {i}" for i in range(10)]
    images(own_data, ClassLabel(names=names), splits=("train",))
    images(own_data, ClassLabel(names=names[::-1]), splits=("test",))
    assert "column label: the splits train and test have their classes in other orders" in refused(
        published_images.CIFAR10ResNet20().splits
    )


def idx(values):
    values = np.asarray(values, np.uint8)
    return np.array([0x800 + values.ndim, *values.shape], ">i4").tobytes() + values.tobytes()


@pytest.mark.parametrize(
    ("images", "labels", "what"),
    [
        (idx(np.zeros((3, 28, 28)))[:-1], idx([1, 2, 3]), r"cannot read .*images.*not an IDX file of 3 axes, or"),
        (idx([1, 2, 3]), idx([1, 2, 3]), r"cannot read .*images.*not an IDX file of 3 axes"),
        (idx(np.zeros((3, 28, 28))), b"\0\0\x0d\1" + idx([1, 2, 3])[4:], r"labels.*not an IDX file of 1 axes"),
        (idx(np.zeros((3, 28, 28))), idx([1, 2]), r"has 3 images, .* 2 labels"),
        (idx(np.zeros((3, 28, 28))), idx([1, 10, 3]), r"labels.*, split train, row 1: 10 is not a class from 0 to 9"),
        (idx(np.zeros((3, 14, 56))), idx([1, 2, 3]), r"has images of 14x56 pixels, not 28x28"),
    ],
)  # fmt: skip
def test_idx_files_that_are_none_are_named(own_data, monkeypatch, images, labels, what):
    monkeypatch.setenv(fashion_mnist.VARIABLE, str(own_data))
    for kind, data in (("images-idx3", images), ("labels-idx1", labels)):
        (own_data / f"train-{kind}-ubyte.gz").write_bytes(gzip.compress(data))
    with pytest.raises(UserError, match=what):
        fashion_mnist._load("train")


def test_idx_files_are_read_unpacked_and_in_the_hubs_folder(own_data, monkeypatch):
    monkeypatch.delenv(fashion_mnist.VARIABLE, raising=False)
    folder = own_data / fashion_mnist.HUB
    folder.mkdir(parents=True)
    pixels = np.arange(24 * 784).reshape(24, 28, 28) % 256
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(pixels))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx([i % 10 for i in range(24)]))
    train, validation, test = fashion_mnist.FashionMNIST().splits()
    assert [len(part) for part in (train, validation, test)] == [22, 2, 24]
    assert validation.targets.tolist() == [2, 3]
    np.testing.assert_allclose(train.inputs[5, 0], pixels[5] / 127.5 - 1.0, atol=1e-6)
    np.testing.assert_allclose(validation.inputs[:, 0], pixels[22:] / 127.5 - 1.0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("fashion_mnist/test-00001-of-00002.parquet", "needs 2 files, each number once"),
        ("train-images-idx3-ubyte", "has no Parquet file of the split test"),
    ],
)
def test_a_folder_of_ones_own_is_not_completed_from_debians(own_data, tmp_path, monkeypatch, name, what):
    debians, own = tmp_path / "debians", own_data / fashion_mnist.HUB / name
    for part in (debians, own.parent):
        part.mkdir(parents=True)
    (debians / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros((3, 28, 28)))))
    (debians / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx([1, 2, 3])))
    monkeypatch.setattr(fashion_mnist, "FOLDER", debians)
    monkeypatch.delenv(fashion_mnist.VARIABLE, raising=False)
    own.touch()
    assert what in refused(lambda: fashion_mnist._load("t10k"))
    monkeypatch.setenv(hub.VARIABLE, str(tmp_path / "nothing here"))
    assert fashion_mnist._load("t10k")[1].tolist() == [1, 2, 3]


@pytest.mark.parametrize("packed", [True, False])
def test_mnist_in_the_place_of_fashion_mnist_is_refused(own_data, monkeypatch, packed):
    """Its files have the same names, shapes and sizes; the labels differ."""
    mnist = {"train": [5, 0, 4, 1, 9, 2, 1, 3, 1, 4, 3, 5], "t10k": [7, 2, 1, 0, 4, 1, 4, 9, 5, 9, 0, 6]}
    monkeypatch.setattr(fashion_mnist, "PUBLISHED", {"train": (12,), "test": (12,)})
    monkeypatch.setenv(fashion_mnist.VARIABLE, str(own_data))

    def write(labels):
        for part, own in labels.items():
            for kind, data in (("images-idx3", np.zeros((12, 28, 28))), ("labels-idx1", own)):
                path = own_data / f"{part}-{kind}-ubyte{'.gz' * packed}"
                path.write_bytes(gzip.compress(idx(data)) if packed else idx(data))

    write(mnist)
    assert len(fashion_mnist.FashionMNIST().splits().test) == 12  # any rows are welcome here
    monkeypatch.delenv(hub.ROWS)
    for part, split in (("train", "train"), ("t10k", "test")):
        message = refused(lambda part=part: fashion_mnist._load(part))
        assert (
            f"-labels-idx1-ubyte{'.gz' * packed}, split {split}, is not Fashion-MNIST: its first labels are ["
            in message
        )
        assert message.endswith("or set THALWEG_DATA_ROWS=any if this is intended")
    write({part: [*fashion_mnist.FIRST_LABELS[split], 0, 1] for part, split in (("train", "train"), ("t10k", "test"))})
    assert len(fashion_mnist.FashionMNIST().splits().test) == 12
