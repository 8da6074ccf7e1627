"""Sticky routing end to end: real client, proxy, dispatcher and two simulated engines' caches."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import openai
from aiohttp import web

from scepsy_hpc.bundles.step_time import EngineModel
from scepsy_hpc.engines.simulated.server import make_app
from scepsy_hpc.engines.simulated.settings import Settings
from scepsy_hpc.formats.plan import LlmDemand, Plan, PlanWorkflow, Routing
from scepsy_hpc.formats.spans import Span
from scepsy_hpc.serving.dispatcher import dispatcher_of
from scepsy_hpc.tracing.demand.demand import demand_of
from scepsy_hpc.tracing.demand.hits import expected_hit_tokens
from scepsy_hpc.tracing.proxy.proxy import RecordingProxy

NUM_RUNS, NUM_TURNS = 5, 4
ENGINE = Settings(
    model_name="m",
    served_names=("writer",),
    model=EngineModel(1e-4, 1e-7, 1e-6, 0.0, kv_tokens=100_000.0),
    max_num_seqs=16,
    max_model_len=50_000,
    max_queued=None,
    output_tokens_mean=30.0,
    seed=0,
    api_key=None,
    timing="t",
)


async def served(stack: AsyncExitStack) -> str:
    """A simulated engine of its own; its address."""
    runner = web.AppRunner(make_app(ENGINE), handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return f"http://127.0.0.1:{runner.addresses[0][1]}"


async def conversation(proxy: RecordingProxy, number: int) -> None:
    """Turns of which each sends all that was said before."""
    messages: Any = []
    async with openai.AsyncOpenAI(
        base_url=proxy.base_url(f"r{number}"), api_key="k", max_retries=0
    ) as client:
        for turn in range(NUM_TURNS):
            content = f"Run {number}, turn {turn}: what of rivers and hills? " * 20
            messages.append({"role": "user", "content": content})
            answer = await client.chat.completions.create(
                model="writer", messages=messages, max_tokens=40
            )
            messages.append({"role": "assistant", "content": answer.choices[0].message.content})


async def recorded(routing: Routing) -> list[Span]:
    """Spans of all runs, one turn of one run at a time, on two replicas."""
    spans: list[Span] = []
    plan = Plan(workflows=(PlanWorkflow(name="w", llms={"writer": "writer"}),), routing=routing)
    async with AsyncExitStack() as stack:
        addresses = [await served(stack) for _ in range(2)]
        dispatcher = dispatcher_of(plan, "key", 10.0)
        dispatcher.routes.update({f"w-{i}": ("writer", a) for i, a in enumerate(addresses)})
        async with RecordingProxy(dispatcher, spans.append) as proxy:
            for number in range(NUM_RUNS):
                await conversation(proxy, number)
    return spans


def test_sticky_calls_find_what_they_repeat_and_others_do_not() -> None:
    """A sticky turn goes to the replica of the turn before and finds all of it, to a block; where
    calls take turns it finds at most the turn before that. What demand credits under the sticky
    rule without an engine's word is what the engines report.
    """
    plain = asyncio.run(recorded(Routing()))
    sticky = asyncio.run(recorded(Routing(rule="sticky_prefix")))
    assert [s.prefix_of is not None for s in sticky] == [False, True, True, True] * NUM_RUNS
    by_id = {s.span_id: s for s in sticky}
    for span in sticky:
        if span.prefix_of is None:
            continue
        assert span.host == by_id[span.prefix_of.span_id].host
        assert span.cached_tokens is not None
        assert abs(span.cached_tokens - span.prefix_of.tokens) <= 2 * 16
    # The first turn of a run goes to whoever was idle for longer.
    assert {s.host for s in sticky} == {"w-0", "w-1"}

    demand = demand_of(sticky, "w").llms["writer"].kept()
    credit = expected_hit_tokens(silent(demand), 2, Routing(rule="sticky_prefix"))
    assert demand.cached_tokens_mean is not None
    assert abs(credit - demand.cached_tokens_mean) <= 16
    taking_turns = demand_of(plain, "w").llms["writer"].cached_tokens_mean
    assert taking_turns is not None
    assert taking_turns < 0.7 * demand.cached_tokens_mean


def silent(demand: LlmDemand) -> LlmDemand:
    """As if no engine had said what it cached."""
    return LlmDemand(
        calls_per_run=demand.calls_per_run,
        parallelism=demand.parallelism,
        share_mean=demand.share_mean,
        input_tokens_mean=demand.input_tokens_mean,
        prefix_tokens_mean=demand.prefix_tokens_mean,
    )
