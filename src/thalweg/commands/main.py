"""The command line: ``thalweg compare``, ``train``, ``reproduce``, ``report``, ``bench``, ``theory``...

What is heavy is imported when a command runs. ``theory`` needs no more than the optimizers do, and is read before
Cyclopts is imported.
"""

from __future__ import annotations

import os
import signal
import sys
from io import TextIOWrapper
from typing import Any, NoReturn

from thalweg.commands import theory
from thalweg.commands.terminal import typed

LAB = (
    "accelerate", "cyclopts", "jinja2", "matplotlib", "numpy", "optuna", "psutil", "pytorch_optimizer", "rich", "scipy",
    "sklearn", "transformers", "yaml",
)  # fmt: skip
GOES_ON = ("compare", "train")


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
    from cyclopts import CycloptsError

    from thalweg.commands.options import configured
    from thalweg.records.errors import TaskFault, UserError

    app = _app()
    try:
        app.config = configured(arguments)
        returned: Any = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
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
    except CycloptsError as error:
        says, where = str(error).rstrip("."), " ".join(["thalweg", *(error.command_chain or ())])
        fail(f"{says}{' See' if says.endswith('?') else '; see'} `{where} --help`")
    return returned if isinstance(returned, int) else 0


def _app() -> Any:
    from cyclopts import App

    import thalweg
    from thalweg.commands import bench, compare, listing, report, reproduce, train

    shared: dict[str, Any] = {"help_format": "markdown", "help_flags": ["--help", "-h"]}
    app = App(name="thalweg", help="Train, compare optimizers fairly, and look at the result.",
              version=f"thalweg {thalweg.__version__}", **shared)  # fmt: skip
    group = App(name="bench", help="Step time and memory of optimizers, side by side with peers.", **shared)
    app.command(group)
    for command in (
        compare.compare,
        train.train,
        reproduce.reproduce,
        report.report,
        listing.tasks,
        listing.optimizers,
    ):
        app.command(command)
    for command in (bench.step, bench.memory):
        group.command(command)
    app.command(theory.main, name="theory", help=theory.HELP)  # for the list of commands: `main` has taken it
    app.register_install_completion_command()
    return app
