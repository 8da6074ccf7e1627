"""Which GPUs a profiling task was given, and whether they are those that its key says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from scepsy_hpc.cluster.discovery import discover_local, nvml_session
from scepsy_hpc.engines.vllm import takes_gpus
from scepsy_hpc.errors import InputError, RunError
from scepsy_hpc.formats.topology import Node
from scepsy_hpc.profiling.spec import SweepTask


@dataclass(frozen=True, slots=True)
class Hardware:
    """GPUs as CUDA_VISIBLE_DEVICES takes them; ``driver`` is None without NVML."""

    gpus: tuple[str, ...]
    driver: str | None = None


def hardware_of(task: SweepTask, environ: Mapping[str, str] = os.environ) -> Hardware:
    """The GPUs of this task. Real ones are checked: right type, joined by the right link.

    Slurm chooses GPUs without knowing of links, and a curve under the wrong key misleads every
    later plan. Raises RunError.
    """
    visible = [gpu for gpu in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    if not takes_gpus(task.model.engine, task.gpu_type):
        made_up = [str(i) for i in range(task.tp_degree)]
        return Hardware(tuple((visible or made_up)[: task.tp_degree]))
    if len(visible) < task.tp_degree:
        raise RunError(
            f"{task.task_id}: needs {task.tp_degree} GPUs, CUDA_VISIBLE_DEVICES gives "
            f"{len(visible)}; check how site.yaml asks for GPUs"
        )
    given = tuple(visible[: task.tp_degree])
    try:
        [node] = discover_local().nodes
    except InputError as error:
        raise RunError(f"{task.task_id}: {error}") from None
    check_node(task, node, given)
    return Hardware(given, _driver())


def check_node(task: SweepTask, node: Node, given: tuple[str, ...]) -> None:
    """Raises RunError when the GPUs given are of another type or joined by another link."""
    if node.full_gpu_type != task.gpu_type:
        raise RunError(
            f"{task.task_id}: ran on {node.full_gpu_type}, not {task.gpu_type}; name the type in "
            "gpu_names of site.yaml"
        )
    if task.link is None:
        return
    # In a cgroup only the job's GPUs are seen, numbered from 0; else the numbers are the node's.
    numbers = set(node.gpus)
    wanted = {int(gpu) for gpu in given if gpu.isdigit()}
    if len(numbers) == task.tp_degree:
        wanted = numbers
    links = [domain.link for domain in node.domains if wanted and wanted <= set(domain.gpus)]
    if links != [task.link]:
        found = links[0] if links else "no common domain"
        raise RunError(
            f"{task.task_id}: the job got GPUs {','.join(given)}, joined by {found}, not by "
            f"{task.link}; ask for whole nodes or a constraint in site.yaml"
        )


def _driver() -> str:
    with nvml_session("NVML does not tell the driver's version: {}") as nvml:
        return str(nvml.nvmlSystemGetDriverVersion())
