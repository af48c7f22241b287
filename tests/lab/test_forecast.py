import os

import pytest
import torch

from thalweg.commands import reproduce as reproducing
from thalweg.lab import tasks
from thalweg.studies import forecast, recipe


def products_of_digits():
    """Multiplications and additions of the layers, and twice as many backward, but for what would go to the images."""
    model, products = tasks.find("digits").model(), []

    def count(module, inputs, output):
        each = module.weight.numel() * (output.shape[-2:].numel() if output.ndim == 4 else 1)
        products.append(2 * each * (2 if not products else 3))

    for module in model.modules():
        if isinstance(getattr(module, "weight", None), torch.nn.Parameter) and module.weight.ndim == 2:
            module.register_forward_hook(count)
    model(tasks.load("digits")[1].train[0][0][None])
    return sum(products)


def test_a_forecast_counts_parameters_steps_runs_and_bytes():
    one = recipe.Comparison("digits", 64, ("adamw", "alto", "sgd:lr=0.1|0.2:momentum=0.9:weight_decay=0"), epochs=7,
                            trials=5, studies=2, seeds=3)  # fmt: skip
    found = forecast.forecast(one, devices=1)
    parameters = sum(p.numel() for p in tasks.find("digits").model().parameters())
    assert found.parameters == parameters
    assert found.examples == 1197
    assert found.steps == 7 * (1197 // 64)
    assert found.runs == 2 * (5 * 2 + 3) + 2 + 3
    assert found.bytes == parameters * (4 + 4 + 12)
    assert found.download == ""
    seen = found.runs * found.steps * 64
    assert found.operations == seen * products_of_digits()
    assert found.seconds(2.0) == 2.0 * forecast.forecast(one, devices=2).seconds(2.0) == found.operations / 2e12
    assert forecast.forecast(one, devices=100).seconds(2.0) == found.operations / (64 * 2e12)  # an example on each
    assert found.core_seconds == pytest.approx((found.runs * found.steps * 500 + seen * 40) / 1e6)
    assert found.seconds(None) == found.core_seconds / os.cpu_count()


@pytest.mark.parametrize(
    ("name", "tokens"), [("pydoc-lm", 48), ("pydoc-moe", 48), ("gpt2-345m", 1024), ("moe-85b", 8192)]
)
def test_operations_of_language_models_are_six_a_parameter_in_use_and_token_and_those_of_attention(name, tokens):
    """6ND of Kaplan et al. 2020 and 12 · layers · width · length² of attention."""
    task = tasks.find(name)
    with torch.device("meta"):
        model = task.skeleton()
    used = 0
    for parameter, p in model.named_parameters():
        share = task.chosen / p.shape[0] if "experts" in parameter else 1.0
        is_table = parameter.endswith(("wpe.weight", "embed_tokens.weight")) or p.ndim < 2
        used += 0 if is_table else share * p.numel()
    config = model.config
    attention = 12 * config.num_hidden_layers * config.hidden_size * tokens**2
    assert forecast.operations(task) == pytest.approx(6 * used * tokens + attention, rel=0.02)


def test_a_dry_run_at_paper_scale_needs_no_data_and_says_how_long(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("THALWEG_DATA", str(tmp_path))  # where nothing lies
    monkeypatch.chdir(tmp_path)
    hours = []
    for devices, tflops in ((1, "50"), (4, "50"), (1, "200")):
        reproducing.reproduce(
            ("image-classification",), scale="paper", jobs=None, storage=None, devices=devices, tflops=float(tflops),
            dry_run=True, out=None,
        )  # fmt: skip
        said = capsys.readouterr().out
        assert "cifar10-resnet20 at batch size 16,384: 48 runs at least of 800 steps; 1.5e+17 operations" in said
        assert "download: ILSVRC/imagenet-1k (gated: accept its terms, then hf auth login; 167 GB)" in said
        hours.append(said.splitlines()[-1].split("about ")[1].split(" on")[0])
    assert hours == ["65 d", "16 d", "16 d"]
    assert list(tmp_path.iterdir()) == []
