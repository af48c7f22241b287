"""What E's α and β1 do, as formulas: stability limits, implicit regularization, relatives. No training, no torch.

:func:`stability_limit` and :func:`implicit_regularization` are the two numbers to begin with; ``docs/what-e-does.md``
of the repository explains them, ``docs/which-alpha.md`` says what follows for a choice. Plain Python, but for
:func:`fastest_damping` (SciPy) and :func:`map_over` (NumPy), which are imported at first use: the optimizers ask this
package whether a setting is stable, and need torch alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from thalweg.theory.inverse import alphas_for_limit
from thalweg.theory.regularization import alpha_for, implicit_regularization
from thalweg.theory.relatives import (
    Setting,
    adams_bashforth,
    look_ahead_offset,
    mars,
    nesterov_in_front_of_momentum,
    nesterov_instead_of_momentum,
    pid,
    quasi_hyperbolic,
)
from thalweg.theory.stability import Crossings, crossings, damping, spectral_radius, stability_limit

if TYPE_CHECKING:
    from thalweg.theory.maps import map_over
    from thalweg.theory.search import Fastest, fastest_damping

__all__ = [
    "Crossings",
    "Fastest",
    "Setting",
    "adams_bashforth",
    "alpha_for",
    "alphas_for_limit",
    "crossings",
    "damping",
    "fastest_damping",
    "implicit_regularization",
    "look_ahead_offset",
    "map_over",
    "mars",
    "nesterov_in_front_of_momentum",
    "nesterov_instead_of_momentum",
    "pid",
    "quasi_hyperbolic",
    "spectral_radius",
    "stability_limit",
]

_LATER = {"Fastest": "search", "fastest_damping": "search", "map_over": "maps"}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
