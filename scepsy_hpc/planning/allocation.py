"""What a placement asks of Slurm."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from scepsy_hpc.formats.plan import Allocation, Component, Instance
from scepsy_hpc.formats.topology import Topology

CPUS_PER_GPU = 4
"""What an engine needs to feed one GPU: its API server, its scheduler and a tokenizer."""


def allocation_of(
    instances: Sequence[Instance], topology: Topology, time_min: int | None = None
) -> Allocation:
    """What to ask Slurm for: nodes of one GPU type that need equally many GPUs are a component."""
    used: dict[str, set[int]] = defaultdict(set)
    for instance in instances:
        used[instance.node] |= set(instance.gpus)
    types = {node.name: node.gpu_type for node in topology.nodes}
    counts = Counter((types[node], len(gpus)) for node, gpus in used.items())
    return Allocation(
        components=tuple(
            Component(
                num_nodes=number,
                gpus_per_node=gpus,
                gpu_type=gpu_type,
                cpus_per_gpu=CPUS_PER_GPU,
                time_min=time_min,
            )
            for (gpu_type, gpus), number in sorted(
                counts.items(), key=lambda c: (c[0][0], -c[0][1])
            )
        )
    )
