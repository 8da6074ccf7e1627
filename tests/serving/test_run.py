"""Runs on this machine with real simulated engines and real agents, and what goes wrong in them."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import psutil
import pytest
import serving_cases as cases

from scepsy_hpc.cli.main import run_line as scepsy
from scepsy_hpc.formats.plan import Component, load_plan, save_plan
from scepsy_hpc.formats.spans import load_spans
from scepsy_hpc.serving import node_agent, span_log
from scepsy_hpc.serving import run as runs
from scepsy_hpc.serving.settings import RunSettings, load_settings

PAIR = {"l0": ("large", "a", (0,)), "s0": ("small", "b", (0,))}


def gated(folder, num_free, num_gated):
    """Tasks of which the last wait for the file `gate`."""
    free = [{"task_id": f"t{i}"} for i in range(num_free)]
    return free + [{"task_id": f"g{i}", "gate": f"{folder}/gate"} for i in range(num_gated)]


def begin(*words):
    """`scepsy` with these words, left running on its own."""
    line = [sys.executable, "-m", "scepsy_hpc", *(str(word) for word in words)]
    pipe = subprocess.PIPE
    started = subprocess.Popen(line, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    return cases.ended_with(started)


def test_stop_in_mid_batch_then_resume(tmp_path, capsys):
    """A stopped run keeps what had ended, is refused to a second one meanwhile, and resumes."""
    plan, tasks = cases.make_case(tmp_path, PAIR, gated(tmp_path, 5, 3))
    out = tmp_path / "out"
    with begin("run", plan, tasks, "-o", out) as running:
        cases.wait_for_results(running, out, 5)
        assert scepsy(["run", str(plan), str(tasks), "-o", str(out), "--resume"]) == 2
        assert "a run uses this folder now" in capsys.readouterr().err
        assert scepsy(["status", str(out), "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert (shown["state"], shown["alive"], shown["recorded"]) == ("running", True, 5)
        assert scepsy(["stop", str(out)]) == 0
        output, errors = running.communicate(timeout=90)
    assert running.returncode == 4
    assert "3 tasks are not recorded" in errors
    assert "state: stopped; tasks recorded: 5" in output
    assert cases.processes_of(out) == []
    assert scepsy(["run", str(plan), str(tasks), "-o", str(out)]) == 2
    assert "add --resume" in capsys.readouterr().err
    (tmp_path / "gate").touch()
    again = ["run", str(plan), str(tasks), "-o", str(out), "--resume", "--cluster", "debug"]
    assert scepsy(again) == 0
    cases.assert_each_once(out, tasks)
    assert [len(cases.run_ids_of(out, name)) for name in ("t0", "g0")] == [1, 2]
    assert "has ended already (ended)" in runs.ask_to_stop(out)
    measured = (out / "measured.json").read_text()
    assert scepsy(again) == 0
    assert (out / "measured.json").read_text() == measured, "nothing was left to measure"


def test_a_killed_engine_is_started_again_and_no_task_is_lost(tmp_path):
    """SIGKILL to an engine in mid-batch: it restarts, every task ends well, status counts it."""
    plan, tasks = cases.make_case(tmp_path, PAIR, gated(tmp_path, 3, 4))
    out = tmp_path / "out"
    with begin("run", plan, tasks, "-o", out) as running:
        cases.wait_for_results(running, out, 3)
        cases.kill_engine(cases.engine_reports(out)["l0"])
        (tmp_path / "gate").touch()
        output, errors = running.communicate(timeout=90)
    assert running.returncode == 0, errors
    cases.assert_each_once(out, tasks)
    starts = {entry["id"]: entry["starts"] for entry in cases.status_of(out)["instances"]}
    assert starts == {"l0": 2, "s0": 1}
    assert {path.name for path in (out / "logs").glob("l0.*")} == {"l0.1.log", "l0.2.log"}
    assert "state: ended" in output
    assert "died at 20" in output
    assert ": signal SIGKILL" in output
    assert f"last lines of {out}/logs/l0.1.log:" in output


def test_a_hung_engine_is_named_killed_and_no_task_is_lost(tmp_path):
    """SIGSTOP to an engine while calls wait on it: they end on the next start of that engine."""
    plan, tasks = cases.make_case(tmp_path, PAIR, gated(tmp_path, 3, 4))
    settings = RunSettings(max_runs_in_flight=4, hung_after_s=1.5)
    folder = runs.prepare(plan, tasks, tmp_path / "out", settings)
    jobs = runs.launch(folder, "local")
    try:
        cases.wait_until(lambda: len(cases.results(folder.root)) == 3, "three results")
        hung = cases.engine_reports(folder.root)["l0"]
        (engine,) = psutil.Process(hung["pid"]).children()
        engine.suspend()
        (tmp_path / "gate").touch()
        runs.follow(folder, jobs, lambda status, note: None)
    finally:
        jobs.cancel()
    cases.assert_each_once(folder.root, tasks)
    large, _ = (one for one in cases.status_of(folder.root)["instances"])
    assert (large["id"], large["starts"]) == ("l0", 2)
    assert large["last_death"]["how"].startswith("hung and killed: no sign of work for")
    assert large["last_death"]["log"] == str(folder.logs / "l0.1.log")
    spans = [s for s in load_spans(folder.spans) if s.kind == "llm"]
    assert {s.status for s in spans if s.llm == "large"} == {"ok", "retried_unreachable"}


def test_what_agents_leave_behind_ends_with_the_run(tmp_path):
    """A process that an agent set free, in a session of its own, does not outlive the batch."""
    tasks = [{"task_id": "t0", "leaves": f"{tmp_path}/left-by-an-agent"}]
    plan, tasks = cases.make_case(tmp_path, PAIR, tasks)
    out = tmp_path / "out"
    assert scepsy(["run", str(plan), str(tasks), "-o", str(out)]) == 0
    cases.assert_each_once(out, tasks)
    assert cases.processes_of(tmp_path) == []


def test_an_engine_that_never_gets_ready(tmp_path, capsys, monkeypatch):
    """Exit 4 with one message: which LLM, the engine's own words once, where the logs are."""
    monkeypatch.setattr(node_agent, "MAX_STARTS", 2)
    plan, tasks = cases.make_case(tmp_path, PAIR, 2, timing_bundle=str(tmp_path / "nowhere"))
    out = tmp_path / "out"
    code = scepsy(["run", str(plan), str(tasks), "-o", str(out), "--cluster", "debug"])
    errors = capsys.readouterr().err
    assert code == 4
    assert errors.count("nowhere") == 1
    assert "its only instance is gone" in errors
    assert "No task was run" in errors
    assert f"0 of 2 tasks are recorded in {out}/results.jsonl" in errors
    assert str(out / "logs") in errors
    status = cases.status_of(out)
    assert status["state"] == "failed"
    assert status["alerts"][0].splitlines() == [status["alerts"][0]]
    assert cases.processes_of(out) == []


def test_one_dead_replica_does_not_hold_up_the_batch(tmp_path, capsys, monkeypatch):
    """An instance that never starts is shown as failed and in an alert; the others do the work."""
    monkeypatch.setattr(node_agent, "MAX_STARTS", 1)
    monkeypatch.setattr(node_agent.NodeAgent, "_config", _broken_for("l1"))
    instances = {**PAIR, "l1": ("large", "c", (0,))}
    plan, tasks = cases.make_case(tmp_path, instances, 3)
    out = tmp_path / "out"
    assert scepsy(["run", str(plan), str(tasks), "-o", str(out), "--cluster", "debug"]) == 0
    cases.assert_each_once(out, tasks)
    states = {entry["id"]: entry["state"] for entry in cases.status_of(out)["instances"]}
    assert states == {"l0": "stopped", "s0": "stopped", "l1": "failed"}
    assert "alert: l1 on " in capsys.readouterr().err


def _broken_for(name):
    """The configuration of engines, except that one of them gets a port that is taken."""
    whole = node_agent.NodeAgent._config

    def config(self, kept):
        made = whole(self, kept)
        if kept.placed.instance.id != name:
            return made
        return dataclasses.replace(made, host="203.0.113.1")  # Not an address of this machine.

    return config


def test_an_agent_that_fails_by_itself(tmp_path, capsys):
    """Its task is recorded as failed after one attempt, the others end well, the exit code is 1."""
    tasks = [{"task_id": "good"}, {"task_id": "bad", "fails": True}]
    plan, tasks = cases.make_case(tmp_path, PAIR, tasks)
    out = tmp_path / "out"
    words = ["run", str(plan), str(tasks), "-o", str(out), "--cluster", "debug", "--rate", "20"]
    assert scepsy(words) == 1
    found = {line["task_id"]: line for line in cases.results(out)}
    assert found["good"]["result"] == {"tokens": 5, "attempt": "1"}
    assert (found["bad"]["status"], found["bad"]["attempts"]) == ("failed", 1)
    assert found["bad"]["error_class"] == "agent"
    assert "this task is wrong" in found["bad"]["error"]
    assert "1 tasks failed" in capsys.readouterr().err
    spans = load_spans(out / "spans.jsonl")
    for run in (s for s in spans if s.kind == "run"):
        line = found[run.run_id.split(".")[0]]
        assert run.start_s == pytest.approx(line["started_s"], abs=1e-6)
        calls = [s for s in spans if s.kind == "llm" and s.run_id == run.run_id]
        assert all(run.start_s < c.start_s <= c.end_s < run.end_s for c in calls)
    measured = json.loads((out / "measured.json").read_text())["workflows"]["tiny"]
    assert (measured["num_runs"], measured["num_failed"]) == (2, 1)


def test_bad_input_writes_nothing(tmp_path, capsys):
    """A missing agent folder, or tasks without ids: exit 2, one line, no results folder."""
    plan, tasks = cases.make_case(tmp_path, PAIR, 2)
    text = plan.read_text()
    plan.write_text(text.replace(f"folder: {tmp_path}", f"folder: {tmp_path}/gone"))
    out = tmp_path / "out"
    words = ["run", str(plan), str(tasks), "-o", str(out)]
    assert scepsy(words) == 2
    errors = capsys.readouterr().err
    assert f"agent.folder: {tmp_path}/gone is no folder" in errors
    assert errors.count("\n") == 1
    plan.write_text(text)
    tasks.write_text("{}\n")
    assert scepsy(words) == 2
    assert "task_id" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything_and_the_batch_resumes(tmp_path, number):
    """Ctrl-C or SIGTERM to the command leaves no process behind, and --resume finishes."""
    plan, tasks = cases.make_case(tmp_path, PAIR, gated(tmp_path, 2, 3))
    out = tmp_path / "out"
    with begin("run", plan, tasks, "-o", out) as running:
        cases.wait_for_results(running, out, 2)
        # A terminal's Ctrl-C goes to the whole group, a signal by hand to the one process.
        send = os.killpg if number == signal.SIGINT else os.kill
        send(running.pid, number)
        _, errors = running.communicate(timeout=90)
    assert running.returncode == 4
    assert "--resume goes on" in errors
    cases.wait_until(lambda: cases.processes_of(tmp_path) == [], "every process to end")
    assert runs.read_status(out).state in ("interrupted", "stopped")
    assert {line["task_id"] for line in cases.results(out)} == {"t0", "t1"}
    (tmp_path / "gate").touch()
    words = ["run", str(plan), str(tasks), "-o", str(out), "--resume", "--cluster", "debug"]
    assert scepsy(words) == 0
    cases.assert_each_once(out, tasks)


def test_a_crash_of_the_lead_is_noticed_and_resumed(tmp_path, capsys):
    """SIGKILL to the process that leads: engines and agents die, status says lost, resume works."""
    plan, tasks = cases.make_case(tmp_path, PAIR, gated(tmp_path, 2, 2))
    out = tmp_path / "out"
    with begin("run", plan, tasks, "-o", out) as running:
        cases.wait_for_results(running, out, 2)
        engine = psutil.Process(cases.engine_reports(out)["l0"]["pid"])
        engine.parent().kill()
        _, errors = running.communicate(timeout=90)
    assert running.returncode == 4
    assert "2 of 4 tasks are recorded" in errors
    cases.wait_until(lambda: cases.processes_of(tmp_path) == [], "every process to end")
    assert scepsy(["status", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "state: lost" in shown
    assert "the lead was lost at 20" in shown
    with (out / "spans.jsonl").open("a") as spans, (out / "results.jsonl").open("a") as lines:
        spans.write('{"run_id": "g0.1.x", "span')  # What a crash leaves at the end of a file.
        lines.write('{"task_id": "g0", "sta')
    (tmp_path / "gate").touch()
    words = ["run", str(plan), str(tasks), "-o", str(out), "--resume", "--cluster", "debug"]
    assert scepsy(words) == 0
    cases.assert_each_once(out, tasks)


def test_runs_in_flight_of_several_workflows_add_up(tmp_path):
    """Two workflows planned for 2 and 3 runs at a time are 5; what the user says goes first."""
    path, _ = cases.make_case(tmp_path, PAIR, [])
    plan = load_plan(path)
    (flow,) = plan.workflows
    flows = (
        dataclasses.replace(flow, max_runs_in_flight=2),
        dataclasses.replace(flow, name="other", max_runs_in_flight=3),
    )
    save_plan(path, dataclasses.replace(plan, workflows=flows))
    for asked, wanted in ((None, 5), (7, 7)):
        settings = RunSettings(max_runs_in_flight=asked)
        folder = runs.prepare(path, None, tmp_path / f"out{asked}", settings)
        assert load_settings(folder.settings).max_runs_in_flight == wanted


def test_unequal_nodes_of_one_type_are_asked_for_as_equal_ones(capsys):
    """Two GPUs on one node and one on another: a job of two nodes with two each, and it is said."""

    def component(num_nodes, gpus):
        return Component(num_nodes=num_nodes, gpus_per_node=gpus, gpu_type="h100_sxm")

    unequal = (component(1, 2), component(1, 1))
    assert runs._equal_nodes(unequal) == component(2, 2)
    assert "2 GPUs on each of 2 nodes" in (said := capsys.readouterr().err)
    assert "1 of them stay idle" in said
    assert runs._equal_nodes(unequal[:1]) == unequal[0]
    assert not capsys.readouterr().err


def test_spans_of_a_run_are_packed_as_they_grow(tmp_path, monkeypatch, capsys):
    """Several parts, none lost: figures and report are those of all runs, in a resumed one too."""
    monkeypatch.setattr(span_log, "PART_BYTES", 1000)
    plan, tasks = cases.make_case(tmp_path, PAIR, 6)
    out = tmp_path / "out"
    line = ["run", str(plan), str(tasks), "-o", str(out), "--cluster", "debug"]
    assert scepsy(line) == 0
    assert len(list((out / "spans").glob("*.jsonl.gz"))) > 2
    spans = load_spans(out / "spans.jsonl")
    assert sum(span.kind == "run" for span in spans) == 6
    assert sum(span.kind == "llm" for span in spans) == 12
    measured = json.loads((out / "measured.json").read_text())
    assert measured["workflows"]["tiny"]["num_runs"] == 6
    with tasks.open("a") as stream:
        stream.write('{"task_id": "later"}\n')
    capsys.readouterr()
    folder = runs.prepare(plan, tasks, out, RunSettings(max_runs_in_flight=2), True, True)
    runs.follow(folder, runs.launch(folder, "debug"), lambda status, note: None)
    measured = json.loads((out / "measured.json").read_text())
    assert measured["workflows"]["tiny"]["num_runs"] == 1
    assert sum(span.kind == "run" for span in load_spans(out / "spans.jsonl")) == 7


def test_a_missing_vllm_is_found_before_the_queue(tmp_path, monkeypatch, capsys):
    """Exit code 2, one line, and no folder is left: no job waits for hours to say it."""
    plan, tasks = cases.make_case(tmp_path, PAIR, 1)
    wanted = load_plan(plan)
    llms = {
        name: dataclasses.replace(llm, engine="vllm", engine_args={})
        for name, llm in wanted.llms.items()
    }
    save_plan(plan, dataclasses.replace(wanted, llms=llms))
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setenv("SCEPSY_VLLM_PYTHON", str(python))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    out = tmp_path / "out"
    assert scepsy(["run", str(plan), str(tasks), "-o", str(out)]) == 2
    [line] = [li for li in capsys.readouterr().err.splitlines() if li.startswith("error:")]
    assert "engine vllm: not installed" in line
    assert "nothing was submitted" in line
    assert not out.exists()
