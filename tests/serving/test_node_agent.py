"""Engines hosted on one node: real processes of a program that behaves as the test says."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import fake_mps
import fake_vllm
import psutil
import pytest
from model_folders import make_model

from scepsy_hpc.cluster.site import Site, WeightsFolder
from scepsy_hpc.engines import ports
from scepsy_hpc.formats.figures import Figures, LlmFigures
from scepsy_hpc.formats.plan import Deployment, Instance, Plan
from scepsy_hpc.formats.status import RunStatus
from scepsy_hpc.report.notes import share_notes
from scepsy_hpc.serving import log_room, node_agent
from scepsy_hpc.serving.allocation import PlacedInstance
from scepsy_hpc.serving.engine_view import EngineReport, EngineView
from scepsy_hpc.serving.node_agent import NodeAgent, pause_before_start_s
from scepsy_hpc.serving.routing import Routes
from scepsy_hpc.serving.run_folder import RunFolder, write_json
from scepsy_hpc.serving.settings import RunSettings
from scepsy_hpc.serving.start import Run

FIRST_PAUSE_S = node_agent.FIRST_PAUSE_S
ONE = {"judge-0": (100, ("0",))}
TWO = {"judge-0": (100, ("0",)), "writer-0": (100, ("1",))}
HALVES = {"judge-0": (50, ("0",)), "judge-1": (50, ("0",)), "writer-0": (100, ("1",))}


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    """The agent looks and tries again in hundredths of a second."""
    monkeypatch.setattr(node_agent, "LOOK_S", 0.02)
    monkeypatch.setattr(node_agent, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("STARTS_FILE", str(tmp_path / "starts"))


@pytest.fixture
def vllm(tmp_path, monkeypatch):
    """Sets how engines behave from now on."""

    def behave(how: str) -> None:
        monkeypatch.setenv("SCEPSY_VLLM_PYTHON", str(fake_vllm.install(tmp_path, how)))

    return behave


class Hosted:
    """What rank 0 sees of the engines of one node, and every state that one was in."""

    def __init__(self, view: EngineView, run: Run, agent: asyncio.Future[None]) -> None:
        self.run, self.agent = run, agent
        self.view, self.history = view, {name: [] for name in view.reports}

    def __getitem__(self, name: str) -> EngineReport:
        return self.view.reports[name]

    async def until(self, **states: str) -> None:
        """Wait for these states, by instance with `_` for `-`; fails where something hangs."""
        until_s = time.monotonic() + 20.0
        wanted = {name.replace("_", "-"): state for name, state in states.items()}
        while not self.agent.done():
            assert time.monotonic() < until_s, f"waited for {wanted}: {self.view.reports}"
            self.view.look()
            for name, report in self.view.reports.items():
                if self.history[name][-1:] != [report.state]:
                    self.history[name].append(report.state)
            if all(self[name].state == state for name, state in wanted.items()):
                return
            await asyncio.sleep(0.003)


def on_a_node(
    folder: Path,
    instances: dict[str, tuple[int, tuple[str, ...]]],
    act: Callable[[Hosted], Awaitable[Any]],
    starts_at_once: int = 2,
    ready_timeout_s: float = 60.0,
    site: Site | None = None,
    hung_after_s: float = 30.0,
    simulated: Figures | None = None,
    **llm: Any,
) -> Hosted:
    """Host instances, as id to (share, GPUs), while ``act`` runs; then stop them.

    ``llm``: changes to every deployment.
    """
    results = RunFolder(folder / "results")
    results.create()
    deployments, placed = {}, []
    for name, (share, gpus) in instances.items():
        alias = name.split("-")[0]
        common = {"model": f"org/{alias}", "engine": "vllm", "gpu_type": "h100_sxm"}
        counts = {"tp_degree": len(gpus), "num_replicas": 1, "gpu_share_pct": share}
        deployments[alias] = Deployment(**{**common, **counts, **llm})
        logical = tuple(range(len(gpus)))
        one = Instance(id=name, llm=alias, node="n", gpus=logical, gpu_share_pct=share)
        placed.append(PlacedInstance(instance=one, rank=0, host="host", gpus=gpus))
    settings = RunSettings(
        ready_timeout_s=ready_timeout_s, starts_at_once=starts_at_once, hung_after_s=hung_after_s
    )
    attempt, plan = results.attempt("a-0"), Plan(llms=deployments)
    run = Run(
        results,
        attempt,
        replace(plan, simulated=simulated),
        settings,
        "host",
        site=site or Site(),
    )

    async def main() -> Hosted:
        stopping = asyncio.Event()
        agent = asyncio.ensure_future(NodeAgent(run, placed, "127.0.0.1").run(stopping))
        hosted = Hosted(EngineView(attempt, placed, 100.0), run, agent)
        try:
            await act(hosted)
        finally:
            stopping.set()
            await agent
        hosted.view.look()
        return hosted

    return asyncio.run(main())


def kill(report: EngineReport) -> None:
    """SIGKILL to an engine and its guard, as the kernel does when memory runs out."""
    assert report.pid is not None
    os.killpg(report.pid, signal.SIGKILL)


async def gone(pid: int | None) -> None:
    """Wait until a process has ended."""
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        await asyncio.sleep(0.01)


def test_pauses_double_and_the_fifth_start_in_a_row_is_none(monkeypatch):
    """At once, then after 1, 2 and 4 seconds; then the instance is given up."""
    monkeypatch.setattr(node_agent, "FIRST_PAUSE_S", FIRST_PAUSE_S)
    assert [pause_before_start_s(n) for n in range(6)] == [0.0, 1.0, 2.0, 4.0, None, None]


def test_an_engine_gets_what_the_plan_says(tmp_path, vllm):
    """Its command line, key, GPUs and log; 78 of 80 GiB are usable. It ends with the agent."""
    vllm("good")
    lines, environs = [], []

    async def look(hosted: Hosted) -> None:
        await hosted.until(judge_0="ready")
        process = psutil.Process(hosted["judge-0"].pid)
        lines.append(process.cmdline())
        environs.append(process.environ())
        assert hosted["judge-0"].base_url == f"http://127.0.0.1:{flag(lines[0], '--port')}"

    both = {"judge-0": (100, ("3", "1"))}
    hosted = on_a_node(tmp_path, both, look, engine_args={"max-num-seqs": 7})
    line, environ, run = lines[0], environs[0], hosted.run.folder
    wanted = ("org/judge", "judge", "127.0.0.1", "2", "0.9750", "7")
    flags = ("serve", "--served-model-name", "--host", "--tensor-parallel-size")
    flags += ("--gpu-memory-utilization", "--max-num-seqs")
    assert tuple(flag(line, name) for name in flags) == wanted
    assert environ["VLLM_API_KEY"] == run.key.read_text().strip()
    assert environ["CUDA_VISIBLE_DEVICES"] == "3,1"
    assert "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" not in environ
    assert [path.name for path in run.logs.iterdir()] == ["judge-0.1.log"]
    report = hosted["judge-0"]
    assert (report.state, report.starts, report.error) == ("stopped", 1, "")
    assert (report.host, report.gpus, report.llm) == ("host", ("3", "1"), "judge")
    assert hosted.history["judge-0"] == ["waiting", "starting", "ready"]
    assert not psutil.pid_exists(report.pid)


def flag(line: list[str], name: str) -> str:
    return line[line.index(name) + 1]


@pytest.mark.parametrize(("memory_gib", "usable"), [(10.0, "0.8000"), (None, "0.8750")])
def test_a_gpu_type_of_ones_own_has_the_memory_that_the_plan_says(
    tmp_path, vllm, memory_gib, usable
):
    """All but two of 10 GiB, or, where nobody says, of 16."""
    vllm("good")

    async def look(hosted: Hosted) -> None:
        await hosted.until(judge_0="ready")
        line = psutil.Process(hosted["judge-0"].pid).cmdline()
        assert flag(line, "--gpu-memory-utilization") == usable

    on_a_node(tmp_path, ONE, look, gpu_type="x900", memory_gib=memory_gib)


def test_an_engine_that_dies_early_is_tried_again(tmp_path, vllm):
    """The third start succeeds: then nothing is wrong with it any more, and each left a log."""
    vllm("late=2")
    hosted = on_a_node(tmp_path, ONE, lambda hosted: hosted.until(judge_0="ready"))
    assert (hosted["judge-0"].starts, hosted["judge-0"].error) == (3, "")
    logs = {path.name for path in hosted.run.folder.logs.iterdir()}
    assert logs == {"judge-0.1.log", "judge-0.2.log", "judge-0.3.log"}
    assert "restarting" in hosted.history["judge-0"]


def test_a_start_that_failed_is_not_repeated_at_once(tmp_path, vllm, monkeypatch):
    """The pause is kept, and shown as `restarting`, whether an engine died early or in service."""
    monkeypatch.setattr(node_agent, "FIRST_PAUSE_S", 600.0)
    vllm("late=1")

    async def look(hosted: Hosted) -> None:
        await hosted.until(judge_0="restarting")
        await asyncio.sleep(0.2)
        await hosted.until(judge_0="restarting")
        assert hosted["judge-0"].starts == 1
        assert "CUDA out of everything" in hosted["judge-0"].error

    on_a_node(tmp_path, ONE, look)

    async def kill_it(hosted: Hosted) -> None:
        await hosted.until(judge_0="ready")
        kill(hosted["judge-0"])
        await hosted.until(judge_0="restarting")
        assert "died in service" in hosted["judge-0"].error

    on_a_node(tmp_path, ONE, kill_it)


def test_a_start_without_a_process_is_repeated_too(tmp_path, vllm, monkeypatch):
    """Every port is taken: that may pass, so it is no reason to give up at once."""
    monkeypatch.setattr(node_agent, "FIRST_PAUSE_S", 600.0)
    monkeypatch.setattr(ports, "FIRST_PORT", ports.LAST_PORT)
    vllm("good")
    hosted = on_a_node(tmp_path, ONE, lambda hosted: hosted.until(judge_0="restarting"))
    assert (hosted["judge-0"].starts, hosted["judge-0"].pid) == (1, None)
    assert "ports: only 0 of 1" in hosted["judge-0"].error


def test_an_engine_that_always_dies_is_given_up(tmp_path, vllm):
    """After four starts; its own last words stay, and the others go on."""
    vllm("dies")

    async def look(hosted: Hosted) -> None:
        await hosted.until(judge_0="failed", writer_0="failed")
        await asyncio.sleep(0.1)
        await hosted.until(judge_0="failed")

    hosted = on_a_node(tmp_path, TWO, look)
    for report in (hosted["judge-0"], hosted["writer-0"]):
        assert (report.state, report.starts) == ("failed", 4)
        assert "CUDA out of everything" in report.error
    assert "stopped" not in hosted.history["judge-0"]


def test_what_is_wrong_with_the_plan_is_not_tried_again(tmp_path, vllm):
    """An argument that no engine takes: one start, and those that share its GPU get their turn."""
    vllm("good")

    async def look(hosted: Hosted) -> None:
        await hosted.until(judge_0="failed", judge_1="failed")
        await asyncio.sleep(0.1)

    pair = {"judge-0": (100, ("0",)), "judge-1": (100, ("0",))}
    hosted = on_a_node(tmp_path, pair, look, engine_args={"port": 1})
    for name in ("judge-0", "judge-1"):
        report = hosted[name]
        assert (report.starts, report.pid, report.base_url) == (1, None, "")
        assert "port cannot be set here" in report.error


def test_an_engine_that_never_answers_frees_its_gpu(tmp_path, vllm, monkeypatch):
    """Given up while the node goes on: its process ends at once, not with the run."""
    monkeypatch.setattr(node_agent, "MAX_STARTS", 1)
    vllm("mute")

    async def look(hosted: Hosted) -> None:
        await hosted.until(judge_0="failed")
        await gone(hosted["judge-0"].pid)
        assert not hosted.agent.done()
        assert "not ready after 0.5 s" in hosted["judge-0"].error

    on_a_node(tmp_path, ONE, look, ready_timeout_s=0.5)


def test_an_engine_that_dies_in_service_is_started_again(tmp_path, vllm):
    """A new process with a log of its own; meanwhile its report says what happened."""
    vllm("good")
    said: list[EngineReport] = []

    async def look(hosted: Hosted) -> None:
        await hosted.until(judge_0="ready", writer_0="ready")
        first = hosted["judge-0"]
        kill(first)
        await hosted.until(judge_0="starting")
        said.append(hosted["judge-0"])
        await hosted.until(judge_0="ready")
        assert hosted["judge-0"].pid != first.pid
        assert hosted["writer-0"].starts == 1

    hosted = on_a_node(tmp_path, TWO, look)
    log = hosted.run.folder.logs / "judge-0.1.log"
    assert said[0].error == f"judge-0 died in service (signal SIGKILL); see {log}"
    assert (hosted["judge-0"].starts, hosted["judge-0"].error) == (2, "")
    assert (said[0].pid, said[0].base_url) == (None, "")


def test_an_engine_that_hangs_is_named_killed_and_started_again(tmp_path, vllm):
    """Its process lives but does nothing: suspect, then killed with all it started."""
    vllm("good")

    async def look(hosted: Hosted) -> None:
        await hosted.until(judge_0="ready", writer_0="ready")
        first = hosted["judge-0"]
        assert first.pid is not None
        for process in psutil.Process(first.pid).children():
            process.suspend()
        await hosted.until(judge_0="suspect")
        assert "no sign of work for" in hosted["judge-0"].error
        assert hosted["judge-0"].suspect_since_s is not None
        assert set(hosted.view.endpoints()) == {"writer-0"}
        await gone(first.pid)
        await hosted.until(judge_0="ready")
        assert hosted["writer-0"].starts == 1

    hosted = on_a_node(tmp_path, TWO, look, hung_after_s=0.5)
    report = hosted["judge-0"]
    assert (report.starts, report.error, report.suspect_since_s) == (2, "", None)
    assert report.last_death is not None
    assert report.last_death.how.startswith("hung and killed: no sign of work for")
    assert report.last_death.log == str(hosted.run.folder.logs / "judge-0.1.log")
    assert report.last_death.last_lines[-1] == "harmless line that says ERROR"


def test_a_suspect_that_works_again_is_left_alone(tmp_path, vllm):
    """It was only slow: ready again, the same process, and nothing is said of it any more."""
    vllm("good")

    async def look(hosted: Hosted) -> None:
        await hosted.until(judge_0="ready")
        (engine,) = psutil.Process(hosted["judge-0"].pid).children()
        engine.suspend()
        await hosted.until(judge_0="suspect")
        engine.resume()
        await hosted.until(judge_0="ready")

    hosted = on_a_node(tmp_path, ONE, look, hung_after_s=3.0)
    report = hosted["judge-0"]
    assert (report.starts, report.error, report.last_death) == (1, "", None)


def test_a_saturated_engine_survives(tmp_path):
    """Calls that wait many times the patience for a seat: tokens flow, so it is never suspect."""
    args = {"timing_bundle": "h100_sxm/Qwen__Qwen3-8B/vllm-0.24.0/token-grid", "max_num_seqs": 1}
    waits: list[float] = []

    async def look(hosted: Hosted) -> None:
        await hosted.until(judge_0="ready")
        body = {"model": "judge", "prompt": "Hello", "max_tokens": 400, "ignore_eos": True}
        key = hosted.run.folder.key.read_text().strip()
        url = f"{hosted['judge-0'].base_url}/v1/completions"
        headers = {"Authorization": f"Bearer {key}"}
        async with aiohttp.ClientSession(headers=headers, raise_for_status=True) as session:

            async def call() -> None:
                begun_s = time.monotonic()
                async with session.post(url, json=body) as answer:
                    await answer.json()
                waits.append(time.monotonic() - begun_s)

            calls = asyncio.gather(*(call() for _ in range(6)))
            await hosted.until(judge_0="ready")
            await calls
        hosted.view.look()

    # Planned for one call at a time: three times its p99 is 0.6 s.
    simulated = Figures(per_llm={"judge": LlmFigures(calls_in_flight_mean=0.5)})
    hosted = on_a_node(
        tmp_path,
        ONE,
        look,
        hung_after_s=0.5,
        simulated=simulated,
        engine="simulated",
        engine_args=args,
    )
    assert max(waits) > 6.0  # the test would prove nothing on an engine that is not saturated
    assert hosted["judge-0"].starts == 1
    assert hosted["judge-0"].last_death is None


@pytest.mark.parametrize(("steady_s", "state"), [(0.0, "ready"), (600.0, "failed")])
def test_a_death_after_long_service_counts_as_the_first(
    tmp_path, vllm, monkeypatch, steady_s, state
):
    """With one start in a row allowed, an engine that had served for long is started again."""
    monkeypatch.setattr(node_agent, "MAX_STARTS", 1)
    monkeypatch.setattr(node_agent, "STEADY_S", steady_s)
    vllm("good")

    async def look(hosted: Hosted) -> None:
        await hosted.until(judge_0="ready")
        kill(hosted["judge-0"])
        await hosted.until(judge_0="starting" if state == "ready" else "failed")
        await hosted.until(judge_0=state)

    hosted = on_a_node(tmp_path, ONE, look)
    assert hosted["judge-0"].starts == (2 if state == "ready" else 1)


def test_only_service_resets_the_count_of_starts(tmp_path, vllm, monkeypatch):
    """After one death in long service four starts that fail are the end, not four each."""
    monkeypatch.setattr(node_agent, "STEADY_S", 0.0)
    vllm("good")

    async def look(hosted: Hosted) -> None:
        await hosted.until(judge_0="ready")
        vllm("dies")
        kill(hosted["judge-0"])
        await hosted.until(judge_0="failed")

    hosted = on_a_node(tmp_path, ONE, look)
    assert hosted["judge-0"].starts == 5
    assert "CUDA out of everything" in hosted["judge-0"].error


@pytest.mark.parametrize(("at_once", "third"), [(2, "starting"), (1, "waiting")])
def test_who_starts_beside_whom(tmp_path, vllm, at_once, third):
    """Two on one GPU start in turn; others beside them, as many at once as the node may."""
    vllm("mute")

    async def look(hosted: Hosted) -> None:
        await hosted.until(judge_0="starting", writer_0=third)
        await asyncio.sleep(0.2)
        hosted.view.look()
        states = {name: report.state for name, report in hosted.view.reports.items()}
        assert states == {"judge-0": "starting", "judge-1": "waiting", "writer-0": third}

    instances = {name: (100, gpus) for name, (_, gpus) in HALVES.items()}
    hosted = on_a_node(tmp_path, instances, look, starts_at_once=at_once)
    assert {report.state for report in hosted.view.reports.values()} == {"stopped"}


@pytest.mark.parametrize(
    "order", ["judge-0 writer-0 pair-0 other-0", "pair-0 judge-0 writer-0 other-0"]
)
def test_a_gpu_in_common_joins_groups(tmp_path, vllm, order):
    """A pair of GPUs and one on each of them: one start at a time, in the plan's order."""
    vllm("mute")
    gpus = {"judge-0": ("0",), "writer-0": ("1",), "pair-0": ("0", "1"), "other-0": ("2",)}
    instances = {name: (100, gpus[name]) for name in order.split()}

    async def look(hosted: Hosted) -> None:
        await hosted.until(other_0="starting")
        await asyncio.sleep(0.2)
        hosted.view.look()
        states = [report.state for report in hosted.view.reports.values()]
        assert states == ["starting", "waiting", "waiting", "starting"]

    on_a_node(tmp_path, instances, look, starts_at_once=4)


def test_two_that_start_together_take_two_ports(tmp_path, vllm, monkeypatch):
    """Neither listens yet, so only the agent knows which ports are taken."""
    monkeypatch.setattr(ports.random.Random, "shuffle", lambda self, items: None)
    # So that two runs of these tests on one machine do not meet.
    monkeypatch.setattr(ports, "FIRST_PORT", ports.FIRST_PORT + os.getpid() % 200 * ports.SPACING)
    monkeypatch.setattr(node_agent, "MAX_STARTS", 1)
    vllm("dies")

    hosted = on_a_node(tmp_path, TWO, lambda h: h.until(judge_0="failed", writer_0="failed"))
    first, second = (int(hosted[name].base_url.rpartition(":")[2]) for name in TWO)
    assert abs(first - second) >= 40


def test_a_node_that_cannot_report_goes_on_and_reports_later(tmp_path, vllm):
    """As on a full disk: its engines are kept, and once it can it says how they are."""
    vllm("good")

    async def look(hosted: Hosted) -> None:
        await hosted.until(judge_0="ready", writer_0="ready")
        first = hosted["judge-0"]
        engines = hosted.run.attempt.engine("judge-0").parent
        engines.rename(engines.with_name("gone"))
        engines.touch()
        kill(first)
        log = hosted.run.folder.logs / "judge-0.2.log"
        while not log.exists() or "harmless" not in log.read_text():
            await asyncio.sleep(0.01)
        assert not hosted.agent.done()
        engines.unlink()
        engines.with_name("gone").rename(engines)
        while hosted["judge-0"].starts == 1:
            await hosted.until(judge_0="ready")
            await asyncio.sleep(0.01)

    hosted = on_a_node(tmp_path, TWO, look)
    assert [hosted[name].starts for name in TWO] == [2, 1]


def host_halves(folder: Path) -> tuple[EngineView, dict[str, dict[str, str]]]:
    """Two halves of GPU 0 and the whole of GPU 1, hosted until ready and stopped again.

    Returns what rank 0 saw when all were ready, and the environment of each engine.
    """
    environs = {}

    async def look(hosted: Hosted) -> None:
        await hosted.until(**{name.replace("-", "_"): "ready" for name in HALVES})
        reports = hosted.view.reports
        environs.update({n: psutil.Process(r.pid).environ() for n, r in reports.items()})
        status = RunStatus(attempt="a-0", instances=hosted.view.states(Routes({})))
        write_json(hosted.run.folder.status, status.plain())

    return on_a_node(folder, HALVES, look).view, environs


def seen_by(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_parts_of_a_gpu_are_attached_to_one_daemon(tmp_path, monkeypatch, vllm):
    """Engines on parts share the node's daemon, which serves only their GPU; a whole GPU needs
    none; the daemon ends after the engines and leaves its logs.
    """
    vllm("good")
    seen = fake_mps.install(tmp_path, monkeypatch)
    view, environs = host_halves(tmp_path)
    assert seen_by(seen)["environ"]["CUDA_VISIBLE_DEVICES"] == "GPU-aaaa"
    pipes = {name: e.get("CUDA_MPS_PIPE_DIRECTORY") for name, e in environs.items()}
    assert pipes["judge-0"] == pipes["judge-1"] is not None
    assert pipes["writer-0"] is None
    assert environs["judge-1"]["CUDA_VISIBLE_DEVICES"] == "GPU-aaaa"
    assert environs["judge-1"]["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "50"
    assert environs["writer-0"]["CUDA_VISIBLE_DEVICES"] == "1"
    assert view.alerts() == ()
    assert not psutil.pid_exists(seen_by(seen)["pid"])
    assert (tmp_path / "results" / "logs" / "mps-host" / "control.log").exists()


def test_parts_without_mps_are_flagged_everywhere(tmp_path, monkeypatch, vllm):
    """Where no daemon works, status, alerts and the report call those engines time-sliced."""
    vllm("good")
    fake_mps.install(tmp_path, monkeypatch, "dies")
    view, _ = host_halves(tmp_path)
    sliced = {one.id for one in view.reports.values() if one.time_sliced}
    assert sliced == {"judge-0", "judge-1"}
    alert = "judge-0 on host: time-sliced, not held to its 50% of the GPU: the MPS daemon ended"
    assert any(line.startswith(alert) for line in view.alerts())
    notes = share_notes(RunFolder(tmp_path / "results"))
    assert [note.split(" was time-sliced")[0] for note in notes] == ["judge-0", "judge-1"]


def test_engines_of_a_node_share_one_staged_copy(tmp_path, vllm):
    """Two replicas start from the same folder on the node's scratch disk, copied once."""
    vllm("good")
    make_model(tmp_path / "models" / "org" / "judge")
    weights = WeightsFolder(folder=str(tmp_path / "models"), stage=True)
    site = Site(scratch=str(tmp_path / "scratch"), weights=weights)
    (tmp_path / "scratch").mkdir()
    served = []

    async def look(hosted: Hosted) -> None:
        await hosted.until(judge_0="ready", judge_1="ready")
        for name in ("judge-0", "judge-1"):
            line = psutil.Process(hosted[name].pid).cmdline()
            served.append(line[line.index("serve") + 1])

    on_a_node(tmp_path, {"judge-0": (100, ("0",)), "judge-1": (100, ("1",))}, look, site=site)
    copies = [p for p in (tmp_path / "scratch").glob("*/weights/*") if p.is_dir()]
    assert served == [str(copies[0])] * 2
    assert len(copies) == 1


def test_weights_that_are_not_there_are_named(tmp_path, vllm):
    """What is missing on the node ends the instance with its reason: no start can mend it."""
    vllm("good")
    site = Site(weights=WeightsFolder(folder=str(tmp_path)))

    async def look(hosted: Hosted) -> None:
        await hosted.until(judge_0="failed")

    hosted = on_a_node(tmp_path, ONE, look, site=site)
    assert "has neither org/judge nor org__judge" in hosted["judge-0"].error


def test_the_log_of_an_engine_keeps_to_its_size(tmp_path, vllm, monkeypatch):
    """A log that grows past its size is cut while the engine serves, its head kept."""
    monkeypatch.setattr(log_room, "MOST_LOG_BYTES", 64_000)
    monkeypatch.setattr(log_room, "LOOK_AT_LOGS_S", 0.02)
    vllm("good")

    async def look(hosted: Hosted) -> None:
        await hosted.until(judge_0="ready")
        log = hosted.run.folder.logs / "judge-0.1.log"
        with log.open("a") as stream:
            stream.write("a word\n" * 20_000)
        until_s = time.monotonic() + 20.0
        while log.stat().st_size > 64_000:
            assert time.monotonic() < until_s
            await asyncio.sleep(0.01)
        assert "harmless line" in log.read_text()
        assert "bytes left out" in log.read_text()

    on_a_node(tmp_path, ONE, look)
