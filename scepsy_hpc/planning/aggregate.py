"""The Dask step: spans and profiles to what the pipeline needs.

One task per part of each workflow's runs (a part is a set of whole runs, so its sums are exact),
one task per model for its curves. Small inputs are worked off in this process by Dask's synchronous
scheduler; ``dask_workers`` gives a client on this machine, a running cluster or Slurm.
"""

from __future__ import annotations

import contextlib
import functools
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from scepsy_hpc.cluster.site import Site
from scepsy_hpc.errors import InputError
from scepsy_hpc.files import check, to_plain
from scepsy_hpc.formats.bundle import Bundle
from scepsy_hpc.formats.plan import DemandSummary, LlmDemand, Plan
from scepsy_hpc.formats.spans import Span, spans_of_workflow
from scepsy_hpc.formats.topology import Topology
from scepsy_hpc.formats.workflow import Llm, Workflow
from scepsy_hpc.planning.curves.curve import TokenLengths
from scepsy_hpc.planning.curves.evidence import no_evidence, speaks_for
from scepsy_hpc.planning.offers import Offers, offers_for, shelf_for
from scepsy_hpc.planning.pipeline.deployments import WorkflowDemand
from scepsy_hpc.planning.pipeline.pipeline import Pipeline
from scepsy_hpc.planning.search.pools import holes_of
from scepsy_hpc.tracing.demand.demand import Demand, demand_of

SPANS_PER_PART = 20_000
"""Below twice this a workflow's spans are one part: tasks cost more than they save."""


def demands_of(
    workflows: Sequence[Workflow], spans: Mapping[str, Sequence[Span]], client: Any = None
) -> dict[str, WorkflowDemand]:
    """Demand of each workflow from its spans (by workflow name).

    ``client`` is a ``distributed.Client``; without it the tasks run here. Raises InputError.
    """
    parts: dict[str, list[Any]] = {}
    prefixes: dict[str, tuple[str, ...]] = {}
    for workflow in workflows:
        if not spans.get(workflow.name):
            raise InputError(f"workflow {workflow.name}: no spans were given for it")
        named = spans_of_workflow(spans[workflow.name], workflow.name)
        prefixes[workflow.name] = tuple(_unused_prefixes(workflow.name, named))
        parts[workflow.name] = [
            _task(demand_of, part, workflow.name, tuple(workflow.llms)) for part in _parts(named)
        ]
    done = _compute(parts, client)
    merged = {name: merge(demands) for name, demands in done.items()}
    return {n: replace(d, warnings=(*d.warnings, *prefixes[n])) for n, d in merged.items()}


def _unused_prefixes(workflow: str, spans: Sequence[Span]) -> Iterator[str]:
    """Input that repeats an earlier prompt where no engine said whether it was cached.

    A hit needs the replica that served the earlier call, which nothing here promises; so only
    ``cached_tokens`` count as cached.
    """
    shared, inputs = Counter[str](), Counter[str]()
    for span in spans:
        if span.kind == "llm" and span.llm is not None:
            inputs[span.llm] += span.input_tokens or 0
            if span.prefix_of is not None and span.cached_tokens is None:
                shared[span.llm] += min(span.prefix_of.tokens, span.input_tokens or 0)
    for llm, tokens in sorted(shared.items()):
        if tokens:
            yield (
                f"{workflow}: {llm}: {100 * tokens / inputs[llm]:.0f}% of its input repeats an "
                "earlier prompt (prefix_of); planned without cache hits, since no cached_tokens "
                "were recorded"
            )


def offers_of(
    pipeline: Pipeline,
    bundles: Sequence[Bundle],
    topology: Topology,
    engine: str | None = None,
    client: Any = None,
) -> dict[str, Offers]:
    """What each LLM of the pipeline may run on. Raises InputError, InfeasibleError."""
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
        tasks.append(_task(_offers, several, mine, topology, engine))
    found: dict[str, Offers] = {}
    for part in _compute(tasks, client):
        found |= part
    return {stage.name: found[stage.name] for stage in pipeline.stages}


_Wanted = tuple[str, Llm, TokenLengths]


def _offers(
    several: Sequence[_Wanted], bundles: Sequence[Bundle], topology: Topology, engine: str | None
) -> dict[str, Offers]:
    """Offers for all stages of one model: its engine models are fitted once."""
    shelf = shelf_for(bundles, topology, engine)
    return {name: offers_for(name, spec, tokens, shelf, topology) for name, spec, tokens in several}


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


def merge(parts: Sequence[Demand]) -> WorkflowDemand:
    """Demand of all runs from that of disjoint sets of them.

    Everything but the bursts is exactly what all runs at once would give; bursts are told apart by
    each part's own median call.
    """
    first = parts[0]
    summary = check(to_plain(first.summary()), DemandSummary, f"demand of {first.workflow}")
    if len(parts) > 1:
        summary = _merged_summary(parts)
    flags = first.flags if len(parts) == 1 else ()
    return WorkflowDemand(
        summary=summary,
        fan_out={alias: _fan_out(parts, alias) for alias in first.llms},
        cached_tokens={alias: _cached(parts, index) for index, alias in enumerate(first.llms)},
        run_lengths_s=tuple(np.concatenate([p.run_length_s for p in parts]).tolist()),
        warnings=tuple(f"{first.workflow}: {flag}" for flag in flags),
    )


def _merged_summary(parts: Sequence[Demand]) -> DemandSummary:
    busy_s = np.concatenate([p.busy_s for p in parts])
    any_busy_s = np.concatenate([p.any_busy_s for p in parts])
    lengths_s = np.concatenate([p.run_length_s for p in parts])
    num_calls = np.concatenate([p.num_calls for p in parts])
    total_s = busy_s.sum()
    run_total_s = busy_s.sum(axis=1)
    shares = busy_s[run_total_s > 0] / run_total_s[run_total_s > 0, None]
    llms = {}
    for index, alias in enumerate(parts[0].llms):
        duration_s = sum(float(p.calls.duration_s[p.calls.llm == index].sum()) for p in parts)
        own_s = float(busy_s[:, index].sum())
        mean = float(shares[:, index].mean()) if len(shares) else 0.0
        spread = float(shares[:, index].std(ddof=1)) if len(shares) > 1 else 0.0
        llms[alias] = LlmDemand(
            calls_per_run=float(num_calls[:, index].mean()),
            parallelism=duration_s / own_s if own_s > 0 else 1.0,
            share_mean=mean,
            share_cv=spread / mean if mean > 0 and len(shares) > 1 else None,
            input_tokens_mean=_mean_of(parts, index, "input_tokens"),
            output_tokens_mean=_mean_of(parts, index, "output_tokens"),
        )
    return DemandSummary(
        num_runs=len(lengths_s),
        tool_time_s=float(np.maximum(lengths_s - any_busy_s, 0.0).mean()),
        overlap=float(any_busy_s.sum() / total_s) if total_s > 0 else 1.0,
        llms=llms,
    )


def _mean_of(parts: Sequence[Demand], index: int, field: str) -> float | None:
    values = np.concatenate([getattr(p.calls, field)[p.calls.llm == index] for p in parts])
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _cached(parts: Sequence[Demand], index: int) -> float:
    return _mean_of(parts, index, "cached_tokens") or 0.0


def _fan_out(parts: Sequence[Demand], alias: str) -> float:
    """Size of the burst that a call picked at random is in."""
    sizes = [item for p in parts for item in p.llms[alias].bursts.sizes.items()]
    calls = sum(size * count for size, count in sizes)
    return sum(size * size * count for size, count in sizes) / calls if calls else 1.0


def demands_in(plan: Plan) -> dict[str, WorkflowDemand]:
    """Demand as far as a plan keeps it. Raises InputError where a workflow has none."""
    found = {}
    for workflow in plan.workflows:
        if workflow.name not in plan.demand:
            raise InputError(
                f"plan: demand.{workflow.name}: missing; give the workflow's spans "
                "(--workflow, --spans and --profiles)"
            )
        found[workflow.name] = WorkflowDemand(plan.demand[workflow.name])
    return found


@contextlib.contextmanager
def dask_workers(where: str, site: Site | None = None, num_workers: int = 2) -> Iterator[Any]:
    """A Dask client: ``none`` (None), ``local`` processes, ``slurm`` jobs, or ``tcp://HOST:PORT``.

    Workers and cluster end with the context. Raises InputError for anything else.
    """
    if where == "none":
        yield None
        return
    if where not in ("local", "slurm") and "://" not in where:
        raise InputError(f"--dask: must be none, local, slurm or tcp://HOST:PORT, is {where!r}")
    from distributed import Client

    with contextlib.ExitStack() as stack:
        if where == "local":
            from distributed import LocalCluster

            target: Any = stack.enter_context(
                LocalCluster(n_workers=num_workers, threads_per_worker=1, dashboard_address=None)
            )
        elif where == "slurm":
            target = stack.enter_context(_slurm_cluster(site or Site(), num_workers))
        else:
            target = where
        yield stack.enter_context(Client(target))


def slurm_settings(site: Site) -> dict[str, Any]:
    """What ``dask_jobqueue.SLURMCluster`` is asked for: one process a job, no GPU."""
    extra = [f"--{key.replace('_', '-')}={value}" for key, value in site.sbatch.items()]
    extra += [f"--qos={site.qos}"] if site.qos else []
    extra += [f"--constraint={site.constraint}"] if site.constraint else []
    cores = site.cpus_per_gpu or 2
    return {
        "queue": site.partition,
        "account": site.account,
        "cores": cores,
        "processes": 1,
        "memory": f"{math.ceil(site.mem_gib_per_gpu or 2.0 * cores)}GiB",
        "walltime": f"{site.time_min // 60:02d}:{site.time_min % 60:02d}:00",
        "job_extra_directives": extra,
        "job_script_prologue": list(site.setup),
        **({"python": site.python} if site.python else {}),
    }


def _slurm_cluster(site: Site, num_workers: int) -> Any:
    from dask_jobqueue import SLURMCluster

    cluster = SLURMCluster(**slurm_settings(site))
    cluster.scale(jobs=num_workers)
    return cluster
