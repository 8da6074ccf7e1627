"""Cluster > node > link domain > GPU, and the file ``topology.yaml`` that holds it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field

from scepsy_hpc.errors import InputError
from scepsy_hpc.files import Positive, read_yaml, record, write_yaml
from scepsy_hpc.formats.parallelism import Link

TOPOLOGY_SCHEMA = "scepsy/topology/v1"


GpuIndex = Annotated[int, Field(ge=0, le=4095)]


@record
class Domain:
    """GPUs joined by one kind of link; a tensor-parallel group stays inside one domain."""

    gpus: tuple[GpuIndex, ...]
    link: Link


@record
class Node:
    """One node. ``name`` is logical: Slurm chooses the real node at start."""

    name: str
    gpu_type: str
    gpu_memory_gib: Positive
    domains: tuple[Domain, ...] = ()
    nvlink_domains: tuple[tuple[GpuIndex, ...], ...] = ()
    free_gpus: tuple[GpuIndex, ...] | None = None
    mig: str | None = None

    @property
    def full_gpu_type(self) -> str:
        """GPU type; a MIG instance is a type of its own."""
        return f"{self.gpu_type}:{self.mig}" if self.mig else self.gpu_type

    @property
    def gpus(self) -> tuple[int, ...]:
        """Indices of all GPUs, free or not."""
        return tuple(sorted(gpu for domain in self.domains for gpu in domain.gpus))

    @property
    def free(self) -> tuple[int, ...]:
        """Indices of the GPUs that may be used."""
        return self.gpus if self.free_gpus is None else tuple(sorted(self.free_gpus))

    def free_in(self, domain: Domain) -> tuple[int, ...]:
        """Free GPUs of one domain."""
        return tuple(gpu for gpu in sorted(domain.gpus) if gpu in self.free)


@record
class _TopologyFile:
    nodes: tuple[Node, ...]
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Topology:
    """A checked cluster: every node has domains, and its free GPUs exist."""

    nodes: tuple[Node, ...]
    note: str | None = None

    @property
    def num_gpus(self) -> int:
        """Free GPUs over all nodes."""
        return sum(len(node.free) for node in self.nodes)

    def node(self, name: str) -> Node:
        """The node of that name. Raises KeyError."""
        return {node.name: node for node in self.nodes}[name]


def load_topology(path: Path | str) -> Topology:
    """Read and check ``topology.yaml``. Raises InputError."""
    raw = read_yaml(path, _TopologyFile, TOPOLOGY_SCHEMA)
    return check_topology(raw.nodes, str(path), raw.note)


def save_topology(path: Path | str, topology: Topology) -> None:
    """Write ``topology.yaml`` atomically."""
    write_yaml(path, _TopologyFile(nodes=topology.nodes, note=topology.note), TOPOLOGY_SCHEMA)


def check_topology(nodes: tuple[Node, ...], where: str, note: str | None = None) -> Topology:
    """Normalise the short forms and check what pydantic cannot. Raises InputError."""
    if not nodes:
        raise InputError(f"{where}: nodes: is empty; a topology needs at least one node")
    checked = tuple(_check_node(node, f"{where}: nodes[{i}]") for i, node in enumerate(nodes))
    names = [node.name for node in checked]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{where}: nodes: name {name!r} stands twice; names must differ")
    topology = Topology(checked, note)
    if topology.num_gpus == 0:
        raise InputError(
            f"{where}: no free GPU on any node; list some under `domains` and, if given, "
            "`free_gpus`"
        )
    return topology


def _check_node(node: Node, where: str) -> Node:
    if node.domains and node.nvlink_domains:
        raise InputError(f"{where}: has both `domains` and `nvlink_domains`; keep one")
    if node.nvlink_domains:
        domains = tuple(Domain(gpus=gpus, link="nvlink") for gpus in node.nvlink_domains)
        node = replace(node, domains=domains, nvlink_domains=())
    listed = [gpu for domain in node.domains for gpu in domain.gpus]
    for gpu in listed:
        if listed.count(gpu) > 1:
            raise InputError(f"{where}.domains: GPU {gpu} is in two domains; a GPU is in one")
    for gpu in node.free_gpus or ():
        if gpu not in listed:
            raise InputError(
                f"{where}.free_gpus: GPU {gpu} is in no domain; known GPUs: "
                f"{', '.join(map(str, sorted(listed))) or 'none'}"
            )
    return node
