"""The Dask step: spans and profiles to what the pipeline needs.

One task per part of each workflow's runs (a part is a set of whole runs) to read its calls, one
task per model for its curves. Without a client (see ``cluster/dask.py``) they are worked off in
this process by Dask's synchronous scheduler.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.bundle import Bundle
from scepsy_hpc.formats.spans import Span, spans_of_workflow
from scepsy_hpc.formats.topology import Topology
from scepsy_hpc.formats.workflow import Llm, Workflow
from scepsy_hpc.planning.curves.curve import TokenLengths
from scepsy_hpc.planning.curves.evidence import no_evidence, speaks_for
from scepsy_hpc.planning.offers import Offers, considered, offers_for, shelf_for
from scepsy_hpc.planning.pipeline.deployments import WorkflowDemand
from scepsy_hpc.planning.pipeline.pipeline import Pipeline
from scepsy_hpc.planning.search.pools import holes_of
from scepsy_hpc.tracing.demand.call_table import read_calls
from scepsy_hpc.tracing.demand.demand import demand_of_parts

SPANS_PER_PART = 20_000
"""Below twice this a workflow's spans are one part: tasks cost more than they save."""


def demands_of(
    workflows: Sequence[Workflow], spans: Mapping[str, Sequence[Span]], client: Any = None
) -> dict[str, WorkflowDemand]:
    """Demand of each workflow from its spans (by workflow name).

    ``client`` is a ``distributed.Client``; without it the tasks run here. Raises InputError.
    """
    tasks: dict[str, list[Any]] = {}
    for workflow in workflows:
        if not spans.get(workflow.name):
            raise InputError(f"workflow {workflow.name}: no spans were given for it")
        named = spans_of_workflow(spans[workflow.name], workflow.name)
        tasks[workflow.name] = [
            _task(read_calls, part, workflow.name, tuple(workflow.llms)) for part in _parts(named)
        ]
    parts = _compute(tasks, client)
    return {name: WorkflowDemand.of(demand_of_parts(parts[name], name)) for name in parts}


def offers_of(
    pipeline: Pipeline,
    bundles: Sequence[Bundle],
    topology: Topology,
    engine: str | None = None,
    client: Any = None,
) -> dict[str, Offers]:
    """What each LLM of the pipeline may run on. Raises InputError, InfeasibleError.

    Shares that nobody measured or declared are among it only where whole GPUs do not do.
    """

    def offers_with(derived: bool) -> dict[str, Offers]:
        return _all_offers(pipeline, bundles, topology, engine, client, derived)

    return considered(offers_with, topology)


def _all_offers(
    pipeline: Pipeline,
    bundles: Sequence[Bundle],
    topology: Topology,
    engine: str | None,
    client: Any,
    derived: bool,
) -> dict[str, Offers]:
    rates = pipeline.rates_rps
    gpu_types = tuple(dict.fromkeys(hole.gpu_type for hole in holes_of(topology)))
    by_model: dict[str, list[_Wanted]] = {}
    for stage in pipeline.stages:
        wanted = (stage.name, stage.spec, stage.tokens(rates))
        by_model.setdefault(stage.spec.model, []).append(wanted)
    tasks = []
    for model, several in by_model.items():
        mine = [b for b in bundles if speaks_for(b, model, gpu_types, engine)]
        if not mine:
            raise no_evidence(model, gpu_types, bundles, engine)
        tasks.append(_task(_offers, several, mine, topology, engine, derived))
    found: dict[str, Offers] = {}
    for part in _compute(tasks, client):
        found |= part
    return {stage.name: found[stage.name] for stage in pipeline.stages}


_Wanted = tuple[str, Llm, TokenLengths]


def _offers(
    several: Sequence[_Wanted],
    bundles: Sequence[Bundle],
    topology: Topology,
    engine: str | None,
    derived: bool,
) -> dict[str, Offers]:
    """Offers for all stages of one model: its engine models are fitted once."""
    shelf = shelf_for(bundles, topology, engine)
    return {
        name: offers_for(name, spec, tokens, shelf, topology, derived)
        for name, spec, tokens in several
    }


def _task(function: Callable[..., Any], *arguments: Any) -> Any:
    """A Dask task. Its arguments are bound first: Dask would walk through every record in them."""
    import dask

    return dask.delayed(functools.partial(function, *arguments), pure=False)()


def _compute(tasks: Any, client: Any) -> Any:
    import dask

    if client is None:
        # By name Dask would import all of `distributed` first, half a second for nothing.
        from dask.local import get_sync

        return dask.compute(tasks, scheduler=get_sync)[0]
    return dask.compute(tasks, scheduler=client)[0]


def _parts(spans: list[Span]) -> list[list[Span]]:
    """Whole runs, spread evenly; always the same part for a run."""
    count = max(len(spans) // SPANS_PER_PART, 1)
    found: list[list[Span]] = [[] for _ in range(count)]
    for span in spans:
        found[zlib.crc32(span.run_id.encode()) % count].append(span)
    return [part for part in found if part]
