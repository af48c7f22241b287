import copy
import json
import math
import os
import pickle
import sys
import time
from dataclasses import fields, replace

import pytest
import small_tasks
import torch

from thalweg.lab import records, tasks
from thalweg.lab.engine import (
    How,
    Place,
    RunSpec,
    Stopped,
    Training,
    checkpoint,
    data,
    loop,
    schedules,
    stored,
    train,
)
from thalweg.lab.engine.augment import augmentation
from thalweg.lab.engine.failures import Failed, diverged
from thalweg.lab.errors import TaskFault, UserError
from thalweg.lab.reading import read_run

ADAMW = {"lr": 0.01, "weight_decay": 0.01, "momentum": 0.9, "beta2": 0.99}
SGD = {"lr": 0.05, "weight_decay": 0.0, "momentum": 0.5}
LINE = RunSpec("small_tasks:Line", 16, 12, "adamw", ADAMW, seed=5, test=True)
TIMES = ("seconds", "seconds_to_target")


def untimed(value):
    return {key: item for key, item in value.items() if key not in TIMES}


def kept(folder):
    """Everything that a run left, but for the time it took."""
    lines = [untimed(line) for line in records.read_lines(folder / "metrics.jsonl")]
    return untimed(records.read_json(folder / "result.json")), lines, sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, train(LINE, folder, Place("seed", number=3))


def test_a_run_is_plain_torch_training(finished):
    task, splits = tasks.load(LINE.task)
    torch.manual_seed(LINE.seed)
    model = task.model()
    matrices, others = ([p for p in model.parameters() if (p.ndim > 1) is big] for big in (True, False))
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.99)
    )
    for k in range(12):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 / 2 if k < 1 else 0.5 * (1 + math.cos(math.pi * (k - 1) / 11)))
        at = torch.tensor(data.batch_of(LINE.seed, k, 64, 16))
        optimizer.zero_grad()
        task.loss(model(splits.train.inputs[at]), splits.train.targets[at]).backward()
        optimizer.step()
    for split in ("validation", "test"):
        rows = getattr(splits, split)
        score = task.score(model(rows.inputs), rows.targets).mean().item()
        assert finished[1][split] == pytest.approx(score, rel=1e-5)


def test_a_run_leaves_its_spec_environment_metrics_and_result(finished):
    folder, result = finished
    assert [path.name for path in sorted(folder.iterdir())] == [
        "environment.json", "metrics.jsonl", "result.json", "spec.json"
    ]  # fmt: skip
    spec = records.read_json(folder / "spec.json")
    assert RunSpec.of(spec) == LINE
    assert (spec["hash"], spec["place"]["number"]) == (LINE.hash, 3)
    run = read_run(folder)
    assert (run.environment["torch"], run.environment["processes"]) == (torch.__version__, "1")
    assert [line.step for line in run.history] == list(range(1, 13))
    assert [line.examples for line in run.history] == [16 * k for k in range(1, 13)]
    assert run.history[-1].validation == result["validation"] == run.validation
    assert run.history[0].lr == pytest.approx(0.005)
    assert (result["status"], result["failure"], run.finished) == ("finished", None, True)


def test_a_complete_run_is_not_run_again(finished):
    folder, result = finished
    written = (folder / "result.json").stat().st_mtime_ns
    assert train(LINE, folder) == result
    assert (folder / "result.json").stat().st_mtime_ns == written


def test_tuning_never_sees_the_test_set(tmp_path):
    assert "test" not in train(replace(LINE, test=False), tmp_path)


@pytest.mark.parametrize("name", [field.name for field in fields(RunSpec)])
def test_everything_in_a_spec_counts(name):
    other = {
        "task": "small_tasks:Moody", "optimizer": "sgd", "settings": {**ADAMW, "lr": 0.02}, "schedule": "linear",
        "lr_rule": "sqrt", "precision": "bf16", "augment": "flip", "code": "1", "data": "1", "clip": 1.0, "test": False,
    }  # fmt: skip
    value = other.get(name, getattr(LINE, name) if name in other else None)
    changed = replace(LINE, **{name: value if name in other else getattr(LINE, name) * 2 or 1 / 8})
    assert changed.hash != LINE.hash
    assert RunSpec.of(json.loads(json.dumps(changed.as_dict()))) == changed


def test_a_spec_of_another_format_is_refused():
    with pytest.raises(ValueError, match="not a spec of format 2"):
        RunSpec.of({**LINE.as_dict(), "format": 1})
    with pytest.raises(ValueError, match="not a spec"):
        RunSpec.of({**LINE.as_dict(), "colour": "blue"})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("batch_size", 0, "batch_size must be an integer from 1"),
        ("steps", 0, "steps must be an integer from 1"),
        ("seed", -1, "seed must be an integer from 0"),
        ("schedule", "zigzag", "schedule must be one of cosine, linear, polynomial, step, constant, got 'zigzag'"),
        ("warmup", 1.0, r"warmup must be a share of the steps in \[0, 1\), got 1.0"),
        ("warmup", math.nan, "warmup must be"),
        ("clip", 0.0, "clip must be None or greater than 0"),
        ("label_smoothing", 1.0, r"label_smoothing must be in \[0, 1\)"),
        ("precision", "fp8", "precision must be one of no, bf16, fp16, got 'fp8'"),
        ("lr_rule", "cubic", "lr_rule must be one of none, linear, sqrt"),
    ],
)
def test_what_no_run_can_have_is_one_clear_error(name, value, message):
    with pytest.raises(UserError, match=message):
        replace(LINE, **{name: value})


def test_a_batch_larger_than_the_data_is_one_clear_error(tmp_path):
    with pytest.raises(UserError, match=r"--batch-size must be from 1 \(processes\) to 64 \(the training examples"):
        train(replace(LINE, batch_size=65), tmp_path)


def test_label_smoothing_reaches_a_loss_that_knows_it_and_no_other(tmp_path):
    with pytest.raises(UserError, match="label_smoothing must be 0: the loss of small_tasks:Line knows none"):
        train(replace(LINE, label_smoothing=0.1), tmp_path)
    spec = RunSpec("digits", 8, 1, "adamw", ADAMW, label_smoothing=0.25)
    training = Training(spec, tmp_path, How())
    logits = torch.tensor([[2.0, 0.0]])
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([0]), label_smoothing=0.25)
    assert torch.equal(training.task.loss(logits, torch.tensor([0])), expected)
    assert tasks.find("digits").label_smoothing == 0.0


# the target, and time


@pytest.mark.parametrize("line", [0, 4])
def test_the_target_is_timed_at_its_first_passing_which_may_be_equality(line, finished, monkeypatch, tmp_path):
    history = records.read_lines(finished[0] / "metrics.jsonl")
    target = history[line]["validation"]
    first = next(one for one in history if one["validation"] <= target)
    monkeypatch.setattr(small_tasks.Line, "budgets", (tasks.Budget(16, 12, target),))
    result = train(LINE, tmp_path)
    assert result["steps_to_target"] == first["step"]
    assert 0 < result["seconds_to_target"] <= result["seconds"]


def test_evaluation_is_not_training_time(monkeypatch, tmp_path):
    score = small_tasks.Line.score

    def slow(self, output, target):
        time.sleep(0.1)
        return score(self, output, target)

    monkeypatch.setattr(small_tasks.Line, "score", slow)
    result = train(LINE, tmp_path)  # 12 evaluations
    assert result["seconds"] < 0.6


# modes


def test_model_and_optimizer_are_evaluated_in_the_mode_for_it(tmp_path):
    spec = RunSpec("small_tasks:Moody", 16, 1, "small_optimizers.Moded", SGD)
    training = Training(spec, tmp_path, How())
    training.run(lambda *_: None)
    bare = copy.deepcopy(training.accelerator.unwrap_model(training.model))
    assert bare.training
    assert training._inner().mode == "train"
    assert all((p > 50).all() for p in bare.parameters())  # far from the answer while training
    with torch.no_grad():
        for p in bare.parameters():
            p.sub_(100.0)
    bare.eval()
    rows = training.data.validation
    expected = training.task.score(bare(rows.inputs), rows.targets).mean().item()
    assert training.history[-1]["validation"] == pytest.approx(expected)


# failures


@pytest.mark.parametrize(
    ("first", "loss", "value", "reason"),
    [
        (1.0, 10.5, 1.0, "loss 10.5 more than 10 times the first, 1, at step 3"),
        (1.0, 9.5, 1.0, None),
        (-1.0, 7.5, 1.0, None),
        (-1.0, 8.5, 1.0, "more than 10 times"),
        (1.0, math.nan, 1.0, "non-finite loss at step 3"),
        (1.0, 1.0, math.inf, "non-finite loss at step 3"),
    ],
)
def test_divergence_is_judged_against_the_first_loss(first, loss, value, reason):
    if reason is None:
        assert diverged(first, loss, value, 3) is None
    else:
        with pytest.raises(Failed) as failed:
            diverged(first, loss, value, 3)
        assert failed.value.kind == "diverged"
        assert reason in failed.value.reason


def test_the_first_loss_is_that_of_the_first_step(tmp_path):
    """Not the mean up to the first evaluation, by when a run may have blown up."""
    spec = RunSpec("small_tasks:Line", 16, 20, "small_optimizers.Grows", SGD, evaluations=1)
    task, splits = tasks.load(spec.task)
    torch.manual_seed(0)
    model = task.model()
    at = torch.tensor(data.batch_of(0, 0, 64, 16))
    first = task.loss(model(splits.train.inputs[at]), splits.train.targets[at]).item()
    training = Training(spec, tmp_path, How())
    with pytest.raises(Failed) as failed:
        training.run(lambda *_: None)
    assert training.first == pytest.approx(first, rel=1e-6)
    assert failed.value.kind == "diverged"


@pytest.mark.parametrize(
    ("task", "optimizer", "failure", "reason"),
    [
        ("Line", "RaisesTypeError", "refused", "TypeError: not like this"),
        ("Line", "RaisesImportError", "refused", "ImportError: no such thing"),
        ("Line", "RaisesMemoryError", "out of memory", "MemoryError:"),
        ("Line", "Exits", "refused", "SystemExit: 0"),
        ("Line", "RefusesSettings", "refused", "ValueError: a lr I do not like"),
        ("Line", "Grows", "diverged", "loss"),
        ("Line", "Poisons", "diverged", "non-finite loss at step 1"),
        ("Sensitive", "Poisons", "diverged", "parameters are not finite, and its model or score raised"),
        ("Hungry", "Plain", "out of memory", "OutOfMemoryError: CUDA out of memory. Tried to allocate 1 PiB"),
    ],
)
def test_a_failure_has_a_kind_and_a_reason(task, optimizer, failure, reason, tmp_path):
    if task == "Sensitive":
        reason = "parameters are not finite, and its model, loss or data raised ValueError: array must not contain"
    evaluations = 100 if task == "Line" else 1
    spec = RunSpec(
        f"small_tasks:{task}", 16, 100, f"small_optimizers.{optimizer}", SGD, test=True, evaluations=evaluations
    )
    result = train(spec, tmp_path)
    assert (result["status"], result["failure"]) == ("failed", failure)
    assert result["reason"].startswith(reason)
    assert result["validation"] is None
    assert "test" not in result
    assert read_run(tmp_path).reason == result["reason"]


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("BrokenModel", "model()"),
        ("BrokenLoss", "its model, loss or data"),
        ("BrokenScore", "its model or score"),
        ("BrokenSplits", "splits()"),
    ],
)
def test_a_mistake_of_the_task_is_no_failure_of_the_optimizer(name, where, tmp_path):
    with pytest.raises(TaskFault) as fault:
        train(RunSpec(f"small_tasks:{name}", 16, 2, "adamw", ADAMW), tmp_path)
    assert str(fault.value) == f"the task 'small_tasks:{name}' failed in {where}"
    assert fault.value.__cause__ is not None
    assert not (tmp_path / "result.json").exists()


def test_ctrl_c_is_nobodys_failure(monkeypatch, tmp_path):
    def pressed(self, output, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(small_tasks.Line, "loss", pressed)
    with pytest.raises(KeyboardInterrupt):
        train(LINE, tmp_path)


# going on


class Killed(BaseException):
    """As sudden as a kill: nothing of ours catches it."""


@pytest.mark.parametrize("optimizer", ["alto", "soap", "schedule-free", "ema-nesterov", "e-muon"])
def test_a_run_killed_at_every_event_ends_as_if_nothing_had_happened(optimizer, tmp_path):
    from thalweg.lab.contenders import contender, defaults

    settings = defaults(contender(optimizer), 16)
    spec = RunSpec("small_tasks:Moody", 16, 8, optimizer, settings, test=True, evaluations=2)
    how = How(checkpoint_seconds=0.0)
    train(spec, tmp_path / "whole", how=how)
    kills = 0
    while not (tmp_path / "killed" / "result.json").exists():
        left = [kills % 3 + 1]

        def heard(training, event, left=left):
            left[0] -= event != "evaluation"
            if left[0] == 0:
                raise Killed

        try:
            train(spec, tmp_path / "killed", how=how, heard=heard)
        except Killed:
            kills += 1
            torch.rand(7)  # the generators are not where they were
        assert kills < 60
    assert kills >= 6
    assert kept(tmp_path / "killed") == kept(tmp_path / "whole")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_run_killed_in_every_write_ends_as_if_nothing_had_happened(call, finished, monkeypatch, tmp_path):
    from pathlib import Path

    how = How(checkpoint_seconds=0.0)
    owner = os if call == "fsync" else Path
    original, count, stop_at = getattr(owner, call), [0], [0]

    def killed(*arguments):
        count[0] += 1
        if count[0] == stop_at[0]:
            raise Killed
        return original(*arguments)

    monkeypatch.setattr(owner, call, killed)
    while not (tmp_path / "result.json").exists():
        stop_at[0] += 1
        count[0] = 0
        try:
            train(LINE, tmp_path, Place("seed", number=3), how=how)
        except Killed:
            continue
    assert stop_at[0] > 5
    assert kept(tmp_path) == kept(finished[0])


def test_a_stopped_run_leaves_no_result_and_goes_on(finished, tmp_path):
    def stop(training, event):
        if training.step == 4:
            training.save()
            raise Stopped

    with pytest.raises(Stopped):
        train(LINE, tmp_path, Place("seed", number=3), heard=stop)
    assert not (tmp_path / "result.json").exists()
    steps = []
    train(
        LINE,
        tmp_path,
        Place("seed", number=3),
        heard=lambda t, event: steps.append(t.step) if event == "step" else None,
    )
    assert steps == list(range(5, 13))
    assert kept(tmp_path) == kept(finished[0])


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil-was-here",)


@pytest.mark.parametrize("what", ["code", "rubbish", "nothing", "another run's"])
def test_a_checkpoint_that_is_not_ours_is_not_loaded(what, finished, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    content = {"code": pickle.dumps({"spec": LINE.hash, "step": Evil()}), "rubbish": b"\0" * 99, "nothing": b""}
    if what == "another run's":
        torch.save({"spec": "other"}, folder / checkpoint.NAME)
    else:
        (folder / checkpoint.NAME).write_bytes(content[what])
    train(LINE, folder, Place("seed", number=3))
    assert kept(folder) == kept(finished[0])
    assert not (tmp_path / "evil-was-here").exists()


@pytest.mark.parametrize("text", ["{", '{"status": 1}', '{"status": "finished", "failure": null, "validation": null}'])
@pytest.mark.parametrize("name", ["result.json", "spec.json", "metrics.jsonl"])
def test_a_damaged_record_is_kept_beside_and_the_run_made_again(name, text, finished, tmp_path):
    train(LINE, tmp_path, Place("seed", number=3))
    (tmp_path / name).write_text(text)
    train(LINE, tmp_path, Place("seed", number=3))
    assert kept(tmp_path)[:2] == kept(finished[0])[:2]
    assert (tmp_path / "result.json.damaged").exists()


@pytest.mark.parametrize("changed", ["seed", "settings", "place", "clip"])
def test_a_spec_changed_under_its_hash_is_no_record_of_the_run(changed, finished, tmp_path):
    place = Place("seed", number=3)
    train(LINE, tmp_path, place)
    spec = records.read_json(tmp_path / "spec.json")
    odd = {"seed": 6, "settings": {**ADAMW, "lr": 0.5}, "place": {**spec["place"], "number": 4}, "clip": 1.0}
    records.write_json(tmp_path / "spec.json", {**spec, changed: odd[changed]})
    assert stored(tmp_path, LINE, place) is None
    train(LINE, tmp_path, place)
    assert records.read_json(tmp_path / "spec.json") == spec
    assert stored(tmp_path, LINE, place) == records.read_json(tmp_path / "result.json")


# batches, parts, schedules


def test_each_epoch_sees_every_example_once_in_an_order_of_its_own():
    epochs = [[i for k in range(4) for i in data.batch_of(3, 4 * e + k, 64, 16)] for e in range(3)]
    assert all(sorted(epoch) == list(range(64)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert data.batch_of(4, 0, 64, 16) != data.batch_of(3, 0, 64, 16)
    later = data.batches(3, 7, 64, 16)
    assert [next(later), next(later)] == [data.batch_of(3, 7, 64, 16), data.batch_of(3, 8, 64, 16)]


@pytest.mark.parametrize(("ranks", "micro"), [(1, None), (2, None), (3, 2), (4, 3), (5, 1)])
def test_a_global_batch_is_shared_out_whole_in_as_many_parts_on_every_rank(ranks, micro):
    batch = list(range(100, 113))
    shared = [data.parts(batch, rank, ranks, micro) for rank in range(ranks)]
    assert [i for rank in shared for part in rank for i in part] == batch
    assert len({len(parts) for parts in shared}) == 1
    assert micro is None or max(len(part) for parts in shared for part in parts) <= micro


@pytest.mark.parametrize("micro", [7, 1, 5, 16])
def test_a_batch_in_parts_is_the_whole_batch(micro, finished, tmp_path):
    result = train(LINE, tmp_path, how=How(micro_batch=micro))
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
        assert Training(spec, tmp_path, How()).rates[0] == pytest.approx(0.01 * factor)


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
        "quadratic-deep", 128, 700, "torch.optim.SGD", {"lr": lr, "weight_decay": 0.0, "momentum": 0.0}, seed=seed,
        test=True, schedule="constant", warmup=0.0, evaluations=10,
    )  # fmt: skip
    training = Training(spec, folder, How())
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


# several tensors a batch, several numbers a test


def test_a_model_is_called_with_the_inputs_by_name_and_more_is_recorded(tmp_path):
    result = train(RunSpec("small_tasks:Named", 16, 12, "adamw", ADAMW, seed=5, test=True), tmp_path / "named")
    plain = train(LINE, tmp_path / "plain")
    assert result["test"] == plain["test"]
    assert result["test_metrics"] == {"root": math.sqrt(result["test"])}
    assert read_run(tmp_path / "named").test_metrics == result["test_metrics"]


def test_a_record_from_before_there_were_more_metrics_is_read(finished, tmp_path):
    for path in finished[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    old = {key: value for key, value in finished[1].items() if key != "test_metrics"}
    records.write_json(tmp_path / "result.json", old)
    assert read_run(tmp_path).test_metrics == {}
    records.write_json(tmp_path / "result.json", {**old, "test_metrics": {"F1": "high"}})
    with pytest.raises(records.Damaged, match="F1 should be a number"):
        read_run(tmp_path)
