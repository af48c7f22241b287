"""`Lamb` beside the LAMBs of other libraries, as they are published: ``make twins``.

Each environment is made anew, of pinned releases, in a temporary folder. Prints a table of libraries and regimes with
the largest difference, the largest that is allowed, and the least that there is when an argument is moved; and one of
checkpoints, with the largest difference of the ten steps by which Lamb goes on from them. Exits with 1
if one is exceeded, or an argument can be moved unnoticed; or if something could not be installed, unless ``--some`` is
given. Libraries may be named.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import sysconfig
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from libraries import TWINS, Twin
from ours import difference, moves_of, ours
from regimes import REGIMES, Arrays

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]


@dataclass(frozen=True)
class Environment:
    """Where libraries are installed. ``beside_ours``: they alone, for what is installed for the tests."""

    libraries: tuple[str, ...]
    requirements: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()  # without what they require
    beside_ours: bool = False
    pip: str = "pip"


FASTAI = (
    *("fastai==2.8.12", "fastcore==2.2.41", "fasttransform==0.0.5", "fastprogress==1.0.3"),
    *("plum-dispatch==2.9.0", "beartype==0.23.1"),
)
MXNET = ("mxnet==1.9.1", "numpy==1.23.5")

ENVIRONMENTS = [
    Environment(("optax", "pytorch_optimizer", "apex", "deepspeed", "oneflow"), beside_ours=True),
    Environment(
        ("timm", "torch_optimizer", "pytorch_lamb", "catalyst", "colossalai", "holocron", "fastai"),
        alone=(
            *("timm==1.0.31", "torch_optimizer==0.3.0", "pytorch_lamb==1.0.0", "catalyst==22.4", "colossalai==0.5.0"),
            *("pylocron==0.3.0", *FASTAI),
        ),
        beside_ours=True,
        pip="pip==24.0",  # the last that takes catalyst's metadata
    ),
    Environment(("keras",), ("keras==3.15.1", "jax==0.10.2", "numpy==2.4.6")),
    Environment(("tinygrad",), ("tinygrad==0.14.0", "numpy==2.4.6")),
    Environment(("paddle",), ("paddlepaddle==3.3.1",)),
    Environment(("mxnet",), MXNET),
    Environment(
        ("tensorflow-addons", "tf-models"),
        ("tensorflow-cpu==2.21.0", "tf-keras==2.21.0", "typeguard==2.13.3"),
        alone=("tensorflow-addons==0.23.0", "tf-models-official==2.20.0"),
    ),
]

CHECKPOINTS = [
    Environment(
        (
            *("timm", "pytorch_optimizer", "torch_optimizer", "pytorch_lamb", "catalyst", "colossalai", "holocron"),
            *("bitsandbytes", "optax", "keras", "paddle", "tinygrad", "fastai"),
        ),
        alone=(
            *("timm==1.0.31", "torch_optimizer==0.3.0", "pytorch_lamb==1.0.0", "catalyst==22.4", "colossalai==0.5.0"),
            *("pylocron==0.3.0", "bitsandbytes==0.50.2", "tinygrad==0.14.0", *FASTAI),
            *("keras==3.15.1", "h5py==3.16.0", "optree==0.20.0", "namex==0.1.0", "absl-py==2.5.1"),
            *("paddlepaddle==3.3.1", "opt_einsum==3.4.0", "httpx==0.28.1"),
        ),
        beside_ours=True,
        pip="pip==24.0",
    ),
    Environment(("mxnet",), MXNET, beside_ours=True),
]


def install(environment: Environment, folder: Path, seconds: float) -> Path:
    """Its Python."""
    if not environment.requirements and not environment.alone:
        return Path(sys.executable)
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    if environment.beside_ours:
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "ours.pth").write_text(sysconfig.get_path("purelib"))
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for arguments in (
        [environment.pip],
        environment.requirements,
        *(["--no-deps", *some] for some in [environment.alone] if some),
    ):
        if arguments:
            subprocess.run(
                [*pip, *arguments], check=True, timeout=seconds, cwd=folder, stderr=subprocess.PIPE, text=True
            )
    return python


def run(python: Path, twins: list[Twin], seconds: float) -> dict[tuple[str, str], list[Arrays]]:
    """What the libraries do, by a twin's name and a regime."""
    asked = [(twin, regime) for twin in twins for regime in twin.regimes]
    text = json.dumps([[twin.library, twin.options_in(regime), regime] for twin, regime in asked])
    done = subprocess.run(
        [python, "theirs.py"], input=text, check=True, timeout=seconds, cwd=HERE, capture_output=True, text=True
    )
    found = [[[np.array(p) for p in row] for row in rows] for rows in json.loads(done.stdout)]
    return {(twin.name, regime): rows for (twin, regime), rows in zip(asked, found, strict=True)}


def compare(twin: Twin, theirs: dict[tuple[str, str], list[Arrays]]) -> tuple[dict[str, float], float]:
    """The difference in each regime; and, of the arguments moved one by one, the one that matters least."""
    expected = {regime: theirs[twin.name, regime] for regime in twin.regimes}
    found = {regime: difference(ours(twin, regime), rows) for regime, rows in expected.items()}
    moved = [max(difference(ours(twin, r, **move), rows) for r, rows in expected.items()) for move in moves_of(twin)]
    return found, min(moved)


def row(twin: Twin, found: dict[str, float], moved: float) -> str:
    cells = [f"{found[regime]:.0e}" if regime in found else "differs" for regime in REGIMES]
    return f"| {' | '.join([twin.name, *cells, f'{twin.within:.0e}', f'{moved:.0e}'])} |"


def checkpoints(environment: Environment, libraries: list[str], seconds: float) -> tuple[list[str], list[str]]:
    """Prints how far Lamb is when it goes on from their checkpoints; what was not run, and what failed."""
    missing, failures = [], []
    with tempfile.TemporaryDirectory() as folder:
        try:
            python = install(environment, Path(folder), seconds)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            print(f"| {', '.join(libraries)} | not run: {_said(error)} | |", flush=True)
            return libraries, []
        for library in libraries:
            command = [python, "checkpoints.py", library]
            try:
                done = subprocess.run(command, timeout=seconds, cwd=HERE, capture_output=True, text=True)
            except subprocess.TimeoutExpired as error:
                print(f"| {library} | not run: {_said(error)} | |", flush=True)
                missing.append(library)
                continue
            print(done.stdout, end="", flush=True)
            if done.returncode:
                failures.append(
                    f"checkpoints of {library}: {(done.stderr.strip().splitlines() or ['too far apart'])[-1]}"
                )
    return missing, failures


def _said(error: subprocess.CalledProcessError | subprocess.TimeoutExpired) -> str:
    if isinstance(error, subprocess.TimeoutExpired):
        return f"over {error.timeout:g} s"
    return (error.stderr or str(error)).strip().splitlines()[-1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("libraries", nargs="*", help="those to run; all if none is named")
    parser.add_argument("--some", action="store_true", help="what cannot be installed or run is said, and no failure")
    parser.add_argument("--seconds", type=float, default=600.0, help="how long to install, or to run, an environment")
    options = parser.parse_args()
    known = list(dict.fromkeys(library for one in (*ENVIRONMENTS, *CHECKPOINTS) for library in one.libraries))
    if unknown := sorted({*options.libraries} - {*known}):
        parser.error(f"unknown: {', '.join(unknown)}; the libraries are {', '.join(known)}")
    wanted = options.libraries or known
    print("| " + " | ".join(["library and its options", *REGIMES, "within", "moved"]) + " |")
    print("|---|" + "--:|" * (len(REGIMES) + 2))
    failures: list[str] = []
    missing: list[str] = []
    for environment in ENVIRONMENTS:
        twins = [twin for twin in TWINS if twin.library in environment.libraries and twin.library in wanted]
        if not twins:
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                theirs = run(install(environment, Path(folder), options.seconds), twins, options.seconds)
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                for twin in twins:
                    print(f"| {twin.name} | not run: {_said(error)} |" + " |" * (len(REGIMES) + 1), flush=True)
                missing += [twin.name for twin in twins]
                continue
        for twin in twins:
            found, moved = compare(twin, theirs)
            print(row(twin, found, moved), flush=True)
            failures += [f"{twin.name}, {r}: {far:.1e} apart" for r, far in found.items() if far > twin.within]
            if moved <= twin.within:
                failures.append(f"{twin.name}: an argument can be moved unnoticed")
    print("\n| library and its options, saved and gone on from | ten steps | within |\n|---|--:|--:|", flush=True)
    for environment in CHECKPOINTS:
        if saving := [library for library in environment.libraries if library in wanted]:
            lacking, wrong = checkpoints(environment, saving, options.seconds)
            missing, failures = missing + lacking, failures + wrong
    for line in failures:
        print(line, file=sys.stderr)
    return 1 if failures or (missing and not options.some) else 0


if __name__ == "__main__":
    sys.exit(main())
