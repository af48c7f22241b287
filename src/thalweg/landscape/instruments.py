"""Instruments to look at while training.

In one's own loop, between ``backward()`` and ``step()``::

    instruments = Instruments(optimizer, loss=sample, every=100)     # sample: a FixedSample, for the sharpness
    for step, (x, y) in enumerate(loader):
        for part_x, part_y in zip(x.chunk(4), y.chunk(4)):           # only for the gradient noise scale
            share = len(part_x) / len(x)
            (loss(model(part_x), part_y) * share).backward()
            instruments.micro_batch(len(part_x), share)
        measured = instruments.measure()                             # a dict of floats, for any record
        optimizer.step()
        optimizer.zero_grad()
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from thalweg import equations as eq
from thalweg.arguments import check_integer, check_positive, reject
from thalweg.kernels import compute_dtype
from thalweg.kernels.norms import global_norm
from thalweg.kernels.rounding import wide
from thalweg.landscape.batches import noise_of
from thalweg.landscape.derivatives import check_whole
from thalweg.landscape.eigen import ROUGH, hessian_eigenpairs
from thalweg.landscape.preconditioned import (
    exploration,
    has_diagonal,
    is_adapted,
    preconditioned_sharpness,
    trust_ratio,
)
from thalweg.landscape.samples import Loss
from thalweg.optim.adaptor import E
from thalweg.optim.alto import ALTO
from thalweg.optim.exploration import EMA
from thalweg.optim.lamb import Lamb
from thalweg.torch_private import has_step_hooks


class Instruments:
    """What E and LAMB do in the coming step, how noisy its gradient is, and how sharp the loss.

    Args:
        optimizer: any; E and ALTO have ‖a‖/‖g‖ and the cosine, Lamb and ALTO trust ratios.
        loss: a closure or a :class:`~thalweg.landscape.FixedSample` whose sharpness is measured; None: it is not.
        every: steps between two measurements of sharpness.
        names: of parameters, for their trust ratios: ``dict(model.named_parameters())``; else they are numbered.

    Raises:
        ValueError: an argument outside its range, or sharded parameters.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        loss: Loss | None = None,
        every: int = 100,
        names: Mapping[str, Tensor] | None = None,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            reject("optimizer", type(optimizer).__name__, "a torch.optim.Optimizer")
        check_whole(p for group in optimizer.param_groups for p in group["params"])
        self.optimizer, self.loss, self.every = optimizer, loss, check_integer("every", every, 1)
        self._names = {p: name for name, p in (names or {}).items()}
        self._calls = 0
        self._micro_batches = _MicroBatches(optimizer)

    def micro_batch(self, examples: int, share: float) -> None:
        """Note the gradient that a micro-batch has just added to ``p.grad``.

        Micro-batches of one step belong together: a new step begins when the optimizer has stepped, the gradients were
        set to None, or :meth:`measure` was called. Gradients zeroed in place without a step
        (``zero_grad(set_to_none=False)``) look like ones that have changed: call :meth:`measure` before.

        Args:
            examples: in it.
            share: what its mean loss was multiplied by, such as its share of the whole batch; above 0.
        """
        examples = check_integer("examples", examples, 1)
        check_positive("share", share)
        self._micro_batches.note(self._with_gradients(), examples, share)

    def measure(self) -> dict[str, float]:
        """What there is to see before the coming step.

        Returns:
            Of E and ALTO, ``a_over_g``, ‖a‖/‖g‖ with a = (1-β1)(g - b), and ``cosine_a_g``, over all parameters in
            which α is not 0; of Lamb and ALTO, ``trust_ratio/NAME`` of each adapted layer, that of the coming step;
            after at least two micro-batches, ``gradient_noise_scale`` in examples (infinite if noise is all there is),
            ``gradient_noise_trace`` and ``gradient_squared_norm``, of the gradient before any clipping (average the
            last two over steps for a quotient that is less noisy, as McCandlish et al. do); every ``every`` calls what
            :func:`~thalweg.landscape.instruments.sharpness` returns. Always ``gradient_norm``.
        """
        params = self._with_gradients()
        found = {"gradient_norm": math.sqrt(sum(float(_gradient(p).double().square().sum()) for p in params))}
        with torch.no_grad():
            found.update(self._exploration())
            found.update(self._trust_ratios())
        found.update(self._micro_batches.noise())
        if self.loss is not None and self._calls % self.every == 0:
            found.update(sharpness(self.loss, self.optimizer))
        self._calls += 1
        return found

    def left_out(self) -> dict[str, str]:
        """What :meth:`measure` cannot have of this optimizer, and why.

        Whether the noise and the sharpness are there is up to :meth:`micro_batch` and to the loss.
        """
        inner = self.optimizer.base if isinstance(self.optimizer, E) else self.optimizer
        name, groups = type(inner).__name__, self.optimizer.param_groups
        found = {}
        if not isinstance(self.optimizer, E | ALTO):
            found["a_over_g, cosine_a_g"] = f"{name} has no E"
        elif not any(exploration(self.optimizer, group)[0] for group in groups):
            found["a_over_g, cosine_a_g"] = "α is 0"
        if not isinstance(self.optimizer, Lamb):
            found["trust_ratio"] = f"{name} has none"
        elif not any(map(is_adapted, groups)):
            found["trust_ratio"] = "no group is adapted"
        if not has_diagonal(self.optimizer):
            found["eta_lambda, share_of_limit"] = f"the diagonal of {name} is not known"
        elif any(group.get("maximize") for group in groups):
            found["eta_lambda, share_of_limit"] = f"{name} ascends"
        return found

    def _with_gradients(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]

    def _exploration(self) -> dict[str, float]:
        squares = torch.zeros(3, dtype=torch.float64)  # ‖a‖², ‖g‖², a·g
        explored = False
        for group in self.optimizer.param_groups:
            alpha, beta = exploration(self.optimizer, group)
            for p in group["params"]:
                if p.grad is None or alpha == 0.0:
                    continue
                explored = True
                g = _gradient(p).double()
                b = self.optimizer.state.get(p, {}).get(EMA)
                a = (1.0 - beta) * (g if b is None else g - wide(b, torch.float64))
                squares += torch.tensor([float((x * y).sum()) for x, y in ((a, a), (g, g), (a, g))])
        if not explored or not squares[1] > 0.0:
            return {}
        a_a, g_g, a_g = squares.tolist()
        return {"a_over_g": math.sqrt(a_a / g_g), "cosine_a_g": a_g / math.sqrt(a_a * g_g) if a_a > 0.0 else 0.0}

    def _trust_ratios(self) -> dict[str, float]:
        if not isinstance(self.optimizer, Lamb):
            return {}
        gradients = [p.grad for p in self._with_gradients() if p.grad is not None]
        found, number = {}, -1
        for group in self.optimizer.param_groups:
            scale = 1.0
            if group["max_grad_norm"] is not None and gradients:
                scale = float(eq.clip_coefficient(global_norm(gradients), group["max_grad_norm"]))
            for p in group["params"]:
                number += 1
                if is_adapted(group) and p.grad is not None:
                    sign = -1.0 if group["maximize"] else 1.0
                    ratio = self._trust_ratio(p, sign * scale * _gradient(p), group)
                    name = self._names.get(p, str(number))
                    if ratio.numel() == 1:
                        found[f"trust_ratio/{name}"] = ratio.item()
                    else:
                        found.update({f"trust_ratio/{name}/{k}": x for k, x in enumerate(ratio.reshape(-1).tolist())})
        return found

    def _trust_ratio(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> Tensor:
        """By the equations of the step, which is not taken."""
        state = self.optimizer.state.get(p, {})
        alpha, beta = exploration(self.optimizer, group)
        zero = torch.zeros_like(g)
        b, m, v = (wide(state[k], g.dtype) if k in state else zero for k in (EMA, "exp_avg", "exp_avg_sq"))
        h = eq.explore(g, b, alpha=alpha, beta=beta)[0] if alpha != 0.0 else g
        beta2, beta3 = group["betas"]
        m, v = eq.moments(h, m, v, beta2=beta2, beta3=beta3)
        return trust_ratio(p, m, v, float(state.get("step", 0.0)) + 1.0, group)


class _MicroBatches:
    """The gradients of the micro-batches of the coming step."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._parts: list[tuple[int, float]] = []
        self._accumulated: dict[Tensor, Tensor] = {}
        self._gradients: dict[Tensor, weakref.ref[Tensor]] = {}
        self._stepped = False
        if has_step_hooks(optimizer):
            here = weakref.ref(self)  # the optimizer may live longer

            def after_step(*_: Any) -> None:
                if (noted := here()) is not None:
                    noted._stepped = True

            weakref.finalize(self, optimizer.register_step_post_hook(after_step).remove)

    def note(self, params: Sequence[Tensor], examples: int, share: float) -> None:
        """Note what has been added to the gradients."""
        self._drop_if_over()
        square = 0.0
        for p in params:
            g = _gradient(p)
            before = self._accumulated.get(p)
            square += float((g if before is None else g - before).double().square().sum())
            self._accumulated[p] = g.clone()
            assert p.grad is not None
            self._gradients[p] = weakref.ref(p.grad)
        self._parts.append((examples, square / share**2))

    def noise(self) -> dict[str, float]:
        """The noise of the step that was noted, which is then forgotten; nothing if it had less than two parts."""
        self._drop_if_over()
        parts, whole = self._parts, self._accumulated  # not p.grad, which may have been clipped since
        self._drop()
        if len(parts) < 2:
            return {}
        sizes, squares = zip(*parts, strict=True)
        found = noise_of(sizes, squares, sum(float(g.double().square().sum()) for g in whole.values()))
        return {
            "gradient_noise_scale": found.scale,
            "gradient_noise_trace": found.trace,
            "gradient_squared_norm": found.squared_norm,
        }

    def _drop_if_over(self) -> None:
        """Forget micro-batches of a step that has been made or given up."""
        if self._stepped or any(_is_replaced(p, gradient()) for p, gradient in self._gradients.items()):
            self._drop()

    def _drop(self) -> None:
        self._parts, self._accumulated, self._gradients, self._stepped = [], {}, {}, False


def _is_replaced(p: Tensor, noted: Tensor | None) -> bool:
    """Whether the gradient is not the tensor that was noted; with a graph of its own, each backward makes a new one."""
    return p.grad is not noted and (p.grad is None or not p.grad.requires_grad)


def sharpness(loss: Loss, optimizer: Optimizer) -> dict[str, float]:
    """λ_max of a loss, and as a live optimizer sees it, each in some ten products with the Hessian.

    Args:
        loss: a closure or a :class:`~thalweg.landscape.FixedSample`.
        optimizer: any.

    Returns:
        ``sharpness``, and of a known optimizer that has made a step ``eta_lambda`` and, if it has one,
        ``share_of_limit``, as :func:`~thalweg.landscape.preconditioned_sharpness` has them.

    Raises:
        ValueError: the loss is no finite scalar of the parameters.
        RuntimeError: no convergence.
    """
    params = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    plain = hessian_eigenpairs(loss, params, tolerance=ROUGH, errors=False)
    found = {"sharpness": plain.values.item()}
    try:
        own = preconditioned_sharpness(loss, optimizer, tolerance=ROUGH, errors=False)
    except ValueError as error:  # before the first step, or of an optimizer whose diagonal is not known
        if not str(error).startswith("optimizer must be"):
            raise
    else:
        found["eta_lambda"] = own.eta_lambda.item()
        if own.limit is not None:
            found["share_of_limit"] = own.share
    return found


def _gradient(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad.detach().to(compute_dtype(p.dtype))
