"""The command line, ``thalweg compare``, ``train``, ``report``, ``tasks``, ``optimizers``, ``bench``, ``landscape``...

Each room registers its own commands (``lab/cli.py``, ``bench/cli.py``, ``landscape/cli.py``); nothing heavy is imported
before one is chosen. ``theory``, ``--help`` and ``--version`` need no more than the optimizers do, and so go their own
way, without Typer.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from io import TextIOWrapper
from textwrap import fill
from typing import Any, NoReturn

import thalweg
from thalweg.arguments import did_you_mean
from thalweg.lab.terminal import say, typed
from thalweg.theory import cli as theory

ROOMS = ("thalweg.lab.cli", "thalweg.bench.cli", "thalweg.landscape.cli")  # each with register(app)
LAB = (
    "accelerate", "jinja2", "matplotlib", "numpy", "optuna", "psutil", "pytorch_optimizer", "rich", "safetensors",
    "scipy", "sklearn", "transformers", "typer", "yaml",
)  # fmt: skip
COMMANDS = {
    "compare": "Tuned comparison of optimizers on tasks; ends in a report.",
    "train": "One run, also under torchrun and accelerate launch; the same command goes on where it stopped.",
    "reproduce": "The slides' experiments: run one, some or all, and write a page with the printed numbers beside.",
    "report": "Write the report again, from stored runs.",
    "tasks": "What can be trained, a line each.",
    "optimizers": "What can be compared, a line each.",
    "bench": "Step time and memory of optimizers, side by side with peers.",
    "landscape": "Pictures of valleys and of how optimizers walk them; flatness of a network.",
    "theory": theory.HELP,
}
"""What the rooms register, and what it is for: to be listed where Typer is not installed."""
ABOUT = "Train, compare optimizers fairly, and look at the result."
COMPLETES = "_THALWEG_COMPLETE"  # set by the shell that asks for completions
GOES_ON = ("compare", "train")
MANY: dict[str, Callable[[str], bool]] = {"--batch-size": str.isdigit, "--set": lambda text: "=" in text}
"""Options that take several values after each other, and what a value looks like."""


def fail(message: str, code: int = 2) -> NoReturn:
    """Print one line and exit."""
    print(f"thalweg: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that knows no Greek
    if arguments[:1] == ["theory"]:
        try:
            theory.main(arguments[1:], say)
        except (ValueError, OSError) as error:
            fail(str(error))
        return
    if arguments[:1] == ["--version"]:
        say(f"thalweg {thalweg.__version__}")
        return
    if COMPLETES not in os.environ:
        if not arguments or arguments[0] in ("-h", "--help"):
            say(_help())
            return
        if not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
            _refuse(f"No such command {arguments[0]!r}{did_you_mean(arguments[0], COMMANDS)}", "thalweg")
    typed(arguments)
    before = signal.signal(signal.SIGINT, _at_once)
    try:
        code = _run(arguments)
    except ModuleNotFoundError as error:
        if error.name not in LAB:
            raise
        fail(f"this command needs {error.name}: pip install 'thalweg[lab]'; `thalweg theory` does not")
    except KeyboardInterrupt:
        code = 130
    finally:
        signal.signal(signal.SIGINT, before)
    if code == 130:
        goes_on = ": the same command continues there" if arguments[:1] and arguments[0] in GOES_ON else ""
        print(f"\ninterrupted; what is complete is stored{goes_on}", file=sys.stderr)
    if code:
        sys.exit(code)


def _help() -> str:
    commands = "\n".join(fill(says, 80, initial_indent=f"  {name:12}", subsequent_indent=" " * 14)
                         for name, says in COMMANDS.items())  # fmt: skip
    return f"""\
Usage: thalweg [OPTIONS] COMMAND [ARGS]...

  {ABOUT}

Options:
  --version             Say the version.
  --install-completion  Install completion for the current shell.
  --show-completion     Show completion for the current shell, to copy it.
  -h, --help            Show this, or after a command its options, and exit.

Commands:
{commands}

All but theory need the lab: pip install 'thalweg[lab]'"""


def _refuse(says: str, where: str) -> NoReturn:
    """Of a command line that cannot be read: what is wrong, and where to look."""
    says = says.rstrip(".")
    fail(f"{says}{'' if says.endswith('?') else ';'} see `{where} --help`")


def _at_once(*_: object) -> None:
    os.write(2, b"\ninterrupted\n")
    os._exit(130)


def _run(arguments: list[str]) -> int:
    import typer

    app = typer.Typer(
        name="thalweg",
        help=ABOUT,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def version(version: bool = typer.Option(False, "--version", help="Say the version.")) -> None: ...

    for room in ROOMS:
        import_module(room).register(app)
    app.command("theory", help=theory.HELP)(lambda: None)  # for the list of commands: `main` has taken it
    command = typer.main.get_command(app)
    from thalweg.lab.errors import TaskFault, UserError

    try:
        returned: Any = command.main(_expanded(arguments), prog_name="thalweg", standalone_mode=False)
    except UserError as error:
        fail(str(error))
    except TaskFault as fault:
        import traceback

        if fault.__cause__ is not None:
            traceback.print_exception(fault.__cause__)
        print(fault.trace, file=sys.stderr)
        fail(f"{fault}: mend the task, the same command goes on", code=1)
    except OSError as error:  # a full disk, a folder where a file should be
        fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except Exception as error:
        # What Typer raises on a bad command line has it.
        says: Callable[[], str] | None = getattr(error, "format_message", None)
        if says is None:
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            say(says())
            return 0
        context = getattr(error, "ctx", None)
        _refuse(_with_nearest(error, says(), context), getattr(context, "command_path", "thalweg"))
    return returned if isinstance(returned, int) else 0


def _with_nearest(error: Exception, says: str, context: Any) -> str:
    """What is said of an unknown option or command, with the nearest that there is."""
    if type(error).__name__ == "NoSuchOption":
        name, params = str(getattr(error, "option_name", "")), context.command.params if context else []
        return f"No such option: {name}{did_you_mean(name, [o for p in params for o in (*p.opts, *p.secondary_opts)])}"
    if (found := re.match(r"No such command '(.*?)'", says)) and context:
        return f"No such command {found[1]!r}{did_you_mean(found[1], context.command.commands)}"
    return says


def _expanded(arguments: list[str]) -> list[str]:
    """``--set a=1 b=2`` as ``--set a=1 --set b=2``, for the options that take several values."""
    found: list[str] = []
    current = ""
    for text in arguments:
        if current and found[-1] != current and MANY[current](text):
            found.append(current)
        elif text in MANY:
            current = text
        elif not (found and found[-1] == current):
            current = ""
        found.append(text)
    return found
