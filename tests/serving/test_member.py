"""Several ranks as processes of this machine: the lead dies, freezes, wakes up again."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import serving_cases as cases

from scepsy_hpc.formats.spans import load_spans
from scepsy_hpc.serving import run as runs
from scepsy_hpc.serving.run_folder import RunFolder
from scepsy_hpc.serving.settings import RunSettings

# The loss of a node; long against what a loaded machine delays a beat by.
LOST_S = 6.0
PAIRS = {
    "l0": ("large", "a", (0,)),
    "s0": ("small", "a", (1,)),
    "l1": ("large", "b", (0,)),
    "s1": ("small", "b", (1,)),
}


def prepared(
    folder: Path, instances: dict[str, Any], num_free: int, num_gated: int
) -> tuple[RunFolder, Path]:
    """A batch whose last tasks wait for the file `gate`."""
    free = [{"task_id": f"t{i}"} for i in range(num_free)]
    gated = [{"task_id": f"g{i}", "gate": f"{folder}/gate"} for i in range(num_gated)]
    plan, tasks = cases.make_case(folder, instances, free + gated)
    settings = RunSettings(max_runs_in_flight=4, node_lost_s=LOST_S, nodes_timeout_s=60.0)
    return runs.prepare(plan, tasks, folder / "out", settings), tasks


def send(family: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in family:
        process.send_signal(number)


def leads(folder: RunFolder, rank: int) -> bool:
    status = cases.status_of(folder.root)
    return bool(status.get("lead") == rank and status["state"] == "running")


def test_the_next_rank_goes_on_when_the_lead_dies(tmp_path):
    """SIGKILL to the process of rank 0, whose engines die with it: rank 1 ends the batch."""
    folder, tasks = prepared(tmp_path, PAIRS, 6, 4)
    with cases.ranks_of(folder, ["0,1", "0,1"]) as (first, second):
        cases.wait_until(lambda: len(cases.results(folder.root)) == 6, "six results")
        first.kill()
        cases.wait_until(lambda: leads(folder, 1), "rank 1 to lead")
        (tmp_path / "gate").touch()
        assert second.wait(timeout=90) == 0, (folder.logs / "rank1.txt").read_text()
    cases.assert_each_once(folder.root, tasks)
    status = cases.status_of(folder.root)
    assert (status["state"], status["lead"]) == ("ended", 1)
    assert status["last_lead"]["how"].startswith("rank 0 on ")
    assert f"no sign of life for {LOST_S:g} s; rank 1 leads since" in status["alerts"][0]
    assert {one["id"]: one["starts"] for one in status["instances"]} == {"l1": 1, "s1": 1}
    assert cases.processes_of(tmp_path) == []


def test_a_lead_that_wakes_up_finds_its_successor_and_ends(tmp_path):
    """SIGSTOP to rank 0 and all it started; after the takeover SIGCONT: it records nothing more."""
    folder, tasks = prepared(tmp_path, PAIRS, 6, 6)
    with cases.ranks_of(folder, ["0,1", "0,1"]) as (first, second):
        cases.wait_until(lambda: len(cases.results(folder.root)) == 6, "six results")
        frozen = cases.family_of(first)
        send(frozen, signal.SIGSTOP)
        cases.wait_until(lambda: leads(folder, 1), "rank 1 to lead")
        # Its agents find the gate open, and would end what rank 1 works on.
        (tmp_path / "gate").touch()
        send(frozen, signal.SIGCONT)
        assert first.wait(timeout=90) != 0
        assert second.wait(timeout=90) == 0, (folder.logs / "rank1.txt").read_text()
    assert "another rank leads since" in (folder.logs / "rank0.txt").read_text()
    cases.assert_each_once(folder.root, tasks)
    status = cases.status_of(folder.root)
    assert (status["state"], status["lead"]) == ("ended", 1)
    assert cases.processes_of(tmp_path) == []


def test_what_the_lost_node_hosted_moves_where_there_is_room(tmp_path):
    """Rank 1 has a GPU to spare: the only instance of the LLM starts again there."""
    instances = {"l0": ("large", "a", (0,)), "s0": ("small", "b", (0,))}
    folder, tasks = prepared(tmp_path, instances, 3, 2)
    with cases.ranks_of(folder, ["0", "0,1"]) as (first, second):
        cases.wait_until(lambda: len(cases.results(folder.root)) == 3, "three results")
        first.kill()
        cases.wait_until(lambda: leads(folder, 1), "rank 1 to lead")
        (tmp_path / "gate").touch()
        assert second.wait(timeout=90) == 0, (folder.logs / "rank1.txt").read_text()
    cases.assert_each_once(folder.root, tasks)
    found = {one["id"]: one["gpus"] for one in cases.status_of(folder.root)["instances"]}
    assert found == {"l0": ["1"], "s0": ["0"]}
    logs = {path.name for path in folder.logs.glob("l0.*")}
    assert logs == {"l0.1.log", "l0.term1.1.log"}


def test_without_room_the_run_ends_and_says_which_llm_is_gone(tmp_path):
    """No replica and no free GPU: what is recorded stays, the reason stands in the status."""
    instances = {"l0": ("large", "a", (0,)), "s0": ("small", "b", (0,))}
    folder, _ = prepared(tmp_path, instances, 3, 2)
    with cases.ranks_of(folder, ["0", "0"]) as (first, second):
        cases.wait_until(lambda: len(cases.results(folder.root)) == 3, "three results")
        first.kill()
        assert second.wait(timeout=90) != 0
    status = cases.status_of(folder.root)
    assert (status["state"], status["lead"]) == ("failed", 1)
    assert "no instance is left after node" in status["error"]
    assert status["error"].startswith(("large: ", "small: "))
    assert len(cases.results(folder.root)) == 3
    assert cases.processes_of(tmp_path) == []


def test_when_two_are_gone_the_third_leads(tmp_path):
    """Ranks 0 and 1 are killed together: the lowest that lives is rank 2."""
    instances = {**PAIRS, "l2": ("large", "c", (0,)), "s2": ("small", "c", (1,))}
    folder, tasks = prepared(tmp_path, instances, 4, 2)
    with cases.ranks_of(folder, ["0,1"] * 3) as (first, second, third):
        cases.wait_until(lambda: len(cases.results(folder.root)) == 4, "four results")
        second.kill()
        first.kill()
        cases.wait_until(lambda: leads(folder, 2), "rank 2 to lead")
        (tmp_path / "gate").touch()
        assert third.wait(timeout=90) == 0, (folder.logs / "rank2.txt").read_text()
    cases.assert_each_once(folder.root, tasks)
    assert cases.processes_of(tmp_path) == []


def test_calls_to_a_frozen_node_are_tried_elsewhere(tmp_path):
    """Rank 1 stops with all its engines while calls wait on them: none is lost, no task fails."""
    folder, tasks = prepared(tmp_path, PAIRS, 4, 4)
    with cases.ranks_of(folder, ["0,1", "0,1"]) as (first, second):
        cases.wait_until(lambda: len(cases.results(folder.root)) == 4, "four results")
        frozen = cases.family_of(second)
        send(frozen, signal.SIGSTOP)
        (tmp_path / "gate").touch()
        assert first.wait(timeout=90) == 0, (folder.logs / "rank0.txt").read_text()
        send(frozen, signal.SIGCONT)
        assert second.wait(timeout=90) == 0
    cases.assert_each_once(folder.root, tasks)
    spans = load_spans(folder.spans)
    assert "retried_unreachable" in {span.status for span in spans if span.host == "l1"}
    assert {one["id"] for one in cases.status_of(folder.root)["instances"]} == set(PAIRS)
    assert cases.processes_of(tmp_path) == []
