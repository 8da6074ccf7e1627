"""Records ends of tasks without holding up anybody: many at a time, one sync for all of them.

A disk that is full, read-only, broken or slow is waited for: an alert says so, no task is admitted
meanwhile, and what had ended is written when it works again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

from scepsy_hpc.errors import RunError
from scepsy_hpc.formats.results import TaskResult, result_line
from scepsy_hpc.serving.ledger import Ledger, Superseded

FIRST_RETRY_S = 0.5
LAST_RETRY_S = 30.0
SLOW_S = 10.0
"""A write that takes longer is an alert."""
MAX_UNWRITTEN = 256
"""So many ended tasks may wait for the disk before no more are admitted."""
LOOK_EVERY_S = 1.0


class LedgerWriter:
    """Writes to a ledger from a thread. Use it as an async context manager."""

    def __init__(self, ledger: Ledger) -> None:
        """Takes the ledger over: the end of this closes it."""
        self.ledger = ledger
        self.superseded: Superseded | None = None
        self._trouble = ""
        self._waiting: list[tuple[TaskResult, asyncio.Future[None]]] = []
        self._wake = asyncio.Event()
        self._busy = asyncio.Lock()  # one thread at a time touches the ledger
        self._busy_since_s: float | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> LedgerWriter:
        """Begin to write and to look whether another start goes on with the batch."""
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._keep_look())]
        return self

    async def __aexit__(self, *error: object) -> None:
        """Write what waits, once, and close the ledger."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # Of those that waited some may be written already, though nobody was told.
        left = [result for result, _ in self._waiting if self.ledger.is_open(result.task_id)]
        with contextlib.suppress(OSError, RunError):
            if left:
                await self._in_thread(lambda: self.ledger.append(left))
        await self._in_thread(self.ledger.close)

    @property
    def is_stalled(self) -> bool:
        """Whether what ends now could not be recorded soon."""
        return bool(self._trouble) or len(self._waiting) > MAX_UNWRITTEN

    def alerts(self) -> tuple[str, ...]:
        """What keeps it from writing, and what of the ledger was set aside."""
        found = [self._trouble] if self._trouble else []
        now_s = asyncio.get_running_loop().time()
        if self._busy_since_s is not None and now_s - self._busy_since_s > SLOW_S:
            took_s = now_s - self._busy_since_s
            found.append(f"{self.ledger.results}: the file system has been busy for {took_s:.0f} s")
        return (*found, *_first_of(self.ledger.merged.problems))

    async def record(self, result: TaskResult) -> None:
        """Return when the record is on disk.

        Raises Unrecordable, Superseded, and RunError where there is a record already.
        """
        result_line(result)
        if self.superseded:
            raise self.superseded
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((result, done))
        self._wake.set()
        await done

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            group = list(self._waiting)
            if group:
                failure = await self._until_written([result for result, _ in group])
                del self._waiting[: len(group)]
                for _, done in group:
                    _settle(done, failure)

    async def _until_written(self, results: list[TaskResult]) -> RunError | None:
        """None once they are on disk; what makes that impossible for good."""
        pause_s = FIRST_RETRY_S
        while not self.superseded:
            try:
                await self._in_thread(lambda: self.ledger.append(results))
                self._trouble = ""
                return None
            except Superseded as error:
                self.superseded = error
            except RunError as error:
                return error
            except OSError as error:
                self._trouble = (
                    f"{self.ledger.results}: cannot be written ({error.strerror}); "
                    f"{len(self._waiting)} tasks that ended wait for it, no new ones begin"
                )
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LAST_RETRY_S)
        return self.superseded

    async def _keep_look(self) -> None:
        """Look for a successor, and keep ``results.jsonl`` up to date."""
        while not self.superseded:
            try:
                await self._in_thread(self.ledger.look)
                await self._in_thread(self.ledger.refresh)
            except Superseded as error:
                self.superseded = error
            except OSError:
                pass  # the next write says it
            await asyncio.sleep(LOOK_EVERY_S)

    async def _in_thread(self, work: Callable[[], None]) -> None:
        """Also when cancelled, nobody else touches the ledger before the work is done."""
        async with self._busy:
            self._busy_since_s = asyncio.get_running_loop().time()
            doing = asyncio.create_task(asyncio.to_thread(work))
            try:
                await asyncio.shield(doing)
            except asyncio.CancelledError:
                await asyncio.wait([doing])
                raise
            finally:
                self._busy_since_s = None


def _settle(done: asyncio.Future[None], failure: RunError | None) -> None:
    if done.done():  # who waited was cancelled
        return
    if failure is None:
        done.set_result(None)
    else:
        done.set_exception(failure)


async def open_writer(
    results: Path, attempt: str, retry_round: str | None, on_trouble: Callable[[str], None]
) -> LedgerWriter:
    """Open the ledger as soon as the disk allows; ``on_trouble`` is told why not. Cancellable."""
    pause_s = FIRST_RETRY_S
    while True:
        try:
            ledger = await asyncio.to_thread(Ledger, results, attempt, retry_round)
            on_trouble("")
            return LedgerWriter(ledger)
        except OSError as error:
            on_trouble(f"{results}: cannot be written ({error.strerror}); nothing begins before")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LAST_RETRY_S)


def _first_of(problems: list[str], most: int = 5) -> list[str]:
    more = len(problems) - most
    return problems[:most] + ([f"and {more} more like these"] if more > 0 else [])
