"""What one rank does from its first sign of life to the end: it hosts, and leads when it must.

Engines outlive the lead: when the rank that leads falls silent, the lowest that lives claims the
next term, finds the engines of the others ready, and goes on with the batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Iterable
from dataclasses import replace
from typing import Any

from scepsy_hpc.errors import RunError, ScepsyError
from scepsy_hpc.formats.status import Death, RunStatus
from scepsy_hpc.serving.addresses import LOOPBACK, node_address, own_address
from scepsy_hpc.serving.allocation import (
    GrantedNode,
    PlacedInstance,
    local_nodes,
    place_anew,
    place_on,
    this_node,
)
from scepsy_hpc.serving.beats import Pulse
from scepsy_hpc.serving.deaths import death_of, rank_log
from scepsy_hpc.serving.lead import Lead
from scepsy_hpc.serving.ledger import Superseded
from scepsy_hpc.serving.node_agent import NodeAgent
from scepsy_hpc.serving.run_folder import read_json, write_json
from scepsy_hpc.serving.start import Run
from scepsy_hpc.serving.terms import Deposed, Terms, is_over

_LOOK_S = 0.5
# Engines end within so long; a lead or host that does not is cancelled.
_END_S = 60.0
_LOOKS_AT_OTHERS = 6.0


class Member:
    """One rank of one start of a run; ``take_part`` until it ends."""

    def __init__(self, run: Run, stopping: asyncio.Event, interrupted: asyncio.Event) -> None:
        """``stopping`` ends it in order; ``interrupted`` is set where a signal is the reason."""
        self._run, self._stopping, self._interrupted = run, stopping, interrupted
        self._terms = Terms(run.attempt)
        ranks = range(run.num_ranks)
        patience_s = run.settings.node_lost_s
        self._pulses = {r: Pulse(run.attempt, r, patience_s) for r in ranks if r != run.rank}
        self._began_s = self._looked_s = time.monotonic()
        self._nameless_s: float | None = None

    async def take_part(self) -> None:
        """Return when the run is over. Raises RunError; Deposed where another rank took over."""
        run = self._run
        if not run.pretended:
            write_json(run.attempt.node(run.rank), this_node(run.rank, run.host))
        hosting = asyncio.create_task(self._host())
        try:
            await self._follow_or_lead(hosting)
        finally:
            self._stopping.set()
            await _ended(hosting, _END_S)
        if not hosting.cancelled():
            hosting.result()

    async def _host(self) -> None:
        """Host what each placement gives this rank, until ``stopping``."""
        run, hosted = self._run, set[tuple[str, int]]()
        agents: list[asyncio.Task[None]] = []
        try:
            while not self._stopping.is_set():
                placed = read_json(run.attempt.placement, tuple[PlacedInstance, ...]) or ()
                own = [p for p in placed if run.pretended or p.rank == run.rank]
                new = [p for p in own if (p.instance.id, p.term) not in hosted]
                if new:
                    hosted |= {(p.instance.id, p.term) for p in new}
                    address = node_address([p.host for p in placed], run.host)
                    agents.append(
                        asyncio.create_task(NodeAgent(run, new, address).run(self._stopping))
                    )
                for agent in agents:
                    if agent.done() and not self._stopping.is_set():
                        agent.result()
                await _wait(self._stopping, _LOOK_S if agents else 0.1)
        finally:
            self._stopping.set()
            ends = await asyncio.gather(*agents, return_exceptions=True)
        for end in ends:
            if isinstance(end, BaseException):
                raise end

    async def _follow_or_lead(self, hosting: asyncio.Task[None]) -> None:
        """Until this rank has led to the end, or another has."""
        while not (self._stopping.is_set() or hosting.done() or self._run.attempt.stop.exists()):
            term, leader = self._terms.look()
            if leader == self._run.rank:
                await self._lead(term, hosting)
                return
            if not (self._is_lost(leader) and self._is_next()):
                self._look_at_others()
                await _wait(self._stopping, _LOOK_S)
            elif not self._terms.claim(term + 1, self._run.rank):
                await _wait(self._stopping, _LOOK_S)  # another was faster, or the disk is full

    def _is_lost(self, leader: int | None) -> bool:
        """Whether nobody leads. Raises RunError for a lead that was never seen.

        Such a one is not lost: then the folder is not shared, and nobody may begin alone.
        """
        now_s, settings = time.monotonic(), self._run.settings
        if leader is None:  # Claimed, but by whom is not written yet.
            self._nameless_s = self._nameless_s or now_s
            return now_s - self._nameless_s > settings.node_lost_s
        self._nameless_s = None
        if not self._pulses[leader].is_lost():
            return False
        limit_s = max(settings.nodes_timeout_s, settings.node_lost_s)
        if not self._pulses[leader].was_seen and now_s - self._began_s > limit_s:
            raise RunError(
                f"rank {leader} did not show itself within {limit_s:g} s; is "
                f"{self._run.attempt.root} on a file system that every node shares?"
            )
        return self._pulses[leader].was_seen

    def _is_next(self) -> bool:
        """Whether all lower ranks are lost."""
        return all(p.is_lost() for rank, p in self._pulses.items() if rank < self._run.rank)

    def _look_at_others(self) -> None:
        """Now and then, so that it is known who lives when the lead does not: n x n small files."""
        if time.monotonic() - self._looked_s > self._run.settings.node_lost_s / _LOOKS_AT_OTHERS:
            self._looked_s = time.monotonic()
            for pulse in self._pulses.values():
                pulse.is_lost()

    async def _lead(self, term: int, hosting: asyncio.Task[None]) -> None:
        """Lead from ``term`` to the end of the run. Raises RunError; Deposed without a word."""
        run = replace(self._run, term=term)
        lead = None
        try:
            if term:
                run = replace(run, last_lead=self._last_lead())
            placed = await self._placement(run)
            write_json(run.attempt.placement, placed)
            # Clients of a hosted plan sit on other machines; agents sit here.
            reachable = run.settings.serve and not run.pretended
            listen = own_address() if reachable else LOOPBACK
            lead = Lead(run, placed, self._interrupted, listen)
            await self._beside(hosting, _until_deposed(lead.run(), run))
        except Deposed:
            raise
        except Exception as error:
            if is_over(run.attempt, term):
                raise Deposed(_deposed(run)) from error
            if isinstance(error, Superseded):
                raise  # the folder's status is its successor's
            last = lead.status.now() if lead else RunStatus(attempt=run.attempt.root.name)
            reason = str(error) if isinstance(error, ScepsyError) else repr(error)
            failed = replace(last, state="failed", error=reason, lead=run.rank)
            write_json(run.folder.status, failed.plain())
            raise
        finally:
            if not is_over(run.attempt, term):
                write_json(run.attempt.stop, {"since_s": time.time()})
        lead.status.write(lead.status.last_state())

    async def _beside(self, hosting: asyncio.Task[None], work: Coroutine[Any, Any, None]) -> None:
        """Run both; when one ends or fails, stop the other, wait for it, raise the first error."""
        leading = asyncio.create_task(work)
        await asyncio.wait({leading, hosting}, return_when=asyncio.FIRST_COMPLETED)
        first = hosting if hosting.done() else leading
        self._stopping.set()
        await _ended(hosting, _END_S)
        await _ended(leading, _END_S)
        for task in (first, hosting, leading):
            if not task.cancelled():
                task.result()

    def _last_lead(self) -> Death:
        """What is known of the rank that led before this one."""
        before = read_json(self._run.folder.status, RunStatus)
        rank = before.lead if before else 0
        node = read_json(self._run.attempt.node(rank), GrantedNode)
        how = (
            f"rank {rank} on {node.host if node else 'an unknown host'}: no sign of life for "
            f"{self._run.settings.node_lost_s:g} s; rank {self._run.rank} leads since"
        )
        return death_of(how, rank_log(self._run.folder, rank))

    async def _placement(self, run: Run) -> tuple[PlacedInstance, ...]:
        """Of the first term as planned; later what is left, moved as far as there is room."""
        if run.pretended:
            return place_on(run.plan, local_nodes(run.plan, run.host))
        placed = read_json(run.attempt.placement, tuple[PlacedInstance, ...])
        if run.term == 0:
            return place_on(run.plan, await self._gather(range(run.num_ranks)))
        alive = [r for r, pulse in self._pulses.items() if not pulse.is_lost()]
        nodes = await self._gather([run.rank, *alive])
        if placed is None:
            return place_on(run.plan, nodes)
        anew = place_anew(placed, nodes, run.term)
        missing = set(run.plan.llms) - {one.instance.llm for one in anew}
        if missing:
            lost = sorted({one.host for one in placed} - {node.host for node in nodes})
            raise RunError(
                f"{', '.join(sorted(missing))}: no instance is left after node "
                f"{', '.join(lost) or 'loss'} was lost, and no other node has room for one; "
                "--resume goes on in a new allocation"
            )
        return anew

    async def _gather(self, ranks: Iterable[int]) -> tuple[GrantedNode, ...]:
        """What these ranks were given. Raises RunError where one does not say."""
        attempt, limit_s = self._run.attempt, self._run.settings.nodes_timeout_s
        wanted, until_s = sorted(ranks), time.monotonic() + limit_s
        while True:
            reports = {rank: read_json(attempt.node(rank), GrantedNode) for rank in wanted}
            missing = [rank for rank, report in reports.items() if report is None]
            if not missing:
                return tuple(report for report in reports.values() if report)
            if time.monotonic() > until_s:
                raise RunError(
                    f"ranks {missing} of {self._run.num_ranks} did not report within "
                    f"{limit_s:g} s; is {attempt.root} on a file system that every node shares? "
                    "Nothing was run"
                )
            await asyncio.sleep(0.3)


async def _until_deposed(work: Coroutine[Any, Any, None], run: Run) -> None:
    """Do the work of the lead. Raises Deposed, with the work cancelled, once a later term began."""
    working = asyncio.create_task(work)
    try:
        while not working.done():
            if is_over(run.attempt, run.term):
                raise Deposed(_deposed(run))
            await asyncio.wait([working], timeout=_LOOK_S)
    finally:
        working.cancel()
        await asyncio.wait([working])
    working.result()


def _deposed(run: Run) -> str:
    return (
        f"rank {run.rank} was silent for over {run.settings.node_lost_s:g} s; another rank leads "
        "since and goes on with the batch: nothing recorded is lost"
    )


async def _wait(event: asyncio.Event, limit_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), limit_s)


async def _ended(task: asyncio.Task[None], limit_s: float) -> None:
    """Wait for its end; after ``limit_s`` it is cancelled. What it raised stays with it."""
    await asyncio.wait([task], timeout=limit_s)
    task.cancel()
    await asyncio.wait([task])
