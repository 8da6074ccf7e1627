"""Progress of long commands: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

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
        self._last: tuple[int, int | None, str] | None = None
        self._said_s = 0.0

    def __enter__(self) -> ProgressBar:
        """Show the bar."""
        if self._is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the last state on the screen or in the log."""
        if self._is_terminal:
            self._bar.stop()
        elif self._last is not None:
            self._say(*self._last)

    def update(self, done: int, total: int | None, note: str = "") -> None:
        """Where the work stands."""
        if self._is_terminal:
            self._bar.update(self._task, completed=done, total=total, note=note)
        now_s = time.monotonic()
        if (done, total, note) != self._last and now_s - self._said_s >= LOG_EVERY_S:
            self._last = (done, total, note)
            if not self._is_terminal:
                self._say(done, total, note)
                self._said_s = now_s
                self._last = None
                return
        self._last = (done, total, note)

    def _say(self, done: int, total: int | None, note: str) -> None:
        of = "" if total is None else f" of {total}"
        sys.stderr.write(f"{self._what}: {done}{of} {note}".rstrip() + "\n")
        sys.stderr.flush()
