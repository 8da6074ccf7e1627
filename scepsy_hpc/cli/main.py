"""The group ``scepsy``, and the one place where errors become a line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import traceback

import click

from scepsy_hpc import __version__
from scepsy_hpc.errors import ScepsyError

# Command to the module that holds it: a command imports only what it needs.
COMMANDS = {
    "topology": "machine",
    "doctor": "machine",
    "profile": "evidence",
    "trace": "evidence",
    "demand": "evidence",
    "bundle": "evidence",
    "plan": "planning",
    "predict": "planning",
    "simulate": "planning",
    "run": "running",
    "serve": "running",
    "status": "running",
    "logs": "running",
    "stop": "running",
    "report": "running",
    "demo": "demonstration",
}


class Lazy(click.Group):
    """Loads a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Commands in the order of the data."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of that name."""
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"scepsy_hpc.cli.{COMMANDS[name]}")
        found: click.Command = getattr(module, name)
        return found


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="scepsy")
def scepsy() -> None:
    """Plan and run batches of multi-LLM agent workflows inside one Slurm allocation.

    \b
    The way of the data:
      topology, profile, trace -> demand -> plan -> run -> status, report
    Everything up to plan.yaml is computed from files: no GPU, Slurm or engine needed.
    `scepsy demo` shows all of it on this machine, with simulated engines.
    """


def main() -> None:
    """Entry point of ``scepsy`` and ``python -m scepsy_hpc``."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Exit code of one command line: 0 done, 1 failed, 2 bad input, 3 infeasible."""
    try:
        code = scepsy.main(arguments, prog_name="scepsy", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
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
    except Exception:
        return _bug()


def _usage(error: click.ClickException) -> int:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "scepsy"
    message = " ".join(error.format_message().split())
    click.echo(f"error: {command}: {message} (see `{command} --help`)", err=True)
    return 2


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
