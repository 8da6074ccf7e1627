"""Simulated checks of plans against closed forms, and what they say where there is no answer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from simulation_cases import MODEL, call, curve, plan_of, run_span

from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.figures import Figures
from scepsy_hpc.formats.plan import Routing
from scepsy_hpc.formats.spans import Prefix
from scepsy_hpc.formats.workflow import Llm
from scepsy_hpc.planning.check import Case, checked
from scepsy_hpc.planning.curves.curve import Curve, TokenLengths
from scepsy_hpc.planning.pipeline.pipeline import HostedStage, Stage
from scepsy_hpc.planning.simulation.arrivals import Arrivals, Closed, Open, Timed
from scepsy_hpc.planning.simulation.offered import Offered
from scepsy_hpc.planning.simulation.run_graph import run_graphs


def exponential(number: int = 1000) -> list[Any]:
    """Runs of one call whose output length has the quantiles of an exponential distribution."""
    sizes = [-math.log(1.0 - (i + 0.5) / number) for i in range(number)]
    return [
        call(f"r{i}", "s", 0.0, 1.0, input_tokens=0, output_tokens=1 + round(1000 * size))
        for i, size in enumerate(sizes)
    ]


def simulated(spans: list[Any], load: Arrivals, served: Curve, **more: Any) -> Figures:
    """Figures of these runs on one replica (or more)."""
    plan = more.pop("plan", None) or plan_of("a")
    hosted = [HostedStage(Stage("a", Llm(model="m"), ()), served, 1)]
    return checked(plan, {"w": run_graphs(spans)}, hosted, load, **more)


def one_server(spans: list[Any], concurrency: Any = (1.0,), rates: Any = (1.0,)) -> Curve:
    """A server for these runs' mean length."""
    outputs = float(np.mean([span.output_tokens for span in spans]))
    return curve(concurrency, rates, TokenLengths(0.0, outputs), ttft_s=(0.0,) * len(rates))


@pytest.mark.parametrize(("load", "half_width_pct"), [(0.5, 12.0), (0.8, 20.0)])
def test_intervals_hold_the_mean_of_a_single_server(load: float, half_width_pct: float) -> None:
    """Processor sharing under Poisson calls: E[T] = 1 / (1 - load), whatever the sizes.

    Of 20 intervals of fixed seeds at least 17 hold it (fewer come in 3 of 1,000 cases where 95%
    do), and the mean over the seeds is right within three standard errors.
    """
    spans = exponential()
    served, truth_s = one_server(spans), 1.0 / (1.0 - load)
    means, held = [], 0
    for seed in range(1000, 1020):
        found = simulated(spans, Open(None, load), served, seed=seed, half_width_pct=half_width_pct)
        assert found.latency_mean_s is not None
        means.append(found.latency_mean_s)
        low_s, high_s = found.intervals["latency_mean_s"]
        assert high_s - low_s <= 2 * half_width_pct / 100.0 * found.latency_mean_s
        held += low_s <= truth_s <= high_s
        assert not any("wide_interval" in flag for flag in found.flags)
    assert held >= 17
    error_s = np.std(means, ddof=1) / math.sqrt(20)
    assert abs(np.mean(means) - truth_s) < 3.0 * error_s


def test_several_servers_and_equal_sizes() -> None:
    """X(k) = min(k, 4) and calls of one size at 80%: Erlang's C gives the mean all the same."""
    spans = [call("r", "s", 0.0, 1.0, input_tokens=0, output_tokens=10)]
    served = one_server(spans, (1.0, 4.0), (1.0, 4.0))
    found = simulated(spans, Open(None, 3.2), served, seed=3, half_width_pct=3.0)
    load, terms = 3.2, [3.2**k / math.factorial(k) for k in range(4)]
    last = load**4 / math.factorial(4) / (1.0 - load / 4)
    truth_s = 1.0 + last / (sum(terms) + last) / (4.0 - load)
    assert found.latency_mean_s == pytest.approx(truth_s, rel=0.04)
    low_s, high_s = found.intervals["latency_mean_s"]
    assert low_s - 0.01 <= truth_s <= high_s + 0.01
    llm = found.per_llm["a"]
    assert llm.calls_in_flight_mean == pytest.approx(3.2 * truth_s, rel=0.05)  # Little's law
    assert llm.utilisation == pytest.approx(0.8, rel=0.03)
    assert found.throughput_rps == pytest.approx(3.2, rel=0.03)


def test_a_closed_load_has_the_throughput_of_the_curve() -> None:
    """Six runs of one call always in flight: X(6) runs a second, 6 / X(6) each; no makespan."""
    spans = exponential(200)
    served = one_server(spans, (1.0, 8.0), (1.0, 3.0))
    found = simulated(spans, Closed(None, 6), served)
    rate_rps = float(served.server.rate_rps(6.0))
    assert found.throughput_rps == pytest.approx(rate_rps, rel=0.05)
    assert found.latency_mean_s == pytest.approx(6 / rate_rps, rel=0.05)
    assert found.makespan_s is None


@pytest.mark.parametrize("in_flight", [40, 300])
def test_runs_sent_at_once_say_nothing_of_the_rate(in_flight: int) -> None:
    """A closed load begins with all its runs at one time: they are not what ends a second."""
    spans = exponential(200)
    served = one_server(spans, (1.0, 8.0), (1.0, 3.0))
    found = simulated(spans, Closed(None, in_flight), served)
    assert found.throughput_rps == pytest.approx(3.0, rel=0.03)
    low, high = found.intervals["throughput_rps"]
    assert low <= 3.0 <= high or found.throughput_rps == pytest.approx(3.0, rel=0.005)
    assert not any("no_steady_state" in flag for flag in found.flags)


@pytest.mark.parametrize("load", [1.0, 1.3])
def test_overload_is_said_and_has_no_figures(load: float) -> None:
    """At and above capacity latencies have no mean: nulls, and a flag with the load."""
    spans = exponential(100)
    found = simulated(spans, Open(None, load), one_server(spans))
    assert (found.latency_mean_s, found.throughput_rps, found.intervals) == (None, None, {})
    assert found.per_workflow["w"].latency_p95_s is None
    assert found.flags[0].startswith("a: overloaded: offered ")
    assert found.per_llm["a"].utilisation == pytest.approx(load)


def test_overload_of_cores_is_known_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 s of CPU a run at one run a second need two cores; no deployment's capacity says so.

    Where no verdict says so beforehand it is seen by growth.
    """
    from dataclasses import replace

    spans = [
        replace(run_span("r", 0.0, 3.0), cpu_s=2.0),
        call("r", "s", 2.0, 3.0, output_tokens=10),
    ]
    served = curve((1.0, 64.0), (1.0, 64.0))
    enough = simulated(spans, Open(None, 1.0), served, cores=8, max_calls=5000)
    assert enough.latency_mean_s == pytest.approx(3.0, rel=0.01)
    # A closed load waits for its cores: six runs in step take 12 s on one, then 1 s for the calls.
    closed = simulated(spans, Closed(None, 6), served, cores=1, max_calls=5000)
    assert closed.throughput_rps == pytest.approx(6 / 13, rel=0.01)
    with monkeypatch.context() as patch:
        patch.setattr(Offered, "flags", ())
        grown = simulated(spans, Open(None, 1.0), served, cores=1, max_calls=5000)
    assert grown.latency_mean_s is None
    assert grown.flags[0].startswith("overloaded: ")
    monkeypatch.setattr(Case, "simulation", None)
    over = simulated(spans, Open(None, 1.0), served, cores=2, max_calls=5000)
    assert over.latency_mean_s is None
    assert over.flags[0] == (
        "cores: overloaded: agents need 2 cores at this rate and have 2; runs pile up, so "
        "latencies have no mean"
    )


def test_too_few_calls_are_said() -> None:
    """At 95% load 3,000 calls tell the mean nowhere near within 5%."""
    spans = exponential(500)
    found = simulated(spans, Open(None, 0.95), one_server(spans), max_calls=3000)
    assert any("wide_interval: " in flag or "no_steady_state: " in flag for flag in found.flags)
    assert found.num_runs == 3000


def test_one_run_has_no_interval_and_says_so() -> None:
    """Nothing is known of how far off the mean of one run is: in words."""
    spans = exponential(100)
    found = simulated(spans, Open(None, 0.5), one_server(spans), num_runs=1)
    assert "latency_mean_s" not in found.intervals
    assert any("wide_interval: no interval: too few runs" in flag for flag in found.flags)
    assert not any("nothing" in flag for flag in found.flags)
    # Percentiles are those of the runs asked for, not of whatever else has ended by then.
    assert found.latency_p50_s == found.latency_p95_s == found.latency_mean_s
    few = simulated(spans, Open(None, 0.5), one_server(spans), num_runs=10)
    assert "latency_p50_s" not in few.intervals
    assert few.latency_p50_s is not None
    assert few.latency_mean_s is not None
    assert few.latency_p95_s is not None
    assert few.latency_p50_s < few.latency_mean_s < few.latency_p95_s <= 10 * few.latency_mean_s


def test_equal_latencies_have_exact_percentiles() -> None:
    """Calls of 3.3 s that never meet: every percentile is that, its interval too."""
    spans = [run_span("r", 0.0, 3.3), call("r", "s", 0.0, 3.3, output_tokens=10)]
    served = curve((1.0, 64.0), (1 / 3.3, 64 / 3.3))
    for load in (Open(None, 0.5), Closed(200, 1)):
        found = simulated(spans, load, served, max_calls=5000)
        for key in ("latency_mean_s", "latency_p50_s", "latency_p95_s", "latency_p99_s"):
            assert getattr(found, key) == pytest.approx(3.3, rel=1e-9)
            low_s, high_s = found.intervals[key]
            assert low_s * (1.0 - 1e-9) <= 3.3 <= high_s * (1.0 + 1e-9)


def test_so_many_runs_are_so_many() -> None:
    """A number of runs is kept, whatever the interval; the same seed gives the same figures."""
    spans = exponential(50)
    found = simulated(spans, Open(None, 0.5), one_server(spans), num_runs=700, seed=4)
    assert found.num_runs == 700
    again = simulated(spans, Open(None, 0.5), one_server(spans), num_runs=700, seed=4)
    assert again == found
    other = simulated(spans, Open(None, 0.5), one_server(spans), num_runs=700, seed=5)
    assert other.latency_mean_s != found.latency_mean_s


def test_batches_are_replicated_over_seeds() -> None:
    """A closed batch on a server that is always full: its makespan is the work of its runs."""
    spans = exponential(40)
    found = simulated(spans, Closed(40, 4), one_server(spans), half_width_pct=8.0)
    assert found.makespan_s == pytest.approx(40.0, rel=0.01)
    assert found.throughput_rps == pytest.approx(1.0, rel=0.01)
    low_s, high_s = found.intervals["latency_mean_s"]
    assert found.latency_mean_s is not None
    assert low_s < found.latency_mean_s < high_s
    assert found.num_runs == 40
    assert any(flag.startswith("replicated: means over ") for flag in found.flags)


def test_given_times_are_kept() -> None:
    """Two bursts of three calls, far apart, share the server: each burst takes 3 s."""
    spans = [call("r", "s", 0.0, 1.0)]
    found = simulated(spans, Timed((0.0, 0.0, 0.0, 100.0, 100.0, 100.0)), curve())
    assert found.latency_mean_s == pytest.approx(3.0)
    assert found.makespan_s == pytest.approx(103.0)


def test_some_with_an_end_and_some_without_are_refused() -> None:
    """A batch beside a load that never ends has no figures of either kind."""
    from scepsy_hpc.formats.plan import PlanWorkflow

    flows = tuple(PlanWorkflow(name=name, llms={"a": "a"}) for name in "vw")
    graphs = {name: run_graphs([call("r", "s", 0.0, 1.0)]) for name in "vw"}
    hosted = [HostedStage(Stage("a", Llm(model="m"), ()), curve(), 1)]
    loads = {"v": Closed(3, 1), "w": Open(None, 0.1)}
    with pytest.raises(InputError, match="some go on for ever"):
        checked(plan_of("a", workflows=flows), graphs, hosted, loads)


def test_sticky_routing_finds_more_of_its_prefix() -> None:
    """Ten-turn conversations on four replicas: where the prefix is matters, and sticky finds it."""
    spans, before = [], None
    for turn in range(10):
        inputs = 200 + 100 * turn
        spans.append(
            call(
                "r",
                f"s{turn}",
                float(turn),
                turn + 0.5,
                input_tokens=inputs,
                output_tokens=4,
                prefix_of=before,
            )
        )
        before = Prefix(span_id=f"s{turn}", tokens=inputs + 4)
    at = (1.0, 4.0)
    known = MODEL.closed_loop
    rates = tuple(known(k, 650.0, 4.0, 500.0).throughput_rps for k in at)
    served = curve(at, rates, TokenLengths(650.0, 4.0, 500.0))
    latency_s, servers = {}, set()
    for rule in ("least_in_flight", "sticky_prefix"):
        plan = plan_of("a", num_replicas=4, routing=Routing(rule=rule))  # type: ignore[arg-type]
        found = simulated(
            spans, Open(None, 0.3), served, plan=plan, engine_models={"a": MODEL}, max_calls=20_000
        )
        assert found.latency_mean_s is not None
        latency_s[rule] = found.per_llm["a"].latency_mean_s
        servers.add(found.per_llm["a"].server)
    assert servers == {"continuous_batching"}  # prompts repeat: a shared processor has no cache
    assert latency_s["sticky_prefix"] < 0.95 * latency_s["least_in_flight"]


def test_a_replica_is_what_was_asked_for() -> None:
    """Without prompts that repeat it shares X(k); an engine must have a model."""
    spans = [call(f"r{i}", "s", 0.0, 1.0, input_tokens=100, output_tokens=4) for i in range(4)]
    at = (1.0, 4.0)
    rates = tuple(MODEL.closed_loop(k, 100.0, 4.0).throughput_rps for k in at)
    served = curve(at, rates, TokenLengths(100.0, 4.0))
    more: dict[str, Any] = {"engine_models": {"a": MODEL}, "max_calls": 3000}
    kinds = {
        asked: simulated(spans, Open(None, 0.3 * rates[0]), served, server=asked, **more)
        .per_llm["a"]
        .server
        for asked in (None, "processor_sharing", "continuous_batching")
    }
    assert kinds == {
        None: "processor_sharing",
        "processor_sharing": "processor_sharing",
        "continuous_batching": "continuous_batching",
    }
    with pytest.raises(InputError, match="a: --server continuous_batching: has no engine model"):
        simulated(spans, Open(None, 0.1), served, server="continuous_batching")
