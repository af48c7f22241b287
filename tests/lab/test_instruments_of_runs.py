"""``thalweg train --instruments``: what is recorded, and that the run is the run without."""

import time
from types import SimpleNamespace

import pytest
import torch
from lines import ADAMW, kept, untimed
from torch.func import functional_call

from thalweg.commands import main as cli
from thalweg.lab import instruments, tasks
from thalweg.lab.engine import Execution, RunSpec, train
from thalweg.lab.instruments import Panel
from thalweg.records import files as records
from thalweg.records.errors import UserError

ALTO = {"lr": 0.02, "weight_decay": 0.01, "momentum": 0.9, "beta2": 0.99, "alpha": -0.5, "beta": 0.5}
SPEC = RunSpec("small_tasks:Line", 16, 12, "alto", ALTO, seed=5, test=True)
RUN = ["train", "small_tasks:Moody", "--batch-size", "48", "--steps", "6", "--optimizer", "alto", "--set", "alpha=-.5",
       "beta=.5", "--clip", ".5"]  # fmt: skip


def silent(line):
    pass


def lines_of(folder):
    return [{key: x for key, x in line.items() if key != "overhead_seconds"}
            for line in records.read_lines(folder / "instruments.jsonl")]  # fmt: skip


def test_a_run_that_is_looked_at_is_the_run_that_is_not(tmp_path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cli.main([*RUN, "--micro-batch", "20", "--out", str(tmp_path / "plain")])
    capsys.readouterr()
    cli.main([*RUN, "--micro-batch", "20", "--instruments", "2", "--out", str(tmp_path / "seen")])
    printed = capsys.readouterr().out
    (plain, history, _), (seen, same, files) = kept(tmp_path / "plain"), kept(tmp_path / "seen")
    assert (plain, history) == (seen, same)
    assert (tmp_path / "plain" / "spec.json").read_bytes() == (tmp_path / "seen" / "spec.json").read_bytes()
    assert "instruments.jsonl" in files
    lines = records.read_lines(tmp_path / "seen" / "instruments.jsonl")
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert set(lines[0]) == {
        "step", "gradient_norm", "a_over_g", "cosine_a_g", "trust_ratio/0.weight", "trust_ratio/3.weight",
        "gradient_noise_scale", "gradient_noise_trace", "gradient_squared_norm", "sharpness", "eta_lambda",
        "share_of_limit", "overhead_seconds",
    }  # fmt: skip
    assert "instruments: every 2 steps; sharpness on 64 of 64 training examples, in evaluation mode" in printed
    assert "without" not in printed
    spent = sum(line["overhead_seconds"] for line in lines)
    trained = records.read_json(tmp_path / "seen" / "result.json")["seconds"]
    assert f"3 measurements took {spent:.1f} s, not counted in the {trained:.1f} s of training" in printed
    (events,) = (tmp_path / "seen").glob("thalweg/events.*")
    told = EventAccumulator(str(events)).Reload()
    for name in ("cosine_a_g", "trust_ratio/0.weight", "sharpness", "overhead_seconds"):
        found = [(one.step, one.value) for one in told.Scalars(f"instruments/{name}")]
        assert [step for step, _ in found] == [2, 4, 6]
        assert [value for _, value in found] == pytest.approx([line[name] for line in lines], rel=1e-6)


def test_the_sharpness_is_that_of_the_examples_at_that_step(tmp_path):
    states = {}

    def on_event(training, event):
        states[training.step] = {name: p.detach().clone().double() for name, p in training.bare().named_parameters()}

    train(SPEC, tmp_path, execution=Execution(observer=Panel(3, silent)), on_event=on_event)
    task, splits = tasks.load(SPEC.task)
    model = task.model().double()
    x, y = splits.train.inputs.double(), splits.train.targets.double()
    for line in lines_of(tmp_path):
        state = states[line["step"] - 1]
        shapes, sizes = [p.shape for p in state.values()], [p.numel() for p in state.values()]

        def loss(vector, state=state, shapes=shapes, sizes=sizes):
            pieces = [piece.view(shape) for piece, shape in zip(vector.split(sizes), shapes, strict=True)]
            return task.loss(functional_call(model, dict(zip(state, pieces, strict=True)), (x,)), y)

        hessian = torch.func.hessian(loss)(torch.cat([p.reshape(-1) for p in state.values()]))
        assert line["sharpness"] == pytest.approx(torch.linalg.eigvalsh(hessian)[-1].item(), rel=1e-4)


class Killed(BaseException):
    pass


def test_a_run_killed_at_every_event_has_each_line_once(tmp_path):
    execution = Execution(checkpoint_seconds=0.0, micro_batch=6, observer=Panel(3, silent))
    train(SPEC, tmp_path / "whole", execution=execution)
    kills = 0
    while not (tmp_path / "killed" / "result.json").exists():
        left = [kills % 3 + 1]

        def on_event(training, event, left=left):
            left[0] -= event in ("step", "observation", "checkpoint")
            if left[0] == 0:
                raise Killed

        try:
            train(SPEC, tmp_path / "killed", execution=execution, on_event=on_event)
        except Killed:
            kills += 1
        assert kills < 60
    assert kills >= 6
    assert kept(tmp_path / "killed") == kept(tmp_path / "whole")
    assert [line["step"] for line in lines_of(tmp_path / "whole")] == [3, 6, 9, 12]
    assert lines_of(tmp_path / "killed") == lines_of(tmp_path / "whole")


def test_looking_is_no_training_time(tmp_path, monkeypatch):
    monkeypatch.setattr(instruments, "sharpness", lambda *_: time.sleep(0.2) or {})
    result = train(SPEC, tmp_path, execution=Execution(observer=Panel(1, silent)))
    assert result["seconds"] < 1.2
    assert all(line["overhead_seconds"] >= 0.2 for line in records.read_lines(tmp_path / "instruments.jsonl"))


def test_a_run_that_was_not_looked_at_is_not_taken_for_one_that_was(tmp_path, capsys):
    run = [*RUN, "--track", "none", "--out", str(tmp_path)]
    cli.main(run)
    capsys.readouterr()

    def refused(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.main([*run, *arguments])
        assert stop.value.code == 2
        return capsys.readouterr().err

    assert "holds this run, trained without --instruments 3: use --no-resume to train it again" in refused(
        "--instruments", "3"
    )
    cli.main([*run, "--instruments", "3", "--no-resume"])
    cli.main([*run, "--instruments", "3"])
    assert "2 measurements took" in capsys.readouterr().out
    assert "trained without --instruments 2" in refused("--instruments", "2")
    assert "--instruments must be an integer from 1 to 6 (the steps), got 7" in refused("--instruments", "7")
    assert "must be an integer of at least 1, got '0'" in refused("--instruments", "0")
    cli.main([*run, "--no-resume"])
    assert not (tmp_path / "instruments.jsonl").exists()


def test_steps_that_were_not_looked_at_are_not_passed_over(tmp_path):
    def killed(training, event):
        if training.step == 7:
            raise Killed

    with pytest.raises(Killed):
        train(SPEC, tmp_path, execution=Execution(checkpoint_seconds=0.0), on_event=killed)
    with pytest.raises(UserError, match="the first 6 steps of this run were trained without --instruments 3: resume"):
        train(SPEC, tmp_path, execution=Execution(observer=Panel(3, silent)))
    train(SPEC, tmp_path)
    assert not (tmp_path / "instruments.jsonl").exists()


@pytest.mark.parametrize(
    ("sharded", "precision", "says"),
    [(True, "no", "are sharded: use --sharding ddp"), (False, "fp16", "fp16 scales them")],
)
def test_what_cannot_be_looked_at_is_refused_at_once(sharded, precision, says):
    training = SimpleNamespace(sharded=sharded, spec=SimpleNamespace(precision=precision))
    with pytest.raises(UserError, match=f"--instruments needs full, unscaled gradients, and .*{says}"):
        Panel(1, silent).begin(training)


def test_a_compiled_model_has_no_second_derivatives_to_look_at(tmp_path):
    with pytest.raises(UserError, match=r"takes second derivatives, .* leave out --compile"):
        train(SPEC, tmp_path, execution=Execution(observer=Panel(3, silent), compile=True))
    assert not [*tmp_path.iterdir()]


def test_what_is_left_out_is_said(tmp_path):
    said = []
    spec = RunSpec("small_tasks:Named", 16, 2, "adamw", ADAMW)  # whose inputs go by name
    train(spec, tmp_path, execution=Execution(observer=Panel(1, said.append)))
    assert said[1:] == [
        "instruments: without a_over_g, cosine_a_g: AdamW has no E",
        "instruments: without trust_ratio: AdamW has none",
        "instruments: without gradient_noise_scale, gradient_noise_trace, gradient_squared_norm: needs a --micro-batch "
        "below the batch size, on one process",
    ]
    first, second = lines_of(tmp_path)
    assert set(first) == {"step", "gradient_norm", "sharpness"}
    assert set(second) == {*first, "eta_lambda", "share_of_limit"}  # before the first step there is no diagonal


def test_a_sharpness_that_cannot_be_had_is_said_once_and_the_run_goes_on(tmp_path):
    said = []
    spec = RunSpec("small_tasks:Recurrent", 16, 4, "adamw", ADAMW)
    result = train(spec, tmp_path / "seen", execution=Execution(observer=Panel(1, said.append)))
    assert untimed(result) == untimed(train(spec, tmp_path / "plain"))
    assert [line["sharpness"] for line in lines_of(tmp_path / "seen")] == [None] * 4
    assert said[-1] == (
        "instruments: without sharpness at step 1: cudnn RNN backward can only be called in training mode"
    )


def test_a_run_that_fails_keeps_what_was_seen(tmp_path, capsys):
    run = ["train", "small_tasks:Line", "--optimizer", "small_optimizers.Poisons", "--track", "none", "--instruments"]
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            cli.main([*run, "1", "--out", str(tmp_path)])
        assert stop.value.code == 1
        assert [line["step"] for line in lines_of(tmp_path)] == [1]
