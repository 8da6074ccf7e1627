"""Where a task begins on its node: nothing is unpickled that another user could have written.

    python -P -u -m scepsy_hpc.cluster.jobs.entry ... FOLDER

submitit puts words of its own before the folder. Its process reads and writes through the folder's
open descriptor, so that whoever swaps the path afterwards changes nothing; ``-P`` keeps modules
that lie in the working directory out.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from scepsy_hpc.cluster.owned import open_own_folder
from scepsy_hpc.errors import InputError


def entry_command(python: str) -> str:
    """What stands where submitit puts its Python; ``python`` is quoted for a shell."""
    return f"{python} -P -u -m {__spec__.name}"


def begin(arguments: list[str]) -> int:
    """Run the task whose pickle lies in the folder that the last argument names."""
    from submitit.core.submission import process_job

    folder = Path(arguments[-1])
    try:
        descriptor = open_own_folder(folder)
    except InputError as error:
        print(f"scepsy: refused: {error}", file=sys.stderr, flush=True)
        return 2
    # As others see it: the processes of this task may come to read it, too.
    process_job(f"/proc/{os.getpid()}/fd/{descriptor}")
    return 0


def quoted_command(python: str, folder: Path) -> str:
    """The whole command of a task for a shell."""
    return f"{entry_command(python)} -u -m submitit.core._submit {shlex.quote(str(folder))}"


if __name__ == "__main__":
    sys.exit(begin(sys.argv[1:]))
