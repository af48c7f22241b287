"""Lightning with FSDP2: shard in ``configure_model``; the groups are then made of what is sharded.

``ModelParallelStrategy`` shards on GPUs and on CPUs; ``FSDPStrategy``, with its flat pieces, is not for LAMB and ALTO.
"""

import logging
import warnings

import lightning
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from sklearn.datasets import load_digits
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from thalweg import ALTO, paper_defaults, param_groups

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")


class Classifier(lightning.LightningModule):
    """Two layers on 8x8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))

    def configure_model(self) -> None:
        """Shard over the ranks that see different examples; Lightning calls this before it asks for the optimizer."""
        for layer in [*self.layers, self.layers]:
            fully_shard(layer, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        """The loss of this rank's part of a batch."""
        return cross_entropy(self.layers(batch[0]), batch[1])

    def configure_optimizers(self) -> ALTO:
        """ALTO, for the number of examples in a step over all ranks."""
        return ALTO(param_groups(self, weight_decay=0.01), lr=0.03, **paper_defaults(batch_size=256))


torch.manual_seed(0)
images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
shuffled = torch.randperm(len(images))
images, labels = images[shuffled].float() / 16, labels[shuffled]
train, test = slice(1500), slice(1500, None)
model = Classifier()
ranks = 2
trainer = lightning.Trainer(
    max_epochs=20,
    accelerator="cpu",
    devices=ranks,
    strategy=ModelParallelStrategy(data_parallel_size=ranks, tensor_parallel_size=1),
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(model, DataLoader(TensorDataset(images[train], labels[train]), batch_size=256 // ranks, shuffle=True))

with torch.no_grad():
    accuracy = (model.layers(images[test]).argmax(1) == labels[test]).float().mean().item()
if trainer.is_global_zero:
    held = sum(p.to_local().numel() for p in model.parameters())
    print(f"lightning, FSDP2: {accuracy:.1%} of unseen digits right, {held} parameters on a rank")
# torchrun --nproc-per-node 2
# prints: lightning, FSDP2: 95.6% of unseen digits right, 1205 parameters on a rank
