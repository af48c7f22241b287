"""Lightning gives a closure to every ``step``: in automatic optimization the one that computes the gradients."""

from __future__ import annotations

import logging

import lightning
import pytest
from small_runs import CLASSES, batches, new_model, new_optimizer, new_scheduler, train
from support import assert_moved, assert_same, assert_same_state
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore:.*num_workers", "ignore:.*log_every")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
BATCHES = 8


class Automatic(lightning.LightningModule):
    def __init__(self, cls):
        super().__init__()
        self.cls, self.layers, self.closures = cls, new_model(), []

    def configure_optimizers(self):
        optimizer = new_optimizer(self.cls, self.layers)
        optimizer.register_step_pre_hook(self.keep_closure)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": new_scheduler(optimizer), "interval": "step"}}

    def keep_closure(self, optimizer, args, kwargs):
        self.closures += [value for value in (*args[1:], *kwargs.values()) if value is not None]

    def training_step(self, batch):
        x, y = batch
        return cross_entropy(self.layers(x), y)


class Manual(Automatic):
    def __init__(self, cls):
        super().__init__(cls)
        self.automatic_optimization = False

    def training_step(self, batch):
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch))
        optimizer.step()
        scheduler.step()


def fit(module, folder, epochs=1, checkpoint=None, **options):
    trainer = lightning.Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, DataLoader(batches(BATCHES), batch_size=None), ckpt_path=checkpoint)
    return trainer


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(("form", "accumulate"), [(Automatic, 1), (Automatic, 2), (Manual, 1)])
def test_fit_is_the_plain_loop(form, accumulate, cls, tmp_path):
    module = form(cls)
    trainer = fit(module, tmp_path, **({"accumulate_grad_batches": accumulate} if accumulate > 1 else {}))
    model = new_model()
    optimizer = new_optimizer(cls, model)
    train(model, optimizer, batches(BATCHES), new_scheduler(optimizer), accumulate=accumulate)
    assert_moved(model.parameters(), new_model().parameters())
    assert_same(module.layers.parameters(), model.parameters())
    assert_same_state(trainer.optimizers[0], optimizer)
    assert trainer.optimizers[0].param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert len(module.closures) == BATCHES // accumulate  # or this test would not be about closures


@pytest.mark.parametrize("cls", CLASSES)
def test_a_checkpoint_continues_bit_for_bit(cls, tmp_path):
    whole, half, resumed = Automatic(cls), Automatic(cls), Automatic(cls)
    trainer = fit(whole, tmp_path, epochs=2)
    path = tmp_path / "half.ckpt"
    fit(half, tmp_path, epochs=1).save_checkpoint(path)
    resumed_trainer = fit(resumed, tmp_path, epochs=2, checkpoint=path)
    assert len(resumed.closures) == BATCHES
    assert_moved(whole.layers.parameters(), half.layers.parameters())
    assert_same(resumed.layers.parameters(), whole.layers.parameters())
    assert_same_state(resumed_trainer.optimizers[0], trainer.optimizers[0])
