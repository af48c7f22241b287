from pathlib import Path

import pytest
from launching import on_ranks

from thalweg.lab.engine import Execution, RunSpec, train
from thalweg.lab.instruments import Panel
from thalweg.records import files as records

SETTINGS = {"lr": 0.02, "weight_decay": 0.01, "momentum": 0.9, "beta2": 0.99, "alpha": -0.5, "beta": 0.5}
SPEC = RunSpec("small_tasks:Line", 15, 20, "alto", SETTINGS, seed=3, test=True)
EXPERTS = RunSpec("small_tasks:Experts", 15, 10, "alto", SETTINGS, seed=3, test=True, evaluations=3, clip=0.5)


@pytest.mark.slow
def test_a_run_on_two_processes_is_the_run_on_one(tmp_path):
    """In parts, with a global batch that two processes cannot halve, gone on with after a kill; experts spread too."""
    said = on_ranks(2, [str(Path(__file__).with_name("on_two_ranks.py")), str(tmp_path)])
    train(SPEC, tmp_path / "one", execution=Execution(observer=Panel(5, print)))
    train(EXPERTS, tmp_path / "experts-alone")

    def history(name):
        lines = records.read_lines(tmp_path / name / "metrics.jsonl")
        test = records.read_json(tmp_path / name / "result.json")["test"]
        return [number for line in lines for number in (line["step"], line["loss"], line["validation"])] + [test]

    alone = {"ddp": "one", "ddp-killed": "one", "fsdp2": "one", "fsdp2-killed": "one"}
    alone |= dict.fromkeys(("experts", "experts-killed", "tensor-killed"), "experts-alone")
    for name, whole in alone.items():
        assert history(name) == pytest.approx(history(whole), rel=1e-4), name
        assert records.read_json(tmp_path / name / "environment.json")["processes"] == "2"
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == [
            "environment.json", "metrics.jsonl", "result.json", "spec.json"
        ]  # fmt: skip
    assert history("watched") == pytest.approx(history("one"), rel=1e-4)
    measured = [records.read_lines(tmp_path / name / "instruments.jsonl") for name in ("watched", "one")]
    assert [line["step"] for line in measured[0]] == [5, 10, 15, 20]
    for line, alone in zip(*measured, strict=True):  # of the whole gradient, not of a rank's
        assert {**line, "overhead_seconds": 0} == pytest.approx({**alone, "overhead_seconds": 0}, rel=1e-3)
    assert said.count("without gradient_noise_scale") == 1  # by one of the ranks
    assert said.count("--instruments needs full, unscaled gradients") == 2
