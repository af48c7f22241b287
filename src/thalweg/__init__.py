"""Thalweg: optimizers that explore or exploit the valleys of the loss landscape, for large-batch training."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thalweg.optim.adaptor import E
    from thalweg.optim.alto import ALTO
    from thalweg.optim.classes import ESGD, EAdam, EAdamW
    from thalweg.optim.groups import check_coverage, param_groups
    from thalweg.optim.in_backward import step_in_backward
    from thalweg.optim.lamb import Lamb
    from thalweg.optim.other_lambs import lamb_defaults, lamb_schedule
    from thalweg.optim.other_states import lamb_state
    from thalweg.optim.presets import paper_defaults
    from thalweg.optim.resize import resize_state

__all__ = [
    "ALTO",
    "E",
    "EAdam",
    "EAdamW",
    "ESGD",
    "Lamb",
    "check_coverage",
    "lamb_defaults",
    "lamb_schedule",
    "lamb_state",
    "paper_defaults",
    "param_groups",
    "resize_state",
    "step_in_backward",
]
__version__ = "0.1.0"

# Imported at first use (PEP 562), so that `import thalweg.jax` does not import torch.
_HOMES = {
    "ALTO": "thalweg.optim.alto",
    "E": "thalweg.optim.adaptor",
    **dict.fromkeys(("EAdam", "EAdamW", "ESGD"), "thalweg.optim.classes"),
    "Lamb": "thalweg.optim.lamb",
    "lamb_state": "thalweg.optim.other_states",
    **dict.fromkeys(("check_coverage", "param_groups"), "thalweg.optim.groups"),
    **dict.fromkeys(("lamb_defaults", "lamb_schedule"), "thalweg.optim.other_lambs"),
    "paper_defaults": "thalweg.optim.presets",
    "resize_state": "thalweg.optim.resize",
    "step_in_backward": "thalweg.optim.in_backward",
}


def __getattr__(name: str) -> object:
    if name.startswith("E__"):  # a class form, by which config files and other processes find it
        from thalweg.optim.adaptor import E
        from thalweg.optim.class_form import base_named

        return E.of(base_named(name))
    if name not in _HOMES:
        from thalweg.arguments import did_you_mean

        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{did_you_mean(name, __all__)}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
