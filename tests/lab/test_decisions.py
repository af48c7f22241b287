"""One rule decides whether an optimizer is better: on the page, in claims, inclusions, standings and counts."""

import io
import itertools
import json
import math
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from scipy import stats
from synthetic import ACCURACY, Comparison, write

from thalweg.commands import main as cli
from thalweg.commands.tables import grid
from thalweg.lab import tasks
from thalweg.lab.search.plan import ComparisonPlan
from thalweg.records import reading, results
from thalweg.records.metric import Metric
from thalweg.report import sentences, words, write_report
from thalweg.report.decisions import Outcome, Paired
from thalweg.report.rankings import median_best
from thalweg.report.statistics import paired
from thalweg.report.summary import summarise
from thalweg.studies import claims, page, pictures, recipe

PERCENT = Metric("accuracy", "max", "%", low=0.0, high=100.0)


def by_seed(values):
    return dict(enumerate(map(float, values)))


# what the spread of the seeds is


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("n", [3, 4, 5, 6, 8])
def test_one_image_on_every_seed_is_no_more_than_a_test_of_signs_shows(n, dtype):
    rng = np.random.default_rng(0)
    for _ in range(50):
        images = rng.integers(15_000, 25_000, size=n)
        a, b = (by_seed((100.0 * count / 25_000).astype(dtype)) for count in (images, images - 1))
        found = paired(a, b, PERCENT)
        assert found.p == 2.0 / 2.0**n
        assert found.alike
        assert found.better
        assert (found.low <= 0.0) == (found.p >= 0.05)
        assert paired(a, a, PERCENT).p == 1.0


@pytest.mark.parametrize(
    ("high", "goal", "of_a_mean"),
    [
        (1.0, "min", lambda mean: 1.0 - mean),
        (100.0, "min", lambda mean: 100.0 - 100.0 * mean),
        (1.0, "min", lambda mean: 1.0 - float(np.float32(mean))),
        (100.0, "max", lambda mean: 100.0 * float(np.float32(mean))),
    ],
)
def test_rounding_is_none_whatever_was_computed_of_a_mean(high, goal, of_a_mean):
    """1 - m has the rounding of m, beside which it is small itself; and 100 m is no float32 where m was one."""
    metric = Metric("of a mean", goal, low=0.0, high=high, resolution=high).over(25_000)
    rng = np.random.default_rng(0)
    for _ in range(50):
        images = rng.integers(24_000, 25_000, size=3)
        a, b = (by_seed([of_a_mean(count / 25_000) for count in counts]) for counts in (images, images - 1))
        assert paired(a, b, metric).p == 0.25
        assert paired(a, a, metric).p == 1.0


@pytest.mark.parametrize("low", [-math.inf, 0.0])
@pytest.mark.parametrize("examples", [1_000, 25_000])
@pytest.mark.parametrize("n", [3, 5, 8])
def test_rounding_is_none_where_a_metric_names_no_bound_that_shows_its_size(low, examples, n):
    """0.003 = 1 - 0.997 is rounded as 0.997 is, which neither the value nor a bound of the metric says."""
    metric, rng = Metric("error", "min", low=low), np.random.default_rng(n)
    single = np.float32
    for of_a_mean in (
        lambda mean: 1.0 - float(single(mean)),
        lambda mean: float(single(1.0) - single(mean)),
        lambda mean: 100.0 * (1.0 - float(single(mean))),
        lambda mean: 100.0 - float(single(100.0 * mean)),
    ):
        for _ in range(25):
            right = rng.integers(int(0.96 * examples), int(0.999 * examples), size=n)
            a, b = (by_seed([of_a_mean(count / examples) for count in counts]) for counts in (right + 1, right))
            found = paired(a, b, metric)
            assert (found.p, found.alike, found.better) == (2.0 / 2.0**n, True, True)


def test_whole_steps_are_no_rounding():
    differences = np.array([300.0, 301.0, 302.0])
    found = paired(by_seed(differences + 40.0), dict.fromkeys(range(3), 40.0), Metric("steps", "min", low=0.0))
    assert found.p == pytest.approx(stats.ttest_1samp(differences, 0.0).pvalue)


def test_small_losses_that_differ_by_more_than_rounding_are_told_apart():
    differences = np.array([3.0e-5, 3.01e-5, 3.02e-5])
    found = paired(by_seed(differences + 1e-6), dict.fromkeys(range(3), 1e-6), Metric("loss", "min", low=0.0))
    assert not found.alike
    assert found.p == pytest.approx(stats.ttest_1samp(differences, 0.0).pvalue, rel=1e-6)


def test_a_small_spread_beside_a_small_difference_is_one():
    differences = np.array([1.0, 1.5, 0.75, 2.0]) * 1e-8
    found = paired(by_seed(differences), dict.fromkeys(range(4), 0.0), PERCENT)
    assert found.p == pytest.approx(stats.ttest_1samp(differences, 0.0).pvalue)


@pytest.mark.parametrize("offset", [0.0, 97.0, -1e6])
def test_a_spread_above_rounding_is_one_wherever_the_values_lie(offset):
    differences = np.array([1.0, 1.5, 0.75, 2.0]) / 64
    shared = np.array([0.1, 0.7, -0.3, 0.2])
    found = paired(by_seed(offset + shared + differences), by_seed(offset + shared), Metric("score", "max"))
    assert not found.alike
    assert found.p == pytest.approx(stats.ttest_1samp(differences, 0.0).pvalue, rel=1e-5)


def test_factors_that_differ_by_rounding_alone_are_alike():
    losses = np.array([1e-8, 3.3e-5, 0.7])
    found = paired(by_seed(1.1 * losses), by_seed(losses), Metric("loss", "min", log=True))
    assert found.alike
    assert found.p == 0.25
    assert words.gap(found, Metric("loss", "min", log=True)) == "a factor of 1.1 on every seed"


def test_equal_in_the_mean_up_to_rounding_is_no_difference():
    a, b = by_seed([0.1, 0.3, 0.7, 1.1]), by_seed([0.1, 1.1, 0.3, 0.7])
    assert sum(a[seed] - b[seed] for seed in a) != 0.0
    found = paired(a, b, Metric("score", "max"))
    assert (found.difference, found.better, found.reverse().better, found.p) == (0.0, False, False, 1.0)


def steps_apart(spread):
    """P(k): of two equal optimizers, one is k examples ahead on a seed, all counts rounded, the seed's share common."""
    chances = Counter()
    middles, whole = (np.arange(40) + 0.5) / 40, np.arange(-6, 8)
    for middle in middles:
        edges = stats.norm.cdf((whole[:, None] + np.array([-0.5, 0.5]) - middle) / spread)
        counts = edges[:, 1] - edges[:, 0]
        for (i, p), (j, q) in itertools.product(enumerate(counts), repeat=2):
            chances[i - j] += p * q / len(middles)
    return chances


@pytest.mark.parametrize("n", [3, 4, 5, 6, 7, 8])
def test_equal_optimizers_are_told_apart_no_more_often_than_the_level_says(n):
    """Exactly, by enumeration of all that n seeds can show; the few chances left out count as told apart."""
    largest, examples = 3, 25_000
    metric = Metric("accuracy", "max", low=0.0, high=100.0, resolution=100.0).over(examples)
    chances = {spread: steps_apart(spread) for spread in (0.2, 0.4, 0.7)}
    told = {(spread, level): 0.0 for spread in chances for level in (0.05, 0.01, 0.002)}
    seen = dict.fromkeys(chances, 0.0)
    for steps in itertools.combinations_with_replacement(range(-largest, largest + 1), n):
        if sum(steps) < 0:
            continue
        orders = math.factorial(n) / math.prod(math.factorial(count) for count in Counter(steps).values())
        right = np.arange(n) + 20_000
        p = paired(by_seed(100.0 * (right + steps) / examples), by_seed(100.0 * right / examples), metric).p
        for spread, one in chances.items():
            chance = orders * math.prod(one[step] for step in steps) * (2 if sum(steps) else 1)
            seen[spread] += chance
            for level in (0.05, 0.01, 0.002):
                told[spread, level] += chance * (p <= level)
    for (spread, level), chance in told.items():
        assert 0.97 < seen[spread] <= 1.0 + 1e-9
        assert chance <= level, (spread, level)


def test_the_resolution_of_an_accuracy_is_an_example_of_the_test_set(tmp_path):
    metric = ACCURACY | {"resolution": 0.004}
    for optimizer in ("adamw", "alto"):
        Comparison(tmp_path).cell("digits", metric, 64, 40, optimizer)
    table = summarise(reading.read(tmp_path), "").tables[0]
    assert table.metric.resolution == 0.004
    pair = table.pairs["alto", "adamw"]
    tests = [np.array([run.test for run in table.row(name).cell.seeds]) for name in ("alto", "adamw")]
    differences = tests[0] - tests[1]
    error = math.sqrt((differences.var(ddof=1) + 0.004**2 / 12) / 5)
    assert pair.p == pytest.approx(2 * stats.t.sf(abs(differences.mean()) / error, 4), rel=1e-9)
    assert pair.comparisons == 1
    assert pair.low == pytest.approx(differences.mean() - stats.t.ppf(0.975, 4) * error, rel=1e-9)


def test_a_comparison_records_the_resolution_of_its_test_set(tmp_path):
    cells, _ = ComparisonPlan(("digits",), (64,), ("sgd",), trials=1, studies=1, seeds=1, steps=1).cells(tmp_path)
    cells[0].record(tmp_path, "")
    metric = json.loads((cells[0].folder(tmp_path) / "cell.json").read_text())["metric"]
    assert metric["resolution"] == 100.0 / len(tasks.load("digits")[1].test)


# who is better


@pytest.mark.parametrize(
    ("failed", "censored", "tried", "verdict"),
    [
        ((0, 0), (0, 0), (8, 8), Outcome.BETTER),
        ((3, 3), (0, 0), (8, 8), Outcome.BETTER),
        ((3, 0), (0, 0), (8, 8), Outcome.UNDECIDED),
        ((0, 3), (0, 0), (8, 8), Outcome.BETTER),
        ((0, 0), (2, 1), (8, 8), Outcome.UNDECIDED),
        ((0, 0), (1, 2), (8, 8), Outcome.BETTER),
        ((1, 1), (0, 0), (4, 8), Outcome.UNDECIDED),  # a larger share
        ((2, 1), (0, 0), (16, 4), Outcome.UNDECIDED),  # more of them
    ],
)
def test_what_is_left_after_failures_is_never_better(failed, censored, tried, verdict):
    seen = {"difference": 0.5, "error": 0.05, "freedom": 4, "higher": True, "seeds": 5}
    pair = Paired(**seen, tried=tried, failed=failed, censored=censored)
    assert pair.significant
    assert pair.verdict is verdict
    assert pair.reverse().verdict is verdict.reverse


def test_failures_are_counted_over_all_seeds_and_bounds_over_the_shared_ones():
    a, b = {0: 1.0, 1: 2.0, 2: None, 3: 4.0, 4: None}, {0: 0.0, 1: 0.5, 2: 2.0, 3: None}
    found = paired(a, b, Metric("score", "max"), censored=({0, 2}, {1}), failed=((0,), ()))
    assert (found.seeds, found.tried, found.failed, found.censored) == (2, (5, 4), (3, 1), (1, 1))


@pytest.fixture
def survivors(tmp_path):
    """ALTO, far ahead of all others, failed on three of eight seeds; LAMB and AdamW on none."""
    writer = Comparison(tmp_path)
    for optimizer, quality in (("alto", 0.9), ("lamb", 0.0), ("adamw", -0.5)):
        writer.cell(
            "digits", ACCURACY, 64, 40, optimizer, seeds=8, quality=quality, failing_seeds=3 * (optimizer == "alto")
        )
    return tmp_path


def test_survivors_do_not_win_anywhere(survivors):
    summary = summarise(reading.read(survivors), "")
    table, verdict = summary.tables[0], summary.verdict
    pair = table.pairs["alto", "lamb"]
    assert pair.significant
    assert pair.better
    assert [row.optimizer for row in table.rows] == ["lamb", "adamw", "alto"]
    assert [row.standing for row in table.rows] == ["first", "worse", "undecided"]
    assert (verdict.wins, verdict.losses) == ({"lamb": 1, "adamw": 0, "alto": 0}, {"lamb": 0, "adamw": 1, "alto": 0})
    said = [
        *sentences.about_table(table),
        *sentences.about_all(summary),
        *sentences.about_inclusions(verdict.inclusions),
    ]
    tested = claims.findings_of(
        [recipe.Claim("A beats L", "alto", "lamb"), recipe.Claim("L beats A", "lamb", "alto"),
         recipe.Claim("loss", "alto", "lamb", measure="training loss"),
         recipe.Claim("speed", "alto", "lamb", measure="steps to target")], summary,
    )  # fmt: skip
    assert [one.verdict for one in tested] == ["? undecided"] * 4
    said += [text for one in tested for text in (*claims.here(one), *one.leads)]
    assert all("the leader has fewer valid seeds" in text for one in tested[:3] for text in one.leads)
    assert not any("alto is better" in text or "worse" in text for text in said)
    assert sum("alto failed on 3 of 8 seeds, lamb on 0 of 8" in text.lower() for text in said) >= 3
    assert "Undecided between lamb and alto." in said
    assert "Lamb failed on 0 of 8 seeds, alto on 3 of 8: the better mean is of what is left." in said
    web = write_report(summary, survivors / "report.html").read_text()
    assert "better than alto" not in web
    assert "? undecided, failed seeds" in web


def test_who_failed_on_every_seed_is_last_and_not_compared(tmp_path):
    writer = Comparison(tmp_path)
    for optimizer, quality in (("alto", 0.9), ("lamb", 0.0)):
        failing = 8 * (optimizer == "alto")
        writer.cell("digits", ACCURACY, 64, 40, optimizer, seeds=8, quality=quality, failing_seeds=failing)
    summary = summarise(reading.read(tmp_path), "")
    table = summary.tables[0]
    assert [(row.optimizer, row.standing) for row in table.rows] == [("lamb", "first"), ("alto", "")]
    assert (table.pairs, summary.verdict.inclusions) == ({}, ())
    assert list(summary.verdict.ranks) == ["lamb"]
    assert "No seed finished, and so compared with nobody: alto." in sentences.about_table(table)
    assert summary.verdict.left_out == {"alto": 1}
    measures = ("test", "training loss", "steps to target")
    tested = claims.findings_of([recipe.Claim("A", "alto", "lamb", measure=one) for one in measures], summary)
    assert [found.verdict for found in tested] == ["not tested here"] * 2 + ["– not comparable"]
    assert tested[2].leads == ["– alto diverged on every seed"]
    assert not any(" better" in text for found in tested for text in (*claims.here(found), *found.leads))


def test_the_first_is_not_put_before_another_by_what_is_left_of_it(tmp_path):
    """It failed on more seeds in number, of many more: a smaller share. So it stands first, and nothing is decided."""
    writer = Comparison(tmp_path)
    writer.cell("digits", ACCURACY, 64, 40, "alto", seeds=16, quality=0.9, failing_seeds=2)
    writer.cell("digits", ACCURACY, 64, 40, "lamb", seeds=6, quality=0.0, failing_seeds=1)
    table = summarise(reading.read(tmp_path), "").tables[0]
    assert table.pairs["alto", "lamb"].significant
    assert [(row.optimizer, row.standing) for row in table.rows] == [("alto", "first"), ("lamb", "undecided")]


def test_a_training_loss_that_is_no_number_is_no_result(tmp_path):
    writer = Comparison(tmp_path)
    for optimizer in ("alto", "lamb"):
        writer.cell("digits", ACCURACY, 64, 40, optimizer)
    for path in tmp_path.glob("runs/digits/64/alto/40-steps/seed-[01]-*/metrics.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines[-1]["loss"] = None
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    claim = recipe.Claim("A", "alto", "lamb", measure="training loss")
    (found,) = claims.findings_of([claim], summarise(reading.read(tmp_path), ""))
    ((_, _, pair),) = found.found
    assert (pair.seeds, pair.failed) == (3, (2, 0))
    assert math.isfinite(pair.difference)


def test_a_pair_without_two_seeds_in_common_is_said_not_to_be_tested(tmp_path):
    writer = Comparison(tmp_path)
    writer.cell("digits", ACCURACY, 64, 40, "alto", seeds=4, failing_seeds=3)
    writer.cell("digits", ACCURACY, 64, 40, "lamb", seeds=4)
    (found,) = claims.findings_of([recipe.Claim("A", "alto", "lamb")], summarise(reading.read(tmp_path), ""))
    assert found.verdict == "not tested here"
    (said,) = claims.here(found)
    assert "alto finished on 1 of 4 seeds and lamb finished on 4 of 4 seeds" in said


# targets


def steps_of(tmp_path, target, **qualities):
    writer = Comparison(tmp_path)
    for optimizer, quality in qualities.items():
        writer.cell("digits", ACCURACY, 64, 40, optimizer, quality=quality, target=target)
    summary = summarise(reading.read(tmp_path), "")
    (found,) = claims.findings_of([recipe.Claim("A", "alto", "lamb", measure="steps to target")], summary)
    return summary.tables[0], found, summary


def test_who_never_reached_the_target_is_not_equal(tmp_path):
    table, found, _ = steps_of(tmp_path, 99.999, alto=0.4, lamb=0.0)
    assert found.verdict == "– not comparable"
    assert found.leads == ["– target never reached"]
    assert claims.here(found) == [f"– target never reached: {table.name}, 40 steps, 5 seeds"]
    assert found.comparisons == 0
    assert [page._row(row, "")[3] for row in table.rows] == ["≥ 40", "≥ 40"]
    assert [page._row(row, "")[5] for row in table.rows] == ["0/5", "0/5"]


def test_bounds_that_are_equal_to_times_are_no_times(tmp_path):
    """Who reached the target with the last step, and who did not, have the same restricted time."""
    writer = Comparison(tmp_path)
    for optimizer in ("alto", "lamb"):
        writer.cell("digits", ACCURACY, 64, 40, optimizer, quality=0.4, target=99.999)
    for path in tmp_path.glob("runs/digits/64/lamb/40-steps/seed-[0-2]-*/result.json"):
        write(path, json.loads(path.read_text()) | {"steps_to_target": 40, "seconds_to_target": 0.4})
    claim = recipe.Claim("A", "alto", "lamb", measure="steps to target")
    (found,) = claims.findings_of([claim], summarise(reading.read(tmp_path), ""))
    assert found.leads == ["? 0 steps (no interval: some targets were missed)"]
    (said,) = claims.here(found)
    assert "alto did not reach the target on 5 of 5 seeds, lamb on 2 of 5" in said


def test_without_a_target_nobody_missed_it(tmp_path):
    table, found, summary = steps_of(tmp_path, None, alto=0.4, lamb=0.0)
    assert [row.reached for row in table.rows] == [None, None]
    assert [page._row(row, "")[3:6] for row in table.rows] == [("", "", "")] * 2
    assert found.verdict == "not tested here"
    console = Console(file=io.StringIO(), width=100)
    console.print(grid(table, summary, console))
    assert "/5" not in console.file.getvalue()
    web = write_report(summary, tmp_path / "report.html").read_text()
    assert web.count(">0/5<") == 2  # of failed seeds


def test_the_command_line_says_what_matters_and_against_whom(tmp_path, capsys):
    writer = Comparison(tmp_path)
    for optimizer, quality in (("lamb", 0.0), ("alto", 0.05), ("muon", 0.2)):
        writer.cell("digits", ACCURACY, 64, 40, optimizer, quality=quality, spread=0.01, target=None)
    pages = {}
    for options in ((), ("--margin", "50"), ("--reference", "lamb"), ("--margin", "50", "--reference", "lamb")):
        cli.main(["report", str(tmp_path), *options])
        pages[options] = " ".join(re.sub("<[^>]*>", " ", (tmp_path / "report.html").read_text()).split())
    capsys.readouterr()
    plain, margin, reference, both = pages.values()
    assert "corrected over 3 comparisons" in plain
    assert "corrected over 3 comparisons" in margin
    assert "corrected over 2 comparisons" in reference
    assert "corrected over 2 comparisons" in both
    for page_of, within in ((plain, False), (margin, True), (reference, False), (both, True)):
        assert ("by less than 50 points" in page_of) is within
    for options, message in (
        (("--margin", "0"), "--margin"),
        (("--reference", "almo"), "the reference must be one of alto, lamb, muon, got 'almo'"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["report", str(tmp_path), *options])
        assert message in capsys.readouterr().err


# words


def test_percentages_differ_by_points():
    pair = Paired(difference=5.0, error=0.36, freedom=4, higher=True, seeds=5)
    assert words.gap(pair, PERCENT) == "5.0 points (4.0 to 6.0)"
    assert claims.lead(pair, PERCENT) == "✓ +5.0 points (+4.0 to +6.0)"
    assert words.gap(pair, Metric("loss", "min", "nats")).startswith("5.0 nats (")


# studies


@pytest.mark.parametrize(("goal", "middle"), [("max", 0.2), ("min", 0.3)])
def test_of_two_middle_studies_the_worse_is_chosen(tmp_path, goal, middle):
    writer = Comparison(tmp_path)
    writer.cell("digits", ACCURACY | {"goal": "max"}, 64, 40, "adamw", trials=2, studies=1)
    trial = reading.read(tmp_path).tables[0].cells[0].trials[0]
    metric = Metric("score", goal)

    def study(value):
        return [replace(trial, validation=value)]

    for values in itertools.permutations([0.1, 0.2, 0.3, 0.4]):
        chosen = results.choose([study(value) for value in values], metric)
        assert chosen.validation == middle == median_best(values, metric)
    pair = results.choose([study(0.1), study(0.4)], metric)
    assert pair.validation == (0.1 if goal == "max" else 0.4)
    assert results.choose([study(0.1), []], metric) is None


@pytest.mark.parametrize(
    ("tables", "drawn"),
    [
        ([(64, 40), (128, 40), (256, 40)], True),
        ([(64, 40), (64, 80), (64, 160)], True),
        ([(64, 40), (128, 40), (128, 80)], False),
    ],
)
def test_from_point_to_point_of_a_picture_one_quantity_changes(tables, drawn, tmp_path):
    writer = Comparison(tmp_path)
    for batch_size, steps in tables:
        for optimizer in ("lamb", "alto"):
            writer.cell("digits", ACCURACY, batch_size, steps, optimizer)
    found = pictures.draw(summarise(reading.read(tmp_path), ""), tmp_path)
    assert [one.path.name for one in found] == ["curves.svg", *["scaling-digits.svg"] * drawn]
    sizes = [size for size, _ in tables]
    titles = [f"digits, batch {size}" + f", {steps} steps" * (sizes.count(size) > 1) for size, steps in tables]
    assert re.findall(r"<!-- (digits, .*) -->", found[0].path.read_text()) == titles  # no two the same
