"""What the report says of inclusion and of edges, and the settings it offers as code."""

import shlex

import pytest
import torch
from synthetic import ACCURACY, Comparison, comparison
from torch import nn

from thalweg.commands import main as cli
from thalweg.lab.contenders import CONTENDERS
from thalweg.lab.contenders.space import settings
from thalweg.lab.search.plan import ComparisonPlan
from thalweg.lab.search.work import Assignment, work
from thalweg.records import files as records
from thalweg.records.reading import read
from thalweg.report import code, sentences
from thalweg.report.summary import summarise


def two(root, general, special):
    """A table of ALTO and LAMB of such skill."""
    writer = Comparison(root)
    writer.cell("digits", ACCURACY, 1024, 40, "alto", quality=general)
    writer.cell("digits", ACCURACY, 1024, 40, "lamb", quality=special)
    return summarise(read(root), "")


def test_who_loses_to_a_special_case_of_itself_was_searched_too_little(tmp_path):
    summary = two(tmp_path, -0.5, 0.5)
    (said,) = sentences.about_inclusions(summary.verdict.inclusions)
    assert said.startswith(
        "digits, batch size 1024, short (40 steps): alto contains lamb (α = 0) and yet loses to it by"
    )
    assert "the search (18 trials) was too small for two more hyperparameters, not that lamb is better" in said


def test_who_wins_against_a_special_case_of_itself_is_better(tmp_path):
    (said,) = sentences.about_inclusions(two(tmp_path, 0.5, -0.5).verdict.inclusions)
    assert "alto is better than lamb, its special case at α = 0, by" in said


def test_what_the_seeds_do_not_tell_apart_is_said_to_be_so(tmp_path):
    (said,) = sentences.about_inclusions(two(tmp_path, 0.0, 0.0).verdict.inclusions)
    assert said == "alto and lamb, its special case at α = 0, are undecided in 1 of 1 table."


def test_records_of_other_code_and_seeds_of_another_setting_are_not_shown(tmp_path):
    folder = Comparison(tmp_path).cell("digits", ACCURACY, 1024, 40, "alto")
    for one, changed in (("study-0/trial-0-*", {"code": "0ther"}), ("seed-0-*", {"settings": {"lr": 1.0}})):
        (path,) = folder.glob(f"{one}/spec.json")
        records.write_json(path, {**records.read_json(path), **changed})
    ((cell,),) = (table.cells for table in read(tmp_path).tables)
    assert [run.number for run in cell.trials if run.study == 0] == [1, 2, 3, 4, 5]
    assert [run.number for run in cell.seeds] == [1, 2, 3, 4]
    assert cell.older == 1


def test_questions_of_inclusion_are_pairs_of_the_page_and_corrected_as_they_are(tmp_path):
    summary = summarise(read(comparison(tmp_path)), "")
    asked = summary.verdict.inclusions
    assert len(asked) == 5  # alto, e-adamw and e-muon in two tables, of which one has no muon
    for one in asked:
        assert one.found == one.table.pairs[one.general, one.special]
        assert one.found.comparisons == summary.comparisons == 21 + 15


@pytest.mark.parametrize(
    ("sign", "side", "beyond"), [(1, "highest", "higher"), (-1, "lowest", "lower"), (0, None, None)]
)
def test_a_winner_at_an_edge_is_flagged(sign, side, beyond, tmp_path):
    Comparison(tmp_path).cell("digits", ACCURACY, 1024, 40, "adamw", trials=20)
    for path in tmp_path.glob("runs/**/trial-*/result.json"):
        lr = records.read_json(path.parent / "spec.json")["settings"]["lr"]  # from .001 to 1
        value = 50.0 + sign * 10.0 * lr if sign else 50.0 - abs(lr - 0.03)
        records.write_json(path, {**records.read_json(path), "validation": value})
    (table,) = summarise(read(tmp_path), "").tables
    said = [one for one in sentences.cautions(table) if "learning rate" in one]
    if side is None:
        assert said == []
    else:
        (sentence,) = said
        assert sentence.startswith("The best learning rate of adamw (")
        assert sentence.endswith(f") is close to the {side} tried: a {beyond} one may be better.")


@pytest.mark.parametrize("name", CONTENDERS)
def test_the_settings_as_python_build_the_same_optimizer(name):
    own = settings({axis.name: axis.at(0.6) for axis in CONTENDERS[name].space})
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(3, 1)))
    variables = {"model": models[0]}
    exec(code.python(name, own), variables)
    pair = variables["optimizer"], CONTENDERS[name].build(models[1], own)
    assert type(pair[0]) is type(pair[1])
    for _ in range(3):
        for model, optimizer in zip(models, pair, strict=True):
            optimizer.zero_grad()
            model(torch.ones(2, 3)).square().sum().backward()
            optimizer.step()
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(p, q)


def test_the_settings_as_a_command_are_the_run(tmp_path, monkeypatch):
    recipe = {"schedule": "linear", "warmup": 0.2, "clip": 0.5, "augment": None}
    plan = ComparisonPlan(("small_tasks:Line",), (16,), ("adamw",), 2, 1, 1, steps=5, regimen=recipe)
    cells, _ = plan.cells(tmp_path)
    for cell in cells:
        cell.record(tmp_path, "")
    work(Assignment(tmp_path, cells))
    (table,) = summarise(read(tmp_path), "").tables
    (row,) = table.rows
    command = shlex.split(code.command(table, row.cell, row.settings))
    (fresh,) = row.cell.seeds
    monkeypatch.chdir(tmp_path)
    cli.main([*command[1:], "--seed", str(fresh.seed), "--track", "none", "--out", str(tmp_path / "again")])
    spec = {k: v for k, v in records.read_json(tmp_path / "again" / "spec.json").items() if k != "place"}
    assert spec == {k: v for k, v in fresh.spec.items() if k != "place"}
    assert records.read_json(tmp_path / "again" / "result.json")["test"] == fresh.test


def test_a_command_says_all_of_the_recipe(tmp_path):
    more = {"recipe": {"augment": "flip", "precision": "bf16", "label_smoothing": 0.1, "clip": None}}
    Comparison(tmp_path).cell("digits", ACCURACY, 1024, 40, "adamw", **more)
    (table,) = summarise(read(tmp_path), "").tables
    said = code.command(table, table.rows[0].cell, {"lr": 0.1})
    assert said == (
        "thalweg train digits --optimizer adamw --batch-size 1024 --steps 40 --label-smoothing 0.1 --augment flip "
        "--precision bf16 --set lr=0.1"
    )
