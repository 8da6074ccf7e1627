"""``workflow.yaml``: what is read, and what is said about mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from scepsy_hpc.errors import InputError
from scepsy_hpc.files import shipped_path
from scepsy_hpc.formats.workflow import load_workflow

TEXT = """\
schema: scepsy/workflow/v1
name: rag
llms:
  generator:
    model: org/big
    tp_degrees: [1, 2]
    gpu_shares_pct: [50, 100]
    min_memory_gib: 20
    engine_args: {max_model_len: 4096, enable_prefix_caching: true}
agent:
  python: agent:run
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "workflow.yaml"
    path.write_text(text)
    return path


def test_a_workflow_is_read(tmp_path: Path) -> None:
    """Every key of the contract is there, and the agent's folder is the workflow's own."""
    found = load_workflow(write(tmp_path, TEXT))
    llm = found.llms["generator"]
    assert (llm.model, llm.tp_degrees, llm.gpu_shares_pct) == ("org/big", (1, 2), (50, 100))
    assert llm.engine_args == {"max_model_len": 4096, "enable_prefix_caching": True}
    assert found.agent is not None
    assert (found.agent.python, found.agent.folder) == ("agent:run", str(tmp_path))


def test_an_agent_is_needed_only_to_run(tmp_path: Path) -> None:
    """For planning alone the agent may be left out."""
    assert load_workflow(write(tmp_path, TEXT.split("agent:")[0])).agent is None


@pytest.mark.parametrize("name", ["rag_rerank", "beam_search"])
def test_the_shipped_workflows_are_right(name: str) -> None:
    """The workflows that come with the package pass the check."""
    assert load_workflow(shipped_path("workflows") / name / "workflow.yaml").name == name


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("workflow/v1", "workflow/v2", "schema: must be 'scepsy/workflow/v1', is 'scepsy/work"),
        (
            "tp_degrees",
            "tp_degree",
            "llms.generator.tp_degree: unknown key; known keys: model, tp_",
        ),
        ("    model: org/big\n", "", "llms.generator.model: missing"),
        ("[50, 100]", "[0.5, 1]", r"gpu_shares_pct\[0\]: .*integer.*got 0.5"),
        ("[50, 100]", "[50, 200]", r"gpu_shares_pct\[1\]: .*less than or equal to 100; got 200"),
        ("[1, 2]", "2", "tp_degrees: .*got 2"),
        ("20", "20GiB", 'min_memory_gib: .*number; got "20GiB"'),
        ("python: agent:run", "python: agent.run", "agent.python: must be `module:function`"),
        ("  python: agent:run", "  python: a:b\n  command: [x]", "agent: give one of `command"),
        ("name: rag\n", "name: rag\nname: two\n", "line 3: key 'name' stands twice"),
        ("llms:", "llms: [", "line"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    """File, key, value and what is allowed stand in one line."""
    path = write(tmp_path, TEXT.replace(old, new))
    with pytest.raises(InputError, match=says) as caught:
        load_workflow(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_no_llms_are_named(tmp_path: Path) -> None:
    """A file that is not there, and a workflow that calls nothing."""
    with pytest.raises(InputError, match=r"nothing\.yaml: no such file"):
        load_workflow(tmp_path / "nothing.yaml")
    with pytest.raises(InputError, match="llms: is empty"):
        load_workflow(write(tmp_path, "schema: scepsy/workflow/v1\nname: x\nllms: {}\n"))
