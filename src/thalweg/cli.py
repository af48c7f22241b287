"""The command line: ``thalweg compare`` and ``thalweg report``."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import NoReturn

LAB = ("accelerate", "jinja2", "optuna", "plotly", "pytorch_optimizer", "rich", "scipy", "sklearn", "transformers")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        fail(f"{message}; see `{self.prog} --help`")


def fail(message: str) -> NoReturn:
    """Print one line and exit with code 2."""
    print(f"thalweg: error: {message}", file=sys.stderr)
    sys.exit(2)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    options = _parser().parse_args(arguments)
    try:
        from thalweg.lab import commands
        from thalweg.lab.errors import UserError
    except ModuleNotFoundError as error:
        if error.name not in LAB:
            raise
        fail(f"this command needs {error.name}: pip install 'thalweg[lab]'")
    command = shlex.join(["thalweg", *(sys.argv[1:] if arguments is None else arguments)])
    try:
        if options.command == "compare":
            commands.compare(options, command)
        else:
            commands.report(options.folder)
    except UserError as error:
        fail(str(error))
    except KeyboardInterrupt:
        print("\ninterrupted; what is complete is stored: the same command continues there", file=sys.stderr)
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="thalweg", description="Compare optimizers fairly and look at the result.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    compare = commands.add_parser(
        "compare",
        help="tuned comparison of optimizers on a task, ends in a report",
        description="Tune every optimizer with the same number of quasi-random trials, train the best setting of each "
        "on fresh seeds, and write a report. Started again, it continues where it stopped.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    compare.add_argument("tasks", nargs="+", metavar="TASK", help="sine, digits, pydoc-lm")
    compare.add_argument(
        "--batch-size", nargs="+", type=_positive, metavar="N", help="only these of the task's batch sizes"
    )
    compare.add_argument(
        "--optimizers",
        type=_names,
        metavar="A,B,...",
        default="sgd,adam,adamw,nadamw,lamb,adabelief,muon,alto,e-adamw,e-sgd",
        help="names as in the default, or the dotted name of any class",
    )
    compare.add_argument("--trials", type=_positive, default=16, metavar="N", help="tuning trials of each optimizer")
    compare.add_argument("--seeds", type=_positive, default=5, metavar="N", help="fresh seeds of the best setting")
    compare.add_argument("--steps", type=_positive, metavar="N", help="training steps of a run, instead of the task's")
    compare.add_argument("--jobs", type=_positive, metavar="N", help="runs at a time (default: one a core)")
    compare.add_argument("--out", type=Path, metavar="DIR", help="folder of records and report (default: runs/TASK)")

    report = commands.add_parser(
        "report", help="the HTML report, again, from stored runs", description="Write the report from stored runs."
    )
    report.add_argument("folder", type=Path, metavar="DIR", help="the folder of a comparison")
    return parser


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise argparse.ArgumentTypeError(f"must be names separated by commas, got {text!r}")
    return names
