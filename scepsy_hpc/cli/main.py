"""The group ``scepsy``, and the one place where errors become a line and an exit code."""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys
import tempfile
import traceback

import click

from scepsy_hpc import __version__
from scepsy_hpc.errors import ScepsyError

# What the list of commands says of each, in the order of the data. A command stands in the module
# of its name and is imported when it is asked for; the list imports none of them.
COMMANDS = {
    "doctor": "What is missing on this machine or site, and the fix.",
    "topology": "Write down what GPUs and links there are.",
    "profile": "Measure models under every parallelism of a topology.",
    "trace": "Run a few tasks of a workflow and record their calls.",
    "demand": "What the recorded calls say about each LLM.",
    "plan": "Find and place the best allocation of GPUs.",
    "predict": "Throughput and latency of any allocation.",
    "simulate": "Simulate the recorded runs on a plan: percentiles.",
    "run": "Host a plan's engines and work a batch off.",
    "serve": "Host a plan's engines without a batch.",
    "status": "How far a run is and how its engines are.",
    "logs": "The last lines of a run's logs.",
    "stop": "Ask a run to end in order.",
    "clean": "Remove what a run that is over no longer needs.",
    "report": "One HTML file: predicted beside measured.",
    "bundle": "List, check, import and share profile bundles.",
    "spans": "Take over what other tools recorded of agents.",
    "demo": "All of it on this machine, with simulated engines.",
}
# A module `profile` or `trace` shadows the standard library's when a script runs beside it.
_MODULES = {"profile": "profile_command", "trace": "trace_command"}


class Lazy(click.Group):
    """Loads a command's module when the command is asked for, not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Commands in the order of the data."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of that name."""
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"scepsy_hpc.cli.{_MODULES.get(name, name)}")
        found: click.Command = getattr(module, name)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One line each, whole."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does; an unknown command is answered with the nearest or all known ones."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(COMMANDS)}"
            ctx.fail(f"no such command {name!r}; {hint}")
        return super().resolve_command(ctx, args)


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="scepsy")
def scepsy() -> None:
    """Plan and run batches of multi-LLM agent workflows inside one Slurm allocation.

    \b
    The way of the data:
      topology, profile, trace -> demand -> plan -> run -> status, report
    Everything up to plan.yaml is computed from files: no GPU, Slurm or engine
    is needed. `scepsy demo -o FOLDER` shows all of it on this machine.

    \b
    Exit codes: 0 done; 1 it ran and failed; 2 bad input or usage;
    3 infeasible (says the nearest feasible target); 4 not complete, to be resumed.
    """


def main() -> None:
    """Entry point of ``scepsy`` and ``python -m scepsy_hpc``."""
    sys.exit(run_line(sys.argv[1:]))


def run_line(arguments: list[str]) -> int:
    """Exit code of one command line: see ``scepsy``."""
    try:
        code = scepsy.main(arguments, prog_name="scepsy", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        name = error.ctx.command_path if error.ctx else "scepsy"
        click.echo(f"\nerror: {name}: give one of the commands above", err=True)
        return 2
    except click.ClickException as error:
        return _usage(error)
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return 130
    except ScepsyError as error:
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _system(error)
    except Exception:
        return _bug()


def _usage(error: click.ClickException) -> int:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "scepsy"
    message = " ".join(error.format_message().split())
    click.echo(f"error: {command}: {message} (see `{command} --help`)", err=True)
    return 2


# What the machine refuses: no fault of the input, none of ours.
_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE)


def _system(error: OSError) -> int:
    if error.errno not in _REFUSALS:
        return _bug()
    where = f"{error.filename}: " if error.filename else ""
    click.echo(f"error: {where}{error.strerror}", err=True)
    return 1


def _bug() -> int:
    """Our own fault: one line, and the traceback in a file that can go into an issue."""
    if os.environ.get("SCEPSY_DEBUG"):
        raise
    with tempfile.NamedTemporaryFile(
        "w", prefix="scepsy-bug-", suffix=".txt", delete=False
    ) as stream:
        traceback.print_exc(file=stream)
    kind, value, _ = sys.exc_info()
    name = kind.__name__ if kind else "error"
    click.echo(f"error: a bug in scepsy ({name}: {value}); details in {stream.name}", err=True)
    return 1
