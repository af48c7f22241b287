"""The HTML report: one file that explains itself and opens anywhere, without a network.

Tables read without JavaScript. Charts are plotly figures, written as JSON beside an inlined plotly.js.
"""

from __future__ import annotations

import html
import math
import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from thalweg.lab.metric import Metric
    from thalweg.lab.summary import Interval, Row, Summary, Table

# Okabe and Ito's colours, without the two that vanish on a white or a dark page, two of Paul Tol's, grey, brown.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#999933", "#aa4499", "#888c94", "#9c6b4f")
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOL_NAMES = "circle", "square", "diamond", "triangle-up", "triangle-down", "star", "cross"
SYMBOLS = dict(zip(SYMBOL_NAMES, "●■◆▲▼★✚", strict=True))
TUNING_NOTE = "Large mark: the settings found. × along the worst edge: a trial that failed."


class Style(NamedTuple):
    """How one optimizer is drawn, everywhere on the page."""

    colour: str
    dash: str
    width: float
    symbol: str
    ours: bool


def write_report(summary: Summary, path: Path) -> Path:
    """Write the report to ``path``, which never holds half a file, and return ``path``."""
    text = render(summary)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def render(summary: Summary) -> str:
    """The whole page as text."""
    loader = PackageLoader("thalweg.lab", "")
    page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    page.filters |= {"finite": _finite, "short": _short, "interval": _interval, "settings": _settings}
    styles = _styles(row.optimizer for table in summary.tables for row in table.rows)
    sections = [_section(f"table-{i}", table, styles) for i, table in enumerate(summary.tables, 1)]
    return page.get_template("report.html.j2").render(
        summary=summary,
        styles=styles,
        symbols=SYMBOLS,
        tasks=list(dict.fromkeys(table.task for table in summary.tables)),
        sections=sections,
        plotlyjs=get_plotlyjs(),
    )


def _section(anchor: str, table: Table, styles: dict[str, Style]) -> dict[str, Any]:
    """What the template needs to draw one table."""
    quantity, log = _quantity(table.metric), table.metric.log
    best = next((row for row in table.rows if _mean(row) is not None), None)
    band = "Mean over seeds, with its 95 % confidence band."
    charts = [
        (f"Validation {quantity} by step", band, _curves(table, styles, "validation", log)),
        ("Training loss by step", band, _curves(table, styles, "train_loss", log=True)),
        ("Every trial, by its learning rate", TUNING_NOTE, _tuning(table, styles)),
    ]
    return {
        "id": anchor,
        "table": table,
        "quantity": quantity,
        "rows": [(row, _standing(row, best)) for row in table.rows],
        "overview": _without_nan(_overview(table, best, styles)),
        "charts": _without_nan(charts),
    }


def _styles(optimizers: Iterable[str]) -> dict[str, Style]:
    """A style for each name; ALTO and the E family come first and are drawn heavier than the baselines."""
    names = sorted(set(optimizers), key=lambda name: (not _is_ours(name), name))
    # Nobody tells ten hues apart in thin lines, so the baselines' line patterns differ too.
    return {
        name: Style(
            colour=COLOURS[i % len(COLOURS)],
            dash="solid" if _is_ours(name) else DASHES[i % len(DASHES)],
            width=3.5 if _is_ours(name) else 1.5,
            symbol=SYMBOL_NAMES[i % len(SYMBOL_NAMES)],
            ours=_is_ours(name),
        )
        for i, name in enumerate(names)
    }


def _is_ours(name: str) -> bool:
    return re.fullmatch(r"(alto|e)(-.*)?", name.lower()) is not None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _mean(row: Row) -> float | None:
    return _finite(row.test.mean) if row.test else None


def _standing(row: Row, best: Row | None) -> str:
    """``"best"``, ``"close"`` where the seeds do not separate it from the best, ``"behind"``, or ``""``: no result."""
    if best is None or best.test is None or row.test is None or _mean(row) is None:
        return ""
    if row is best:
        return "best"
    # A single seed has no interval, and so cannot be shown to differ from anything.
    widths = [math.inf if _finite(test.half_width) is None else test.half_width or 0 for test in (row.test, best.test)]
    return "close" if abs(row.test.mean - best.test.mean) <= sum(widths) else "behind"


def _short(value: float) -> str:
    """Three significant digits, and no exponent on everyday numbers."""
    if 100 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    # An averaging coefficient of 0.9999 is not 1.
    return f"{value:.6g}" if value != 1 and float(text) == 1 else text


def _interval(test: Interval) -> str:
    """Mean ± half-width, both to the half-width's second digit; small and large ones share an exponent."""
    mean, width = test.mean, _finite(test.half_width)
    if not width:
        return f"{mean:.4g}" + ("" if width is None else " ± 0")
    power = math.floor(math.log10(max(abs(mean), width)))
    if -3 <= power < 5:
        decimals = min(max(1 - math.floor(math.log10(width)), 0), 6)
        return f"{mean:.{decimals}f} ± {width:.{decimals}f}"
    return f"({_interval(replace(test, mean=mean / 10.0**power, half_width=width / 10.0**power))})e{power}"


def _settings(settings: dict[str, float]) -> str:
    return ", ".join(f"{name}={_short(value)}" for name, value in settings.items())


def _without_nan(value: Any) -> Any:
    """``value`` with each number that JSON cannot say replaced by ``None``, which plotly leaves out."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return _finite(value) if isinstance(value, float) else value


def _plain(text: str) -> str:
    """``text`` as plotly, which reads some HTML, should be given it."""
    return html.escape(text, quote=False)


def _quantity(metric: Metric) -> str:
    """What the metric measures, on whatever data."""
    return metric.name.removeprefix("test ")


def _label(split: str, metric: Metric) -> str:
    return _plain(f"{split} {_quantity(metric)}" + (f" ({metric.unit})" if metric.unit else ""))


def _scale(values: Iterable[float], log: bool) -> tuple[str, float]:
    """The type of an axis, logarithmic only if it can be, and the lowest an interval may reach on it."""
    known = [value for value in values if math.isfinite(value)]
    return ("log", min(known) / 2) if log and known and min(known) > 0 else ("linear", -math.inf)


def _trace(name: str, **trace: Any) -> dict[str, Any]:
    return {"type": "scatter", "name": _plain(name), "legendgroup": name} | trace


def _overview(table: Table, best: Row | None, styles: dict[str, Style]) -> dict[str, Any] | None:
    """Dot, whisker and seeds of each optimizer, the best one's interval shaded."""
    tests = {row.optimizer: row.test for row in table.rows if row.test and _mean(row) is not None}
    if best is None or best.test is None:
        return None
    scale, floor = _scale((value for test in tests.values() for value in (test.mean, *test.values)), table.metric.log)
    traces = []
    for name, test in tests.items():
        style, width = styles[name], _finite(test.half_width) or 0.0
        seeds = {"color": style.colour, "symbol": "circle-open", "size": 6}
        whisker = {
            "array": [width],
            "arrayminus": [test.mean - max(test.mean - width, floor)],
            "symmetric": False,
            "thickness": style.width,
            "width": 4,
        }
        traces += [
            _trace(name, x=test.values, y=[name] * len(test.values), mode="markers", marker=seeds, opacity=0.55)
            | {"hovertemplate": "one seed: %{x:.4g}"},
            _trace(name, x=[test.mean], y=[name], mode="markers", error_x=whisker, text=[_interval(test)])
            | {"marker": {"color": style.colour, "size": 12 if style.ours else 9}, "hovertemplate": "%{text}"},
        ]
    width = _finite(best.test.half_width) or 0.0
    low, high = max(best.test.mean - width, floor), best.test.mean + width
    shade = {"type": "rect", "yref": "paper", "x0": low, "x1": high, "y0": 0, "y1": 1, "layer": "below"}
    labels = [f"<b>{_plain(name)}</b>" if styles[name].ours else _plain(name) for name in tests]
    rows = {"type": "category", "tickvals": list(tests), "ticktext": labels, "range": [len(tests) - 0.4, -0.6]}
    return {
        "data": traces,
        "layout": {
            "xaxis": {"type": scale, "title": {"text": _label("test", table.metric)}},
            "yaxis": rows | {"fixedrange": True},
            "shapes": [shade | {"fillcolor": "rgba(128,133,143,0.2)", "line": {"width": 0}}],
            "height": 70 + 26 * len(tests),
        },
    }


def _curves(table: Table, styles: dict[str, Style], field: str, log: bool) -> dict[str, Any] | None:
    """Mean curves over translucent bands; on validation, the target as well."""
    curves = {row.optimizer: curve for row in table.rows if (curve := getattr(row, field)) is not None}
    scale, floor = _scale((value for curve in curves.values() for value in curve.mean), log)
    traces, bands = [], []
    for name, curve in curves.items():
        style = styles[name]
        line = {"color": style.colour, "width": style.width, "dash": style.dash}
        limits = zip(curve.steps, curve.low, curve.high, strict=True)
        band = [(x, max(low, floor), high) for x, low, high in limits if math.isfinite(low) and math.isfinite(high)]
        xs, lows, highs = ([point[i] for point in band] for i in range(3))
        bands.append(
            _trace(name, x=xs + xs[::-1], y=highs + lows[::-1], fill="toself", mode="none", hoverinfo="skip")
            | {"fillcolor": style.colour, "opacity": 0.14}
        )
        traces.append(_trace(name, x=curve.steps, y=curve.mean, line=line, mode="lines", hovertemplate="%{y:.4g}"))
    layout: dict[str, Any] = {"xaxis": {"title": {"text": "step"}}, "hovermode": "x unified"}
    label = "training loss"
    if field == "validation":
        label = _label("validation", table.metric)
        line = {"color": "#80858f", "width": 1.5, "dash": "dash"}
        text = {"text": f"target {table.target:.4g}", "textposition": "start", "yanchor": "bottom"}
        target = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": table.target, "y1": table.target}
        layout["shapes"] = [target | {"line": line, "label": text}]
    layout["yaxis"] = {"type": scale, "title": {"text": label}}
    return {"data": bands + traces, "layout": layout} if curves else None


def _tuning(table: Table, styles: dict[str, Style]) -> dict[str, Any] | None:
    """Validation metric of each trial by learning rate; failures lie along the worst edge of the chart."""
    traces, measured = [], []
    for row in table.rows:
        style = styles[row.optimizer]
        trials = [(settings, _finite(value)) for settings, value in row.tuning if settings.get("lr", 0) > 0]
        done = [(settings, value) for settings, value in trials if value is not None]
        failed = [(settings, 0.0) for settings, value in trials if value is None]
        measured += [value for _, value in done]
        marker = {"symbol": style.symbol, "size": [15 if settings == row.settings else 8 for settings, _ in done]}
        # The second axis spans the chart whatever the first one shows, so that failures stay at its edge.
        traces += [
            _marks(row.optimizer, done, "%{y:.4g}", color=style.colour, line={"width": 0}, **marker),
            _marks(row.optimizer, failed, "failed", color=style.colour, symbol="x-thin-open", size=8) | {"yaxis": "y2"},
        ]
    if not any(trace["x"] for trace in traces):
        return None
    edge = [-0.03, 0.97] if table.metric.goal == "max" else [-0.97, 0.03]
    scale, _ = _scale(measured, table.metric.log)
    return {
        "data": traces,
        "layout": {
            "xaxis": {"type": "log", "nticks": 6, "title": {"text": "learning rate"}},
            "yaxis": {
                "type": scale,
                "showticklabels": bool(measured),
                "title": {"text": _label("validation", table.metric)},
            },
            "yaxis2": {"overlaying": "y", "range": edge, "visible": False, "fixedrange": True},
        },
    }


def _marks(name: str, trials: list[tuple[dict[str, float], float]], says: str, **marker: Any) -> dict[str, Any]:
    xs, ys = [settings["lr"] for settings, _ in trials], [value for _, value in trials]
    text = [_plain(_settings(settings)) for settings, _ in trials]
    return _trace(name, x=xs, y=ys, text=text, mode="markers", marker=marker, hovertemplate=f"{says}<br>%{{text}}")
