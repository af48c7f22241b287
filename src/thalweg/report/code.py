"""Settings as code to copy: as Python for the optimizers with a name, as a command for any."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from thalweg.records.regimen import REGIMEN

if TYPE_CHECKING:
    from thalweg.records.results import Cell
    from thalweg.report.summary import RankedTable

DECAYED = "thalweg.param_groups(model, {weight_decay})"
BETAS = "betas=({momentum}, {beta2})"
ADAMW = f"torch.optim.AdamW({DECAYED}, lr={{lr}}, {BETAS})"
SGD = f"torch.optim.SGD({DECAYED}, lr={{lr}}, momentum={{momentum}}, nesterov=True)"
MUON = "thalweg.lab.contenders.muon.MuonAdamW(model, {settings})"
ORSCALE = "thalweg.lab.contenders.orscale.OrScaleAdamW(model, {settings})"
_UNDECAYED = f"thalweg.lab.contenders.hyperball.without_decay({DECAYED}, model)"
ADAMH = f"thalweg.lab.contenders.hyperball.Hyperball(torch.optim.AdamW({_UNDECAYED}, lr={{lr}}, {BETAS}), model)"
ALTO = f"thalweg.ALTO({DECAYED}, lr={{lr}}, {BETAS}, alpha={{alpha}}, beta={{beta}}, eps=1e-6"
E = "thalweg.E({base}, alpha={{alpha}}, beta={{beta}})"
PYTHON = {
    "sgd": SGD,
    "adam": f"torch.optim.Adam({DECAYED}, lr={{lr}}, {BETAS})",
    "adamw": ADAMW,
    "nadamw": f"torch.optim.NAdam({DECAYED}, lr={{lr}}, {BETAS}, decoupled_weight_decay=True, momentum_decay=1e6)",
    "adabelief": f"pytorch_optimizer.AdaBelief({DECAYED}, lr={{lr}}, {BETAS})",
    "soap": f"pytorch_optimizer.SOAP({DECAYED}, lr={{lr}}, {BETAS})",
    "schedule-free": f"pytorch_optimizer.ScheduleFreeAdamW({DECAYED}, lr={{lr}}, {BETAS})",
    "mars": f"pytorch_optimizer.MARS({DECAYED}, lr={{lr}}, {BETAS}, gamma={{gamma}}, optimize_1d=True)",
    "ademamix": f"pytorch_optimizer.AdEMAMix({DECAYED}, lr={{lr}}, betas=({{momentum}}, {{beta2}}, {{beta}}), "
    "alpha={alpha}, weight_decouple=True)",
    "lamb": f"thalweg.Lamb({DECAYED}, lr={{lr}}, {BETAS}, eps=1e-6)",
    "lamb-uncorrected": f"pytorch_optimizer.Lamb({DECAYED}, lr={{lr}}, {BETAS}, adam_debias=True, "
    "weight_decouple=False)",
    "alto": f"{ALTO})",
    "alto-bf16": f"{ALTO}, state_dtype='bfloat16')",
    "alto-8bit": f"{ALTO}, state_dtype='8bit')",
    "nesterov-lamb": f"thalweg.ALTO({DECAYED}, lr={{lr}}, {BETAS}, alpha={{momentum}}, beta=0.0, eps=1e-6)",
    "muon": MUON,
    "orscale": ORSCALE,
    "adamh": ADAMH,
    "ema-nesterov": f"thalweg.lab.contenders.ema_nesterov.EMANesterov({ADAMW}, alpha={{alpha}}, beta={{beta}})",
    "e-adamw": E.format(base=ADAMW),
    "e-sgd": E.format(base=SGD),
    "e-muon": E.format(base=MUON),
    "e-orscale": E.format(base=ORSCALE),
    "e-adamh": E.format(base=ADAMH),
}
"""How :mod:`thalweg.lab.contenders.builtin`, which the report does not import, builds each contender."""


def python(optimizer: str, settings: dict[str, float]) -> str | None:
    """The optimizer of ``model``, in full precision; None for one that is not known by a name, or a foreign setting."""
    try:
        line = PYTHON[optimizer].format(**{name: repr(value) for name, value in settings.items()}, settings=settings)
    except KeyError:
        return None
    modules = [name for name in ("thalweg", "torch", "pytorch_optimizer") if f"{name}." in line]
    lab = "thalweg.lab.contenders."
    deeper = [lab + part for part in ("muon", "orscale", "hyperball", "ema_nesterov") if lab + part in line]
    return "".join(f"import {name}\n" for name in (*modules, *deeper)) + f"optimizer = {line}"


def command(table: RankedTable, cell: Cell, settings: dict[str, float]) -> str:
    """The command that trains with these settings as the comparison did."""
    words = ["thalweg", "train", table.task, "--optimizer", cell.optimizer, "--batch-size", str(table.batch_size)]
    words += ["--steps", str(table.steps)]
    for name in REGIMEN:
        if cell.regimen.get(name) is not None:
            words += [f"--{name.replace('_', '-')}", str(cell.regimen[name])]
    for name, value in settings.items():
        words += ["--set", f"{name}={value!r}"]
    return shlex.join(words)
