"""Thalweg: optimizers that explore or exploit the valleys of the loss landscape, for large-batch training."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thalweg.adaptor import E
    from thalweg.alto import ALTO
    from thalweg.classes import ESGD, EAdam, EAdamW
    from thalweg.in_backward import step_in_backward
    from thalweg.lamb import Lamb
    from thalweg.param_groups import check_coverage, param_groups
    from thalweg.presets import paper_defaults
    from thalweg.resize import resize_state

__all__ = [
    "ALTO",
    "E",
    "EAdam",
    "EAdamW",
    "ESGD",
    "Lamb",
    "check_coverage",
    "paper_defaults",
    "param_groups",
    "resize_state",
    "step_in_backward",
]
__version__ = "0.1.0"

# Imported at first use (PEP 562), so that `import thalweg.jax` does not import torch.
_HOMES = {
    "ALTO": "thalweg.alto",
    "E": "thalweg.adaptor",
    **dict.fromkeys(("EAdam", "EAdamW", "ESGD"), "thalweg.classes"),
    "Lamb": "thalweg.lamb",
    **dict.fromkeys(("check_coverage", "param_groups"), "thalweg.param_groups"),
    "paper_defaults": "thalweg.presets",
    "resize_state": "thalweg.resize",
    "step_in_backward": "thalweg.in_backward",
}


def __getattr__(name: str) -> object:
    if name.startswith("E__"):  # a class form, by which config files and other processes find it
        from thalweg.adaptor import E
        from thalweg.class_form import base_named

        return E.of(base_named(name))
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """The import of a submodule sets it as an attribute here: not where a public name, ``param_groups``, has it."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
