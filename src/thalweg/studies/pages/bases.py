"""The bases in front of which measurements put E, and what theory says of a setting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thalweg.theory import implicit_regularization, stability_limit

if TYPE_CHECKING:
    from thalweg.studies.pages.settings import Settings

BASES = ("gd", "rmsprop", "adagrad", "momentum", "adam", "adamw", "lamb")
WITHOUT_MOMENTUM = ("gd", "rmsprop", "adagrad")
BETA2 = 0.9
"""The momentum of every base that has one, as an average."""
MOMENTUM = {base: 0.0 if base in WITHOUT_MOMENTUM else BETA2 for base in BASES}


def limit(settings: Settings) -> float:
    """The stability limit of ηλ."""
    return stability_limit(settings["alpha"], settings["beta"], momentum=MOMENTUM[settings["base"]])


def strength(settings: Settings) -> float:
    """S, of the implicit penalty on the gradient norm."""
    return implicit_regularization(settings["alpha"], momentum=MOMENTUM[settings["base"]])
