"""The strict border: what is refused, in which words, and that writing is atomic."""

import os

import pytest

from scepsy_hpc.errors import InputError
from scepsy_hpc.files import (
    json_line,
    read_jsonl,
    read_jsonl_data,
    read_yaml_data,
    record,
    to_plain,
    write_text,
    write_yaml,
)
from scepsy_hpc.formats.plan import Deployment, Plan, load_plan
from scepsy_hpc.formats.topology import load_topology

NODE = "{name: a, gpu_type: h100_sxm, gpu_memory_gib: 80, nvlink_domains: [[0, 1]]}"


def refusal(path, text):
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_topology(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nodes: []", ["schema", "scepsy/topology/v1"]),
        ("a: [", ["line "]),
        ("just text", ["must be a mapping"]),
        (
            f"schema: scepsy/topology/v1\nnodes: [{NODE.replace('gpu_type', 'gpu_typ')}]",
            ["nodes[0].gpu_typ", "unknown key", "gpu_type"],
        ),
        (
            f"schema: scepsy/topology/v1\nnodes: [{NODE.replace('80', '80GB')}]",
            ["nodes[0].gpu_memory_gib", '"80GB"', "number"],
        ),
        (
            f"schema: scepsy/topology/v1\nnodes: [{NODE.replace('80', '-80')}]",
            ["gpu_memory_gib", "greater than 0", "-80"],
        ),
        (
            f"schema: scepsy/topology/v1\nnodes: [{NODE.replace('80', '.nan')}]",
            ["gpu_memory_gib"],
        ),
        (
            f"schema: scepsy/topology/v1\nnodes: [{NODE.replace('name: a,', '')}]",
            ["nodes[0].name", "missing"],
        ),
        (
            "schema: scepsy/topology/v1\nnodes:\n  - name: a\n    name: b\n",
            ["line 4", "'name'", "twice"],
        ),
    ],
)
def test_bad_yaml_is_one_line_with_place_value_and_what_is_allowed(tmp_path, text, words):
    """Every refusal names the file and the key or line, the value, and what would be allowed."""
    message = refusal(tmp_path / "topology.yaml", text)
    assert "topology.yaml" in message
    for word in words:
        assert word in message


def test_missing_file_is_named(tmp_path):
    """A file that is not there is an input error, not a traceback."""
    with pytest.raises(InputError, match=r"nowhere\.yaml: no such file"):
        read_yaml_data(tmp_path / "nowhere.yaml")


def test_jsonl_errors_name_the_line(tmp_path):
    """Blank lines are passed over but counted."""
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"task_id": "a"}\n\nnot json\n')
    with pytest.raises(InputError, match="line 3"):
        read_jsonl_data(path)


def test_plan_round_trip(tmp_path):
    """What is written reads back equal; None and empty parts are left out of the file."""
    llm = Deployment(
        model="m",
        engine="vllm",
        gpu_type="h100_sxm",
        tp_degree=2,
        gpu_share_pct=100,
        num_replicas=1,
        engine_args={"max_model_len": 4096, "enforce_eager": True, "served": ("a", "b")},
    )
    plan = Plan(llms={"generator": llm})
    path = tmp_path / "plan.yaml"
    write_yaml(path, plan, "scepsy/plan/v1")
    assert load_plan(path) == plan
    assert "instances" not in path.read_text()
    assert to_plain(plan)["llms"]["generator"]["tp_degree"] == 2


def test_a_failed_write_leaves_the_old_text(tmp_path, monkeypatch):
    """A crash between writing and renaming loses nothing and leaves no temporary file."""
    path = tmp_path / "plan.yaml"
    write_text(path, "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["plan.yaml"]


@pytest.mark.parametrize("text", ["a\u2028b", "a\u0085b", "a\rb", "é", "\U0001f600", "\\\\ud83d"])
def test_a_line_is_one_line_whatever_is_in_it(tmp_path, text):
    """Ends of lines that only Unicode knows, and all else, come back as they were written."""
    path = tmp_path / "lines.jsonl"
    path.write_text(json_line({"task": text}) + json_line({"task": "next"}))
    assert path.read_bytes().isascii()
    assert read_jsonl_data(path) == [{"task": text}, {"task": "next"}]


def test_half_a_surrogate_pair_is_written_as_what_can_be_read(tmp_path):
    """Cut-off model output may hold half an emoji: strict readers take the line all the same."""
    path = tmp_path / "lines.jsonl"
    path.write_text(json_line({"task_id": "\ud83d and \ude00\U0001f600"}))
    assert read_jsonl(path, dict[str, str]) == [{"task_id": "\ufffd and \ufffd\U0001f600"}]


def test_a_file_is_written_through_a_link_and_over_nothing_else(tmp_path):
    """A link's target is written, the link stays; a pipe or a folder is refused and stays."""
    target, link, pipe = tmp_path / "target", tmp_path / "link", tmp_path / "pipe"
    target.write_text("old")
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path):
        with pytest.raises(InputError, match="is no plain file"):
            write_text(path, "x")
    assert pipe.is_fifo()


def test_a_key_that_stands_twice_is_refused(tmp_path):
    """At the top and inside; the same key at two levels, or inside a text, is none twice."""

    @record
    class Inner:
        a: int

    @record
    class Outer:
        a: int
        b: str = ""
        c: Inner | None = None

    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1, "b": "\\"a\\": 2, \\"a\\": 3", "c": {"a": 4}}\n')
    assert read_jsonl(path, Outer)[0].c == Inner(a=4)
    for line in ('{"a": 1, "b": "", "a": 2}', '{"a": 1, "c": {"a": 3, "a": 4}}'):
        path.write_text(line + "\n")
        with pytest.raises(InputError, match="line 1: a: stands twice"):
            read_jsonl(path, Outer)
