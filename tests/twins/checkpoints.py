"""Checkpoints of other libraries' LAMBs, really saved and loaded, and `Lamb` going on from them.

As a program it takes libraries, all of which must be installed beside ours, and prints a table: the largest difference
of the next ten steps, relative where a parameter's largest entry is above 1. Exits with 1 if one is above its figure.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.lr_scheduler import LambdaLR

from thalweg import Lamb, lamb_schedule, lamb_state

BEFORE, AFTER, LR, DECAY = 3, 10, 0.02, 0.1
SHAPES = ((5, 3), (3,), (4, 4))  # two matrices that decay, one of them square, and a vector that does not
DECAYED = (0, 2)


def drawn(seed: int, dtype: torch.dtype) -> list[Tensor]:
    rng = np.random.RandomState(seed)
    return [torch.tensor(rng.standard_normal(shape)).to(dtype) for shape in SHAPES]


def kernel(x: Tensor) -> np.ndarray:
    """As it lies in libraries whose kernels are (in, out)."""
    return np.ascontiguousarray(x.T.numpy() if x.ndim == 2 else x.numpy())


def from_kernel(x: Any) -> Tensor:
    array = torch.tensor(np.asarray(x))
    return array.T.contiguous() if array.ndim == 2 else array


class OfTorch:
    """Groups of decay 0.1 and 0, saved by torch and loaded without executing anything."""

    def __init__(self, make: Callable[..., Any], dtype: torch.dtype, **options: Any) -> None:
        self.params = [Parameter(p) for p in drawn(0, dtype)]
        groups = [{"params": [self.params[i] for i in DECAYED], "weight_decay": DECAY}]
        groups.append({"params": [self.params[1]], "weight_decay": 0.0})
        self.optimizer = make(groups, lr=LR, **options)

    def step(self, row: list[Tensor]) -> None:
        for p, g in zip(self.params, row, strict=True):
            p.grad = g.clone()
        self.optimizer.step()

    def now(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.params]

    @contextlib.contextmanager
    def checkpoint(self) -> Iterator[Any]:
        file = io.BytesIO()
        torch.save(self.optimizer.state_dict(), file)
        file.seek(0)
        yield torch.load(file, weights_only=True)


def of_module(name: str, cls: str, dtype: torch.dtype = torch.float64) -> Callable[..., OfTorch]:
    def make(**options: Any) -> OfTorch:
        from theirs import alone

        if name.startswith("pytorch_lamb"):
            from types import ModuleType

            sys.modules["tensorboardX"] = stub = ModuleType("tensorboardX")
            stub.SummaryWriter = object
        whole = name in ("pytorch_optimizer", "bitsandbytes.optim")
        module = __import__(name, fromlist=[cls]) if whole else alone(name)
        return OfTorch(getattr(module, cls), dtype, **options)

    return make


class Fastai(OfTorch):
    """Saved as a Learner does, which marks in the state what is not to decay, biases and norms."""

    def __init__(self, **options: Any) -> None:
        from fastai.optimizer import Lamb as Theirs

        self.params = [Parameter(p) for p in drawn(0, torch.float64)]
        self.optimizer = Theirs([[self.params[0]], self.params[1:]], lr=[LR, LR], **options)
        self.optimizer.state[self.params[1]]["do_wd"] = False

    @contextlib.contextmanager
    def checkpoint(self) -> Iterator[Any]:
        file = io.BytesIO()
        torch.save({"model": {}, "opt": self.optimizer.state_dict()}, file)
        file.seek(0)
        yield torch.load(file, weights_only=False)  # the groups are in a list of fastcore's


class MXNet:
    """Its Trainer's own file; the vector's ``wd_mult`` is 0, and gradients are what ``backward`` makes of them."""

    def __init__(self, **options: Any) -> None:
        import mxnet

        self.mxnet = mxnet
        self.params = []
        for i, start in enumerate(drawn(0, torch.float64)):
            p = mxnet.gluon.Parameter(f"p{i}", shape=tuple(start.shape), dtype="float64", wd_mult=float(i in DECAYED))
            p.initialize()
            p.set_data(mxnet.nd.array(start.numpy(), dtype="float64"))
            self.params.append(p)
        self.trainer = mxnet.gluon.Trainer(self.params, "lamb", {"learning_rate": LR, **options})

    def step(self, row: list[Tensor]) -> None:
        with self.mxnet.autograd.record():
            terms = [
                (p.data() * self.mxnet.nd.array(g.numpy(), dtype="float64")).sum()
                for p, g in zip(self.params, row, strict=True)
            ]
            loss = terms[0] + terms[1] + terms[2]
        loss.backward()
        self.trainer.step(1)

    def now(self) -> list[Tensor]:
        return [torch.tensor(p.data().asnumpy()) for p in self.params]

    @contextlib.contextmanager
    def checkpoint(self) -> Iterator[Any]:
        import pickle

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "trainer.states")
            self.trainer.save_states(str(path))
            yield pickle.loads(path.read_bytes())


class Optax:
    """Written and read by flax' msgpack, which is no pickle."""

    def __init__(self, **options: Any) -> None:
        import jax
        import optax

        self.jax, self.optax = jax, optax
        mask = {"dense": {"kernel": True, "bias": False}, "out": {"kernel": True}}
        self.rule = optax.lamb(LR, mask=mask, **options)
        with jax.enable_x64(True):
            self.params = self.tree(drawn(0, torch.float64))
            self.state = self.rule.init(self.params)

    def tree(self, tensors: list[Tensor]) -> Any:
        w, b, q = (self.jax.numpy.asarray(kernel(x)) for x in tensors)
        return {"dense": {"kernel": w, "bias": b}, "out": {"kernel": q}}

    def step(self, row: list[Tensor]) -> None:
        with self.jax.enable_x64(True):
            updates, self.state = self.rule.update(self.tree(row), self.state, self.params)
            self.params = self.optax.apply_updates(self.params, updates)

    def now(self) -> list[Tensor]:
        dense = self.params["dense"]
        return [from_kernel(x) for x in (dense["kernel"], dense["bias"], self.params["out"]["kernel"])]

    @contextlib.contextmanager
    def checkpoint(self) -> Iterator[Any]:
        from flax import serialization

        yield serialization.msgpack_restore(serialization.msgpack_serialize(serialization.to_state_dict(self.state)))


class Keras:
    def __init__(self, **options: Any) -> None:
        os.environ.update(KERAS_BACKEND="jax", JAX_ENABLE_X64="1")
        import keras

        self.keras = keras
        keras.config.set_floatx("float64")
        start = drawn(0, torch.float64)
        self.variables = [keras.Variable(kernel(p), dtype="float64") for p in start]
        self.optimizer = keras.optimizers.Lamb(learning_rate=LR, **options)
        self.optimizer.exclude_from_weight_decay(var_list=[self.variables[1]])

    def step(self, row: list[Tensor]) -> None:
        self.optimizer.apply([self.keras.ops.convert_to_tensor(kernel(g), "float64") for g in row], self.variables)

    def now(self) -> list[Tensor]:
        return [from_kernel(v) for v in self.variables]

    @contextlib.contextmanager
    def checkpoint(self) -> Iterator[Any]:
        """The ``model.weights.h5`` within what ``model.save`` makes."""
        import h5py

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.keras")
            model = self.keras.Sequential([self.keras.layers.Input((1,)), self.keras.layers.Dense(1)])
            model.optimizer = self.optimizer
            model.save(path)
            with zipfile.ZipFile(path) as archive, h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
                yield file


class Paddle:
    def __init__(self, **options: Any) -> None:
        import paddle

        self.paddle = paddle
        paddle.set_device("cpu")
        paddle.set_default_dtype("float64")
        linears = [paddle.nn.Linear(3, 5), paddle.nn.Linear(4, 4)]
        self.params = [linears[0].weight, self.vector(), linears[1].weight]
        for p, start in zip(self.params, drawn(0, torch.float64), strict=True):
            p.set_value(kernel(start))
        spare = {self.params[1].name}
        excluded = lambda p: p.name in spare  # noqa: E731
        self.optimizer = paddle.optimizer.Lamb(
            LR, parameters=self.params, exclude_from_weight_decay_fn=excluded, **options
        )

    def vector(self) -> Any:
        return self.paddle.nn.Linear(1, 3).bias

    def step(self, row: list[Tensor]) -> None:
        terms = [(p * self.paddle.to_tensor(kernel(g))).sum() for p, g in zip(self.params, row, strict=True)]
        sum(terms).backward()
        self.optimizer.step()
        self.optimizer.clear_grad()

    def now(self) -> list[Tensor]:
        return [from_kernel(p.numpy()) for p in self.params]

    @contextlib.contextmanager
    def checkpoint(self) -> Iterator[Any]:
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder, "model.pdopt"))
            self.paddle.save(self.optimizer.state_dict(), path)
            yield self.paddle.load(path)


class Tinygrad:
    def __init__(self, **options: Any) -> None:
        os.environ.update(DEV="PYTHON", OPTIM_DTYPE="float64")
        from tinygrad import Tensor as Theirs
        from tinygrad import dtypes
        from tinygrad.nn.optim import LAMB, OptimizerGroup

        self.tensor = lambda x: Theirs(x.tolist(), dtype=dtypes.float64)
        self.params = [self.tensor(p).is_param_() for p in drawn(0, torch.float64)]
        decayed = LAMB([self.params[i] for i in DECAYED], lr=LR, weight_decay=DECAY, **options)
        self.optimizer = OptimizerGroup(decayed, LAMB([self.params[1]], lr=LR, **options))

    def step(self, row: list[Tensor]) -> None:
        from tinygrad.helpers import Context

        for p, g in zip(self.params, row, strict=True):
            p.grad = self.tensor(g)
        with Context(TRAINING=1):
            self.optimizer.step()

    def now(self) -> list[Tensor]:
        return [torch.tensor(p.tolist(), dtype=torch.float64) for p in self.params]

    @contextlib.contextmanager
    def checkpoint(self) -> Iterator[Any]:
        from tinygrad.nn.state import get_state_dict

        yield get_state_dict(self.optimizer)


@dataclass(frozen=True)
class Checkpoint:
    """A library's options, those that ``lamb_state`` has to be told, and the largest difference."""

    library: str
    within: float
    options: dict[str, Any] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return ", ".join([self.library, *(f"{name}={value}" for name, value in self.options.items())])


EXACT = 5e-15
MAKERS: dict[str, Callable[..., Any]] = {
    "timm": of_module("timm.optim.lamb", "Lamb"),
    "pytorch_optimizer": of_module("pytorch_optimizer", "Lamb"),
    "torch_optimizer": of_module("torch_optimizer.lamb", "Lamb"),
    "pytorch_lamb": of_module("pytorch_lamb.lamb", "Lamb"),
    "catalyst": of_module("catalyst.contrib.optimizers.lamb", "Lamb"),
    "holocron": of_module("holocron.optim.lamb", "LAMB"),
    "colossalai": of_module("colossalai.nn.optimizer.lamb", "Lamb"),
    "bitsandbytes": of_module("bitsandbytes.optim", "LAMB", torch.float32),
    "fastai": Fastai,
    "mxnet": MXNet,
    "optax": Optax,
    "keras": Keras,
    "paddle": Paddle,
    "tinygrad": Tinygrad,
}
CHECKPOINTS = [
    Checkpoint("timm", 1e-7),
    Checkpoint("timm", EXACT, {"max_grad_norm": None, "always_adapt": True, "trust_clip": True}),
    Checkpoint("timm", EXACT, {"max_grad_norm": None, "decoupled_decay": True}),
    Checkpoint("pytorch_optimizer", 2e-6, {"weight_decouple": False}),
    Checkpoint("pytorch_optimizer", 2e-6, {"adam_debias": True}, {"adam_debias": True}),
    Checkpoint("torch_optimizer", EXACT),
    Checkpoint("torch_optimizer", EXACT, {"debias": True}, {"debias": True}),
    Checkpoint("pytorch_lamb", EXACT),
    Checkpoint("catalyst", EXACT),
    Checkpoint("holocron", EXACT),
    Checkpoint("colossalai", EXACT),
    Checkpoint("colossalai", EXACT, {"bias_correction": True}),
    Checkpoint("bitsandbytes", 1e-6, {"max_unorm": 0.0}, {"max_unorm": 0.0}),
    Checkpoint("fastai", EXACT, {"wd": DECAY}),
    Checkpoint("mxnet", 7e-7, {"wd": DECAY}),
    Checkpoint("mxnet", 7e-7, {"wd": DECAY, "lower_bound": 0.5, "upper_bound": 2.0}),
    Checkpoint("optax", EXACT, {"weight_decay": DECAY}, {"weight_decay": DECAY}),
    Checkpoint("keras", 1e-7, {"weight_decay": DECAY}, {"weight_decay": DECAY}),
    Checkpoint("paddle", 7e-7, {"lamb_weight_decay": DECAY}, {"lamb_weight_decay": DECAY}),
    Checkpoint("paddle", 7e-7, {"always_adapt": True}, {"always_adapt": True, "lamb_weight_decay": 0.01}),
    Checkpoint("tinygrad", 2e-6, {}, {"weight_decay": DECAY}),
]


def schedule_of(row: Checkpoint, optimizer: Lamb) -> LambdaLR | None:
    """Where lr is scaled at each step: ``initial_lr`` is then in the groups."""
    if "initial_lr" not in optimizer.param_groups[0]:
        return None
    return LambdaLR(optimizer, lamb_schedule(row.library, **row.options), last_epoch=BEFORE - 1)


def largest_difference(row: Checkpoint) -> float:
    old = MAKERS[row.library](**row.options)
    dtype = old.now()[0].dtype
    for k in range(BEFORE):
        old.step(drawn(100 + k, dtype))
    params = [Parameter(p) for p in old.now()]
    names = ("dense.weight", "dense.bias", "out.weight")
    named = list(zip(names, params, strict=True)) if row.library == "optax" else params
    groups = [{"params": [named[i] for i in DECAYED]}, {"params": [named[1]], "weight_decay": 0.0}]
    optimizer = Lamb(groups, lr=LR)
    with old.checkpoint() as saved:
        optimizer.load_state_dict(lamb_state(row.library, saved, optimizer, **row.told))
    schedule, worst = schedule_of(row, optimizer), 0.0
    for k in range(BEFORE, BEFORE + AFTER):
        grads = drawn(100 + k, dtype)
        old.step(grads)
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        optimizer.step()
        if schedule:
            schedule.step()
        for p, theirs in zip(params, old.now(), strict=True):
            worst = max(worst, ((p.detach() - theirs).abs().max() / theirs.abs().max().clamp(min=1.0)).item())
    return worst


def main(libraries: list[str]) -> int:
    warnings.simplefilter("ignore")
    exceeded = 0
    for row in CHECKPOINTS:
        if not libraries or row.library in libraries:
            with contextlib.redirect_stdout(sys.stderr):
                worst = largest_difference(row)
            print(f"| {row.name} | {worst:.0e} | {row.within:.0e} |", flush=True)
            exceeded += worst > row.within
    return 1 if exceeded else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
