"""Progress of long commands: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

LOG_EVERY_S = 10.0


class ProgressBar:
    """``update(done, total, note)`` as often as you like; writes to stderr."""

    def __init__(self, what: str) -> None:
        """``what`` stands before the bar."""
        self._what = what
        self._console = Console(stderr=True, highlight=False)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            transient=False,
        )
        self._task = self._bar.add_task(what, total=None, note="")
        self._is_terminal = self._console.is_terminal
        self._last = self._said = ""
        self._said_s = 0.0

    def __enter__(self) -> ProgressBar:
        """Show the bar."""
        if self._is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the last state on the screen or in the log."""
        if self._is_terminal:
            self._bar.stop()
        else:
            self._say()

    def update(self, done: int, total: int | None, note: str = "") -> None:
        """Where the work stands."""
        if self._is_terminal:
            self._bar.update(self._task, completed=done, total=total, note=note)
            return
        of = "" if total is None else f" of {total}"
        self._last = f"{self._what}: {done}{of} {note}".rstrip()
        if time.monotonic() - self._said_s >= LOG_EVERY_S:
            self._say()

    def _say(self) -> None:
        """Write the last state, unless it was the last to be written."""
        if self._last != self._said:
            print(self._last, file=sys.stderr, flush=True)
            self._said, self._said_s = self._last, time.monotonic()
