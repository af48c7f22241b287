"""Hugging Face's Trainer: it builds the optimizer from a class and arguments that fit into JSON, or is given one."""

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from transformers import PrinterCallback, Trainer, TrainingArguments

from thalweg import ALTO, EAdamW, param_groups


class Classifier(torch.nn.Module):
    """Returns the loss as well, as Trainer expects."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Loss and logits of a batch."""
        logits = self.layers(pixels)
        return {"loss": cross_entropy(logits, labels), "logits": logits}


images, digits = load_digits(return_X_y=True)
data = [{"pixels": x, "labels": int(y)} for x, y in zip(torch.from_numpy(images).float() / 16, digits, strict=True)]


def train(model: Classifier, **how: object) -> tuple[Trainer, float]:
    """Four epochs; the loss, averaged over all steps."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            learning_rate=0.01,
            per_device_train_batch_size=256,
            num_train_epochs=4,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
        )
        trainer = Trainer(model, arguments, train_dataset=data, **how)
        trainer.remove_callback(PrinterCallback)
        return trainer, trainer.train().training_loss


torch.manual_seed(0)
built, loss = train(Classifier(), optimizer_cls_and_kwargs=(EAdamW, {"lr": 0.01, "alpha": 0.5, "beta": 0.01}))

model = Classifier()
optimizer = ALTO(param_groups(model, weight_decay=0.01), lr=0.02, alpha=-5.0, beta=0.99)
given, other_loss = train(model, optimizers=(optimizer, None))  # None: the Trainer's own schedule

print(f"Trainer: training loss {loss:.3f} with EAdamW, {other_loss:.3f} with ALTO, {given.state.global_step} steps")
