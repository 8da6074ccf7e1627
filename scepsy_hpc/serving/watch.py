"""Watches one engine in service: whether it works, or only its process lives.

Three signs count as work: bytes of answers that the dispatcher saw, token counters of the engine
that move, and the answer to a token of our own, asked for only when the others are silent. A
saturated engine shows one of the first two however long its queue is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Literal

import aiohttp

from scepsy_hpc.engines.config import EngineConfig
from scepsy_hpc.engines.probe import ask, work_done
from scepsy_hpc.serving.patience import Patience

MOST_LOOK_S = 1.0
# Of the patience: silence after which counters are read, a token is asked for, a suspect is hung.
COUNT_AT, PROBE_AT, HUNG_AT = 1.0 / 6.0, 1.0 / 3.0, 1.2

Verdict = Literal["sound", "suspect", "hung"]


@dataclass(slots=True)
class Watch:
    """How long an engine has been silent; ``run`` looks. ``traffic``: changes with each byte."""

    config: EngineConfig
    base_url: str
    patience: Patience
    traffic: Callable[[], object]
    silent_s: float = 0.0
    _said: str = "no token was asked for"
    _bytes: object = None
    _work: float | None = None
    _look_s: float = field(init=False)

    def __post_init__(self) -> None:
        """Look thirty times within the patience, and every second at least."""
        self._look_s = min(MOST_LOOK_S, self.patience.limit_s / 30.0)

    @property
    def verdict(self) -> Verdict:
        """What the silence so far means."""
        if self.silent_s < self.patience.limit_s:
            return "sound"
        return "suspect" if self.silent_s < HUNG_AT * self.patience.limit_s else "hung"

    @property
    def evidence(self) -> str:
        """The silence in a sentence."""
        return (
            f"no sign of work for {self.silent_s:.3g} s (patience {self.patience.limit_s:.3g} s: "
            f"{self.patience.why}); a token asked for: {self._said}"
        )

    async def run(self) -> None:
        """Look until cancelled."""
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
            group.create_task(self._listen())
            group.create_task(self._count(session))
            group.create_task(self._probe(session))

    async def _listen(self) -> None:
        while True:
            before_s = monotonic()
            await asyncio.sleep(self._look_s)
            # What stops this process stops its view, too: then a look is late, not the engine.
            self.silent_s += min(monotonic() - before_s, 2.0 * self._look_s)
            if (seen := self.traffic()) != self._bytes:
                self._bytes, self.silent_s = seen, 0.0

    async def _count(self, session: aiohttp.ClientSession) -> None:
        while True:
            await asyncio.sleep(self._look_s)
            # An engine whose bytes flow need not be asked.
            if self.silent_s < COUNT_AT * self.patience.limit_s:
                continue
            work = await work_done(session, self.base_url, self.patience.limit_s)
            if work is not None:
                if self._work is not None and work != self._work:
                    self.silent_s = 0.0
                self._work = work

    async def _probe(self, session: aiohttp.ClientSession) -> None:
        while True:
            await asyncio.sleep(self._look_s)
            if self.silent_s < PROBE_AT * self.patience.limit_s:
                continue
            self._said = "no answer yet"
            answer = await ask(session, self.config, self.base_url, self.patience.limit_s)
            self._said = answer.reason
            if answer.ready:
                self.silent_s = 0.0
