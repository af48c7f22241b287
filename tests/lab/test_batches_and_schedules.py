"""Batches and their parts, schedules, clipping, augmentation; DeepOBS as an outside check."""

import sys
import tracemalloc
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from lines import LINE, SGD, batch_of
from scipy import stats

from thalweg.lab.engine import Execution, RunSpec, Training, data, loop, order, schedules, train
from thalweg.lab.engine.augment import augmentation
from thalweg.records import files as records
from thalweg.records.errors import UserError

STORED_AND_COMPUTED = pytest.mark.parametrize("examples", [64, order.STORED, order.STORED + 192, 10**9])


@STORED_AND_COMPUTED
def test_seeds_share_no_order_not_even_of_another_epoch(examples):
    """A comparison takes neighbouring seeds, which are to be independent of each other."""
    firsts, per_epoch = [0, 1000, 2**32 - 4], examples // 16
    orders = {
        (seed, epoch): tuple(batch_of(seed, epoch * per_epoch, examples, 16))
        for first in firsts
        for seed in range(first, first + 4)
        for epoch in range(4)
    }
    assert len(set(orders.values())) == len(orders) == 48


@pytest.mark.parametrize("examples", [64, order.STORED + 192])
def test_each_epoch_sees_every_example_once_in_an_order_of_its_own(examples):
    size, steps = examples // 4, range(4)
    epochs = [[i for k in steps for i in batch_of(3, 4 * e + k, examples, size)] for e in range(3)]
    assert all(sorted(epoch) == list(range(examples)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert batch_of(4, 0, examples, size) != batch_of(3, 0, examples, size)


@STORED_AND_COMPUTED
@pytest.mark.parametrize(("ranks", "micro"), [(1, None), (2, 5), (3, 1)])
def test_a_run_goes_on_at_any_step_on_any_number_of_processes_in_any_parts(examples, ranks, micro):
    size, first = 13, 2 * (examples // 13) - 2  # the last two steps of an epoch, and two of the next
    spec = RunSpec("small_tasks:Line", size, first + 4, "sgd", {}, seed=7)
    whole = [batch_of(7, step, examples, size) for step in range(first, first + 4)]
    count = len(data.parts(range(size), 0, ranks, micro))
    for start in range(4):
        shares = [
            list(data.training_pieces(spec, first + start, examples, rank, ranks, micro)) for rank in range(ranks)
        ]
        steps = [
            [i for share in shares for part in share[count * k : count * (k + 1)] for i in part]
            for k in range(4 - start)
        ]
        # a process that has none left of an uneven step sees one of its own twice
        assert [list(dict.fromkeys(step)) for step in steps] == whole[start:]


# an order that is not stored


@pytest.mark.parametrize("examples", [*range(1, 70), 1000, 2**16, 2**16 + 1, 100_003])
def test_a_computed_order_is_one_to_one(examples):
    at = np.arange(examples, dtype=np.uint64)
    for seed in range(2):
        found = order.permuted(at, examples, order.keys(seed, 5))
        assert np.array_equal(np.sort(found), at)
        assert np.array_equal(order.permuted(at[-3:], examples, order.keys(seed, 5)), found[-3:])


def test_a_computed_order_reaches_as_far_as_examples_can_be_counted():
    far = np.array([0, 1, 2**62 - 2, 2**62 - 1], dtype=np.uint64)
    found = order.permuted(far, 2**62, order.keys(0, 0))
    assert len(set(found.tolist())) == 4
    assert (found < 2**62).all()


def uniform(counts):
    """The p-value of the hypothesis that all cells are equally likely."""
    return stats.chisquare(counts).pvalue


@pytest.mark.parametrize("examples", [4, 17, 30])
def test_over_seeds_every_example_and_every_pair_is_as_likely_to_come_first(examples):
    at = np.arange(2, dtype=np.uint64)
    found = [order.permuted(at, examples, order.keys(seed, 3)) for seed in range(5000)]
    first, second = np.array(found).astype(int).T
    assert uniform(np.bincount(first, minlength=examples)) > 1e-3
    assert uniform(np.bincount(second, minlength=examples)) > 1e-3
    pairs = np.bincount(first * examples + second, minlength=examples**2).reshape(examples, examples)
    assert uniform(pairs[~np.eye(examples, dtype=bool)]) > 1e-3


def test_a_computed_order_has_no_structure_and_shares_none_with_another_seed_or_epoch():
    """What a random order of n examples has: one place in common with another, two neighbours that stay so."""
    examples = order.STORED + 1
    at = np.arange(examples, dtype=np.uint64)
    orders = [order.permuted(at, examples, order.keys(*one)).astype(int) for one in product(range(10), range(3))]
    common = [int((a == b).sum()) for k, a in enumerate([*orders, at.astype(int)]) for b in orders[:k]]
    assert 0.8 < np.mean(common) < 1.2
    assert max(common) < 10
    steps = [np.diff(one) for one in orders]
    assert 1.0 < np.mean([(np.abs(step) == 1).sum() for step in steps]) < 3.0
    # steps between neighbours, as multiples of an eighth of n, each between two random places on a circle
    eighths = [np.bincount((step % examples) * 8 // examples, minlength=8) for step in steps]
    assert uniform(np.sum(eighths, axis=0)) > 1e-3


def test_the_order_of_a_thousand_million_examples_takes_no_memory():
    spec = RunSpec("small_tasks:Line", 4096, 10**6, "sgd", {})
    pieces = data.training_pieces(spec, 244_000, 10**9, 1, 2, 512)
    tracemalloc.start()
    highest = max(max(piece) for _, piece in zip(range(4 * 200), pieces, strict=False))  # into the second epoch
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.99e9 < highest < 1e9
    assert peak < 2**20


@pytest.mark.parametrize(("ranks", "micro"), [(1, None), (2, None), (3, 2), (4, 3), (5, 1)])
def test_a_global_batch_is_shared_out_whole_in_as_many_parts_on_every_rank(ranks, micro):
    batch = range(100, 113)
    shared = [data.parts(batch, rank, ranks, micro) for rank in range(ranks)]
    assert [i for rank in shared for part in rank for i in part] == [*batch]
    assert len({len(parts) for parts in shared}) == 1
    assert micro is None or max(len(part) for parts in shared for part in parts) <= micro


@pytest.mark.parametrize("micro", [7, 1, 5, 16])
def test_a_batch_in_parts_is_the_whole_batch(micro, finished, tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(data, "apply", lambda model, inputs: sizes.append(len(inputs)) or model(inputs))
    result = train(LINE, tmp_path, execution=Execution(micro_batch=micro))
    assert max(sizes) <= micro  # of what is scored too
    assert result["test"] == pytest.approx(finished[1]["test"], rel=1e-4)
    assert records.read_lines(tmp_path / "metrics.jsonl")[-1]["loss"] == pytest.approx(
        records.read_lines(finished[0] / "metrics.jsonl")[-1]["loss"], rel=1e-4
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cosine", [1.0, 0.9045, 0.6545, 0.3455, 0.0955]),
        ("linear", [1.0, 0.8, 0.6, 0.4, 0.2]),
        ("polynomial", [1.0, 0.8944, 0.7746, 0.6325, 0.4472]),
        ("step", [1.0, 1.0, 0.1, 0.01, 0.001]),
        ("constant", [1.0] * 5),
    ],
)
def test_schedules(name, expected):
    assert [schedules.factor(name, k, 5, 0.0) for k in range(5)] == pytest.approx(expected, abs=1e-4)
    warm = [schedules.factor(name, k, 8, 0.375) for k in range(8)]
    assert warm[:3] == pytest.approx([0.25, 0.5, 0.75])
    assert warm[3:] == pytest.approx(expected, abs=1e-4)


def test_the_learning_rate_grows_with_the_batch_by_rule(tmp_path):
    for rule, factor in (("none", 1.0), ("linear", 4.0), ("sqrt", 2.0)):
        spec = replace(LINE, lr_rule=rule, lr_base=4)
        assert Training(spec, tmp_path, Execution()).rates[0] == pytest.approx(0.01 * factor)


def test_clipping_bounds_the_gradient(tmp_path, monkeypatch):
    norms = []
    step = torch.optim.SGD.step

    def seen(self, closure=None):
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(torch.nn.utils.get_total_norm(grads).item())
        return step(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", seen)
    train(RunSpec("small_tasks:Line", 16, 3, "sgd", SGD, clip=0.01), tmp_path)
    assert norms == pytest.approx([0.01] * 3, rel=1e-3)


def deepobs(lr, folder, seed=0):
    """DeepOBS's runner of quadratic_deep: SGD without momentum at a constant rate."""
    spec = RunSpec(
        "quadratic_deep:QuadraticDeep", 128, 700, "torch.optim.SGD",
        {"lr": lr, "weight_decay": 0.0, "momentum": 0.0}, seed=seed,
        test=True, schedule="constant", warmup=0.0, evaluations=10,
    )  # fmt: skip
    training = Training(spec, folder, Execution())
    return training, training.batches()


@pytest.mark.parametrize("seed", [0, 1])
def test_quadratic_deep_is_deepobs_own(seed, tmp_path):
    """Its public record after 0, 1, 10 and 100 epochs; the order of examples is ours, hence the half per cent."""
    training, batches = deepobs(0.015849, tmp_path, seed)
    assert training.score("test") == pytest.approx(353.446764, rel=1e-7)
    for steps, expected in ((7, 105.45), (70, 93.10), (700, 87.52)):
        while training.step < steps:
            training.take_step(batches)
        assert training.score("test") == pytest.approx(expected, rel=0.005)


def test_quadratic_deep_diverges_as_fast_as_deepobs_own(tmp_path):
    """At learning rate .1 its public record grows 18.3366-fold a step, once the steepest direction has won."""
    training, batches = deepobs(0.1, tmp_path)
    for _ in range(27):
        training.take_step(batches)
    before = training.score("test")
    training.take_step(batches)
    assert training.score("test") / before == pytest.approx(18.3366, rel=5e-5)


# augmentation


def test_augmentation_moves_and_mirrors_images_and_keeps_their_shape():
    pytest.importorskip("kornia")
    torch.manual_seed(0)
    images = torch.arange(64.0).view(1, 1, 8, 8).repeat(50, 1, 1, 1) + 1.0
    flipped = augmentation("flip")(images)
    mirrored = [torch.equal(image, images[0].flip(-1)) for image in flipped]
    assert 10 < sum(mirrored) < 40
    assert all(torch.equal(image, images[0]) for image, other in zip(flipped, mirrored, strict=True) if not other)
    moved = augmentation("crop")(images)
    assert moved.shape == images.shape
    assert 3 < len({image.numpy().tobytes() for image in moved}) <= 9
    with pytest.raises(UserError, match="needs batches of images"):
        augmentation("flip")(torch.ones(3, 2))


def test_augmentation_reaches_training_and_not_evaluation(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(loop, "augmentation", lambda name: lambda images: seen.append(name) or images + 100.0)
    train(replace(LINE, augment="flip"), tmp_path / "it")
    assert seen == ["flip"] * 12
    assert records.read_json(tmp_path / "it" / "result.json")["failure"] != "refused"


def test_augmentation_without_kornia_is_one_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia.augmentation", None)
    with pytest.raises(UserError, match="--augment flip needs kornia: pip install kornia"):
        augmentation("flip")
