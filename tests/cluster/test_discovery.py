"""Topologies from nvidia-smi text, sinfo rows and NVML; the outside program is what is faked."""

import os

import fake_nvml
import pytest

from scepsy_hpc.cluster.discovery import discover_local, discover_slurm, from_nvidia_smi
from scepsy_hpc.cluster.gpu_types import from_nvml_name
from scepsy_hpc.errors import InputError

MATRIX = """\
index, name, memory.total [MiB]
0, NVIDIA A100-SXM4-40GB, 40960 MiB
\tGPU0\tGPU1\tGPU2\tGPU3\tNIC0\tCPU Affinity\tNUMA Affinity
GPU0\t X \tNV12\tSYS\tSYS\tPXB\t0-31\t0
GPU1\tNV12\t X \tSYS\tSYS\tPXB\t0-31\t0
GPU2\tSYS\tSYS\t X \tPHB\tSYS\t32-63\t1
GPU3\tSYS\tSYS\tPHB\t X \tSYS\t32-63\t1
NIC0\tPXB\tPXB\tSYS\tSYS\t X
"""


def test_matrix_of_nvidia_smi(tmp_path):
    """NVLink pairs and PCIe pairs become domains; type and memory come from the query's lines."""
    path = tmp_path / "smi.txt"
    path.write_text(MATRIX)
    node = from_nvidia_smi(path).nodes[0]
    assert [(d.gpus, d.link) for d in node.domains] == [((0, 1), "nvlink"), ((2, 3), "pcie")]
    assert (node.gpu_type, node.gpu_memory_gib) == ("a100_sxm_40gb", 40.0)


def test_matrix_without_type_asks_for_it(tmp_path):
    """Without the query's lines the type must be given, and then the table knows the memory."""
    path = tmp_path / "smi.txt"
    path.write_text("\n".join(MATRIX.splitlines()[2:]))
    with pytest.raises(InputError, match="--gpu-type"):
        from_nvidia_smi(path)
    assert from_nvidia_smi(path, "h100_sxm").nodes[0].gpu_memory_gib == 80


def test_a_file_without_a_matrix_is_refused(tmp_path):
    """Another file is not read as a node without links."""
    path = tmp_path / "smi.txt"
    path.write_text("hello\n")
    with pytest.raises(InputError, match="no matrix"):
        from_nvidia_smi(path)


@pytest.mark.parametrize(
    ("gpu", "line", "words"),
    [
        ("GPU1", "GPU1\tNV12\t X ", "row GPU1: has 2 cells, needs 4"),
        ("GPU1", None, "has GPU0, GPU2, GPU3"),
        ("GPU3", None, "has GPU0, GPU1, GPU2"),
    ],
)
def test_a_cut_off_matrix_is_refused(gpu, line, words, tmp_path):
    """A row that ends early, or one that is not there: other GPUs' links are not read for it."""
    rows = MATRIX.splitlines()
    number = next(i for i, row in enumerate(rows) if row.startswith(gpu))
    rows[number : number + 1] = [] if line is None else [line]
    path = tmp_path / "smi.txt"
    path.write_text("\n".join(rows))
    with pytest.raises(InputError, match=words):
        from_nvidia_smi(path)


def test_unknown_card_becomes_its_own_type():
    """A card newer than the table still has a usable name."""
    assert from_nvml_name("NVIDIA H100 80GB HBM3") == "h100_sxm"
    assert from_nvml_name("NVIDIA X900 Ultra-96GB") == "x900_ultra_96gb"


def fake_sinfo(folder, rows, code=0):
    """A program ``sinfo`` that prints fixed-width rows as the real one does for -O."""
    text = "\n".join(
        "".join(c.ljust(w) for c, w in zip(r, (64, 128, 128, 32), strict=True)) for r in rows
    )
    (folder / "rows").write_text(text + "\n")
    program = folder / "sinfo"
    program.write_text(f"#!/bin/sh\ncat {folder}/rows\nexit {code}\n")
    program.chmod(0o755)


def test_slurm_partition(tmp_path, monkeypatch):
    """Free GPUs are those that GresUsed does not list; nodes that are down are left out."""
    rows = [
        ("n1", "gpu:h100:4(S:0-1)", "gpu:h100:2(IDX:0,2)", "mixed"),
        ("n2", "gpu:h100:4", "gpu:h100:0(IDX:N/A)", "idle"),
        ("n3", "gpu:h100:4", "gpu:h100:0(IDX:N/A)", "down*"),
        ("n4", "(null)", "gpu:0", "idle"),
    ]
    fake_sinfo(tmp_path, rows)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    topology = discover_slurm("gpu")
    assert [node.name for node in topology.nodes] == ["n1", "n2"]
    assert topology.nodes[0].free == (1, 3)
    assert topology.nodes[1].free == (0, 1, 2, 3)
    assert topology.nodes[0].gpu_type == "h100_sxm"
    assert "assumed" in (topology.note or "")


@pytest.mark.parametrize(
    ("gres", "words"),
    [("gpu:4", "names no type"), ("gpu:warp9:4", "not in the table"), ("(null)", "no usable node")],
)
def test_slurm_refusals(tmp_path, monkeypatch, gres, words):
    """What Slurm does not say, or we do not know, must be given."""
    fake_sinfo(tmp_path, [("n1", gres, "gpu:0", "idle")])
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(InputError, match=words):
        discover_slurm("gpu")


def test_without_slurm(tmp_path, monkeypatch):
    """Without sinfo the message says where to run this."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="sinfo"):
        discover_slurm("gpu")


def test_local_nvml(monkeypatch):
    """NVLink neighbours are one domain, GPUs under one PCIe root another."""
    fake_nvml.install(monkeypatch, 4, [{0, 1}])
    node = discover_local().nodes[0]
    assert [(d.gpus, d.link) for d in node.domains] == [((0, 1), "nvlink"), ((2, 3), "pcie")]
    assert node.gpu_type == "h100_sxm"


def test_local_without_gpu(monkeypatch):
    """No GPU is a clear line, not an empty topology."""
    fake_nvml.install(monkeypatch, 0)
    with pytest.raises(InputError, match="no GPU"):
        discover_local()
