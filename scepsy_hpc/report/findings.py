"""One thing that `doctor` looks at: what it found, and the fix where something is wrong."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from scepsy_hpc.cluster.site import Site
from scepsy_hpc.errors import RunError, ScepsyError
from scepsy_hpc.files import record

CALL_LIMIT_S = 20.0
ASK = "ask the site's support, with this line"


@record
class Finding:
    """One thing looked at. ``needed_for`` says which commands do without it."""

    what: str
    state: Literal["ok", "missing", "broken"]
    detail: str
    needed_for: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """``look`` returns what it found; it raises InputError for missing, RunError for broken.

    The fix is ``fix``, else what the error says behind its first semicolon.
    """

    what: str
    needed_for: str
    look: Callable[[Site], str]
    fix: str = ""

    def finding(self, site: Site) -> Finding:
        """Look, and say what was found."""
        state: Literal["ok", "missing", "broken"] = "ok"
        try:
            detail, fix = self.look(site), ""
        except ScepsyError as error:
            state = "broken" if isinstance(error, RunError) else "missing"
            detail, _, fix = str(error).partition("; ")
            fix = self.fix or fix or ASK
        except OSError as error:  # what is looked at may be damaged in any way
            state, fix = "broken", self.fix or ASK
            detail = f"{error.filename or self.what}: {error.strerror or error}"
        return Finding(
            what=self.what, state=state, detail=detail, needed_for=self.needed_for, fix=fix
        )


def findings_of(checks: Iterable[Check], site: Site) -> list[Finding]:
    """What every check found."""
    return [check.finding(site) for check in checks]


def call(*command: str, limit_s: float = CALL_LIMIT_S) -> subprocess.CompletedProcess[str]:
    """Run an outside program; one that hangs or cannot be started has failed."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer within {limit_s:g} s")
    except OSError as error:
        return subprocess.CompletedProcess(command, 1, "", f"{command[0]}: {error.strerror}")


def said_last(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of what a program said, errors first."""
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"
