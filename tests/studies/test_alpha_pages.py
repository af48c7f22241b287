"""``two-mechanisms`` and ``which-alpha``: what is measured, and what the pages say, computed again."""

import importlib.util
import json
import math
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import OPTIONS, stored, write

from thalweg.lab import tasks
from thalweg.report import words
from thalweg.studies import pages
from thalweg.studies.measurements import two_mechanisms, which_alpha, work
from thalweg.studies.measurements.networks import Dense
from thalweg.studies.pages.numbers import ratios

ROOT = Path(__file__).parents[2]


def ignore(text):
    pass


@pytest.fixture(scope="module")
def descents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("descents")
    work.run(two_mechanisms, OPTIONS[two_mechanisms], folder, ignore)
    return folder


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells")
    work.run(which_alpha, OPTIONS[which_alpha], folder, ignore)
    return folder


def found_of(folder, **settings):
    (one,) = [one for one in stored(folder).values() if settings.items() <= one["settings"].items()]
    return one["found"]


# two mechanisms


def test_a_level_is_measured_where_a_network_trained_by_hand_first_gets_there(descents):
    data = tasks.load("digits")[1].train
    x, y = data.inputs[:60].flatten(1) / 2.0, data.targets[:60]
    layers = Dense((64, 8, 10), [1]).of(0)
    shapes = [p.shape for p in layers]

    def loss(flat):
        w1, b1, w2, b2 = (
            part.view(s)[0] for part, s in zip(flat.split([math.prod(s) for s in shapes]), shapes, strict=True)
        )
        return torch.nn.functional.cross_entropy(torch.tanh(x @ w1 + b1) @ w2 + b2, y)

    theta = torch.cat([p.detach().flatten() for p in layers]).requires_grad_()
    steps = 0
    while float(loss(theta).detach()) > 1.9:
        (g,) = torch.autograd.grad(loss(theta), theta)
        theta = (theta - 0.1 * g).detach().requires_grad_()
        steps += 1
    (g,) = torch.autograd.grad(loss(theta), theta)
    found = found_of(descents, base="gd", lr=0.1, alpha=0.0)
    assert found["steps"][1][1] == steps
    assert found["gradient"][1][1] == pytest.approx(float(g.square().sum()), rel=1e-3)
    top = float(torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, theta))[-1])
    assert found["sharpness"][1][1] == pytest.approx(top, rel=5e-3)


def test_per_cents_of_sharpness_are_those_of_the_records(descents):
    section = pages.two_mechanisms.page(descents)
    ours, theirs = (np.log(found_of(descents, base="momentum", alpha=a)["sharpness"][0]) for a in (-5.0, 0.0))
    middle = (ours - theirs).mean()
    count = int(re.search(r"over (\d+) comparisons", section.findings[0])[1])
    assert count == sum(len(grid.rows) - 1 for grid in section.grids) * 3  # two levels, and the gradient
    limits = stats.t.interval(1.0 - 0.05 / count, 2, middle, stats.sem(ours - theirs))
    mean, low, high = (100.0 * (math.exp(value) - 1.0) for value in (middle, *limits))
    row = section.grids[1].rows[1]
    assert row[:3] == ("-5, .99", "29", "133.4")
    assert row[5] == f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
    assert "below the edge of stability" in section.findings[2]
    assert "at the edge of stability" in section.findings[3]


def test_a_level_that_was_not_reached_is_none(tmp_path):
    options = OPTIONS[two_mechanisms] | {"levels": [2.2, 0.0], "steps": 60}
    settings = {"base": "gd", "lr": 0.1, "alpha": 0.0, "beta": 0.0} | {
        key: options[key] for key in ("task", "examples", "width", "levels", "steps", "seeds")
    }
    found = two_mechanisms.measure(settings)
    assert found["sharpness"][1] == [None] * 3
    assert None not in found["sharpness"][0]
    write(tmp_path, [(settings, found)])
    assert pages.two_mechanisms.page(tmp_path).grids[0].rows[0][-1] == "none"


def test_what_orders_sharpness_is_said_of_each_descent(tmp_path):
    known = {
        "base": "gd",
        "lr": 0.1,
        "task": "digits",
        "examples": 9,
        "width": 8,
        "levels": [0.5],
        "steps": 9,
        "seeds": 3,
    }
    rows = []
    for alpha, sharpness in ((0.0, 4.0), (-1.0, 3.0), (-1.5, 2.0), (1.0, 4.5)):
        jitter = (0.99, 1.0, 1.01) if alpha else (1.0, 1.0, 1.0)
        found = {"steps": [[5] * 3], "gradient": [[1.0] * 3], "sharpness": [[sharpness * j for j in jitter]]}
        rows.append((known | {"alpha": alpha, "beta": 0.5}, found))
    write(tmp_path, rows)
    family, text = pages.two_mechanisms.page(tmp_path).findings
    assert "over 6 comparisons" in family
    assert "no momentum, η = 0.1, below the edge of stability**, at a loss of 0.5: 2 of 3 settings are flatter" in text
    assert "flatter than without E, 1 sharper; rank correlation of λ_max with S -1.00" in text


# which α


def test_the_learning_rate_is_the_one_of_the_best_validation(cells):
    for one in stored(cells).values():
        tried = one["found"]["tried"]
        best = max(range(len(tried)), key=lambda k: tried[k][1])
        assert one["found"]["lr"] == tried[best][0]
        assert len(tried) == 8 or 0 < best < len(tried) - 1
        assert [b[0] / a[0] for a, b in pairwise(tried)] == pytest.approx([3.0] * (len(tried) - 1))


@pytest.mark.parametrize("base", ["adagrad", "spsa"])
def test_a_seed_trains_as_if_it_were_alone(base):
    settings = {"task": "digits", "examples": 256, "width": 8, "base": base, "alpha": -3.0, "beta": 0.75, "batch": 64,
                "steps": 6}  # fmt: skip
    many = [p for one in which_alpha.train(settings, 0.05, [100, 101]) for p in one.params]
    (alone,) = which_alpha.train(settings, 0.05, [101])
    assert len(many) == (8 if base == "spsa" else 4)
    for p, own in zip(many[-4:], alone.params, strict=True):
        torch.testing.assert_close(p[-1], own[0], rtol=1e-4, atol=1e-6)


def test_networks_are_those_of_their_seeds_and_fresh_seeds_are_reported(cells):
    settings = {"task": "digits", "examples": 256, "width": 8, "base": "adagrad", "alpha": 0.0, "beta": 0.0,
                "batch": 64, "steps": 2}  # fmt: skip
    (still,) = which_alpha.train(settings, 0.0, [100, 101])
    for p, own in zip(still.params, Dense((64, 8, 10), [100, 101]).layers, strict=True):
        assert torch.equal(p, own)
    (one,) = [
        one for one in stored(cells).values() if one["settings"]["base"] == "lamb" and one["settings"]["alpha"] == -3
    ]
    (last,) = which_alpha.train(one["settings"], one["found"]["lr"], [102])
    assert last.test()[0] == pytest.approx(one["found"]["test"][2], abs=0.6)  # two images of 350


def test_differences_of_accuracy_are_those_of_the_records(cells):
    section = pages.which_alpha.page(cells)
    ours, theirs = (found_of(cells, base="rmsprop", alpha=alpha) for alpha in (-3.0, 0.0))
    differences = np.array(ours["test"]) - np.array(theirs["test"])
    error = math.hypot(stats.sem(differences), 100.0 / 350 / math.sqrt(12 * 3))
    count = sum(one["settings"]["alpha"] != 0.0 for one in stored(cells).values())
    assert section.findings[0] == f"Cells: {words.corrected(count)}"
    loss, half = np.mean(ours["loss"]), stats.t.ppf(1.0 - 0.025 / count, 2) * error
    row = next(row for row in section.grids[0].rows if row[0] == "RMSprop")
    assert row[2] == f"{differences.mean():+.1f} ± {half:.1f} ({loss:.3f}; {ours['lr']:.2g})"


def test_what_lies_within_one_test_image_is_noise(tmp_path):
    rows = [accuracy("gd", 0.0, [90.0, 91.0, 92.0]), accuracy("gd", -1.0, [91.0, 92.001, 93.002])]
    write(tmp_path, rows)
    (row,) = pages.which_alpha.page(tmp_path).grids[0].rows
    assert row[2] == "+1.0 ± 0.2 (0.100; 0.1)"


def accuracy(base, alpha, values):
    known = {"regime": "large", "base": base, "alpha": alpha, "beta": 0.5, "task": "digits", "batch": 8, "steps": 5,
             "examples": 100, "seeds": len(values)}  # fmt: skip
    return known, {"lr": 0.1, "tested": 350, "test": values, "loss": [0.1] * len(values), "tried": []}


def test_what_is_beyond_noise_is_counted_by_kind_of_base(tmp_path):
    alone, noise = [90.0, 91.0, 92.0, 93.0], [0.1, -0.1, 0.2, -0.2]
    better, worse, same = (
        [value + by + each for value, each in zip(alone, noise, strict=True)] for by in (3.0, -3.0, 0.0)
    )
    rows = [accuracy("gd", 0.0, alone), accuracy("gd", -1.0, better), accuracy("adagrad", 0.0, alone),
            accuracy("adagrad", -1.0, same), accuracy("adamw", 0.0, alone), accuracy("adamw", -1.0, worse)]  # fmt: skip
    write(tmp_path, rows)
    family, without, momentum = pages.which_alpha.page(tmp_path).findings
    assert "over 3 comparisons" in family
    assert without.startswith("**-1, .5, bases without momentum**")
    assert "in 1 of 2 cells, worse in 0, equivalent within 0.5 points in 1; means from -0.0 to +3.0 points" in (
        without.replace("+0.0", "-0.0")
    )
    assert "in 0 of 1 cells, worse in 1, equivalent within 0.5 points in 0; means from -3.0 to -3.0" in momentum


def test_committed_records_are_read_and_say_what_the_document_says():
    spec = importlib.util.spec_from_file_location("measured", ROOT / "docs" / "figures" / "measured.py")
    measured = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(measured)
    record = json.loads((ROOT / "benchmarks/results/epyc-9004-2-cores-which-alpha-fashion.json").read_text())
    text = (ROOT / "docs" / "which-alpha.md").read_text()
    compared = [one for one in pages.which_alpha.cells_of(measured.records_of(record)) if one.compared is not None]
    assert len(compared) == 95
    for one in compared:
        entry = f"{one.compared.difference:+.1f} ± {one.compared.high - one.compared.difference:.1f}"
        assert entry in text, one.record.settings
    assert len(measured.of_which_alpha(record).axes) == 4


# ratios


def test_equal_factors_are_judged_by_their_signs():
    few, many = ratios([2.0] * 4, [1.0] * 4), ratios([2.0] * 6, [1.0] * 6)
    assert (few.mean, few.low, few.high) == pytest.approx((2.0, 2.0, 2.0))
    assert (few.above, few.below) == (False, False)
    assert (many.above, many.below) == (True, False)
    assert ratios([1.0] * 6, [2.0] * 6).below
