"""Which learning rate of ALTO and LAMB trains without a search? Training losses on four small problems.

    python benchmarks/default_learning_rate.py    # ten minutes on one core of two busy ones

Constant rates, no schedule, the default of every other option, ``param_groups``; the mean loss of the last ten steps
over three seeds. Nothing is held out: this asks whether a rate trains at all, not which optimizer is better.
"""

from __future__ import annotations

from pydoc_data.topics import topics
from statistics import mean
from typing import TYPE_CHECKING

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from thalweg import ALTO, Lamb, param_groups

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch.optim import Optimizer

RATES = (0.001, 0.003, 0.01, 0.02, 0.03, 0.1)
SEEDS = (0, 1, 2)
CONTENDERS: dict[str, Callable[[nn.Module, float], Optimizer]] = {
    "ALTO": lambda model, lr: ALTO(param_groups(model), lr),
    "ALTO, exploiting": lambda model, lr: ALTO(param_groups(model), lr, alpha=0.5, beta=0.01),
    "Lamb": lambda model, lr: Lamb(param_groups(model), lr),
    "AdamW": lambda model, lr: torch.optim.AdamW(model.parameters(), lr),
}


class Transformer(nn.Module):
    """A causal model of bytes: two layers of width 64."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places, self.head = nn.Embedding(128, 64), nn.Embedding(32, 64), nn.Linear(64, 128)
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(64), enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the next byte, of shape (batch, length, 128)."""
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        h = self.tokens(x) + self.places(torch.arange(x.shape[1]))
        logits: Tensor = self.head(self.layers(h, mask=mask, is_causal=True))
        return logits


def mlp() -> nn.Module:
    """For the digits: 64 inputs, 64 hidden, 10 classes."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def cnn() -> nn.Module:
    """For the digits: two convolutions with batch normalisation."""
    first = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()
    second = nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *first, *second, nn.Flatten(), nn.Linear(512, 10))


def curve() -> nn.Module:
    """For sin(3x): two hidden layers of 32."""
    return nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))


def digits(model: nn.Module, generator: torch.Generator) -> Tensor:
    """The loss of 512 of scikit-learn's digits."""
    batch = torch.randperm(len(IMAGES), generator=generator)[:512]
    return cross_entropy(model(IMAGES[batch]), LABELS[batch])


def sine(model: nn.Module, generator: torch.Generator) -> Tensor:
    """The squared error on 256 points; always the same."""
    x = torch.linspace(-3, 3, 256).unsqueeze(1)
    loss: Tensor = (model(x) - torch.sin(3 * x)).square().mean()
    return loss


def text(model: nn.Module, generator: torch.Generator) -> Tensor:
    """The loss of 32 pieces of Python's help topics, of 32 bytes."""
    starts = torch.randint(len(TEXT) - 33, (32,), generator=generator)
    pieces = torch.stack([TEXT[start : start + 33] for start in starts])
    return cross_entropy(model(pieces[:, :-1]).flatten(0, 1), pieces[:, 1:].flatten())


IMAGES, LABELS = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
IMAGES = IMAGES.float() / 16
TEXT = torch.frombuffer(bytearray("".join(topics.values()).encode("ascii", "ignore")), dtype=torch.uint8).long()
TASKS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, torch.Generator], Tensor], int]] = {
    "digits, MLP": (mlp, digits, 100),
    "digits, CNN": (cnn, digits, 100),
    "sin(3x)": (curve, sine, 400),
    "bytes, transformer": (Transformer, text, 150),
}


def final_loss(task: str, contender: str, lr: float, seed: int) -> float:
    """The mean loss of the last ten steps."""
    build, loss_of, steps = TASKS[task]
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = build()
    optimizer = CONTENDERS[contender](model, lr)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, generator)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return mean(losses[-10:])


def row(cells: Iterable[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(row(("problem, steps", "optimizer", *map(str, RATES))))
    print(row("---" for _ in range(2 + len(RATES))))
    for task, (_, _, steps) in TASKS.items():
        for contender in CONTENDERS:
            losses = [mean(final_loss(task, contender, lr, seed) for seed in SEEDS) for lr in RATES]
            print(row((f"{task}, {steps}", contender, *(f"{loss:.3g}" for loss in losses))), flush=True)
