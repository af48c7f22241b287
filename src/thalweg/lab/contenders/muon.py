"""Muon on the matrices it is for, AdamW on the rest, behind one optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

import thalweg

if TYPE_CHECKING:
    from thalweg.lab.contenders.space import Settings


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The matrices that Muon is for: all two-dimensional parameters but embeddings and the output layer."""
    embeddings = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    heads = [m.weight for m in model.modules() if isinstance(m, nn.Linear)][-1:]
    excluded = {id(p) for p in (*embeddings, *heads)}
    return [p for p in model.parameters() if p.ndim == 2 and id(p) not in excluded]


def needs_matrices(model: nn.Module) -> str | None:
    """Why Muon does not apply to a model, or None."""
    return None if hidden_matrices(model) else "the model has no hidden matrix"


class MuonAdamW(Optimizer):
    """Torch's Muon on hidden matrices and AdamW on the rest, behind one optimizer that holds groups and state."""

    def __init__(self, model: nn.Module, s: Settings) -> None:
        matrices = hidden_matrices(model)
        chosen = {id(p) for p in matrices}
        groups = thalweg.param_groups(model, s["weight_decay"])
        rest = [
            {"params": [p for p in g["params"] if id(p) not in chosen], "weight_decay": g["weight_decay"]}
            for g in groups
        ]
        self.muon = torch.optim.Muon(
            matrices,
            lr=s["lr"],
            weight_decay=s["weight_decay"],
            momentum=s["momentum"],
            adjust_lr_fn="match_rms_adamw",
        )
        betas = s["momentum"], s["beta2"]
        self.adamw = torch.optim.AdamW([g for g in rest if g["params"]], lr=s["lr"], betas=betas)
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of Muon on the first group and of AdamW on the others."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.muon.param_groups, self.adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        for part in (self.muon, self.adamw):
            part.state = self.state
            part.step()  # type: ignore[no-untyped-call]
        return loss
