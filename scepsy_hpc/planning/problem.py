"""One planning problem, and the searches that are asked about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scepsy_hpc.formats.topology import Topology
from scepsy_hpc.planning.curves.curve import Curve
from scepsy_hpc.planning.offers import Offers
from scepsy_hpc.planning.pipeline.pipeline import Pipeline
from scepsy_hpc.planning.pipeline.predict import Hosted
from scepsy_hpc.planning.search.problem import OptionTable, SearchProblem, Solution
from scepsy_hpc.planning.search.search import solve
from scepsy_hpc.planning.simulation.tails import Tails
from scepsy_hpc.planning.targets import Limits


def hosted_by(pipeline: Pipeline, solution: Solution) -> tuple[Hosted, ...]:
    """Stages on the options of a solution."""
    found = []
    for stage in pipeline.stages:
        option = solution.chosen[stage.name]
        assert isinstance(option.payload, Curve)
        found.append(Hosted(stage, option.payload, option.num_replicas))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Case:
    """One planning problem: the workflows at their rates, what each LLM may run on, the GPUs."""

    pipeline: Pipeline
    offers: Mapping[str, Offers]
    topology: Topology
    limits: Limits
    run_lengths_s: tuple[float, ...] = ()
    tails: Tails | None = None

    def p95_s(self, pipeline: Pipeline, solution: Solution) -> float:
        """Largest 95th percentile over the workflows by replay; infinite where it is unknown."""
        assert self.tails is not None
        return self.tails.p95_s(pipeline, hosted_by(pipeline, solution))

    def keeps_p95(self, pipeline: Pipeline, solution: Solution) -> bool:
        """Whether a solution at the rates of ``pipeline`` keeps the limit on the p95."""
        limit_s = self.limits.p95_limit_s
        return limit_s is None or self.p95_s(pipeline, solution) <= limit_s

    def tables(self, pipeline: Pipeline, with_cost: bool = True) -> tuple[OptionTable, ...]:
        """The search's options at the rates of ``pipeline``."""
        room = {
            name: [(offer.curve, offer.most_replicas) for offer in offers.found]
            for name, offers in self.offers.items()
        }
        return pipeline.tables(room, with_cost)

    def problem(
        self,
        pipeline: Pipeline,
        num_gpus: int | None = None,
        within_pct: float | None = None,
        capped: bool = True,
    ) -> SearchProblem:
        """Least mean latency at the rates of ``pipeline`` on at most so many GPUs."""
        limit_s = self.limits.latency_limit_s if capped else None
        return SearchProblem(
            self.tables(pipeline),
            self.topology,
            "min_cost",
            max_gpus=_least(num_gpus, self.limits.num_gpus),
            max_cost_s=None if limit_s is None else limit_s - pipeline.tool_time_s,
            within_pct=within_pct,
        )

    def cheapest(
        self, pipeline: Pipeline, num_gpus: int | None = None, capped: bool = True
    ) -> tuple[Solution, tuple[OptionTable, ...]]:
        """The answer to ``problem``, and the options it had."""
        problem = self.problem(pipeline, num_gpus, capped=capped)
        return solve(problem), problem.tables

    def fastest(self, within_pct: float | None = None) -> Solution:
        """Largest throughput, in units of the pipeline's rates; costs are left out."""
        tables = self.tables(self.pipeline, with_cost=False)
        return solve(
            SearchProblem(
                tables,
                self.topology,
                "max_throughput",
                max_gpus=self.limits.num_gpus,
                within_pct=within_pct,
            )
        )


def _least(*values: int | None) -> int | None:
    return min((v for v in values if v is not None), default=None)
