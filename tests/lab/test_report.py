from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("plotly")

from thalweg.lab import report
from thalweg.lab.summary import Curve, Interval, Metric, Row, Summary, Table

if TYPE_CHECKING:
    from pathlib import Path

STEPS = (0, 5, 10)
FAILED = Row(
    optimizer="sgd",
    settings=None,
    test=None,
    steps_to_target=None,
    seconds_to_target=None,
    reached=0,
    seeds=3,
    failed_seeds=3,
    trials=7,
    failed_trials=7,
    seconds=None,
    validation=None,
    train_loss=None,
    tuning=(({"lr": 0.1}, None), ({"lr": 0.2}, None)),
)


def done(optimizer: str, mean: float = 0.9, half_width: float | None = 0.01) -> Row:
    return Row(
        optimizer=optimizer,
        settings={"lr": 0.0031234, "beta2": 0.9995},
        test=Interval(mean, half_width, (mean - 0.004, mean, mean + 0.004)),
        steps_to_target=7.5,
        seconds_to_target=1.25,
        reached=3,
        seeds=3,
        failed_seeds=0,
        trials=7,
        failed_trials=1,
        seconds=2.0,
        validation=Curve(STEPS, (0.1, 0.5, mean), (0.05, 0.4, mean - 0.01), (0.15, 0.6, mean + 0.01)),
        train_loss=Curve(STEPS, (2.3, 0.9, 0.1), (2.2, 0.8, 0.05), (2.4, 1.0, 0.15)),
        tuning=(({"lr": 0.0031234, "beta2": 0.9995}, mean), ({"lr": 0.5, "beta2": 0.9}, None)),
    )


def summary(*rows: Row, **table: Any) -> Summary:
    first = Table("digits", "Handwritten digits", 1024, 1200, 40, Metric("test accuracy", "max", "u"), 0.85, rows)
    return Summary(
        tables=(replace(first, **table),),
        trials=7,
        seeds=3,
        command="thalweg compare --out <here>",
        created="2030-01-02",
        environment={"torch": "2.9"},
        protocol=("Everyone gets as many trials.",),
    )


class Page(HTMLParser):
    """What a browser would see of a page: attributes of every tag, text, scripts, table rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.rows: list[list[tuple[dict[str, str | None], str]]] = []
        self.in_cell = False
        self.figures: list[dict[str, Any]] = []
        self.feed(text)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append((dict(attrs), ""))
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        attributes = self.tags[-1][1] if self.tags else {}
        if self.cdata_elem == "style":
            self.styles.append(data)
        elif self.cdata_elem == "script":
            if attributes.get("type") == "application/json" and (
                figure := json.loads(data, parse_constant=pytest.fail)
            ):
                self.figures.append(figure)
            self.scripts.append(data)
        else:
            self.text += data
            if self.in_cell:
                known, text = self.rows[-1][-1]
                self.rows[-1][-1] = known, " ".join((text + data).split())

    def cells(self, optimizer: str) -> list[tuple[dict[str, str | None], str]]:
        return next(row for row in self.rows if row[0][0].get("data-value") == optimizer)

    def figure(self, xlabel: str, ylabel: str | None) -> dict[str, Any]:
        def label(axis: dict[str, Any]) -> Any:
            return axis.get("title", {}).get("text")

        return next(
            figure
            for figure in self.figures
            if (label(figure["layout"]["xaxis"]), label(figure["layout"]["yaxis"])) == (xlabel, ylabel)
        )


def page(*rows: Row, **table: Any) -> Page:
    return Page(report.render(summary(*rows, **table)))


def test_says_what_was_compared_and_how() -> None:
    seen = page(done("adamw"), done("alto"), left_out={"muon": "no matrices"})
    for words in (
        "2 optimizers, tuned with 7 trials each, then 3 fresh seeds",
        "final test accuracy (u)",
        "digits, batch size 1024 (of 1200 training examples), 40 steps",
        "Target: validation accuracy ≥ 0.85 u.",
        "muon (no matrices)",
        "Everyone gets as many trials.",
        "thalweg compare --out <here>",
    ):
        assert words in seen.text
    assert ("meta", {"charset": "utf-8"}) in seen.tags


def test_nothing_is_fetched() -> None:
    seen = page(done("adamw"))
    for tag, attributes in seen.tags:
        assert tag not in ("link", "iframe", "img", "object")
        assert attributes.get("src") is None
        assert (attributes.get("href") or "#").startswith("#")
    assert not re.search(r"url\(|@import", "".join(seen.styles))
    policy = next(given["content"] for _, given in seen.tags if given.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_plotly_is_inlined_once() -> None:
    scripts = page(done("adamw"), FAILED).scripts
    assert sum(len(script) > 1_000_000 for script in scripts) == 1


@pytest.mark.parametrize("name", ["<b>x</b>", "</script><script>alert(1)</script>", '"&amp;'])
def test_names_are_text(name: str) -> None:
    text = report.render(summary(done(name), left_out={name: name}))
    seen, plain = Page(text), page(done("x"), left_out={"x": "x"})
    assert [tag for tag, _ in seen.tags] == [tag for tag, _ in plain.tags]
    assert seen.cells(name)[0][1].endswith(name)
    drawn = seen.figure("step", "validation accuracy (u)")["data"][-1]["name"]
    assert "<" not in drawn
    assert drawn != name


def test_numbers_are_shown_with_what_they_sort_by() -> None:
    cells = page(done("adamw")).cells("adamw")
    assert [(text, given.get("data-value")) for given, text in cells[1:]] == [
        ("0.900 ± 0.010", "0.9"),
        ("7.5", "7.5"),
        ("1.25", "1.25"),
        ("3/3", "3"),
        ("0/3", "0"),
        ("1/7 failed", "1"),
        ("2", "2.0"),
        ("lr=0.00312, beta2=0.9995", None),
    ]


@pytest.mark.parametrize(
    ("mean", "half_width", "text"),
    [
        (97.123, 0.456, "97.12 ± 0.46"),
        (1234.5, 12.3, "1234 ± 12"),
        (1.573e-4, 3.8e-5, "(1.57 ± 0.38)e-4"),
        (2.5e7, 1e6, "(2.50 ± 0.10)e7"),
        (0.0, 0.01, "0.000 ± 0.010"),
        (0.5, 0.0, "0.5 ± 0"),
        (0.5, None, "0.5"),
    ],
)
def test_intervals_stop_at_the_digits_they_know(mean: float, half_width: float | None, text: str) -> None:
    assert page(done("adamw", mean, half_width)).cells("adamw")[1][1] == text


def test_failures_say_so_and_sort_as_missing() -> None:
    seen = page(done("adamw"), FAILED)
    cells = seen.cells("sgd")
    assert [(text, given.get("data-value")) for given, text in cells[1:]] == [
        ("no seed finished", ""),
        ("not reached", ""),
        ("not reached", ""),
        ("0/3", "0"),
        ("3/3 failed", "3"),
        ("7/7 failed", "7"),
        ("unknown", ""),
        ("no trial finished", None),
    ]
    assert "No seed finished: sgd." in seen.text


def test_a_table_where_everything_failed_renders() -> None:
    seen = page(FAILED, train_examples=None)
    assert "digits, batch size 1024, 40 steps" in seen.text
    assert [figure["layout"]["xaxis"]["type"] for figure in seen.figures] == ["log"], "only the tuning chart is left"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_break_nothing(bad: float) -> None:
    curve = Curve(STEPS, (0.1, bad, 0.3), (0.05, bad, bad), (0.2, bad, 0.4))
    row = replace(
        done("adamw"),
        test=Interval(bad, bad, (bad, 0.5)),
        steps_to_target=bad,
        seconds=bad,
        validation=curve,
        train_loss=curve,
        tuning=(({"lr": 0.1}, bad), ({"lr": bad}, 0.5), ({"momentum": 0.9}, 0.5)),
    )
    half = replace(done("lamb"), test=Interval(0.5, bad, (0.5,)))
    seen = page(row, half)
    values = [given.get("data-value") for cells in seen.rows for given, _ in cells]
    assert not {"nan", "inf", "-inf", "None"} & set(values)
    assert seen.cells("adamw")[1] == ({"data-value": "", "class": "fail missing"}, "no seed finished")
    assert seen.cells("lamb")[1][1] == "0.5"
    line = seen.figure("step", "validation accuracy (u)")["data"][-2]
    assert line["y"] == [0.1, None, 0.3]


@pytest.mark.parametrize(
    ("goal", "means", "expected"),
    [
        ("max", (0.90, 0.885, 0.70), ["best", "close", "behind"]),
        ("min", (0.70, 0.885, 0.715), ["best", "behind", "close"]),
    ],
)
def test_ranks_only_what_the_intervals_separate(goal: str, means: tuple[float, ...], expected: list[str]) -> None:
    rows = [done(name, mean) for name, mean in zip("abc", means, strict=True)]
    seen = page(FAILED, *rows, metric=Metric("score", goal))
    cells = [seen.cells(name)[1] for name in "abc"]
    assert [given["class"] for given, _ in cells] == expected
    assert [text.startswith("≈ ") for _, text in cells] == [standing == "close" for standing in expected]


def test_one_seed_separates_nothing() -> None:
    seen = page(done("a", 0.9), done("b", 0.1, half_width=None))
    assert seen.cells("b")[1][1] == "≈ 0.1"


@pytest.mark.parametrize(("goal", "worst_edge"), [("max", 0), ("min", -1)])
def test_failed_trials_lie_along_the_worst_edge(goal: str, worst_edge: int) -> None:
    figure = page(done("adamw"), metric=Metric("test accuracy", goal, "u")).figure(
        "learning rate", "validation accuracy (u)"
    )
    finished, failed = figure["data"]
    assert (finished["x"], finished["y"]) == ([0.0031234], [0.9])
    assert (failed["x"], failed["y"], failed["yaxis"]) == ([0.5], [0], "y2")
    span = figure["layout"]["yaxis2"]["range"]
    assert abs(span[worst_edge]) < 0.05
    assert span[1] - span[0] == 1


def test_an_optimizer_looks_the_same_in_every_chart() -> None:
    first = summary(done("alto"), done("adamw"), FAILED)
    second = replace(first.tables[0], task="other", rows=(done("adamw"), done("lamb")))
    seen = Page(report.render(replace(first, tables=(*first.tables, second))))
    looks: dict[str, set[str]] = {}
    for trace in (trace for figure in seen.figures for trace in figure["data"]):
        part = trace.get("line") or trace.get("marker") or {"color": trace.get("fillcolor")}
        looks.setdefault(trace["name"], set()).add(part["color"])
    assert {name: len(colours) for name, colours in looks.items()} == {"alto": 1, "adamw": 1, "lamb": 1, "sgd": 1}
    assert len(set.union(*looks.values())) == 4
    lines = seen.figure("step", "training loss")["data"][2:]
    assert lines[0]["line"]["width"] > lines[1]["line"]["width"], "alto is drawn heavier than a baseline"


def test_the_target_is_drawn_on_validation_alone() -> None:
    seen = page(done("adamw"))
    (shape,) = seen.figure("step", "validation accuracy (u)")["layout"]["shapes"]
    assert (shape["y0"], shape["y1"], shape["line"]["dash"]) == (0.85, 0.85, "dash")
    assert "shapes" not in seen.figure("step", "training loss")["layout"]


def test_a_logarithmic_axis_is_given_nothing_below_zero() -> None:
    row = replace(
        done("adamw", 1e-4, half_width=3e-4),
        test=Interval(1e-4, 3e-4, (5e-5, 2e-4)),
        validation=Curve(STEPS, (1.0, 0.1, 1e-4), (0.5, -0.1, -2e-4), (1.5, 0.3, 4e-4)),
    )
    seen = page(row, metric=Metric("error", "min", log=True))
    curves = seen.figure("step", "validation error")
    assert curves["layout"]["yaxis"]["type"] == "log"
    assert min(y for trace in curves["data"] for y in trace["y"]) > 0
    overview = seen.figure("test error", None)
    assert overview["layout"]["xaxis"]["type"] == "log"
    mean = overview["data"][1]
    assert mean["x"][0] - mean["error_x"]["arrayminus"][0] > 0
    assert overview["layout"]["shapes"][0]["x0"] > 0


def test_small_batches_come_first_in_the_overview() -> None:
    large = summary(done("adamw"))
    small = replace(large.tables[0], batch_size=32)
    text = Page(report.render(replace(large, tables=(*large.tables, small)))).text
    assert text.index("digits, batch size 32") < text.index("digits, batch size 1024")


def test_headings_sort_by_button_and_say_how() -> None:
    heads = page(done("adamw")).rows[0]
    assert [given.get("aria-sort") for given, _ in heads] == [*["none"] * 8, None]
    assert ["data-numeric" in given for given, _ in heads] == [False, *[True] * 7, False]


@pytest.mark.parametrize(
    ("name", "ours"),
    [("alto", True), ("e-adamw", True), ("E", True), ("eve", False), ("e.g.Sgd", False), ("lamb", False)],
)
def test_our_own_are_known_by_name(name: str, ours: bool) -> None:
    assert (("span", {"class": "ours"}) in page(done(name)).tags) is ours


def test_writing_leaves_the_report_alone_in_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    assert report.write_report(summary(done("adamw")), path) == path
    assert [found.name for found in path.parent.iterdir()] == ["report.html"]
    assert path.read_text(encoding="utf-8") == report.render(summary(done("adamw")))


def test_a_write_that_fails_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")
    # A lone surrogate cannot be encoded, so the temporary file is given up half-way.
    monkeypatch.setattr(report, "render", lambda _: "new" * 9999 + "\ud800")
    with pytest.raises(UnicodeEncodeError):
        report.write_report(summary(done("adamw")), path)
    assert path.read_text(encoding="utf-8") == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["report.html"]
