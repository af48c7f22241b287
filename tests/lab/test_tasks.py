import gzip
import io
import math
import tokenize
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from seqeval.metrics import f1_score
from torch.nn import functional as F

from thalweg.lab import tasks
from thalweg.lab.tasks import fashion_mnist, minilm, pydoc_sentences, python_tokens
from thalweg.lab.tasks.base import Budget, Rows, Splits, budget_at, fingerprint, without_duplicates
from thalweg.lab.tasks.classification import Classification, Tagging
from thalweg.lab.tasks.digits import MatrixConv
from thalweg.lab.tasks.pydoc_lm import REPEATED, without_repeats
from thalweg.lab.tasks.stdlib import plain
from thalweg.records.errors import TaskFault, UserError

FASHION = "fashion-mnist"
HERE = [name for name, task in tasks.TASKS.items() if not task.download or name == FASHION]  # test_hub.py: the others


subjects, passages = cache(pydoc_sentences.subjects), cache(python_tokens.passages)


@pytest.fixture(autouse=True)
def corpora_once(monkeypatch):
    """Several tasks are of the same corpora, which take seconds to cut."""
    for module in (pydoc_sentences, minilm):
        monkeypatch.setattr(module, "subjects", subjects)
    for module in (python_tokens, minilm):
        monkeypatch.setattr(module, "passages", passages)


@cache
def loaded_once(name):
    """The task and its splits, or why there are none: where no network is, the hub asks for it for a while."""
    try:
        return tasks.load(name)
    except UserError as error:
        return str(error)


def loaded(name):
    found = loaded_once(name)
    assert not isinstance(found, str) or name == FASHION or "pip install 'thalweg[encoder]'" in found
    return pytest.skip(found) if isinstance(found, str) else found


def called(model, inputs):
    return model(**inputs) if isinstance(inputs, dict) else model(inputs)


@pytest.mark.parametrize("name", HERE)
def test_each_task_trains_scores_and_is_reproducible(name):
    task, splits = loaded(name)
    batch = splits.train.__getitems__([0, 1, 2])
    losses = []
    for _ in range(2):
        torch.manual_seed(3)
        model = task.model()
        loss = task.loss(called(model, batch[0]), batch[1])
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
        scores = task.score(called(model, batch[0]), batch[1])
        assert len(scores) == 3
        assert all(math.isfinite(number) for number in (task.combine(scores), *task.more(scores).values()))
        losses.append(loss.item())
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", HERE)
def test_each_task_has_a_short_and_a_long_budget_that_its_data_allow(name):
    task, splits = loaded(name)
    assert {one.name for one in task.budgets} == {"short", "long"}
    largest = max(one.batch_size for one in task.budgets)
    assert largest <= len(splits.train)
    assert any(one.name == "long" and one.batch_size == largest for one in task.budgets)


@pytest.mark.parametrize("name", HERE)
def test_no_example_is_in_two_splits(name):
    """Of any task: an input of one split stands in no other.

    Of images a few do, as published, and of points drawn at random in float32 as many as chance makes equal.
    """
    _, splits = loaded(name)
    rows = [rows_of(part) for part in splits]
    shared = [len(rows[i] & rows[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert max(shared) <= (100 if name == FASHION else 40 if name == "sine-noisy" else 0)


def rows_of(part):
    """What the model is told of each example, as bytes."""
    inputs = part.inputs["input_ids"] if isinstance(part.inputs, dict) else part.inputs
    return {row.numpy().tobytes() for row in inputs}


@pytest.mark.parametrize("name", HERE)
def test_a_models_parameters_are_counted_without_its_memory_or_data(name):
    task, _ = loaded(name)
    assert tasks.parameters(task) == sum(p.numel() for p in task.model().parameters())


@pytest.mark.parametrize("name", HERE)
def test_chance_is_what_the_best_constant_prediction_has(name):
    """By NumPy: the share of the commonest class, the cross-entropy of frequencies, the squared error of the mean."""
    task, splits = loaded(name)
    train, test = (part.targets.numpy() for part in (splits.train, splits.test))
    if isinstance(task, Tagging):
        commonest = task.labels[np.bincount(train[train >= 0]).argmax()]
        right = [[task.labels[label] for label in row if label >= 0] for row in test]
        expected = 100.0 * f1_score(right, [[commonest] * len(row) for row in right], zero_division=0)
    elif isinstance(task, Classification):
        expected = 100.0 * np.mean(test == np.bincount(train).argmax())
    elif train.dtype == np.float32:
        expected = np.mean((test - train.mean()) ** 2)
    else:
        counts = np.bincount(train.ravel(), minlength=1 + max(train.max(), test.max())) + 1.0
        expected = -np.log(counts / counts.sum())[test].mean()
    assert tasks.chance(name) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("targets", [torch.rand(6), torch.ones(6, 2, dtype=torch.long)])
def test_targets_that_are_no_classes_have_no_chance(targets):
    part = Rows(torch.zeros(6, 3), targets)
    assert tasks.find("digits").chance(Splits(part, part, part)) is None


def test_a_task_that_says_no_constant_has_no_chance():
    assert tasks.chance("small_tasks:Line") is None
    assert tasks.chance("small_tasks:NoChance") is None  # what is not a number is none
    with pytest.raises(TaskFault, match=r"failed in chance\(\)"):
        tasks.chance("small_tasks:BrokenChance")


def text_of(part):
    """The windows as bytes, each with the byte that follows it."""
    rows = torch.cat([part.inputs, part.targets[:, -1:]], 1)
    return [bytes(row.tolist()) for row in rows]


def test_no_passage_of_the_text_is_in_two_splits():
    """Not by topic, by text: no 32 bytes of a test window stand anywhere in training or validation."""
    _, splits = tasks.load("pydoc-lm")
    texts = [text_of(part) for part in splits]
    grams = [{text[i : i + REPEATED] for text in part for i in range(len(text) - REPEATED + 1)} for part in texts]
    assert [len(grams[i] & grams[j]) for i, j in ((0, 1), (0, 2), (1, 2))] == [0, 0, 0]
    sizes = [len(part) for part in texts]
    assert sizes[0] > 0.7 * sum(sizes)
    assert min(sizes) > 0.03 * sum(sizes)


@pytest.mark.parametrize("name", ["pydoc-sentences", "pydoc-pairs"])
def test_no_passage_of_a_sentence_is_in_two_splits(name, monkeypatch):
    """Not by what the model is told, by text: no 32 characters of a test sentence stand in another split."""
    shown = []
    task = type(tasks.find(name))()

    def look(part, known):
        rows = [row if isinstance(row[0], str) else row[1:] for row in part]
        texts = [plain(line) for row in rows for line in row]
        shown.append({text[i : i + 32] for text in texts for i in range(len(text) - 31)})
        return type(task)._rows(task, part, known)

    monkeypatch.setattr(task, "_rows", look, raising=False)
    task.splits()
    assert [len(shown[i] & shown[j]) for i, j in ((0, 1), (0, 2), (1, 2))] == [0, 0, 0]
    assert min(map(len, shown)) > 1000


def test_no_sixteen_pieces_of_source_in_a_row_are_in_two_splits(monkeypatch):
    shown = []
    task = python_tokens.PythonTokens()

    def look(part, known):
        shown.append({piece[i : i + 16] for piece in part for i in range(len(piece) - 15)})
        return type(task)._rows(task, part, known)

    monkeypatch.setattr(task, "_rows", look, raising=False)
    task.splits()
    assert [len(shown[i] & shown[j]) for i, j in ((0, 1), (0, 2), (1, 2))] == [0, 0, 0]


def test_source_is_labelled_as_pythons_tokenizer_says():
    """Of a whole module: the pieces of each token, put together again, are the token."""
    source = (Path(python_tokens.__file__)).read_text()
    wanted = [
        token.string
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if tokenize.tok_name[token.type] in ("NAME", "NUMBER", "COMMENT", "STRING")
    ]
    found = []
    for piece in python_tokens.pieces(source):
        if piece.label.startswith("B"):
            found.append("")
        if piece.label != "O":
            found[-1] += piece
    assert ["".join(text.split()) for text in found] == ["".join(text.split()) for text in wanted]
    assert {piece.label for piece in python_tokens.pieces(source)} <= set(python_tokens.PythonTokens.labels)


def test_what_two_splits_would_tell_the_model_is_left_out_of_the_earlier():
    rows = [
        Rows({"a": torch.tensor(x), "b": torch.zeros(len(x))}, torch.tensor(x)) for x in ([1, 2, 3], [2, 4], [3, 4, 5])
    ]
    assert [part.targets.tolist() for part in without_duplicates(*rows)] == [[1], [2], [3, 4, 5]]


def test_repeats_are_cut_out_where_they_stand_again():
    first, second = b"the quick brown fox jumps", b"over the quick brown dogs"
    assert without_repeats([first, second], 8) == [[first], [b"over ", b"dogs"]]
    assert without_repeats([first, first], 8) == [[first], []]
    assert without_repeats([b"short", b"short"], 8) == [[b"short"], [b"short"]]


def test_language_model_targets_are_the_next_bytes():
    _, splits = tasks.load("pydoc-lm")
    assert torch.equal(splits.train.inputs[:, 1:], splits.train.targets[:, :-1])


def test_a_batch_holds_the_rows_that_were_asked_for():
    _, splits = tasks.load("digits")
    inputs, targets = splits.train.__getitems__([2, 0])
    for i, row in enumerate((2, 0)):
        assert torch.equal(inputs[i], splits.train[row][0])
        assert torch.equal(targets[i], splits.train[row][1])


def test_other_data_have_another_fingerprint():
    def made(change=0.0, dtype=torch.float32):
        x = torch.arange(6, dtype=dtype).view(3, 2)
        x[1, 1] += change
        return Splits(*[Rows(x, torch.zeros(3))] * 3)

    assert fingerprint(made()) == fingerprint(made())
    assert len({fingerprint(made()), fingerprint(made(1.0)), fingerprint(made(dtype=torch.float64))}) == 3
    lists = [Splits(*[[(torch.ones(2), k), {"a": k}]] * 3) for k in (1, 2)]
    assert fingerprint(lists[0]) != fingerprint(lists[1])


def test_matrix_convolution_is_torchs_convolution():
    layer = MatrixConv(3, 5, stride=2)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(layer(x), F.conv2d(x, layer.weight.view(5, 3, 3, 3), stride=2, padding=1))


def test_scores_are_the_named_metrics():
    output = torch.tensor([[2.0, 1.0], [2.0, 1.0]])
    for name in ("digits", FASHION):
        task = tasks.find(name)
        assert task.score(output, torch.tensor([0, 1])).tolist() == [100.0, 0.0]
        assert task.combine(torch.tensor([100.0, 0.0])) == 50.0
    assert tasks.find("sine").score(torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0], [1.0]])).tolist() == [0.0, 4.0]


@pytest.mark.parametrize(
    ("batch_size", "name", "steps"),
    [(64, "short", 400), (256, "short", 200), (1024, "short", 100), (4096, "short", 100), (16, "short", 1600),
     (1024, "long", 900), (2048, "long", 900), (64, "long", None)],
)  # fmt: skip
def test_a_budget_at_any_batch_size(batch_size, name, steps):
    own = [Budget(64, 400, 0.1), Budget(1024, 100, 0.2), Budget(1024, 900, 0.3, "long")]
    found = budget_at(own, batch_size, name)
    assert (found and found.steps) == steps
    assert found is None or found.batch_size == batch_size


# the user's own


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar", f"unknown task 'cifar': choose from {', '.join(tasks.TASKS)}, or name your own"),
        ("no.such:Task", "cannot import task 'no.such:Task' (no module 'no' here or among what is installed)"),
        ("..x:Y", "unknown task '..x:Y'"),
        (":", "unknown task ':'"),
        ("small_tasks:", "unknown task 'small_tasks:'"),
        ("small_tasks:Nope", "task 'small_tasks:Nope' does not exist: name a subclass of thalweg.lab.tasks.Task"),
        ("small_tasks:NotATask", "name a subclass of thalweg.lab.tasks.Task"),
        ("small_tasks:Undeclared", "needs budgets = (Budget(batch_size, steps), ...)"),
        ("thalweg.lab.tasks:Task", "failed in its constructor"),
    ],
)
def test_a_task_that_is_none_is_one_clear_error(name, message):
    with pytest.raises((UserError, TaskFault)) as error:
        tasks.find(name)
    assert message in str(error.value)


def test_a_task_of_the_current_folder_is_found_and_a_mistake_in_its_module_is_the_tasks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lying_about.py").write_text("from small_tasks import Line\nclass Mine(Line): pass\n")
    (tmp_path / "mistaken.py").write_text("import no_such_package\n")
    assert type(tasks.find("lying_about:Mine")).__name__ == "Mine"
    with pytest.raises(TaskFault, match="the task 'mistaken:Mine' failed in its module") as fault:
        tasks.find("mistaken:Mine")
    assert isinstance(fault.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize(
    ("where", "lines"),
    [
        ("its module", "raise ValueError('of the module, not of its name')"),
        ("its module", "raise SystemExit(0)"),
        ("its constructor", "class Mine(Line):\n    def __init__(self): raise SystemExit(0)"),
        ("splits()", "class Mine(Line):\n    def splits(self): raise SystemExit(0)"),
    ],
)
def test_a_task_that_exits_or_raises_is_a_fault_wherever(where, lines, request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = "fault_" + "".join(c if c.isalnum() else "_" for c in request.node.callspec.id)
    (tmp_path / f"{module}.py").write_text(f"from small_tasks import Line\n{lines}\n")
    with pytest.raises(TaskFault) as fault:
        tasks.load(f"{module}:Mine")
    assert fault.value.where == where
    assert isinstance(fault.value.__cause__, (ValueError, SystemExit))


# Fashion-MNIST


def idx_files(folder, count):
    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        for kind, header, size in (("images-idx3", 16, 784), ("labels-idx1", 8, 1)):
            lengths = (count, 28, 28) if size == 784 else (count,)
            data = np.array([0x800 + len(lengths), *lengths], ">i4").tobytes()
            assert len(data) == header
            data += rng.integers(0, 10, count * size, dtype=np.uint8).tobytes()
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(data))


def test_fashion_mnist_is_read_from_the_folder_that_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv(fashion_mnist.VARIABLE, str(tmp_path))
    with pytest.raises(UserError, match=r"has no train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz"):
        fashion_mnist._load("train")
    idx_files(tmp_path, 6)
    with pytest.raises(
        UserError, match=r"train-images.*, split train, has 6 rows, not 60,000: .*THALWEG_DATA_ROWS=any"
    ):
        fashion_mnist._load("train")
    monkeypatch.setenv("THALWEG_DATA_ROWS", "any")
    images, labels = fashion_mnist._load("train")
    assert (images.shape, labels.shape) == ((6, 1, 28, 28), (6,))
    assert (images.min().item(), images.max().item()) == pytest.approx((-1.0, 9 / 127.5 - 1.0))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(b"not gzip")
    with pytest.raises(UserError, match=r"cannot read .*labels.*: download it again"):
        fashion_mnist._load("train")


def test_fashion_mnist_that_is_nowhere_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.delenv(fashion_mnist.VARIABLE, raising=False)
    monkeypatch.setattr(fashion_mnist, "FOLDER", tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match="apt install dataset-fashion-mnist"):
        fashion_mnist._load("train")
