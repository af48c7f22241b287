"""The code of the README and of docs/jax.md runs as it stands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


@pytest.mark.parametrize("code", [*blocks("README.md"), "\n".join(blocks("docs/jax.md"))])
def test_the_code_runs(code):
    names: dict[str, object] = {}
    exec(compile(code, "the documentation", "exec"), names)
    assert names["state"] if "state" in names else names["optimizer"].state
