"""Other libraries' LAMBs, stepped as they are; in a process where the library is installed, which need not be ours.

As a program it reads ``[[library, options, regime], ...]`` and writes the parameters after each step of each, as JSON.
A library of which one file is wanted is not imported as a whole: its packages' own ``__init__`` is left out.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import formulas
import numpy as np
from regimes import LR, Arrays, gradients_of, start_of


def alone(name: str) -> ModuleType:
    """A module of a package, without what its packages import."""
    parts = name.split(".")
    for i in range(1, len(parts)):
        package = ".".join(parts[:i])
        folders = [Path(folder, *parts[:i]) for folder in sys.path]
        if package not in sys.modules:
            sys.modules[package] = stub = ModuleType(package)
            stub.__path__ = [str(folder) for folder in folders if folder.is_dir()]
    return importlib.import_module(name)


def of_torch(make: Callable[..., Any]) -> Callable[..., Iterator[Arrays]]:
    """Steps of the optimizer of torch's kind that ``make`` makes of parameters, lr and options."""

    def steps(start: Arrays, grads: list[Arrays], **options: Any) -> Iterator[Arrays]:
        import torch

        params = [torch.nn.Parameter(torch.tensor(p)) for p in start]
        optimizer = make(params, lr=LR, **options)
        for row in grads:
            for p, g in zip(params, row, strict=True):
                p.grad = torch.tensor(g)
            optimizer.step()
            yield [p.detach().numpy().copy() for p in params]

    return steps


def timm(params: Any, **options: Any) -> Any:
    return alone("timm.optim.lamb").Lamb(params, **options)


def torch_optimizer(params: Any, **options: Any) -> Any:
    return alone("torch_optimizer.lamb").Lamb(params, **options)


def pytorch_lamb(params: Any, **options: Any) -> Any:
    sys.modules["tensorboardX"] = stub = ModuleType("tensorboardX")
    stub.SummaryWriter = object
    return alone("pytorch_lamb.lamb").Lamb(params, **options)


def catalyst(params: Any, **options: Any) -> Any:
    return alone("catalyst.contrib.optimizers.lamb").Lamb(params, **options)


def colossalai(params: Any, **options: Any) -> Any:
    return alone("colossalai.nn.optimizer.lamb").Lamb(params, **options)


def holocron(params: Any, **options: Any) -> Any:
    return alone("holocron.optim.lamb").LAMB(params, **options)


def fastai(params: Any, **options: Any) -> Any:
    return importlib.import_module("fastai.optimizer").Lamb(params, **options)


def pytorch_optimizer(params: Any, **options: Any) -> Any:
    return importlib.import_module("pytorch_optimizer").Lamb(params, **options)


def optax(start: Arrays, grads: list[Arrays], **options: Any) -> Iterator[Arrays]:
    import jax
    import optax

    with jax.enable_x64(True):
        rule = optax.lamb(LR, **options)
        params = [jax.numpy.asarray(p) for p in start]
        state = rule.init(params)
        for row in grads:
            updates, state = rule.update([jax.numpy.asarray(g) for g in row], state, params)
            params = optax.apply_updates(params, updates)
            yield [np.asarray(p) for p in params]


def keras(start: Arrays, grads: list[Arrays], **options: Any) -> Iterator[Arrays]:
    os.environ.update(KERAS_BACKEND="jax", JAX_ENABLE_X64="1")
    import keras

    params = [keras.Variable(p, dtype="float64") for p in start]
    optimizer = keras.optimizers.Lamb(learning_rate=LR, **options)
    for row in grads:
        optimizer.apply([keras.ops.convert_to_tensor(g, "float64") for g in row], params)
        yield [np.array(p) for p in params]


def tinygrad(start: Arrays, grads: list[Arrays], **options: Any) -> Iterator[Arrays]:
    os.environ.update(DEV="PYTHON", OPTIM_DTYPE="float64")
    from tinygrad import Tensor, dtypes
    from tinygrad.helpers import Context
    from tinygrad.nn.optim import LAMB

    params = [Tensor(p.tolist(), dtype=dtypes.float64).is_param_() for p in start]
    optimizer = LAMB(params, lr=LR, **options)
    with Context(TRAINING=1):
        for row in grads:
            for p, g in zip(params, row, strict=True):
                p.grad = Tensor(g.tolist(), dtype=dtypes.float64)
            optimizer.step()
            yield [np.array(p.tolist()) for p in params]


def paddle(start: Arrays, grads: list[Arrays], **options: Any) -> Iterator[Arrays]:
    import paddle

    paddle.set_device("cpu")
    params = [
        paddle.create_parameter(list(p.shape), "float64", default_initializer=paddle.nn.initializer.Assign(p))
        for p in start
    ]
    optimizer = paddle.optimizer.Lamb(learning_rate=LR, parameters=params, **options)
    for row in grads:
        sum((p * paddle.to_tensor(g)).sum() for p, g in zip(params, row, strict=True)).backward()
        optimizer.step()
        optimizer.clear_grad()
        yield [p.numpy().copy() for p in params]


def mxnet(start: Arrays, grads: list[Arrays], **options: Any) -> Iterator[Arrays]:
    import mxnet

    params = [mxnet.nd.array(p, dtype="float64") for p in start]
    optimizer = mxnet.optimizer.LAMB(learning_rate=LR, **options)
    states = [optimizer.create_state(i, p) for i, p in enumerate(params)]
    for row in grads:
        for i, (p, g, state) in enumerate(zip(params, row, states, strict=True)):
            optimizer.update(i, p, mxnet.nd.array(g, dtype="float64"), state)
        yield [p.asnumpy() for p in params]


def of_tf_keras(make: Callable[..., Any]) -> Callable[..., Iterator[Arrays]]:
    def steps(start: Arrays, grads: list[Arrays], **options: Any) -> Iterator[Arrays]:
        os.environ.update(TF_USE_LEGACY_KERAS="1", TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="")
        import tensorflow as tf

        params = [tf.Variable(p, dtype=tf.float64, name=f"p{i}") for i, p in enumerate(start)]
        optimizer = make(learning_rate=LR, **options)
        for row in grads:
            optimizer.apply_gradients(zip([tf.constant(g, tf.float64) for g in row], params, strict=True))
            yield [p.numpy() for p in params]

    return steps


def tensorflow_addons(**options: Any) -> Any:
    """Of 0.23, which does not import beside TensorFlow 2.21: its file, with the base class that it had then."""
    import tf_keras

    alone("tensorflow_addons.optimizers.utils")
    sys.modules["tensorflow_addons.utils"] = ModuleType("tensorflow_addons.utils")
    sys.modules["tensorflow_addons.utils.types"] = types = ModuleType("tensorflow_addons.utils.types")
    types.FloatTensorLike = float
    sys.modules["tensorflow_addons.optimizers"].KerasLegacyOptimizer = tf_keras.optimizers.legacy.Optimizer
    return alone("tensorflow_addons.optimizers.lamb").LAMB(**options)


def tf_models(**options: Any) -> Any:
    return alone("official.modeling.optimization.lamb").LAMB(**options)


STEPS_OF: dict[str, Callable[..., Iterator[Arrays]]] = {
    **{name: of_torch(make) for name, make in (("timm", timm), ("fastai", fastai), ("catalyst", catalyst))},
    **{name: of_torch(make) for name, make in (("colossalai", colossalai), ("holocron", holocron))},
    **{name: of_torch(make) for name, make in (("torch_optimizer", torch_optimizer), ("pytorch_lamb", pytorch_lamb))},
    "pytorch_optimizer": of_torch(pytorch_optimizer),
    "optax": optax,
    "keras": keras,
    "tinygrad": tinygrad,
    "paddle": paddle,
    "mxnet": mxnet,
    "tensorflow-addons": of_tf_keras(tensorflow_addons),
    "tf-models": of_tf_keras(tf_models),
    "apex": formulas.apex,
    "deepspeed": formulas.deepspeed,
    "oneflow": formulas.oneflow,
}


def theirs(library: str, options: dict[str, Any], regime: str) -> list[Arrays]:
    """The parameters after each step."""
    return [[np.array(p) for p in row] for row in STEPS_OF[library](start_of(regime), gradients_of(regime), **options)]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(sys.stderr):
        found = [[[p.tolist() for p in row] for row in theirs(*asked)] for asked in json.load(sys.stdin)]
    json.dump(found, sys.stdout)
