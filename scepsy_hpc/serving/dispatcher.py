"""Routes the calls of running agents to engines; knows endpoints only by the nodes' reports."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from scepsy_hpc.formats.plan import Plan, Routing
from scepsy_hpc.formats.spans import Span
from scepsy_hpc.serving.routing import Routes, retry_delay_s
from scepsy_hpc.tracing.proxy.router import CallOutcome, CallTarget, Refused, unknown_alias

SUSPECT_S = 5.0
FAULTS = frozenset(
    ("unreachable", "broken_off", "error_stream", "error_500", "error_502", "error_503")
)


@dataclass(slots=True)
class Dispatcher:
    """The router that the recording proxy asks. ``workflow_of`` maps runs to workflows.

    ``engine_wait_s`` is how long a call waits for a deployment of which no instance is ready.
    """

    routes: Routes
    api_key: str
    engine_wait_s: float = 600.0
    routing: Routing = field(default_factory=Routing)
    workflow_of: dict[str, str] = field(default_factory=dict)
    default_workflow: str | None = None
    faulted: set[str] = field(default_factory=set)
    called: dict[str, set[str]] = field(default_factory=dict)

    def aliases(self, run_id: str) -> Sequence[str]:
        """Aliases of the workflow that this run belongs to."""
        return self.routes.known_aliases(self._workflow(run_id))

    def _workflow(self, run_id: str) -> str:
        return self.workflow_of.get(run_id, self.default_workflow or "")

    async def pick(
        self, alias: str, run_id: str, avoid: frozenset[str], holder: str | None = None
    ) -> CallTarget:
        """An instance for one call; waits while none is ready. Raises Refused."""
        deployment = self.routes.deployment(self._workflow(run_id), alias)
        if deployment is None:
            raise unknown_alias(alias, self.aliases(run_id))
        if self.routing.rule != "sticky_prefix":
            holder = None
        until_s = time.monotonic() + self.engine_wait_s
        while True:
            chosen = self.routes.pick(
                deployment, time.monotonic(), avoid, holder, self.routing.max_behind
            )
            if chosen is not None:
                name, url = chosen.instance_id, chosen.base_url
                if run_id in self.workflow_of:
                    self.called.setdefault(run_id, set()).add(name)
                return CallTarget(url, deployment, name, self.api_key, chosen.wire)
            if time.monotonic() > until_s:
                self.faulted.add(run_id)
                message = f"no instance of {deployment} is ready after {self.engine_wait_s:g} s"
                raise Refused(503, "no_instance_ready", message)
            await asyncio.sleep(0.2)

    def release(self, target: CallTarget, outcome: CallOutcome) -> None:
        """Count the call out; an instance that did not answer is suspect for a while."""
        self.routes.release(target.name)
        if outcome.status in ("unreachable", "broken_off"):
            self.routes.suspect(target.name, time.monotonic() + SUSPECT_S)

    def met_fault(self, run_id: str) -> bool:
        """Whether an engine failed in this run, or one that it called is suspect or gone by now."""
        found = [self.routes.instances.get(name) for name in self.called.get(run_id, ())]
        now_s = time.monotonic()
        ill = any(i is None or not i.ready or i.suspect_until_s > now_s for i in found)
        return ill or run_id in self.faulted

    def forget(self, run_id: str) -> None:
        """The run is over."""
        self.workflow_of.pop(run_id, None)
        self.called.pop(run_id, None)
        self.faulted.discard(run_id)

    def retry(self, outcome: CallOutcome, attempt: int) -> float | None:
        """Seconds until another attempt, or None."""
        return retry_delay_s(outcome.status, attempt)

    def saw(self, span: Span) -> None:
        """Remember runs in which an engine failed: such a run may be tried again as a whole."""
        if span.kind == "llm" and span.status in FAULTS:
            self.faulted.add(span.run_id)


def dispatcher_of(plan: Plan, api_key: str, engine_wait_s: float) -> Dispatcher:
    """The dispatcher of a plan, no instance ready yet."""
    aliases = {(w.name, alias): llm for w in plan.workflows for alias, llm in w.llms.items()}
    only = plan.workflows[0].name if len(plan.workflows) == 1 else None
    return Dispatcher(Routes(aliases), api_key, engine_wait_s, plan.routing, default_workflow=only)
