"""Defaults of a command's options from a YAML file, each value as it would be typed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
import yaml

from thalweg.arguments import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence


YES, NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


class _AsTyped(yaml.SafeLoader):  # type: ignore[misc]
    """Every value a text, which the option itself reads: in YAML 1.1 ``no`` is false, ``1e-3`` a text, ``1:30`` 90."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (the name that PyYAML asks for)
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Of two equal keys YAML has the last win, silently; here they are an error."""
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for key in keys:
                if keys.count(key) > 1:
                    raise yaml.constructor.ConstructorError(None, None, f"{key} is given twice", node.start_mark)
        found: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return found


def read(path: Path, params: Sequence[Any]) -> dict[str, Any]:
    """The values in the file, by the names of Typer's parameters.

    Raises:
        typer.BadParameter: no such file, no YAML, an option that is unknown or given twice, a value that none can have.
    """
    try:
        with path.open(encoding="utf-8") as file:
            found = yaml.load(file, _AsTyped)  # a safe loader
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise typer.BadParameter(f"cannot read {path} ({' '.join(str(error).split())[:200]})") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise typer.BadParameter(f"{path}: not options with values")
    known = {name: param for param in params for name in (param.name, *map(_plain, param.opts)) if name != "config"}
    if unknown := [str(key) for key in found if _plain(str(key)) not in known]:
        near = "".join(did_you_mean(key, known) for key in unknown)
        raise typer.BadParameter(f"{path}: unknown options {', '.join(unknown)}{near}")
    values: dict[str, Any] = {}
    for key, value in found.items():
        param = known[_plain(str(key))]
        if param.name in values:
            raise typer.BadParameter(f"{path}: {key} is given twice")
        values[param.name] = None if value is None else _typed(f"{path}: {key}", value, param)
    return {name: value for name, value in values.items() if value is not None}


def _plain(option: str) -> str:
    return option.lstrip("-").replace("-", "_")


def _typed(where: str, value: Any, param: Any) -> bool | str | list[str]:
    """Lists with commas, mappings as NAME=VALUE; what is a flag on the command line is yes or no."""
    if getattr(param, "is_flag", False):
        if (text := str(value).lower()) not in (*YES, *NO):
            raise typer.BadParameter(f"{where} must be true or false, got {value!r:.60}")
        return text in YES
    if isinstance(value, dict):
        value = [f"{name}={_text(where, item)}" for name, item in value.items()]
    several = getattr(param, "multiple", False) or param.nargs != 1
    if isinstance(value, list):
        texts = [_text(where, item) for item in value]
        return texts if several else ",".join(texts)
    return [_text(where, value)] if several else _text(where, value)


def _text(where: str, value: Any) -> str:
    if value is None or isinstance(value, dict | list | set | bytes):
        raise typer.BadParameter(f"{where} must be a value, a list or NAME: VALUE, got {value!r:.60}")
    return str(value)
