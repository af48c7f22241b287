"""The command line, ``thalweg compare``, ``train``, ``report``, ``tasks``, ``optimizers``, ``bench``...

Each room registers its own commands (``lab/cli.py``, ``bench/cli.py``); nothing heavy is imported
before one is chosen. ``theory`` needs no more than the optimizers do, and so goes its own way, before Typer is there.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from io import TextIOWrapper
from typing import Any, NoReturn

from thalweg.commands import theory_options as theory
from thalweg.commands.terminal import typed

ROOMS = ("thalweg.commands.lab_options", "thalweg.commands.bench_options")  # each with register(app)
LAB = (
    "accelerate", "jinja2", "matplotlib", "numpy", "optuna", "psutil", "pytorch_optimizer", "rich", "scipy",
    "sklearn", "transformers", "typer", "yaml",
)  # fmt: skip
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
            theory.main(arguments[1:])
        except (ValueError, OSError) as error:
            fail(str(error))
        return
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


def _at_once(*_: object) -> None:
    os.write(2, b"\ninterrupted\n")
    os._exit(130)


def _run(arguments: list[str]) -> int:
    import typer

    app = typer.Typer(
        name="thalweg",
        help="Train, compare optimizers fairly, and look at the result.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def version(
        version: bool = typer.Option(False, "--version", is_eager=True, callback=_version, help="Say the version."),
    ) -> None: ...

    for room in ROOMS:
        import_module(room).register(app)
    app.command("theory", help=theory.HELP)(lambda: None)  # for the list of commands: `main` has taken it
    command = typer.main.get_command(app)
    from thalweg.records.errors import TaskFault, UserError

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
            print(says())
            return 0
        where = getattr(getattr(error, "ctx", None), "command_path", "thalweg")
        fail(f"{says()}; see `{where} --help`")
    return returned if isinstance(returned, int) else 0


def _version(asked: bool) -> None:
    if asked:
        import typer

        import thalweg

        typer.echo(f"thalweg {thalweg.__version__}")
        raise typer.Exit


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
