"""What a task is: a model, its data, its loss and its metric."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from thalweg.records.metric import Metric

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Inputs: TypeAlias = Tensor | dict[str, Tensor]
Batch: TypeAlias = tuple[Inputs, Tensor]


class Rows(Dataset[Batch]):
    """Tensors that share their first axis, fetched a batch at a time.

    ``inputs`` is what the model is called with: a tensor, or several by the names of the model's arguments.
    """

    def __init__(self, inputs: Inputs, targets: Tensor) -> None:
        lengths = {len(tensor) for tensor in _tensors(inputs)}
        if lengths != {len(targets)}:
            found = ", ".join(map(str, sorted(lengths)))
            raise ValueError(f"inputs and targets must share their first axis, got {found} and {len(targets)}")
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Batch:
        return self._at(index)

    def __getitems__(self, indices: list[int]) -> Batch:
        """One gather for the whole batch."""
        return self._at(torch.as_tensor(indices))

    def _at(self, index: Any) -> Batch:
        inputs = self.inputs
        found = {k: v[index] for k, v in inputs.items()} if isinstance(inputs, dict) else inputs[index]
        return found, self.targets[index]


def _tensors(inputs: Inputs) -> list[Tensor]:
    return [inputs[name] for name in sorted(inputs)] if isinstance(inputs, dict) else [inputs]


@dataclass(frozen=True, slots=True)
class Stream:
    """Training data that are read as they come.

    ``rows`` is a ``datasets.IterableDataset``, of whose rows ``example`` makes inputs and target, without a batch axis.
    ``place`` is where they are, for errors; records are used again only where ``identity`` is the same.
    """

    rows: Any
    example: Callable[[Any], tuple[Any, Any]]
    place: str
    identity: str


class Splits(NamedTuple):
    """Training data, data to choose hyperparameters on, data to report on: datasets with a length and an index.

    With ``--streaming`` the training data are a :class:`Stream`.
    """

    train: Any
    validation: Any
    test: Any


@dataclass(frozen=True, slots=True)
class Budget:
    """How long one batch size trains, and the validation metric whose first passing is timed (None: nothing is).

    A task can have a ``"short"`` and a ``"long"`` one: a race of few steps and training to the end are two questions.
    """

    batch_size: int
    steps: int
    target: float | None = None
    name: str = "short"


def short_and_long(steps: dict[int, tuple[int, int]]) -> tuple[Budget, ...]:
    """Budgets without a target, from the steps of a short run and of a long one by batch size."""
    short = [Budget(batch_size, few) for batch_size, (few, _) in steps.items()]
    return (*short, *(Budget(batch_size, many, name="long") for batch_size, (_, many) in steps.items()))


class Task(ABC):
    """A model, its data, its loss and its metric. A subclass is made without arguments.

    ``budgets`` are the batch sizes that are compared unless others are asked for, with their training lengths;
    ``example_cost`` is roughly how many microseconds an example takes on one core, for the progress bar alone.
    """

    name: ClassVar[str] = ""
    """What it is called on the command line; a user's own task goes by the name it is imported with."""
    title: ClassVar[str] = ""
    metric: ClassVar[Metric]
    budgets: ClassVar[Sequence[Budget]]
    example_cost: ClassVar[float] = 20.0
    reference_loss: float = 1.0
    """The size of the training loss of a model that has learnt nothing, roughly; set it for losses of another scale.

    A run has diverged where its loss has risen over that of its first step by more than nine times the first one's
    size or this one, whichever is larger.
    """
    label_smoothing: float | None = None
    """None: the loss does not support it. A task whose loss uses it declares 0.0; the run sets it."""

    example_tokens: int | None = None
    """Tokens of an example of a language model, of whose speed they are the measure; None: it is none."""

    download: ClassVar[str] = ""
    """What a first run fetches, and how large it is; "" where all data come with Python or a package."""
    published_examples: ClassVar[int | None] = None
    """How many examples of published data the task trains on, known without fetching them."""

    @abstractmethod
    def splits(self) -> Splits:
        """The data, the same on every call."""

    def stream(self) -> Splits | None:
        """The data for ``--streaming``, those to train on as a :class:`Stream`; None: the task cannot stream."""
        return None

    @abstractmethod
    def model(self) -> nn.Module:
        """A new model, initialised from torch's global generator."""

    def pretrained(self) -> nn.Module | None:
        """What :meth:`model` reads from a file or the hub, without a new head; None: nothing.

        Its weights are part of a run's identity, as the data are.
        """
        return None

    def operations(self, model: nn.Module) -> float | None:
        """Floating-point operations of a training example, forward and backward; None: unknown.

        For the records of a run, which say how many it carries out a second.
        """
        return None

    def skeleton(self) -> nn.Module:
        """The model as :func:`parameters` builds it: nothing is fetched for it."""
        return self.model()

    def example(self) -> Batch:
        """A batch of two examples, of which only shapes and types count: nothing is fetched for it.

        So the default, the first two of the training set, is for data that are at hand.
        """
        train = self.splits().train
        return default_collate([train[i] for i in range(min(2, len(train)))])  # type: ignore[no-any-return]

    @abstractmethod
    def loss(self, output: Any, target: Any) -> Tensor:
        """The training loss of a batch, a scalar: the mean over its examples."""

    @abstractmethod
    def score(self, output: Any, target: Any) -> Tensor:
        """What is measured on each example, shape (batch, ...)."""

    def combine(self, scores: Tensor) -> float:
        """The metric of a data set from the scores of all its examples: their mean, unless a subclass knows better."""
        return scores.double().mean().item()

    def constant(self, targets: Tensor, like: Tensor) -> Tensor | None:
        """The best output that knows no inputs, from the ``targets`` to train on, as a batch for those of ``like``.

        None: a task that does not say it.
        """
        return None

    def chance(self, splits: Splits) -> float | None:
        """The metric of :meth:`constant` on the test set: what has learnt something is better.

        None where no such output is said, or where the targets are not in :class:`Rows`.
        """
        train, test = splits.train, splits.test
        if not (isinstance(train, Rows) and isinstance(test, Rows)):
            return None
        scores = []
        for part in torch.split(test.targets, 64):
            output = self.constant(train.targets, part)
            if output is None:
                return None
            scores.append(self.score(output, part))
        return self.combine(torch.cat(scores))

    def more(self, scores: Tensor) -> dict[str, float]:
        """Other numbers of a data set from the same scores, by name: ``test_metrics`` of a run. Finite ones."""
        return {}


def parameters(task: Task) -> int:
    """How many parameters the task's model has; its memory is not taken and its data are not asked for."""
    with torch.device("meta"):
        return sum(p.numel() for p in task.skeleton().parameters())


def cost(task: Task, batch_size: int, steps: int) -> float:
    """Roughly how many microseconds a run takes on one core."""
    return steps * (500.0 + batch_size * task.example_cost)


def budget_at(budgets: Sequence[Budget], batch_size: int, name: str) -> Budget | None:
    """The budget of this name at any batch size: between two of the task's own, interpolated; None if it has none.

    log(steps) is linear in log(batch size) between neighbours; beyond the smallest batch size the examples seen stay
    the same, beyond the largest the steps. The target is that of the nearer neighbour.

    >>> budget_at([Budget(64, 400), Budget(1024, 100)], 256, "short")
    Budget(batch_size=256, steps=200, target=None, name='short')
    """
    own = sorted((one for one in budgets if one.name == name), key=lambda one: one.batch_size)
    if not own or (name != "short" and batch_size < own[0].batch_size):
        return None
    below = max((one for one in own if one.batch_size <= batch_size), key=lambda one: one.batch_size, default=None)
    above = min((one for one in own if one.batch_size >= batch_size), key=lambda one: one.batch_size, default=None)
    if below is None or above is None:
        (only,) = (one for one in (below, above) if one is not None)
        steps = only.steps if below else math.ceil(only.steps * only.batch_size / batch_size)
        return Budget(batch_size, steps, only.target, name)
    if below is above:
        return below
    share = math.log(batch_size / below.batch_size) / math.log(above.batch_size / below.batch_size)
    steps = round(math.exp((1 - share) * math.log(below.steps) + share * math.log(above.steps)))
    return Budget(batch_size, max(1, steps), (below if share < 0.5 else above).target, name)


def target_of(task: Task, batch_size: int, steps: int) -> float | None:
    """The target of a run: that of the task's budget for this batch size that is nearest in length."""
    found = [one for name in ("short", "long") if (one := budget_at(task.budgets, batch_size, name)) is not None]
    return min(found, key=lambda one: abs(math.log(one.steps / steps))).target if found else None


def fingerprint(splits: Splits, pretrained: nn.Module | None = None) -> str:
    """A hash of data and pretrained weights, so that records of others are not taken for these.

    Of :class:`Rows` and of weights every element counts; of a dataset of the ``datasets`` library its own fingerprint;
    of a :class:`Stream` its identity; of any other its length and 64 examples, evenly spaced.
    """
    digest = hashlib.sha256()
    for part in splits:
        if isinstance(part, Stream):
            digest.update(part.identity.encode())
            continue
        digest.update(str(len(part)).encode())
        if isinstance(part, Rows):
            for tensor in (*_tensors(part.inputs), part.targets):
                digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
                digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
        elif isinstance(found := getattr(part, "_fingerprint", None), str):
            digest.update(found.encode())
        else:
            for i in range(0, len(part), max(1, len(part) // 64)):
                digest.update(_bytes(part[i]))
    if pretrained is not None:
        digest.update(_bytes(pretrained.state_dict()))
    return digest.hexdigest()[:16]


def _bytes(value: Any) -> bytes:
    if isinstance(value, Tensor):
        return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return b"".join(_bytes(item) for pair in sorted(value.items()) for item in pair)
    if isinstance(value, (tuple, list)):
        return b"".join(_bytes(item) for item in value)
    return repr(value).encode()


def without_duplicates(train: Rows, validation: Rows, test: Rows) -> Splits:
    """The splits without what a later one tells the model too, word for word: texts that differ may look the same."""
    seen: set[bytes] = set()
    found = []
    for part in (test, validation, train):
        rows = [b"".join(_bytes(tensor[i]) for tensor in _tensors(part.inputs)) for i in range(len(part))]
        found.append(Rows(*part.__getitems__([i for i, row in enumerate(rows) if row not in seen])))
        seen.update(rows)
    return Splits(*found[::-1])


def held_out(examples: int, count: int) -> tuple[Tensor, Tensor]:
    """The places of all examples but a random ``count``, and of these; the same on every call."""
    order = torch.randperm(examples, generator=torch.Generator().manual_seed(0))
    return order[count:].sort().values, order[:count].sort().values
