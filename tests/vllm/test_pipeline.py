"""The whole pipeline on real parts: vLLM on CPU slices, submitted to a real Slurm of two nodes.

Models with random weights are made on the spot (``cpu_slice_lab.py``). The table of predicted
against measured figures is printed whatever it says: only its being there is checked, not how good
it is; that is measured by ``bench/real_vllm.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cpu_slice_lab import Lab, make_plan, open_lab, run_batch

from scepsy_hpc.formats.plan import load_plan
from scepsy_hpc.formats.spans import load_spans

NUM_TASKS = 32


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The pipeline, run once: topology, trace, profile, plan, two runs, report."""
    with open_lab(NUM_TASKS, keep=lambda: request.session.testsfailed > 0) as made:
        make_plan(made)
        for out in ("results-1", "results-2"):
            run_batch(made, out, "--runs-in-flight", "4")
        made.scepsy("report", "results-1", "--again", "results-2")
        yield made


def test_real_engines_were_profiled(lab: Lab) -> None:
    """Both models were measured, one of them at TP 1 and 2, and the bundles say measured."""
    headers = [
        yaml.safe_load(p.read_text()) for p in (lab.folder / "profiles").rglob("bundle.yaml")
    ]
    assert {Path(h["model"]).name for h in headers} == {"tiny-generator", "tiny-judge"}
    assert {(h["engine"], h["how"], h["gpu_type"]) for h in headers} == {
        ("vllm", "measured", "cpu_slice")
    }
    points = [p.read_text() for p in (lab.folder / "profiles").rglob("points.csv")]
    degrees = {line.split(",")[0] for text in points for line in text.splitlines()[1:]}
    assert degrees == {"1", "2"}


def test_the_plan_fills_both_nodes(lab: Lab) -> None:
    """The plan hosts each LLM, on slices that exist, with a certificate without a gap."""
    plan = load_plan(lab.folder / "plan.yaml")
    assert set(plan.llms) == {"generator", "judge"}
    assert {i.llm for i in plan.instances} == {"generator", "judge"}
    assert {i.node for i in plan.instances} == {"n1", "n2"}
    assert plan.certificate is not None
    assert plan.certificate.gap == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("out", ["results-1", "results-2"])
def test_every_task_once(lab: Lab, out: str) -> None:
    """At least 30 tasks end well, each recorded once, with text from a real engine."""
    results = lab.read(f"{out}/results.jsonl")
    assert NUM_TASKS >= 30
    assert sorted(r["task_id"] for r in results) == [f"panel-{i:02d}" for i in range(NUM_TASKS)]
    assert {r["status"] for r in results} == {"ok"}
    assert all(r["result"]["text"] for r in results)


def test_calls_reached_every_instance(lab: Lab) -> None:
    """The dispatcher used every instance of the plan, on both nodes."""
    plan = load_plan(lab.folder / "plan.yaml")
    hosts = {s.host for s in load_spans(lab.folder / "results-1/spans.jsonl") if s.kind == "llm"}
    assert hosts == {i.id for i in plan.instances}


def test_predicted_stands_beside_measured(lab: Lab) -> None:
    """Each figure has its prediction, measurement, error and noise floor, in table and report."""
    out = lab.scepsy("report", "results-1", "--again", "results-2", "--json")
    rows = {row["metric"]: row for row in json.loads(out)["rows"]}
    assert set(rows) == {"throughput", "mean latency", "p95 latency", "makespan"}
    for row in rows.values():
        assert row["measured"] > 0
        assert row["simulation"] > 0
        assert row["simulation_error"] == pytest.approx(row["simulation"] / row["measured"] - 1)
        assert row["noise"] >= 0
    assert "SIMULATED" not in (lab.folder / "results-1/report.html").read_text()


def test_traced_runs_say_what_their_agent_used(lab: Lab) -> None:
    """Each run of trace and batch carries CPU seconds, and the plan the mean of the traced ones."""
    plan = load_plan(lab.folder / "plan.yaml")
    for name in ("spans.jsonl", "results-1/spans.jsonl"):
        runs = [s for s in load_spans(lab.folder / name) if s.kind == "run"]
        assert all(s.cpu_s is not None and 0 < s.cpu_s < s.duration_s for s in runs)
    assert plan.demand["panel"].cpu_s > 0
