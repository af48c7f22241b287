"""``--save-model`` and ``--init-from``: weights as safetensors."""

import json
from dataclasses import replace

import pytest
import torch
from lines import LINE
from safetensors.torch import load_file, save_file

from thalweg.commands import main as cli
from thalweg.lab import tasks
from thalweg.lab.engine import Execution, RunSpec, Training, train
from thalweg.lab.saved import weights
from thalweg.records import files as records
from thalweg.records.errors import UserError

TRAIN = ["train", "small_tasks:Line", "--batch-size", "16", "--optimizer", "adamw", "--track", "none"]


def test_what_is_saved_is_what_was_scored_and_is_where_the_next_run_starts(tmp_path):
    """Schedule-Free's weights in training are others than those that are scored."""
    settings = {"lr": 0.05, "weight_decay": 0.0, "momentum": 0.9, "beta2": 0.99}
    spec = replace(LINE, optimizer="schedule-free", settings=settings, schedule="constant")
    plain = train(spec, tmp_path / "plain")
    result = train(spec, tmp_path / "run", execution=Execution(save_model=tmp_path / "model.safetensors"))
    assert {**result, "seconds": 0.0} == {**plain, "seconds": 0.0}
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "environment.json", "metrics.jsonl", "result.json", "spec.json"
    ]  # fmt: skip
    task, splits = tasks.load(LINE.task)
    model = task.model()
    model.load_state_dict(load_file(tmp_path / "model.safetensors"))
    with torch.no_grad():
        score = task.score(model(splits.test.inputs), splits.test.targets).mean().item()
    assert score == pytest.approx(result["test"], rel=1e-6)
    init = weights.hash_of(tmp_path / "model.safetensors")
    second = Training(replace(LINE, init=init), tmp_path, Execution(init_from=tmp_path / "model.safetensors"))
    assert second.score("test") == pytest.approx(result["test"], rel=1e-6)


def test_the_content_of_the_weights_is_part_of_a_run_and_their_place_is_not(tmp_path):
    for name, fill in (("a", 0.0), ("b", 0.0), ("c", 1.0)):
        save_file({"x": torch.full((3,), fill)}, tmp_path / name)
    a, b, c = (replace(LINE, init=weights.hash_of(tmp_path / name)) for name in "abc")
    assert a.hash == b.hash
    assert len({LINE.hash, a.hash, c.hash}) == 3
    assert "init" not in LINE.as_dict()  # records of runs without are as they were
    for spec in (LINE, a):
        assert RunSpec.of(json.loads(json.dumps(spec.as_dict()))) == spec
    with pytest.raises(UserError, match="has changed since the run was set up"):
        train(c, tmp_path / "run", execution=Execution(init_from=tmp_path / "a"))
    for spec, execution in ((c, Execution()), (LINE, Execution(init_from=tmp_path / "a"))):
        with pytest.raises(UserError, match=r"RunSpec.init and Execution.init_from go together"):
            train(spec, tmp_path / "run", execution=execution)
    assert not (tmp_path / "run").exists()


class Tied(torch.nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.embed = torch.nn.Embedding(5, width)
        self.head = torch.nn.Linear(width, 5, bias=False)
        self.head.weight = self.embed.weight
        self.norm = torch.nn.BatchNorm1d(width)
        self.register_buffer("not_kept", torch.zeros(2), persistent=False)


@pytest.mark.parametrize("kept", ["embed.weight", "head.weight", "both"])
def test_tied_weights_are_one_tensor_whichever_name_is_kept(kept, tmp_path):
    model, other, path = Tied(), Tied(), tmp_path / "tied.safetensors"
    weights.save(path, weights.gathered(model, sharded=False), weights.tied_names(model), "0123")
    found = load_file(path)
    assert set(found) == {"embed.weight", *(f"norm.{name}" for name in model.norm.state_dict())}
    assert weights.run_of(path) == "0123"
    named = {"embed.weight", "head.weight"} if kept == "both" else {kept}
    save_file({**found, **{name: found["embed.weight"].clone() for name in named}}, tmp_path / "more")
    if kept == "head.weight":
        del found["embed.weight"]
        save_file({**found, kept: model.head.weight.detach().clone()}, tmp_path / "more")
    weights.load(tmp_path / "more", other, sharded=False)
    assert other.head.weight is other.embed.weight
    torch.testing.assert_close(other.head.weight, model.head.weight)


def test_views_of_one_storage_and_other_dtypes_are_saved_and_numbers_cast_to_the_models(tmp_path):
    path, whole = tmp_path / "model.safetensors", torch.arange(12.0)
    weights.save(path, {"a": whole[:6].view(2, 3).T, "b": whole[3:], "n": torch.tensor(7)}, {}, "")
    found = load_file(path)
    torch.testing.assert_close(found["a"], whole[:6].view(2, 3).T)
    torch.testing.assert_close(found["b"], whole[3:])
    assert found["n"].item() == 7
    model = torch.nn.Linear(2, 2)
    save_file({"weight": torch.eye(2, dtype=torch.bfloat16), "bias": torch.ones(2, dtype=torch.float64)}, path)
    weights.load(path, model, sharded=False)
    assert (model.weight.dtype, model.bias.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(model.weight.detach(), torch.eye(2))


def test_weights_that_do_not_fit_are_one_line_with_the_first_names(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"head.weight": torch.zeros(5, 3), "extra": torch.zeros(1)}, path)
    with pytest.raises(UserError) as raised:
        weights.load(path, Tied(), sharded=False)
    assert str(raised.value) == (
        f"--init-from: {path} does not fit the task's model: embed.weight ([5, 3], not [5, 4]), head.weight ([5, 3], "
        "not [5, 4]), norm.weight (nothing, not [4]) and 5 more"
    )
    path.write_bytes(b"rubbish")
    with pytest.raises(UserError, match=r"--init-from: .* is not a safetensors file"):
        weights.load(path, Tied(), sharded=False)
    with pytest.raises(UserError, match=r"--save-model: 'x' of the model's state dict is not a dense tensor"):
        weights.save(path, {"x": {"no": "tensor"}}, {}, "")
    assert path.read_bytes() == b"rubbish"


def said(arguments, capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main(arguments)
    out, error = capsys.readouterr()
    return raised.value.code, out, error


def test_the_command_saves_starts_from_and_says_what_it_cannot(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = [*TRAIN, "--out", "one"]
    cli.main([*first, "--save-model", "new/model.safetensors"])
    assert f"model: {tmp_path / 'new' / 'model.safetensors'}" in capsys.readouterr().out
    cli.main([*first, "--save-model", "new/model.safetensors"])  # complete, and so are the weights
    capsys.readouterr()
    code, _, error = said([*first, "--save-model", "other"], capsys)
    assert (code, error) == (
        2, "thalweg: error: one holds this run, trained without --save-model other: use --no-resume to train "
        "it again, or another folder with --out\n",
    )  # fmt: skip
    cli.main([*TRAIN, "--init-from", "new/model.safetensors", "--out", "two"])
    histories = [records.read_lines(tmp_path / name / "metrics.jsonl") for name in ("one", "two")]
    assert histories[1][0]["validation"] < histories[0][-1]["validation"]
    spec = records.read_json(tmp_path / "two" / "spec.json")
    assert spec["init"] == weights.hash_of(tmp_path / "new/model.safetensors")
    capsys.readouterr()
    (tmp_path / "file").write_text("")
    for options, message in (
        (["--init-from", "gone"], "--init-from: cannot read gone (No such file or directory)"),
        (["--init-from", "new"], "--init-from: cannot read new (Is a directory)"),
        (["--save-model", "new"], "--save-model must be a file, got the folder new"),
        (["--save-model", "file/x/y"], "--save-model: cannot write to file/x (Not a directory)"),
        (
            ["--save-model", "new/model.safetensors", "--init-from", "new/model.safetensors"],
            "--save-model must not be the file of --init-from, got new/model.safetensors",
        ),
    ):
        code, _, error = said([*TRAIN, *options, "--out", "three"], capsys)
        assert (code, error) == (2, f"thalweg: error: {message}\n")
    assert not (tmp_path / "three").exists()


def test_a_run_that_failed_keeps_no_weights_and_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["small_optimizers.RaisesTypeError" if word == "adamw" else word for word in TRAIN]
    arguments += ["--save-model", "model", "--out", "run"]
    code, out, _ = said(arguments, capsys)
    assert (code, out.splitlines()[-1]) == (1, "model: none, as the run failed")
    assert not (tmp_path / "model").exists()


def test_weights_that_cannot_be_written_are_one_line_and_the_run_is_not_over(tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(weights, "write_bytes", full)
    with pytest.raises(UserError, match=r"cannot write to .*model \(No space left on device\): free some space"):
        train(LINE, tmp_path / "run", execution=Execution(save_model=tmp_path / "model"))
    assert not (tmp_path / "run" / "result.json").exists()
