"""A comparison from Python: the notebook's cells run, with fewer trials and seeds than it has."""

from __future__ import annotations

import html
import json
import os
import re
from pathlib import Path

import pytest
import small_tasks
from launching import Piped

from thalweg.lab import compare
from thalweg.lab.from_python import _import_again, _name
from thalweg.lab.tasks import TASKS, Task, find
from thalweg.records.errors import UserError
from thalweg.records.reading import read
from thalweg.report import Report

NOTEBOOK = Path(__file__).parents[2] / "examples" / "compare_in_a_notebook.ipynb"
AMOUNT = "trials=4, studies=1, seeds=3"


def cells(folder):
    """The notebook's code, once its files are written."""
    code = []
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and source.startswith("%%writefile"):
            first, _, text = source.partition("\n")
            (folder / first.split()[1]).write_text(text)
        elif cell["cell_type"] == "code":
            code.append(source)
    return "\n".join(code)


def test_the_notebook_runs(tmp_path):
    code = cells(tmp_path)
    assert AMOUNT in code
    code = code.replace(AMOUNT, "trials=1, studies=1, seeds=2, steps=3, timing=False")
    shown = "\nprint(report._repr_html_()[:15])\n"
    no_file = "import sys\ndel sys.modules['__main__'].__file__\n"  # which a notebook has not
    (tmp_path / "the_notebook.py").write_text(no_file + code + shown)
    process = Piped([str(tmp_path / "the_notebook.py")], dict(os.environ), tmp_path)
    out, errors = process.communicate(300.0)
    assert process.returncode == 0, errors
    said = out.splitlines()
    assert any(line.startswith("100 %, ") for line in said)
    assert said[-1] == "<iframe srcdoc="
    found = read(tmp_path / "runs" / "my_task.Tumours")
    assert len(found.tables) == 2
    assert {(cell.optimizer, len(cell.trials), len(cell.seeds)) for table in found.tables for cell in table.cells} == {
        ("adamw", 3, 2), ("lamb", 3, 2), ("alto", 3, 2),
    }  # fmt: skip
    report = Report(tmp_path / "runs" / "my_task.Tumours")
    (framed,) = re.findall('srcdoc="([^"]*)"', report._repr_html_())
    assert html.unescape(framed) == report.path.read_text()


def test_without_a_comparison_there_is_no_report(tmp_path):
    with pytest.raises(UserError, match="holds no comparison"):
        Report(tmp_path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"trials": 0}, r"trials must be .*, got 0"),
        ({"jobs": 1.5}, r"jobs must be .*, got 1.5"),
        ({"budget": "medium"}, "budget must be 'short', 'long' or 'both', got 'medium'"),
        ({"optimizers": "adamw"}, "optimizers must be a sequence of names, got 'adamw'"),
        ({"batch_sizes": [0]}, r"batch_sizes must be .*, got 0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(options, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        compare("sine", out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_misspelt_option_names_the_nearest():
    with pytest.raises(TypeError, match="no argument 'schedul'; did you mean 'schedule'"):
        compare("sine", schedul="constant")


def test_a_task_may_be_given_as_its_class():
    assert _name(TASKS["sine"]) == "sine"
    own = next(one for one in vars(small_tasks).values() if isinstance(one, type) and one.__module__ == "small_tasks")
    assert _name(own) == f"small_tasks:{own.__qualname__}"
    there = type("There", (Task,), {"__module__": "__main__"})
    with pytest.raises(UserError, match="the task There is defined where worker processes do not find it"):
        _name(there)
    with pytest.raises(ValueError, match="task must be a name"):
        _name(3)


def test_a_task_that_was_written_anew_is_taken_as_it_is_now(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "written_anew.py"
    text = "from thalweg.lab.tasks.sine import Sine\n\n\nclass Mine(Sine):\n    title = 'first'\n"
    file.write_text(text)
    _import_again("written_anew:Mine")
    assert find("written_anew:Mine").title == "first"
    file.write_text(text.replace("first", "the second"))
    _import_again("written_anew:Mine")
    assert find("written_anew:Mine").title == "the second"
