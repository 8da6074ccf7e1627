"""Figures of runs and calls: predicted, simulated and measured ones have one form.

Null is unknown.
"""

from __future__ import annotations

from dataclasses import field, fields
from typing import Any, Literal

from scepsy_hpc.files import record

Intervals = dict[str, tuple[float, float]]
"""95% intervals by figure."""


@record
class RunFigures:
    """The runs of one workflow, or of all.

    ``makespan_s`` is from the first start to the last end, fill and drain included; of a batch
    ``throughput_rps`` is runs that ended well over it. Failed runs count in ``num_failed`` alone.
    """

    throughput_rps: float | None = None
    latency_mean_s: float | None = None
    latency_p50_s: float | None = None
    latency_p95_s: float | None = None
    latency_p99_s: float | None = None
    makespan_s: float | None = None
    intervals: Intervals = field(default_factory=dict)
    num_runs: int | None = None
    num_failed: int | None = None

    @property
    def num_ok(self) -> int:
        """Runs that ended well."""
        return (self.num_runs or 0) - (self.num_failed or 0)


ReplicaServer = Literal["processor_sharing", "continuous_batching"]


@record
class LlmFigures:
    """The calls of one deployment, or of one alias of a workflow.

    ``utilisation`` is calls over what capacity allows. ``server`` says what a simulated replica
    was taken for: an engine's steps, or a processor-sharing server that follows the curve.
    """

    utilisation: float | None = None
    latency_mean_s: float | None = None
    latency_p50_s: float | None = None
    latency_p95_s: float | None = None
    share_of_latency: float | None = None
    calls_in_flight_mean: float | None = None
    num_calls: int | None = None
    num_failed: int | None = None
    num_replicas: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    server: ReplicaServer | None = None


@record
class Figures(RunFigures):
    """Those of all runs, of each workflow's, and of each LLM's calls.

    ``flags`` say what they rest on; ``seed`` is a simulation's.
    """

    how: Literal["simulated", "measured"] | None = None
    per_workflow: dict[str, RunFigures] = field(default_factory=dict)
    per_llm: dict[str, LlmFigures] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    seed: int | None = None

    @classmethod
    def of(cls, runs: RunFigures, **more: Any) -> Figures:
        """The figures of all runs with what is known beside them."""
        return cls(**{f.name: getattr(runs, f.name) for f in fields(RunFigures)}, **more)
