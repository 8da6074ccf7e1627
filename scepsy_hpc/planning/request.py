"""What a plan is asked for: workflows and their runs, profiles, GPUs, a target and limits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.bundle import Bundle
from scepsy_hpc.formats.plan import PlanInput
from scepsy_hpc.formats.spans import Span
from scepsy_hpc.formats.topology import Topology
from scepsy_hpc.formats.workflow import Workflow
from scepsy_hpc.planning.aggregate import demands_of
from scepsy_hpc.planning.check import MAX_CALLS
from scepsy_hpc.planning.pipeline.deployments import WorkflowDemand
from scepsy_hpc.planning.targets import Deadline, Limits, Rate, Target

LEAST_RATE_RPS = 1e-6
"""A run in eleven days; at lower rates a clock in seconds loses its digits."""


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """Everything that a plan follows from.

    ``workflows`` with their own rates in runs per second, or None. ``spans`` and ``demands`` by
    workflow name: demand that is known already need not be aggregated again, and without spans
    percentiles stay unknown. ``engine`` narrows the profiles (``vllm`` or ``vllm-0.24.0``);
    ``inputs`` are files to name in the plan. ``check_calls``: calls that a check of the plan by
    simulation may take.
    """

    workflows: Sequence[tuple[Workflow, float | None]]
    bundles: Sequence[Bundle]
    topology: Topology
    target: Target
    limits: Limits = field(default_factory=Limits)
    spans: Mapping[str, Sequence[Span]] = field(default_factory=dict)
    demands: Mapping[str, WorkflowDemand] = field(default_factory=dict)
    engine: str | None = None
    inputs: tuple[PlanInput, ...] = ()
    check_calls: int = MAX_CALLS

    @property
    def flows(self) -> list[Workflow]:
        """The workflows without their rates."""
        return [workflow for workflow, _ in self.workflows]

    @property
    def wants_rates(self) -> bool:
        """Whether rates were given with the workflows; else those of ``rates_of`` are a mix."""
        return any(rate is not None for _, rate in self.workflows)

    def with_demands(self, client: Any = None) -> PlanRequest:
        """The same with the demand of its spans, where none is known. Raises InputError.

        ``client`` is a Dask client for big inputs.
        """
        if self.demands:
            return self
        return replace(self, demands=demands_of(self.flows, self.spans, client))

    def rates_of(self) -> dict[str, float]:
        """Rate of each workflow in runs per second. Raises InputError."""
        target = self.target
        if isinstance(target, Deadline) and (target.num_tasks < 1 or not target.deadline_s > 0):
            raise InputError(
                f"--tasks ({target.num_tasks}) must be at least 1 and --deadline "
                f"({target.deadline_s} s) greater than 0"
            )
        if isinstance(target, Deadline) and not 0 <= target.startup_s < math.inf:
            raise InputError(f"--startup ({target.startup_s} s) must be 0 or more, and finite")
        return {workflow.name: self._rate(workflow.name, own) for workflow, own in self.workflows}

    def _rate(self, name: str, own: float | None) -> float:
        """The workflow's own rate, the target's, or one run per second where rates are a mix."""
        rate = own
        given = self.target.rps if isinstance(self.target, Rate) else None
        if own is not None and given is not None:
            raise InputError(
                f"workflow {name}: has a rate of its own ({own:g} in NAME=FILE@RATE) beside --rate "
                f"{given:g}; give one of them"
            )
        if rate is None and isinstance(self.target, Rate):
            rate = self.target.rps if len(self.workflows) == 1 else None
            if rate is None:
                raise InputError(
                    f"workflow {name}: has no rate; give --rate, or with several workflows "
                    "--workflow NAME=FILE@RATE"
                )
        rate = 1.0 if rate is None else rate
        if not (math.isfinite(rate) and rate >= LEAST_RATE_RPS):
            raise InputError(
                f"workflow {name}: rate ({rate:g}) must be finite and at least {LEAST_RATE_RPS:g} "
                "runs/s"
            )
        return rate
