"""``plan.yaml``: deployments, instances, the allocation they need and what they should reach."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from scepsy_hpc.errors import InputError
from scepsy_hpc.files import Count, Positive, read_yaml, record, sha256_file, write_yaml
from scepsy_hpc.formats.figures import Figures
from scepsy_hpc.formats.parallelism import Link, SharePct
from scepsy_hpc.formats.topology import Topology, load_topology
from scepsy_hpc.formats.workflow import Agent, EngineArgs

PLAN_SCHEMA = "scepsy/plan/v1"
InputRole = Literal["workflow", "spans", "profile", "topology"]


MOST_REPLICAS = 10_000
"""Of one LLM: more than the GPUs of any cluster is a slip of the pen."""

Replicas = Annotated[int, Field(ge=1, le=MOST_REPLICAS)]


@record
class PlanWorkflow:
    """One workflow of the plan; ``llms`` maps its aliases to deployments."""

    name: str
    llms: dict[str, str]
    rate_rps: Positive | None = None
    max_runs_in_flight: Count | None = None
    agent: Agent | None = None


@record
class Deployment:
    """One LLM under one parallelism, with all its replicas.

    ``capacity_rps`` is that of one replica, in calls per second.
    """

    model: str
    engine: str
    gpu_type: str
    tp_degree: Count
    gpu_share_pct: SharePct
    num_replicas: Replicas
    engine_version: str | None = None
    engine_args: EngineArgs = field(default_factory=dict)
    bundle_sha256: str | None = None
    link: Link | None = None
    memory_gib: Positive | None = None
    precision: str | None = None
    capacity_rps: Positive | None = None


@record
class Instance:
    """One replica on its GPUs; ``node`` and ``gpus`` are logical until the run starts."""

    id: str
    llm: str
    node: str
    gpus: tuple[int, ...]
    gpu_share_pct: SharePct


@record
class Component:
    """Equal nodes of an allocation; several components are a heterogeneous job."""

    num_nodes: Count
    gpus_per_node: Count
    gpu_type: str
    cpus_per_gpu: Count | None = None
    mem_gib: Positive | None = None
    time_min: Count | None = None


@record
class Allocation:
    """What is asked of Slurm."""

    components: tuple[Component, ...]


@record
class Routing:
    """The dispatcher's rule; predictor and simulator use the same.

    ``sticky_prefix``: the replica that holds the prefix of a call, unless it has more than
    ``max_behind`` calls above the least busy one.
    """

    rule: Literal["least_in_flight", "sticky_prefix"] = "least_in_flight"
    max_behind: Annotated[int, Field(ge=0)] = 2


@record
class LlmDemand:
    """What the spans say about one LLM.

    ``parallelism`` and ``share_mean`` are None where no call took any time.
    ``fan_out``: calls that start together, as a call sees it; the parallelism where unknown.
    ``cached_tokens_mean``: input that engines found in their caches; None where none said.
    ``prefix_tokens_mean``: input, in whole blocks of a cache, that repeats an earlier prompt of the
    same run; None where no call is known to.
    ``work_cv``: standard deviation over mean of the work of its calls, by their tokens. Of two
    calls that start together ``fan_out_work_cv`` is the same from half their mean squared
    difference, ``fan_out_work_gap`` half their mean absolute difference over the mean.
    """

    calls_per_run: float
    parallelism: float | None = None
    share_mean: float | None = None
    share_cv: float | None = None
    input_tokens_mean: float | None = None
    output_tokens_mean: float | None = None
    cached_tokens_mean: float | None = None
    fan_out: float | None = None
    prefix_tokens_mean: float | None = None
    work_cv: float | None = None
    fan_out_work_cv: float | None = None
    fan_out_work_gap: float | None = None


@record
class DemandSummary:
    """What the spans say about one workflow; ``cpu_s``: CPU seconds of its agent in a run.

    ``overlap`` None: no LLM call took any time.
    """

    num_runs: int
    tool_time_s: float
    overlap: float | None = None
    llms: dict[str, LlmDemand]
    cpu_s: Annotated[float, Field(ge=0)] | None = None

    @property
    def overlap_or_one(self) -> float:
        """1, one LLM after the other, where it is unknown."""
        return 1.0 if self.overlap is None else self.overlap


@record
class RestsOn:
    """Parts of a certified value in percent, by where the figures come from; they sum to 100."""

    measured_pct: float = 0.0
    modelled_pct: float = 0.0
    derived_pct: float = 0.0
    transferred_pct: float = 0.0
    extrapolated_pct: float = 0.0


@record
class Certificate:
    """Value of the emitted plan, a bound no plan beats, and the gap from the best found to it.

    ``given_up_pct``: what was then traded for fewer GPUs. ``proved``: no plan of its form is better
    than the best found.
    """

    metric: str
    value: float
    bound: float
    gap: float
    given_up_pct: float = 0.0
    proved: bool = True
    rests_on: RestsOn | None = None


@record
class PlanInput:
    """A file the plan was made from; ``workflow`` says whose workflow file or spans it is."""

    role: InputRole
    workflow: str | None = None
    path: str
    sha256: str


@record
class Plan:
    """A whole plan. One written by hand needs only ``llms`` or ``instances``."""

    workflows: tuple[PlanWorkflow, ...] = ()
    llms: dict[str, Deployment] = field(default_factory=dict)
    instances: tuple[Instance, ...] = ()
    allocation: Allocation | None = None
    routing: Routing = field(default_factory=Routing)
    predicted: Figures | None = None
    demand: dict[str, DemandSummary] = field(default_factory=dict)
    simulated: Figures | None = None
    certificate: Certificate | None = None
    inputs: tuple[PlanInput, ...] = ()
    explanation: tuple[str, ...] = ()


def load_plan(path: Path | str) -> Plan:
    """Read and check ``plan.yaml``. Raises InputError."""
    plan = read_yaml(path, Plan, PLAN_SCHEMA)
    if not plan.llms and not plan.instances:
        raise InputError(f"{path}: has neither `llms` nor `instances`; a plan needs one of them")
    for error in (*_wrong_names(plan), *_wrong_instances(plan), *_wrong_places(plan)):
        raise InputError(f"{path}: {error}")
    return plan


def _wrong_names(plan: Plan) -> Iterator[str]:
    """Names that stand for nothing, or for two things."""
    known = ", ".join(plan.llms) or "none"
    ids = Counter(instance.id for instance in plan.instances)
    for number, instance in enumerate(plan.instances):
        key = f"instances[{number}]"
        if plan.llms and instance.llm not in plan.llms:
            yield f"{key}.llm: {instance.llm!r} is not under llms; known: {known}"
        if ids[instance.id] > 1:
            yield f"{key}.id: {instance.id!r} stands twice; ids must differ"
    for number, workflow in enumerate(plan.workflows):
        for alias, llm in workflow.llms.items():
            if plan.llms and llm not in plan.llms:
                key = f"workflows[{number}].llms.{alias}"
                yield f"{key}: {llm!r} is not under llms; known: {known}"
    yield from unused_llms(plan)
    names = [w.name for w in plan.workflows]
    for number, item in enumerate(plan.inputs):
        key = f"inputs[{number}].workflow"
        if item.role not in ("workflow", "spans"):
            if item.workflow is not None:
                yield (
                    f"{key}: is {item.workflow}, but a {item.role} is no workflow's own; take the "
                    "key out, or correct `role`"
                )
        elif names and item.workflow not in names:
            yield (
                f"{key}: must be one of {', '.join(names)}, whose {item.role} it is; "
                f"is {item.workflow}"
            )


def unused_llms(plan: Plan) -> Iterator[str]:
    """Deployments that no workflow of the plan calls: they would hold GPUs for nothing."""
    used = {llm for workflow in plan.workflows for llm in workflow.llms.values()}
    for name in plan.llms if plan.workflows else ():
        if name not in used:
            yield (
                f"llms.{name}: no workflow uses it; they use: {', '.join(sorted(used)) or 'none'}. "
                "Take it out, or name it under `llms` of a workflow"
            )


def _wrong_instances(plan: Plan) -> Iterator[str]:
    """Instances that cannot be: a GPU twice in a group, a full GPU, not what ``llms`` says."""
    used: Counter[tuple[str, int]] = Counter()
    for number, instance in enumerate(plan.instances):
        key, gpus = f"instances[{number}]", list(instance.gpus)
        if plan.llms and len(gpus) != (tp := plan.llms[instance.llm].tp_degree):
            yield f"{key}.gpus: {gpus} must list {tp} GPUs (tp_degree of {instance.llm})"
        if not gpus or min(gpus) < 0:
            yield f"{key}.gpus: {gpus} must be indices from 0 on, at least one"
        if len(set(gpus)) < len(gpus):
            yield f"{key}.gpus: {gpus} names a GPU twice; the GPUs of a TP group must differ"
        share = plan.llms[instance.llm].gpu_share_pct if plan.llms else instance.gpu_share_pct
        if instance.gpu_share_pct != share:
            yield (
                f"{key}.gpu_share_pct: is {instance.gpu_share_pct}, but llms.{instance.llm} says "
                f"{share}; replicas of one LLM are equal"
            )
        for gpu in gpus:
            used[instance.node, gpu] += instance.gpu_share_pct
            if (total := used[instance.node, gpu]) > 100:
                yield (
                    f"{key}.gpu_share_pct: with {instance.gpu_share_pct}% GPU {gpu} of "
                    f"{instance.node} would be given away to {total}%, of at most 100%; take "
                    "another GPU or smaller shares"
                )
    placed = Counter(instance.llm for instance in plan.instances)
    for name, llm in plan.llms.items() if plan.instances else ():
        if placed[name] != llm.num_replicas:
            yield (
                f"llms.{name}.num_replicas: is {llm.num_replicas}, but instances list "
                f"{placed[name]}; they must agree"
            )


def _wrong_places(plan: Plan) -> Iterator[str]:
    """Instances on what the topology of the plan does not have, where that is still at hand."""
    topology = _topology_of(plan)
    nodes = {node.name: node for node in topology.nodes} if topology is not None else {}
    if topology is not None and not plan.instances:
        yield from _too_many(plan, topology)
    for number, instance in enumerate(plan.instances if nodes else ()):
        key, node = f"instances[{number}]", nodes.get(instance.node)
        if node is None:
            known = ", ".join(nodes)
            yield f"{key}.node: {instance.node!r} is not in the topology; it has: {known}"
            continue
        gone = [gpu for gpu in instance.gpus if gpu not in node.free]
        if gone:
            free = ", ".join(map(str, node.free)) or "none"
            yield f"{key}.gpus: {node.name} has no free GPU {gone[0]} in the topology; free: {free}"
        if not any(set(instance.gpus) <= set(domain.gpus) for domain in node.domains):
            domains = " and ".join(str(list(domain.gpus)) for domain in node.domains)
            yield (
                f"{key}.gpus: {list(instance.gpus)} span two link domains of {node.name}; a TP "
                f"group stays inside one: {domains}"
            )
        wanted = plan.llms[instance.llm].gpu_type if plan.llms else node.full_gpu_type
        if wanted != node.full_gpu_type:
            yield (
                f"{key}.node: {node.name} has GPUs of type {node.full_gpu_type}, but "
                f"llms.{instance.llm}.gpu_type is {wanted}"
            )


def _too_many(plan: Plan, topology: Topology) -> Iterator[str]:
    """More replicas than the free GPUs of their type hold, wherever they are put."""
    free: Counter[str] = Counter()
    for node in topology.nodes:
        free[node.full_gpu_type] += len(node.free)
    wanted: dict[str, float] = dict.fromkeys((llm.gpu_type for llm in plan.llms.values()), 0.0)
    for llm in plan.llms.values():
        wanted[llm.gpu_type] += llm.num_replicas * llm.tp_degree * llm.gpu_share_pct / 100.0
    for gpu_type, number in wanted.items():
        if number > free[gpu_type]:
            mine = [name for name, llm in plan.llms.items() if llm.gpu_type == gpu_type]
            yield (
                f"llms.{mine[0]}.num_replicas: all replicas on {gpu_type} ({', '.join(mine)}) take "
                f"{number:g} GPUs, and the topology has {free[gpu_type]} free"
            )


def _topology_of(plan: Plan) -> Topology | None:
    """The topology that the plan was made from, if it is unchanged where it was."""
    for item in plan.inputs:
        path = Path(item.path)
        if item.role == "topology" and path.is_file() and sha256_file(path) == item.sha256:
            return load_topology(path)
    return None


def save_plan(path: Path | str, plan: Plan) -> None:
    """Write ``plan.yaml`` atomically."""
    write_yaml(path, plan, PLAN_SCHEMA)
