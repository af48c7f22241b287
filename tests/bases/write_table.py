"""Runs every check of this folder and writes ``docs/bases.md``: ``python tests/bases/write_table.py``."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).parents[2]
PATH = ROOT / "docs" / "bases.md"
sys.path.insert(0, str(ROOT / "tests"))

from catalogue import BASES, LIBRARIES  # noqa: E402
from checks import COLUMNS, claim  # noqa: E402
from exclusions import EXCLUDED  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from catalogue import Base

HEAD = """# E around every optimizer

<!-- Written by `python tests/bases/write_table.py`; the tests in tests/bases check every cell. -->

What E does in front of each optimizer of {versions}, on the CPU in float32.
Each cell is a test in `tests/bases`.

A base that calls the closure itself without demanding one needs `reevaluates=True`, and a closure at each step:
`E(SAM(params, torch.optim.SGD, lr=0.1), reevaluates=True)`. That is E in front of SAM; SAM around E is
`SAM(params, E.of(torch.optim.SGD), lr=0.1)`. Without backpropagation, see [thalweg.zeroth_order](api/zeroth_order.rst).

- **α = 0**: the parameters after 6 steps are those of the base alone, bit for bit, and nothing is allocated. Sparse
  gradients too are left to the base there (SGD, Adagrad and SparseAdam take them); where α is not 0, E refuses them.
- **exact g′**: with α = 2 and β1 = 3/4 they are those of the base alone fed with g′ of the paper's two-buffer
  recursion, bit for bit; a base that evaluates a closure (LBFGS, SAM) sees the loss plus the linear term of that g′.
  ≈, here and under *fused*: up to rounding, as E and the base are one kernel; with `foreach` True or False it is bit
  for bit, and so it is with `fused=False`.
- **trains**: with α = 0.5 and β1 = 0.01 the loss of a small least-squares problem falls.
- **resumes**: saved to a file half way, loaded with `weights_only=True` into fresh objects, it continues as if it
  had never stopped, bit for bit. *base*: the base alone cannot be loaded so. ≈: the base alone continues up to rounding
  (its loaded matrices have another layout in memory), and E does as the base does.
- **foreach**, **fused**, **compiled**: exact in this form as well, with `foreach` True and False; – where the base has
  no such form. *compiled* is `torch.compile` of the whole step, tried with those of torch's own optimizers that take no
  closure.

What a base cannot do, E around it cannot either. Under FSDP2, Muon of torch 2.13.0 raises a RuntimeError
("aten.add_.Tensor: in-place operations that require placement changes are not supported") for a weight of fewer rows
than there are ranks, [1, N] on two, and so does E around it, at any α. The weight has been decayed by then. Give such a
weight to another optimizer.
"""
PACKAGES = {"torch": "torch", "pytorch_optimizer": "pytorch_optimizer", "HeavyBall": "heavyball"}


def pinned() -> str:
    """The versions that the tests run with, as ``constraints.txt`` has them."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    *first, last = (f"{name} {pins[package]}" for name, package in PACKAGES.items())
    return f"{', '.join(first)} and {last}"


def render(cell: Callable[[Base, str], str]) -> str:
    """The document, its cells by ``cell(base, column)``."""
    lines = [HEAD.format(versions=pinned())]
    for library in LIBRARIES:
        lines += [f"## {library}", "", f"| optimizer | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
        for base in BASES:
            if base.library == library:
                name = f"{base.cls} {base.variant}".rstrip()
                lines.append(f"| {name} | {' | '.join(cell(base, column) for column in COLUMNS)} |")
        lines.append("")
    lines += ["## Left out", "", "| optimizer | why |", "|---|---|"]
    lines += [f"| {x.name} | {x.reason} |" for x in EXCLUDED]
    failing = [b for b in BASES if b.fails_to_resume]
    lines += [
        "",
        "The bases that cannot be loaded with `weights_only=True` keep objects in their state that it refuses:",
    ]
    lines += [f"{', '.join(b.cls for b in failing)}."]
    return "\n".join(lines) + "\n"


def checked(base: Base, column: str) -> str:
    """The claim, if its check passes."""
    said = claim(base, column)
    if said == "–":
        return said
    try:
        COLUMNS[column](base)
    except Exception as error:
        print(f"{base.name}: {column}: {type(error).__name__}: {error}", file=sys.stderr)
        return "fails"
    return said


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    PATH.write_text(render(checked))
    for excluded in EXCLUDED:
        excluded.check()
