import json
import math
from itertools import pairwise

import pytest
import torch
from torch.utils.data import DataLoader

from thalweg.lab import engine, records, tasks
from thalweg.lab.engine import Stopped, train
from thalweg.lab.errors import UserError
from thalweg.lab.records import Run

ADAMW = {"lr": 0.01, "weight_decay": 0.01, "momentum": 0.9}
RUN = Run("digits", 64, 40, "adamw", ADAMW, seed=5, test=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, train(RUN, folder)


def test_a_run_is_plain_torch_training(finished):
    task, splits = tasks.load("digits")
    torch.manual_seed(RUN.seed)
    model = task.model()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.99)
    )
    rows = range(len(splits.train))
    loader = DataLoader(rows, 64, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(RUN.seed))
    batches = (batch for _ in range(3) for batch in loader)
    for k, batch in zip(range(40), batches, strict=False):
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.01 * (
            (k + 1) / 3 if k < 2 else 0.5 * (1 + math.cos(math.pi * (k - 2) / 38))
        )
        optimizer.zero_grad()
        task.loss(model(splits.train.inputs[batch]), splits.train.targets[batch]).backward()
        optimizer.step()
    score = task.score(model(splits.test.inputs), splits.test.targets).mean().item()
    assert finished[1]["test"] == pytest.approx(score, abs=1e-4)
    assert finished[1]["validation"] == pytest.approx(
        task.score(model(splits.validation.inputs), splits.validation.targets).mean().item(), abs=1e-4
    )


def test_a_run_leaves_settings_environment_metrics_and_result(finished):
    folder, result = finished
    assert records.read_json(folder / "settings.json")["settings"] == ADAMW
    assert records.read_json(folder / "environment.json")["torch"] == torch.__version__
    history = records.metrics(folder)
    assert [line["step"] for line in history] == list(range(2, 41, 2))
    assert history[-1]["validation"] == result["validation"]
    assert all(a["seconds"] < b["seconds"] for a, b in pairwise(history))
    assert records.read_json(folder / "result.json") == result
    assert result["status"] == "finished"


def test_the_target_is_timed_at_its_first_passing(finished, monkeypatch, tmp_path):
    history = records.metrics(finished[0])
    target = history[4]["validation"]
    first = next(line for line in history if line["validation"] >= target)
    monkeypatch.setattr(tasks.Digits, "budgets", {64: tasks.Budget(40, target)})
    result = train(RUN, tmp_path / "run")
    assert result["steps_to_target"] == first["step"]
    assert 0 < result["seconds_to_target"] <= result["seconds"]


def test_a_complete_run_is_not_run_again_and_another_run_replaces_it(tmp_path):
    folder = tmp_path / "run"
    short = Run("sine", 256, 4, "adamw", ADAMW, seed=0, test=False)
    first = train(short, folder)
    written = (folder / "result.json").stat().st_mtime_ns
    assert train(short, folder) == first
    assert (folder / "result.json").stat().st_mtime_ns == written
    train(Run("sine", 256, 4, "adamw", ADAMW, seed=1, test=False), folder)
    assert records.read_json(folder / "settings.json")["seed"] == 1
    assert "test" not in first  # tuning never sees the test set


def test_divergence_is_a_failure_with_a_reason(tmp_path):
    run = Run("sine", 256, 40, "sgd", {"lr": 1e3, "weight_decay": 0.0, "momentum": 0.9}, seed=0, test=True)
    result = train(run, tmp_path / "run")
    assert result["status"] == "failed"
    assert "loss" in result["reason"]
    assert result["validation"] is None
    assert "test" not in result


def test_an_optimizer_that_raises_is_a_failure_with_its_message(tmp_path):
    run = Run("sine", 256, 4, "adamw", {**ADAMW, "momentum": 1.5}, seed=0, test=True)
    result = train(run, tmp_path / "run")
    assert result["status"] == "failed"
    assert result["reason"].startswith("ValueError: Invalid beta")


def test_a_stopped_run_leaves_no_result_and_is_run_again(tmp_path):
    folder = tmp_path / "run"
    run = Run("sine", 256, 8, "adamw", ADAMW, seed=0, test=False)

    def stop(step):
        if step == 4:
            raise Stopped

    with pytest.raises(Stopped):
        train(run, folder, stop)
    assert not (folder / "result.json").exists()
    assert records.result(folder, run) is None
    assert [line["step"] for line in records.metrics(folder)] == [1, 2, 3, 4]
    assert train(run, folder)["status"] == "finished"
    assert [line["step"] for line in records.metrics(folder)] == list(range(1, 9))


def test_the_schedule_warms_up_and_ends_at_zero():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = engine._schedule(optimizer, 100)
    rates = []
    for _ in range(100):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[:5] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])
    assert max(rates) == rates[5] == 1.0
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert schedule.get_last_lr()[0] == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("name", "text"), [("result.json", "{"), ("result.json", '{"status": 1}'), ("settings.json", "")]
)
def test_a_corrupt_record_is_one_clear_error(name, text, tmp_path):
    folder = tmp_path / "run"
    run = Run("sine", 256, 2, "adamw", ADAMW, seed=0, test=False)
    train(run, folder)
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=r"corrupt record .*: delete .* and run the same command again"):
        records.result(folder, run)


def test_a_corrupt_history_is_one_clear_error(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + '\n{"st')
    with pytest.raises(UserError, match="corrupt record"):
        records.metrics(tmp_path)
