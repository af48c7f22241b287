"""Stepping inside backward: each layer is updated as soon as its gradient is there, and the gradient freed."""

from __future__ import annotations

import functools
import inspect
import threading
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed as dist
from torch.optim import Optimizer

from thalweg.arguments import check_bool, reject
from thalweg.optim.adaptor import E
from thalweg.optim.exploration import BY_PARAMETER, only
from thalweg.optim.lamb import Lamb
from thalweg.sharding import is_sharded
from thalweg.torch_private import AMP_SCALING

if TYPE_CHECKING:
    from torch import Tensor


def step_in_backward(optimizer: Optimizer, *, nonfinite_by_layer: bool = False) -> SteppingInBackward:
    """Let ``backward()`` take the steps of ``optimizer``, layer by layer, so that few gradients exist at a time.

    The training loop stays as it is, schedulers included: ``optimizer.step()`` ends the step, in which the layers have
    moved already, and steps what has no hook: parameters that are added or begin to require grad later. Call it after
    every backward, also after one that has failed half way. The result is that of the ordinary loop bit for bit. A
    layer reads the options of its group in backward: change them before it.

    What needs all gradients at once is not available: ``max_grad_norm``, a verdict of ``nonfinite`` on the whole step,
    :class:`torch.amp.GradScaler` (autocast to bfloat16 needs none), and gradients accumulated over several backward
    passes, of which the second raises. ``torch.nn.utils.clip_grad_norm_`` after backward finds no gradient and does
    nothing. ``foreach=True`` has no layers to take together. FSDP2 works: call this after ``fully_shard``; unsharded
    parameters in several processes are refused, as DDP averages gradients only later. A compiled model makes its
    gradients at once, so nothing is spared.

    The hooks are on the parameters: checkpoints are those of the optimizer, and neither a checkpoint nor a copy or
    pickle of the optimizer or the model carries them. Hooks on ``optimizer.step`` run once a step, those on the step of
    E's base for each layer.

    Args:
        optimizer: :class:`ALTO`, :class:`Lamb`, or :class:`E` around one of torch's SGD, Adam, AdamW, NAdam, RAdam,
            Adamax, Adagrad, Adadelta, Adafactor, RMSprop, Rprop, ASGD and Muon.
        nonfinite_by_layer: judge each layer's gradient alone, as all that is known: ``nonfinite="skip"`` then leaves
            out that layer, not the step, and ``skipped_steps`` counts layers; ``"raise"`` comes when other layers have
            moved. False: ``nonfinite`` must be "propagate".

    Returns:
        A handle, whose ``remove()`` brings the ordinary step back.

    Raises:
        TypeError: an optimizer of another kind.
        ValueError: an option that needs all gradients, unsharded parameters in several processes, or an optimizer that
            steps in backward already.
        RuntimeError: from ``backward()``, at the second pass of a step; from ``step()``, under a GradScaler.

    >>> from thalweg import ALTO
    >>> model = torch.nn.Linear(4, 1)
    >>> optimizer = ALTO(model.parameters(), lr=0.01, nonfinite="propagate")
    >>> handle = step_in_backward(optimizer)
    >>> model(torch.ones(2, 4)).square().mean().backward()
    >>> model.weight.grad is None
    True
    >>> optimizer.step()
    """
    check_bool("nonfinite_by_layer", nonfinite_by_layer)
    if not (isinstance(optimizer, Lamb) or (isinstance(optimizer, E) and type(optimizer.base) in BY_PARAMETER)):
        kind = type(optimizer).__name__ + (
            f" around {type(optimizer.base).__name__}" if isinstance(optimizer, E) else ""
        )
        names = ", ".join(base.__name__ for base in BY_PARAMETER)
        raise TypeError(f"optimizer must be ALTO, Lamb, or E around one of torch's {names}, got {kind}")
    if AMP_SCALING in vars(optimizer):
        reject("optimizer", type(optimizer).__name__, "one that does not step in backward already")
    return SteppingInBackward(optimizer, nonfinite_by_layer)


class SteppingInBackward:
    """The hooks of :func:`thalweg.step_in_backward`, to be removed."""

    def __init__(self, optimizer: Optimizer, by_layer: bool) -> None:
        for group in optimizer.param_groups:
            _check(optimizer, group, by_layer)
        self._optimizer, self._by_layer = optimizer, by_layer
        self._update = inspect.unwrap(type(optimizer).step)  # without the hooks and the profiling around a step
        self._stepped: set[Tensor] = set()
        self._lock = threading.Lock()  # backward has a thread for each device
        vars(optimizer)[AMP_SCALING] = True
        self._handles: list[Any] = [
            p.register_post_accumulate_grad_hook(functools.partial(self._step_layer, i, j))
            for i, group in enumerate(optimizer.param_groups)
            for j, p in enumerate(group["params"])
            if p.requires_grad
        ]
        self._handles += [
            optimizer.register_step_pre_hook(self._refuse_scaler),
            optimizer.register_step_post_hook(lambda *_: self._stepped.clear()),
        ]

    def remove(self) -> None:
        """Remove the hooks: from now on backward leaves the gradients, and ``step`` takes them. Again: no effect."""
        for handle in self._handles:
            handle.remove()
        if self._handles:
            del vars(self._optimizer)[AMP_SCALING]
        self._handles = []

    def _step_layer(self, i: int, j: int, p: Tensor) -> None:
        """Step parameter j of group i, as the only one that the optimizer has, and free its gradient."""
        with self._lock, torch.no_grad():
            *before, group = self._optimizer.param_groups[: i + 1]
            if group["params"][j] is not p:
                raise RuntimeError(
                    "the optimizer's parameters have been replaced: call step_in_backward again after that"
                )
            if p in self._stepped:
                raise RuntimeError(
                    f"a parameter of shape {tuple(p.shape)} has a second gradient in one step: stepping in backward, "
                    "call optimizer.step() after each backward pass, and accumulate no gradients over several"
                )
            place = sum(len(other["params"]) for other in before) + j
            alone = {**group, "params": [p], "first_index": place}
            _check(self._optimizer, alone, self._by_layer)
            with only(self._optimizer, [alone]):
                self._update(self._optimizer)
            p.grad = None
            self._stepped.add(p)

    def _refuse_scaler(self, optimizer: Optimizer, *_: Any) -> None:
        if "found_inf" in vars(optimizer):
            raise RuntimeError(
                "a GradScaler cannot be used when stepping in backward: the layers have moved by gradients that were "
                "still scaled; autocast to bfloat16, which needs no scaler"
            )


def _check(optimizer: Optimizer, group: dict[str, Any], by_layer: bool) -> None:
    """Raise ``ValueError`` for what a step of one layer alone cannot do."""
    policy = optimizer.nonfinite if isinstance(optimizer, E) else group["nonfinite"]
    if policy != "propagate" and not by_layer:
        allowed = "'propagate' to step in backward, or judged layer by layer with nonfinite_by_layer=True"
        reject("nonfinite", policy, allowed)
    if (bound := group.get("max_grad_norm")) is not None:
        reject("max_grad_norm", bound, "None to step in backward, when the norm of all gradients is not known yet")
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        for p in group["params"]:
            if not is_sharded(p):
                allowed = (
                    "sharded, with fully_shard, to step in backward: else processes step before they average gradients"
                )
                reject("params", tuple(p.shape), allowed)
