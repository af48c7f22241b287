"""Tasks that train in milliseconds, right ones and wrong ones; named on command lines as ``small_tasks:Line``."""

import os
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from thalweg.lab.tasks import Budget, Metric, Rows, Splits, Task
from thalweg.lab.tasks.gpt2 import MoE
from thalweg.lab.tasks.pydoc_lm import PydocMoE


class Line(Task):
    title = "a line through points"
    metric = Metric("test squared error", "min", log=True, low=0.0)
    budgets = (Budget(16, 12, 0.5), Budget(48, 6), Budget(48, 24, 0.5, "long"))
    example_cost = 1.0

    def splits(self):
        x = torch.randn(192, 3, generator=torch.Generator().manual_seed(0))
        y = x @ torch.tensor([[1.0], [-2.0], [0.5]])
        return Splits(Rows(x[:64], y[:64]), Rows(x[64:128], y[64:128]), Rows(x[128:], y[128:]))

    def model(self):
        return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def loss(self, output, target):
        return F.mse_loss(output, target)

    def score(self, output, target):
        return (output - target).square().flatten(1).mean(1)


class Slow(Line):
    """The same, a twentieth of a second a step, and half a second once the working directory has a file ``slower``."""

    def loss(self, output, target):
        time.sleep(0.5 if Path("slower").exists() else 0.05)
        return super().loss(output, target)


class Loaded(Line):
    """The same from data sets that are indexed; each example's score is the process that loaded it."""

    def splits(self):
        return Splits(*map(Fetched, super().splits()))

    def score(self, output, target):
        return target[:, 1]


class Fetched(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, k):
        inputs, target = self.rows[k]
        return inputs, torch.cat([target, torch.tensor([float(os.getpid())])])


class FailsOnTheSecondProcess(Line):
    """Its loss raises at the third step, there."""

    calls = 0

    def loss(self, output, target):
        self.calls += 1
        if self.calls == 3 and os.environ.get("RANK") == "1":
            raise KeyError("a row of this process")
        return super().loss(output, target)


class Named(Line):
    """The same, its inputs by name, with a second number of the test set."""

    def splits(self):
        parts = super().splits()
        return Splits(
            *(Rows({"second": part.inputs[:, 1:], "first": part.inputs[:, :1]}, part.targets) for part in parts)
        )

    def model(self):
        return ByName(super().model())

    def more(self, scores):
        return {"root": scores.mean(dtype=torch.float64).sqrt().item()}


class ByName(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, first, second):
        return self.body(torch.cat([first, second], 1))


class Moody(Line):
    """With dropout and batch normalisation: the modes of the model show."""

    metric = Metric("test hits", "max", low=0.0, high=1.0)

    def model(self):
        return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))

    def score(self, output, target):
        return ((output - target).abs() < 1.0).float().flatten(1).mean(1)


class BrokenLoss(Line):
    def loss(self, output, target):
        raise KeyError("a mistake of the task's")


class BrokenModel(Line):
    def model(self):
        raise RuntimeError("no model today")


class BrokenScore(Line):
    def score(self, output, target):
        return output.nope


class NoChance(Line):
    def chance(self, splits):
        return float("nan")


class BrokenChance(Line):
    def constant(self, targets, like):
        return targets.nope


class BrokenSplits(Line):
    def splits(self):
        return 1 / 0


class Undeclared(Line):
    budgets = ()


class NotATask:
    pass


class Late(Line):
    """Its data take long to come."""

    def splits(self):
        print("late", flush=True)
        time.sleep(30)
        return super().splits()


class TiedLine(Line):
    """Two layers of one weight."""

    def model(self):
        first, second = nn.Linear(3, 3), nn.Linear(3, 3)
        second.weight = first.weight
        return nn.Sequential(first, nn.Tanh(), second, nn.Linear(3, 1))


class Hungry(Line):
    def loss(self, output, target):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 PiB")


class Sensitive(Line):
    """Its loss refuses what is not finite, as some of SciPy do."""

    def loss(self, output, target):
        if not output.isfinite().all():
            raise ValueError("array must not contain infs or NaNs")
        return F.mse_loss(output, target)


class Experts(PydocMoE):
    """A mixture of experts that can be made without ever being whole."""

    initialise = MoE.initialise

    def splits(self):
        return Splits(*(Rows(*part.__getitems__(list(range(30)))) for part in super().splits()))

    def model(self):
        model = super().model()
        if not next(model.parameters()).is_meta:
            self.initialise(model)
        return model


class TrainedAlone(nn.Linear):
    """As cuDNN's recurrent networks: no backward in evaluation mode."""

    def forward(self, x):
        if torch.is_grad_enabled() and not self.training:
            raise RuntimeError("cudnn RNN backward can only be called in training mode")
        return super().forward(x)


class Recurrent(Line):
    def model(self):
        return TrainedAlone(3, 1)


class NoModel(Line):
    def model(self):
        return None


class Frozen(Line):
    def model(self):
        return super().model().requires_grad_(False)


class NoNumber(Line):
    def combine(self, scores):
        return None


class NoMore(Line):
    def more(self, scores):
        return None


class Tensors(Line):
    """Its numbers are not Python's, and one is none: the precision of no hits, say."""

    def combine(self, scores):
        return scores.mean()

    def more(self, scores):
        return {"greatest": scores.max(), "precision": torch.tensor(0.0) / 0.0}


class Unlucky(Line):
    """Not finite on the test set alone."""

    def splits(self):
        parts = super().splits()
        return Splits(parts.train, parts.validation, Rows(parts.test.inputs * 1e38, parts.test.targets * 1e38))


class Rare(Line):
    """A class of one in 64, the last bias at its prior: most batches have none of it, and a loss near zero."""

    reference_loss = 1.0

    def splits(self):
        x = torch.randn(192, 3, generator=torch.Generator().manual_seed(0))
        y = (torch.arange(192) % 64 == 63).float()[:, None]
        return Splits(*(Rows(x[k : k + 64], y[k : k + 64]) for k in (0, 64, 128)))

    def model(self):
        model = nn.Linear(3, 1)
        nn.init.zeros_(model.weight)
        nn.init.constant_(model.bias, -9.0)
        return model

    def loss(self, output, target):
        return F.binary_cross_entropy_with_logits(output, target)


class Solved(Line):
    """Good weights to begin with: the first loss is 0."""

    def model(self):
        model = nn.Linear(3, 1)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[1.0, -2.0, 0.5]]))
            model.bias.zero_()
        return model


class Dollars(Solved):
    """The same on another scale."""

    reference_loss = 1e6

    def loss(self, output, target):
        return 1e6 * super().loss(output, target)


class Density(Line):
    """A log-density, below zero and falling."""

    def loss(self, output, target):
        return super().loss(output, target) - 20.0


class Undefined(Line):
    """A metric of 0/0 at the evaluations named in ``at``; not finite parameters aside, its loss is the line's."""

    at: tuple[int, ...] = ()
    value = float("nan")

    def __init__(self):
        self.evaluations = 0

    def combine(self, scores):
        self.evaluations += 1
        return self.value if self.evaluations in self.at else super().combine(scores)


class UndefinedOnce(Undefined):
    at = (1, 3)


class UndefinedAtTheEnd(Undefined):
    at = (4,)


class InfiniteAtTheEnd(UndefinedAtTheEnd):
    value = float("inf")


class UndefinedOnTheTestSet(Undefined):
    at = (5,)
