"""``thalweg theory``: what it says, and what it needs."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from thalweg.commands import main as cli
from thalweg.commands.theory import explain


def words(text: str) -> str:
    return " ".join(text.split())


def test_the_papers_default_in_front_of_momentum():
    text = words(explain(-5.0, 0.99, momentum=0.9, lr=0.01, sharpness=400.0))
    assert "the base gets 95 % of the gradient and 5 % of the average of the 100 steps before" in text
    assert "it sees 5 steps late" in text
    assert (
        "curvature up to 40; without E up to 38, 1.05 times as far. Beyond it, iterates change sign each step" in text
    )
    assert "S = 29 (19 without E)" in text
    assert "ηλ = 4, 10 % of the limit: below the edge of stability. There moderate α" in text
    assert "errors halve in 65.5 steps; without E they halve in 13.2 steps" in text


def test_a_narrow_range_says_what_to_do():
    text = words(explain(-3.0, 0.75, momentum=0.9))
    assert "curvature up to 0.481; without E up to 38, 0.0127 times as far" in text
    assert "swing with a period of 32.6 steps. That is a narrow range" in text
    weakest = float(re.search(r"α of at least (\S+) at this β1", text)[1])
    assert "narrow" not in explain(weakest, 0.75, momentum=0.9)


@pytest.mark.parametrize(
    ("sharpness", "says"),
    [(7.0, "70 % of the limit: below the edge"), (9.5, "95 % of the limit: at the edge"), (13.0, "130 %")],
)
def test_which_of_the_two_mechanisms_one_is_in(sharpness, says):
    text = words(explain(0.0, 0.0, lr=0.2, sharpness=sharpness))
    assert says in text
    assert ("unstable" in text) == (sharpness > 12)


def test_a_summed_momentum_multiplies_the_learning_rate():
    summed = explain(0.5, 0.0, momentum=0.9, lr=0.1, summed=True)
    assert "learning rate 0.1, which is η = 1 with the\nmomentum written as an average" in summed
    assert summed.split("\n\n")[1:] == explain(0.5, 0.0, momentum=0.9, lr=1.0).split("\n\n")[1:]


@pytest.mark.parametrize(("alpha", "says"), [(0.5, "vanishes"), (0.9, "steep regions"), (0.1, "flat regions")])
def test_the_sign_of_the_penalty(alpha, says):
    assert says in explain(alpha, 0.0)


def test_the_command_prints_it(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    cli.main(["theory", "--alpha", "-.4", "--beta", "0.5", "--momentum", "0.9", "--nesterov", "--lr", "1e-2"])
    assert capsys.readouterr().out == explain(-0.4, 0.5, momentum=0.9, nesterov=True, lr=0.01) + "\n"
    cli.main(["theory", "--sharpness", "3", "--lr", "1", "--summed"])
    assert capsys.readouterr().out == explain(-5.0, 0.99, momentum=0.9, lr=1.0, summed=True, sharpness=3.0) + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--alpha", "200"],
            "alpha must be a number in (-100, 100), as |alpha| < 1/(1 - beta) with beta=0.99, got 200.0",
        ),
        (["--beta", "1"], "beta must be a number in [0, 1), got 1.0"),
        (["--momentum", "nan"], "momentum must be a number in [0, 1), got nan"),
        (["--lr", "0"], "lr must be a number in (0, inf), got 0.0"),
        (["--lr", "1", "--sharpness", "-2"], "sharpness must be a number in (0, inf), got -2.0"),
        (["--sharpness", "2"], "sharpness must be given together with lr, got 2.0"),
        (["--alpha", "much"], "argument --alpha: must be a number, got 'much'; see `thalweg theory --help`"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["theory", *arguments])
    captured = capsys.readouterr()
    assert (stop.value.code, captured.out, captured.err) == (2, "", f"thalweg: error: {message}\n")


@pytest.mark.parametrize(
    "script",
    [
        "from thalweg.commands.main import main; main(['theory', '--lr', '1', '--sharpness', '1'])",
        "from thalweg.theory import stability_limit; stability_limit(-3.0, 0.75, momentum=0.9)",
        "from thalweg.theory.warning import Filter, warn_if_narrow; warn_if_narrow([Filter(-3.0, 0.75, 0.9)])",
    ],
)
def test_it_needs_python_alone(script):
    names = "('torch', 'numpy', 'scipy')"
    check = f"import sys; sys.modules.update(dict.fromkeys({names})); {script}"
    subprocess.run([sys.executable, "-c", check], capture_output=True, check=True)


def test_the_text_is_no_wider_than_the_terminal(monkeypatch, capsys):
    for columns, widest in (("60", 60), ("80", 80), ("200", 100)):
        monkeypatch.setenv("COLUMNS", columns)
        cli.main(["theory", "--lr", "0.01"])
        longest = max(map(len, capsys.readouterr().out.splitlines()))
        assert widest - 12 < longest <= widest
