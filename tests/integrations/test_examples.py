"""Every example runs as it stands, and prints one line."""

from __future__ import annotations

import importlib.util
import re
import runpy
from pathlib import Path

import pytest
import torch
from launching import on_ranks

from thalweg import ALTO, EAdamW

EXAMPLES = Path(__file__).parents[2] / "examples"
FACTS = {
    "plain_torch": lambda it: steps_of(it["optimizer"]) == {120} and it["average"].n_averaged == 120,
    "accelerate_loop": lambda it: steps_of(it["optimizer"]) == {120} and it["optimizer"].param_groups[0]["lr"] < 1e-9,
    "hf_trainer": lambda it: (
        [type(it[name].optimizer.optimizer) for name in ("built", "by_class", "given")] == [EAdamW, ALTO, ALTO]
        and it["built"].optimizer.param_groups[0]["explore_alpha"] == 0.5
        and it["given"].optimizer.optimizer is it["optimizer"]
        and it["built"].state.global_step == it["by_class"].state.global_step == 120
        and steps_of(it["optimizer"]) == {120}
    ),
    "lightning_module": lambda it: type(it["trainer"].optimizers[0]) is ALTO and it["trainer"].global_step == 120,
    "lightning_manual": lambda it: type(it["trainer"].optimizers[0]) is EAdamW and it["trainer"].global_step == 120,
    "checkpoint_file": lambda it: len(it["losses"]) == 1,
    "cuda_graph": lambda it: len(steps_of(it["optimizer"])) == 1,
    "learning_rate_schedule": lambda it: steps_of(it["optimizer"]) == {200} and it["rates"][20] == max(it["rates"]),
    "compiled_step": lambda it: steps_of(it["optimizer"]) == {200},
    "step_in_backward": lambda it: steps_of(it["optimizer"]) == {100} and max(it["alive"]) == 1,
    "densification": lambda it: all(
        steps_of(optimizer) == {400}
        and sizes == sorted(sizes)
        and sizes[0] < sizes[-1]
        and loss < 0.05 * it["picture"].var()
        for loss, sizes, optimizer in it["results"].values()
    ),
    "distributed_checkpoint": lambda it: it["resumed_loss"] == it["loss"],
    "jax_flax_nnx": lambda it: int(it["optimizer"].step[...]) == 120,
    "flatness_by_layer": lambda it: (
        it["worst"].increase > 0.0
        and it["density"].size * it["density"].moment(1).value
        == pytest.approx(sum(one.trace.value for one in it["layers"].values()), rel=0.3)
        and it["picture"].getvalue().startswith(b"\x89PNG")
    ),
    "own_task": lambda it: it["untrained"] < 90.0 and len(it["wines"]) == 40,
    "torchtitan_optimizers": lambda it: steps_of(it["optimizer"]) == {200} and float(it["loss"]) < 0.01,
    "alpha_schedule": lambda it: it["resumed"].param_groups[0]["explore_alpha"] == 5.0 == -it["alphas"][0],
}
MARKS = {
    "compiled_step": [pytest.mark.slow],
    "torchtitan_optimizers": [
        pytest.mark.skipif(not importlib.util.find_spec("torchtitan"), reason="torchtitan is not installed"),
    ],
}
# Of the numbers that an example on two processes prints: the name of the first, and what it has to be.
ON_RANKS = {
    "cpu_offload": ("loss", lambda loss: loss < 0.01),
    "mixture_of_experts": ("loss", lambda loss: loss < 4.0),  # of 128 letters; at first it is 4.85
    "lightning_model_parallel": ("FSDP2:", lambda percent: percent > 90.0),
}


# What an example prints speaks for itself: the share of unseen digits told right, or a loss that starts at .5 or so.
RIGHT = {
    "plain_torch": ["accuracy"],
    "accelerate_loop": ["accuracy"],
    "hf_trainer": ["accuracy", "by_class_accuracy", "given_accuracy"],
    "lightning_module": ["accuracy"],
    "lightning_manual": ["accuracy"],
}
LOSS = {"cuda_graph", "learning_rate_schedule", "compiled_step", "step_in_backward", "distributed_checkpoint"}


def steps_of(optimizer):
    return {float(state["step"]) for state in optimizer.state.values()}


def prints(name):
    """What an example's last comment says that it prints."""
    return (EXAMPLES / f"{name}.py").read_text().rstrip().rpartition("\n# prints: ")[2].replace("\n# ", " ")


def shape(line):
    """A line without its numbers, which differ from machine to machine, and the name of the device."""
    return re.sub(r"[\d.]+(e-?\d+)?|cuda|cpu", "0", line)


def test_every_example_is_tested():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*FACTS, *ON_RANKS}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [pytest.param(n, marks=MARKS.get(n, ())) for n in FACTS])
def test_an_example_prints_one_line_and_does_what_it_says(name, capsys):
    torch._dynamo.reset()
    result = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    (printed,) = capsys.readouterr().out.splitlines()
    assert shape(printed) == shape(prints(name))  # what the site shows
    assert FACTS[name](result)
    assert min([result[key] for key in RIGHT.get(name, ())], default=1.0) > 0.9
    assert min(result.get("accuracies", {}).values(), default=1.0) > 0.9
    assert name not in LOSS or float(result["loss"]) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_RANKS)
def test_an_example_under_torchrun_prints_one_line(name):
    path = EXAMPLES / f"{name}.py"
    assert "# torchrun --nproc-per-node 2\n" in path.read_text()
    printed = [line for line in on_ranks(2, [str(path)]).splitlines() if shape(line) == shape(prints(name))]
    assert len(printed) == 1
    what, is_right = ON_RANKS[name]
    assert is_right(float(re.search(rf"{what} ([\d.]+)", printed[0])[1]))
