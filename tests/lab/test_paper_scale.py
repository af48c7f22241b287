"""Every recipe at paper scale takes two steps on rows of the real schema, on one process and sharded on two."""

from pathlib import Path

import hub_folders
import pytest
import shrunk_recipes
from launching import on_ranks

from thalweg.lab import hub
from thalweg.records import files as records
from thalweg.records.errors import UserError
from thalweg.studies import recipe, run


def results(root):
    found = {}
    for path in root.rglob("seed-*/result.json"):
        result = records.read_json(path)
        assert result["status"] == "finished", (path, result["reason"])
        found[path.parent.relative_to(root).as_posix()] = result["test"]
    return found


@pytest.mark.slow
def test_every_recipe_takes_two_steps_at_paper_scale_and_sharded_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv(hub.VARIABLE, str(hub_folders.folder(tmp_path / "published")))
    monkeypatch.setenv(hub.ROWS, "any")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    names = shrunk_recipes.names()
    assert set(names) == {
        name
        for name in recipe.names()
        if any("sine" not in one.task for one in recipe.find(name).scales["paper"].comparisons)
    }
    for count, folder in ((1, "one"), (2, "two")):
        on_ranks(count, [str(Path(__file__).with_name("on_two_ranks_recipes.py")), str(tmp_path / folder)], 500.0)
    alone, sharded = results(tmp_path / "one"), results(tmp_path / "two")
    assert {path.split("/")[0] for path in alone} == set(names)
    assert sharded.keys() == alone.keys()
    assert sharded == pytest.approx(alone, rel=1e-4, abs=1e-6)


def test_a_recipe_without_its_data_says_what_to_fetch(tmp_path, monkeypatch):
    monkeypatch.setenv(hub.VARIABLE, str(tmp_path))
    found = recipe.find("moe-pretraining")
    with pytest.raises(UserError, match=r"hf download .* --local-dir"):
        run.reproduce(found, "", "paper", tmp_path / "moe")
