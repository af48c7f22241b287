"""Lightning: return the optimizer from ``configure_optimizers``; its closures run before E sees the gradients."""

import logging
import warnings

import lightning
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from thalweg import ALTO, paper_defaults, param_groups

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")


class Classifier(lightning.LightningModule):
    """Two layers on 8x8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        """The loss of a batch."""
        return cross_entropy(self.layers(batch[0]), batch[1])

    def configure_optimizers(self) -> dict:
        """ALTO with a learning rate that falls at every step."""
        optimizer = ALTO(param_groups(self, weight_decay=0.01), lr=0.03, **paper_defaults(batch_size=256))
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=120)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


torch.manual_seed(0)
images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
shuffled = torch.randperm(len(images))
images, labels = images[shuffled].float() / 16, labels[shuffled]
train, test = slice(1500), slice(1500, None)
model = Classifier()
trainer = lightning.Trainer(
    max_epochs=20,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(model, DataLoader(TensorDataset(images[train], labels[train]), batch_size=256, shuffle=True))

accuracy = (model.layers(images[test]).argmax(1) == labels[test]).float().mean().item()
print(f"lightning: {accuracy:.1%} of unseen digits right, after {trainer.global_step} steps")
# prints: lightning: 94.9% of unseen digits right, after 120 steps
