"""What was chosen for a target, and the messages where nothing meets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from scepsy_hpc.formats.figures import Figures
from scepsy_hpc.formats.plan import Certificate
from scepsy_hpc.planning.curves.curve import MAX_UTILISATION
from scepsy_hpc.planning.pipeline.pipeline import HostedStage, Pipeline
from scepsy_hpc.planning.problem import PlanningProblem
from scepsy_hpc.planning.search.problem import OptionTable, Solution
from scepsy_hpc.planning.targets import Limits

JUST_BELOW = 1.0 - 1e-9


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """How a batch is worked off: its runs in flight, and its makespan by simulation.

    ``makespan_p95_s`` is null where it was not simulated.
    """

    max_runs_in_flight: int
    makespan_p95_s: float | None = None


@dataclass(frozen=True, slots=True)
class Frontier:
    """The best figure known on so many GPUs: what it is, its unit, figure by number of GPUs."""

    what: str
    unit: str
    points: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Choice:
    """What the search chose: the pipeline at the planned rates and the options of its stages.

    ``simulated`` where choosing took a simulation of it. Without a ``frontier`` it is that of the
    solution: mean latency.
    """

    pipeline: Pipeline
    tables: tuple[OptionTable, ...]
    solution: Solution
    certificate: Certificate | None
    batch: PlannedBatch | None = None
    notes: tuple[str, ...] = ()
    simulated: Figures | None = None
    frontier: Frontier | None = None

    @property
    def known_frontier(self) -> Frontier:
        """The frontier of the target, or of the mean latency."""
        if self.frontier is not None:
            return self.frontier
        known = {p.num_gpus: p.value for p in self.solution.frontier if p.value is not None}
        latency_s = {gpus: self.pipeline.mean_latency_s(cost) for gpus, cost in known.items()}
        return Frontier("best mean latency", "s", latency_s)

    @property
    def hosted(self) -> tuple[HostedStage, ...]:
        """Stages on what was chosen for them."""
        return self.pipeline.hosted_by(self.solution.chosen)


def clock_note(limits: Limits) -> tuple[str, ...]:
    """A clock that may decide is said: on a busier machine the same command may plan otherwise."""
    if limits.time_limit_s is None:
        return ()
    return (
        f"time_limit: each search could take {limits.time_limit_s:g} s, so the plan depends on the "
        "machine and its load",
    )


def nearest(problem: PlanningProblem, solution: Solution) -> str:
    """What would be feasible: the highest rate here, or the lowest latency; or more GPUs."""
    rates = ", ".join(f"{w.name} {w.rate_rps:g}" for w in problem.pipeline.workflows)
    fastest = problem.fastest()
    if not fastest.is_feasible:
        if not fastest.proved_infeasible:
            return f"no plan was found: {fastest.refused}"
        return f"no plan fits: {fastest.refused}; {_what_fits(problem)}"
    theta = fastest.throughput_rps * MAX_UTILISATION * JUST_BELOW
    if theta < 1.0:
        near = ", ".join(f"{w.name} {w.rate_rps * theta:.4g}" for w in problem.pipeline.workflows)
        return (
            f"rate {rates} runs/s is out of reach here: the nearest feasible rate is {near} runs/s "
            f"({100 * MAX_UTILISATION:.0f}% of capacity on {fastest.num_gpus} GPUs)"
            f"{or_gpus(problem, solution)}{_unproved(solution, fastest.proved)}"
        )
    if solution.nearest_cost_s is not None:
        near = nearest_latency(problem, solution)
        gpus = or_gpus(problem, solution)
        return f"{near} at rate {rates} runs/s{gpus}{_unproved(solution)}"
    return f"rate {rates} runs/s: {solution.refused}"


def _what_fits(problem: PlanningProblem) -> str:
    """The fewest GPUs that hold every LLM once, where a limit on them is what forbids it."""
    limit = problem.limits.num_gpus
    if limit is not None:
        free = replace(problem, limits=replace(problem.limits, num_gpus=None)).fastest(100.0)
        if free.is_feasible:
            return f"{free.num_gpus} GPUs, not {limit}, hold every LLM"
    return "free more GPUs or allow smaller shares"


def _unproved(solution: Solution, nearest_is_best: bool = True) -> str:
    """Where the search ran out of work, infeasible is not proved."""
    if solution.proved_infeasible and nearest_is_best:
        return ""
    what = "that nothing nearer is" if solution.proved_infeasible else "that nothing meets it is"
    return f"; {what} not proved: the search ran out of work"


def or_gpus(problem: PlanningProblem, solution: Solution) -> str:
    """How many GPUs would reach it, where a limit on them is what forbids it."""
    if solution.nearest_num_gpus is None:
        return ""
    return f"; {solution.nearest_num_gpus} GPUs, not {problem.limits.num_gpus}, would reach it"


def nearest_latency(problem: PlanningProblem, solution: Solution) -> str:
    """The lowest latency there is, of a solution that found the limit out of reach."""
    nearest_s = problem.pipeline.mean_latency_s(solution.nearest_cost_s or 0.0)
    return (
        f"latency limit {problem.limits.latency_limit_s:g} s is out of reach: the nearest feasible "
        f"limit is {nearest_s:.4g} s"
    )
