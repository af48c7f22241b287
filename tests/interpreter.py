"""Triton's interpreter, which half of the time looks up what it puts its own functions in the place of."""

from __future__ import annotations

import inspect
from functools import cache


@cache
def remember_builtins() -> None:
    """Let the interpreter look them up once: it does so at every call of a function, also within another's."""
    import triton.language as tl
    from triton.runtime import interpreter

    @cache
    def builtins(package: object) -> list[tuple[str, object]]:
        return [(name, member) for name, member in inspect.getmembers(package) if tl.core.is_builtin(member)]

    def patch(package: object, builder: object, scope: object) -> None:
        found = builtins(package)
        if found and getattr(package, found[0][0]) is found[0][1]:  # not within another's
            for name, member in found:
                interpreter._patch_attr(package, name, member, builder, scope)

    interpreter._patch_builtin = patch
