"""The README's code runs as it stands."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL))
def test_the_code_runs(code):
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["optimizer"].state
