"""What is planned: workflows at their rates, what may host them, and the searches that follow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from scepsy_hpc.formats.plan import Plan, Routing
from scepsy_hpc.formats.spans import spans_of_workflow
from scepsy_hpc.formats.topology import Topology
from scepsy_hpc.planning.aggregate import offers_of
from scepsy_hpc.planning.allocation import allocation_of
from scepsy_hpc.planning.compared import Checker
from scepsy_hpc.planning.curves.curve import MAX_UTILISATION
from scepsy_hpc.planning.offers import Offers
from scepsy_hpc.planning.outline import deployments_on
from scepsy_hpc.planning.pipeline.deployments import pipeline_of
from scepsy_hpc.planning.pipeline.host_time import cores_for_agents
from scepsy_hpc.planning.pipeline.makespan import ClosedBatch
from scepsy_hpc.planning.pipeline.pipeline import Pipeline
from scepsy_hpc.planning.request import PlanRequest
from scepsy_hpc.planning.search.problem import OptionTable, SearchProblem, Solution
from scepsy_hpc.planning.search.search import solve
from scepsy_hpc.planning.simulation.tails import Tails
from scepsy_hpc.planning.targets import Limits


@dataclass(frozen=True, slots=True)
class PlanningProblem:
    """The workflows at their rates, what each LLM may run on, the GPUs, the limits.

    ``run_lengths_s`` and ``tool_times_s`` are those of the traced runs; ``tails`` replays them and
    ``checker`` simulates them, where there are any. ``wants_rates``: the rates were given, and are
    no mere mix.
    """

    pipeline: Pipeline
    offers: Mapping[str, Offers]
    topology: Topology
    limits: Limits
    run_lengths_s: tuple[float, ...] = ()
    tool_times_s: tuple[float, ...] = ()
    tails: Tails | None = None
    checker: Checker | None = None
    wants_rates: bool = False

    @classmethod
    def of(cls, request: PlanRequest, client: Any = None) -> PlanningProblem:
        """The problem of a request with demands. Raises InputError, InfeasibleError."""
        flows, demands = request.flows, request.demands
        pipeline = pipeline_of(flows, demands, request.rates_of())
        offers = offers_of(pipeline, request.bundles, request.topology, request.engine, client)
        only = demands[flows[0].name] if len(flows) == 1 else None
        tails = checker = None
        if request.spans:
            tails = Tails.of(
                {f.name: spans_of_workflow(request.spans[f.name], f.name) for f in flows}
            )
            checker = Checker(tails.graphs, offers, request.check_calls)
        return cls(
            pipeline,
            offers,
            request.topology,
            request.limits,
            only.run_lengths_s if only else (),
            only.tool_times_s if only else (),
            tails,
            checker,
            request.wants_rates,
        )

    def batch(self, num_tasks: int, max_runs_in_flight: int) -> ClosedBatch:
        """A batch of the only workflow's runs."""
        return ClosedBatch(num_tasks, max_runs_in_flight, self.run_lengths_s, self.tool_times_s)

    def at_rates(self, factor: float) -> PlanningProblem:
        """The same at ``factor`` times the rates."""
        return replace(self, pipeline=self.pipeline.at_rates(factor))

    def agent_cores(self, solution: Solution) -> float | None:
        """Cores that the agents share where the solution is placed; None where nobody asks."""
        if all(load.cpu_s is None for load in self.pipeline.workflows):
            return None
        placed = Plan(
            llms=deployments_on(self.pipeline.hosted_by(solution.chosen), self.offers),
            instances=solution.instances,
            allocation=allocation_of(solution.instances, self.topology),
        )
        return cores_for_agents(placed)

    def placed(self, solution: Solution) -> Pipeline:
        """The pipeline with those cores."""
        return replace(self.pipeline, agent_cores=self.agent_cores(solution))

    def p95_s(self, solution: Solution) -> float:
        """Largest 95th percentile over the workflows by replay; infinite where it is unknown."""
        assert self.tails is not None
        return self.tails.p95_s(self.placed(solution), self.pipeline.hosted_by(solution.chosen))

    def simulated_p95_s(self, solution: Solution, part: float = 1.0) -> float:
        """The same by simulation with that part of the calls; infinite where it is overloaded."""
        assert self.checker is not None
        hosted = self.pipeline.hosted_by(solution.chosen)
        found = self.checker.at_rates(self.placed(solution), hosted, part).per_workflow.values()
        return max(f.latency_p95_s if f.latency_p95_s is not None else math.inf for f in found)

    @property
    def routing(self) -> Routing:
        """The dispatcher's rule that choices are simulated under."""
        return self.checker.routing if self.checker else Routing()

    @property
    def p95_limit_s(self) -> float:
        """The limit on it; infinite where there is none."""
        return math.inf if self.limits.p95_limit_s is None else self.limits.p95_limit_s

    def _tables(self, with_cost: bool = True) -> tuple[OptionTable, ...]:
        room = {
            name: [(offer.curve, offer.most_replicas) for offer in offers.found]
            for name, offers in self.offers.items()
        }
        return self.pipeline.tables(room, with_cost)

    def least_latency(self, num_gpus: int | None = None, capped: bool = True) -> SearchProblem:
        """Least mean latency on at most so many GPUs; ``capped``: within the limit on it."""
        limit_s = self.limits.latency_limit_s if capped else None
        allowed = [n for n in (num_gpus, self.limits.num_gpus) if n is not None]
        return SearchProblem(
            self._tables(),
            self.topology,
            "min_cost",
            max_gpus=min(allowed, default=None),
            max_cost_s=None if limit_s is None else limit_s - self.pipeline.tool_time_s,
            constant_s=self.pipeline.tool_time_s,
            time_limit_s=self.limits.time_limit_s,
        )

    def fastest(self, within_pct: float | None = None) -> Solution:
        """Largest throughput, in units of the pipeline's rates; costs are left out.

        With ``within_pct`` on the fewest GPUs, but never below the rates that were given.
        """
        search = SearchProblem(
            self._tables(with_cost=False),
            self.topology,
            "max_throughput",
            max_gpus=self.limits.num_gpus,
            within_pct=within_pct,
            time_limit_s=self.limits.time_limit_s,
        )
        if within_pct is None or not self.wants_rates:
            return solve(search)
        kept = solve(replace(search, min_throughput_rps=(1.0 + 1e-9) / MAX_UTILISATION))
        return kept if kept.is_feasible else solve(search)
