import dataclasses
import functools
import math
import os
import random
from statistics import median

import pytest
import small_tasks
import torch

from thalweg.commands import reproduce as reproducing
from thalweg.commands import terminal
from thalweg.lab import skeletons, tasks
from thalweg.lab.contenders import contender, defaults
from thalweg.lab.engine import RunSpec, speed, train
from thalweg.lab.search import forecast as of_cells
from thalweg.lab.search import timing
from thalweg.lab.search.plan import ComparisonPlan
from thalweg.records.errors import UserError
from thalweg.sharding import plan
from thalweg.studies import fits, forecast, recipe
from thalweg.studies.activations import activations


def forecast_of(one, devices):
    table = fits.Table(one)
    return forecast.forecast(table, table.mesh(devices))


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
    found = forecast_of(one, devices=1)
    parameters = sum(p.numel() for p in tasks.find("digits").model().parameters())
    assert found.parameters == parameters
    assert found.examples == 1197
    assert found.steps == 7 * (1197 // 64)
    assert found.runs == 2 * (2 * (5 + 3 + 3) * 4 + 3) + 2 * 4 + 3
    assert (found.needs.optimizer, found.needs.cost.fused) == ("alto", parameters * (4 + 4 + 12))
    assert found.needs.cost.checkpoint == parameters * (4 + 12)
    assert found.download == ""
    seen = found.runs * found.steps * 64
    assert found.operations == seen * products_of_digits()
    assert found.seconds(2.0) == 2.0 * forecast_of(one, devices=2).seconds(2.0) == found.operations / 2e12
    with pytest.raises(
        UserError, match=r"^digits at batch size 64 is for at most 64 devices that share a batch, got 65$"
    ):
        forecast_of(one, devices=65)
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
    for devices, tflops in ((1, "50"), (2, "200")):
        options = reproducing.Reproduce(scale="paper", devices=devices, tflops=float(tflops), dry_run=True)
        reproducing.reproduce("image-classification", options=options)
        said = capsys.readouterr().out
        assert "cifar10-resnet20 at batch size 16,384: 72 runs of 800 steps; 2.3e+17 operations" in said
        assert "download: ILSVRC/imagenet-1k (gated: accept its terms, then hf auth login; 167 GB)" in said
        hours.append(said.splitlines()[-1].split("about ")[1].split(" on")[0])
    assert hours == ["101 d", "13 d"]
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
        needs = forecast_of(one, devices).needs
        assert (needs.cost.fused, needs.optimizer) == (here * (8 + buffers * width), name)
        assert needs.cost.checkpoint == sum(map(math.prod, shapes)) * (4 + buffers * width)
    whole = forecast_of(dataclasses.replace(one, sharding="ddp"), 3).needs.cost
    assert whole.parameters == 4 * sum(shape.numel() for shape in shapes)


def dry_run(capsys, name, **options):
    """What is printed, and what is refused at its end."""
    asked = reproducing.Reproduce(scale="paper", dry_run=True, **options)
    try:
        reproducing.reproduce(name, options=asked)
    except UserError as error:
        return capsys.readouterr().out, str(error)
    return capsys.readouterr().out, ""


def test_a_dry_run_says_how_a_table_is_carried_out_and_refuses_what_does_not_fit(capsys):
    parameters, mesh = skeletons.of_task("moe-85b"), plan.Mesh(expert=384)
    cost = plan.cost(parameters, mesh, fits.planned("alto"))
    assert cost.fused == (4 + 4 + 12) * 221_547_863
    said, refused = dry_run(capsys, "moe-pretraining")
    lines = said.splitlines()
    assert lines[2:5] == [
        "    384 devices, expert=384, precision bf16, 1 example at a time in 5 parts, activation checkpointing",
        f"    {sum(p.numel for p in parameters):,} parameters; at most {terminal.size(cost.total)} a device with alto: "
        f"parameters {terminal.size(cost.parameters)}, gradients {terminal.size(cost.gradients)}, "
        f"state {terminal.size(cost.state)}, a step's temporary {terminal.size(cost.temporary)}, without activations; "
        "fits in 80 GB",
        f"    checkpoint {terminal.size(cost.checkpoint)}; alto adds to a step's collectives "
        + " and ".join(f"an all-reduce of {terminal.size(one.bytes)} over 384" for one in cost.all_reduces),
    ]
    assert cost.checkpoint == sum(p.numel for p in parameters) * (4 + 12)
    assert len(cost.all_reduces) == 2
    assert refused == ""
    said, refused = dry_run(capsys, "moe-pretraining", memory="3GB")
    assert "without activations; does not fit in 3 GB\n" in said
    assert said.splitlines()[-1].startswith("in total about ")
    eight = plan.cost(parameters, mesh, fits.planned("alto-8bit")).total
    assert refused == (
        f"--memory must be at least {terminal.size(cost.total)} for moe-85b at batch size 1,600 on 384 devices with "
        f"alto, got 3 GB; what would fit: alto-8bit ({terminal.size(eight)})"
    )
    said, refused = dry_run(capsys, "moe-pretraining", devices=7)
    assert refused.startswith(
        "moe-85b at batch size 1,600 is for 384 devices, expert=384, got 7: start as many processes"
    )
    assert "in total" not in said


def test_a_total_says_what_it_lacks(capsys):
    said, _ = dry_run(capsys, "convergence")
    assert "convergence: an unknown time on two cores" in said
    assert said.splitlines()[-1].startswith("in total about 0 s, without 1 whose time is unknown, on those devices")


OWN = """
title = "Own"
[lab]
optimizers = ["adamw", "alto"]
[[lab.tables]]
task = "small_tasks:Line"
batch_size = 48
steps = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A function that writes a recipe with these lines for its table."""
    monkeypatch.chdir(tmp_path)

    def write(lines=""):
        (tmp_path / "own.toml").write_text(OWN + lines)
        return "own.toml"

    return write


def test_what_does_not_fit_or_suit_is_refused_before_anything_is_written(own, tmp_path, monkeypatch):
    def refused(lines="", **options):
        with pytest.raises(UserError) as raised:
            reproducing.reproduce(own(lines), options=reproducing.Reproduce(**options))
        assert [one.name for one in tmp_path.iterdir()] == ["own.toml"]
        return str(raised.value)

    assert refused(memory="0.002MB") == (
        "--memory must be at least 66.4 kB for small_tasks:Line at batch size 48 on 1 device with alto, got 2 kB; what "
        "would fit: micro_batch = 12 (1.98 kB)"
    )
    assert refused(memory="0.0001MB").endswith("; no more devices, micro-batch or optimizer would make it fit")
    monkeypatch.setattr(speed, "device_memory", lambda: 100)
    assert "got 100 B, which the device has; no more" in refused()
    monkeypatch.setattr(speed, "device_memory", lambda: None)
    lines = 'sharding = "fsdp2"\nmesh = {data = 2, shard = 3}'
    assert refused(lines).startswith(
        "small_tasks:Line at batch size 48 is for 6 devices, data=2 x shard=3, got 1: start as many processes"
    )
    lines = 'sharding = "fsdp2"\nmesh = {tensor = 1, expert = 1}'
    assert refused("mesh = {data = 1}") == "--mesh is for --sharding fsdp2 or fsdp2+ep, got ddp"
    assert "devices of [[lab.tables]] must be those of its mesh, 6, got 5" in refused(
        'sharding = "fsdp2"\nmesh = {data = 2, shard = 3}\ndevices = 5'
    )


def test_a_table_is_for_the_devices_that_it_names_and_may_be_put_on_others():
    one = recipe.Comparison("digits", 64, ("sgd",), steps=1, sharding="fsdp2", devices=4)
    table = fits.Table(one)
    assert [table.mesh(devices) for devices in (None, 2)] == [plan.Mesh(shard=4), plan.Mesh(shard=2)]
    assert fits.Table(dataclasses.replace(one, devices=None)).mesh(None) == plan.Mesh()


class Chain(small_tasks.Line):
    """Six blocks of two layers of width 64 without biases, each followed by a tanh."""

    def model(self):
        def layer():
            return torch.nn.Linear(64, 64, bias=False), torch.nn.Tanh()

        model = torch.nn.Module()
        model.blocks = torch.nn.ModuleList(torch.nn.Sequential(*layer(), *layer()) for _ in range(6))
        model.forward = lambda x: functools.reduce(lambda x, block: block(x), model.blocks, x)
        return model

    def example(self):
        return torch.zeros(2, 64), torch.zeros(2, 64)

    def loss(self, output, target):
        return (output * target).sum()


def test_activations_are_what_autograd_keeps_and_less_where_blocks_are_computed_again(monkeypatch):
    monkeypatch.setattr(small_tasks, "Chain", Chain, raising=False)
    n = 1000
    one = 4 * 64 * n

    def held(examples, precision="no", **what):
        return activations("small_tasks:Chain", examples, precision, **what) / one

    # What each of 12 tanh returns, which is the next layer's input, and the gradients on both sides of the last.
    assert [held(n), held(2 * n)] == pytest.approx([14, 28], rel=1e-3)
    # The inputs of five blocks, and what the sixth computes again.
    assert 5 < held(n, again=True) <= 5 + 5
    assert 7 < held(n, "bf16") < 0.65 * held(n)
    # A layer's input, its output, and what tanh makes of that.
    assert 2 <= held(n, scored=True) <= 3


def test_what_is_scored_together_must_fit_as_well():
    """By small batches more is scored at a time than is trained on, unless a micro-batch bounds both."""
    one = recipe.Comparison("digits-resnet20", 32, ("sgd",), steps=1)

    def needs(**changes):
        table = fits.Table(dataclasses.replace(one, **changes))
        return table.needs(table.mesh(1)).activations

    scored = [activations(one.task, examples, "no", scored=True) for examples in (1024, 32)]
    trained = activations(one.task, 32, "no")
    assert scored[1] < trained < scored[0]
    assert (needs(), needs(micro_batch=32)) == (scored[0], trained)


def test_memory_has_whole_parameters_and_gradients_where_shards_wait_for_the_last_micro_batch():
    one = recipe.Comparison(
        "gpt2-345m",
        4096,
        ("alto",),
        steps=1,
        micro_batch=8,
        sharding="fsdp2",
        reshard="last",
        regimen={"precision": "bf16"},
    )
    table = fits.Table(one)
    needs = table.needs(table.mesh(4), estimate=False)
    assert (needs.examples, needs.activations) == (8, None)
    assert needs.unsharded == (2 + 4) * sum(p.numel for p in table.parameters)
    assert needs.total == needs.cost.fused + max(needs.cost.temporary, needs.unsharded)
    each = fits.Table(dataclasses.replace(one, reshard="each"))
    assert each.needs(each.mesh(4), estimate=False).unsharded == 0


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
    found = forecast_of(one, devices=1)
    validation, test = (len(part) for part in tasks.load("digits")[1][1:])
    run = of_cells.RUN + of_cells.INITIAL * found.parameters
    runs = 2 * ((5 + 3 + 3) * 2 + 3)
    evaluations = runs * 7 * (1000 + 40 * validation / 3) + 6 * (1000 + 40 * test / 3)
    assert found.beside == pytest.approx((runs * run + evaluations) / 1e6)
    turns = of_cells.timing_pass((500 + 64 * 40) / 1e6, 2, found.parameters)
    assert found.whole(None) == pytest.approx(found.seconds(None) + found.beside / os.cpu_count() + turns)
    assert forecast_of(one, devices=8).whole(1.0) == forecast_of(one, devices=8).seconds(1.0)
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
