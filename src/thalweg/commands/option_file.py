"""Defaults of a command's options from a YAML file, each value as it would be typed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from cyclopts.config import Dict

from thalweg.records.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Hashable


class _AsTyped(yaml.SafeLoader):  # type: ignore[misc]
    """Every value a text, which the option itself reads: in YAML 1.1 ``no`` is false, ``1e-3`` a text, ``1:30`` 90."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (the name that PyYAML asks for)
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Of two equal keys YAML has the last win, silently; here they are an error."""
        if isinstance(node, yaml.MappingNode):
            keys = [_plain(key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for key in keys:
                if keys.count(key) > 1:
                    raise yaml.constructor.ConstructorError(None, None, f"{key} is given twice", node.start_mark)
        found: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return found


def given(arguments: list[str]) -> list[Dict]:
    """What the files after ``--config`` in a command line say.

    Raises:
        UserError: no such file, no YAML, an option given twice, a value that no option can have.
    """
    found = []
    for at, text in enumerate(arguments):
        option, equals, path = text.partition("=")
        if option == "--config" and (equals or at + 1 < len(arguments)):
            path = path or arguments[at + 1]
            found.append(Dict(_read(Path(path)), source=path, use_commands_as_keys=False))
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:
            found = yaml.load(file, _AsTyped)  # a safe loader
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"--config: cannot read {path} ({' '.join(str(error).split())[:200]})") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise UserError(f"--config: {path} must map options to values")
    if "config" in map(_plain, map(str, found)):
        raise UserError(f"--config: {path}: unknown option config: a file cannot include another")
    values = {_plain(str(key)): value for key, value in found.items() if value is not None}
    return {key: _typed(f"--config: {path}: {key}", value) for key, value in values.items()}


def _plain(option: str) -> str:
    return option.lstrip("-").replace("_", "-")


def _typed(where: str, value: Any) -> str:
    """Lists with commas, mappings as NAME=VALUE."""
    if isinstance(value, dict):
        return ",".join(f"{name}={_text(where, item)}" for name, item in value.items())
    return ",".join(_text(where, item) for item in value) if isinstance(value, list) else _text(where, value)


def _text(where: str, value: Any) -> str:
    if value is None or isinstance(value, dict | list | set | bytes):
        raise UserError(f"{where} must be a value, a list or NAME: VALUE, got {value!r:.60}")
    return str(value)
