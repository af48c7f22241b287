"""Two passes over each parameter, compiled by Inductor for the CPU once for all shapes.

A layer's norms are known only when all of it has been seen: the first pass moves the moving averages and adds up the
squares, the second recomputes r from them and moves the parameter. A kernel serves every size and all values of the
hyperparameters, which it reads from a vector; another dtype makes another one. Compiling takes seconds, and the result
is kept in Inductor's cache directory, so that only the first process on a machine waits.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch._inductor.runtime.cache_dir_utils import cache_dir

from thalweg import equations as eq
from thalweg.backends import Hyper, Layer, Scales, compute_dtype, single
from thalweg.backends.pieces import Scratch, flat
from thalweg.backends.precision import stochastic_round

_CONFIGS = {
    "cpp.enable_floating_point_contract_flag": "fast",
    "cpp.dynamic_threads": True,  # or the number of threads of the process that compiles would bind all others
}
_SOURCE = Path(__file__).read_bytes()
_log = logging.getLogger(__name__)
Kernel: TypeAlias = Callable[[list[Tensor]], list[Tensor]]


class Variant(NamedTuple):
    """What a kernel is compiled for."""

    param: torch.dtype
    grad: torch.dtype
    explore: bool
    trust_ratio: bool
    stacked: bool  # the layers are the rows of a matrix
    stochastic: bool


def step(layers: Sequence[Layer], hyper: Hyper, scales: Scales, scratch: Scratch) -> None:
    """One step of ALTO on each layer, in place, with no temporary but a copy of a gradient that is laid out otherwise.

    Left to :mod:`~thalweg.backends.single` are sharded layers, those that are not dense, those of fewer than two
    elements, and stacks whose layers are not contiguous.
    """
    if scales.go is not None and not scales.go.item():
        return
    scale = (-1.0 if hyper.maximize else 1.0) * (1.0 if scales.grad is None else scales.grad.item())
    coefficients = functools.cache(functools.partial(_coefficients, hyper, scale, compute_dtype(layers[0].param.dtype)))
    for layer in layers:
        tensors = _vectors(layer)
        if tensors is None:
            single.step([layer], hyper, scales._replace(go=None), scratch)
            continue
        variant = Variant(
            layer.param.dtype,
            layer.grad.dtype,
            layer.explore_ema is not None,
            hyper.trust_ratio,
            layer.norm_dims is not None and hyper.trust_ratio,
            hyper.stochastic_rounding and layer.param.dtype == torch.bfloat16,
        )
        advance, update = _kernels(variant)
        k = coefficients(float(layer.step))
        seed = [torch.tensor(layer.seed)] if variant.stochastic else []
        if advance is None:
            update([*tensors, k, *seed])
        else:
            (rate,) = advance([*tensors, k])
            update([*tensors[:1], *tensors[2:4], k, rate, *seed])


def _vectors(layer: Layer) -> list[Tensor] | None:
    """(θ, g, m, v, b) as vectors, or as matrices whose rows are the layers; None for :mod:`single`."""
    param, grad = layer.param, layer.grad
    dtype = compute_dtype(param.dtype)
    if param.numel() < 2 or hasattr(param, "device_mesh") or not dtype == layer.exp_avg.dtype == layer.exp_avg_sq.dtype:
        return None
    if grad.stride() != param.stride():
        grad = torch.empty_like(param, dtype=grad.dtype).copy_(grad)
    tensors = [param, grad, layer.exp_avg, layer.exp_avg_sq]
    if layer.explore_ema is not None:
        tensors.append(layer.explore_ema)
    if layer.norm_dims is None:
        return flat(tensors)
    kept = param.ndim - len(layer.norm_dims)
    rows = math.prod(param.shape[:kept])
    if sorted(layer.norm_dims) != list(range(kept, param.ndim)) or not all(t.is_contiguous() for t in tensors):
        return None
    return [t.view(rows, -1) for t in tensors] if min(rows, param.numel() // rows) > 1 else None


def _coefficients(hyper: Hyper, scale: float, dtype: torch.dtype, count: float) -> Tensor:
    """The numbers that a kernel reads, computed in float64."""
    low, high = (0.0, math.inf) if hyper.trust_clip is None else hyper.trust_clip
    correction2, correction3 = (float(eq.bias_correction(beta, count)) for beta in (hyper.beta2, hyper.beta3))
    return torch.tensor(
        [
            scale,
            eq.gain(hyper.alpha, hyper.beta1),
            1.0 - hyper.beta1,
            1.0 - hyper.beta2,
            1.0 - hyper.beta3,
            1.0 / correction2,
            1.0 / correction3,
            hyper.eps,
            hyper.weight_decay,
            float(hyper.lr),
            hyper.trust_eps,
            low,
            high,
        ],
        dtype=dtype,
    )


def _direction(theta: Tensor, m: Tensor, v: Tensor, k: Sequence[Tensor]) -> Tensor:
    return (m * k[5]) / ((v * k[6]).sqrt() + k[7]) + k[8] * theta


def _advance(variant: Variant, param: Tensor, grad: Tensor, m: Tensor, v: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
    """Move (m, v) or (m, v, b); return θ and r. The arithmetic is that of :mod:`thalweg.equations`."""
    k = rest[variant.explore].unbind()
    theta, h = param.to(m.dtype), grad.to(m.dtype) * k[0]
    if variant.explore:
        b = rest[0]
        difference = h - b
        h = h + k[1] * difference
        b.add_(k[2] * difference)
    m.add_(k[3] * (h - m))
    v.add_(k[4] * (h * h - v))
    return theta, _direction(theta, m, v, k)


def _first_pass(variant: Variant, *tensors: Tensor) -> Tensor:
    """(θ, g, m, v[, b], k) -> the step size of each layer."""
    k = tensors[4 + variant.explore].unbind()
    theta_norm, r_norm = (eq.norm(x, (1,) if variant.stacked else None) for x in _advance(variant, *tensors))
    return k[9] * eq.trust_ratio(theta_norm, r_norm, eps=k[10], clip=(k[11], k[12]))  # type: ignore[call-overload,no-any-return]


def _second_pass(variant: Variant, param: Tensor, m: Tensor, v: Tensor, coefficients: Tensor, *rest: Tensor) -> None:
    """(θ, m, v, k, step size[, seed]): move θ."""
    theta, rate = param.to(m.dtype), rest[0]
    _move(variant, param, theta - rate * _direction(theta, m, v, coefficients.unbind()), *rest[1:])


def _only_pass(variant: Variant, *tensors: Tensor) -> None:
    """(θ, g, m, v[, b], k[, seed]): both passes in one, where every layer's step size is the learning rate."""
    k = tensors[4 + variant.explore].unbind()
    theta, r = _advance(variant, *tensors)
    _move(variant, tensors[0], theta - k[9] * r, *tensors[5 + variant.explore :])


def _move(variant: Variant, param: Tensor, theta: Tensor, *seed: Tensor) -> None:
    param.copy_(stochastic_round(theta, seed[0]) if variant.stochastic else theta)


@functools.cache
def _kernels(variant: Variant) -> tuple[Kernel | None, Kernel]:
    """The kernels of the two passes, or None and that of the only one."""
    state = compute_dtype(variant.param)
    shape = (64, 1 << 14) if variant.stacked else (1 << 20,)
    rows, size = torch.export.Dim("rows", min=2), torch.export.Dim("size", min=2)
    dims = {0: rows, 1: size} if variant.stacked else {0: size}
    theta, grad = torch.empty(shape, dtype=variant.param), torch.empty(shape, dtype=variant.grad)
    m, v, b = (torch.empty(shape, dtype=state) for _ in range(3))
    k, seed = torch.ones(13, dtype=state), [torch.tensor(0)] if variant.stochastic else []
    given = [theta, grad, m, v, *([b] if variant.explore else [])]
    if not variant.trust_ratio:
        return None, _compile(_only_pass, variant, [*given, k, *seed], dims)
    rate = torch.ones((64, 1) if variant.stacked else (), dtype=state)
    return (
        _compile(_first_pass, variant, [*given, k], dims),
        _compile(_second_pass, variant, [theta, m, v, k, rate, *seed], dims),
    )


class _Module(torch.nn.Module):
    def __init__(self, function: Callable[..., Any], variant: Variant) -> None:
        super().__init__()
        self.function = functools.partial(function, variant)

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(*tensors)


def _compile(function: Callable[..., Any], variant: Variant, example: list[Tensor], dims: dict[int, Any]) -> Kernel:
    """``function`` of tensors of any size along ``dims``; from the cache, if this machine has compiled it before."""
    package = _package(function.__name__, variant)
    if not package.exists():
        _log.info("compiling %s for %s", function.__name__, variant)
        started = time.perf_counter()
        dynamic = tuple(_dynamic(t, example[0], dims) for t in example)
        exported = torch.export.export(_Module(function, variant), tuple(example), dynamic_shapes=(dynamic,))
        package.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=package.parent) as directory, warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch, about itself
            built = torch._inductor.aoti_compile_and_package(
                exported,
                package_path=str(Path(directory) / "kernel.pt2"),
                inductor_configs=_CONFIGS,
            )
            Path(built).replace(package)  # at once: another process may be looking
        _log.info("compiled in %.1f s", time.perf_counter() - started)
    # The runner below the public call: that one checks and flattens its arguments for five times as long as a small
    # layer takes to update.
    run: Kernel = torch._inductor.aoti_load_package(str(package)).loader.run
    return run


def _package(function: str, variant: Variant) -> Path:
    key = (torch.__version__, _machine(), _SOURCE, function, variant)
    return Path(cache_dir()) / "thalweg" / f"{hashlib.sha256(repr(key).encode()).hexdigest()}.pt2"


def _dynamic(t: Tensor, param: Tensor, dims: dict[int, Any]) -> dict[int, Any] | None:
    """The axes of an argument that vary: those of a parameter, or the rows alone of the step sizes of a stack."""
    if t.shape == param.shape:
        return dims
    return {0: dims[0]} if t.ndim == 2 else None


def _machine() -> str:
    """The processor, as kernels are compiled for its instructions."""
    info = Path("/proc/cpuinfo")
    names = ("model name", "flags", "Features")
    lines = info.read_text().splitlines() if info.exists() else []
    return platform.machine() + "".join(sorted({line for line in lines if line.startswith(names)}))
