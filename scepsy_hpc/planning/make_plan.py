"""The plan from its inputs: aggregate, search, place, predict, explain."""

from __future__ import annotations

from typing import Any

from scepsy_hpc.formats.plan import Plan
from scepsy_hpc.planning.choose import choose
from scepsy_hpc.planning.emission import emit
from scepsy_hpc.planning.problem import PlanningProblem
from scepsy_hpc.planning.request import PlanRequest


def make_plan(request: PlanRequest, client: Any = None) -> Plan:
    """The best plan for the target within the limits; ``client`` is a Dask client for big inputs.

    Raises InputError, and InfeasibleError that names the nearest feasible target.
    """
    known = request.with_demands(client)
    problem = PlanningProblem.of(known, client)
    return emit(known, problem, choose(problem, known.target))
