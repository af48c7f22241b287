import dataclasses
import math
import os
import random
from statistics import median

import pytest
import torch

from thalweg.commands import reproduce as reproducing
from thalweg.commands import terminal
from thalweg.lab import skeletons, tasks
from thalweg.lab.contenders import contender, defaults
from thalweg.lab.engine import RunSpec, train
from thalweg.lab.search import forecast as of_cells
from thalweg.lab.search import timing
from thalweg.lab.search.plan import ComparisonPlan
from thalweg.records.errors import UserError
from thalweg.sharding import plan
from thalweg.studies import forecast, recipe


def products_of_digits():
    """Multiplications and additions of the layers, and twice as many backward, but for what would go to the images."""
    model, products = tasks.find("digits").model(), []

    def count(module, inputs, output):
        each = module.weight.numel() * (output.shape[-2:].numel() if output.ndim == 4 else 1)
        products.append(2 * each * (2 if not products else 3))

    for module in model.modules():
        if isinstance(getattr(module, "weight", None), torch.nn.Parameter) and module.weight.ndim == 2:
            module.register_forward_hook(count)
    model(tasks.load("digits")[1].train[0][0][None])
    return sum(products)


def test_a_forecast_counts_parameters_steps_runs_and_bytes():
    one = recipe.Comparison("digits", 64, ("adamw", "alto", "sgd:lr=0.1|0.2:momentum=0.9:weight_decay=0"), epochs=7,
                            trials=5, studies=2, seeds=3, tuning_seeds=4)  # fmt: skip
    found = forecast.forecast(one, devices=1)
    parameters = sum(p.numel() for p in tasks.find("digits").model().parameters())
    assert found.parameters == parameters
    assert found.examples == 1197
    assert found.steps == 7 * (1197 // 64)
    assert found.runs == 2 * (2 * (5 + 3 + 3) * 4 + 3) + 2 * 4 + 3
    assert (found.costliest, found.cost.fused) == ("alto", parameters * (4 + 4 + 12))
    assert found.download == ""
    seen = found.runs * found.steps * 64
    assert found.operations == seen * products_of_digits()
    assert found.seconds(2.0) == 2.0 * forecast.forecast(one, devices=2).seconds(2.0) == found.operations / 2e12
    assert forecast.forecast(one, devices=100).seconds(2.0) == found.operations / (64 * 2e12)  # an example on each
    assert found.core_seconds == pytest.approx((found.runs * found.steps * 500 + seen * 40) / 1e6)
    assert found.seconds(None) == found.core_seconds / os.cpu_count()


@pytest.mark.parametrize(
    ("name", "tokens"), [("pydoc-lm", 48), ("pydoc-moe", 48), ("gpt2-345m", 1024), ("moe-85b", 8192)]
)
def test_operations_of_language_models_are_six_a_parameter_in_use_and_token_and_those_of_attention(name, tokens):
    """6ND of Kaplan et al. 2020 and 12 · layers · width · length² of attention."""
    task = tasks.find(name)
    with torch.device("meta"):
        model = task.skeleton()
    used = 0
    for parameter, p in model.named_parameters():
        share = task.chosen / p.shape[0] if "experts" in parameter else 1.0
        is_table = parameter.endswith(("wpe.weight", "embed_tokens.weight")) or p.ndim < 2
        used += 0 if is_table else share * p.numel()
    config = model.config
    attention = 12 * config.num_hidden_layers * config.hidden_size * tokens**2
    assert forecast.operations(task) == pytest.approx(6 * used * tokens + attention, rel=0.02)


def test_a_dry_run_at_paper_scale_needs_no_data_and_says_how_long(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("THALWEG_DATA", str(tmp_path))  # where nothing lies
    monkeypatch.chdir(tmp_path)
    hours = []
    for devices, tflops in ((1, "50"), (4, "50"), (1, "200")):
        options = reproducing.Reproduce(scale="paper", devices=devices, tflops=float(tflops), dry_run=True)
        reproducing.reproduce("image-classification", options=options)
        said = capsys.readouterr().out
        assert "cifar10-resnet20 at batch size 16,384: 72 runs of 800 steps; 2.3e+17 operations" in said
        assert "download: ILSVRC/imagenet-1k (gated: accept its terms, then hf auth login; 167 GB)" in said
        hours.append(said.splitlines()[-1].split("about ")[1].split(" on")[0])
    assert hours == ["101 d", "25 d", "25 d"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "buffers", "width"),
    [("lamb", 2, 4), ("alto", 3, 4), ("alto-bf16", 3, 2), ("adamw", 2, 4), ("adabelief", 2, 4), ("sgd", 1, 4),
     ("e-adamw", 3, 4), ("soap", 6, 4)],
)  # fmt: skip
def test_a_rank_holds_its_shards_of_parameters_gradients_and_state(name, buffers, width):
    one = recipe.Comparison("digits", 64, (f"{name}:lr=0.1",), steps=1, sharding="fsdp2")
    shapes = [p.shape for p in tasks.find("digits").model().parameters()]
    for devices in (1, 3):
        here = sum(math.ceil(shape[0] / devices) * shape[1:].numel() for shape in shapes)
        found = forecast.forecast(one, devices)
        assert (found.cost.fused, found.costliest) == (here * (8 + buffers * width), name)
    whole = forecast.forecast(dataclasses.replace(one, sharding="ddp"), 3).cost
    assert whole.parameters == 4 * sum(shape.numel() for shape in shapes)


def test_a_dry_run_says_what_a_rank_holds_and_whether_it_fits(capsys):
    def said(devices, **options):
        asked = reproducing.Reproduce(scale="paper", devices=devices, dry_run=True, **options)
        reproducing.reproduce("moe-pretraining", options=asked)
        return capsys.readouterr().out

    parameters = skeletons.of_task("moe-85b")
    cost = plan.cost(parameters, plan.Mesh(expert=384), forecast.planned("alto"))
    held = f"85,026.95 M parameters, at most {terminal.size(cost.total)} a device of 384, fsdp2+ep (alto;"
    assert cost.fused == (4 + 4 + 12) * 221_547_863
    assert held in said(384)
    assert "), fits in 80 GB; download: spacerini" in said(384)
    assert "), does not fit in 80 GB;" in said(8)
    assert "), fits if fused in 4.5 GB;" in said(384, memory="4.5GB")
    with pytest.raises(
        UserError, match=r"^moe-85b on 7 devices, fsdp2\+ep: mesh expert must divide the 384 experts of "
    ):
        said(7)


class Turning:
    """What the timing pass needs of a training, whose steps take so many seconds of a clock that is moved by hand.

    Each step takes longer or shorter by up to ``noise`` of that, at random.
    """

    now = 0.0

    def __init__(self, seconds, noise=0.0, seed=0):
        self.seconds, self.noise, self.random = seconds, noise, random.Random(seed)

    def batches(self):
        return None

    def take_step(self, batches):
        Turning.now += self.seconds * (1 + self.random.uniform(-self.noise, self.noise))

    def _clock(self):
        return Turning.now


@pytest.mark.parametrize(("step", "optimizers"), [(0.001, 6), (0.07, 6), (0.3, 1), (0.5, 3), (2.0, 4), (30.0, 2)])
def test_the_timing_pass_takes_as_long_as_is_said(step, optimizers, monkeypatch):
    monkeypatch.setattr(timing.time, "perf_counter", lambda: Turning.now)
    Turning.now = 0.0
    seconds = timing._interleaved({str(i): Turning(step) for i in range(optimizers)}, lambda: False)
    assert all(seconds.values())
    said = of_cells.timing_pass(step, optimizers, 0) - optimizers * of_cells.RUN / 1e6
    assert said == pytest.approx(Turning.now, abs=2.01 * step * optimizers)


@pytest.mark.parametrize(("noise", "rounds"), [(0.0, [5]), (0.1, range(6, 15)), (0.5, [20])])
def test_the_rounds_end_when_the_ratios_are_known(noise, rounds, monkeypatch):
    monkeypatch.setattr(timing.time, "perf_counter", lambda: Turning.now)
    Turning.now = 0.0
    steps = {"sgd": Turning(0.01, noise, 1), "adamw": Turning(0.02, noise, 2), "muon": Turning(0.03, noise, 3)}
    seconds = timing._interleaved(steps, lambda: False)
    assert {len(one) for one in seconds.values()} <= set(rounds)
    sgd, *others = (median(one) for one in seconds.values())
    assert [other / sgd for other in others] == pytest.approx([2.0, 3.0], rel=0.01 + noise)


def test_the_forecast_of_a_comparison_has_all_that_the_command_does(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    plan = ComparisonPlan(
        ("small_tasks:Line",),
        (16, 48),
        ("sgd", "adamw", "muon", "sgd:lr=0.1|1"),
        trials=3,
        studies=2,
        seeds=4,
        steps=30,
        tuning_seeds=3,
    )
    cells, _ = plan.cells(tmp_path)
    found = of_cells.expected(cells, 2, timing=True)
    # 2 tables; 3 optimizers of 2 (3 + 2 + 2) trials and one of 2 · 3, from 3 seeds each, and 4 fresh seeds of all;
    # 20 evaluations of 64 examples of 1 us
    trials = 3 * (3 * 14 + 6)
    steps = {16: 516.0, 48: 548.0}
    assert found.training == pytest.approx(sum(steps.values()) * 30 * (trials + 16) / 2e6)
    parameters = 3 * 8 + 8 + 8 + 1
    run = 50_000 + parameters * 0.01 + 20 * (1000 + 64 / 3)
    assert found.beside == pytest.approx(2 * ((trials + 16) * run + 16 * (1000 + 64 / 3)) / 2e6)
    turns = sum(10 * 4 * step for step in steps.values()) + 2 * 4 * (50_000 + parameters * 0.01)
    assert found.timing == pytest.approx(turns / 1e6)
    assert found.total == found.training + found.beside + found.timing
    assert found.starting == 10.0
    without = of_cells.expected(cells, 1, timing=False)
    assert (without.timing, without.starting, without.training) == (0.0, 5.0, 2 * found.training)
    assert of_cells.expected(cells, 64, timing=True) == found  # no more than the cores
    assert of_cells.expected([], 2, timing=True).total == 0.0


def test_the_forecast_of_a_recipe_has_evaluations_and_the_timing_pass(monkeypatch):
    one = recipe.Comparison("digits", 64, ("adamw", "alto"), steps=100, trials=5, studies=1, seeds=3,
                            regimen={"evaluations": 7})  # fmt: skip
    found = forecast.forecast(one, devices=1)
    validation, test = (len(part) for part in tasks.load("digits")[1][1:])
    run = of_cells.RUN + of_cells.INITIAL * found.parameters
    runs = 2 * ((5 + 3 + 3) * 2 + 3)
    evaluations = runs * 7 * (1000 + 40 * validation / 3) + 6 * (1000 + 40 * test / 3)
    assert found.beside == pytest.approx((runs * run + evaluations) / 1e6)
    turns = of_cells.timing_pass((500 + 64 * 40) / 1e6, 2, found.parameters)
    assert found.whole(None) == pytest.approx(found.seconds(None) + found.beside / os.cpu_count() + turns)
    assert forecast.forecast(one, devices=8).whole(1.0) == forecast.forecast(one, devices=8).seconds(1.0)
    assert found.whole(1.0) > found.seconds(1.0)


@pytest.mark.parametrize(
    ("steps", "evaluations", "at"),
    [(39, 20, 20), (39, 39, 39), (40, 20, 20), (41, 20, 20), (19, 20, 19), (1, 20, 1), (997, 10, 10), (7, 1, 1)],
)
def test_a_run_is_evaluated_as_often_as_is_asked_for(steps, evaluations, at):
    spec = RunSpec("digits", 64, steps, "sgd", {}, evaluations=evaluations)
    found = [step for step in range(1, steps + 1) if spec.evaluated(step)]
    assert len(found) == at
    assert found[-1] == steps
    gaps = {b - a for a, b in zip([0, *found], found, strict=False)}
    assert max(gaps) - min(gaps) <= 1
    if steps % evaluations == 0:
        assert found == list(range(steps // evaluations, steps + 1, steps // evaluations))


def test_the_records_have_as_many_evaluations(tmp_path):
    spec = RunSpec("small_tasks:Line", 16, 39, "sgd", defaults(contender("sgd"), 16), evaluations=20)
    assert train(spec, tmp_path / "run")["status"] == "finished"
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 20
