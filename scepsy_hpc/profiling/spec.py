"""``SPEC.yaml``: which models to measure, at which loads; and the tasks that follow from it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from scepsy_hpc.bundles.library import resolve_bundle
from scepsy_hpc.errors import InputError
from scepsy_hpc.files import Count, Positive, read_yaml, record
from scepsy_hpc.formats.bundle import load_bundle
from scepsy_hpc.formats.parallelism import Link, Parallelism, SharePct, usable_memory_gib
from scepsy_hpc.formats.spans import load_spans
from scepsy_hpc.formats.topology import Topology, load_topology
from scepsy_hpc.formats.workflow import EngineArgs
from scepsy_hpc.profiling.load_generator import Lengths

SPEC_SCHEMA = "scepsy/profile-spec/v1"


@record
class ModelSpec:
    """One model to measure. ``llm`` is its alias in the spans of the workload, if they are used.

    TP above 1 is measured on whole GPUs only, unless ``shared_tp``.
    """

    model: str
    engine: Literal["vllm", "simulated"]
    engine_args: EngineArgs = field(default_factory=dict)
    tp_degrees: tuple[Count, ...] = (1,)
    gpu_shares_pct: tuple[SharePct, ...] = (100,)
    shared_tp: bool = False
    precision: str = "bf16"
    llm: str | None = None
    weights_gib: Positive | None = None
    kv_bytes_per_token: Positive | None = None
    licence: str | None = None
    source: str | None = None


@record
class Workload:
    """Token lengths: fixed ones, several ``shapes`` [input, output] measured one by one, or those
    of an LLM's calls in ``spans`` (path from the spec).
    """

    name: str
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    shapes: tuple[tuple[Count, Count], ...] | None = None
    spans: str | None = None
    llm: str | None = None
    num_samples: Count = 256


@record
class Loads:
    """Closed loads ``concurrency`` and open ones ``arrival_rate_rps``, and how long each is held.

    ``limit_s`` ends a point that takes longer; it then has fewer requests.
    """

    concurrency: tuple[Count, ...] = (1, 2, 4, 8, 16, 32, 64)
    arrival_rate_rps: tuple[Positive, ...] = ()
    requests_per_point: Count = 64
    warmup_requests: Count = 4
    limit_s: Positive = 600.0


@record
class _SpecFile:
    topology: str
    models: tuple[ModelSpec, ...]
    workload: Workload
    loads: Loads = field(default_factory=Loads)
    time_min: Count | None = None
    ready_timeout_s: Positive = 900.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class SweepTask:
    """One array task: one engine on ``tp_degree`` GPUs joined by ``link``, swept over the loads.

    ``link`` is None at TP 1, where it does not matter. ``lengths`` are the calls of one mix, or,
    with ``one_by_one``, shapes that each get a sweep. Small and picklable: it travels to the node.
    """

    task_id: str
    model: ModelSpec
    gpu_type: str
    gpu_memory_gib: float
    link: Link | None
    tp_degree: int
    gpu_share_pct: int
    lengths: tuple[Lengths, ...]
    loads: Loads
    ready_timeout_s: float
    seed: int
    one_by_one: bool = False

    @property
    def at(self) -> Parallelism:
        """What one instance of it takes."""
        return Parallelism(self.gpu_type, self.link, self.tp_degree, self.gpu_share_pct)


@dataclass(frozen=True, slots=True)
class ProfileSpec:
    """A checked spec. ``skipped`` says what was asked for and cannot be measured here."""

    path: Path
    topology: Topology
    workload: Workload
    time_min: int | None
    tasks: tuple[SweepTask, ...]
    skipped: tuple[str, ...]


def load_spec(path: Path | str) -> ProfileSpec:
    """Read and check a spec, its topology, spans and timing bundles. Raises InputError."""
    path = Path(path)
    raw = read_yaml(path, _SpecFile, SPEC_SCHEMA)
    if not raw.models:
        raise InputError(f"{path}: models: is empty; name at least one model to measure")
    if not raw.loads.concurrency and not raw.loads.arrival_rate_rps:
        raise InputError(f"{path}: loads: is empty; give `concurrency: [1, 2, 4, ...]`")
    topology = load_topology(path.parent / raw.topology)
    tasks: list[SweepTask] = []
    skipped: list[str] = []
    for i, model in enumerate(raw.models):
        where = f"{path}: models[{i}]"
        _check_model(model, raw.models[:i], where)
        lengths = _lengths(raw.workload, model, path, raw.seed)
        for place in _places(model, topology, skipped, where):
            gpu_type, memory_gib, link, tp_degree, share = place
            tasks.append(
                SweepTask(
                    task_id=_task_id(i, model, gpu_type, link, tp_degree, share),
                    model=model,
                    gpu_type=gpu_type,
                    gpu_memory_gib=memory_gib,
                    link=link,
                    tp_degree=tp_degree,
                    gpu_share_pct=share,
                    lengths=lengths,
                    loads=raw.loads,
                    ready_timeout_s=raw.ready_timeout_s,
                    seed=raw.seed,
                    one_by_one=raw.workload.shapes is not None,
                )
            )
    if not tasks:
        raise InputError(f"{path}: nothing can be measured: {'; '.join(skipped)}")
    return ProfileSpec(path, topology, raw.workload, raw.time_min, tuple(tasks), tuple(skipped))


def _check_model(model: ModelSpec, before: tuple[ModelSpec, ...], where: str) -> None:
    for key in ("tp_degrees", "gpu_shares_pct"):
        values = getattr(model, key)
        if not values:
            raise InputError(f"{where}.{key}: is empty; give at least one value")
        if len(set(values)) < len(values):
            raise InputError(f"{where}.{key}: {list(values)} names a value twice")
    if any((b.model, b.engine) == (model.model, model.engine) for b in before):
        raise InputError(
            f"{where}: {model.model} with engine {model.engine} stands twice; one bundle cannot "
            "hold two sets of engine_args: use two specs"
        )
    if model.engine != "simulated":
        return
    bundle = model.engine_args.get("timing_bundle")
    if bundle is None:
        raise InputError(
            f"{where}.engine_args: timing_bundle is missing; a simulated engine follows a bundle"
        )
    load_bundle(resolve_bundle(str(bundle)))


def _places(
    model: ModelSpec, topology: Topology, skipped: list[str], where: str
) -> list[tuple[str, float, Link | None, int, int]]:
    """Each (GPU type, memory, link, TP, share) on which this model can be measured."""
    found = []
    for tp_degree in model.tp_degrees:
        offers = _offers(topology, tp_degree)
        if not offers:
            skipped.append(f"{where}: no domain has {tp_degree} free GPUs for TP {tp_degree}")
        for share in model.gpu_shares_pct:
            if tp_degree > 1 and share < 100 and not model.shared_tp:
                if offers:
                    skipped.append(
                        f"{where}: {share}% of {tp_degree} GPUs is measured only where "
                        "`shared_tp: true` declares it"
                    )
                continue
            for gpu_type, memory_gib, link in offers:
                room_gib = usable_memory_gib(memory_gib, share, tp_degree)
                if model.weights_gib is not None and model.weights_gib >= room_gib:
                    skipped.append(
                        f"{where}: weights of {model.weights_gib:g} GiB leave no room for a cache "
                        f"in the {room_gib:g} GiB of TP {tp_degree} at {share}% of {gpu_type}"
                    )
                else:
                    found.append((gpu_type, memory_gib, link, tp_degree, share))
    return found


def _offers(topology: Topology, tp_degree: int) -> list[tuple[str, float, Link | None]]:
    """Each (GPU type, memory, link) with a domain of enough free GPUs; at TP 1 without link."""
    found: dict[tuple[str, Link | None], float] = {}
    for node in topology.nodes:
        for domain in node.domains:
            num_gpus = min(1, len(node.free_in(domain))) if node.mig else len(node.free_in(domain))
            if num_gpus >= tp_degree:
                key = (node.full_gpu_type, domain.link if tp_degree > 1 else None)
                found[key] = min(found.get(key, float("inf")), node.gpu_memory_gib)
    return [(gpu_type, memory_gib, link) for (gpu_type, link), memory_gib in found.items()]


def _task_id(
    number: int, model: ModelSpec, gpu_type: str, link: Link | None, tp_degree: int, share: int
) -> str:
    name = model.model.rstrip("/").rsplit("/", 1)[-1]
    joined = f"-{link}" if link else ""
    return f"{number}-{name}-{gpu_type}{joined}-tp{tp_degree}-share{share}"


def _lengths(workload: Workload, model: ModelSpec, path: Path, seed: int) -> tuple[Lengths, ...]:
    where = f"{path}: workload"
    fixed = workload.input_tokens is not None and workload.output_tokens is not None
    if [fixed, bool(workload.shapes), workload.spans is not None].count(True) != 1:
        raise InputError(
            f"{where}: give one of: `input_tokens` and `output_tokens`; `shapes`, such as "
            "[[512, 128], [2048, 256]]; `spans`"
        )
    if workload.shapes:
        return tuple(Lengths(*shape) for shape in workload.shapes)
    if workload.input_tokens is not None and workload.output_tokens is not None:
        return (Lengths(workload.input_tokens, workload.output_tokens),)
    assert workload.spans is not None
    llm = model.llm or workload.llm
    if llm is None:
        raise InputError(f"{where}: llm: missing; say whose calls in the spans to replay")
    return _traced(path.parent / workload.spans, llm, workload.num_samples, seed)


def _traced(spans_path: Path, llm: str, num_samples: int, seed: int) -> tuple[Lengths, ...]:
    """Token lengths of the LLM's calls, shuffled; at most ``num_samples`` of them."""
    spans = [s for s in load_spans(spans_path) if s.kind == "llm" and s.status == "ok"]
    calls = [
        Lengths(max(1, s.input_tokens), max(1, s.output_tokens))
        for s in spans
        if s.llm == llm and s.input_tokens is not None and s.output_tokens is not None
    ]
    if not calls:
        known = sorted({s.llm for s in spans if s.llm})
        raise InputError(
            f"{spans_path}: no call of llm {llm!r} with token counts; LLMs here: {', '.join(known)}"
        )
    return tuple(random.Random(seed).sample(calls, min(num_samples, len(calls))))
