"""What the pages say, computed again from the records as plain JSON; and sentences about records made by hand."""

import math
import re

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import OPTIONS, stored, write

from thalweg.lab import tasks
from thalweg.landscape import landscape
from thalweg.studies import pages, recipe
from thalweg.studies.measured import measuring, paging
from thalweg.studies.measurements import edge, flatness, sine, valleys, work
from thalweg.studies.measurements.networks import Dense
from thalweg.studies.pages import settings
from thalweg.theory import stability_limit

RECIPES = [
    "convergence", "edge-of-stability", "flatness", "sine-landscape", "two-mechanisms", "valleys-2d", "which-alpha",
]  # fmt: skip


def ignore(text):
    pass


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("scale", ["lab", "paper"])
def test_each_recipe_names_a_measurement_and_its_options(name, scale):
    found = recipe.find(name).scales[scale]
    module = measuring(found.measure)
    tiny = OPTIONS[module]
    assert paging(found.measure).__name__.rpartition(".")[2] == found.measure
    if module is flatness:
        assert isinstance(found.options["seeds"], int)
        for task, own in found.options.items():
            if isinstance(own, dict):
                assert task in tasks.TASKS
                assert own.keys() == tiny["digits"].keys()
    else:
        assert found.options.keys() == tiny.keys() - {"jobs"}


# edge of stability


@pytest.fixture(scope="module")
def edges(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edge")
    work.run(edge, OPTIONS[edge], folder, ignore)
    return folder


def test_the_ratio_on_the_page_is_measured_over_predicted(edges):
    section = pages.edge.page(edges)
    for key, name, momentum in (("gd", "gradient descent", 0.0), ("adam", "Adam", 0.9)):
        (one,) = [
            r for r in stored(edges).values()
            if r["settings"]["base"] == key and r["settings"]["alpha"] == -0.4 and r["settings"]["batch"] == 40
        ]  # fmt: skip
        limit = stability_limit(-0.4, 0.5, momentum=momentum)
        each = [sum(values) / len(values) / limit for values in one["found"]["eta_lambda"]]
        row = next(row for row in section.grids[0].rows if row[0] == f"{name}; -.4, .5")
        assert row[2] == f"{limit:.3g}"
        assert row[4] == f"{sum(each) / 2:.3g} ({min(each):.3g} to {max(each):.3g})"


def test_lambs_ratio_is_that_over_its_last_steps_beside_the_one_at_one_place(edges):
    (one,) = [
        r for r in stored(edges).values()
        if r["settings"]["base"] == "lamb" and r["settings"]["alpha"] == 0.0 and r["settings"]["batch"] == 40
    ]  # fmt: skip
    over, at_one_place = (
        [sum(values) / len(values) / stability_limit(0.0, 0.0, momentum=0.9) for values in one["found"][name]]
        for name in ("swing", "eta_lambda")
    )
    assert over != pytest.approx(at_one_place, rel=0.01)
    grid = pages.edge.page(edges).grids[0]
    row = next(row for row in grid.rows if row[0] == "LAMB; no E")
    for column, values in (("measured / predicted", over), ("at one place / predicted", at_one_place)):
        assert row[grid.head.index(column)] == f"{sum(values) / 2:.3g} ({min(values):.3g} to {max(values):.3g})"
    assert {row[-1] for row in grid.rows if not row[0].startswith("LAMB")} == {""}


def test_sharpness_of_gradient_descent_is_that_of_a_network_trained_by_hand(edges):
    (one,) = [
        r for r in stored(edges).values()
        if r["settings"]["base"] == "gd" and r["settings"]["alpha"] == 0.0 and r["settings"]["batch"] == 40
    ]  # fmt: skip
    data = tasks.load("digits")[1].train
    x, y = data.inputs[:40].flatten(1) / 2.0, torch.nn.functional.one_hot(data.targets[:40], 10).float()
    layers = Dense((64, 64, 64, 10), [1]).of(0)

    def loss(w1, b1, w2, b2, w3, b3):
        hidden = torch.tanh(torch.tanh(x @ w1[0] + b1[0]) @ w2[0] + b2[0])
        return (hidden @ w3[0] + b3[0] - y).square().sum() / 80.0

    found = []
    for step in range(1, 7):
        for p, g in zip(layers, torch.autograd.grad(loss(*layers), layers), strict=True):
            p.data -= 0.2 * g
        if step in (4, 6):
            v = [torch.randn(p.shape, generator=torch.Generator().manual_seed(0)) for p in layers]
            for _ in range(60):  # power iteration
                size = math.sqrt(sum(float(each.square().sum()) for each in v))
                v = [each / size for each in v]
                v = list(torch.autograd.functional.hvp(loss, tuple(layers), tuple(v))[1])
            found.append(0.2 * math.sqrt(sum(float(each.square().sum()) for each in v)))
    assert one["found"]["eta_lambda"][1] == pytest.approx(found, rel=5e-3)


def settled(folder, shares, base="gd", alpha=1.0, beta=0.5):
    known = {"batch": 600, "lr": 0.2, "steps": 9, "last": 3, "every": 1, "seeds": 1, "examples": 600}
    rows = []
    for k, share in enumerate(shares):
        momentum = 0.0 if base == "gd" else 0.9
        limit = stability_limit(alpha + k / 10, beta, momentum=momentum)
        found = {
            "eta_lambda": [[None if share is None else share * limit]],
            "sharpness": [[1.0]],
            "loss": [[0.1]],
            "batch": [[None]],
        }
        rows.append(({"base": base, "alpha": alpha + k / 10, "beta": beta, **known}, found))
    write(folder, rows)
    return pages.edge.page(folder).findings


@pytest.mark.parametrize(
    ("shares", "verdict", "counts"),
    [
        ([0.95, 1.09], "the theory holds", "2 of 2 within 10 %"),
        ([0.85, 1.0], "not more than 10 % above the limit", "1 of 2 within 10 % of the prediction, 1 below it"),
        ([0.95, 1.0, 1.11], "the theory holds in part", "2 of 3 within 10 % of the prediction, 1 above"),
        (
            [0.85, 1.2],
            "the theory fails here",
            "0 of 2 within 10 % of the prediction, 1 below it (sharpness did not rise",
        ),
    ],
)
def test_the_theory_holds_within_ten_per_cent(tmp_path, shares, verdict, counts):
    text = settled(tmp_path, shares)[0]
    assert f"** — {verdict}: {counts}" in text


def test_swinging_settings_and_diverged_ones_are_told_apart(tmp_path):
    (text,) = settled(tmp_path, [1.2, None], "momentum", -0.5)
    assert "where instability is a slow oscillation" in text
    assert "0 of 2 within 10 % of the prediction, 1 above, 1 diverged" in text


def test_what_diverged_on_one_of_two_seeds_says_so(tmp_path):
    known = {"batch": 600, "lr": 0.2, "steps": 9, "last": 3, "every": 1, "seeds": 2, "examples": 600}
    limit = stability_limit(1.0, 0.5)
    kinds = {"eta_lambda": limit, "sharpness": 1.0, "loss": 0.1, "batch": None}
    found = {kind: [[value], [None]] for kind, value in kinds.items()}
    write(tmp_path, [({"base": "gd", "alpha": 1.0, "beta": 0.5, **known}, found)])
    section = pages.edge.page(tmp_path)
    counts = "1 of 1 within 10 % of the prediction, 1 that diverged on some seeds, counted by the others"
    assert counts in section.findings[0]
    assert section.grids[0].rows[0][4] == "1 (1 of 2)"


# flatness


def trained(alpha, steps, sharpness, base="adamw"):
    known = {"task": "digits", "base": base, "alpha": alpha, "beta": 0.5, "highest": 1.0, "common": 0.0, "seeds": 3,
             "target": 0.1, "batch": 8, "examples": 100, "steps": 100}  # fmt: skip
    jitter = (0.99, 1.0, 1.01) if alpha else (1.0, 1.0, 1.0)
    tuned = {
        "steps": [steps and steps * j for j in jitter], "loss": [0.1] * 3, "test": [90.0] * 3,
        "sharpness": [sharpness * j for j in jitter],
        "normalised": [1.0] * 3, "gradient": [1.0] * 3, "share": [0.9, 0.5, 0.9],
    }  # fmt: skip
    return known, {"tried": [], "lr": 0.5, "tuned": tuned, "common": None}


@pytest.mark.parametrize(
    ("of_negative", "of_positive", "pace", "place"),
    [
        ((200, 1.0), (50, 4.0), "✓ holds", "✓ holds"),
        ((50, 4.0), (200, 1.0), "✗ does not hold", "✗ does not hold"),
        ((100, 2.0), (100, 2.0), "? undecided", "? undecided"),
        ((200, 4.0), (50, 1.0), "✓ holds", "✗ does not hold"),
    ],
)
def test_each_half_of_the_claim_is_judged(tmp_path, of_negative, of_positive, pace, place):
    rows = [trained(0.0, 100, 2.0), trained(-1.0, *of_negative), trained(1.0, *of_positive)]
    write(tmp_path, rows)
    findings = pages.flatness.page(tmp_path).findings
    for name, first, second in (("α < 0", "slower", "flatter"), ("α > 0", "faster", "sharper")):
        text = next(text for text in findings if text.startswith(f"**{name} is {first}"))
        assert f"** — {pace}: steps times " in text
        assert f"**And {second}** — {place}: λ_max times " in text
    assert any("in 6 of 9 runs" in text for text in findings)


def test_the_mean_over_cells_is_taken_at_each_seed(tmp_path):
    rng = np.random.default_rng(0)
    rows, logs = [trained(0.0, 100, 2.0)], []
    for alpha in (-1.0, -1.2, -1.5):
        known, found = trained(alpha, 100, 2.0)
        found["tuned"]["sharpness"] = (2.0 * np.exp(0.1 * rng.normal(size=3))).tolist()
        logs.append(np.log(np.array(found["tuned"]["sharpness"]) / 2.0))
        rows.append((known, found))
    write(tmp_path, rows)
    findings = pages.flatness.page(tmp_path).findings
    assert (
        "half of the 5 % over 16 means over cells, which the claims are about, the other over 12 ratios" in findings[0]
    )
    means = np.mean(logs, axis=0)
    low, high = np.exp(stats.t.interval(1.0 - 0.05 / 32, 2, means.mean(), stats.sem(means)))
    says = f"λ_max times {math.exp(means.mean()):.3g} ({low:.3g} to {high:.3g}), mean over 3 cells"
    assert any(says in text for text in findings)


def test_ratios_of_flatness_are_those_of_the_records(tmp_path):
    work.run(flatness, OPTIONS[flatness], tmp_path, ignore)
    section = pages.flatness.page(tmp_path)
    found = {(one["settings"]["base"], one["settings"]["alpha"]): one["found"] for one in stored(tmp_path).values()}
    count = 2 * int(re.search(r"the other over (\d+) ratios", section.findings[0])[1])
    for where, grid in zip(("tuned", "common"), section.grids, strict=True):
        for base, name in (("gd", "SGD"), ("lamb", "LAMB")):
            ours, theirs = found[base, -0.4][where], found[base, 0.0][where]
            row = next(row for row in grid.rows if row[0] == f"{name}; -.4, .5")
            assert None not in ours["steps"]
            assert all(value <= 2.0 for value in ours["loss"])
            logs = np.log(ours["sharpness"]) - np.log(theirs["sharpness"])
            limits = stats.t.interval(1.0 - 0.05 / count, len(logs) - 1, logs.mean(), stats.sem(logs))
            low, high = (math.exp(limit) for limit in limits)
            across = "unknown" if high > 1e6 * low else f"{low:.3g} to {high:.3g}"
            assert row[7] == f"{math.exp(logs.mean()):.3g} ({across})"
            assert float(row[1]) == pytest.approx((1.0 if base == "gd" else 19.0) + 0.8)


def test_the_learning_rate_is_the_one_of_fewest_steps(tmp_path):
    work.run(flatness, OPTIONS[flatness], tmp_path, ignore)
    for one in stored(tmp_path).values():
        reached = [(steps, -lr) for lr, steps in one["found"]["tried"] if steps is not None]
        assert one["found"]["lr"] == -min(reached)[1]
        better = [i for i, (_, steps) in enumerate(one["found"]["tried"]) if steps is not None]
        assert len(one["found"]["tried"]) == better[-1] + 2  # until one is no better
        rates = [lr for lr, _ in one["found"]["tried"]]
        assert rates == pytest.approx([rates[0] / 3.0**k for k in range(len(rates))])


def test_a_cell_that_never_gets_there_says_so(tmp_path):
    known, found = trained(-1.0, None, 1.0)
    found["tuned"] = {key: [None] * 3 for key in found["tuned"]}
    found["lr"] = None
    write(tmp_path, [trained(0.0, 100, 2.0), (known, found)])
    section = pages.flatness.page(tmp_path)
    assert "1 did not reach the target" in section.findings[1]
    assert section.findings[-1].endswith("within the steps allowed for: digits, AdamW, -1, .5.")
    assert section.grids[0].rows[1][4] == "none"


def test_ranks_of_sharpness_and_theory(tmp_path):
    rows = [trained(float(alpha), 100, 10.0 - alpha) for alpha in (0.0, -1.5, -1.0, 0.5, 1.0)]
    write(tmp_path, rows)
    found = pages.flatness.page(tmp_path).findings
    assert any(text.startswith("Rank correlation of λ_max with −S") and text.endswith("AdamW -1.00.") for text in found)


# pictures of the slides


@pytest.mark.parametrize(("diverged", "further", "less"), [(0.0, 1, 1), (0.25, 0, 1)])
def test_walks_further_and_flatter_are_counted(tmp_path, diverged, further, less):
    rows = []
    for alpha, along, sharp in ((0.0, 1.0, 5.0), (-1.0, 2.0, 5.1), (1.0, 0.5, 9.0)):
        row = {
            name: value
            for key, value in (("along", along), ("lowest", 0.1), ("minima", 1.0), ("found_lowest", 0.5),
                               ("end_loss", 0.1),
                               ("end_sharpness", sharp), ("end_trace", 1.0))
            for name, value in ((key, value), (f"{key}_standard_error", 0.1))
        }  # fmt: skip
        known = {"function": "curved", "base": "sgd", "alpha": alpha, "beta": 0.5, "factors": [1.0], "steps": 5,
                 "walkers": 4, "noise": 0.0}  # fmt: skip
        rows.append(
            (
                known,
                {"tuning": [{**row, "diverged": 0.0}], "factors": [{**row, "diverged": diverged if alpha else 0.0}]},
            )
        )
    write(tmp_path, rows)
    text, _ = [one for one in pages.valleys.page(tmp_path).findings if one.startswith("**SGD")]
    assert f"α < 0 walks further in {further} and less far in 0 of 1, ends flatter in 0 and sharper in 0" in text
    assert f"α > 0 walks further in 0 and less far in {less} of 1, ends flatter in 0 and sharper in 1" in text


def test_walkers_choose_the_learning_rate_that_others_report(tmp_path):
    work.run(valleys, OPTIONS[valleys], tmp_path, ignore)
    for record in settings.finished(tmp_path):
        tuning = [row["lowest"] for row in record.found["tuning"]]
        assert pages.valleys.chosen(record) == record.found["factors"][int(np.argmin(tuning))]
    assert (tmp_path / "curved.png").stat().st_size < 300_000
    assert landscape("curved").name == "curved"


def test_what_surrounds_the_sine_is_measured_on_the_solution(tmp_path):
    work.run(sine, OPTIONS[sine], tmp_path, ignore)
    done = [one for one in stored(tmp_path).values() if None not in one["found"]["steps"]]
    assert done
    for one in done:
        found = one["found"]
        middle = found["surface"][1][1]
        assert all(loss <= 0.5 for loss in found["loss"])
        assert middle == pytest.approx(found["loss"][0], rel=0.1)  # of another sample


def test_the_models_of_the_sine_are_those_that_were_trained():
    model = Dense(sine.WIDTHS, [0, 1])
    x = torch.linspace(-3.0, 3.0, 7)[:, None]
    for seed in range(2):
        torch.testing.assert_close(sine.network(model.of(seed))(x), model(x[None])[seed])
