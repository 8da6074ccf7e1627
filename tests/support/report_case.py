"""A finished run as `scepsy run` leaves it, small enough to work its figures out by hand."""

from __future__ import annotations

from pathlib import Path

from scepsy_hpc.cli.main import run_line
from scepsy_hpc.files import shipped_path, to_plain
from scepsy_hpc.formats.plan import Deployment, Instance, Plan, PlanWorkflow, load_plan, save_plan
from scepsy_hpc.formats.spans import Span, load_spans, save_spans
from scepsy_hpc.serving.measured import measured_of
from scepsy_hpc.serving.run_folder import RunFolder, write_json
from scepsy_hpc.serving.settings import RunSettings, save_settings

FLOW = shipped_path("workflows") / "rag_rerank"


def plan_of(engine: str) -> Plan:
    """Two deployments on two GPUs, one of them shared by two replicas."""
    args = {"timing_bundle": "some/bundle"} if engine == "simulated" else {}

    def llm(share: int, replicas: int) -> Deployment:
        return Deployment(
            model="org/model",
            engine=engine,
            engine_args=args,
            gpu_type="h100_sxm",
            tp_degree=1,
            gpu_share_pct=share,
            num_replicas=replicas,
        )

    def instance(name: str, llm: str, gpu: int, share: int) -> Instance:
        return Instance(id=name, llm=llm, node="node1", gpus=(gpu,), gpu_share_pct=share)

    return Plan(
        workflows=(PlanWorkflow(name="rag", llms={"writer": "writer", "judge": "judge"}),),
        llms={"writer": llm(100, 1), "judge": llm(50, 2)},
        instances=(
            instance("writer-0", "writer", 0, 100),
            instance("judge-0", "judge", 1, 50),
            instance("judge-1", "judge", 1, 50),
        ),
        explanation=("writer: what it got <and why>", "frontier  1 ████"),
    )


def make_run(root: Path, engine: str = "simulated", slower: float = 1.0) -> Path:
    """Ten runs of 2, 3, ... 11 seconds, one after the other; returns the folder."""
    folder = RunFolder(root)
    folder.create()
    spans, now_s = [], 1000.0
    for number in range(10):
        length_s = (2.0 + number) * slower
        common = {"run_id": f"r{number}", "workflow": "rag", "status": "ok", "start_s": now_s}
        spans += [
            Span(span_id=f"r{number}", kind="run", end_s=now_s + length_s, **common),
            Span(
                span_id=f"j{number}",
                kind="llm",
                llm="judge",
                end_s=now_s + 0.5,
                input_tokens=100,
                output_tokens=1,
                **common,
            ),
            Span(
                span_id=f"w{number}",
                kind="llm",
                llm="writer",
                end_s=now_s + length_s,
                input_tokens=200,
                output_tokens=50,
                **common,
            ),
        ]
        now_s += length_s
    save_plan(folder.plan, plan_of(engine))
    save_spans(folder.spans, spans)
    save_settings(folder.settings, RunSettings(max_runs_in_flight=1))
    figures = to_plain(measured_of(spans, "rag"))
    write_json(folder.measured, {"since_s": 0.0, "workflows": {"rag": figures}})
    return root


def planned_run(root: Path) -> Path:
    """A run of the shipped workflow, planned on shipped profiles; its runs are the traced ones."""
    topology, made = root / "topology.yaml", root / "plan.yaml"
    topology.write_text(
        "schema: scepsy/topology/v1\n"
        "nodes: [{name: a, gpu_type: h100_sxm, gpu_memory_gib: 80, nvlink_domains: [[0, 1]]}]\n"
    )
    line = ["plan", "--workflow", str(FLOW / "workflow.yaml"), "--spans", str(FLOW / "spans.jsonl")]
    line += ["--profiles", str(shipped_path("profiles") / "h100_sxm"), "--rate", "1"]
    assert run_line([*line, "--topology", str(topology), "-o", str(made)]) == 0
    folder = RunFolder(root / "results")
    folder.create()
    spans = load_spans(FLOW / "spans.jsonl")
    save_plan(folder.plan, load_plan(made))
    save_spans(folder.spans, spans)
    save_settings(folder.settings, RunSettings(max_runs_in_flight=4, seed=3))
    figures = to_plain(measured_of(spans, "rag_rerank"))
    write_json(folder.measured, {"since_s": 0.0, "workflows": {"rag_rerank": figures}})
    return folder.root
