"""From the plan's logical nodes and GPUs to those that this run was really given."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from scepsy_hpc.cluster.discovery import discover_local
from scepsy_hpc.engines.vllm import takes_gpus
from scepsy_hpc.errors import InputError, RunError
from scepsy_hpc.files import record
from scepsy_hpc.formats.plan import Instance, Plan


@record
class GrantedNode:
    """One real node of the run, as it reports itself: rank, address, GPUs by link domain.

    GPUs are named as CUDA_VISIBLE_DEVICES takes them (index or UUID).
    """

    rank: int
    host: str
    domains: tuple[tuple[str, ...], ...]

    @property
    def gpus(self) -> tuple[str, ...]:
        """All GPUs of this node that the run may use."""
        return tuple(gpu for domain in self.domains for gpu in domain)


@record
class PlacedInstance:
    """An instance on its real node and GPUs; ``term`` of the lead in which it came there."""

    instance: Instance
    rank: int
    host: str
    gpus: tuple[str, ...]
    term: int = 0


def granted_gpus(environment: Mapping[str, str]) -> tuple[str, ...]:
    """GPUs that Slurm gave to this task on this node, from the variables it sets.

    ``CUDA_VISIBLE_DEVICES`` is what the engine will see, so it goes first. Empty without GPUs.
    """
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        value = environment.get(name, "").strip()
        if value and value != "NoDevFiles":
            return tuple(gpu for part in value.split(",") for gpu in _expand(part.strip()))
    return ()


def _expand(part: str) -> tuple[str, ...]:
    match = re.fullmatch(r"(\d+)-(\d+)", part)
    if match is None:
        return (part,)
    return tuple(str(i) for i in range(int(match[1]), int(match[2]) + 1))


def this_node(rank: int, host: str, environment: Mapping[str, str] | None = None) -> GrantedNode:
    """What this process was given. Links come from NVML; without it the GPUs are one domain."""
    gpus = granted_gpus(os.environ if environment is None else environment)
    return GrantedNode(rank=rank, host=host, domains=_real_domains(gpus))


def _real_domains(gpus: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    if not gpus or not all(gpu.isdigit() for gpu in gpus):
        return (gpus,) if gpus else ()
    try:
        found = _local_domains(gpus)
    except InputError:
        return (gpus,)
    # Under a device cgroup NVML numbers anew and finds fewer: then it cannot be matched by index.
    return found if sum(map(len, found)) == len(gpus) else (gpus,)


def _local_domains(keep: Collection[str] | None) -> tuple[tuple[str, ...], ...]:
    """The GPUs of this machine to ``keep`` (None: all) by link domain. Raises InputError."""
    domains = discover_local().nodes[0].domains
    groups = [tuple(str(g) for g in d.gpus if keep is None or str(g) in keep) for d in domains]
    return tuple(group for group in groups if group)


def local_nodes(plan: Plan, host: str) -> tuple[GrantedNode, ...]:
    """Nodes when one machine acts for all: its real GPUs for real engines, else as planned.

    Raises InputError where real ones are needed and NVML knows of none.
    """
    if not any(takes_gpus(d.engine, d.gpu_type) for d in plan.llms.values()):
        return pretended_nodes(plan, host)
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    domains = _local_domains(None if allowed is None else allowed.split(","))
    return (GrantedNode(rank=0, host=host, domains=domains),)


def pretended_nodes(plan: Plan, host: str) -> tuple[GrantedNode, ...]:
    """Nodes exactly as the plan wants them: for simulated and CPU engines on one machine."""
    names = sorted({instance.node for instance in plan.instances})
    nodes = []
    for rank, name in enumerate(names):
        gpus = sorted({g for i in plan.instances if i.node == name for g in i.gpus})
        domain = tuple(str(gpu) for gpu in gpus)
        nodes.append(GrantedNode(rank=rank, host=host, domains=(domain,)))
    return tuple(nodes)


def place_on(plan: Plan, nodes: tuple[GrantedNode, ...]) -> tuple[PlacedInstance, ...]:
    """Give each logical node a real one and each logical GPU a real GPU of that node.

    The node that needs most takes the smallest real node that fits; GPUs that one tensor-parallel
    group spans stay inside one real domain. Raises RunError when the grant is too small.
    """
    wanted: dict[str, list[Instance]] = {}
    for instance in plan.instances:
        wanted.setdefault(instance.node, []).append(instance)
    left = sorted(nodes, key=lambda node: (len(node.gpus), node.rank))
    placed: list[PlacedInstance] = []
    for name, instances in sorted(wanted.items(), key=lambda w: (-len(_gpus(w[1])), w[0])):
        for node in left:
            mapping = _map_gpus(instances, node)
            if mapping is not None:
                break
        else:
            sizes = ", ".join(f"{n.host}: {[len(d) for d in n.domains]}" for n in left) or "none"
            raise RunError(
                f"plan node {name} needs {len(_gpus(instances))} GPUs (largest group "
                f"{max(len(i.gpus) for i in instances)} in one link domain), which no node left "
                f"offers; left, as GPUs by domain: {sizes}. Nothing was run"
            )
        left.remove(node)
        for instance in instances:
            gpus = tuple(mapping[g] for g in instance.gpus)
            placed.append(
                PlacedInstance(instance=instance, rank=node.rank, host=node.host, gpus=gpus)
            )
    return tuple(placed)


def place_anew(
    placed: Sequence[PlacedInstance], nodes: Sequence[GrantedNode], term: int
) -> tuple[PlacedInstance, ...]:
    """What stays on ``nodes``, and of the rest what their free GPUs hold, LLMs without any first.

    ``term`` marks what moves. An instance for which no room is left is not in the answer.
    """
    ranks = {node.rank for node in nodes}
    kept = [one for one in placed if one.rank in ranks]
    lost = [one for one in placed if one.rank not in ranks]
    while lost:
        served = Counter(one.instance.llm for one in kept)
        one = min(lost, key=lambda p: (served[p.instance.llm], -len(p.gpus), p.instance.id))
        lost.remove(one)
        for node in sorted(nodes, key=lambda n: (len(_free(n, kept).gpus), n.rank)):
            mapping = _map_gpus([one.instance], _free(node, kept))
            if mapping is not None:
                gpus = tuple(mapping[g] for g in one.instance.gpus)
                moved = PlacedInstance(
                    instance=one.instance, rank=node.rank, host=node.host, gpus=gpus, term=term
                )
                kept.append(moved)
                break
    return tuple(kept)


def _free(node: GrantedNode, placed: Sequence[PlacedInstance]) -> GrantedNode:
    """A node with those of its GPUs that no instance holds any part of."""
    taken = {gpu for one in placed if one.rank == node.rank for gpu in one.gpus}
    left = [tuple(gpu for gpu in domain if gpu not in taken) for domain in node.domains]
    return replace(node, domains=tuple(domain for domain in left if domain))


def _gpus(instances: list[Instance]) -> set[int]:
    return {gpu for instance in instances for gpu in instance.gpus}


def _map_gpus(instances: list[Instance], node: GrantedNode) -> dict[int, str] | None:
    """Logical to real GPUs of one node, or None. Groups go largest first into the tightest hole."""
    groups: list[set[int]] = []
    for instance in instances:
        touching = [group for group in groups if group & set(instance.gpus)]
        merged = set(instance.gpus).union(*touching)
        groups = [group for group in groups if group not in touching] + [merged]
    holes = [list(domain) for domain in node.domains]
    mapping: dict[int, str] = {}
    for group in sorted(groups, key=lambda g: (-len(g), min(g))):
        fitting = [hole for hole in holes if len(hole) >= len(group)]
        if not fitting:
            return None
        hole = min(fitting, key=len)
        for gpu in sorted(group):
            mapping[gpu] = hole.pop(0)
    return mapping
