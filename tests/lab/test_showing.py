"""What a comparison says beforehand of the differences that its seeds could show."""

import itertools
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from comparisons import PLAN, SMALL, carry_out

from thalweg.commands import main as cli
from thalweg.commands import showing
from thalweg.lab.engine import Place
from thalweg.lab.search.cells import Job, Reader
from thalweg.records import reading
from thalweg.report.statistics import detectable
from thalweg.report.summary import summarise

TUNED = replace(PLAN, optimizers=("sgd", "adamw", "lamb"), trials=1, studies=1, seeds=3, tuning_seeds=2)
FACTOR = re.compile(r"differences above a factor of ([\d,.e+]+) four times in five, corrected over \d+ comparisons")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    root = tmp_path_factory.mktemp("showing")
    carry_out(TUNED, root)
    return root


def expected(values, seeds, comparisons):
    """Of logarithms by seed, one row an optimizer."""
    variances = [np.var(a - b, ddof=1) for a, b in itertools.combinations(np.log(np.array(values)), 2)]
    return math.exp(detectable(math.sqrt(np.mean(variances)), seeds, comparisons))


def factor_in(line):
    return float(FACTOR.search(line).group(1).replace(",", ""))


def test_with_nothing_known_their_scatter_is_the_unit(tmp_path, capsys):
    cli.main([*SMALL, "--out", str(tmp_path), "--dry-run"])
    said = capsys.readouterr().out.splitlines()
    least = detectable(1.0, 2, 1)
    assert said[-1] == (
        f"2 seeds show differences above {least:.3g} times their scatter from seed to seed four times in five, "
        "corrected over 1 comparison"
    )
    for plan in (replace(TUNED, seeds=1), replace(TUNED, optimizers=("sgd",))):
        cells, _ = plan.cells(tmp_path)
        assert showing.lines(cells, tmp_path, None) == (["one seed shows no difference"] if plan.seeds == 1 else [])


def test_fresh_seeds_that_are_there_say_how_large(compared):
    cells, _ = TUNED.cells(compared)
    (line,) = showing.lines(cells, compared, None)
    assert line.startswith("small_tasks:Line 16 custom: 3 seeds show")
    assert line.endswith("as far as its fresh seeds tell")
    tests = [[run.test for run in cell.seeds] for cell in reading.read(compared).tables[0].cells]
    assert factor_in(line) == pytest.approx(expected(tests, 3, 3), rel=0.01)
    assert "corrected over 3 comparisons" in line
    more, _ = replace(TUNED, seeds=9).cells(compared)  # a second look: as much correction again
    (line,) = showing.lines(more, compared, None)
    assert "corrected over 6 comparisons" in line
    assert factor_in(line) == pytest.approx(expected(tests, 9, 6), rel=0.01)


def test_the_tuning_seeds_are_the_pilot_once_all_are_tuned(compared, tmp_path):
    class Tuning(Reader):
        """As if no fresh seed had been trained, and of one optimizer not all trials."""

        late = ""

        def __call__(self, job):
            waiting = job.place.kind == "seed" or (job.spec.optimizer == self.late and job.place.round == 2)
            return None if waiting else super().__call__(job)

    cells, _ = TUNED.cells(compared)
    trials = [cell.chosen(compared, Reader()) for cell in cells]
    pilot = [[run.history[-1].validation for run in trial.runs] for trial in trials]
    told = []
    listener = showing.Listener(cells, compared, None, told.append)
    listener.reader = Tuning()
    listener.reader.late = "lamb"
    trial, seed = (Job(cells[0].spec({}, 0, test=False), Place(kind), tmp_path) for kind in ("trial", "seed"))
    listener.on_message("run", trial)
    listener.on_message("run", seed)
    assert told == []
    listener.reader.late = ""
    listener.on_message("run", trial)
    assert told == []
    listener.on_message("run", seed)
    listener.on_message("run", seed)
    (line,) = told
    assert line.endswith("as far as its tuning seeds tell")
    assert factor_in(line) == pytest.approx(expected(pilot, 3, 3), rel=0.01)


def test_compare_says_it_when_tuning_is_over(tmp_path, capsys, in_this_process):
    command = [*SMALL, "--out", str(tmp_path), "--tuning-seeds", "2"]
    cli.main(command)
    said = capsys.readouterr().out
    assert said.count("four times in five") == 2
    assert said.index("times their scatter") < said.index("as far as its tuning seeds tell")
    cli.main(command)
    assert "as far as its fresh seeds tell" in capsys.readouterr().out


def test_it_is_corrected_over_what_the_report_is(tmp_path):
    """Two tables of three pairs each, which meet again in both."""
    plan = replace(TUNED, batch_sizes=(16, 48))
    cells, _ = plan.cells(tmp_path)
    carry_out(replace(plan, tuning_seeds=1), tmp_path)
    for reference, wanted in ((None, 3 + 3 + 3), ("adamw", 2 + 2 + 2)):
        found = summarise(reading.read(tmp_path), "", reference=reference)
        assert showing.comparisons(cells, tmp_path, reference) == found.comparisons == wanted
    assert len(showing.lines(cells, tmp_path / "none", None)) == 1
