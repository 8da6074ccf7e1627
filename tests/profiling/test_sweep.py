"""A sweep of one engine, and the array of them: points, early stop, losses, bundles."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import fake_mps
import fake_vllm
import psutil
import pytest
import yaml

from scepsy_hpc.bundles.library import find_bundles, save_bundle
from scepsy_hpc.errors import RunError
from scepsy_hpc.formats.bundle import BundleHeader
from scepsy_hpc.formats.points import Point
from scepsy_hpc.formats.topology import Domain, Node, Topology
from scepsy_hpc.profiling.array import profile_all
from scepsy_hpc.profiling.bundling import bundled
from scepsy_hpc.profiling.hardware import Hardware, check_node, hardware_of
from scepsy_hpc.profiling.load_generator import Lengths
from scepsy_hpc.profiling.loads import is_flat, is_saturated
from scepsy_hpc.profiling.spec import Loads, ModelSpec, ProfileSpec, SweepTask, Workload
from scepsy_hpc.profiling.sweep import (
    SweepJob,
    SweepResult,
    neighbours_of,
    run_sweep,
    running,
    shared,
)

HEADER = BundleHeader(
    model="org/timed",
    engine="vllm",
    engine_version="0.33.0",
    engine_args={},
    precision="bf16",
    gpu_type="h100_sxm",
    gpu_memory_gib=80.0,
    how="measured",
    source="made for a test",
    licence="CC0-1.0",
    date="2026-01-01",
    points_sha256="0" * 64,
    weights_gib=1.0,
    kv_bytes_per_token=1000.0,
)


def timed_point(concurrency: int, throughput_rps: float, tp_degree: int = 1) -> Point:
    latency_s = concurrency / throughput_rps
    return Point(
        tp_degree=tp_degree,
        gpu_share_pct=100,
        load="closed",
        concurrency=concurrency,
        throughput_rps=throughput_rps,
        latency_mean_s=latency_s,
        ttft_mean_s=latency_s / 5,
        tpot_mean_s=latency_s * 0.8 / 7,
        input_tokens_mean=64,
        output_tokens_mean=8,
    )


@pytest.fixture
def timing_bundle(tmp_path):
    """A bundle of a fast engine, so that the tests are fast: about 40 ms a call."""
    points = [
        timed_point(c, x * tp, tp)
        for tp in (1, 2)
        for c, x in [(1, 25.0), (4, 90.0), (16, 250.0), (64, 500.0)]
    ]
    return save_bundle(tmp_path / "timing", HEADER, points, "short").path


def write_spec(folder: Path, timing_bundle: Path, **model: object) -> Path:
    topology = {
        "schema": "scepsy/topology/v1",
        "nodes": [
            {"name": "a", "gpu_type": "h100_sxm", "gpu_memory_gib": 80, "nvlink_domains": [[0, 1]]}
        ],
    }
    (folder / "topology.yaml").write_text(yaml.safe_dump(topology))
    simulated = {
        "model": "org/timed",
        "engine": "simulated",
        "engine_args": {"timing_bundle": str(timing_bundle)},
        "tp_degrees": [1, 2],
    }
    spec = {
        "schema": "scepsy/profile-spec/v1",
        "topology": "topology.yaml",
        "models": [simulated | model],
        "workload": {"name": "short", "input_tokens": 64, "output_tokens": 8},
        "loads": {"concurrency": [1, 4], "requests_per_point": 8, "warmup_requests": 1},
        "ready_timeout_s": 120,
    }
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


TASK = SweepTask(
    task_id="t",
    model=ModelSpec(model="org/model", engine="vllm"),
    gpu_type="h100_sxm",
    gpu_memory_gib=80.0,
    link=None,
    tp_degree=1,
    gpu_share_pct=100,
    lengths=(Lengths(8, 2),),
    loads=Loads(concurrency=(1,), requests_per_point=2),
    ready_timeout_s=60.0,
    seed=0,
)


def test_array_writes_a_bundle_of_what_it_ran(tmp_path, timing_bundle):
    """Simulated engines at TP 1 and 2 give one bundle that says it was not measured."""
    seen = []
    result = profile_all(
        write_spec(tmp_path, timing_bundle), tmp_path / "out", "local", on_progress=seen.append
    )
    result.raise_if_failed()
    [bundle] = find_bundles(tmp_path / "out")
    assert bundle.sha256 == result.bundles[0].sha256
    assert bundle.header.how == "modelled"
    assert "simulated engine; timing of h100_sxm/org/timed/vllm-0.33.0" in bundle.header.source
    keys = [(p.tp_degree, p.link, p.concurrency) for p in bundle.points]
    assert keys == [(1, None, 1), (1, None, 4), (2, "nvlink", 1), (2, "nvlink", 4)]
    assert all(p.output_tokens_mean == 8 and p.input_tokens_mean == 64 for p in bundle.points)
    assert (seen[-1].num_ended, seen[-1].num_points) == (2, 4)


def test_shapes_are_swept_one_by_one(tmp_path, timing_bundle):
    """Several token shapes give one bundle with every load of each, for one start of the engine;
    no prompt of one is found in the cache as another's, though two are equally long."""
    path = write_spec(tmp_path, timing_bundle, tp_degrees=[1])
    spec = yaml.safe_load(path.read_text())
    spec["workload"] = {"name": "grid", "shapes": [[64, 8], [32, 4], [64, 4]]}
    path.write_text(yaml.safe_dump(spec))
    seen = []
    profile_all(path, tmp_path / "out", "debug", on_progress=seen.append).raise_if_failed()
    [bundle] = find_bundles(tmp_path / "out")
    found = [(p.input_tokens_mean, p.output_tokens_mean, p.concurrency) for p in bundle.points]
    assert sorted(found) == [(i, o, k) for i, o in ((32, 4), (64, 4), (64, 8)) for k in (1, 4)]
    assert [p.cached_tokens_mean for p in bundle.points] == [0.0] * 6
    assert seen[-1].num_points_wanted == 6
    assert len(list(tmp_path.glob("out/.profiling/*/*-engine.log"))) == 1


def test_failing_task_loses_only_its_own_points(tmp_path, timing_bundle, monkeypatch):
    """A model that cannot run here is named with the reason; the other model's bundle stands."""
    path = write_spec(tmp_path, timing_bundle, tp_degrees=[1])
    spec = yaml.safe_load(path.read_text())
    spec["models"].append({"model": "org/broken", "engine": "vllm"})
    path.write_text(yaml.safe_dump(spec))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    result = profile_all(path, tmp_path / "out", "debug")
    assert [bundle.header.model for bundle in result.bundles] == ["org/timed"]
    with pytest.raises(RunError, match=r"1 task\(s\) failed.*\n.*broken.*: needs 1 GPUs"):
        result.raise_if_failed()


def test_second_try_measures_only_what_is_missing(tmp_path, timing_bundle, monkeypatch):
    """After a try that lost a task, the same spec keeps the others' results, once."""
    path = write_spec(tmp_path, timing_bundle)
    monkeypatch.setattr("scepsy_hpc.profiling.array.run_sweep", fail_at_tp_two)
    first = profile_all(path, tmp_path / "out", "debug")
    assert [task_id for task_id, _ in first.failures] == ["0-timed-h100_sxm-nvlink-tp2-share100"]
    monkeypatch.undo()
    second = profile_all(path, tmp_path / "out", "debug")
    assert (second.num_reused, second.failures) == (1, ())
    assert {point.tp_degree for point in second.bundles[0].points} == {1, 2}
    assert second.bundles[0].points[:2] == first.bundles[0].points
    shown = profile_all(path, tmp_path / "out", "slurm", only_show=True)
    assert shown.num_reused == 0


def fail_at_tp_two(job: SweepJob) -> SweepResult:
    if job.task.tp_degree == 2:
        raise RunError("told to fail")
    return run_sweep(job)


def test_dry_run_shows_and_submits_nothing(tmp_path, timing_bundle):
    """The dry run gives one sbatch text a TP degree, asks for its GPUs, and writes nothing."""
    result = profile_all(
        write_spec(tmp_path, timing_bundle), tmp_path / "out", "slurm", only_show=True
    )
    assert ["--gres=gpu:1" in text for text in result.sbatch_texts] == [True, False]
    assert "--gres=gpu:2" in result.sbatch_texts[1]
    assert result.gpu_hours == pytest.approx((1 + 2) * 60 / 60)
    assert not (tmp_path / "out").exists()


def test_engine_that_dies_fails_the_task(tmp_path, monkeypatch):
    """A task ends with what its engine said last, and leaves no points."""
    monkeypatch.setenv("SCEPSY_VLLM_PYTHON", str(fake_vllm.install(tmp_path, "dies")))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("scepsy_hpc.profiling.hardware.discover_local", one_h100)
    monkeypatch.setattr("scepsy_hpc.profiling.hardware._driver", lambda: "570.1")
    job = SweepJob(TASK, tmp_path, tmp_path / "result")
    with pytest.raises(RunError, match=r"died with exit code 3.*\n.*\n.*CUDA out of everything"):
        run_sweep(job)
    assert not job.points_path.exists()
    assert not job.result_path.exists()


def one_h100() -> Topology:
    domain = Domain(gpus=(0,), link="nvlink")
    return Topology((Node(name="a", gpu_type="h100_sxm", gpu_memory_gib=80.0, domains=(domain,)),))


def points_at(*throughputs_rps: float) -> list[Point]:
    found: list[Point] = []
    for i, throughput_rps in enumerate(throughputs_rps):
        point = timed_point(2**i, throughput_rps)
        found.append(replace(point, saturated=is_flat(found, point)))
    return found


def test_sweep_stops_when_flat_twice():
    """Two loads in a row without 2% more throughput end the sweep, one does not."""
    assert not is_saturated(points_at(10, 20, 20.2))
    assert is_saturated(points_at(10, 20, 20.2, 20.1))
    assert not is_saturated(points_at(10, 20, 20.2, 30))
    assert [point.saturated for point in points_at(10, 20, 20.2)] == [False, False, True]


@pytest.mark.parametrize(
    ("share", "neighbours"),
    [
        (100, ()),
        (75, (25,)),
        (60, (40,)),
        (50, (50,)),
        (40, (40,)),
        (30, (30, 30)),
        (25, (25,) * 3),
    ],
)
def test_shares_are_measured_beside_busy_neighbours(share, neighbours):
    """The rest of a shared GPU is filled with instances under load; a simulated one needs none."""
    assert neighbours_of(replace(TASK, gpu_share_pct=share)) == neighbours
    simulated = ModelSpec(model="org/model", engine="simulated")
    assert neighbours_of(replace(TASK, model=simulated, gpu_share_pct=share)) == ()


def test_neighbour_on_the_rest_must_hold_the_model():
    """No neighbour is started where the weights leave it no room: 25% of 78 GiB is 19.5."""
    for weights_gib, neighbours in ((15.3, (25,)), (19.5, ())):
        model = ModelSpec(model="org/model", engine="vllm", weights_gib=weights_gib)
        assert neighbours_of(replace(TASK, model=model, gpu_share_pct=75)) == neighbours


def start_shared(folder: Path) -> tuple[dict[str, str], str | None]:
    """Environment of an engine on half a GPU, and why it is time-sliced."""
    job = SweepJob(replace(TASK, gpu_share_pct=50), folder, folder / "result")
    hardware = Hardware(("1",), "570.1")

    async def main() -> tuple[dict[str, str], str | None]:
        async with (
            shared(job, hardware) as sharing,
            running(job, hardware, "engine", sharing) as engine,
        ):
            assert sharing is not None
            return psutil.Process(engine.pid).environ(), sharing.time_sliced(engine.pid)

    return asyncio.run(main())


@pytest.fixture
def good_vllm(tmp_path, monkeypatch):
    monkeypatch.setenv("SCEPSY_VLLM_PYTHON", str(fake_vllm.install(tmp_path, "good")))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_shares_are_held_by_mps(tmp_path, monkeypatch, good_vllm):
    """An engine on part of a GPU is attached to the task's own daemon, its GPU named by UUID."""
    fake_mps.install(tmp_path, monkeypatch)
    environ, reason = start_shared(tmp_path)
    assert reason is None
    assert environ["CUDA_VISIBLE_DEVICES"] == "GPU-bbbb"
    assert environ["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "50"
    assert (tmp_path / "t-mps" / "control.log").exists()


def test_shares_without_mps_are_called_time_sliced(tmp_path, monkeypatch, good_vllm):
    """Where no daemon works the engine runs all the same, and the bundle's source says so."""
    fake_mps.install(tmp_path, monkeypatch, "dies")
    environ, reason = start_shared(tmp_path)
    assert environ["CUDA_VISIBLE_DEVICES"] == "1"
    task = replace(TASK, gpu_share_pct=50)
    result = SweepResult(
        task_id="t",
        engine_version="0.32.0",
        points=(timed_point(1, 2.0),),
        neighbours_pct=(50,),
        time_sliced=reason,
    )
    spec = ProfileSpec(tmp_path, one_h100(), Workload(name="w", input_tokens=8), None, (task,), ())
    [(header, _)] = bundled(spec, [(task, result)])
    assert "50% measured beside 50% under the same load" in header.source
    assert "50% was time-sliced, no SM limit held: the MPS daemon ended with" in header.source


def test_wrong_gpus_fail_the_task():
    """A task that got another type of GPU, another link or too few GPUs measures nothing."""
    two = replace(TASK, tp_degree=2, link="nvlink")
    pairs = (Domain(gpus=(0, 1), link="nvlink"), Domain(gpus=(2, 3), link="nvlink"))
    node = Node(name="a", gpu_type="h100_sxm", gpu_memory_gib=80.0, domains=pairs)
    check_node(two, node, ("0", "1"))
    with pytest.raises(RunError, match="got GPUs 1,2, joined by no common domain, not by nvlink"):
        check_node(two, node, ("1", "2"))
    with pytest.raises(RunError, match="ran on a100_sxm, not h100_sxm"):
        check_node(two, replace(node, gpu_type="a100_sxm"), ("0", "1"))
    slow = replace(node, domains=(Domain(gpus=(0, 1), link="pcie"),))
    with pytest.raises(RunError, match="joined by pcie, not by nvlink"):
        check_node(two, slow, ("6", "7"))
    with pytest.raises(RunError, match="needs 2 GPUs, CUDA_VISIBLE_DEVICES gives 1"):
        hardware_of(two, {"CUDA_VISIBLE_DEVICES": "0"})
