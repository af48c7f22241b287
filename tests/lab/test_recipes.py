import dataclasses
import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from launching import Piped, on_ranks
from scipy import stats
from synthetic import ACCURACY, Comparison

import thalweg
from thalweg.commands import main as cli
from thalweg.lab import hub, tasks
from thalweg.lab.contenders import contender
from thalweg.lab.engine import Execution, Mesh
from thalweg.records import files as records
from thalweg.records import reading
from thalweg.records.errors import UserError
from thalweg.report.decisions import Paired
from thalweg.report.summary import summarise
from thalweg.studies import claims, page, paper, recipe, run

HERE = Path(__file__).parent
SHARED = Path(__file__).parents[3] / "shared"
OWN = """
title = "A line"
about = "Something of one's own."

[lab]
about = "As small as can be."
seeds = 2
trials = 2
tuning_seeds = 1
steps = 6
optimizers = ["adamw", "lamb", "alto:alpha=-5:beta=0.99"]

[[lab.tables]]
task = "small_tasks:Line"
batch_size = 16

[[lab.tables]]
task = "small_tasks:Line"
batch_size = 48
given = { lr = [0.01, 0.1], momentum = 0.9, beta2 = 0.99, weight_decay = 0.0 }

[[claims]]
says = "ALTO is better than LAMB"
a = "alto:alpha=-5:beta=0.99"
b = "lamb"
paper = { source = "slides", dataset = "CIFAR10", batch_size = "16384" }
paper_a = "ALTO"
paper_b = "Lamb"

[[beside]]
source = "slides"
dataset = "CIFAR10"
"""


def reproduce(text, root, **options):
    found = run.resolved(recipe.read_text("own", text))
    run.reproduce(found, text, "lab", root / "own", command="thalweg reproduce own.toml", **options)
    return page.write_page(root)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    root = tmp_path_factory.mktemp("recipes")
    reproduce(OWN, root)
    return root


# printed numbers


@pytest.mark.parametrize(
    ("source", "shared", "digest"),
    [
        ("slides", "paper-results.csv", "2548e8a1d037d0f109c69926d8d77a08206c72808a52bb8eb13ba6f5c94f3593"),
        ("paper", "paper-more.csv", "b66beb4bd10e8f8aa54f9a336f326e784def74fdfe21e5aa426515bf92869260"),
    ],
)
def test_the_printed_numbers_are_the_collected_ones_byte_for_byte(source, shared, digest):
    own = Path(paper.__file__).with_name(f"{source}.csv").read_bytes()
    assert hashlib.sha256(own).hexdigest() == digest
    if (SHARED / shared).exists():
        assert own == (SHARED / shared).read_bytes()


def test_printed_numbers_are_found_by_their_fields():
    wanted = {"source": "slides", "dataset": "CIFAR10", "batch_size": "16384", "metric": "test_accuracy_pct"}
    found = {one.optimizer: one.value for one in paper.select(wanted)}
    assert found == {"SGD": "80.86", "Adam": "87.34", "AdamW": "82.29", "Lamb": "83.56", "AdaBelief": "88.03",
                     "ALTO": "88.83"}  # fmt: skip
    assert len(paper.numbers()) == 495


# recipes


def test_every_recipe_of_the_package_can_be_read_and_all_it_names_exists():
    assert len(recipe.names()) >= 9
    for name in recipe.names():
        found = recipe.find(name)
        assert set(found.scales) == set(recipe.SCALES), name
        for wanted in (*found.beside, *(claim.paper for claim in found.claims if claim.paper)):
            assert paper.select(wanted), (name, wanted)
        for claim in found.claims:
            assert not claim.paper or claims.printed(claim), (name, claim)
        for one in found.scales["lab"].comparisons:
            for optimizer in one.optimizers:
                contender(optimizer)
        for claim in found.claims:
            optimizers = [one.optimizers for one in found.scales["lab"].comparisons]
            assert any({claim.a, claim.b} <= {o for o in own if o in (claim.a, claim.b)} or
                       {claim.a, claim.b} <= {next((c for c in (claim.a, claim.b) if o == c or o.startswith(c + ":")),
                                                   "") for o in own} for own in optimizers), (name, claim)  # fmt: skip


def test_the_page_has_a_place_for_every_recipe_of_the_package():
    assert sorted(page.ORDER) == recipe.names()


def test_no_batch_of_a_recipe_is_larger_than_its_training_set():
    for name in recipe.names():
        for one in recipe.find(name).scales["paper"].comparisons:
            examples = tasks.find(one.task).published_examples
            assert examples is None or one.batch_size <= examples, (name, one)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("title", "titel"), "has no titel"),
        (("steps = 6", ""), "needs epochs or steps"),
        (("steps = 6", "steps = 6\nepochs = 2"), "needs epochs or steps"),
        (("seeds = 2", "seeds = 0"), r"seeds of \[\[lab.tables\]\] must be an integer of at least 1, got 0"),
        (("seeds = 2", "seeds = 'two'"), "seeds of .* must be an integer of at least 1, got 'two'"),
        (("steps = 6", "epochs = -1"), "epochs of .* must be a number greater than 0, got -1"),
        (("steps = 6", "steps = 6\nmesh = {shards = 2}"), "mesh of .* has no shards; it may have data, expert, shard"),
        (("steps = 6", "steps = 6\nmesh = {shard = 0}"), "shard of the mesh of .* an integer of at least 1, got 0"),
        (("steps = 6", "steps = 6\nreshard = 'never'"), "reshard of .* must be 'each' or 'last', got 'never'"),
        (("steps = 6", "steps = 6\ncompile = 1"), "compile of .* must be true or false, got 1"),
        (("steps = 6", "steps = 6\nsharding = 'fsdp'"), "sharding of .* must be 'ddp' or .*, got 'fsdp'; did you mean"),
        (
            ('["adamw", "lamb", "alto:alpha=-5:beta=0.99"]', "[]"),
            r"optimizers of .* a list of one or more texts, got \[\]",
        ),
        (('task = "small_tasks:Line"\n', ""), r"the recipe own: \[\[lab.tables\]\] needs task$"),
        (('title = "A line"\n', ""), "the recipe own: the file needs title$"),
        (("[lab]", "[paper]\nabout = 1\ntables = 2\n[lab]"), r"tables of \[paper\] must be tables, got 2"),
        (('title = "A line"\n', 'title = "A line"\npaper = 3\n'), r"\[paper\] must be a table, got 3"),
        (("batch_size = 16", "batchsize = 16"), "has no batchsize"),
        (('"lamb", ', '"lamp", '), "unknown optimizer 'lamp'"),
        (("[lab]", "[lab"), "is not valid TOML"),
        (("paper_a", "paper_c"), "has no paper_c"),
        (('dataset = "CIFAR10"\n', 'data = "CIFAR10"\n'), "has no data"),
        (("says = ", "measure = 'speed'\nsays = "), "measure of .* must be 'test' or .*, got 'speed'"),
        (
            ("says = ", "batch_sizes = [1]\nsays = "),
            r"batch_sizes of .* must be \[least, most\], two integers, got \[1\]",
        ),
    ],
)
def test_a_recipe_that_is_wrong_is_refused_with_what_is_wrong(change, says):
    assert change[0] in OWN
    with pytest.raises(UserError, match=says):
        run.resolved(recipe.read_text("own", OWN.replace(*change, 1)))


def test_given_settings_go_to_those_who_have_them():
    found = run.resolved(recipe.read_text("own", OWN.replace('"adamw", "lamb"', '"sgd", "lamb:lr=5"')))
    first, second = found.scales["lab"].comparisons
    assert first.optimizers == ("sgd", "lamb:lr=5", "alto:alpha=-5:beta=0.99")
    assert second.optimizers == (
        "sgd:lr=0.01|0.1:momentum=0.9:weight_decay=0",
        "lamb:lr=5:momentum=0.9:beta2=0.99:weight_decay=0",
        "alto:alpha=-5:beta=0.99:lr=0.01|0.1:momentum=0.9:beta2=0.99:weight_decay=0",
    )


def test_epochs_are_of_whole_batches():
    one = recipe.Comparison("t", 16384, ("adamw",), epochs=100)
    assert one.length(55000) == 300
    assert recipe.Comparison("t", 128, ("adamw",), epochs=0.001).length(1000) == 1


# what is run


def test_a_recipe_is_run_whole_and_not_twice(done):
    found = reading.read(done / "own")
    assert not found.problems
    assert [(table.batch_size, len(table.cells)) for table in found.tables] == [(16, 3), (48, 3)]
    small, large = found.tables
    assert [len(cell.trials) for cell in small.cells] == [4, 4, 4]
    for cell in large.cells:
        assert sorted(one.settings["lr"] for one in cell.trials) == [0.01, 0.1]
        assert len(cell.seeds) == 2
    before = {path: path.stat().st_mtime_ns for path in done.rglob("result.json")}
    assert len(before) == 3 * (4 + 2) + 3 * (2 + 2)
    reproduce(OWN, done)
    assert {path: path.stat().st_mtime_ns for path in done.rglob("result.json")} == before


def test_the_search_of_alto_at_given_alpha_is_that_of_lamb(done):
    table = next(table for table in reading.read(done / "own").tables if table.batch_size == 16)
    cells = {cell.optimizer: cell for cell in table.cells}
    first = ([one for one in cells[name].trials if not one.round] for name in ("lamb", "alto:alpha=-5:beta=0.99"))
    for a, b in zip(*first, strict=True):
        assert a.point == b.point
        assert b.settings == a.settings | {"alpha": -5.0, "beta": 0.99}


def test_the_page_has_printed_numbers_and_ours_as_the_records_say(done):
    text = (done / "README.md").read_text()
    assert "Published: CIFAR10, ResNet20, batch 16384: ALTO 88.83, Lamb 83.56 (+5.27)" in text
    assert text.index("| [ALTO is better than LAMB](#a-line) | A line | 88.83 against 83.56 |") < text.index(
        "## A line"
    )
    assert "| SGD | 91.85 | 80.86 |" in text
    losses = {}
    for path in sorted((done / "own" / "runs").rglob("seed-*/result.json")):
        spec = json.loads((path.parent / "spec.json").read_text())
        last = json.loads((path.parent / "metrics.jsonl").read_text().splitlines()[-1])
        losses.setdefault((spec["batch_size"], spec["optimizer"]), []).append(last["loss"])
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith(("| lamb |", "| lamb:lr"))]
    given = "lamb:lr=0.01|0.1:momentum=0.9:beta2=0.99:weight_decay=0"
    assert [row[2] for row in rows] == [f"{np.mean(losses[key]):.3g}" for key in ((16, "lamb"), (48, given))]
    web = (done / "report.html").read_text()
    assert "88.83" in web
    assert "<script" not in web
    assert "://" not in web


def test_titles_and_text_of_a_recipe_are_escaped(done, tmp_path):
    grid = page.Grid("<t>", ("<h>",), (("<c>",),))
    tested = claims.Finding(claim(says="<q>"), ())
    section = page.Section("<b>", ("`a<b` & **c**",), (tested,), ("<i>",), (grid,))
    web = page.html(page.Page(("<p>x",), (section,), ("<s>",)))
    assert "&lt;q&gt;" in web
    assert "&lt;p&gt;x" in web
    assert not any(one in web for one in ("<b>", "<i>", "<t>", "<h>", "<c>", "<s>", "<q>", "<p>x"))
    assert "<code>a&lt;b</code> &amp; <strong>c</strong>" in web


def test_a_recipe_goes_on_after_a_kill(tmp_path):
    own = tmp_path / "own.toml"
    own.write_text(OWN)
    command = ["-m", "thalweg", "reproduce", str(own), "--jobs", "1", "--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(thalweg.__file__).parents[1]), str(HERE)])}
    started = Piped(command, environment)
    deadline = time.monotonic() + 300
    while len(list(tmp_path.rglob("result.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait(10)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert 3 <= len(kept) < 30
    cli.main(command[2:])
    found = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert len(found) == 30
    assert kept.items() <= found.items()
    assert (tmp_path / "out" / "README.md").exists()


def test_a_table_says_how_its_runs_are_carried_out_and_none_of_it_is_ignored():
    one = recipe.Comparison(
        "digits", 64, ("sgd",), steps=1, micro_batch=4, sharding="fsdp2", mesh={"data": 2, "shard": 3}, reshard="last",
        activation_checkpointing=True, compile=True,
    )  # fmt: skip
    assert run.execution_of(one) == Execution(
        micro_batch=4, sharding="fsdp2", mesh=Mesh(data=2, shard=3), reshard="last", activation_checkpointing=True,
        compile=True,
    )  # fmt: skip
    with pytest.raises(UserError, match="--mesh is for --sharding fsdp2"):
        run.execution_of(dataclasses.replace(one, sharding="ddp"))


@pytest.mark.slow
def test_under_srun_as_under_torchrun_all_processes_work_on_one_run_at_a_time(done, tmp_path):
    own = tmp_path / "own.toml"
    own.write_text(OWN.replace("[lab]", '[lab]\nsharding = "fsdp2"\nmicro_batch = 5'))
    on_ranks(2, ["-m", "thalweg", "reproduce", str(own), "--out", str(tmp_path / "out")], slurm=True)

    def results(root):
        found = {}
        for path in root.rglob("result.json"):
            result = records.read_json(path)
            found[path.parent.relative_to(root).as_posix()] = result.get("test", result["validation"])
        return found

    alone, together = results(done / "own"), results(tmp_path / "out" / "own")
    assert together.keys() == alone.keys()
    assert together == pytest.approx(alone, rel=1e-4)
    environments = [records.read_json(path) for path in (tmp_path / "out").rglob("environment.json")]
    assert len(environments) == 30
    assert {one.get("processes") for one in environments} == {"2"}


# claims


@pytest.fixture
def synthetic(tmp_path):
    comparison = Comparison(tmp_path)
    for batch_size in (64, 1024):
        for optimizer in ("alto", "lamb", "adamw"):
            comparison.cell("digits", ACCURACY, batch_size, 40, optimizer)
    return summarise(reading.read(tmp_path), "thalweg compare digits")


def claim(**values):
    return recipe.Claim(**{"says": "A is better", "a": "alto", "b": "adamw", **values})


def test_a_claim_is_tested_by_seed_and_corrected_over_all_tests_of_the_recipe(synthetic):
    wanted = [claim(), claim(b="lamb", batch_sizes=(1000, 2000)), claim(measure="steps to target")]
    found = claims.findings_of(wanted, synthetic)
    assert [len(one.found) for one in found] == [2, 1, 2]
    raw = []
    for one in found:
        for table, _, pair in one.found:
            values = []
            for name in (one.claim.a, one.claim.b):
                seeds = {run.seed: run for run in table.row(name).cell.seeds}
                if one.claim.measure == "steps to target":
                    values.append({k: float(v.steps_to_target or table.steps) for k, v in seeds.items()})
                else:
                    values.append({k: v.test for k, v in seeds.items() if v.finished})
            both = sorted(values[0].keys() & values[1].keys())
            a, b = (np.array([own[k] for k in both]) for own in values)
            if pair.order is not None:
                assert pair.p == pytest.approx(stats.binomtest(pair.order[0], sum(pair.order)).pvalue)
            elif np.ptp(a - b) > 1e-9:
                assert pair.p == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9)
            assert pair.difference == pytest.approx((a - b).mean(), rel=1e-9)
            raw.append(pair)
    pools = [one.pooled for one in found if one.pooled is not None]
    assert sum(one.comparisons for one in found) == len(raw) + len(pools) == 6  # of bounds there is no pool
    whole = page._corrected(page.Page((), (page.Section(claims=found),)))
    (section,) = whole.sections
    for one in section.claims:
        assert {pair.comparisons for _, _, pair in one.found} == {6}
    assert "corrected over 6 comparisons" in whole.lead


@pytest.mark.parametrize(
    ("better", "significant", "verdict"),
    [
        ([True, True], [True, False], "✓ holds in 1 of 2, ? undecided in 1"),
        ([True, True], [True, True], "✓ holds"),
        ([False, True], [True, False], "✗ does not hold in 1 of 2, ? undecided in 1"),
        ([True, False, True], [True, True, False], "✓ holds in 1 of 3, ✗ does not hold in 1, ? undecided in 1"),
        ([True, False], [False, False], "? undecided"),
        ([], [], "not tested here"),
    ],
)
def test_a_verdict_counts_only_what_is_beyond_noise(better, significant, verdict):
    pairs = [
        Paired(difference=0.1, error=0.01 if sure else 0.1, freedom=4, higher=one, seeds=5)
        for one, sure in zip(better, significant, strict=True)
    ]
    assert claims.Finding(claim(), tuple((None, None, pair) for pair in pairs)).verdict == verdict


def test_the_recipe_of_the_documentation_runs_as_it_stands(tmp_path, monkeypatch):
    root = Path(__file__).parents[2]
    text = (root / "docs" / "recipes.md").read_text().split("```toml\n")[1].split("```")[0]
    (tmp_path / "wines.toml").write_text(text)
    (tmp_path / "own_task.py").write_bytes((root / "examples" / "own_task.py").read_bytes())
    environment = {**os.environ, "PYTHONPATH": str(Path(thalweg.__file__).parents[1])}
    ran = Piped(["-m", "thalweg", "reproduce", "wines.toml", "--dry-run"], environment, tmp_path)
    said, errors = ran.communicate(timeout=120)
    assert ran.returncode == 0, errors
    assert "at batch size 16: 105 runs of 60 steps; 2.3e+08 operations, about" in said
    assert "at batch size 96: 65 runs of 120 steps" in said


def test_of_all_recipes_one_without_its_weights_is_left_out_and_named(tmp_path, monkeypatch, capsys):
    text = 'title = "Of two"\n[lab]\noptimizers = ["adamw"]\n[[lab.tables]]\ntask = "{}"\nbatch_size = 9\nsteps = 3\n'
    for name, task in (("first", "minilm-pydoc-sentences"), ("second", "small_tasks:Line")):
        (tmp_path / f"{name}.toml").write_text(text.format(task))
    monkeypatch.setattr(recipe, "_RECIPES", tmp_path)
    monkeypatch.delenv(hub.VARIABLE, raising=False)
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    tasks.load.cache_clear()
    cli.main(["reproduce", "all", "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("  left out: sentence-transformers/all-MiniLM-L6-v2 needs the package")
    assert lines[3].startswith("  small_tasks:Line at batch size 9: 27 runs of 3 steps")
    with pytest.raises(SystemExit):
        cli.main(["reproduce", "first", "--dry-run"])
    assert "all-MiniLM-L6-v2 needs the package" in capsys.readouterr().err


def test_a_table_says_what_of_it_is_missing_and_whose_learning_rate_lies_at_an_edge(tmp_path):
    Comparison(tmp_path).cell("digits", ACCURACY, 64, 40, "lamb", trials=6, seeds=5)
    for path in (*tmp_path.rglob("seed-4*/result.json"), *tmp_path.rglob("seed-3*/result.json")):
        path.unlink()
    table = summarise(reading.read(tmp_path), "").tables[0]
    row = table.rows[0]
    expected = ["lamb is incomplete: 18 of at least 18 trials, 3 of 5 seeds."]
    if "lr" in row.cell.edges:
        expected.append("The best learning rate is at the edge of the range tried: lamb.")
    assert page._results(table).notes == tuple(expected)


@pytest.mark.parametrize(
    ("difference", "ratio", "higher", "says"),
    [
        (0.5, False, True, "✓ +0.50 points (+0.36 to +0.64)"),
        (0.5, False, False, "✗ -0.50 points (-0.64 to -0.36)"),
        (-0.5, False, False, "✓ +0.50 points (+0.36 to +0.64)"),
        (np.log(15.0), True, True, "✓ ×15 (×13.1 to ×17.2)"),
        (np.log(15.0), True, False, "✗ ×0.0667 (×0.058 to ×0.0766)"),
        (0.0, False, False, "? 0.00 points (-0.14 to +0.14)"),
    ],
)
def test_a_lead_is_that_of_the_first_whatever_is_better(difference, ratio, higher, says):
    pair = Paired(difference=difference, error=0.05, freedom=4, higher=higher, seeds=5, ratio=ratio)
    assert claims.lead(pair, tasks.find("digits").metric) == says


def test_what_was_written_stands_before_the_page_and_times_are_summed(done, tmp_path):
    shutil.copytree(done, tmp_path / "it")
    shutil.copytree(tmp_path / "it" / "own", tmp_path / "it" / "second")
    for name, seconds in (("own", 100.0), ("second", 23.0)):
        path = tmp_path / "it" / name / "reproduce.json"
        records.write_json(path, {**records.read_json(path), "seconds": seconds})
    (tmp_path / "it" / "preface.md").write_text("One.\n\n**Two.**\n")
    page.write_page(tmp_path / "it")
    text = (tmp_path / "it" / "README.md").read_text()
    assert "One.\n\n**Two.**\n\nTotal time: 0:02:03 (hours:minutes:seconds)." in text
    assert "<strong>Two.</strong>" in (tmp_path / "it" / "report.html").read_text()
