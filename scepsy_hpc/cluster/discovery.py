"""What GPUs and links there are: from NVML, from Slurm, or from saved nvidia-smi output."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scepsy_hpc.cluster import gpu_types
from scepsy_hpc.errors import InputError
from scepsy_hpc.files import read_text
from scepsy_hpc.formats.parallelism import Link
from scepsy_hpc.formats.topology import Domain, Node, Topology, check_topology

_GIVE_MEMORY = "; give --gpu-memory-gib GIB"


@contextmanager
def nvml_session(refusal: str) -> Iterator[Any]:
    """NVML for a while. Raises InputError where it fails: ``refusal`` with its words for ``{}``."""
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            yield pynvml
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise InputError(refusal.format(error)) from None


def discover_local() -> Topology:
    """Topology of this machine from NVML. Raises InputError when there is no driver or GPU."""
    refusal = (
        "topology --local: NVML does not answer ({}); no NVIDIA driver here. Run it on "
        "a GPU node, or use --slurm PARTITION or --from-nvidia-smi FILE"
    )
    with nvml_session(refusal) as nvml:
        node = _node_from_nvml(nvml)
    return check_topology((node,), "topology --local")


def _node_from_nvml(nvml: Any) -> Node:
    handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    if not handles:
        raise InputError("topology --local: NVML finds no GPU on this machine")
    names = {nvml.nvmlDeviceGetName(h) for h in handles}
    if len(names) > 1:
        raise InputError(
            f"topology --local: GPUs of different types on one node: {', '.join(sorted(names))}; "
            "list them as one node a type, by hand"
        )
    memory_gib = min(nvml.nvmlDeviceGetMemoryInfo(h).total for h in handles) / 2**30

    def link(a: int, b: int) -> Link:
        return _nvml_link(nvml, handles[a], handles[b])

    return Node(
        name=socket.gethostname(),
        gpu_type=gpu_types.from_nvml_name(names.pop()),
        gpu_memory_gib=round(memory_gib, 1),
        domains=_domains(range(len(handles)), link),
        mig=_mig_profile(nvml, handles[0]),
    )


def _nvml_link(nvml: Any, a: Any, b: Any) -> Link:
    try:
        status = nvml.nvmlDeviceGetP2PStatus(a, b, nvml.NVML_P2P_CAPS_INDEX_NVLINK)
        if status == nvml.NVML_P2P_STATUS_OK:
            return "nvlink"
        ancestor = nvml.nvmlDeviceGetTopologyCommonAncestor(a, b)
    except nvml.NVMLError:
        return "cross_numa"
    return "cross_numa" if ancestor >= nvml.NVML_TOPOLOGY_SYSTEM else "pcie"


def _mig_profile(nvml: Any, handle: Any) -> str | None:
    """Name of the MIG profile in use, or None; MIG instances are listed by hand for now."""
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:
        return None
    if current != nvml.NVML_DEVICE_MIG_ENABLE:
        return None
    raise InputError(
        "topology --local: MIG is on; list each instance as a GPU of a node with "
        "`mig: PROFILE` (see `nvidia-smi -L`), by hand"
    )


def _domains(gpus: Iterable[int], link: Callable[[int, int], Link]) -> tuple[Domain, ...]:
    """Groups of GPUs joined by NVLink; those with none are grouped by their PCIe root."""
    left = list(gpus)
    found: list[Domain] = []
    kinds: tuple[Link, ...] = ("nvlink", "pcie")
    for kind in kinds:
        for group in _components(left, link, kind):
            if len(group) > 1:
                found.append(Domain(gpus=tuple(group), link=kind))
                left = [g for g in left if g not in group]
    found.extend(Domain(gpus=(gpu,), link="pcie") for gpu in left)
    return tuple(sorted(found, key=lambda domain: domain.gpus))


def _components(nodes: list[int], link: Callable[[int, int], Link], kind: Link) -> list[list[int]]:
    left, groups = list(nodes), []
    while left:
        group = [left.pop(0)]
        for member in group:
            near = [n for n in left if link(member, n) == kind]
            group.extend(near)
            left = [n for n in left if n not in near]
        groups.append(sorted(group))
    return groups


def discover_slurm(
    partition: str, gpu_type: str | None = None, gpu_memory_gib: float | None = None
) -> Topology:
    """Topology of a partition as Slurm lists it; GPUs in use now are not free.

    Slurm does not know links: each node becomes one domain with the link that the GPU type
    usually has, and the file's ``note`` says so. Raises InputError.
    """
    where = f"topology --slurm {partition}"
    rows = _sinfo(partition, where)
    nodes = []
    for name, gres, used, state in rows:
        if "gpu" not in gres or _is_down(state):
            continue
        nodes.append(_slurm_node(name, gres, used, where, gpu_type, gpu_memory_gib))
    if not nodes:
        states = ", ".join(sorted({f"{name} {state} {gres}" for name, gres, _, state in rows}))
        raise InputError(f"{where}: no usable node with GPUs; Slurm lists: {states or 'no node'}")
    note = "links assumed from the GPU type; run `scepsy topology --local` on a node to check"
    return check_topology(tuple(nodes), where, note)


def _sinfo(partition: str, where: str) -> list[tuple[str, str, str, str]]:
    if shutil.which("sinfo") is None:
        raise InputError(f"{where}: `sinfo` is not on PATH; run this where Slurm commands work")
    columns = "NodeList:64,Gres:128,GresUsed:128,StateLong:32"
    command = ["sinfo", "-N", "-h", "-p", partition, "-O", columns]
    # Inherited SLURM_*/SINFO_* settings would change what sinfo prints.
    kept = ("SLURM_CONF",)
    environment = {
        k: v for k, v in os.environ.items() if k in kept or not k.startswith(("SLURM_", "SINFO_"))
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        raise InputError(f"{where}: sinfo failed: {(done.stderr or done.stdout).strip()}")
    rows = []
    for line in done.stdout.splitlines():
        cells = [line[a:b].strip() for a, b in ((0, 64), (64, 192), (192, 320), (320, 352))]
        rows.append((cells[0], cells[1], cells[2], cells[3]))
    return list(dict.fromkeys(rows))


def _is_down(state: str) -> bool:
    return state.rstrip("*~#!%$@^-+").lower() in (
        *("down", "drained", "draining", "drain", "fail", "failing", "maint", "inval", "unknown"),
        *("power_down", "powered_down", "powering_down", "reboot", "perfctrs"),
    )


def _slurm_node(
    name: str, gres: str, used: str, where: str, gpu_type: str | None, memory_gib: float | None
) -> Node:
    match = re.search(r"gpu:(?:(?P<type>[A-Za-z_][\w.-]*):)?(?P<count>\d+)", gres)
    if match is None:
        raise InputError(f"{where}: node {name}: cannot read gres {gres!r}")
    if gpu_type is None and match["type"] is None:
        raise InputError(f"{where}: node {name}: gres {gres!r} names no type; give --gpu-type TYPE")
    gpu_type = gpu_type or gpu_types.from_gres(match["type"], where).name
    entry = gpu_types.known(gpu_type)
    gpus = tuple(range(int(match["count"])))
    busy = _used_indices(used)
    return Node(
        name=name,
        gpu_type=gpu_type,
        gpu_memory_gib=memory_gib or gpu_types.look_up(gpu_type, where, _GIVE_MEMORY).memory_gib,
        domains=(Domain(gpus=gpus, link=entry.link if entry else "pcie"),),
        free_gpus=tuple(g for g in gpus if g not in busy) if busy else None,
    )


def _used_indices(used: str) -> set[int]:
    """Indices inside ``gpu:h100:2(IDX:0-1,3)``; ``IDX:N/A`` is none."""
    match = re.search(r"gpu[^(]*\(IDX:([\d,-]+)\)", used)
    if match is None:
        return set()
    busy: set[int] = set()
    for part in match[1].split(","):
        first, _, last = part.partition("-")
        busy.update(range(int(first), int(last or first) + 1))
    return busy


def from_nvidia_smi(
    path: Path | str, gpu_type: str | None = None, gpu_memory_gib: float | None = None
) -> Topology:
    """Topology of one node from a file that holds the output of ``nvidia-smi topo -m``.

    Type and memory come from ``nvidia-smi --query-gpu=index,name,memory.total --format=csv`` in
    the same file, or from the arguments. Raises InputError.
    """
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in read_text(path).splitlines()]
    matrix = _topo_matrix(lines, str(path))
    name, memory_gib = _queried(lines)
    gpu_type = gpu_type or (gpu_types.from_nvml_name(name) if name else None)
    if gpu_type is None:
        raise InputError(
            f"{path}: does not say which GPUs these are; append the output of `nvidia-smi "
            "--query-gpu=index,name,memory.total --format=csv`, or give --gpu-type TYPE"
        )
    memory_gib = gpu_memory_gib or memory_gib
    memory_gib = memory_gib or gpu_types.look_up(gpu_type, str(path), _GIVE_MEMORY).memory_gib

    def link(a: int, b: int) -> Link:
        cell = matrix[a][b]
        if cell.startswith("NV"):
            return "nvlink"
        return "cross_numa" if cell == "SYS" else "pcie"

    node = Node(
        name="node1",
        gpu_type=gpu_type,
        gpu_memory_gib=memory_gib,
        domains=_domains(sorted(matrix), link),
    )
    return check_topology((node,), str(path))


def _topo_matrix(lines: list[str], where: str) -> dict[int, list[str]]:
    rows: dict[int, list[str]] = {}
    num_columns = 0  # the first line of the matrix names the GPU of every column
    for line in lines:
        cells = line.split()
        num_columns = max(num_columns, sum(bool(re.fullmatch(r"GPU\d+", c)) for c in cells))
        if len(cells) > 1 and re.fullmatch(r"GPU\d+", cells[0]) and cells[1][:3] != "GPU":
            rows[int(cells[0][3:])] = cells[1:]
    if not rows:
        raise InputError(
            f"{where}: holds no matrix of `nvidia-smi topo -m` (lines `GPU0 X NV12 …`)"
        )
    # With a row lost its GPU would be missing, and the columns would be other GPUs' links.
    if sorted(rows) != list(range(max(len(rows), num_columns))):
        found = ", ".join(f"GPU{gpu}" for gpu in sorted(rows))
        raise InputError(
            f"{where}: the matrix must have a row for each GPU from GPU0 on, has {found}; save the "
            "whole output of `nvidia-smi topo -m`"
        )
    known = re.compile(r"X|NV\d+|PIX|PXB|PHB|NODE|SYS")
    for gpu, cells in rows.items():
        if len(cells) < len(rows):
            raise InputError(
                f"{where}: row GPU{gpu}: has {len(cells)} cells, needs {len(rows)}, one for each "
                "GPU; save the whole output of `nvidia-smi topo -m`"
            )
        for cell in cells[: len(rows)]:
            if not known.fullmatch(cell):
                raise InputError(
                    f"{where}: row GPU{gpu}: link {cell!r} is not one of X NV# PIX PXB PHB NODE SYS"
                )
    return rows


def _queried(lines: list[str]) -> tuple[str | None, float | None]:
    for line in lines:
        match = re.match(r"\s*\d+\s*,\s*(?P<name>[^,]+?)\s*,\s*(?P<mib>\d+)\s*MiB", line)
        if match:
            return match["name"], round(int(match["mib"]) / 1024, 1)
        match = re.match(r"GPU \d+: (?P<name>.+?) \(UUID", line)
        if match:
            return match["name"], None
    return None, None
