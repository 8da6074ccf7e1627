"""What is wrong always comes with what to do."""

from __future__ import annotations

import errno
import sys

import pytest

from scepsy_hpc.cluster.site import Site
from scepsy_hpc.errors import InputError, RunError
from scepsy_hpc.report.findings import ASK, Check, call, said_last


@pytest.mark.parametrize(
    ("raised", "own_fix", "state", "detail", "fix"),
    [
        (InputError("not here; load it"), "", "missing", "not here", "load it"),
        (RunError("is off; turn it on"), "use another", "broken", "is off", "use another"),
        (RunError("is off"), "", "broken", "is off", ASK),
        (OSError(errno.EACCES, "Permission denied", "/x"), "", "broken", "/x: Permission", ASK),
    ],
)
def test_whatever_goes_wrong_ends_with_a_fix(raised, own_fix, state, detail, fix):
    """Missing, broken, or a damaged thing that nobody thought of: state, detail and a fix."""

    def look(site):
        raise raised

    found = Check("thing", "all", look, own_fix).finding(Site())
    assert (found.state, found.fix) == (state, fix)
    assert found.detail.startswith(detail)


def test_a_program_that_hangs_or_is_none_has_failed():
    """Doctor itself never hangs on what it looks at."""
    slow = call(sys.executable, "-c", "import time; time.sleep(600)", limit_s=0.2)
    assert slow.returncode != 0
    assert said_last(slow) == "no answer within 0.2 s"
    gone = call("/no/such/program")
    assert said_last(gone) == "/no/such/program: No such file or directory"
