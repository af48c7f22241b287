"""The README of the package: README.md, whose links lead into the repository, or are text while it has no address."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)")


class Readme(MetadataHookInterface):
    """Sets ``readme`` from README.md and the address ``Source`` of ``[project.urls]``."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add what pyproject.toml says is dynamic."""
        text = (Path(self.root) / "README.md").read_text("utf-8")
        source = metadata.get("urls", {}).get("Source")
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute(text, source)}


def absolute(text: str, source: str | None) -> str:
    """Markdown with relative links made absolute, of files and of pictures.

    Without ``source``, the repository's address, links are their text, and pictures what is said in their place. A code
    block holds no links.
    """
    blocks = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)

    def lead(link: re.Match[str]) -> str:
        picture, says, path = link.groups()
        if source is None:
            return f"*{says}*" if picture else says
        return f"{picture}[{says}]({source.rstrip('/')}/{'raw' if picture else 'blob'}/main/{path})"

    return "".join(block if block.startswith("```") else LINK.sub(lead, block) for block in blocks)
