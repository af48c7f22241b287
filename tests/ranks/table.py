"""The one list of what is tried on several ranks: layouts, optimizers, what is asked of them, and their gradients."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from meshes import LAYOUTS, STACKED, WITH_PLAIN
from side_by_side import LACKING, ON_SOME_RANKS, Lacking, none
from support import WAYS, pairwise

from thalweg import ALTO, ESGD, E, EAdamW, Lamb

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor
    from torch.optim import Optimizer

RANKS = (2, 4)
WITH_E = {"alpha": -0.25, "beta": 0.5}
UNDECAYED = ("row", "bias", "scalar", "frozen")
MATRICES = ("weight", "square")  # Muon of torch fails where a rank has none of the columns


def lamb_groups(params: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """What is decayed and adapted, what is neither, and stacked layers."""
    return [
        {"params": [p for name, p in params.items() if name not in (*UNDECAYED, STACKED)]},
        {"params": [p for name, p in params.items() if name in UNDECAYED], "weight_decay": 0.0, "trust_ratio": False},
        {"params": [p for name, p in params.items() if name == STACKED], "norm_dims": (-2, -1)},
    ]


def groups(params: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """What is decayed and what is not."""
    return [
        {"params": [p for name, p in params.items() if name not in UNDECAYED], "weight_decay": 0.1},
        {"params": [p for name, p in params.items() if name in UNDECAYED], "weight_decay": 0.0},
    ]


def e_around_muon(params: Mapping[str, Tensor], nonfinite: str = "propagate") -> Optimizer:
    """Of matrices, as Muon takes no others."""
    return E(torch.optim.Muon([params[name] for name in MATRICES], lr=0.1, ns_steps=2), **WITH_E, nonfinite=nonfinite)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "ALTO": lambda params, **asked: ALTO(lamb_groups(params), lr=0.1, **WITH_E, **asked),
    "Lamb": lambda params, **asked: Lamb(lamb_groups(params), lr=0.1, **asked),
    "EAdamW": lambda params, **asked: EAdamW(groups(params), lr=0.1, **WITH_E, **asked),
    "ESGD": lambda params, **asked: ESGD(groups(params), lr=0.1, momentum=0.5, **WITH_E, **asked),
    "E(Muon)": e_around_muon,
}
LAMBS = ("ALTO", "Lamb")
ASKED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "skip": {"nonfinite": "skip"},
    "raise": {"nonfinite": "raise"},
    "propagate": {"nonfinite": "propagate"},
    "propagate and clamp": {"nonfinite": "propagate", "trust_clip": (0.5, 2.0)},
    "clip": {"max_grad_norm": 0.5},
    "clip and raise": {"max_grad_norm": 0.5, "nonfinite": "raise"},
    "no trust ratio": {"trust_ratio": False},
    "clip without trust ratio": {"trust_ratio": False, "max_grad_norm": 2.0},
}
GRADIENTS = ("on all ranks", *LACKING, "NaN on one", "NaN on all")


class Case(NamedTuple):
    """Six steps of a layout on a number of ranks."""

    layout: str
    ranks: int
    optimizer: str
    asked: str
    gradients: str
    way: str

    def __str__(self) -> str:
        return ", ".join(map(str, self))

    @property
    def options(self) -> dict[str, Any]:
        """All that the optimizer is made with besides its parameters."""
        return {**ASKED[self.asked], **({} if self.optimizer == "E(Muon)" else WAYS[self.way])}

    @property
    def lacking(self) -> Lacking:
        return LACKING.get(self.gradients, none)

    @property
    def nonfinite(self) -> str:
        return self.options.get("nonfinite", "skip" if self.optimizer in LAMBS else "propagate")

    @property
    def is_exact(self) -> bool:
        """Whether nothing is summed: kernels of our own then give every number the same bits wherever it stands.

        Those of torch do not, at the ends of their vectors.
        """
        return self.way == "fused" and (self.optimizer == "EAdamW" or self.asked == "no trust ratio")

    @property
    def raises(self) -> bool:
        return self.gradients.startswith("NaN") and self.nonfinite == "raise"

    @property
    def skips(self) -> bool:
        return self.gradients.startswith("NaN") and self.nonfinite == "skip"

    @property
    def fits(self) -> bool:
        """Whether there is such a case.

        Clipping and trust ratios are ALTO's and Lamb's. Torch has no fused SGD of DTensors, and no multi-tensor steps
        of these and plain tensors together. Where E asks nothing of other ranks, a rank steps what it has a
        gradient of, as :mod:`test_missing` has it.
        """
        if self.optimizer not in LAMBS and not ASKED[self.asked].keys() <= {"nonfinite"}:
            return False
        if self.way in {"E(Muon)": ("foreach", "fused"), "ESGD": ("fused",)}.get(self.optimizer, ()):
            return False
        if self.way == "foreach" and self.optimizer in ("EAdamW", "ESGD") and self.layout in WITH_PLAIN:
            return False
        on_some = self.gradients in ON_SOME_RANKS
        if self.layout == "DDP" and (on_some or self.gradients == "NaN on one"):
            return False
        return not (on_some and self.optimizer in ("EAdamW", "ESGD") and self.nonfinite == "propagate")


PLACES = tuple(itertools.product(LAYOUTS, RANKS))
CASES = [
    Case(*place, *rest)
    for place, *rest in pairwise(
        (place, *rest)
        for place, *rest in itertools.product(PLACES, OPTIMIZERS, ASKED, GRADIENTS, WAYS)
        if Case(*place, *rest).fits
    )
]
