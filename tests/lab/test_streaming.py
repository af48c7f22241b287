"""Training data that are read as they come: each pass complete, resumed bit for bit, and little of them in memory."""

import os
import shutil
import string
import tracemalloc
from dataclasses import replace
from itertools import islice
from pathlib import Path

import datasets
import hub_folders
import numpy as np
import pyarrow
import pytest
import torch
from hub_folders import refused
from launching import on_ranks
from lines import ADAMW, content, kept, saved

from thalweg.lab import streams, tasks
from thalweg.lab.engine import Execution, RunSpec, Stopped, reader, train
from thalweg.lab.instruments import Panel
from thalweg.lab.split import TEXT
from thalweg.lab.tasks import Stream
from thalweg.lab.tasks.base import fingerprint

NAME = "spacerini/gpt2-outputs"
SPEC = RunSpec("shrunk_tasks:GPT2", 8, 9, "adamw", ADAMW, seed=3, test=True, evaluations=3, streaming=True)
PARTED = Execution(micro_batch=3)


def path_of(root, i, count, form="parquet"):
    return root / NAME / "data" / f"train-{i:05d}-of-{count:05d}.{form}"


def files(root, count, columns, form="parquet", rows_in_group=4):
    """Files of a training set; ``columns`` of the number of each."""
    (root / NAME / "data").mkdir(parents=True, exist_ok=True)
    for i in range(count):
        path, data = path_of(root, i, count, form), datasets.Dataset.from_dict(columns(i))
        if form == "parquet":
            data.to_parquet(path, batch_size=rows_in_group)
        elif form == "jsonl":
            data.to_json(path)
        else:
            with pyarrow.ipc.new_stream(path, data.data.schema) as stream:
                stream.write_table(data.data.table)


def words(i):
    rng = np.random.default_rng(i)
    return {"text": [" ".join("".join(rng.choice([*string.ascii_letters], 4)) for _ in range(20)) for _ in range(5)]}


def numbers(i):
    """Texts that are numbers, 7 a file: files, groups of rows, batches and ``map`` end in different places."""
    return {"text": [str(7 * i + k) for k in range(7)]}


@pytest.fixture
def texts(own_data, tiny_weights):
    """Seven files to stream, of which the last is held out."""
    shutil.copytree(tiny_weights, own_data, dirs_exist_ok=True)
    files(own_data, 7, words)
    for cached in (tasks.load, tasks.data_hash):
        cached.cache_clear()
    return own_data


def counted(mapped=None):
    """The stream of what :func:`numbers` wrote, each twice, by ``map``; ``mapped`` is told what that was given."""
    found = streams.stream(NAME, "train", {"text": TEXT})

    def twice(batch):
        found.check(batch)
        if mapped is not None:
            mapped.extend(batch["text"])
        return {"n": [2 * int(text) + k for text in batch["text"] for k in range(2)]}

    rows = found.data.map(twice, batched=True, batch_size=3, remove_columns=["text"])
    return Stream(rows, lambda row: (row["n"], 0), found.place, found.identity)


OWN = """
from datasets import Dataset
from small_tasks import Line
from thalweg.lab.tasks import Rows, Splits, Stream

class Own(Line):
    def stream(self):
        train, *scored = Line.splits(self)
        table = Dataset.from_dict({"x": train.inputs.tolist(), "y": train.targets.tolist()})
        rows = table.to_iterable_dataset(num_shards=4).with_format("torch")
        stream = Stream(rows, lambda row: (row["x"], row["y"]), "a table", "first")
"""


def drawn(batches, count):
    return [batch[0].tolist() for batch in islice(batches, count)]


@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (0, 2), (1, 2), (3, 4)])
def test_wherever_it_is_interrupted_what_follows_is_the_same(rank, ranks, own_data):
    """In the middle of files, of groups of rows, of what ``map`` made of a row, and of a later pass."""
    files(own_data, 7, numbers)
    stream, sizes, steps = counted(), [2, 1], 70 // ranks
    whole = drawn(reader.Reader(stream, 5, rank, ranks).batches(sizes), 2 * steps)
    states = [reader.Reader(stream, 5, rank, ranks).state_dict()]
    before = reader.Reader(stream, 5, rank, ranks)
    batches = before.batches(sizes)
    for _ in range(steps):
        drawn(batches, 2)
        states.append(before.state_dict())
    assert {state["turn"] for state in states} >= {0, 1, 2}
    for step, state in enumerate(states):
        after = reader.Reader(stream, 5, rank, ranks)
        after.resume([state if k == rank else None for k in range(ranks)])
        assert drawn(after.batches(sizes), 2 * (steps - step)) == whole[2 * step :], step


@pytest.mark.parametrize(("ranks", "form"), [(1, "parquet"), (2, "jsonl"), (4, "parquet"), (6, "arrow")])
def test_processes_share_out_every_pass_and_each_pass_has_an_order_of_its_own(ranks, form, own_data):
    files(own_data, 7, numbers, form)
    stream = counted()
    shares = [reader.Reader(stream, 5, rank, ranks) for rank in range(ranks)]
    passes = []
    for turn in range(3):
        found = []
        for share in shares:
            share._turn_to(turn)
            found.append([row["n"] for row in share.rows])
        assert sorted(n for one in found for n in one) == [*range(84)]
        passes.append(found)
    assert passes[0] != passes[1] != passes[2] != passes[0]
    other = [[row["n"] for row in reader.Reader(stream, 6, rank, ranks).rows] for rank in range(ranks)]
    assert passes[0] != other
    files_of = [{n // 14 for n in one} for one in passes[0]]
    assert sum(map(len, files_of)) == 6  # each is read by one process


def test_a_part_without_examples_has_one_of_the_part_before(own_data):
    files(own_data, 7, numbers)
    (a, b), (c,), (d, e), (f,) = drawn(reader.Reader(counted(), 5, 0, 1).batches([2, 0]), 4)
    assert (c, f) == (a, d)
    assert len({a, b, d, e}) == 4


def test_little_is_read_ahead_and_little_of_it_is_kept(own_data):
    files(own_data, 30, lambda i: {"text": [f"{1000 * i + k:0500d}" for k in range(1000)]}, rows_in_group=100)
    mapped = []
    batches = reader.Reader(counted(mapped), 5, 0, 1).batches([8])
    assert len(next(batches)[0]) == 8
    assert len(mapped) <= 6  # four of which make eight examples
    mapped.clear()
    tracemalloc.start()
    peak = 0
    for _ in range(1000):
        next(batches)
        peak = max(peak, pyarrow.total_allocated_bytes())
        mapped.clear()
    peak += tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6  # of the 2 MB that were read, and of 14.5


def stop_at(step):
    def on_event(training, event):
        if (training.step, event) == (step, "step"):
            training.save()
            training.await_save()
            raise Stopped

    return on_event


def batches_of(monkeypatch, seen):
    """Have every batch that is trained on noted, by row."""
    draw = reader.Reader.__dict__.get("drawn_from", reader.Reader.batches)

    def batches(self, sizes):
        for batch in draw(self, sizes):
            seen.append([tuple(row) for row in batch[0].tolist()])
            yield batch

    monkeypatch.setattr(reader.Reader, "drawn_from", draw, raising=False)
    monkeypatch.setattr(reader.Reader, "batches", batches)


@pytest.mark.parametrize("stops", [(1,), (4, 7)])
def test_a_run_that_is_interrupted_ends_as_one_that_was_not(stops, texts, tmp_path, monkeypatch):
    whole, parts = [], []
    batches_of(monkeypatch, whole)
    train(SPEC, tmp_path / "whole", execution=PARTED)
    batches_of(monkeypatch, parts)
    for stop in stops:
        with pytest.raises(Stopped):
            train(SPEC, tmp_path / "parts", execution=PARTED, on_event=stop_at(stop))
    train(SPEC, tmp_path / "parts", execution=PARTED)
    assert parts == whole
    assert [len(part) for part in whole] == [3, 3, 2] * SPEC.steps
    assert kept(tmp_path / "parts") == kept(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_stream_disjoint_files_and_resume_as_two_alone(texts, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    on_ranks(2, [str(Path(__file__).with_name("on_two_ranks_streaming.py")), str(tmp_path)])
    assert kept(tmp_path / "stopped") == kept(tmp_path / "whole")
    left = tmp_path / "left"
    before = content(left)
    assert saved(left) == [5]
    assert refused(lambda: train(SPEC, left)) == (
        "cannot resume: with --streaming a run goes on with as many processes as before, 2 that take examples of their "
        "own, got 1; start as many, or begin anew with --no-resume"
    )
    assert content(left) == before


def test_what_is_scored_is_in_no_file_that_is_streamed(texts):
    """Nor a text that begins like one of it."""
    begun = words(6)["text"]
    files(texts, 7, lambda i: {"text": [*words(i)["text"], begun[0] + " again" * (i < 6), " "]})
    _, splits = tasks.load(SPEC.task, True)
    tokenizer = tasks.find(SPEC.task).tokenizer()

    def told(rows):
        return "".join(tokenizer.decode(inputs.tolist()) for inputs, _ in rows)

    trained = told(map(splits.train.example, splits.train.rows))
    scored = told(splits.validation) + told(splits.test)
    assert sum(text[:40] in scored for text in begun) >= 4
    assert not any(text[:40] in trained for text in begun)
    assert all(text[:40] in trained for i in range(6) for text in words(i)["text"][:2])


def test_on_the_hub_the_files_are_those_that_it_lists(own_data, monkeypatch):
    files(own_data, 7, numbers)
    here, find = counted(), datasets.load_dataset_builder
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name, config: find(str(own_data / name), config))
    monkeypatch.delenv("THALWEG_DATA")
    there = counted()
    assert there.place == NAME
    assert [*there.rows] == [*here.rows]
    assert len([*there.rows]) == 84


def test_other_files_are_other_data(texts):
    def found():
        return fingerprint(tasks.find(SPEC.task).stream())

    first = found()
    for path in texts.glob(f"{NAME}/data/*"):
        os.utime(path, (1, 1))
    assert found() == first
    assert first != fingerprint(tasks.find(SPEC.task).splits())
    files(texts, 7, lambda i: words(i + (i == 2)))  # as long as before
    assert found() != first


def test_photographs_are_decoded_as_without_a_stream(own_data):
    """One held out of three files; each image and its label."""
    root = own_data / "ILSVRC/imagenet-1k/data"
    features = {"image": datasets.Image(), "label": hub_folders.numbered(1000)}
    hub_folders.write(own_data, "ILSVRC/imagenet-1k/data", "validation",
                      {"image": hub_folders.pictures(3, (90, 120), 9), "label": [0, 1, 2]}, features)  # fmt: skip
    for i in range(3):
        columns = {"image": hub_folders.pictures(4, (90, 120), i), "label": [4 * i + k for k in range(4)]}
        path = root / f"train-{i:05d}-of-00003.parquet"
        datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(path)
    task = tasks.find("imagenet-resnet50")
    train_, validation, test = task.stream()
    batches = reader.Reader(train_, 0, 0, 1).batches([4])
    streamed = {int(label): image for _ in range(2) for image, label in zip(*next(batches), strict=True)}
    expected = {}
    for part in task.splits()[:2]:
        expected |= {label: image for image, label in (part[i] for i in range(len(part)))}
    assert set(streamed) == {*range(8)}
    assert {label for _, label in (validation[i] for i in range(len(validation)))} == {*range(8, 12)}
    assert len(test) == 3
    for label, image in streamed.items():
        middle = (256 - expected[label].shape[-1]) // 2
        cut = image[:, middle : 256 - middle, middle : 256 - middle]
        torch.testing.assert_close(cut, expected[label], rtol=0, atol=0)


def test_what_cannot_be_streamed_is_one_line(texts, tmp_path, monkeypatch):
    def of(**changes):
        return refused(lambda: train(replace(SPEC, **changes), tmp_path))

    assert of(task="digits").startswith("--streaming is for imagenet-resnet34, imagenet-resnet50, gpt2-345m, moe-85b, ")
    assert refused(lambda: train(SPEC, tmp_path, execution=Execution(workers=1))) == (
        "--workers must be 0 with --streaming, got 1"
    )
    assert refused(lambda: train(SPEC, tmp_path, execution=Execution(observer=Panel(2, print)))).startswith(
        "--instruments"
    )
    assert refused(lambda: reader.Reader(counted(), 0, 0, 7)).endswith(f"{texts / NAME} has 6, not 7")
    monkeypatch.setattr(datasets, "__version__", "4.7.0")
    assert refused(counted) == (
        "--streaming needs datasets 5.2 or newer, as older ones lose rows when a run resumes; 4.7.0 is installed: "
        "pip install -U datasets"
    )


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("return Splits(train, *scored)", "stream() must return a Stream to train on, and data with a length to score"),
        ("return Splits(rows, *scored)", "a length to score, got IterableDataset, Rows, Rows"),
        ("return Splits(stream, stream, stream)", "a length to score, got Stream, Stream, Stream"),
        (
            "return Splits(Stream(table, *'abc'), *scored)",
            "of a Stream must be a datasets.IterableDataset, got Dataset",
        ),
        ("return Splits(Stream(rows, *'ab', None), *scored)", "identity of a Stream must be a text, got None"),
        (
            "return Splits(Stream(rows.shuffle(3).map(dict), *'abc'), *scored)",
            "--streaming cannot read b through shuffle(), whose buffer is lost when a run resumes",
        ),
        ("return Splits(stream, *scored)\n    splits = stream", "splits() must return data with a length, got Stream,"),
        ("return Splits(stream, *scored)", ""),
    ],
)
def test_what_an_own_task_says_of_its_stream_is_checked(method, said, request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = f"own_{abs(hash(request.node.name))}"
    (tmp_path / f"{module}.py").write_text(f"{OWN}        {method}\n")

    def load():
        return tasks.load(f"{module}:Own", "splits()" not in said)

    if said:
        assert said in refused(load)
    else:
        spec = replace(SPEC, task=f"{module}:Own", batch_size=16)
        assert train(spec, tmp_path / "run")["test"] < 10.0
        assert len({tuple(x) for x in drawn(reader.Reader(load()[1].train, 0, 0, 1).batches([64]), 1)[0]}) == 64


@pytest.mark.parametrize("seed", range(4))
def test_what_is_drawn_at_random_from_several_streams_is_so_in_every_pass(seed):
    """``datasets`` subtracts a pass's number from seeds, which must stay positive."""
    table = datasets.Dataset.from_dict({"n": [*range(8)]}).to_iterable_dataset(num_shards=2)
    rows = datasets.interleave_datasets([table, table], probabilities=[0.7, 0.3], seed=3)
    mine = reader.Reader(Stream(rows, lambda row: (row["n"], 0), "tables", "1"), seed, 0, 1)
    assert {n for batch in drawn(mine.batches([8]), 30) for n in batch} == {*range(8)}
    assert mine.turn >= 10


def null(root):
    files(root, 3, lambda i: {"text": ["a", "b", None if i < 2 else "c"]})


def cut(root):
    files(root, 3, lambda i: {"text": [f"{k:0500d}" for k in range(9)]})
    path = path_of(root, 1, 3)
    stored = path.read_bytes()
    path.write_bytes(stored[: len(stored) // 2])


def wrong_within(root):
    files(root, 3, lambda i: {"text": [f"{k:0500d}" for k in range(9)]})
    path = path_of(root, 1, 3)
    stored = path.read_bytes()
    path.write_bytes(stored[:40] + bytes(len(stored) // 8) + stored[40 + len(stored) // 8 :])


def not_utf8(root):
    files(root, 3, numbers, "jsonl")
    path_of(root, 0, 3, "jsonl").write_bytes(b'{"text": "\xff"}\n')


def other_columns(root):
    files(root, 3, lambda i: {"texts" if i == 1 else "text": ["1"]})


def lacking(root):
    files(root, 3, lambda i: {"text" if i == 2 else "texts": ["1"]})


def single(root):
    files(root, 1, words)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (null, "/spacerini/gpt2-outputs, split train, a row of column text: is null"),
        (cut, "cannot read {path}, split train (ArrowInvalid: Parquet magic bytes not found"),
        (wrong_within, "cannot read {folder} (OSError: "),
        (not_utf8, "cannot read {folder} (UnicodeDecodeError: "),
        (other_columns, "cannot read {folder} (CastError: "),
        (lacking, "cannot read {folder}, split train (ValueError: Column name ['text'] not in the dataset"),
        (single, "--streaming needs at least 2 files, as the last is held out to score: "),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(make, said, own_data):
    make(own_data)
    said = said.format(path=path_of(own_data, 1, 3), folder=own_data / NAME)
    assert said in refused(lambda: drawn(reader.Reader(counted(), 0, 0, 1).batches([4]), 6))


@pytest.mark.parametrize("ranks", [1, 2])
def test_files_without_an_example_are_an_error_and_no_endless_pass(ranks, own_data):
    files(own_data, 3, numbers)
    stream = counted()
    nothing = replace(stream, rows=stream.rows.filter(lambda row: False))
    assert "have no example" in refused(lambda: next(reader.Reader(nothing, 0, 0, ranks).batches([1])))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_whose_files_of_a_pass_are_empty_begins_the_next(rank, own_data):
    files(own_data, 3, numbers)
    stream = counted()
    mine = reader.Reader(replace(stream, rows=stream.rows.filter(lambda row: row["n"] >= 14)), 5, rank, 2)
    found = [n for batch in drawn(mine.batches([1]), 60) for n in batch]
    assert {*found} == {*range(14, 28)}
    assert mine.turn > len(found) // 14  # of which some had nothing
