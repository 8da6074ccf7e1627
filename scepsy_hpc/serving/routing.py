"""The dispatcher's decisions, without a network: which instance takes a call, when to try again.

The rule itself is ``engines.picking``; here is which instances it may choose among. The simulator
keeps the same order in a heap, as picking is its inner loop (``planning/simulation/events.py``): a
test holds both to the same choices.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from scepsy_hpc.engines.picking import pick
from scepsy_hpc.tracing.proxy.router import Wire


@dataclass(slots=True)
class InstanceState:
    """What the dispatcher knows of one instance."""

    instance_id: str
    deployment: str
    base_url: str
    in_flight: int = 0
    last_picked: int = 0
    ready: bool = True
    num_calls: int = 0
    suspect_until_s: float = 0.0
    wire: Wire = field(default_factory=Wire)


@dataclass(slots=True)
class Routes:
    """Instances by deployment, and deployments by (workflow, alias)."""

    aliases: dict[tuple[str, str], str]
    instances: dict[str, InstanceState] = field(default_factory=dict)
    num_picked: int = 0

    def deployment(self, workflow: str, alias: str) -> str | None:
        """Deployment that an alias of a workflow means; None when the plan has no such alias."""
        return self.aliases.get((workflow, alias))

    def known_aliases(self, workflow: str) -> list[str]:
        """Aliases of one workflow."""
        return sorted(alias for name, alias in self.aliases if name == workflow)

    def pick(
        self,
        deployment: str,
        now_s: float,
        avoid: frozenset[str],
        holder: str | None = None,
        max_behind: int = 0,
    ) -> InstanceState | None:
        """Take an instance for one call; None when no instance of the deployment is ready.

        One in ``avoid`` (it failed this very call) or under suspicion is taken only where no other
        is left. ``holder``: the instance that holds the call's prefix, see ``picking.pick``.
        """
        ready = [i for i in self.instances.values() if i.deployment == deployment and i.ready]
        if not ready:
            return None

        def fault(instance: InstanceState) -> tuple[bool, bool]:
            return instance.instance_id in avoid, instance.suspect_until_s > now_s

        least = min(map(fault, ready))
        sound = [i for i in ready if fault(i) == least]
        index = pick(
            [i.in_flight for i in sound],
            [i.last_picked for i in sound],
            next((n for n, i in enumerate(sound) if i.instance_id == holder), None),
            max_behind,
        )
        chosen = sound[index]
        self.num_picked += 1
        chosen.last_picked = self.num_picked
        chosen.in_flight += 1
        chosen.num_calls += 1
        return chosen

    def release(self, instance_id: str) -> None:
        """One call on that instance ended."""
        instance = self.instances.get(instance_id)
        if instance is not None:
            instance.in_flight -= 1

    def suspect(self, instance_id: str, until_s: float) -> None:
        """The instance did not answer: prefer others until then."""
        instance = self.instances.get(instance_id)
        if instance is not None:
            instance.suspect_until_s = until_s

    def cut(self, instance_ids: Iterable[str]) -> None:
        """End the calls in flight there: what nothing was streamed of is tried elsewhere."""
        for instance_id in instance_ids:
            if instance_id in self.instances:
                self.instances[instance_id].wire.cut()

    def update(self, endpoints: dict[str, tuple[str, str]]) -> None:
        """Set the ready instances: instance id to (deployment, base URL). Others become unready.

        A restarted instance keeps its counts but gets its new URL.
        """
        for instance_id, (deployment, base_url) in endpoints.items():
            state = self.instances.get(instance_id)
            if state is None:
                self.instances[instance_id] = InstanceState(instance_id, deployment, base_url)
            else:
                state.base_url = base_url
        for instance_id, state in self.instances.items():
            state.ready = instance_id in endpoints


def retry_delay_s(outcome: str, attempt: int) -> float | None:
    """Seconds to wait before trying a call again on another replica; None to give up.

    Asked only where the agent has seen nothing of an answer. ``outcome`` is `unreachable` or
    `broken_off` (the engine is gone), `overloaded` (503: back-pressure, not a dead server) or
    anything else, which is the agent's to see. Engines restart within minutes, so one that is gone
    is tried for about four of them.
    """
    if outcome in ("unreachable", "broken_off") and attempt < 12:
        return float(min(0.1 * 2.0 ** (attempt - 1), 30.0))
    if outcome == "overloaded" and attempt < 200:
        return float(min(0.05 * 2.0 ** (attempt - 1), 2.0))
    return None
