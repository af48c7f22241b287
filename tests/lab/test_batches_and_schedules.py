"""Batches and their parts, schedules, clipping, augmentation; DeepOBS as an outside check."""

import sys
from dataclasses import replace

import pytest
import torch
from lines import LINE, SGD, batch_of

from thalweg.lab.engine import (
    Execution,
    RunSpec,
    Training,
    data,
    loop,
    schedules,
    train,
)
from thalweg.lab.engine.augment import augmentation
from thalweg.records import files as records
from thalweg.records.errors import UserError


def test_seeds_share_no_order_not_even_of_another_epoch():
    """A comparison takes neighbouring seeds, which are to be independent of each other."""
    firsts = [0, 1000, 2**32 - 4]
    orders = {
        (seed, epoch): tuple(batch_of(seed, epoch * 4, 64, 16))
        for first in firsts
        for seed in range(first, first + 4)
        for epoch in range(4)
    }
    assert len(set(orders.values())) == len(orders) == 48


def test_each_epoch_sees_every_example_once_in_an_order_of_its_own():
    epochs = [[i for k in range(4) for i in batch_of(3, 4 * e + k, 64, 16)] for e in range(3)]
    assert all(sorted(epoch) == list(range(64)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert batch_of(4, 0, 64, 16) != batch_of(3, 0, 64, 16)
    later = data.batches(3, 7, 64, 16)
    assert [next(later), next(later)] == [batch_of(3, 7, 64, 16), batch_of(3, 8, 64, 16)]


@pytest.mark.parametrize(("ranks", "micro"), [(1, None), (2, None), (3, 2), (4, 3), (5, 1)])
def test_a_global_batch_is_shared_out_whole_in_as_many_parts_on_every_rank(ranks, micro):
    batch = list(range(100, 113))
    shared = [data.parts(batch, rank, ranks, micro) for rank in range(ranks)]
    assert [i for rank in shared for part in rank for i in part] == batch
    assert len({len(parts) for parts in shared}) == 1
    assert micro is None or max(len(part) for parts in shared for part in parts) <= micro


@pytest.mark.parametrize("micro", [7, 1, 5, 16])
def test_a_batch_in_parts_is_the_whole_batch(micro, finished, tmp_path):
    result = train(LINE, tmp_path, execution=Execution(micro_batch=micro))
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
