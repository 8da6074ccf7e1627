"""Runs a few tasks of a workflow through the recording proxy: what `scepsy trace` does."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import aiohttp

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.spans import Span, new_run_id
from scepsy_hpc.formats.tasks import Task
from scepsy_hpc.formats.workflow import Agent, Workflow
from scepsy_hpc.tracing.agents.pool import AgentOutcome, AgentPool, agent_environment
from scepsy_hpc.tracing.proxy.proxy import RecordingProxy
from scepsy_hpc.tracing.proxy.router import CallTarget, FixedRouter, reason_of

CHECK_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class TraceProgress:
    """How far a recording is."""

    num_done: int
    num_total: int
    num_calls: int


@dataclass(frozen=True, slots=True)
class Recording:
    """Spans in order of their start, and the error of each task that failed, by task id."""

    spans: tuple[Span, ...]
    failures: dict[str, str]


def trace_workflow(
    workflow: Workflow,
    tasks: Sequence[Task],
    endpoints: Mapping[str, CallTarget],
    *,
    concurrency: int = 1,
    timeout_s: float | None = None,
    on_progress: Callable[[TraceProgress], None] = lambda progress: None,
) -> Recording:
    """Run tasks, record their calls. A failed task's spans are kept: its calls were sent.

    ``endpoints``: where each LLM of the workflow is served, by alias. ``concurrency``: runs at
    once; ``timeout_s``: for one task. Raises InputError: no agent, no tasks, an alias without
    endpoint, an endpoint that cannot be reached.
    """
    if workflow.agent is None:
        raise InputError(f"{workflow.path}: agent: missing; tracing runs it")
    if concurrency < 1:
        raise InputError(f"concurrency ({concurrency}) must be at least 1")
    if not tasks:
        raise InputError(f"no task of {workflow.name} to trace; give at least 1")
    _check_endpoints(workflow, endpoints)
    recorder = _Recorder(workflow, workflow.agent, endpoints, on_progress)
    return asyncio.run(recorder.record(tasks, concurrency, timeout_s))


def _check_endpoints(workflow: Workflow, endpoints: Mapping[str, CallTarget]) -> None:
    for alias in workflow.llms:
        if alias not in endpoints:
            raise InputError(f"endpoint of {alias!r}: missing; {workflow.path} declares this LLM")
    for alias in endpoints:
        if alias not in workflow.llms:
            known = ", ".join(workflow.llms)
            raise InputError(f"endpoint of {alias!r}: {workflow.path} has no such LLM; has {known}")


async def check_reachable(alias: str, target: CallTarget) -> None:
    """Ask an endpoint for its models. Raises InputError when it cannot be reached."""
    timeout = aiohttp.ClientTimeout(total=CHECK_TIMEOUT_S)
    problem = None
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(target.url("models"), headers=target.headers) as answer,
        ):
            if answer.status in (401, 403):
                problem = f"refuses the API key (HTTP {answer.status})"
    except TimeoutError:
        problem = f"gave no answer within {CHECK_TIMEOUT_S:g} s"
    except (aiohttp.ClientError, OSError, ValueError) as error:
        problem = f"cannot be reached: {reason_of(error)}"
    if problem:
        raise InputError(
            f"endpoint of {alias!r}: {target.base_url} {problem}; give one that serves {alias}"
        )


class _Recorder:
    def __init__(
        self,
        workflow: Workflow,
        agent: Agent,
        endpoints: Mapping[str, CallTarget],
        on_progress: Callable[[TraceProgress], None],
    ) -> None:
        self._workflow, self._agent, self._endpoints = workflow, agent, endpoints
        self._on_progress = on_progress
        self._spans: list[Span] = []
        self._failures: dict[str, str] = {}
        self._num_done = self._num_calls = 0

    async def record(
        self,
        tasks: Sequence[Task],
        concurrency: int,
        timeout_s: float | None,
    ) -> Recording:
        for alias, target in self._endpoints.items():
            await check_reachable(alias, target)
        key = secrets.token_urlsafe(24)
        proxy = RecordingProxy(
            FixedRouter(self._endpoints),
            self._add,
            api_key=key,
            workflow_of=lambda run_id: self._workflow.name,
        )
        num_workers = min(concurrency, len(tasks))
        async with proxy, AgentPool(self._agent, num_workers) as pool:
            self._tell(len(tasks))

            async def run_one(task: Task) -> None:
                run_id = new_run_id(task.task_id)
                env = agent_environment(proxy.base_url(run_id), key, task.task_id, run_id)
                self._end(task.task_id, run_id, await pool.run(task.data, env, timeout_s))
                self._tell(len(tasks))

            async with asyncio.TaskGroup() as group:
                for task in tasks:
                    group.create_task(run_one(task))
        # After the proxy has stopped: a call that outlives its run has its span by now.
        spans = tuple(sorted(self._spans, key=lambda span: span.start_s))
        return Recording(spans, self._failures)

    def _add(self, span: Span) -> None:
        self._spans.append(span)
        self._num_calls += 1

    def _end(self, task_id: str, run_id: str, outcome: AgentOutcome) -> None:
        self._num_done += 1
        if outcome.error is not None:
            self._failures[task_id] = outcome.error
        self._spans.append(run_span(run_id, self._workflow.name, outcome))

    def _tell(self, num_total: int) -> None:
        self._on_progress(TraceProgress(self._num_done, num_total, self._num_calls))


def run_span(run_id: str, workflow: str, outcome: AgentOutcome, status: str | None = None) -> Span:
    """The span of a whole run, `ok` or `failed` unless its ``status`` is another."""
    return Span(
        run_id=run_id,
        span_id=f"{run_id}.run",
        kind="run",
        workflow=workflow,
        start_s=outcome.started_s,
        end_s=outcome.finished_s,
        status=status or ("ok" if outcome.error is None else "failed"),
        cpu_s=None if outcome.cpu_s is None else round(outcome.cpu_s, 6),
    )
