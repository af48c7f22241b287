"""The class of an optimizer with E around it, which frameworks build by name and arguments.

It has a constructor with the arguments of both, typed, and a name in this package under which it is found again: by
config files, pickle and other processes.
"""

from __future__ import annotations

import copyreg
import functools
import inspect
import pkgutil
from abc import ABCMeta
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from thalweg.optim.exploration import ALPHA, BETA
from thalweg.optim.plain import as_scalar

_PACKAGE = __name__.partition(".")[0]
_NAMED = (Adam, AdamW, SGD)  # whose class forms are public names of the package
_MARK = "E__"


class ClassFormType(ABCMeta):
    """The type of these classes, by which pickle finds them: the base is pickled, and its class form made of it."""


def _reduce(cls: Any) -> Any:
    made = "_base_class" in vars(cls)  # not so in a subclass, which is found by its name as any class is
    return (cls.__base__.of, (cls._base_class,)) if made else cls.__qualname__


copyreg.pickle(ClassFormType, _reduce)


@functools.cache
def class_form(adaptor: Any, base: Any) -> Any:
    """The class form of ``adaptor``, which is E, around the optimizer class ``base``: one class for each."""
    of_base, of_adaptor = _parameters(base), _parameters(adaptor)
    del of_adaptor["optimizer"]
    clash = {"alpha", "beta"} & set(of_base)
    names = {"alpha": ALPHA, "beta": BETA} if clash else {}
    own = {name: names.get(name, name) for name in of_adaptor if names.get(name, name) not in of_base}
    added = [of_adaptor[n].replace(name=own[n], kind=inspect.Parameter.KEYWORD_ONLY) for n in own]

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        given = {name: kwargs.pop(key) for name, key in own.items() if key in kwargs}
        adaptor.__init__(self, base(*map(_plain, args), **{key: _plain(x) for key, x in kwargs.items()}), **given)

    parameters = sorted([*of_base.values(), *added], key=lambda p: p.kind)
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    __init__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [itself, *parameters], return_annotation=None
    )
    __init__.__annotations__ = {p.name: p.annotation for p in parameters if p.annotation is not p.empty}
    __init__.__annotations__["return"] = type(None)
    name = f"E{base.__name__}"
    path = f"{base.__module__}.{base.__qualname__}".replace(".", "__")
    return ClassFormType(
        name,
        (adaptor,),
        {
            "__doc__": f"E in front of {base.__name__}: its arguments, and {', '.join(own.values())} of E.",
            "__module__": _PACKAGE,
            "__qualname__": name if base in _NAMED else _MARK + path,
            "__init__": __init__,
            "_base_class": base,
        },
    )


def base_named(name: str) -> type[Optimizer]:
    """The base of the class form of that name, such as ``E__torch__optim__RAdam``.

    Raises:
        AttributeError: there is none.
    """
    path = name.removeprefix(_MARK).replace("__", ".")
    try:
        found = pkgutil.resolve_name(path) if name.startswith(_MARK) else None
    except (AttributeError, ImportError, ValueError):
        found = None
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        raise AttributeError(f"module {_PACKAGE!r} has no attribute {name!r}")
    return found


def _plain(value: Any) -> Any:
    """A sequence of OmegaConf's, say, as a tuple, and numbers of NumPy as Python's, which torch's own checks ask for.

    Optimizers keep their arguments, and save them.
    """
    if isinstance(value, Tensor | str | bytes):
        return value
    if isinstance(value, Sequence):
        return (list if isinstance(value, list) else tuple)(map(_plain, value))
    return as_scalar(value)


def _parameters(cls: Any) -> dict[str, inspect.Parameter]:
    """The arguments of a class, with what their annotations mean; where one means nothing here, strings are Any."""
    try:
        return dict(inspect.signature(cls, eval_str=True).parameters)
    except Exception:  # whatever the evaluation of a stranger's annotation raises
        found = inspect.signature(cls).parameters
    return {name: p.replace(annotation=Any) if isinstance(p.annotation, str) else p for name, p in found.items()}
