"""Files a plan is made from, found again by role, workflow and digest."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from scepsy_hpc.errors import InputError
from scepsy_hpc.files import shipped_path
from scepsy_hpc.formats.bundle import load_bundle
from scepsy_hpc.formats.plan import Deployment, Plan, PlanInput, PlanWorkflow, load_plan, save_plan
from scepsy_hpc.formats.spans import Span, save_spans
from scepsy_hpc.planning.inputs import bundles_of, input_of, spans_of

BUNDLE = shipped_path("profiles") / "h100_sxm/Qwen__Qwen3-8B/vllm-0.24.0/token-grid"
LLM = Deployment(
    model="m", engine="vllm", gpu_type="t", tp_degree=1, gpu_share_pct=100, num_replicas=1
)


def _plan(*inputs: PlanInput, workflows: tuple[str, ...] = ("rag", "search")) -> Plan:
    named = tuple(PlanWorkflow(name=name, llms={"a": "a"}) for name in workflows)
    return Plan(workflows=named, llms={"a": LLM}, inputs=inputs)


def _spans(path: Path, llm: str, workflow: str | None = None) -> Path:
    """One run `r1` of one call."""
    common = {"run_id": "r1", "start_s": 0.0, "end_s": 1.0, "status": "ok"}
    run = Span(span_id="run", kind="run", workflow=workflow, **common)
    save_spans(path, [run, Span(span_id="s", kind="llm", llm=llm, **common)])
    return path


def test_each_workflow_has_its_own_spans(tmp_path: Path) -> None:
    """Two files whose runs have the same id and name no workflow: each file's go to its own."""
    first, second = _spans(tmp_path / "1.txt", "a"), _spans(tmp_path / "2.jsonl", "b")
    plan = _plan(input_of("spans", second, "search"), input_of("spans", first, "rag"))
    found = spans_of(plan)
    assert {name: spans[1].llm for name, spans in found.items()} == {"rag": "a", "search": "b"}


def test_one_file_for_both_workflows(tmp_path: Path) -> None:
    """A file that holds the runs of both workflows is parted by what its `run` spans say."""
    _spans(tmp_path / "rag", "a", "rag")
    text = (tmp_path / "rag").read_text().replace("r1", "r2").replace('"rag"', '"search"')
    (tmp_path / "both").write_text((tmp_path / "rag").read_text() + text)
    plan = _plan(*(input_of("spans", tmp_path / "both", name) for name in ("rag", "search")))
    found = spans_of(plan)
    assert {name: {s.run_id for s in spans} for name, spans in found.items()} == {
        "rag": {"r1"},
        "search": {"r2"},
    }


def test_bundles_by_role(tmp_path: Path) -> None:
    """Profiles are those of that role, or all below the folder that is given instead."""
    plan = _plan(
        input_of("topology", BUNDLE / "bundle.yaml"), input_of("profile", BUNDLE / "points.csv")
    )
    (found,) = bundles_of(plan)
    assert found.sha256 == load_bundle(BUNDLE).sha256
    below = BUNDLE.parent.parent
    assert len(bundles_of(plan, below)) == len(list(below.rglob("bundle.yaml")))
    with pytest.raises(InputError, match="names no profiles; give them with --profiles"):
        bundles_of(_plan())


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    """No spans of a workflow, a file that is gone, one that changed: one line with the fix."""
    rag = _spans(tmp_path / "rag", "a")
    plan = _plan(input_of("spans", rag, "rag"), input_of("workflow", rag, "search"))
    with pytest.raises(InputError, match="names no spans of search; give them with --spans"):
        spans_of(plan)
    rag.write_text(rag.read_text() + "\n")
    with pytest.raises(InputError, match="has changed since the plan was made"):
        spans_of(plan)
    rag.unlink()
    with pytest.raises(InputError, match="is gone; the plan was made from it"):
        spans_of(plan)


def test_a_workflow_that_the_plan_has_not(tmp_path: Path) -> None:
    """Spans in a plan belong to one of its workflows; the reader says which there are."""
    rag = _spans(tmp_path / "rag", "a")
    for named in ("other", None):
        save_plan(tmp_path / "plan.yaml", _plan(input_of("spans", rag, named)))
        with pytest.raises(InputError, match=r"inputs\[0\].workflow: must be one of rag, search"):
            load_plan(tmp_path / "plan.yaml")


def test_spans_that_were_packed_since_are_the_same(tmp_path: Path) -> None:
    """Packing changes no digest; a span that was lost or added in a part does."""
    path = _spans(tmp_path / "spans.jsonl", "a", "rag")
    plan = _plan(input_of("spans", path, "rag"), workflows=("rag",))
    (tmp_path / "spans").mkdir()
    part = tmp_path / "spans" / "000001.jsonl.gz"
    part.write_bytes(gzip.compress(path.read_bytes()))
    path.write_text("")
    assert [span.span_id for span in spans_of(plan)["rag"]] == ["run", "s"]
    part.write_bytes(gzip.compress(gzip.decompress(part.read_bytes()) + b"\n"))
    with pytest.raises(InputError, match=r"spans\.jsonl: has changed since"):
        spans_of(plan)
