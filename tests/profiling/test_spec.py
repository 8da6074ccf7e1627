"""SPEC.yaml: what is measured where, and bad input."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from scepsy_hpc.errors import InputError
from scepsy_hpc.profiling.spec import ProfileSpec, load_spec

NODES = [
    {
        "name": "a",
        "gpu_type": "h100_sxm",
        "gpu_memory_gib": 80,
        "nvlink_domains": [[0, 1, 2, 3]],
        "free_gpus": [0, 1, 3],
    },
    {
        "name": "b",
        "gpu_type": "a100_pcie",
        "gpu_memory_gib": 80,
        "domains": [{"gpus": [0, 1], "link": "pcie"}],
    },
]
MODEL = {"model": "org/model", "engine": "vllm", "tp_degrees": [1, 2, 4]}
SPEC = {
    "schema": "scepsy/profile-spec/v1",
    "topology": "topology.yaml",
    "models": [MODEL],
    "workload": {"name": "chat", "input_tokens": 100, "output_tokens": 20},
}


def load(folder: Path, **changes: object) -> ProfileSpec:
    topology = {"schema": "scepsy/topology/v1", "nodes": NODES}
    (folder / "topology.yaml").write_text(yaml.safe_dump(topology))
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(SPEC | changes))
    return load_spec(path)


def keys(spec: ProfileSpec) -> list[tuple[str, str | None, int, int]]:
    return [(t.gpu_type, t.link, t.tp_degree, t.gpu_share_pct) for t in spec.tasks]


def test_tasks_are_what_the_topology_offers(tmp_path):
    """A task for each (GPU type, link, TP) with enough free GPUs in one domain; TP 4 has none."""
    spec = load(tmp_path)
    assert keys(spec) == [
        ("h100_sxm", None, 1, 100),
        ("a100_pcie", None, 1, 100),
        ("h100_sxm", "nvlink", 2, 100),
        ("a100_pcie", "pcie", 2, 100),
    ]
    assert any("no domain has 4 free GPUs" in line for line in spec.skipped)


def test_shares_are_for_single_gpus_unless_declared(tmp_path):
    """TP 2 is measured on whole GPUs only, and on shares where shared_tp says so."""
    model = MODEL | {"tp_degrees": [1, 2], "gpu_shares_pct": [50, 100]}
    shared = {(tp, share) for _, _, tp, share in keys(load(tmp_path, models=[model]))}
    assert shared == {(1, 50), (1, 100), (2, 100)}
    declared = load(tmp_path, models=[model | {"shared_tp": True}])
    assert (2, 50) in {(tp, share) for _, _, tp, share in keys(declared)}


def test_models_that_do_not_fit_are_skipped_aloud(tmp_path):
    """Weights beyond share x (memory - 2 GiB) x TP are not tried, and the result says so."""
    model = MODEL | {"tp_degrees": [1, 2], "gpu_shares_pct": [50, 100], "weights_gib": 60}
    spec = load(tmp_path, models=[model])
    assert {(tp, share) for _, _, tp, share in keys(spec)} == {(1, 100), (2, 100)}
    assert any("60 GiB leave no room" in line and "39 GiB" in line for line in spec.skipped)


def test_task_ids_differ_and_are_file_names(tmp_path):
    """Each task has a name of its own that can name its logs."""
    spec = load(tmp_path, models=[MODEL, MODEL | {"model": "other/model"}])
    ids = [task.task_id for task in spec.tasks]
    assert len(set(ids)) == len(ids)
    assert all("/" not in task_id for task_id in ids)


def test_traced_lengths_are_those_of_the_llm(tmp_path):
    """A workload of spans replays the token lengths of one LLM's calls that went well."""
    line = '{{"run_id":"r","span_id":"{i}","kind":"llm","llm":"{llm}","start_s":0,"end_s":1,'
    line += '"status":"{status}","input_tokens":{i},"output_tokens":{out}}}\n'
    calls = [
        (1, "judge", "ok", 1),
        (2, "gen", "ok", 7),
        (3, "gen", "error", 8),
        (4, "gen", "ok", 9),
    ]
    text = "".join(line.format(i=i, llm=llm, status=s, out=o) for i, llm, s, o in calls)
    (tmp_path / "spans.jsonl").write_text(text)
    spec = load(tmp_path, workload={"name": "traced", "spans": "spans.jsonl", "llm": "gen"})
    lengths = {(length.input_tokens, length.output_tokens) for length in spec.tasks[0].lengths}
    assert lengths == {(2, 7), (4, 9)}
    with pytest.raises(InputError, match="no call of llm 'x' with token counts; LLMs here: gen"):
        load(tmp_path, workload={"name": "traced", "spans": "spans.jsonl", "llm": "x"})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"modles": []}, r"spec\.yaml: modles: unknown key; known keys: .*models"),
        ({"models": []}, r"models: is empty"),
        ({"topology": "nowhere.yaml"}, r"nowhere\.yaml: no such file"),
        ({"workload": {"name": "chat"}}, r"workload: give one of: `input_tokens`"),
        (
            {"workload": {"name": "chat", "input_tokens": 5, "output_tokens": 5, "spans": "s"}},
            r"workload: give one of",
        ),
        ({"workload": {"name": "chat", "spans": "s.jsonl"}}, r"workload: llm: missing"),
        ({"loads": {"concurrency": []}}, r"loads: is empty"),
        ({"models": [MODEL | {"tp_degrees": [8]}]}, r"nothing can be measured: .*8 free GPUs"),
        ({"models": [MODEL, MODEL]}, r"models\[1\]: org/model with engine vllm stands twice"),
        ({"models": [MODEL | {"engine": "simulated"}]}, r"timing_bundle is missing"),
        (
            {"models": [MODEL | {"engine": "simulated", "engine_args": {"timing_bundle": "no"}}]},
            r"timing_bundle: no bundle\.yaml in",
        ),
    ],
)
def test_bad_spec_is_one_line(tmp_path, changes, said):
    """Whatever is wrong is one line that names the place and what is allowed."""
    with pytest.raises(InputError, match=said) as caught:
        load(tmp_path, **changes)
    assert "\n" not in str(caught.value)
