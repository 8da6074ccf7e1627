"""``plan.yaml`` by hand: what cannot be is refused in one line that says where and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from scepsy_hpc.errors import InputError
from scepsy_hpc.files import sha256_file
from scepsy_hpc.formats.plan import load_plan

LLM = {"model": "m", "engine": "vllm", "gpu_type": "h100_sxm", "gpu_share_pct": 100}
TOPOLOGY = """\
schema: scepsy/topology/v1
nodes:
- {name: n, gpu_type: h100_sxm, gpu_memory_gib: 80, nvlink_domains: [[0, 1], [2, 3]],
   free_gpus: [0, 1, 2]}
"""


def instance(number: int, gpus: list[int], share: int = 100, **more: Any) -> dict[str, Any]:
    return {
        "id": f"a{number}",
        "llm": "a",
        "node": "n",
        "gpus": gpus,
        "gpu_share_pct": share,
    } | more


def write(folder: Path, instances: list[dict[str, Any]], tp: int = 1, **more: Any) -> Path:
    """A plan of one deployment on these instances, with the topology above."""
    topology = folder / "topology.yaml"
    topology.write_text(TOPOLOGY)
    share = instances[0]["gpu_share_pct"]
    llm = {**LLM, "tp_degree": tp, "gpu_share_pct": share, "num_replicas": len(instances), **more}
    known = {"role": "topology", "path": str(topology), "sha256": sha256_file(topology)}
    content = {"schema": "scepsy/plan/v1", "llms": {"a": llm}, "instances": instances}
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({**content, "inputs": [known]}))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_plan(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("instances", "tp"),
    [
        ([instance(0, [0]), instance(1, [1])], 1),
        ([instance(0, [0, 1])], 2),
        ([instance(i, [0], 50) for i in range(2)], 1),
        ([instance(i, [0], 25) for i in range(4)], 1),
    ],
)
def test_what_fits_is_read(instances: list[dict[str, Any]], tp: int, tmp_path: Path) -> None:
    """Shares up to 100% of a GPU, groups inside a domain."""
    assert len(load_plan(write(tmp_path, instances, tp)).instances) == len(instances)


@pytest.mark.parametrize(
    ("instances", "tp", "words"),
    [
        (
            [instance(i, [0]) for i in range(3)],
            1,
            ["instances[1].gpu_share_pct", "GPU 0 of n", "200%", "at most 100%"],
        ),
        ([instance(i, [0], 40) for i in range(3)], 1, ["instances[2]", "120%", "smaller shares"]),
        ([instance(0, [1, 1])], 2, ["instances[0].gpus", "[1, 1]", "twice", "must differ"]),
        ([instance(0, [0, 1])], 1, ["instances[0].gpus", "must list 1 GPUs (tp_degree of a)"]),
        ([instance(0, [-1])], 1, ["instances[0].gpus", "from 0 on"]),
        ([instance(0, [7])], 1, ["instances[0].gpus", "no free GPU 7", "free: 0, 1, 2"]),
        ([instance(0, [3])], 1, ["no free GPU 3"]),
        ([instance(0, [1, 2])], 2, ["two link domains", "[0, 1] and [2, 3]"]),
        ([instance(0, [0], node="m")], 1, ["instances[0].node", "'m'", "it has: n"]),
    ],
)
def test_what_cannot_be_is_refused(
    instances: list[dict[str, Any]], tp: int, words: list[str], tmp_path: Path
) -> None:
    """300% on a GPU, a GPU twice in a group, GPUs that are not there, groups over two domains."""
    path = write(tmp_path, instances, tp)
    said = refusal(path)
    assert said.startswith(f"{path}: ")
    for word in words:
        assert word in said


def test_instances_and_llms_must_agree(tmp_path: Path) -> None:
    """Number of replicas, share and GPU type stand in both."""
    two = [instance(0, [0]), instance(1, [1])]
    assert "llms.a.num_replicas: is 3, but instances list 2" in refusal(
        write(tmp_path, two, num_replicas=3)
    )
    assert "instances[0].gpu_share_pct: is 100, but llms.a says 50" in refusal(
        write(tmp_path, two, gpu_share_pct=50)
    )
    assert "n has GPUs of type h100_sxm, but llms.a.gpu_type is a100_sxm" in refusal(
        write(tmp_path, two, gpu_type="a100_sxm")
    )


def test_a_topology_that_has_changed_says_nothing(tmp_path: Path) -> None:
    """What is no longer the topology of the plan cannot refuse it."""
    path = write(tmp_path, [instance(0, [7])])
    (tmp_path / "topology.yaml").write_text(TOPOLOGY.replace("80", "81"))
    assert load_plan(path).instances[0].gpus == (7,)


def by_hand(folder: Path, topology: bool = True, **more: Any) -> Path:
    """A plan of ``llms`` without instances."""
    path = write(folder, [instance(0, [0])])
    content = yaml.safe_load(path.read_text())
    del content["instances"]
    content["llms"] = {"a": {**content["llms"]["a"], "num_replicas": 3}}
    if not topology:
        del content["inputs"]
    path.write_text(yaml.safe_dump(content | more))
    return path


def test_more_replicas_than_there_are_gpus(tmp_path: Path) -> None:
    """Three GPUs are free: three replicas fit, not four of half a GPU and two of a whole one."""
    assert load_plan(by_hand(tmp_path)).llms["a"].num_replicas == 3
    whole = {**LLM, "tp_degree": 1, "num_replicas": 2}
    both = {"a": whole, "b": {**whole, "gpu_share_pct": 50, "num_replicas": 4}}
    assert (
        "llms.a.num_replicas: all replicas on h100_sxm (a, b) take 4 GPUs, and the topology has 3"
    ) in refusal(by_hand(tmp_path, llms=both))
    assert load_plan(by_hand(tmp_path, topology=False, llms=both))
    slip = {"a": {**whole, "num_replicas": 10**9}}
    said = refusal(by_hand(tmp_path, topology=False, llms=slip))
    assert "num_replicas" in said
    assert "10000" in said


def test_an_llm_that_no_workflow_uses(tmp_path: Path) -> None:
    """It would hold GPUs and be in no figure; without workflows nobody can tell."""
    one = {**LLM, "tp_degree": 1, "num_replicas": 1}
    llms, flow = {"a": one, "idle": one}, {"name": "w", "llms": {"alias": "a"}}
    assert "llms.idle: no workflow uses it; they use: a." in refusal(
        by_hand(tmp_path, llms=llms, workflows=[flow])
    )
    assert load_plan(by_hand(tmp_path, llms=llms)).llms["idle"].num_replicas == 1
