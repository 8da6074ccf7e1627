"""topology.yaml: short forms, free GPUs, and what cannot be."""

from dataclasses import replace

import pytest

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.topology import Domain, Node, check_topology, load_topology, save_topology

HEAD = "schema: scepsy/topology/v1\nnodes:\n"


def test_short_form_is_nvlink_domains(tmp_path):
    """``nvlink_domains`` means domains with link nvlink; free GPUs are all unless listed."""
    path = tmp_path / "t.yaml"
    path.write_text(
        HEAD
        + "  - {name: a, gpu_type: h100_sxm, gpu_memory_gib: 80, nvlink_domains: [[0,1],[2]]}\n"
        "  - {name: b, gpu_type: l4, gpu_memory_gib: 24, free_gpus: [1],"
        " domains: [{gpus: [0,1], link: pcie}]}\n"
    )
    topology = load_topology(path)
    first, second = topology.nodes
    assert first.domains == (Domain(gpus=(0, 1), link="nvlink"), Domain(gpus=(2,), link="nvlink"))
    assert first.free == (0, 1, 2)
    assert second.free == (1,)
    assert topology.num_gpus == 4
    save_topology(path, topology)
    assert load_topology(path) == topology


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ("{name: a, gpu_type: x, gpu_memory_gib: 8}", "no free GPU"),
        ("{name: a, gpu_type: x, gpu_memory_gib: 8, nvlink_domains: [[0, 0]]}", "GPU 0 is in two"),
        (
            "{name: a, gpu_type: x, gpu_memory_gib: 8, nvlink_domains: [[0]], free_gpus: [7]}",
            "GPU 7 is in no domain",
        ),
        (
            "{name: a, gpu_type: x, gpu_memory_gib: 8, domains: [{gpus: [0], link: wifi}]}",
            "'nvlink', 'pcie' or 'cross_numa'",
        ),
    ],
)
def test_refusals(tmp_path, node, words):
    """A node that cannot be is refused with the reason."""
    path = tmp_path / "t.yaml"
    path.write_text(f"{HEAD}  - {node}\n")
    with pytest.raises(InputError, match=r"t\.yaml") as caught:
        load_topology(path)
    assert words in str(caught.value)


def test_names_must_differ(tmp_path):
    """Two nodes of one name would make plans ambiguous."""
    node = "  - {name: a, gpu_type: x, gpu_memory_gib: 8, nvlink_domains: [[0]]}\n"
    path = tmp_path / "t.yaml"
    path.write_text(HEAD + node * 2)
    with pytest.raises(InputError, match="stands twice"):
        load_topology(path)


def test_a_node_without_a_free_gpu_stays_so(tmp_path):
    """What is written of a fully busy node is read back as busy, not as wholly free."""
    busy = Node(
        name="busy",
        gpu_type="h100_sxm",
        gpu_memory_gib=80,
        domains=(Domain(gpus=(0, 1), link="nvlink"),),
        free_gpus=(),
    )
    idle = replace(busy, name="idle", free_gpus=None)
    path = tmp_path / "topology.yaml"
    save_topology(path, check_topology((busy, idle), "test"))
    found = load_topology(path)
    assert [node.free for node in found.nodes] == [(), (0, 1)]
    assert found.num_gpus == 2


@pytest.mark.parametrize("index", [-1, 99999999999999999])
@pytest.mark.parametrize("key", ["nvlink_domains", "free_gpus", "domains"])
def test_indices_that_no_gpu_has(key, index, tmp_path):
    """A negative or huge index of a GPU is refused wherever it stands."""
    parts = {
        "nvlink_domains": f"nvlink_domains: [[0, {index}]]",
        "free_gpus": f"nvlink_domains: [[0, 1]], free_gpus: [0, {index}]",
        "domains": f"domains: [{{gpus: [0, {index}], link: nvlink}}]",
    }
    path = tmp_path / "topology.yaml"
    path.write_text(
        "schema: scepsy/topology/v1\n"
        f"nodes: [{{name: a, gpu_type: h100_sxm, gpu_memory_gib: 80, {parts[key]}}}]\n"
    )
    with pytest.raises(InputError, match=rf"{key}.*got {index}"):
        load_topology(path)
