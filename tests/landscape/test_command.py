"""``thalweg landscape`` as it is typed."""

from __future__ import annotations

import json

import pytest

from thalweg import cli


def test_valleys_writes_pictures_and_numbers(tmp_path, capsys):
    cli.main(
        ["landscape", "valleys", "closed", "beale", "--bases", "sgd,adam", "--alphas", "0,5", "--steps", "6",
         "--walkers", "3", "--animate", "adam", "--out", str(tmp_path)]
    )  # fmt: skip
    for name in ("closed", "beale"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / f"{name}-adam.gif").read_bytes().startswith(b"GIF8")
    record = json.loads((tmp_path / "valleys.json").read_text())
    assert [(row["function"], row["base"], row["alpha"]) for row in record["rows"]] == [
        (f, b, a) for f in ("closed", "beale") for b in ("sgd", "adam") for a in (0.0, 5.0)
    ]
    assert {(row["steps"], row["walkers"]) for row in record["rows"]} == {(6, 3)}
    assert record["command"].startswith("thalweg landscape valleys closed beale")
    assert "closed: mean" in capsys.readouterr().out


@pytest.mark.slow
def test_flatness_measures_a_trained_network(tmp_path, capsys):
    cli.main(
        ["landscape", "flatness", "--optimizer", "sgd", "--steps", "3", "--eigenvalues", "1", "--out", str(tmp_path)]
    )
    record = json.loads((tmp_path / "flatness.json").read_text())
    found = record["measured"]
    assert record["examples"] == 1197
    assert found["eigenvalue 1"]["value"] > 0
    assert found["ηλ as the optimizer sees it"]["value"] == pytest.approx(
        found["eigenvalue 1"]["value"] * record["settings"]["lr"] / (1 - record["settings"]["momentum"]), rel=1e-3
    )
    total = sum(layer["entries"] for layer in record["layers"].values())
    assert total > 5000
    assert max(layer["top"] for layer in record["layers"].values()) <= found["eigenvalue 1"]["value"] * (1 + 1e-4)
    assert (tmp_path / "density.png").read_bytes().startswith(b"\x89PNG")
    assert "by layer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("says", "arguments"),
    [
        ("name must be 'cardioid' or .*, got 'sombrero'", ["valleys", "sombrero"]),
        ("base must be 'sgd' or 'adam' or 'lamb', got 'muon'", ["valleys", "--bases", "muon"]),
        ("--alphas.*must be numbers, got 'x'", ["valleys", "--alphas", "0,x"]),
        ("alpha must be a number in", ["valleys", "closed", "--alphas", "50", "--animate", "none"]),
        ("--animate must be 'sgd' or .*, got 'x'", ["valleys", "--animate", "x"]),
        ("unknown optimizer 'x'", ["flatness", "--optimizer", "x"]),
        ("--set: sgd has no alpha", ["flatness", "--optimizer", "sgd", "--set", "alpha=1"]),
        ("--schedule must be cosine or", ["flatness", "--schedule", "x"]),
        ("must be an integer from 1 to 1197, got '0'", ["flatness", "--batch-size", "0"]),
    ],
)
def test_errors_are_one_line(says, arguments, tmp_path, capsys):
    import re

    with pytest.raises(SystemExit) as stopped:
        cli.main(["landscape", *arguments, "--out", str(tmp_path)])
    assert stopped.value.code == 2
    printed = capsys.readouterr().err.strip()
    assert printed.startswith("thalweg: error: ")
    assert re.search(says, printed)
    assert "\n" not in printed
