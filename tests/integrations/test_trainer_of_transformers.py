"""Hugging Face's Trainer: with an optimizer, or with a class and arguments out of JSON; resumed from a checkpoint."""

from __future__ import annotations

import json

import pytest
import torch
from small_runs import OPTIONS, digits, new_model, new_scheduler
from support import assert_moved, assert_same, assert_same_state
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from thalweg import ALTO, EAdamW, param_groups

STEPS, SAVED = 8, 4


class WithLoss(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = new_model()

    def forward(self, pixels, labels):
        logits = self.layers(pixels)
        return {"loss": cross_entropy(logits, labels), "logits": logits}


def by_class(cls):
    options = json.loads(json.dumps(OPTIONS[cls]))
    return lambda model: {"optimizer_cls_and_kwargs": (cls, options)}


def by_instance(cls):
    def arguments(model):
        optimizer = cls(param_groups(model, weight_decay=0.1), **OPTIONS[cls])
        return {"optimizers": (optimizer, new_scheduler(optimizer))}

    return arguments


WAYS = {
    "ALTO by class": (ALTO, by_class(ALTO)),
    "EAdamW by class": (EAdamW, by_class(EAdamW)),
    "ALTO by instance": (ALTO, by_instance(ALTO)),
}


def trainer(folder, how, model, **options):
    images, labels = digits()
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=16,
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=SAVED,
        weight_decay=0.1,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        **options,
    )
    data = [{"pixels": x, "labels": y} for x, y in zip(images[:64], labels[:64].tolist(), strict=True)]
    return Trainer(model, arguments, train_dataset=data, **how)


def run_of(way, folder, **options):
    model = WithLoss()
    return trainer(folder, WAYS[way][1](model), model, **options)


@pytest.mark.parametrize("way", WAYS)
def test_the_optimizer_that_was_asked_for_is_stepped_and_resumed(way, tmp_path):
    whole = run_of(way, tmp_path)
    whole.train()
    assert whole.state.global_step == STEPS
    assert_moved(whole.model.parameters(), WithLoss().parameters())
    assert_stepped_with_a_rate_that_falls(whole.optimizer.optimizer, way)

    resumed = run_of(way, tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{SAVED}"))
    assert resumed.state.global_step == STEPS
    assert_same(resumed.model.parameters(), whole.model.parameters())
    assert_same_state(resumed.optimizer.optimizer, whole.optimizer.optimizer)


def assert_stepped_with_a_rate_that_falls(optimizer, way):
    cls = WAYS[way][0]
    assert type(optimizer) is cls
    expected = {"weight_decay": 0.1, "explore_alpha" if cls is EAdamW else "alpha": OPTIONS[cls]["alpha"]}
    assert {name: optimizer.param_groups[0][name] for name in expected} == expected
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert {float(state["step"]) for state in optimizer.state.values()} == {float(STEPS)}
    factor = 0.0 if "class" in way else 1.0 - 0.9 * STEPS / 9
    assert optimizer.param_groups[0]["lr"] == pytest.approx(OPTIONS[cls]["lr"] * factor, rel=1e-12)


def test_the_trainers_loop_is_the_plain_loop(tmp_path):
    """Without the Trainer's own clipping, over the batches in their order."""
    run = run_of("ALTO by instance", tmp_path, max_grad_norm=0.0)
    model = run.model
    in_order = DataLoader(run.train_dataset, batch_size=16, collate_fn=run.data_collator)
    run.get_train_dataloader = lambda: in_order
    run.train()
    plain = WithLoss()
    parts = by_instance(ALTO)(plain)["optimizers"]
    images, labels = digits()
    for _ in range(STEPS // 4):
        for x, y in zip(images[:64].split(16), labels[:64].split(16), strict=True):
            plain(x, y)["loss"].backward()
            for part in parts:
                part.step()
            parts[0].zero_grad()
    assert_moved(plain.parameters(), WithLoss().parameters())
    assert_same(model.parameters(), plain.parameters())


def test_trust_ratio_decayed_is_param_groups_where_the_trainer_makes_the_groups(tmp_path):
    """A model of linear maps: the Trainer's groups then are those of ``param_groups``, but for the trust ratio."""
    models = WithLoss(), WithLoss()
    options = {**OPTIONS[ALTO], "trust_ratio": "decayed"}
    by_hand = ALTO(param_groups(models[1], weight_decay=0.1), **OPTIONS[ALTO])
    falling = LambdaLR(by_hand, lambda step: 1.0 - step / STEPS)  # as the Trainer's own
    trainer(tmp_path, {"optimizer_cls_and_kwargs": (ALTO, json.loads(json.dumps(options)))}, models[0]).train()
    trainer(tmp_path, {"optimizers": (by_hand, falling)}, models[1]).train()
    assert_moved(models[0].parameters(), WithLoss().parameters())
    assert_same(models[0].parameters(), models[1].parameters())
