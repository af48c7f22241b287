"""The command line: ``thalweg compare``, ``train``, ``reproduce``, ``report``, ``bench``, ``theory``...

What is heavy is imported when a command runs. ``theory``, ``--help`` and ``--version`` need no more than the optimizers
do, and go their own way, without Cyclopts.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from io import TextIOWrapper
from textwrap import fill
from typing import Any, NoReturn

import thalweg
from thalweg.arguments import did_you_mean
from thalweg.commands import theory
from thalweg.commands.terminal import console, remember_command, say

LAB = (
    "accelerate", "cyclopts", "jinja2", "matplotlib", "numpy", "optuna", "psutil", "pytorch_optimizer", "rich",
    "safetensors", "scipy", "sklearn", "transformers", "yaml",
)  # fmt: skip
COMMANDS = {
    "compare": "Tune and compare optimizers on tasks, and write a report.",
    "train": "Train one run, on one process or many (torchrun, accelerate launch, srun); the same command resumes it.",
    "reproduce": "Run the slides' experiments, and write a page that compares them with the printed numbers.",
    "report": "Rewrite the report from the stored runs.",
    "tasks": "List the tasks.",
    "optimizers": "List the optimizers.",
    "plan": "Say what a step of AdamW, LAMB and ALTO costs each rank of a cluster: memory and collectives.",
    "bench": "Measure the step time and memory of optimizers beside their peers, on shards too.",
    "theory": theory.HELP,
}
"""The commands, to be listed where Cyclopts is not installed."""
FLAGS = ("--help", "-h", "--version", "--install-completion")
ABOUT = "Train, compare optimizers fairly, and look at the result."
RESUMABLE = ("compare", "train")


def fail(message: str, code: int = 2) -> NoReturn:
    """Print one line and exit."""
    print(f"thalweg: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal whose encoding lacks Greek letters
    if arguments[:1] == ["theory"]:
        try:
            theory.main(arguments[1:], say)
        except (ValueError, OSError) as error:
            fail(str(error))
        return
    if arguments[:1] == ["--version"]:
        say(f"thalweg {thalweg.__version__}")
        return
    if not arguments or arguments[0] in ("-h", "--help"):
        say(_help())
        return
    if arguments[0] not in (*COMMANDS, *FLAGS):
        what, known = ("option", FLAGS) if arguments[0].startswith("-") else ("command", tuple(COMMANDS))
        _refuse(f"No such {what} {arguments[0]!r}{did_you_mean(arguments[0], known)}", "thalweg")
    remember_command(arguments)
    before = signal.signal(signal.SIGINT, _exit_at_once)
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
    if code == 130 and os.environ.get("RANK", "0") == "0":
        goes_on = ", and the same command resumes" if arguments[:1] and arguments[0] in RESUMABLE else ""
        print(f"\ninterrupted; completed work is stored{goes_on}", file=sys.stderr)
    if code:
        sys.exit(code)


def _help() -> str:
    commands = "\n".join(fill(says, 80, initial_indent=f"  {name:12}", subsequent_indent=" " * 14)
                         for name, says in COMMANDS.items())  # fmt: skip
    return f"""\
Usage: thalweg [OPTIONS] COMMAND [ARGS]...

  {ABOUT}

Options:
  --version             Show the version.
  --install-completion  Install completion for the current shell.
  -h, --help            Show this, or after a command its options, and exit.

Commands:
{commands}

All but theory need the lab: pip install 'thalweg[lab]'"""


def _refuse(says: str, where: str) -> NoReturn:
    """Of a command line that cannot be read: what is wrong, and where to look."""
    says = says.rstrip(".")
    fail(f"{says}{'' if says.endswith('?') else ';'} see `{where} --help`")


def _exit_at_once(*_: object) -> None:
    os.write(2, b"\ninterrupted\n")
    os._exit(130)


def _run(arguments: list[str]) -> int:
    from cyclopts import CycloptsError

    from thalweg.commands.option_file import given
    from thalweg.records.errors import TaskFault, UserError

    app = _app()
    try:
        app.config = given(arguments)
        returned: Any = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except UserError as error:
        fail(_by_option(str(error)))
    except TaskFault as fault:
        import traceback

        if fault.__cause__ is not None:
            traceback.print_exception(fault.__cause__)
        print(fault.trace, file=sys.stderr)
        fail(f"{fault}: correct the task, then run the same command again", code=1)
    except OSError as error:  # a full disk, a folder where a file should be
        fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except CycloptsError as error:
        _refuse(_message_of(error), " ".join(["thalweg", *(error.command_chain or ())]))
    return returned if isinstance(returned, int) else 0


def _by_option(says: str) -> str:
    """A message that begins with a field of the regimen names the option that sets it."""
    from thalweg.records.regimen import REGIMEN

    field, _, rest = says.partition(" ")
    return f"--{field.replace('_', '-')} {rest}" if field in REGIMEN else says


def _message_of(error: Any) -> str:
    """What is wrong, as our own errors say it: the nearest name last, the range of an option, the file of a value."""
    from thalweg.records.regimen import ALLOWED

    says, token = str(error), getattr(error, "token", None)
    says = re.sub(r"\. Did you mean \"?([^\"?]+)\"?\?", r"; did you mean '\1'?", says)
    if token is None:
        return says
    option = (token.keyword or "").strip("[]")
    field = option.lstrip("-").replace("-", "_")
    if field in ALLOWED and "unable to convert" in says:
        says = f"{option} must be {ALLOWED[field]}, got {token.value!r}"
    if token.source in ("", "cli"):
        return says
    says = re.sub(r"^Unknown option: .*?(;.*)?$", rf"unknown option {option}\1", says.rstrip(".")).replace("'--", "'")
    says = says.replace(f" for {token.keyword} from {token.source}", f" for {option}")
    return f"--config: {token.source}: {re.sub(r'^Invalid value for .*?: ', f'{option} ', says)}"


def _app() -> Any:
    from cyclopts import App, Parameter

    from thalweg.commands import bench, compare, listing, plan, report, reproduce, train

    shared: dict[str, Any] = {
        "help_format": "markdown",
        "help_flags": ["--help", "-h"],
        "console": console(),
        "default_parameter": Parameter(allow_repeating=True),  # the last one counts, as shell users expect
        "suppress_keyboard_interrupt": False,
    }
    app = App(name="thalweg", help=ABOUT, version=f"thalweg {thalweg.__version__}", **shared)
    group = App(name="bench", help=COMMANDS["bench"], **shared)
    app.command(group)
    lists = (listing.tasks, listing.optimizers)
    own = (compare.compare, train.train, reproduce.reproduce, report.report, *lists, plan.plan)
    for room, commands in ((app, own), (group, (bench.step, bench.memory, bench.sharded))):
        for command in commands:
            room.command(command)
    app.command(lambda: None, name="theory", help=theory.HELP)  # for the list of commands: `main` has taken it
    app.register_install_completion_command()
    return app
