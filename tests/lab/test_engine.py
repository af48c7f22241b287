import copy
import cProfile
import json
import math
import os
import pstats
import time
from dataclasses import fields, replace

import psutil
import pytest
import small_tasks
import torch
from lines import ADAMW, LINE, SGD, batch_of, untimed

from thalweg.lab import tasks
from thalweg.lab.contenders import contender
from thalweg.lab.engine import Execution, RunSpec, Training, data, train
from thalweg.lab.failures import Failed, diverged
from thalweg.records import files as records
from thalweg.records.errors import TaskFault, UserError
from thalweg.records.reading import read_run
from thalweg.studies import forecast


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
        at = torch.tensor(batch_of(LINE.seed, k, 64, 16))
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


def test_the_loss_of_a_line_is_the_mean_of_the_steps_since_the_last(finished, tmp_path):
    train(replace(LINE, evaluations=3), tmp_path)
    steps = [line.loss for line in read_run(finished[0]).history]
    assert [line.loss for line in read_run(tmp_path).history] == pytest.approx(
        [sum(steps[k : k + 4]) / 4 for k in (0, 4, 8)], rel=1e-6
    )


def test_a_line_says_how_fast_it_was_and_how_much_memory_it_took(finished):
    lines = records.read_lines(finished[0] / "metrics.jsonl")
    before = 0.0
    for line in lines:
        assert line["examples_per_second"] == pytest.approx(16 / (line["seconds"] - before), rel=1e-9)
        assert not {"tokens_per_second", "flops_per_second"} & set(line)
        assert 5e7 < line["peak_memory"] <= psutil.virtual_memory().total
        before = line["seconds"]


def test_a_language_model_says_its_tokens_and_operations_a_second(tmp_path):
    train(RunSpec("pydoc-lm", 16, 2, "adamw", ADAMW, evaluations=1), tmp_path)
    (line,) = records.read_lines(tmp_path / "metrics.jsonl")
    tokens = 2 * 16 * 48 / line["seconds"]
    assert line["tokens_per_second"] == pytest.approx(tokens, rel=1e-9)
    assert line["flops_per_second"] == pytest.approx(6 * tasks.parameters(tasks.find("pydoc-lm")) * tokens, rel=1e-9)


@pytest.mark.parametrize("name", ["pydoc-lm", "pydoc-moe"])
def test_six_operations_a_token_and_parameter_are_nearly_what_torch_counts(name):
    """Embeddings count for nothing there and attention does, here it is the other way round."""
    task = tasks.find(name)
    with torch.device("meta"):
        model = task.skeleton()
    assert task.operations(model) == pytest.approx(forecast.operations(task), rel=0.07)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_every_example_of_a_split_is_scored_once_on_however_many_processes(ranks, tmp_path):
    """Those that have none score one all the same, as all ranks of a sharded model must; it does not count."""
    training = Training(LINE, tmp_path, Execution())
    rows = training.data.validation
    training.data = training.data._replace(validation=tasks.Rows(*rows.__getitems__([4, 2, 9])))
    whole = training.scores("validation")
    found = []
    for rank in range(ranks):
        training.rank, training.ranks = rank, ranks
        found.append(training.scores("validation"))
    assert torch.equal(torch.cat(found), whole)


def test_workers_that_load_what_is_scored_stay_for_the_next_evaluation(tmp_path):
    training = Training(replace(LINE, task="small_tasks:Loaded"), tmp_path, Execution(workers=1))
    pids = {int(pid) for _ in range(3) for pid in training.scores("validation")}
    assert len(pids) == 1
    assert pids != {os.getpid()}
    assert {int(pid) for pid in training.scores("test")}.isdisjoint(pids)


def test_batches_are_copied_while_an_accelerator_computes(monkeypatch):
    sent = []
    monkeypatch.setattr(data, "send_to_device", lambda batch, device, **how: sent.append((device.type, how)) or batch)
    for kind in ("cpu", "cuda", "mps"):
        data.on_device((1, 2), torch.device(kind))
    assert sent == [("cuda", {"non_blocking": True}), ("mps", {"non_blocking": False})]
    rows = tasks.Rows(torch.ones(4, 1), torch.ones(4))
    assert data.loader(rows, [[0]], pinned=True).pin_memory
    assert not data.loader(rows, [[0]], workers=1).pin_memory


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
        ("clip", 0.0, "clip must be None or a number greater than 0"),
        ("label_smoothing", 1.0, r"label_smoothing must be a number in \[0, 1\)"),
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
    with pytest.raises(UserError, match="label_smoothing must be 0: the loss of small_tasks:Line does not support it"):
        train(replace(LINE, label_smoothing=0.1), tmp_path)
    spec = RunSpec("digits", 8, 1, "adamw", ADAMW, label_smoothing=0.25)
    training = Training(spec, tmp_path, Execution())
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


def test_steps_that_do_not_divide_are_evaluated_as_often_as_asked_and_all_take_time(tmp_path):
    train(replace(LINE, steps=7, evaluations=3), tmp_path)
    steps, seconds = zip(*((line.step, line.seconds) for line in read_run(tmp_path).history), strict=True)
    assert steps == (3, 5, 7)
    assert seconds[0] < seconds[1] < seconds[2]


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
    training = Training(spec, tmp_path, Execution())
    training.run(lambda *_: None)
    bare = copy.deepcopy(training.accelerator.unwrap_model(training.model))
    assert bare.training
    assert training.inner().mode == "train"
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
    ("first", "loss", "reference", "reason"),
    [
        (1.0, 10.5, 1.0, "loss 10.5 more than 10 times the first, 1, at step 3"),
        (1.0, 9.5, 1.0, None),
        (50.0, 499.0, 1.0, None),
        (50.0, 501.0, 1.0, "loss 501 more than 10 times the first, 50, at step 3"),
        (-1.0, 7.5, 1.0, None),
        (-1.0, 8.5, 1.0, "loss 8.5 at step 3, risen from -1 at the first step by more than 9 times 1"),
        (-1000.0, 7000.0, 1.0, None),
        (-1000.0, 8001.0, 1.0, "risen from -1000 at the first step by more than 9 times 1000"),
        (0.0, 8.9, 1.0, None),
        (0.0, 9.1, 1.0, "loss 9.1 at step 3, risen from 0 at the first step by more than 9 times 1"),
        (1e-9, 0.5, 1.0, None),
        (1e-9, 0.5, 0.01, "risen from 1e-09 at the first step by more than 9 times 0.01"),
        (0.0, 1e5, 1e6, None),
        (1.0, math.nan, 1.0, "non-finite loss at step 3"),
        (1.0, -math.inf, 1.0, "non-finite loss at step 3"),
    ],
)
def test_divergence_is_judged_against_the_first_loss_or_the_reference(first, loss, reference, reason):
    if reason is None:
        assert diverged(first, loss, 3, reference) is None
    else:
        with pytest.raises(Failed) as failed:
            diverged(first, loss, 3, reference)
        assert failed.value.kind == "diverged"
        assert reason in failed.value.reason


@pytest.mark.parametrize("name", ["Rare", "Solved", "Dollars", "Density"])
def test_a_small_first_loss_makes_no_healthy_run_a_diverged_one(name, tmp_path):
    settings = {**ADAMW, "lr": 0.1}
    spec = RunSpec(f"small_tasks:{name}", 16, 40, "adamw", settings, seed=1, evaluations=40)
    assert train(spec, tmp_path)["status"] == "finished"
    losses = [line.loss for line in read_run(tmp_path).history]
    if name in ("Rare", "Solved", "Dollars"):  # which the first alone would have taken for divergence
        assert max(losses) > 10.0 * losses[0]


def test_what_diverges_from_good_weights_has_diverged_all_the_same(tmp_path):
    spec = RunSpec("small_tasks:Solved", 16, 40, "sgd", {**SGD, "lr": 5.0, "weight_decay": 0.1}, evaluations=40)
    result = train(spec, tmp_path)
    assert result["failure"] == "diverged"
    assert "risen from 0 at the first step by more than 9 times 1" in result["reason"]


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, True, "1", None])
def test_a_reference_loss_that_is_none_is_one_clear_error(value, tmp_path, monkeypatch):
    monkeypatch.setattr(small_tasks.Solved, "reference_loss", value)
    with pytest.raises(UserError, match="task 'small_tasks:Solved': reference_loss must be a finite number greater"):
        tasks.find.__wrapped__("small_tasks:Solved")


def test_the_first_loss_is_that_of_the_first_step(tmp_path):
    """Not the mean up to the first evaluation, by when a run may have blown up."""
    spec = RunSpec("small_tasks:Line", 16, 20, "small_optimizers.Grows", SGD, evaluations=1)
    task, splits = tasks.load(spec.task)
    torch.manual_seed(0)
    model = task.model()
    at = torch.tensor(batch_of(0, 0, 64, 16))
    first = task.loss(model(splits.train.inputs[at]), splits.train.targets[at]).item()
    training = Training(spec, tmp_path, Execution())
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
        ("Line", "Poisons", "diverged", "parameters are not finite at step 1"),
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
        ("NoModel", "model()"),
        ("Frozen", "model()"),
        ("NoNumber", "its combine"),
        ("NoMore", "its score on the test set"),
    ],
)
def test_a_mistake_of_the_task_is_no_failure_of_the_optimizer(name, where, tmp_path):
    with pytest.raises(TaskFault) as fault:
        train(RunSpec(f"small_tasks:{name}", 16, 2, "adamw", ADAMW, test=True), tmp_path)
    assert str(fault.value) == f"the task 'small_tasks:{name}' failed in {where}"
    assert fault.value.__cause__ is not None
    assert not (tmp_path / "result.json").exists()


def test_ctrl_c_is_nobodys_failure(monkeypatch, tmp_path):
    def pressed(self, output, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(small_tasks.Line, "loss", pressed)
    with pytest.raises(KeyboardInterrupt):
        train(LINE, tmp_path)


# several tensors a batch, several numbers a test


def test_a_model_is_called_with_the_inputs_by_name_and_more_is_recorded(tmp_path):
    result = train(RunSpec("small_tasks:Named", 16, 12, "adamw", ADAMW, seed=5, test=True), tmp_path / "named")
    plain = train(LINE, tmp_path / "plain")
    assert result["test"] == plain["test"]
    assert result["test_metrics"] == {"root": math.sqrt(result["test"])}
    assert read_run(tmp_path / "named").test_metrics == result["test_metrics"]


def test_numbers_need_not_be_pythons_and_what_is_none_is_left_out(tmp_path):
    result = train(RunSpec("small_tasks:Tensors", 16, 12, "adamw", ADAMW, seed=5, test=True), tmp_path)
    assert read_run(tmp_path).test == result["test"] == pytest.approx(train(LINE, tmp_path / "plain")["test"])
    assert list(read_run(tmp_path).test_metrics) == ["greatest"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Unlucky", "the metric is inf on the test set at the end, the loss "),
        ("UndefinedOnTheTestSet", "the metric is nan on the test set at the end, the loss "),
        ("UndefinedAtTheEnd", "the metric is nan on the validation set at the end, the loss "),
        ("InfiniteAtTheEnd", "the metric is inf on the validation set at the end, the loss "),
    ],
)
def test_a_metric_that_is_not_finite_at_the_end_is_a_failure_of_its_own(name, reason, tmp_path):
    result = train(RunSpec(f"small_tasks:{name}", 16, 12, "adamw", ADAMW, test=True, evaluations=4), tmp_path)
    assert (result["status"], result["failure"]) == ("failed", "non-finite metric")
    assert result["reason"].startswith(reason)
    assert math.isfinite(float(result["reason"].removeprefix(reason)))
    run = read_run(tmp_path)
    assert (run.failure, run.validation, run.test) == ("non-finite metric", None, None)
    assert [line.step for line in run.history] == [3, 6, 9, 12]
    assert math.isfinite(run.history[-1].validation) is ("test" in reason)


def test_a_metric_that_is_not_finite_before_the_end_is_a_gap_in_the_curve(tmp_path):
    spec = RunSpec("small_tasks:UndefinedOnce", 16, 12, "adamw", ADAMW, test=True, evaluations=4)
    result = train(spec, tmp_path / "gaps")
    whole = train(replace(spec, task="small_tasks:Line"), tmp_path / "whole")
    assert untimed(result) == untimed(whole)
    lines = records.read_lines(tmp_path / "gaps" / "metrics.jsonl")
    assert [line["validation"] is None for line in lines] == [True, False, True, False]
    assert [line["loss"] for line in lines] == [line.loss for line in read_run(tmp_path / "whole").history]


def test_a_record_from_before_there_were_more_metrics_is_read(finished, tmp_path):
    for path in finished[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    old = {key: value for key, value in finished[1].items() if key != "test_metrics"}
    records.write_json(tmp_path / "result.json", old)
    assert read_run(tmp_path).test_metrics == {}
    records.write_json(tmp_path / "result.json", {**old, "test_metrics": {"F1": "high"}})
    with pytest.raises(records.Damaged, match="F1 should be a number"):
        read_run(tmp_path)


def test_a_step_of_the_engine_costs_few_calls_more_than_a_plain_one(tmp_path):
    """71 when this was written; 662 with Accelerate's wrapper, which looks for a package on disk at every step."""
    spec = RunSpec("digits", 64, 40, "adamw", ADAMW, evaluations=1)
    training = Training(spec, tmp_path, Execution())
    batches, task, rows = training.batches(), *tasks.load("digits")
    model = task.model()
    optimizer = contender("adamw").build(model, ADAMW)
    at = torch.arange(64)

    def plain():
        task.loss(model(rows.train.inputs[at]), rows.train.targets[at]).backward()
        optimizer.step()
        optimizer.zero_grad()

    assert _calls(lambda: training.take_step(batches)) - _calls(plain) < 120


def _calls(step, steps=10):
    step()  # which makes the optimizer's state
    profile = cProfile.Profile()
    profile.runcall(lambda: [step() for _ in range(steps)])
    return pstats.Stats(profile).total_calls / steps
