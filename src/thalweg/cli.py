"""The command line: ``thalweg compare``, ``thalweg report``, ``thalweg bench`` and ``thalweg theory``."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from pathlib import Path
from typing import NoReturn

LAB = (
    "accelerate",
    "jinja2",
    "matplotlib",
    "numpy",
    "optuna",
    "plotly",
    "psutil",
    "pytorch_optimizer",
    "rich",
    "scipy",
    "sklearn",
    "transformers",
)


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
    if options.command == "theory":
        _explain(options)
        return
    try:
        from thalweg.lab.errors import UserError

        if options.command == "bench":
            from thalweg.bench.commands import bench
        else:
            from thalweg.lab import commands
    except ModuleNotFoundError as error:
        if error.name not in LAB:
            raise
        fail(f"this command needs {error.name}: pip install 'thalweg[lab]'")
    command = shlex.join(["thalweg", *(sys.argv[1:] if arguments is None else arguments)])
    try:
        if options.command == "bench":
            bench(options, command)
        elif options.command == "compare":
            commands.compare(options, command)
        else:
            commands.report(options.folder)
    except UserError as error:
        fail(str(error))
    except KeyboardInterrupt:
        goes_on = "" if options.command == "bench" else ": the same command continues there"
        print(f"\ninterrupted; what is complete is stored{goes_on}", file=sys.stderr)
        sys.exit(130)


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Says what the defaults are, where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


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
        formatter_class=_Defaults,
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
    _add_bench(commands)
    _add_theory(commands)
    return parser


def _add_bench(commands: argparse._SubParsersAction[_Parser]) -> None:
    bench = commands.add_parser(
        "bench", help="step time and memory, side by side with peers", description="Measure optimizers side by side."
    )
    whats = bench.add_subparsers(dest="what", required=True, metavar="WHAT")
    for what, says in (
        ("step", "Time the steps of optimizers, interleaved, on the shapes of real models."),
        ("memory", "Count the optimizer state and the temporary memory of a step on the shapes of real models."),
    ):
        one = whats.add_parser(
            what,
            help=f"{says[0].lower()}{says[1:-1]}",
            description=f"{says} Optimizers that do not run here are left out and listed with the reason.",
            formatter_class=_Defaults,
            allow_abbrev=False,
        )
        one.add_argument(
            "--shapes",
            type=_names,
            default="gpt2-23m,resnet50",
            metavar="A,B,...",
            help="gpt2-23m, gpt2-small, gpt2-medium, resnet50, bert-base, moe-block",
        )
        one.add_argument(
            "--optimizers",
            type=_names,
            metavar="A,B,...",
            help="only these, by name (default: all but alto-inductor, which compiles for minutes)",
        )
        one.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the parameters are")
        one.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the parameters")
        one.add_argument("--threads", type=_positive, metavar="N", help="threads of torch (default: its own choice)")
        one.add_argument("--out", type=Path, default=Path("runs/bench"), metavar="DIR", help="folder of the results")
        one.add_argument("--machine", type=_word, metavar="NAME", help="what the names of the files begin with")
        if what == "step":
            one.add_argument("--reference", default="adamw-fused", metavar="NAME", help="what the ratios are to")
            one.add_argument("--rounds", type=_positive, default=30, metavar="N", help="steps of each to time")
            one.add_argument("--warmup", type=_whole, default=5, metavar="N", help="steps before, beside the first")
            one.add_argument("--seed", type=_whole, default=0, metavar="N", help="of the order within the rounds")


def _add_theory(commands: argparse._SubParsersAction[_Parser]) -> None:
    theory = commands.add_parser(
        "theory",
        help="what α, β1, momentum and learning rate imply",
        description="Say what α, β1, momentum and learning rate imply: how far the optimizer is stable, how strongly "
        "it favours flat regions, and, for a measured sharpness, which of the two decides and how fast errors die out.",
        formatter_class=_Defaults,
        allow_abbrev=False,
    )
    theory.add_argument("--alpha", type=float, default=-5.0, help="α of E")
    theory.add_argument("--beta", type=float, default=0.99, help="β1 of E")
    theory.add_argument("--momentum", type=float, default=0.9, help="β2: of Adam and ALTO betas[0]; 0 if there is none")
    theory.add_argument("--nesterov", action="store_true", help="the momentum is Nesterov's, as NAdam's")
    theory.add_argument("--lr", type=float, metavar="LR", help="learning rate")
    theory.add_argument("--summed", action="store_true", help="the momentum is a sum, as of torch's SGD and RMSprop")
    theory.add_argument("--sharpness", type=float, metavar="λ", help="largest curvature measured; needs --lr")


def _explain(options: argparse.Namespace) -> None:
    from thalweg.theory.command import explain

    arguments = {name: value for name, value in vars(options).items() if name != "command"}
    try:
        print(explain(**arguments))
    except ValueError as error:
        fail(str(error))


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be an integer of at least 0, got {text!r}")
    return int(text)


def _word(text: str) -> str:
    if not re.fullmatch(r"[\w.-]+", text):
        raise argparse.ArgumentTypeError(f"must be letters, digits, '.', '_' and '-', got {text!r}")
    return text


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise argparse.ArgumentTypeError(f"must be names separated by commas, got {text!r}")
    return names
