"""The optimizers that are measured, ours and others', and how each is built.

All have the same learning rate and weight decay, for all parameters; the trust ratio of ours is taken for each expert
of a stacked tensor. Everything else is at the optimizer's own defaults: a step is timed as its users would run it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

import thalweg
from thalweg import sharding
from thalweg.arguments import did_you_mean
from thalweg.bench.shapes import Model
from thalweg.records.errors import UserError

LR = 1e-4
WEIGHT_DECAY = 0.01
VOCABULARY = 10_000  # rows, from which on a matrix is taken for a vocabulary's
REFUSALS = (ValueError, ImportError, NotImplementedError, torch.OutOfMemoryError)


class LeftOutError(Exception):
    """A candidate that does not run here; the text says why."""


@dataclass(frozen=True)
class Weights:
    """The parameters that one candidate owns."""

    plain: list[Parameter]
    stacked: list[Parameter]

    @classmethod
    def of(cls, model: Model, device: torch.device, dtype: torch.dtype) -> Weights:
        """Random ones, the same at each call."""
        generator = torch.Generator(device).manual_seed(0)

        def parameter(shape: tuple[int, ...]) -> Parameter:
            return Parameter(torch.randn(shape, generator=generator, device=device, dtype=dtype).mul_(0.02))

        return cls([parameter(shape) for shape in model.plain], [parameter(shape) for shape in model.stacked])

    def all(self) -> list[Parameter]:
        """In the order of ``Model.shapes``."""
        return self.plain + self.stacked


Build: TypeAlias = Callable[[Weights], Any]


@dataclass(frozen=True)
class Candidate:
    """One optimizer, and the module it comes from if that is another package's.

    ``traffic`` is what a step has to read and write in float32, in bytes per parameter, where we know it; ``patience``
    is whether its first step takes minutes, or each a hundred times as long as the others', so that it takes part only
    where it is named; ``around`` is whether it is one of ours around another's, which may fail.
    """

    name: str
    says: str
    build: Build
    ours: bool = False
    traffic: int | None = None
    module: str | None = None
    patience: bool = False
    around: bool = False

    @property
    def must_run(self) -> bool:
        """Whether a failure that is no refusal is a fault of ours."""
        return self.ours and not self.around

    def load(self) -> None:
        """Import its module.

        Raises:
            LeftOutError: it is not installed, or does not import here.
        """
        if self.module is not None:
            self.attempt(partial(import_module, self.module))

    def start(self, weights: Weights) -> Any:
        """The optimizer, before its first step.

        Raises:
            LeftOutError: it refuses.
        """
        return self.attempt(lambda: self.build(weights))

    def attempt(self, act: Callable[[], Any]) -> Any:
        """``act()``, with a refusal as :class:`LeftOutError`; of another's optimizer, any failure is one."""
        try:
            return act()
        except Exception as error:
            if self.must_run and not isinstance(error, REFUSALS):
                raise
            text = " ".join(str(error).split()) or "no message"
            raise LeftOutError(f"{type(error).__name__}: {text[:300]}") from error


def _adamw(**options: Any) -> Build:
    return lambda weights: torch.optim.AdamW(weights.all(), lr=LR, weight_decay=WEIGHT_DECAY, **options)


def _ours(cls: type[thalweg.Lamb] = thalweg.ALTO, **options: Any) -> Build:
    def build(weights: Weights) -> Optimizer:
        groups: list[dict[str, Any]] = [{"params": weights.plain}]
        if weights.stacked:
            groups.append({"params": weights.stacked, "norm_dims": (-2, -1)})
        return cls(groups, lr=LR, weight_decay=WEIGHT_DECAY, **options)

    return build


def _by_inductor(weights: Weights) -> Any:
    optimizer: Any = _ours()(weights)
    optimizer.step = torch.compile(optimizer.step)
    return optimizer


def _e_adamw(**options: Any) -> Build:
    return lambda weights: thalweg.EAdamW(weights.all(), lr=LR, weight_decay=WEIGHT_DECAY, **options)


def _theirs(name: str, says: str, module: str, attribute: str) -> Candidate:
    """An optimizer of another package."""

    def build(weights: Weights) -> Any:
        return getattr(import_module(module), attribute)(weights.all(), lr=LR, weight_decay=WEIGHT_DECAY)

    return Candidate(name, says, build, module=module)


def _authors_e_adamw(weights: Weights) -> Any:
    return import_module("E").E(_adamw()(weights))


class _Several:
    """Optimizers of parts of a model, as one."""

    def __init__(self, optimizers: list[Optimizer]) -> None:
        self.optimizers = optimizers

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()


def _muon(of_matrices: Callable[[Optimizer], Optimizer], others: type[Optimizer]) -> Build:
    """Torch's Muon, which takes matrices alone; another takes those of a vocabulary, as usual, and all the rest."""

    def build(weights: Weights) -> _Several:
        hidden = [p for p in weights.plain if p.ndim == 2 and len(p) < VOCABULARY]
        rest = [p for p in weights.plain if p.ndim != 2 or len(p) >= VOCABULARY] + weights.stacked
        muon = of_matrices(torch.optim.Muon(hidden, lr=LR, weight_decay=WEIGHT_DECAY))
        return _Several([muon, others(rest, lr=LR, weight_decay=WEIGHT_DECAY)])  # type: ignore[call-arg]

    return build


CANDIDATES = {
    candidate.name: candidate
    for candidate in (
        Candidate("adamw-fused", "torch AdamW, fused", _adamw(fused=True), traffic=28),
        Candidate("adamw-foreach", "torch AdamW, foreach", _adamw(foreach=True), traffic=28),
        Candidate("adamw-single", "torch AdamW, one tensor at a time", _adamw(foreach=False), traffic=28),
        Candidate("alto", "ALTO", _ours(), ours=True, traffic=48),
        Candidate("alto-foreach", "ALTO, foreach", _ours(foreach=True), ours=True, traffic=48),
        Candidate("alto-single", "ALTO, foreach=False", _ours(foreach=False), ours=True, traffic=48),
        Candidate("alto-fused", "ALTO, fused", _ours(fused=True), ours=True, traffic=48),
        Candidate("alto-inductor", "ALTO, torch.compile", _by_inductor, ours=True, traffic=48, patience=True),
        Candidate("alto-bf16", "ALTO, fused, bfloat16 state", _ours(fused=True, state_dtype="bfloat16"), ours=True),
        Candidate("alto-8bit", "ALTO, fused, 8-bit state", _ours(fused=True, state_dtype="8bit"), ours=True),
        Candidate("lamb", "Lamb", _ours(thalweg.Lamb), ours=True),
        Candidate("lamb-fused", "Lamb, fused", _ours(thalweg.Lamb, fused=True), ours=True),
        Candidate("e-adamw", "EAdamW", _e_adamw(), ours=True, traffic=36),
        Candidate("e-adamw-foreach", "EAdamW, foreach", _e_adamw(foreach=True), ours=True, traffic=36),
        Candidate("e-adamw-fused", "EAdamW, fused", _e_adamw(fused=True), ours=True, traffic=36),
        Candidate("muon", "torch Muon, the rest AdamW", _muon(lambda muon: muon, torch.optim.AdamW), patience=True),
        Candidate(
            "e-muon",
            "E(Muon), the rest EAdamW",
            _muon(thalweg.E, thalweg.EAdamW),
            ours=True,
            patience=True,
            around=True,
        ),
        _theirs("authors-alto", "the authors' ALTO", "ALTO", "ALTO"),
        Candidate("authors-e-adamw", "the authors' E around AdamW", _authors_e_adamw, module="E"),
        _theirs("pytorch-optimizer-lamb", "pytorch_optimizer Lamb", "pytorch_optimizer", "Lamb"),
        _theirs("torch-optimizer-lamb", "torch_optimizer Lamb", "torch_optimizer", "Lamb"),
        _theirs("heavyball-adamw", "HeavyBall AdamW", "heavyball", "AdamW"),
        _theirs("apex-lamb", "apex FusedLAMB", "apex.optimizers", "FusedLAMB"),
        _theirs("bitsandbytes-lamb8bit", "bitsandbytes LAMB8bit", "bitsandbytes.optim", "LAMB8bit"),
    )
}


def candidate(name: str, argument: str = "--optimizers") -> Candidate:
    """The candidate of this name.

    Raises:
        UserError: no such name.
    """
    if name not in CANDIDATES:
        near = did_you_mean(name, CANDIDATES)
        raise UserError(f"argument {argument}: unknown optimizer {name!r}: choose from {', '.join(CANDIDATES)}{near}")
    return CANDIDATES[name]


def fresh_gradients(weights: Weights, gradients: list[Tensor], source: list[Tensor]) -> None:
    """Rewrite the gradients, as a backward pass does: some optimizers change ``p.grad``, some remove it.

    It also leaves every candidate's step the same caches to start from.
    """
    torch._foreach_copy_([sharding.local(g) for g in gradients], [sharding.local(g) for g in source])
    for p, g in zip(weights.all(), gradients, strict=True):
        p.grad = g


def make_gradients(weights: Weights) -> list[Tensor]:
    """Random gradients of global norm 1 or so, which no clipping scales to nothing, sharded as the parameters are."""
    parameters = [p.detach() for p in weights.all()]
    scale = sum(p.numel() for p in parameters) ** -0.5
    return [sharding.sharded_like(torch.randn_like(sharding.local(p)).mul_(scale), p) for p in parameters]
