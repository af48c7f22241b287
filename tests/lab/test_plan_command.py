"""``thalweg plan`` as it is typed: what it says of tasks and of files of Hugging Face's, and on a terminal."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from comparisons import error_of
from pseudo_terminal import ENVIRONMENT, THALWEG, Terminal

from thalweg.commands import main as cli
from thalweg.commands import terminal
from thalweg.lab import skeletons
from thalweg.sharding import plan

GPT2 = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 48, "n_layer": 3, "n_head": 4,
        "vocab_size": 101, "n_positions": 20}  # fmt: skip
MIXTRAL = {"model_type": "mixtral", "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2,
           "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 6, "vocab_size": 50}  # fmt: skip


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A function that writes a file such as models on the hub have, into the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(content):
        (tmp_path / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))

    return write


def test_the_numbers_are_those_of_the_closed_forms(capsys):
    cli.main(["plan", "moe-85b", "--mesh", "expert=384", "--memory", "3GB"])
    said = capsys.readouterr().out
    assert said.startswith(
        "moe-85b: 85,026,946,560 parameters in 219 tensors, float32\n"
        "384 ranks, expert=384: at most 221,547,863 parameters on each\n"
    )
    parameters, mesh = skeletons.of_task("moe-85b"), plan.Mesh(expert=384)
    lines = [" ".join(line.split()) for line in said.splitlines()]
    for one in plan.PLANNED:
        cost = plan.cost(parameters, mesh, one)
        sizes = (cost.parameters, cost.gradients, cost.state, cost.temporary, cost.total)
        words = (one.name, f"{one.buffers} x {one.state or 'float32'}", *map(terminal.size, sizes))
        assert " ".join((*words, cost.verdict(3 * 10**9))) in lines
    verdict, norms = cost.all_reduces
    for what, added in (("LAMB, ALTO all-reduce: verdict, clipping", verdict), ("all-reduce: norms of layers", norms)):
        assert f"{what} 384 {terminal.size(added.bytes)} {terminal.size(added.sent)}" in lines
    assert f"Muon gather: matrices {terminal.size(plan.muon_gather(parameters, mesh))}" in lines
    assert {line.split()[-1] for line in lines if line.startswith(("LAMB", "ALTO")) and "x" in line} == {"fits", "fit"}


def test_the_page_shows_what_is_printed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = (Path(__file__).parents[2] / "docs" / "sharding.md").read_text().split("```text\n$ thalweg ")[1]
    command, _, shown = text.split("```")[0].partition("\n")
    cli.main(command.split())
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == shown.splitlines()


@pytest.mark.parametrize(
    ("name", "said"),
    [("bert-base", "109,483,778 parameters in 201"), ("resnet-50", "25,557,032 parameters in 161")],
)
def test_the_fields_own_names_are_known(name, said, capsys):
    cli.main(["plan", name, "--mesh", "shard=8"])
    assert said in capsys.readouterr().out


def test_where_every_rank_has_whole_layers_nothing_is_added(capsys):
    cli.main(["plan", "sine", "--mesh", "data=8", "--dtype", "bfloat16"])
    said = capsys.readouterr().out
    assert "tensors, bfloat16\n8 ranks, data=8: at most" in said
    assert "AdamW 2 x bfloat16" in said
    assert "all-reduce" not in said
    assert said.endswith("\nNo optimizer here adds a collective: every rank has whole layers.\n")


@pytest.mark.parametrize(
    ("content", "numel", "tensors"),
    [
        (GPT2, 101 * 48 + 20 * 48 + 3 * (12 * 48**2 + 13 * 48) + 2 * 48, 40),  # the output layer is the embedding
        (MIXTRAL, 50 * 32 + 2 * (3 * 32**2 + 6 * 32 + 6 * 3 * 32 * 24 + 2 * 32) + 32, 20),  # and here there is none
    ],
    ids=["gpt2", "mixtral"],
)
def test_a_config_file_or_its_folder_is_a_model(content, numel, tensors, config, capsys):
    config(content)
    for name in ("config.json", "."):
        cli.main(["plan", name, "--mesh", "data=2", "shard=3"])
        said = capsys.readouterr().out.splitlines()
        assert said[0] == f"{name}: {numel:,} parameters in {tensors} tensors, float32"
        assert said[1].startswith("6 ranks, data=2 x shard=3: at most")


def test_experts_of_a_config_file_are_shared_out(config, capsys):
    config(MIXTRAL)
    assert error_of(["plan", "config.json", "--mesh", "expert=4"], capsys) == (
        "--mesh expert must divide the 6 experts of a layer (1, 2, 3, 6), got 4"
    )
    found = skeletons.find("config.json")
    assert error_of(["plan", "config.json", "--mesh", "expert=2,tensor=2"], capsys) == (
        "--mesh expert x tensor must divide the 6 experts of a layer (1, 2, 3, 6), got 2 x 2"
    )
    assert error_of(["plan", "config.json", "--mesh", "tensor=4"], capsys) == (
        "--mesh tensor must divide the 2 num_key_value_heads of the model, got 4"
    )
    assert sum(plan.local_numel(p, plan.Mesh(expert=6)) for p in found if p.stacked) == 2 * 3 * 32 * 24


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "(OSError: It looks like the config file at"),
        ({"model_type": "nope"}, "has model type `nope`"),
        ({}, "(ValueError: Unrecognized model in config.json"),
        ({**GPT2, "n_head": 5}, "must be divisible by num_heads"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}, "contains custom code"),
    ],
)
def test_a_file_that_is_no_model_is_one_line(content, message, config, capsys):
    config(content)
    said = error_of(["plan", "config.json"], capsys)
    assert said.startswith("cannot build a model from config.json (")
    assert message in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "requires an argument"),
        (["sinn"], "MODEL must be one of bert-base, resnet-50, gpt2-medium, sine, "),
        (["sinn"], "module:Class or the path of a config.json, got 'sinn'; did you mean 'sine'?"),
        (["no/config.json"], "MODEL must be a task or the path of a config.json, got 'no/config.json', where there is"),
        (["..x:y"], "unknown task '..x:y'"),
        (["sine", "--mesh", "data=0"], "--mesh data must be an integer of at least 1, got 0"),
        (["sine", "--mesh", "shard=2.5"], "--mesh shard must be an integer of at least 1, got 2.5"),
        (["sine", "--mesh", "data"], "--mesh must be NAME=NUMBER, got 'data'"),
        (["sine", "--mesh", "data=2,data=4"], "--mesh must give data once, got 2 and 4"),
        (["sine", "--mesh", "pipe=2"], "--mesh must name data, shard, tensor or expert, got pipe=2"),
        (["sine", "--mesh", "shards=2"], "got shards=2; did you mean 'shard'?"),
        (["sine", "--mesh", "expert=2"], "--mesh expert must be 1 for a model without layers of stacked experts, got"),
        (
            ["pydoc-lm", "--mesh", "tensor=2"],
            "--mesh tensor=2 needs a model that transformers has a plan for: use shard",
        ),
        (["sine", "--memory", "80"], "--memory must be a number above 0 and one of MB, GB, TB, MiB, GiB, TiB, such"),
        (["sine", "--memory", "0GB"], "such as 80GB, got '0GB'"),
        (["sine", "--dtype", "float3"], "did you mean 'float32'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_that_says_what_to_do(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in error_of(["plan", *arguments], capsys)


@pytest.mark.parametrize(("text", "count"), [("80GB", 80 * 10**9), ("1.5 gib", 3 * 2**29), ("512MiB", 2**29)])
def test_memory_is_a_number_and_a_unit(text, count, capsys):
    cli.main(["plan", "sine", "--memory", text])
    assert f" in {terminal.size(count)}" in capsys.readouterr().out


def test_help_needs_no_torch():
    script = (
        "import sys; from thalweg.commands.main import main; main(['plan', '--help']); print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert "--mesh" in found.stdout
    assert found.stdout.endswith("False\n")


def test_without_transformers_a_file_is_one_clear_error(config, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)
    config(GPT2)
    said = error_of(["plan", "config.json"], capsys)
    assert said == "this command needs transformers: pip install 'thalweg[lab]'; `thalweg theory` does not"


@pytest.mark.parametrize("columns", [80, 200])
def test_it_is_whole_on_a_terminal(columns):
    command = [*THALWEG, "plan", "pydoc-moe", "--mesh", "data=2,shard=3,tensor=2,expert=4", "--memory", "1MB"]
    with Terminal(command, columns, 50, forked=True) as there:
        assert there.finish() == 0
    assert "…" not in there.said
    lines = [" ".join(line.split()) for line in there.said.splitlines()]
    assert "buffers parameters gradients state temporary total in 1 MB" in lines
    assert [line[:4] for line in lines if line.endswith(("fits", "fits if fused", "does not fit"))] == (
        ["Adam", *["LAMB"] * 3, *["ALTO"] * 3]
    )
    assert sum("all-reduce: " in line for line in lines) == 3
