"""What a step takes for granted of a parameter, its gradient and its state: one error for each that is otherwise.

Kernels walk memory by address: to them a buffer of another shape is other memory, and so is a tensor whose
storage has been freed, or whose class keeps its values elsewhere. All is looked at before a step changes anything.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NoReturn, cast

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.parameter import UninitializedParameter

from thalweg.kernels import eightbit
from thalweg.kernels.rounding import EXP_AVG, EXP_AVG_SQ, EXPLORE_EMA
from thalweg.sharding import is_sharded, local, placement
from thalweg.torch_private import is_in_functorch, is_zero_tensor

BUFFERS = (EXP_AVG, EXP_AVG_SQ, EXPLORE_EMA)
PLAIN = frozenset({Tensor, Parameter})
LOW = 1 << 40
"""Addresses below are used by no system we know; one there may be that of a storage which has been freed."""
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_COMPLEX = (torch.complex128, torch.complex64)


def holds_its_values(cls: type[Tensor]) -> bool:
    """Whether the memory of a tensor of this class holds its values: what a subclass computes itself, only it knows."""
    return cls in PLAIN or _is_passive(cls)


@functools.cache
def _is_passive(cls: Any) -> bool:
    function = cls.__torch_function__
    return cls.__torch_dispatch__ is cast("Any", Tensor).__torch_dispatch__ and (
        function is Parameter.__torch_function__
        or getattr(function, "__func__", None) is cast("Any", Tensor.__torch_function__).__func__
    )


def is_stepped_by_torch(t: Any) -> bool:
    """Whether it is no plain tensor, but one that torch's operations serve: sharded, or without any values (fake)."""
    return is_sharded(t) or hasattr(t, "fake_mode")


def check_parameter(p: Any, optimizer: str) -> None:
    """Raise unless ``optimizer`` can step a parameter of this kind.

    Raises:
        TypeError: it is of a class that keeps its values elsewhere than in its memory.
        ValueError: it is not initialized, dense, or of a floating-point dtype.
    """
    if isinstance(p, UninitializedParameter):
        raise ValueError(
            f"{optimizer} needs parameters that are initialized, got a {type(p).__name__}: give the lazy module a "
            "batch before the first step"
        )
    if is_in_functorch(p):
        raise TypeError(f"{optimizer} cannot step a parameter inside a transformation of torch.func")
    if p.is_nested or p.layout != torch.strided:
        kind = "nested" if p.is_nested else f"of layout {p.layout}"
        raise ValueError(f"{optimizer} needs dense parameters, got one that is {kind}")
    kinds = {type(t): holds_its_values(type(t)) or is_stepped_by_torch(t) for t in (p, local(p))}
    for cls, known in kinds.items():
        if not known:
            raise TypeError(
                f"{optimizer} cannot step a parameter of class {cls.__name__}, whose memory need not hold its values: "
                "E around another optimizer, such as E(torch.optim.AdamW(...)), leaves it to that"
            )
    if p.dtype not in _FLOATS + _COMPLEX:
        names = ", ".join(map(str, _FLOATS + _COMPLEX))
        raise ValueError(f"a parameter of shape {tuple(p.shape)} must be of dtype {names}, got {p.dtype}")


def check_gradient(p: Any, grad: Any, optimizer: str) -> None:
    """Raise unless ``grad`` can be the gradient of ``p``.

    Raises:
        RuntimeError: it is sparse.
        TypeError: it is of a class that the parameter is not of, and that keeps its values elsewhere.
        ValueError: its shape, dtype, device or sharding does not fit, or it has lost its memory.
    """
    if grad.layout != torch.strided:
        raise RuntimeError(
            f"{optimizer} needs dense gradients, got one of layout {grad.layout} and shape {tuple(grad.shape)}: "
            "build the layer with sparse=False"
        )
    of = f"the gradient of a parameter of shape {tuple(p.shape)}"
    if grad.shape != p.shape:
        raise ValueError(f"{of} must have that shape, got {tuple(grad.shape)}")
    if is_sharded(grad) != is_sharded(p):
        raise ValueError(f"{of} must be sharded as that is, got a {type(grad).__name__} for a {type(p).__name__}")
    if is_sharded(p) and grad.device_mesh != p.device_mesh:
        raise ValueError(f"{of} must be on its mesh, {p.device_mesh}, got one on {grad.device_mesh}")
    if type(grad) is not type(p) and not (holds_its_values(type(grad)) or is_stepped_by_torch(grad)):
        raise TypeError(f"{of} must be a {type(p).__name__}, as that is, or a tensor, got a {type(grad).__name__}")
    if grad.dtype not in (allowed := _COMPLEX if p.is_complex() else _FLOATS):
        raise ValueError(f"{of} must be of dtype {', '.join(map(str, allowed))}, got {grad.dtype}")
    if grad.device != p.device:
        raise ValueError(f"{of} must be on its device, {p.device}, got one on {grad.device}")
    here = local(grad)
    if placement(grad) == placement(p) and here.shape != local(p).shape:
        raise ValueError(f"{of} must have the shape of its shard, {tuple(local(p).shape)}, got {tuple(here.shape)}")
    if holds_its_values(type(here)) and not is_zero_tensor(here):
        check_storage(of, here)


def check_buffer(name: str, x: Any, p: Any) -> None:
    """Raise ``ValueError`` unless ``x`` can be a moving average, called ``name``, of the gradients of ``p``."""
    of = f"{name} of a parameter of shape {tuple(p.shape)}"
    kind = "complex" if p.is_complex() else "floating-point"
    if not isinstance(x, Tensor):
        raise ValueError(f"{of} must be a {kind} tensor of that shape, got {x!r:.80}")
    if x.is_nested or x.layout != torch.strided or x.dtype not in (_COMPLEX if p.is_complex() else _FLOATS):
        got = "nested" if x.is_nested else f"{x.dtype}, {x.layout}, of shape {tuple(x.shape)}"
        raise ValueError(f"{of} must be a dense {kind} tensor of that shape, got one of {got}")
    if x.shape != p.shape:
        raise ValueError(
            f"{of} must have that shape, got {tuple(x.shape)}: where a parameter grows or is pruned, "
            "thalweg.resize_state carries all of its state along"
        )
    at, there = placement(x), placement(p)
    if at != there:
        got = f"a {type(x).__name__} for a {type(p).__name__}" if None in (at, there) else f"{at} for {there}"
        raise ValueError(
            f"{of} must be sharded as that is, as torch.distributed.checkpoint.state_dict loads it, got {got}"
        )
    here = local(x)
    if eightbit.is_8bit(here):
        eightbit.check(of, here, signed=name != EXP_AVG_SQ)
    elif not (type(here) is type(local(p)) or holds_its_values(type(here)) or is_stepped_by_torch(here)):
        raise ValueError(f"{of} must be a plain tensor or torchao's 8-bit state, got a {type(here).__name__}")
    if here.shape != local(p).shape or here.device != local(p).device:
        got = f"one of shape {tuple(here.shape)} on {here.device}"
        raise ValueError(f"{of} must be on its device, {local(p).device}, got {got}")


def check_state(p: Any, state: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless ``state``, not empty, is what ALTO, Lamb, or E around Adam keeps for ``p``."""
    if lacking := {"step", EXP_AVG, EXP_AVG_SQ} - state.keys():
        names = ", ".join(sorted(lacking))
        raise ValueError(f"the state of a parameter of shape {tuple(p.shape)} must have {names}, got {list(state)}")
    check_step(state["step"], p)
    for name in BUFFERS:
        if name in state:
            check_buffer(name, state[name], p)


def check_step(step: Any, p: Any) -> None:
    """Raise ``ValueError`` unless ``step`` can be the count of steps of ``p``, if what it says is."""
    if not (isinstance(step, Tensor) and step.ndim == 0 and step.dtype in (torch.float32, torch.float64)):
        refuse_step(step, p)


def refuse_step(step: Any, p: Any) -> NoReturn:
    """Raise ``ValueError``."""
    allowed = "a 0-d tensor of dtype torch.float32 that counts from 0"
    raise ValueError(f"step of a parameter of shape {tuple(p.shape)} must be {allowed}, got {step!r:.80}")


def check_memory(of: str, t: Tensor) -> None:
    """Raise ``ValueError`` unless each element of ``t`` has a place of its own in memory that may be written to."""
    check_storage(of, t)
    if _reach(t) is None:
        raise ValueError(
            f"{of} must have a place for each element, got shape {tuple(t.shape)} and strides {t.stride()}"
        )
    if t.is_neg() or t.is_conj():
        raise ValueError(f"{of} must hold its values, got a view that negates or conjugates them: resolve it")
    if t.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(f"{of} must be made outside inference mode, or not be written to outside it: clone() it")


def check_storage(of: str, t: Tensor) -> None:
    """Raise ``ValueError`` if the storage of ``t`` is not there, or smaller than its shape says."""
    if is_zero_tensor(t):
        raise ValueError(f"{of} must have memory, got a tensor of zeros without any")
    last = t.storage_offset() + sum(stride * (n - 1) for n, stride in zip(t.shape, t.stride(), strict=True))
    there = t.untyped_storage().nbytes()
    if t.numel() > 0 and there < (last + 1) * t.element_size():
        raise ValueError(f"{of} must have its memory, got a storage of {there} bytes: it has been freed or cut")


def _reach(t: Tensor) -> int | None:
    """The distance between the first and the last element of ``t`` in memory; None if two may be in one place."""
    reach = 0
    for stride, n in sorted((stride, n) for n, stride in zip(t.shape, t.stride(), strict=True) if n > 1):
        if stride <= reach:
            return None
        reach += stride * (n - 1)
    return reach
