"""Which modules a recipe's measurement names: one that measures, one that says what was found."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from thalweg.records.errors import UserError
from thalweg.records.importing import importable_from_here

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

FORMER = ("thalweg.experiments.", "thalweg.bench.")
"""Where measurements were when the committed results were recorded."""


def measuring(name: str) -> ModuleType:
    """The module of a measurement, which :func:`thalweg.studies.measurements.work.run` carries out.

    Args:
        name: of a measurement of the package, such as ``flatness``, or the dotted name of a module of one's own.

    Raises:
        UserError: there is no such module, or it has neither ``run`` nor ``measure``.
    """
    return _module(name, "measurements", ("run(options, folder, say)", "measure(settings)"))


def paging(name: str) -> ModuleType:
    """The module of a measurement that has ``page(folder)``: a :class:`~thalweg.studies.sections.Section` from records.

    Those of the package need no torch.

    Raises:
        UserError: there is no such module, or it has no such function.
    """
    return _module(name, "pages", ("page(folder)",))


def _module(name: str, room: str, functions: Sequence[str]) -> ModuleType:
    own = name.rpartition(".")[2] if name.startswith(FORMER) else name
    own = "memory" if own == "recipe" else own
    if "." in own:
        importable_from_here()
    try:
        module = import_module(own if "." in own else f"thalweg.studies.{room}.{own}")
    except ImportError as error:
        raise UserError(f"cannot import the measurement {name!r} ({error})") from None
    if not any(hasattr(module, function.partition("(")[0]) for function in functions):
        raise UserError(f"the measurement {name!r} needs a function {' or '.join(functions)}")
    return module
