"""Published data and the paper's tasks, on a few rows of each data set in its real schema."""

import shutil
import sys
from pathlib import Path

import datasets
import hub_folders
import numpy as np
import pytest
import torch
from launching import on_ranks
from safetensors import torch as safetensors
from shrunk_tasks import SHRUNK
from torch import nn

import thalweg
from thalweg.lab import hub, tasks
from thalweg.lab.engine import RunSpec, train
from thalweg.lab.engine.augment import augmentation
from thalweg.lab.split import IMAGE
from thalweg.lab.tasks import bert, fashion_mnist, published_images
from thalweg.lab.tasks.base import fingerprint
from thalweg.lab.tasks.classification import Tagging, YesOrNo
from thalweg.lab.tasks.gpt2 import GPT2, MoE
from thalweg.lab.tasks.language import balance
from thalweg.records import files as records
from thalweg.records.errors import TaskFault, UserError

SETTINGS = {"lr": 0.01, "weight_decay": 0.01, "momentum": 0.9, "beta2": 0.99, "alpha": -0.5, "beta": 0.5}


def spec(name):
    return RunSpec(SHRUNK[name], 6, 2, "alto", SETTINGS, test=True, evaluations=2)


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    return hub_folders.folder(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def here(published, cache, monkeypatch):
    monkeypatch.setenv(hub.VARIABLE, str(published))
    monkeypatch.setenv(hub.ROWS, "any")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")
    return published


def history(folder):
    lines = records.read_lines(folder / "metrics.jsonl")
    result = records.read_json(folder / "result.json")
    assert result["status"] == "finished", result["reason"]
    numbers = [number for line in lines for number in (line["step"], line["loss"], line["validation"])]
    return [*numbers, result["test"], *result["test_metrics"].values()]


@pytest.mark.slow
def test_two_steps_of_each_task_are_the_same_on_one_process_and_on_two_with_shards(here, cache, tmp_path, monkeypatch):
    """Batch statistics, padding, tokens that count for nothing, routed tokens: nothing depends on how it is cut."""
    assert set(SHRUNK) == {name for name, task in tasks.TASKS.items() if task.download and name != "fashion-mnist"}
    for name in SHRUNK:
        train(spec(name), tmp_path / "one" / name)
    monkeypatch.setenv("HF_HOME", str(cache))
    on_ranks(2, [str(Path(__file__).with_name("on_two_ranks_hub.py")), str(tmp_path / "two")])
    for name in SHRUNK:
        assert history(tmp_path / "two" / name) == pytest.approx(history(tmp_path / "one" / name), rel=1e-4), name


@pytest.mark.parametrize("name", SHRUNK)
def test_splits_are_the_same_on_every_call_and_share_no_example(name, here):
    task, splits = tasks.load(SHRUNK[name])
    assert fingerprint(splits) == fingerprint(task.splits())

    def told(part):
        rows = [part[i][0] for i in range(len(part))]
        return {(row["input_ids"] if isinstance(row, dict) else row).numpy().tobytes() for row in rows}

    train, validation, test = (told(part) for part in splits)
    assert not train & validation
    assert not (train | validation) & test


# parameters of the published sizes, without the memory for them


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gpt2-345m", 354_823_168),  # openai-community/gpt2-medium
        ("conll2003-bert", 108_310_272 - 590_592 + 768 * 9 + 9),  # bert-base-cased, without its pooler, and the head
        ("mrpc-bert", 109_482_240 + 768 * 2 + 2),  # bert-base-uncased and the head
        ("minilm-mrpc", 22_713_216 + 384 * 2 + 2),  # all-MiniLM-L6-v2 and the head
        ("cifar10-resnet20", 269_722),
        ("imagenet-resnet50", 25_557_032),
    ],
)
def test_published_sizes(name, count):
    assert tasks.parameters(tasks.find(name)) == count


def test_the_mixture_has_85_billion_parameters_whose_experts_are_stacked():
    with torch.device("meta"):
        model = MoE().model()
    h, f, layers, experts, vocabulary = 2560, 1192, 24, 384, 50_257
    attention = 2 * h * h + 2 * h * (h // 5)
    expected = layers * (experts * 3 * h * f + experts * h + attention + 2 * h) + 2 * vocabulary * h + h
    assert sum(p.numel() for p in model.parameters()) == expected
    assert 84.5e9 < expected < 85.5e9
    stacked = [group for group in thalweg.param_groups(model) if group.get("norm_dims") == (-2, -1)]
    assert sum(p.numel() for group in stacked for p in group["params"]) == layers * experts * 3 * h * f
    assert all(p.shape[0] == experts for group in stacked for p in group["params"])


def test_the_largest_models_are_cut_into_blocks_by_shards():
    """FSDP2 gathers a block at a time: there must be some."""
    with torch.device("meta"):
        for task in (GPT2(), MoE()):
            assert [len(m) for m in task.model().modules() if isinstance(m, nn.ModuleList)] == [24]


# what is read


def test_images_are_scaled_to_the_published_mean_and_deviation(here):
    task, splits = tasks.load("cifar10-resnet20")
    data = datasets.Dataset.from_parquet(str(here / "uoft-cs/cifar10/plain_text/test-00000-of-00001.parquet"))
    pixels = np.asarray(data[3]["img"]).transpose(2, 0, 1) / 255.0
    expected = (pixels - np.array(task.mean)[:, None, None]) / np.array(task.deviation)[:, None, None]
    np.testing.assert_allclose(splits.test.inputs[3], expected, rtol=1e-5, atol=1e-6)
    assert splits.test.targets[3] == data[3]["label"]
    assert len(splits.train) + len(splits.validation) == 30


def test_photographs_are_cut_from_the_middle_at_the_two_sizes(here):
    _, splits = tasks.load("imagenet-resnet50")
    assert [tuple(part[0][0].shape) for part in splits] == [(3, 256, 256), (3, 224, 224), (3, 224, 224)]
    from PIL import Image

    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 256, 0).repeat(3, 2)
    assert np.array_equal(published_images.cropped(Image.fromarray(ramp), 224), ramp[16:240, 16:240])
    assert published_images.cropped(Image.fromarray(ramp[:50, :90]), 224).shape == (224, 224, 3)


def test_resized_crops_are_seven_eighths_of_the_size_and_change_nothing_else():
    flat = torch.arange(6.0).view(2, 3, 1, 1).expand(2, 3, 64, 64)
    found = augmentation("resized-crop-flip")(flat)
    assert found.shape == (2, 3, 56, 56)
    torch.testing.assert_close(found, flat[:, :, :56, :56])


def test_a_words_label_is_that_of_its_first_token(here):
    _, splits = tasks.load(SHRUNK["conll2003-bert"])
    data = datasets.Dataset.from_parquet(str(here / "lhoestq/conll2003/data/train-00000-of-00001.parquet"))
    for i in range(len(data)):
        counted = splits.train.targets[i][splits.train.targets[i] != -100].tolist()
        assert counted == data[i]["ner_tags"][: len(counted)]
        assert counted
    first = splits.train.targets[:, 0]
    assert (first == -100).all()  # [CLS]


def test_other_weights_under_the_same_name_make_another_run(here, own_data, monkeypatch):
    """A checkpoint of a run from other weights is not this run's, nor is its result."""
    monkeypatch.setenv(hub.VARIABLE, str(here))
    monkeypatch.setattr(tasks, "data_hash", tasks.data_hash.__wrapped__)
    before = tasks.data_hash(SHRUNK["mrpc-bert"])
    assert tasks.data_hash(SHRUNK["mrpc-bert"]) == before
    for name in ("nyu-mll", "google-bert"):
        shutil.copytree(here / name, own_data / name)
    monkeypatch.setenv(hub.VARIABLE, str(own_data))
    assert tasks.data_hash(SHRUNK["mrpc-bert"]) == before  # wherever they are
    path = own_data / "google-bert/bert-base-uncased/model.safetensors"
    state = safetensors.load_file(path)
    state["encoder.layer.1.output.dense.bias"][0] += 1e-3
    safetensors.save_file(state, path, {"format": "pt"})
    assert tasks.data_hash(SHRUNK["mrpc-bert"]) != before
    monkeypatch.setattr(bert.MRPC, "pretrained", lambda self: 1 / 0)
    with pytest.raises(TaskFault, match=r"failed in pretrained\(\)"):
        tasks.data_hash(SHRUNK["mrpc-bert"])


def test_weights_that_lack_more_than_a_head_are_refused_others_are_read_in_silence(here, own_data, monkeypatch, capfd):
    shutil.copytree(here / "google-bert", own_data / "google-bert")
    monkeypatch.setenv(hub.VARIABLE, str(own_data))
    capfd.readouterr()
    bert.MRPC().model()
    assert capfd.readouterr() == ("", "")
    path = own_data / "google-bert/bert-base-uncased/model.safetensors"
    state = safetensors.load_file(path)
    del state["encoder.layer.1.output.dense.bias"]
    safetensors.save_file(state, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"bert-base-uncased lack bert\.encoder\.layer\.1\.output\.dense\.bias$"):
        bert.MRPC().model()


def test_reviews_that_are_published_twice_stand_in_one_split(here):
    _, splits = tasks.load(SHRUNK["imdb-bert"])
    assert [len(part) for part in splits] == [18, 2, 8]  # of 22, one twice and one in the test set


def test_windows_are_the_texts_one_after_another(here):
    task, splits = tasks.load(SHRUNK["gpt2-345m"])
    rows = [splits.train[i] for i in range(len(splits.train))]
    assert all(torch.equal(a[1:], b[:-1]) for a, b in rows)
    tokens = [*torch.cat([a for a, _ in rows]).tolist(), rows[-1][1][-1].item()]
    text = task.tokenizer().decode(tokens)
    assert text.count("<|endoftext|>") in (9, 10)
    known = datasets.Dataset.from_parquet(str(next((here / "spacerini").rglob("*.parquet"))))["text"]
    assert all(part in set(known) for part in text.split("<|endoftext|>")[:-1])


def test_fashion_mnist_is_read_from_the_hubs_folder_too(here, monkeypatch, tmp_path):
    monkeypatch.delenv(fashion_mnist.VARIABLE, raising=False)
    monkeypatch.setattr(fashion_mnist, "FOLDER", tmp_path)
    images, labels = fashion_mnist._load("test")
    assert (images.shape, labels.tolist()) == ((8, 1, 28, 28), [*range(8)])


# what is not there


def test_data_that_are_nowhere_are_one_error_that_says_what_to_fetch(monkeypatch, tmp_path):
    monkeypatch.setenv(hub.VARIABLE, str(tmp_path))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: 1 / 0)
    expected = f"hf download --repo-type dataset uoft-cs/cifar10 --local-dir {tmp_path}/uoft-cs/cifar10"
    with pytest.raises(UserError, match="cannot get the data uoft-cs/cifar10") as error:
        tasks.find("cifar10-resnet20").splits()
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_that_are_nowhere_are_one_error_that_says_what_to_fetch(monkeypatch, tmp_path):
    monkeypatch.delenv(hub.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)

    class Kind:
        @staticmethod
        def from_pretrained(name, **_):
            raise OSError(f"no {name}\nand much more")

    message = (
        r"cannot get the weights and tokenizer google-bert/b: hf download google-bert/b --local-dir DIR/google-bert/b, "
        r"with THALWEG_DATA=DIR \(OSError: no google-bert/b\)$"
    )
    with pytest.raises(UserError, match=message):
        hub.pretrained(Kind, "google-bert/b")


@pytest.mark.parametrize(
    ("name", "task", "tokens"),
    [
        ("google-bert/bert-base-uncased", bert.MRPC, "5 tokens, not 124"),
        ("openai-community/gpt2", GPT2, "257 tokens, not"),
    ],
)
def test_a_tokenizer_of_other_words_is_refused(tiny_weights, monkeypatch, tmp_path, name, task, tokens):
    """Where its files are missing, BERT's would read each word as the one for unknown words."""
    monkeypatch.setenv(hub.VARIABLE, str(tmp_path))
    shutil.copytree(tiny_weights / name, tmp_path / name)
    if task is bert.MRPC:
        task().tokenizer()
        for path in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
            (tmp_path / name / path).unlink()
    with pytest.raises(UserError, match=f"the tokenizer of {tmp_path}/{name} has {tokens}.*: hf download {name} "):
        task().tokenizer()


def test_without_the_library_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"uoft-cs/cifar10 needs the datasets library: pip install 'thalweg\[hub\]'"):
        hub.load("uoft-cs/cifar10", "train", {"img": IMAGE})


# what is measured


def test_f1_precision_and_recall_are_scikit_learns():
    from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

    rng = np.random.default_rng(0)
    predicted, right = rng.integers(0, 2, (2, 50))
    scores = torch.from_numpy(np.stack([predicted, right], 1))
    task = type("Some", (YesOrNo,), {"splits": None, "model": None})()
    assert task.combine(scores) == pytest.approx(100 * accuracy_score(right, predicted))
    measures = (f1_score, precision_score, recall_score)
    assert list(task.more(scores).values()) == pytest.approx([100 * one(right, predicted) for one in measures])
    assert task.more(torch.zeros(3, 2)) == {"F1": 0.0, "precision": 0.0, "recall": 0.0}


class Tagger(Tagging):
    labels = ("O", "B-X", "I-X")
    splits = model = None


def test_f1_counts_whole_spans():
    """Three spans to find: one found, one cut short, one missed; two predicted. What is padding counts for nothing."""
    right = torch.tensor([[1, 2, 0, 1, 2], [1, 0, 0, -100, -100]])
    predicted = torch.tensor([[1, 2, 0, 1, 0], [0, 0, 0, 1, 1]])
    output = nn.functional.one_hot(predicted, 3).float()
    task = Tagger()
    scores = task.score(output, right)
    assert task.combine(scores) == pytest.approx(100 * 2 / 5)
    assert task.more(scores) == pytest.approx({"precision": 50.0, "recall": 100 / 3, "accuracy": 75.0})


def test_the_loss_of_tags_is_the_mean_over_examples_of_their_means():
    torch.manual_seed(0)
    output, target = (
        torch.randn(3, 5, 3),
        torch.tensor([[1, 2, 0, 1, 2], [1, -100, -100, -100, -100], [0, 0, -100, 1, 1]]),
    )
    each = [nn.functional.cross_entropy(output[i][target[i] != -100], target[i][target[i] != -100]) for i in range(3)]
    torch.testing.assert_close(Tagger().loss(output, target), sum(each) / 3)


def test_balance_is_transformers_for_one_text_and_layer():
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits = torch.randn(1, 12, 8)
    torch.testing.assert_close(balance(logits, 2)[0], load_balancing_loss_func((logits[0],), 8, 2))
    assert balance(torch.zeros(1, 4, 8), 2).item() == pytest.approx(2.0)
