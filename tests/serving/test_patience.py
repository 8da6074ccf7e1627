"""How long an engine may be silent, from its profile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scepsy_hpc.bundles.library import resolve_bundle
from scepsy_hpc.formats.bundle import load_bundle
from scepsy_hpc.formats.figures import Figures, LlmFigures
from scepsy_hpc.formats.plan import Deployment, Plan, PlanInput
from scepsy_hpc.formats.points import Point
from scepsy_hpc.serving import patience
from scepsy_hpc.serving.patience import patience_of

NAME = "h100_sxm/Qwen__Qwen3-8B/vllm-0.24.0/token-grid"
LLM = Deployment(
    model="Qwen/Qwen3-8B",
    engine="vllm",
    gpu_type="h100_sxm",
    tp_degree=1,
    gpu_share_pct=100,
    num_replicas=1,
)


def planned(folder=None):
    """A deployment and the plan that names its profile."""
    path = resolve_bundle(NAME)
    bundle = load_bundle(path)
    named = folder or path
    item = PlanInput(role="profile", path=f"{named}/points.csv", sha256=bundle.sha256)
    llm = replace(LLM, bundle_sha256=bundle.sha256)
    return Plan(llms={"x": llm}, inputs=(item,)), bundle


def test_three_times_the_p99_of_the_profile_where_that_is_longer():
    """The slowest load of that shape decides; the p99 of an exponential tail is ln(100) means."""
    plan, bundle = planned()
    slowest_s = max(p.ttft_mean_s for p in bundle.points if p.tp_degree == 1 and p.ttft_mean_s)
    found = patience_of(plan, "x", 0.001)
    assert found.limit_s == pytest.approx(3.0 * 4.605 * slowest_s, rel=1e-3)
    assert "3 x the p99 TTFT of its profile" in found.why
    assert patience_of(plan, "x", 1000.0).limit_s == 1000.0


def of_llm(plan, **changes):
    """The same plan with a changed deployment."""
    return replace(plan, llms={"x": replace(plan.llms["x"], **changes)})


def test_the_planned_load_decides_which_points_count():
    """At 1.5 calls in flight those up to four: a burst of 256 prompts at once is none of them."""
    plan, bundle = planned()
    figures = Figures(per_llm={"x": LlmFigures(calls_in_flight_mean=3.0)})
    two = of_llm(replace(plan, simulated=figures), num_replicas=2)
    alike = [p for p in bundle.points if p.tp_degree == 1 and p.concurrency <= 4]
    slowest_s = max(p.ttft_mean_s for p in alike)
    assert patience_of(two, "x", 0.001).limit_s == pytest.approx(3 * 4.605 * slowest_s, rel=1e-3)
    assert patience_of(plan, "x", 0.001).limit_s > 10 * patience_of(two, "x", 0.001).limit_s


def test_without_a_profile_twice_the_least(tmp_path):
    """On a node that cannot read the profile, or where none measured the time to first token."""
    plan, _ = planned(tmp_path)
    assert patience_of(plan, "x", 30.0).limit_s == 60.0
    assert "no profile tells its TTFT" in patience_of(plan, "x", 30.0).why
    assert patience_of(of_llm(planned()[0], gpu_share_pct=35), "x", 30.0).limit_s == 60.0


def test_a_simulated_engine_follows_its_timing():
    """The bundle that times it, as much slower as it is."""
    plan, _ = planned()

    def timed(**args):
        return patience_of(of_llm(plan, engine="simulated", engine_args=args), "x", 0.001).limit_s

    same = timed(timing_bundle=NAME)
    assert same == patience_of(plan, "x", 0.001).limit_s
    assert timed(timing_bundle=NAME, time_scale=10.0) == pytest.approx(10.0 * same)
    assert timed(timing_bundle="nowhere") == 0.002


def test_a_measured_percentile_is_taken_before_a_mean_and_saturation_counts_nothing():
    """The 95th percentile is nearer to the 99th than a mean is."""
    point = Point(
        tp_degree=1,
        gpu_share_pct=100,
        load="open",
        throughput_rps=1.0,
        latency_mean_s=1.0,
        input_tokens_mean=1.0,
        output_tokens_mean=1.0,
        ttft_mean_s=0.1,
        ttft_p95_s=2.0,
    )
    assert patience._p99_s(point) == pytest.approx(3.0745, rel=1e-3)
    assert patience._is_alike(point, LLM)
    assert not patience._is_alike(replace(point, saturated=True), LLM)
