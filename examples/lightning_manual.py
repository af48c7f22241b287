"""Lightning with manual optimization: the module itself calls backward, clips, and steps optimizer and scheduler."""

import logging
import warnings

import lightning
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from thalweg import EAdamW

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")


class Classifier(lightning.LightningModule):
    """Two layers on 8x8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.layers = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))

    def training_step(self, batch: list[torch.Tensor]) -> None:
        """The whole step."""
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        optimizer.zero_grad()
        self.manual_backward(cross_entropy(self.layers(batch[0]), batch[1]))
        self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
        optimizer.step()
        scheduler.step()

    def configure_optimizers(self) -> tuple[list, list]:
        """E in front of AdamW, with a learning rate that falls at every step."""
        optimizer = EAdamW(self.parameters(), lr=0.02, alpha=0.5, beta=0.01)
        return [optimizer], [torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=120)]


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
print(f"lightning, manual: {accuracy:.1%} of unseen digits right, after {trainer.global_step} steps")
# prints: lightning, manual: 94.9% of unseen digits right, after 120 steps
