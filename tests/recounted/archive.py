"""The records, read in memory."""

from __future__ import annotations

import json
import tarfile
import tomllib
from collections import defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

Record = dict[str, Any]


class Archive:
    """Files by experiment and path within it, JSON and JSON lines and TOML read."""

    def __init__(self, path: Path) -> None:
        self.preface = ""
        self.files: dict[str, dict[str, Any]] = defaultdict(dict)
        with tarfile.open(path) as archive:
            for member in archive:
                if not member.isfile():
                    continue
                name, _, rest = member.name.removeprefix("./").partition("/")
                stream = archive.extractfile(member)
                assert stream is not None
                content = stream.read()
                if member.name.endswith("preface.md"):
                    self.preface = content.decode()
                elif rest.endswith(".json"):
                    self.files[name][rest] = json.loads(content)
                elif rest.endswith(".jsonl"):
                    self.files[name][rest] = [json.loads(line) for line in content.splitlines()]
                elif rest.endswith(".toml"):
                    self.files[name][rest] = tomllib.loads(content.decode())

    def recipe(self, name: str) -> Record:
        recipe: Record = self.files[name]["recipe.toml"]
        return recipe

    def measured(self, name: str) -> list[tuple[Record, Record]]:
        """Settings and what was found at them, in the order in which they were planned."""
        files = self.files[name]
        records = [files[f"records/{stem}.json"] for stem in files["plan.json"]["records"]]
        return [(record["settings"], record["found"]) for record in records]
