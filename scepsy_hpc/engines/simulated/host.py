"""Ties the batching core to the event loop's clock, and keeps the engine's metrics.

The core lives on absolute times, so a timer that fires late delays one answer and nothing after
it. The loop wakes when an answer falls due, and for streams once in STREAM_PAUSE_S at most: never
for each token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence as Several
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from scepsy_hpc.bundles.step_time import JOIN_WINDOW_S
from scepsy_hpc.engines.simulated.batching import RunningBatch, Sequence
from scepsy_hpc.engines.simulated.settings import Settings

STREAM_PAUSE_S = 0.01

_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class QueueFullError(Exception):
    """As many requests are waiting as may wait."""


@dataclass(slots=True, eq=False)
class Ticket:
    """The sequences of one request; ``changed`` is set when one got tokens or ended."""

    sequences: tuple[Sequence, ...]
    stream: bool
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def done(self) -> bool:
        """Whether every sequence has ended."""
        return all(s.finished_s is not None for s in self.sequences)


class Metrics:
    """vLLM's metric names. Inter-token latency is observed once a call, as its mean."""

    def __init__(self, model_name: str) -> None:
        self.registry = CollectorRegistry()
        names, values = ("model_name",), (model_name,)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"vllm:{name}", text, names, registry=self.registry).labels(*values)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"vllm:{name}", text, names, registry=self.registry).labels(*values)

        def histogram(name: str, text: str) -> Histogram:
            made = Histogram(f"vllm:{name}", text, names, registry=self.registry, buckets=_SECONDS)
            return made.labels(*values)

        self.running = gauge("num_requests_running", "Sequences in the batch.")
        self.waiting = gauge("num_requests_waiting", "Sequences that wait for a seat.")
        self.kv_usage = gauge("kv_cache_usage_perc", "KV cache in use, 1 is all.")
        self.preemptions = counter("num_preemptions", "Sequences sent back to the queue.")
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens, cached ones included.")
        self.generation_tokens = counter("generation_tokens", "Tokens generated.")
        self.cached_tokens = counter("prompt_tokens_cached", "Prompt tokens found in the cache.")
        self.prefix_queries = counter("prefix_cache_queries", "Tokens looked up in the cache.")
        self.prefix_hits = counter("prefix_cache_hits", "Tokens found in the cache.")
        self.ttft = histogram("time_to_first_token_seconds", "TTFT.")
        self.inter_token = histogram("inter_token_latency_seconds", "Mean of each call.")
        self.e2e = histogram("e2e_request_latency_seconds", "From arrival to last token.")
        self.queue_time = histogram("request_queue_time_seconds", "From arrival to joining.")

    def observe(self, sequence: Sequence) -> None:
        """Count a sequence that has ended."""
        end_s, first_s, joined_s = sequence.finished_s, sequence.first_token_s, sequence.joined_s
        assert end_s is not None
        assert first_s is not None
        assert joined_s is not None
        self.prompt_tokens.inc(sequence.prompt_tokens)
        self.cached_tokens.inc(sequence.cached_tokens or 0)
        if sequence.chain:
            self.prefix_queries.inc(sequence.prompt_tokens)
            self.prefix_hits.inc(sequence.cached_tokens or 0)
        self.ttft.observe(first_s - sequence.arrived_s)
        self.e2e.observe(end_s - sequence.arrived_s)
        self.queue_time.observe(joined_s - sequence.arrived_s)
        if sequence.output_tokens > 1:
            self.inter_token.observe((end_s - first_s) / (sequence.output_tokens - 1))


class EngineLoop:
    """One engine on the running event loop."""

    def __init__(self, settings: Settings) -> None:
        self.batch = RunningBatch(
            settings.model, max_num_seqs=settings.max_num_seqs, join_window_s=JOIN_WINDOW_S
        )
        self.metrics = Metrics(settings.served_names[0])
        self._max_queued = settings.max_queued
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._num_preempted = self._num_shown = 0
        self._tickets: dict[int, Ticket] = {}
        self._streams: dict[int, Ticket] = {}

    def submit(self, sequences: Several[Sequence], stream: bool) -> Ticket:
        """Queue the sequences of one request. Raises QueueFullError."""
        self._catch_up()
        if self._max_queued is not None and len(self.batch.waiting) >= self._max_queued:
            raise QueueFullError
        ticket = Ticket(tuple(sequences), stream)
        now_s = self._loop.time()
        for sequence in ticket.sequences:
            self._tickets[id(sequence)] = ticket
            self.batch.add(sequence, now_s)
        if stream:
            self._streams[id(ticket)] = ticket
        self._set_timer()
        return ticket

    async def finish(self, ticket: Ticket) -> None:
        """Return when every sequence of the ticket has ended; cancelled, it gives them up."""
        try:
            while not ticket.done:
                await self.progress(ticket)
        finally:
            self.release(ticket)

    async def progress(self, ticket: Ticket) -> None:
        """Return when something of the ticket has changed since the last call."""
        await ticket.changed.wait()
        ticket.changed.clear()

    def release(self, ticket: Ticket) -> None:
        """Forget a ticket; sequences that have not ended are given up. May be called again."""
        self._streams.pop(id(ticket), None)
        if any(self._tickets.pop(id(s), None) is not None for s in ticket.sequences):
            self._catch_up()
        for sequence in ticket.sequences:
            self._tickets.pop(id(sequence), None)
            self.batch.abort(sequence)
        self._set_timer()

    def text_metrics(self) -> bytes:
        """The metrics page."""
        self._catch_up()
        self._set_timer()
        self.metrics.preemptions.inc(self.batch.num_preemptions - self._num_preempted)
        self._num_preempted = self.batch.num_preemptions
        # As in vLLM, tokens count when they are made, not when their answer is whole.
        self.metrics.generation_tokens.inc(self.batch.num_tokens - self._num_shown)
        self._num_shown = self.batch.num_tokens
        self.metrics.running.set(self.batch.num_running)
        self.metrics.waiting.set(len(self.batch.waiting))
        self.metrics.kv_usage.set(self.batch.kv_usage)
        return bytes(generate_latest(self.metrics.registry))

    def _catch_up(self) -> None:
        for sequence in self.batch.advance(self._loop.time()):
            if sequence.finished_s is None:
                continue
            self.metrics.observe(sequence)
            ticket = self._tickets.pop(id(sequence), None)
            if ticket is not None and (ticket.stream or ticket.done):
                ticket.changed.set()
        for ticket in self._streams.values():
            ticket.changed.set()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due_s = self.batch.next_change_s()
        if due_s is None:
            return
        if self._streams and self.batch.step_end_s is not None:
            due_s = min(due_s, max(self.batch.step_end_s, self._loop.time() + STREAM_PAUSE_S))
        self._timer = self._loop.call_at(due_s, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._catch_up()
        self._set_timer()
