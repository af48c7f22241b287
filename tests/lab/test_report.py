"""The report: its numbers recomputed from the records by NumPy and SciPy alone, and the page in a real browser."""

import csv
import io
import itertools
import json
import re
import shutil

import numpy as np
import pytest
from markupsafe import escape
from rich.console import Console
from scipy import stats
from synthetic import Comparison, comparison, write

from thalweg.commands.tables import grid
from thalweg.records.reading import read
from thalweg.report import write_report
from thalweg.report.summary import summarise

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NASTY = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'> & \"quoted\""


def report_of(root):
    return write_report(summarise(read(root), "thalweg compare sine"), root / "report.html")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = comparison(tmp_path_factory.mktemp("compared"))
    report_of(folder)
    return folder


# What the records say, without the lab.


def load(path):
    return json.loads(path.read_text())


def records(root):
    """By table and optimizer: ``cell.json``, the results by study, those by seed, and the median second of a step."""
    found = {}
    for path in sorted(root.glob("runs/*/*/*/*/cell.json")):
        cell = load(path)
        if cell["left_out"] is not None:
            continue
        studies = [[load(one) for one in study.glob("trial-*/result.json")] for study in path.parent.glob("study-*")]
        seeds = {load(one.parent / "spec.json")["seed"]: load(one) for one in path.parent.glob("seed-*/result.json")}
        seconds = load(path.parents[2] / "timing" / f"{cell['steps']}-steps.json")["seconds"][cell["optimizer"]]
        name = f"{cell['task']}, batch size {cell['batch_size']}, short ({cell['steps']} steps)"
        found.setdefault(name, {})[cell["optimizer"]] = (cell, studies, seeds, float(np.median(seconds)))
    return found


def finals(seeds):
    return {seed: one["test"] for seed, one in seeds.items() if one["status"] == "finished"}


def scale(cell, values):
    return np.log(values) if cell["metric"].get("log") else np.asarray(values)


def mean_and_limits(cell, values):
    """By logarithms, or with the standard error carried to log-odds."""
    on = scale(cell, values)
    half = stats.t.ppf(0.975, len(on) - 1) * stats.sem(on)
    if cell["metric"].get("log"):
        return np.exp([on.mean(), on.mean() - half, on.mean() + half])
    share = on.mean() / 100
    odds = np.log(share / (1 - share)) + np.array([-1, 1]) * half / 100 / (share * (1 - share))
    return np.array([on.mean(), *(100 / (1 + np.exp(-odds)))])


def order(table):
    """Best first: by the share of seeds that failed, then by the mean."""

    def score(name):
        cell, _, seeds, _ = table[name]
        sign = -1 if cell["metric"]["goal"] == "max" else 1
        values = list(finals(seeds).values())
        return 1 - len(values) / len(seeds), sign * scale(cell, values).mean()

    return sorted(table, key=score)


def pairs(table):
    """p, Hedges' g and the sign of the difference of every two; positive: the first is better."""
    raw, rest = {}, {}
    for a, b in itertools.combinations(table, 2):
        cell, tests = table[a][0], [finals(table[name][2]) for name in (a, b)]
        shared = sorted(tests[0].keys() & tests[1].keys())
        x, y = (scale(cell, [one[seed] for seed in shared]) for one in tests)
        raw[a, b] = stats.ttest_rel(x, y).pvalue
        pooled = np.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 2)
        effect = (1 - 3 / (4 * (2 * len(x) - 2) - 1)) * (x.mean() - y.mean()) / pooled
        rest[a, b] = effect * (1 if cell["metric"]["goal"] == "max" else -1)
    found = {key: (p, rest[key]) for key, p in raw.items()}
    return found | {(b, a): (p, -effect) for (a, b), (p, effect) in found.items()}


# What the page says.


def rows_of(markup):
    body = re.search(r"<tbody>(.*?)</tbody>", markup, re.DOTALL)[1]
    return [
        re.findall(r'<t[hd][^>]*?data-value="([^"]*)"[^>]*>(.*?)</t[hd]>', row, re.DOTALL)
        for row in body.split("</tr>")[:-1]
    ]


@pytest.fixture(scope="module")
def page(root):
    return (root / "report.html").read_text()


@pytest.fixture(scope="module")
def rankings(page):
    found = {}
    for section in page.split('<section class="results"')[1:]:
        title = re.search(r"<h2[^>]*>(.*?)</h2>", section)[1]
        found[title] = rows_of(re.search(r'<table class="ranking">(.*?)</table>', section, re.DOTALL)[1])
    return found


def test_every_number_of_the_rankings_is_what_the_records_say(root, rankings):
    known = records(root)
    assert list(rankings) == list(known)
    count = sum(len(pairs(table)) // 2 for table in known.values())  # all pairs of the page
    for name, table in known.items():
        ordered = order(table)
        assert [row[0][0] for row in rankings[name]] == ordered
        compared = pairs(table)
        for row in rankings[name]:
            optimizer, mean, p, tuned, steps, seconds, reached, step, lost, failed = (value for value, _ in row)
            cell, studies, seeds, second = table[optimizer]
            values = list(finals(seeds).values())
            sign = np.max if cell["metric"]["goal"] == "max" else np.min
            bests = [sign([one["validation"] for one in study if one["status"] == "finished"]) for study in studies]
            times = [one["steps_to_target"] for one in seeds.values()]
            spent = np.mean([cell["steps"] if one is None else one for one in times])
            expected = [mean_and_limits(cell, values)[0], np.median(bests), spent, spent * second, second]
            assert [float(x) for x in (mean, tuned, steps, seconds)] == pytest.approx(expected[:4], rel=1e-9)
            assert float(step) == pytest.approx(1000 * second)
            assert int(reached) == sum(one is not None for one in times)
            assert (int(lost), int(failed)) == (
                len(seeds) - len(values), sum(one["status"] == "failed" for study in studies for one in study)
            )  # fmt: skip
            if optimizer == ordered[0]:
                assert p == ""
            else:
                wanted = compared[optimizer, ordered[0]][0]
                assert float(p) == pytest.approx(min(1.0, count * wanted), rel=1e-6)


def test_intervals_are_those_of_the_scale_of_the_metric(root, rankings):
    for name, table in records(root).items():
        for row in rankings[name]:
            cell, _, seeds, _ = table[row[0][0]]
            wanted = mean_and_limits(cell, list(finals(seeds).values()))
            printed = re.findall(r"[\d.]+(?:e-?\d+)?", row[1][1])
            for text, value in zip(printed, wanted, strict=True):
                digit = 10.0 ** -len(text.partition(".")[2])
                assert abs(float(text) - value) <= 0.5001 * digit


def test_the_verdict_counts_what_is_decided(root, page):
    known = records(root)
    names = {name for table in known.values() for name in table}
    places = {name: [order(table).index(name) + 1 for table in known.values() if name in table] for name in names}
    won, lost = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    count = sum(len(pairs(table)) // 2 for table in known.values())
    assert f"corrected over {count} comparisons (Bonferroni)" in page
    for table in known.values():
        failed = {name: len(table[name][2]) - len(finals(table[name][2])) for name in table}
        for (a, b), (p, effect) in pairs(table).items():
            if count * p < 0.05 and effect > 0 and failed[a] <= failed[b]:
                won[a] += 1
                lost[b] += 1
    assert sum(won.values()) > 0
    rows = rows_of(page[page.index("Mean ranks over all tables") :])
    found = {row[0][0]: [float(value) for value, _ in row[1:]] for row in rows}
    assert list(found) == sorted(found, key=lambda name: found[name][0])
    for name in names:
        firsts = sum(place == 1 for place in places[name])
        wanted = [np.mean(places[name]), len(places[name]), firsts, won[name], lost[name]]
        assert found[name][:-1] == pytest.approx(wanted), name


def test_the_table_beside_it_holds_every_run(root):
    rows = list(csv.DictReader(io.StringIO((root / "results.csv").read_text())))
    results = [load(path) for path in root.glob("runs/**/result.json")]
    assert len(rows) == len(results) > 100
    for key in ("test", "validation"):
        assert sorted(float(row[key]) for row in rows if row[key]) == sorted(
            one[key] for one in results if one[key] is not None
        )
    assert sum(row["failure"] != "" for row in rows) == sum(one["status"] == "failed" for one in results) > 0


def test_every_failure_is_shown_with_its_reason(page):
    for reason in ("the loss grew to 3e+12", "16 GiB asked for", "the loss is not a number"):
        assert reason in page


def nasty(root):
    writer = Comparison(root)
    metric = {"name": f"test {NASTY}", "goal": "max", "unit": NASTY, "low": 0.0, "high": 100.0}
    for optimizer in ("alto", "lamb"):
        writer.cell("digits", metric, 16, 10, optimizer, title=NASTY, fail={0: ("refused", NASTY)}, command=NASTY)
    writer.cell("digits", metric, 16, 10, "muon", left_out=NASTY)
    return report_of(root)


def test_what_the_records_name_is_text_on_the_page(tmp_path):
    text = nasty(tmp_path).read_text()
    assert text.count(str(escape(NASTY))) > 5
    assert "<script>window" not in text
    assert "<img" not in text


@pytest.mark.parametrize("seeds", [1, 5])
def test_at_80_columns_the_tables_of_the_terminal_are_whole(tmp_path, seeds):
    writer = Comparison(tmp_path)
    metric = {"name": "test MSE", "goal": "min", "log": True, "low": 0.0}
    for optimizer in ("schedule-free", "ema-nesterov", "my_optimizers.AnAdamWithAnAdjectiveBeforeIt"):
        writer.cell("sine", metric, 256, 400, optimizer, quality=2.0, spread=0.4, seeds=seeds)
    table = tmp_path / "runs" / "sine" / "256"
    write(table / "timing" / "400-steps.json", {"seconds": {"ema-nesterov": [1e-5], "schedule-free": [1e-5]}})
    summary = summarise(read(tmp_path), "thalweg compare sine")
    console = Console(file=io.StringIO(), width=80)
    console.print(grid(summary.tables[0], summary, console))
    lines = console.file.getvalue().splitlines()
    head = next(line for line in lines if line.lstrip().startswith("optimizer"))
    assert head.split() == ["optimizer", "mean", "(95", "%", "interval)", "steps", "seconds", "reached", "failed"]
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    for row in summary.tables[0].rows:
        if "." in row.optimizer:  # on two lines
            continue
        (line,) = (line for line in lines if row.optimizer in line)  # however few seconds
        assert f" {row.seconds_to_target.mean:.3g} " in line


# The page in a browser.


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def opened(browser, root):
    """Opens a report from disk; at the end nothing was complained of, and nothing asked of a network."""
    contexts, said, asked = [], [], []

    def open_(path=root / "report.html", **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        assert asked == [path.as_uri()]
        return page

    yield open_
    for context in contexts:
        context.close()
    assert said == []
    assert len(asked) == len(contexts)


LIGHT = "element => getComputedStyle(document.querySelector(element)).{}.match(/[\\d.]+/g).slice(0, 3).map(Number)"


def luminance(page, element, what):
    linear = [(c / 255) ** 2.2 for c in page.evaluate(LIGHT.format(what), element)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_in_either_scheme(opened, scheme):
    page = opened(color_scheme=scheme)
    back = luminance(page, "body", "backgroundColor")
    assert (back < 0.05) if scheme == "dark" else (back > 0.8)
    for element in ("h1", "td", ".note", ".caution", "td.fail", "nav a"):
        text = luminance(page, element, "color")
        behind = back if element in ("h1", ".note", "nav a") else None
        if behind is None:
            painted = element if element in (".caution", "td.fail") else ".card"
            behind = luminance(page, painted, "backgroundColor")
        low, high = sorted((text, behind))
        assert (high + 0.05) / (low + 0.05) > 4.5, element


@pytest.mark.parametrize("width", [360, 768, 1280, 1920])
def test_no_width_makes_the_page_scroll_sideways(opened, width):
    page = opened(viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width >= 1280:  # and there no ranking either
        assert page.evaluate("[...document.querySelectorAll('.ranking, .card table')].every("
                             "t => t.scrollWidth <= t.parentElement.clientWidth)")  # fmt: skip


def test_a_click_sorts_and_another_one_reverses(opened):
    page = opened()
    table = page.locator(".ranking").first
    columns = table.locator("thead th").count()
    assert columns == 10
    for k in range(columns):
        head = table.locator("thead th").nth(k)
        for state in ("ascending", "descending"):
            head.locator("button").click()
            assert head.get_attribute("aria-sort") == state
            values = table.evaluate("(t, k) => [...t.tBodies[0].rows].map(r => r.cells[k].dataset.value)", k)
            known = [value for value in values if value != ""]
            assert values == known + [""] * (len(values) - len(known))
            key = float if k else str
            assert known == sorted(known, key=key, reverse=state == "descending")


def test_optimizers_and_views_can_be_chosen(opened):
    page = opened()
    section = page.locator(".results").first
    button = section.locator(".legend button").first
    marks = section.locator(f"svg:not(.swatch) .{button.get_attribute('data-css')}")
    shown = "marks => marks.filter(mark => getComputedStyle(mark).display !== 'none').length"
    assert marks.evaluate_all(shown) == marks.count() > 0
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert marks.evaluate_all(shown) == 0
    button.click()
    assert marks.evaluate_all(shown) == marks.count()
    card = section.locator(".card", has=page.get_by_role("button", name="by seconds")).first
    card.get_by_role("button", name="by seconds").click()
    assert [view.is_visible() for view in card.locator(".view").all()] == [False, False, True]


def test_on_paper_the_repeated_heads_have_their_labels(opened, tmp_path):
    page = opened()
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    head = page.locator(".ranking thead").first
    assert head.evaluate("head => getComputedStyle(head).display") == "table-header-group"
    labels = head.locator("button").all()
    assert [label.inner_text() != "" and label.is_visible() for label in labels] == [True] * 10
    assert luminance(page, ".ranking thead button", "color") == 0.0
    page.pdf(path=tmp_path / "paper.pdf", format="A4")
    assert (tmp_path / "paper.pdf").read_bytes().count(b"/Type /Page\n") > 1


def test_nothing_that_a_record_names_runs(opened, tmp_path):
    page = opened(nasty(tmp_path))
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img").count() == 0
    assert NASTY in page.locator(".results .note").first.inner_text()
