"""What is trained: small real problems whose data come with the installation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from thalweg.lab.summary import Metric

if TYPE_CHECKING:
    from collections.abc import Mapping

Batch = tuple[Tensor, Tensor]


class Rows(Dataset[Batch]):
    """Tensors that share their first axis, fetched a batch at a time."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Batch:
        return self.inputs[index], self.targets[index]

    def __getitems__(self, indices: list[int]) -> Batch:
        """One gather for the whole batch; the loader's ``collate_fn`` has nothing left to do."""
        at = torch.as_tensor(indices)
        return self.inputs[at], self.targets[at]


class Splits(NamedTuple):
    """Training data, data to choose hyperparameters on, data to report on."""

    train: Rows
    validation: Rows
    test: Rows


@dataclass(frozen=True, slots=True)
class Budget:
    """How long one batch size trains, and the validation metric whose first passing is timed."""

    steps: int
    target: float


class Task(ABC):
    """A model, its data and its metric; ``budgets`` maps each batch size to its training length."""

    name: ClassVar[str]
    title: ClassVar[str]
    metric: ClassVar[Metric]
    budgets: ClassVar[Mapping[int, Budget]]
    example_cost: ClassVar[float]
    """Roughly, microseconds of training per example on one core: for the progress bar alone."""

    @abstractmethod
    def splits(self) -> Splits:
        """The data, the same on every call."""

    @abstractmethod
    def model(self) -> nn.Module:
        """A new model, initialised from torch's global generator."""

    @abstractmethod
    def loss(self, output: Any, target: Tensor) -> Tensor:
        """The training loss of a batch, a scalar."""

    @abstractmethod
    def score(self, output: Any, target: Tensor) -> Tensor:
        """The metric of each example, shape (batch,); the metric of a data set is their mean."""


class Sine(Task):
    """The slides' toy: y = sin(x) by a network of three layers."""

    name = "sine"
    title = "y = sin(x), 3-layer network of width 32"
    metric = Metric("test mean squared error", "min", log=True)
    budgets: ClassVar[Mapping[int, Budget]] = {256: Budget(400, 1e-3), 32768: Budget(30, 7e-2)}
    example_cost = 0.5

    def splits(self) -> Splits:
        """65,536 points uniform on [-2π, 2π] to train on, 2,048 each to validate and test."""
        generator = torch.Generator().manual_seed(0)

        def points(count: int) -> Rows:
            x = (torch.rand(count, 1, generator=generator) * 4.0 - 2.0) * math.pi
            return Rows(x, x.sin())

        return Splits(points(65536), points(2048), points(2048))

    def model(self) -> nn.Module:
        """1-32-32-1 with tanh."""
        return nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Mean squared error."""
        loss: Tensor = F.mse_loss(output, target)
        return loss

    def score(self, output: Any, target: Tensor) -> Tensor:
        """Squared error."""
        scores: Tensor = (output - target).square().flatten(1).mean(1)
        return scores


class MatrixConv(nn.Module):
    """A 3x3 convolution that keeps its kernel as the (out, 9 in) matrix it is, for optimizers that act on matrices."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.shape, self.stride = (outputs, inputs, 3, 3), stride
        self.weight = nn.Parameter(torch.empty(outputs, 9 * inputs))
        nn.init.kaiming_normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (batch, in, h, w) with padding 1."""
        loss: Tensor = F.conv2d(x, self.weight.view(self.shape), stride=self.stride, padding=1)
        return loss


class Residual(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x))))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(4, width), nn.ReLU(), MatrixConv(width, width),
            nn.GroupNorm(4, width), nn.ReLU(), MatrixConv(width, width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, h, w) to the same shape."""
        out: Tensor = x + self.body(x)
        return out


class Digits(Task):
    """Scikit-learn's handwritten digits, 8x8 pixels, by a small residual network."""

    name = "digits"
    title = "scikit-learn's 8x8 handwritten digits, residual convolutional network"
    metric = Metric("test accuracy", "max", unit="%")
    budgets: ClassVar[Mapping[int, Budget]] = {64: Budget(126, 95.0), 1024: Budget(24, 80.0)}
    example_cost = 40.0

    def splits(self) -> Splits:
        """1,197 images to train on, 250 to validate, 350 to test, after one fixed shuffle."""
        from sklearn.datasets import load_digits

        data = load_digits()
        order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
        images = torch.from_numpy(data.images).float()[order].unsqueeze(1) / 8.0 - 1.0
        labels = torch.from_numpy(data.target).long()[order]
        bounds = (slice(0, 1197), slice(1197, 1447), slice(1447, 1797))
        return Splits(*(Rows(images[at], labels[at]) for at in bounds))

    def model(self) -> nn.Module:
        """Six convolutions, 8 then 16 channels."""
        return nn.Sequential(
            MatrixConv(1, 8), Residual(8), MatrixConv(8, 16, stride=2), Residual(16),
            nn.GroupNorm(4, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
        )  # fmt: skip

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Cross-entropy."""
        loss: Tensor = F.cross_entropy(output, target)
        return loss

    def score(self, output: Any, target: Tensor) -> Tensor:
        """100 where the digit is right, 0 where it is not."""
        scores: Tensor = (output.argmax(-1) == target).float() * 100.0
        return scores


class PydocLM(Task):
    """A byte-level GPT-2 on the text of Python's own help topics."""

    name = "pydoc-lm"
    title = "byte-level GPT-2 (2 layers, width 64) on the help topics of Python's standard library"
    metric = Metric("test loss", "min", unit="nats/byte")
    budgets: ClassVar[Mapping[int, Budget]] = {16: Budget(600, 2.2), 256: Budget(200, 2.2)}
    example_cost = 1000.0
    length: ClassVar[int] = 48

    def splits(self) -> Splits:
        """Topics in three disjoint sets, about 80, 10 and 10 % of them, cut into windows of 48 bytes and the next."""
        from pydoc_data.topics import topics

        names = sorted(topics)
        order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).tolist()
        tenth = len(names) // 10
        chosen = (order[2 * tenth :], order[:tenth], order[tenth : 2 * tenth])
        return Splits(*(self._windows("\n".join(topics[names[i]] for i in sorted(part))) for part in chosen))

    def _windows(self, text: str) -> Rows:
        data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()
        windows = data[: (len(data) - 1) // self.length * self.length + 1].unfold(0, self.length + 1, self.length)
        return Rows(windows[:, :-1], windows[:, 1:])

    def model(self) -> nn.Module:
        """GPT-2 as transformers builds it, without dropout."""
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            vocab_size=256, n_positions=self.length, n_embd=64, n_layer=2, n_head=4,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        model: nn.Module = GPT2LMHeadModel(config)
        return model

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Cross-entropy per byte."""
        loss: Tensor = F.cross_entropy(output.logits.flatten(0, 1), target.flatten())
        return loss

    def score(self, output: Any, target: Tensor) -> Tensor:
        """Mean cross-entropy of each window."""
        loss: Tensor = F.cross_entropy(output.logits.transpose(1, 2), target, reduction="none").mean(1)
        return loss


TASKS: dict[str, type[Task]] = {task.name: task for task in (Sine, Digits, PydocLM)}


@cache
def load(name: str) -> tuple[Task, Splits]:
    """The task of this name and its data, made once a process."""
    task = TASKS[name]()
    return task, task.splits()
